"""All calibration images on their way through a graph, block by block: in integers, and beside it in float.

Only the tensors that later blocks read are kept: int8 for the integers, float32 for the float graph, five
bytes a value. MEMORY_LIMIT bounds them, by the number of images that travel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edge_resnet.compression.blocks import Block
from edge_resnet.graph.execution import NodeFunction
from edge_resnet.graph.float_executor import float_function, input_values
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.nodes import Node, QuantParams
from edge_resnet.graph.reference import integer_function

__all__ = ["MEMORY_LIMIT", "BlockStreams", "affordable_images"]

# Bytes. ResNet-50 at 224x224 needs 8 MB an image where it is widest, so that 256 images fit.
MEMORY_LIMIT = 2**31
_BYTES = 5
# Images that a block runs at once, beside the loop of training.
_BATCH = 32


def affordable_images(graph: Graph, blocks: Sequence[Block], limit: int = MEMORY_LIMIT) -> int:
    """How many images' streams fit in `limit` bytes; at least one."""
    values = max(
        sum(
            int(np.prod(graph.shapes[name]))
            for name in dict.fromkeys((*block.inputs, *block.passing, *block.outputs))
        )
        for block in blocks
    )
    return max(1, limit // (_BYTES * values))


class BlockStreams:
    """`integers` int8 and `floats` float32, each [N, C, H, W] or [N, C], of the tensors between two blocks.

    Floats are real values; integers are q, not centred.
    """

    def __init__(self, quantized: Graph, floating: Graph, pixels: NDArray[np.uint8]) -> None:
        self.quantized, self.floating, self.count = quantized, floating, len(pixels)
        source = quantized.input
        bytes_ = torch.from_numpy(pixels).permute(0, 3, 1, 2)
        self.integers = {source.name: (bytes_.to(torch.int16) - 128).to(torch.int8)}
        self.floats = {source.name: input_values(floating.input, pixels)}

    def centred(self, name: str, which: Tensor | slice) -> Tensor:
        """q - z of some images, float32."""
        return _last(self.integers[name][which].float()) - self._quant(name).zero_point

    @torch.no_grad()
    def run(self, block: Block, nodes: Sequence[Node]) -> dict[str, Tensor]:
        """The block's outputs in integers, int8, as graph/reference.py says, with `nodes` for its own."""
        functions = [(node, integer_function(node, self.quantized)) for node in nodes]
        zeros = {name: self._quant(name).zero_point for name in block.outputs}
        with torch.backends.nnpack.flags(enabled=False):
            return self._run(
                block,
                functions,
                self.centred,
                lambda name, value: _last((value + zeros[name]).to(torch.int8)),
            )

    @torch.no_grad()
    def squared_error(self, block: Block, integers: dict[str, Tensor], exact: dict[str, Tensor]) -> float:
        """Of a run's outputs against the float graph's, in squared steps: the sum of their means."""
        total = 0.0
        for name in block.outputs:
            quant = self._quant(name)
            for which in self._batches():
                steps = exact[name][which] / quant.scale
                error = integers[name][which].float() - quant.zero_point - steps
                total += float(error.double().square().sum()) / steps[0].numel() / self.count
        return total

    @torch.no_grad()
    def float_outputs(self, block: Block) -> dict[str, Tensor]:
        """The block's outputs in the float graph."""
        nodes = [self.floating.by_name[node.name] for node in block.nodes]
        functions = [(node, float_function(node)) for node in nodes]
        return self._run(
            block,
            functions,
            lambda name, which: _last(self.floats[name][which]),
            lambda name, value: _last(value),
        )

    def move(self, block: Block, integers: dict[str, Tensor], floats: dict[str, Tensor]) -> None:
        """Go behind the block with these as its outputs."""
        self.integers = {name: self.integers[name] for name in block.passing} | integers
        self.floats = {name: self.floats[name] for name in block.passing} | floats

    def _quant(self, name: str) -> QuantParams:
        quant = self.quantized.by_name[name].quant
        assert quant is not None
        return quant

    def _batches(self) -> Iterator[slice]:
        return (slice(start, start + _BATCH) for start in range(0, self.count, _BATCH))

    def _run(
        self,
        block: Block,
        functions: list[tuple[Node, NodeFunction]],
        load: Callable[[str, slice], Tensor],
        store: Callable[[str, Tensor], Tensor],
    ) -> dict[str, Tensor]:
        parts: dict[str, list[Tensor]] = {name: [] for name in block.outputs}
        for which in self._batches():
            values = {name: load(name, which) for name in block.inputs}
            for node, function in functions:
                values[node.name] = function(*(values[name] for name in node.inputs))
            for name in block.outputs:
                parts[name].append(store(name, values[name]))
        return {name: torch.cat(tensors) for name, tensors in parts.items()}


def _last(value: Tensor) -> Tensor:
    """The same values in the order of memory in which convolutions are fast."""
    return value.contiguous(memory_format=torch.channels_last) if value.ndim == 4 else value.contiguous()
