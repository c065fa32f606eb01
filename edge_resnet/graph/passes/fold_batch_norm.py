"""Fold batch normalization into the convolution or the fully connected layer before it.

Rule: Conv -> BatchNorm (or Linear -> BatchNorm), where nothing else reads the sum, becomes one node with
weight * scale and bias * scale + shift. A BatchNorm that follows anything else becomes a 1x1 depthwise Conv.
In a graph of integers (a model whose convolutions were quantized before batch normalization was folded) the
integers stay, and the factor goes into their scale.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from edge_resnet.errors import GraphError
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.nodes import (
    Activation,
    BatchNorm,
    Conv,
    FloatWeights,
    IntWeights,
    Linear,
    Node,
    Weights,
)

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
            and source.activation is Activation.NONE
            and source.quant is None
            and len(graph.consumers[original.inputs[0]]) == 1
            and (isinstance(source.weights, FloatWeights) or np.all(node.scale != 0))
        ):
            weights = _folded(source.weights, node, nodes[source.inputs[0]])
            nodes[source.name] = replace(source, weights=weights, quant=node.quant)
            renamed[node.name] = source.name
        else:
            nodes[node.name] = _depthwise(node)
    return graph.with_nodes(nodes.values())


def _folded(weights: Weights, norm: BatchNorm, source: Node) -> Weights:
    if isinstance(weights, FloatWeights):
        return _scaled(weights, norm)
    assert source.quant is not None
    return _scaled_integers(weights, norm, source.quant.scale)


def _scaled_integers(weights: IntWeights, norm: BatchNorm, input_scale: float) -> IntWeights:
    """The integers stay (negated where the factor is negative); the factor goes into their scale."""
    factor = norm.scale.astype(np.float64)
    scale = (weights.scale * np.abs(factor)).astype(np.float32)
    sign = np.sign(factor)
    signs = sign.astype(np.int8).reshape(-1, *[1] * (weights.weight.ndim - 1))
    shift = norm.shift / (np.float32(input_scale) * scale).astype(np.float64)
    bias = np.rint(weights.bias * sign + shift)
    if np.abs(bias).max(initial=0) >= 2**31:
        raise GraphError(f"node {norm.name!r}: a bias that does not fit int32")
    return IntWeights(weights.weight * signs, scale, bias.astype(np.int32))


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
