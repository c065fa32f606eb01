"""A graph of integers in floats again.

Rules: integer weights become weight * scale and bias * (input scale * scale); parameters of tensors go. An
input whose bytes are its integers gets the Normalize node that says the same. Integers that begin at 0 cut
off what is below, so a sum without an activation gets a ReLU.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from edge_resnet.graph.graph import Graph
from edge_resnet.graph.nodes import (
    Activation,
    Add,
    Conv,
    FloatWeights,
    Input,
    IntWeights,
    Linear,
    Node,
    Normalize,
)

__all__ = ["dequantized", "real_weights"]


def dequantized(graph: Graph) -> Graph:
    """The real function that the integers approximate: same weights, no rounding of activations."""
    nodes: list[Node] = []
    normalized = _normalization(graph)
    for node in graph.nodes:
        inputs = node.inputs
        if normalized is not None:
            inputs = tuple(normalized.name if name == graph.input.name else name for name in inputs)
        if isinstance(node, Conv | Linear) and isinstance(node.weights, IntWeights):
            source = graph.by_name[node.inputs[0]].quant
            assert source is not None
            weights = real_weights(node.weights, source.scale)
            plain: Node = replace(node, inputs=inputs, quant=None, weights=weights)
        else:
            plain = replace(node, inputs=inputs, quant=None)
        nodes.append(_cut(plain, node))
        if isinstance(node, Input) and normalized is not None:
            nodes.append(normalized)
    return graph.with_nodes(nodes)


def _cut(plain: Node, node: Node) -> Node:
    begins_at_zero = node.quant is not None and node.quant.zero_point == -128
    if begins_at_zero and isinstance(plain, Conv | Linear | Add) and plain.activation is Activation.NONE:
        return replace(plain, activation=Activation.RELU)
    return plain


def real_weights(weights: IntWeights, input_scale: float) -> FloatWeights:
    """The real numbers that integer weights stand for, behind an input of this scale."""
    scale = weights.scale.astype(np.float64)
    weight = weights.weight * scale.reshape(-1, *[1] * (weights.weight.ndim - 1))
    bias = weights.bias * (input_scale * scale)
    return FloatWeights(weight.astype(np.float32), bias.astype(np.float32))


def _normalization(graph: Graph) -> Normalize | None:
    """(byte - grey) * scale as a node, where nothing in the graph says it."""
    quant, channels = graph.input.quant, graph.input.shape[0]
    if quant is None or any(isinstance(node, Normalize) for node in graph.nodes):
        return None
    name = "normalize"
    while name in graph.by_name:
        name += "_"
    mean = np.full(channels, quant.zero_point + 128, np.float32)
    std = np.full(channels, 1 / quant.scale, np.float32)
    return Normalize(name=name, inputs=(graph.input.name,), mean=mean, std=std)
