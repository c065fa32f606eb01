"""What images show of a float graph's channels and blocks: gradients, spreads, and what a removal costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from edge_resnet.compression.graph_module import GraphModule, module_key
from edge_resnet.graph.channels import ChannelGroup
from edge_resnet.graph.float_executor import activate, input_values
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.nodes import Add
from edge_resnet.graph.passes.remove_blocks import IdentityBlock, identity_blocks
from edge_resnet.progress import Advance
from edge_resnet.training.precision import graph_strides_over_one_pixel

__all__ = [
    "Sample",
    "answers",
    "block_costs",
    "divergence",
    "downstream",
    "gate_gradients",
    "output_spreads",
    "producers",
]

# All tensors of a batch are kept at once: so many values at the most.
_MOST_VALUES = 1e8


@dataclass(frozen=True, eq=False)
class Sample:
    """Images uint8 [N, H, W, C], labels int64 [N], and the original model's answers, float32 [N, classes].

    `precision` bfloat16: layers compute in it, which is enough to rank them. `advance` is told the images of
    each batch that was run, forwards or backwards.
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    logits: NDArray[np.float32]
    precision: str = "float32"
    advance: Advance = field(default=lambda images: None)

    def with_answers(self, logits: NDArray[np.float32]) -> Sample:
        return replace(self, logits=logits)

    def part(self, images: slice) -> Sample:
        pixels, labels, logits = self.pixels[images], self.labels[images], self.logits[images]
        return replace(self, pixels=pixels, labels=labels, logits=logits)

    def batches(self, graph: Graph) -> Iterator[slice]:
        """As many images at a time as all of the graph's tensors have room for."""
        values = sum(int(np.prod(shape)) for shape in graph.shapes.values())
        size = max(1, min(128, int(_MOST_VALUES / values)))
        for start in range(0, len(self.pixels), size):
            part = slice(start, min(start + size, len(self.pixels)))
            yield part
            self.advance(part.stop - part.start)

    def autocast(self, graph: Graph) -> torch.autocast:
        low = self.precision == "bfloat16" and not graph_strides_over_one_pixel(graph)
        return torch.autocast("cpu", torch.bfloat16, enabled=low)


def answers(graph: Graph, sample: Sample) -> NDArray[np.float32]:
    """Logits of the sample's images, float32 [N, classes]."""
    module = GraphModule(graph).eval()
    parts = []
    with torch.no_grad(), sample.autocast(graph):
        for part in sample.batches(graph):
            parts.append(module(input_values(graph.input, sample.pixels[part])).float())
    return torch.cat(parts).numpy()


def divergence(sample: Sample, logits: NDArray[np.float32]) -> float:
    """KL(original || these answers) in nats, the mean over the sample."""
    return _divergence(torch.from_numpy(sample.logits), torch.from_numpy(logits)) / len(logits)


def producers(graph: Graph, group: ChannelGroup) -> list[str]:
    """The layers in which a unit's values begin: convolutions that scale channels one by one pass them on."""
    mixing = [name for name in group.layers if getattr(graph.by_name[name], "groups", 1) == 1]
    return mixing or list(group.layers)


def gate_gradients(
    graph: Graph,
    groups: Sequence[ChannelGroup],
    sample: Sample,
    targets: NDArray[np.int64] | NDArray[np.float32],
) -> list[NDArray[np.float32]]:
    """For each group, image and unit the derivative of the image's cross entropy by a gate, [N, units].

    The gate multiplies all that the unit's producers write, and is 1: the derivative is the sum of value
    times gradient over them (Molchanov et al., 2016, 1611.06440). `targets`: classes, int64 [N], or their
    probabilities, float32 [N, classes].
    """
    module = GraphModule(graph).eval()
    seen: dict[str, Tensor] = {}
    for name in {name for group in groups for name in producers(graph, group)}:
        module.get_submodule(module_key(name)).register_forward_hook(_products(name, seen))
    parts: list[list[NDArray[np.float32]]] = [[] for _ in groups]
    for part in sample.batches(graph):
        with sample.autocast(graph):
            logits = module(input_values(graph.input, sample.pixels[part])).float()
        F.cross_entropy(logits, torch.from_numpy(targets[part]), reduction="sum").backward()  # type: ignore[no-untyped-call]
        module.zero_grad(set_to_none=True)
        for group, found in zip(groups, parts, strict=True):
            found.append(_by_unit(graph, group, {name: value.numpy() for name, value in seen.items()}))
    return [np.concatenate(found) for found in parts]


def output_spreads(graph: Graph, groups: Sequence[ChannelGroup], sample: Sample) -> list[NDArray[np.float32]]:
    """For each group and unit the deviation of its producers' sums before any activation, [units].

    That is what the scale of a batch normalization behind the layer was trained to be.
    """
    module = GraphModule(graph).eval()
    seen: dict[str, list[Tensor]] = {}
    for name in {name for group in groups for name in producers(graph, group)}:
        layer = module.get_submodule(f"{module_key(name)}.layer")
        layer.register_forward_hook(_moments(seen.setdefault(name, [])))
    with torch.no_grad(), sample.autocast(graph):
        for part in sample.batches(graph):
            module(input_values(graph.input, sample.pixels[part]))
    spreads = {}
    for name, moments in seen.items():
        count, total, square = torch.stack(moments).sum(0)
        spreads[name] = (square / count - (total / count).square()).clamp(min=0).sqrt().float().numpy()[None]
    return [_by_unit(graph, group, spreads)[0] for group in groups]


def block_costs(graph: Graph, sample: Sample) -> dict[str, float]:
    """What the removal of each identity block, by its sum's name, adds to the distance from the original.

    The distance is KL(original || graph) in nats, the mean over the sample. Can be below 0.
    """
    blocks = identity_blocks(graph)
    module = GraphModule(graph).eval()
    without = {block.total: 0.0 for block in blocks}
    present = 0.0
    with torch.no_grad(), sample.autocast(graph):
        for part in sample.batches(graph):
            expected = torch.from_numpy(sample.logits[part])
            values = {graph.input.name: input_values(graph.input, sample.pixels[part])}
            _run(graph, module, values, {node.name for node in graph.nodes[1:]})
            present += _divergence(expected, values[graph.output.name])
            for block in blocks:
                changed = _Overlay(values, {block.total: _passed(graph, block, values)})
                _run(graph, module, changed, downstream(graph, block.total))
                without[block.total] += _divergence(expected, changed[graph.output.name])
    return {name: (total - present) / len(sample.pixels) for name, total in without.items()}


class _Overlay(dict[str, Tensor]):
    """Values of which some were computed anew."""

    def __init__(self, below: dict[str, Tensor], own: dict[str, Tensor]) -> None:
        super().__init__(own)
        self._below = below

    def __missing__(self, name: str) -> Tensor:
        return self._below[name]


def _run(graph: Graph, module: nn.Module, values: dict[str, Tensor], wanted: set[str]) -> None:
    for node in graph.nodes:
        if node.name in wanted:
            layer = module.get_submodule(module_key(node.name))
            values[node.name] = layer(*[values[source] for source in node.inputs])


def downstream(graph: Graph, name: str) -> set[str]:
    """The nodes that depend on it, without itself."""
    found = {name}
    for node in graph.nodes:
        if not found.isdisjoint(node.inputs):
            found.add(node.name)
    return found - {name}


def _passed(graph: Graph, block: IdentityBlock, values: dict[str, Tensor]) -> Tensor:
    """What the sum would be without the branch."""
    total = graph.by_name[block.total]
    assert isinstance(total, Add)
    return activate(values[block.shortcut], total.activation)


def _divergence(expected: Tensor, logits: Tensor) -> float:
    """The sum over images of KL(expected || logits)."""
    first, second = F.log_softmax(expected.double(), 1), F.log_softmax(logits.double(), 1)
    return float((first.exp() * (first - second)).sum())


def _products(name: str, seen: dict[str, Tensor]) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    def watch(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        # Not `output` itself, which holds the hook: a circle is freed only when Python looks for circles.
        values = output.detach()

        def keep(gradient: Tensor) -> None:
            product = (values * gradient).float()
            seen[name] = product.flatten(2).sum(2) if product.ndim == 4 else product

        output.register_hook(keep)  # type: ignore[no-untyped-call]

    return watch


def _moments(seen: list[Tensor]) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    def watch(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        values = output.double()
        axes = tuple(axis for axis in range(values.ndim) if axis != 1)
        total = values.sum(axes)
        count = torch.full_like(total, values.numel() / values.shape[1])
        seen.append(torch.stack([count, total, values.square().sum(axes)]))

    return watch


def _by_unit(
    graph: Graph, group: ChannelGroup, values: dict[str, NDArray[np.float32]]
) -> NDArray[np.float32]:
    """The sum over a unit's channels in all its producers: [N, channels] of each -> [N, units]."""
    parts = [values[name][:, group.channels[name]].sum(2) for name in producers(graph, group)]
    total: NDArray[np.float32] = np.sum(parts, axis=0)
    return total
