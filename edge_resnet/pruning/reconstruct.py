"""Weights that make up for what went: each layer's are fitted to the original's outputs, without training.

Layer by layer, from the first to the last, by least squares (He et al., "Channel Pruning for Accelerating
Very Deep Neural Networks", 2017, 1707.06168, sections 3.1 and 3.2). A layer reads what the pruned graph
computes, so it corrects the errors of those before it; the last layer of a residual branch is fitted to the
original's sum, so it corrects the shortcut's as well, and adds what the blocks that went had added.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edge_resnet.graph.float_executor import activate, float_function, input_values
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.nodes import Activation, Add, Conv, FloatWeights, Linear, Node
from edge_resnet.progress import Advance

__all__ = ["reconstructed"]

# Equations for each unknown weight: positions of the images are drawn until there are so many. Layers that
# have fewer than the least, as those of a single pixel may, stay as they are.
_ROWS, _LEAST_ROWS = 40, 4
# So many images share their positions.
_PART = 32
# Of the mean square of what a layer reads: how strongly its weights stay what they are.
_RIDGE, _LEAST_RIDGE = 1e-3, 1e-9
# One tensor of all images has at most so many values.
_MOST_VALUES = 2e8


@torch.no_grad()
def reconstructed(
    original: Graph,
    pruned: Graph,
    channels: Mapping[str, NDArray[np.int64]],
    pixels: NDArray[np.uint8],
    seed: int = 0,
    advance: Advance = lambda images: None,
    layers: Collection[str] | None = None,
) -> Graph:
    """`pruned` with weights that bring its layers as near to the original's as least squares can.

    `channels`: those of the original that each of its tensors still has. `pixels` uint8 [N, H, W, C], of
    which as many are used as there is room for; `advance` is told N. `layers`: which are fitted; None: all.
    """
    rng = np.random.default_rng([seed, 1])
    largest = max(math.prod(shape) for shape in original.shapes.values())
    shown = pixels[: max(_PART, int(_MOST_VALUES / largest))]
    before, after = _Values(original, shown), _Values(pruned, shown)
    nodes: dict[str, Node] = {pruned.input.name: pruned.input}
    for theirs in _shortcuts_first(original):
        expected = before.sum_of(theirs)
        mine = pruned.by_name.get(theirs.name)
        if isinstance(mine, Conv | Linear) and (layers is None or mine.name in layers):
            missing = expected[:, torch.from_numpy(channels[mine.name])] - after.sum_of(mine)
            missing = missing + _missing_beside(mine, before, after, channels)
            mine = _fitted(mine, after.values[mine.inputs[0]], missing, rng)
        if mine is not None:
            nodes[mine.name] = mine
            after.put(mine, after.sum_of(mine))
        before.put(theirs, expected)
    advance(len(pixels))
    return pruned.with_nodes(nodes[node.name] for node in pruned.nodes)


class _Values:
    """What a graph's nodes compute of all images; a tensor that nobody will read any more is dropped."""

    def __init__(self, graph: Graph, pixels: NDArray[np.uint8]) -> None:
        self.graph = graph
        self.values: dict[str, Tensor] = {graph.input.name: input_values(graph.input, pixels)}
        self._readers = {name: len(readers) for name, readers in graph.consumers.items()}

    def sum_of(self, node: Node) -> Tensor:
        """The node's output; of a layer or a sum, what it is before its activation."""
        if isinstance(node, Conv | Linear | Add):
            node = replace(node, activation=Activation.NONE)
        return float_function(node)(*(self.values[source] for source in node.inputs))

    def put(self, node: Node, value: Tensor) -> None:
        """`value`: the node's `sum_of`."""
        if isinstance(node, Conv | Linear | Add):
            value = activate(value, node.activation)
        self.values[node.name] = value
        for source in node.inputs:
            self._readers[source] -= 1
            if not self._readers[source]:
                del self.values[source]


def _shortcuts_first(graph: Graph) -> list[Node]:
    """All nodes but the input, in an order in which those without weights come as early as they can.

    So the value of a shortcut is there before the last layer of the branch beside it.
    """
    known, waiting, order = {graph.input.name}, list(graph.nodes[1:]), []
    while waiting:
        ready = [node for node in waiting if known.issuperset(node.inputs)]
        node = next((node for node in ready if not isinstance(node, Conv | Linear)), ready[0])
        order.append(node)
        known.add(node.name)
        waiting.remove(node)
    return order


def _missing_beside(
    layer: Conv | Linear, before: _Values, after: _Values, channels: Mapping[str, NDArray[np.int64]]
) -> Tensor:
    """What a sum lacks of the original's besides what the layer adds; 0 where that is not known yet."""
    nothing = torch.zeros(())
    readers = after.graph.consumers[layer.name]
    if len(readers) != 1 or not isinstance(readers[0], Add) or layer.activation is not Activation.NONE:
        return nothing
    total = readers[0].name
    mine, theirs = (_other(values.graph.by_name[total], layer.name) for values in (after, before))
    if mine not in after.values or theirs not in before.values:
        return nothing
    kept = torch.from_numpy(channels[total])
    return before.values[theirs][:, kept] - after.values[mine]


def _other(total: Node, layer: str) -> str:
    first, second = total.inputs
    return second if first == layer else first


def _fitted(layer: Conv | Linear, reads: Tensor, missing: Tensor, rng: np.random.Generator) -> Conv | Linear:
    """The layer with weights changed by what gives `missing`, [N, C, ...], of `reads`, in least squares."""
    assert isinstance(layer.weights, FloatWeights)
    weight = layer.weights.weight
    groups = layer.groups if isinstance(layer, Conv) else 1
    unknowns = weight[0].size + 1
    missing = missing.reshape(*missing.shape[:2], -1)
    count, _, size = missing.shape
    if count * size < _LEAST_ROWS * unknowns:
        return layer
    drawn = min(size, math.ceil(_ROWS * unknowns / count))
    gram = torch.zeros(groups, unknowns, unknowns, dtype=torch.float64)
    cross = torch.zeros(groups, unknowns, len(weight) // groups, dtype=torch.float64)
    for start in range(0, count, _PART):
        images = slice(start, start + _PART)
        places = torch.from_numpy(np.sort(rng.choice(size, drawn, replace=False)))
        rows = _patches(layer, reads[images], places)  # [n, drawn, C, kernel]
        rows = rows.reshape(-1, groups, unknowns - 1).transpose(0, 1)
        rows = torch.cat([rows, torch.ones(*rows.shape[:2], 1)], 2)
        wanted = missing[images][:, :, places].transpose(1, 2).reshape(rows.shape[1], groups, -1)
        gram += (rows.mT @ rows).double()
        cross += (rows.mT @ wanted.transpose(0, 1)).double()
    strength = (_RIDGE * gram.diagonal(dim1=1, dim2=2)[:, :-1].mean(1)).clamp_min(_LEAST_RIDGE)
    ridge = torch.eye(unknowns, dtype=torch.float64) * strength[:, None, None]
    change = torch.linalg.solve(gram + ridge, cross).mT.reshape(len(weight), unknowns).float().numpy()
    fitted = FloatWeights(
        weight + change[:, :-1].reshape(weight.shape),
        layer.weights.bias + np.ascontiguousarray(change[:, -1]),
    )
    return replace(layer, weights=fitted)


def _patches(layer: Conv | Linear, reads: Tensor, places: Tensor) -> Tensor:
    """What the layer multiplies at those places of its output: [n, places, channels, kernel]."""
    if isinstance(layer, Linear):
        return reads[:, None, :, None]
    down, right = layer.stride
    height, width = layer.weights.weight.shape[2:]
    padded = torch.nn.functional.pad(reads, layer.padding.sides)
    columns = (padded.shape[3] - (width - 1) * layer.dilation[1] - 1) // right + 1
    y, x = places // columns * down, places % columns * right
    taps = [
        padded[:, :, y + row * layer.dilation[0], x + column * layer.dilation[1]]
        for row in range(height)
        for column in range(width)
    ]
    return torch.stack(taps, 3).transpose(1, 2)
