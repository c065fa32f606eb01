"""What every execution of a graph has in common: the image as a tensor, and one node after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edge_resnet.graph.graph import Graph
from edge_resnet.graph.nodes import Input, Node

__all__ = ["NodeFunction", "centred_image", "run_exactly", "run_nodes"]

NodeFunction = Callable[..., Tensor]
"""Inputs [N, C, H, W] or [N, C] -> the node's output."""


def centred_image(source: Input, pixels: NDArray[np.uint8]) -> Tensor:
    """Bytes [N, H, W, C] -> q - z, float32 [N, C, H, W], channels_last; the bytes where there is no z."""
    zero = 0 if source.quant is None else 128 + source.quant.zero_point
    values = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() - zero
    return values.contiguous(memory_format=torch.channels_last)


def run_exactly(
    graph: Graph, functions: Sequence[tuple[Node, NodeFunction]], pixels: NDArray[np.uint8]
) -> Tensor:
    """run_nodes on bytes [N, H, W, C], with convolutions that are exact where their sums are integers."""
    # NNPACK's Winograd convolutions are not exact; the others that torch may choose are.
    with torch.backends.nnpack.flags(enabled=False):
        return run_nodes(graph, functions, centred_image(graph.input, pixels))


def run_nodes(
    graph: Graph,
    functions: Sequence[tuple[Node, NodeFunction]],
    image: Tensor,
    observe: Callable[[str, Tensor], None] | None = None,
) -> Tensor:
    """The output. `functions`: all nodes but the input, in order; `observe` sees the image and each output.

    A tensor is freed when nobody reads it any more: ResNet-50's at 224x224 are large.
    """
    values = {graph.input.name: image}
    readers = {name: len(nodes) for name, nodes in graph.consumers.items()}
    if observe:
        observe(graph.input.name, image)
    for node, function in functions:
        values[node.name] = function(*(values[name] for name in node.inputs))
        if observe:
            observe(node.name, values[node.name])
        for name in node.inputs:
            readers[name] -= 1
            if not readers[name]:
                del values[name]
    return values[graph.output.name]
