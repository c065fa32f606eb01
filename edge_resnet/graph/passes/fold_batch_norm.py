"""Fold batch normalization into the convolution or the fully connected layer before it.

Rule: Conv -> BatchNorm (or Linear -> BatchNorm), where nothing else reads the sum, becomes one node with
weight * scale and bias * scale + shift. A BatchNorm that follows anything else becomes a 1x1 depthwise Conv.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from edge_resnet.graph.graph import Graph
from edge_resnet.graph.nodes import Activation, BatchNorm, Conv, FloatWeights, Linear, Node

__all__ = ["fold_batch_norm"]


def fold_batch_norm(graph: Graph) -> Graph:
    """The same function without BatchNorm nodes; a folded node keeps its own name."""
    nodes: dict[str, Node] = {}
    renamed: dict[str, str] = {}
    for original in graph.nodes:
        node = replace(original, inputs=tuple(renamed.get(name, name) for name in original.inputs))
        if not isinstance(node, BatchNorm):
            nodes[node.name] = node
            continue
        source = nodes[node.inputs[0]]
        if (
            isinstance(source, Conv | Linear)
            and isinstance(source.weights, FloatWeights)
            and source.activation is Activation.NONE
            and len(graph.consumers[original.inputs[0]]) == 1
        ):
            nodes[source.name] = replace(source, weights=_scaled(source.weights, node))
            renamed[node.name] = source.name
        else:
            nodes[node.name] = _depthwise(node)
    return graph.with_nodes(nodes.values())


def _scaled(weights: FloatWeights, norm: BatchNorm) -> FloatWeights:
    # In float64: one rounding instead of two, so that folding costs at most half an ulp.
    scale = norm.scale.astype(np.float64)
    weight = weights.weight * scale.reshape(-1, *[1] * (weights.weight.ndim - 1))
    bias = weights.bias * scale + norm.shift
    return FloatWeights(weight.astype(np.float32), bias.astype(np.float32))


def _depthwise(norm: BatchNorm) -> Conv:
    channels = len(norm.scale)
    weights = FloatWeights(norm.scale.reshape(channels, 1, 1, 1), norm.shift)
    return Conv(name=norm.name, inputs=norm.inputs, weights=weights, groups=channels)
