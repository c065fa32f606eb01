"""Fold the input's normalization, (pixel - mean) / std, into the first convolution.

Two passes, for two needs:

  fold_normalization_std          Normalize(mean, std) -> Conv becomes Normalize(mean, 1) -> Conv with
                                  weight / std. Exact, borders included: zero padding still means "mean".
  fold_normalization_into_input   nothing is left before the Conv, and the raw bytes are the input's
                                  integers. One zero point then serves all three channels, so the padding is
                                  the average grey instead of each channel's mean: the function changes by a
                                  little at the image's border, and only there.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from edge_resnet.errors import GraphError
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.nodes import Conv, FloatWeights, Node, Normalize, QuantParams

__all__ = ["fold_normalization_into_input", "fold_normalization_std"]


def fold_normalization_std(graph: Graph) -> Graph:
    """The same function, with a subtraction left of the Normalize node; unchanged without one."""
    found = _find(graph)
    if found is None:
        return graph
    normalize, conv, weights = found
    centred = replace(normalize, std=np.ones_like(normalize.std))
    weight = weights.weight / _by_input_channel(normalize.std.astype(np.float64))
    scaled = replace(conv, weights=FloatWeights(weight.astype(np.float32), weights.bias))
    return _replaced(graph, {normalize.name: centred, conv.name: scaled})


def fold_normalization_into_input(graph: Graph) -> Graph:
    """Raw bytes are the input's integers: real = scale * (byte - grey), with grey the rounded average mean.

    The scale is the power of two nearest to 1 / average std: it keeps the folded weights, and so their
    scales, at the size they had (1 / (255 std) would push them below float16's normal range), and a power
    of two is exact everywhere.
    """
    found = _find(graph)
    if found is None:
        raise GraphError(f"graph {graph.name!r} has no input normalization that one convolution reads")
    normalize, conv, weights = found
    mean, std = normalize.mean.astype(np.float64), normalize.std.astype(np.float64)
    grey = int(np.clip(np.rint(mean.mean()), 0, 255))
    scale = float(2.0 ** -np.round(np.log2(np.abs(std).mean())))
    source = replace(graph.input, quant=QuantParams(scale, grey - 128))
    weight = weights.weight / _by_input_channel(std * scale)
    shift = weights.weight.sum((2, 3)) @ ((grey - mean) / std)
    folded = FloatWeights(weight.astype(np.float32), (weights.bias + shift).astype(np.float32))
    replacements: dict[str, Node | None] = {
        source.name: source,
        normalize.name: None,
        conv.name: replace(conv, inputs=(source.name,), weights=folded),
    }
    return _replaced(graph, replacements)


def _find(graph: Graph) -> tuple[Normalize, Conv, FloatWeights] | None:
    """The Normalize node at the input and the only node that reads it, a Conv with groups 1."""
    for node in graph.nodes:
        if isinstance(node, Normalize) and node.inputs == (graph.input.name,):
            readers = graph.consumers[node.name]
            if len(readers) == 1 and len(graph.consumers[graph.input.name]) == 1:
                conv = readers[0]
                if isinstance(conv, Conv) and conv.groups == 1 and isinstance(conv.weights, FloatWeights):
                    return node, conv, conv.weights
    return None


def _by_input_channel(values: np.ndarray) -> np.ndarray:
    return values.reshape(1, -1, 1, 1)


def _replaced(graph: Graph, replacements: dict[str, Node | None]) -> Graph:
    nodes = (replacements.get(node.name, node) for node in graph.nodes)
    return graph.with_nodes(node for node in nodes if node is not None)
