"""Turn a float graph and the ranges of its tensors into a graph of integers.

The scheme (one for all runtimes): weights int8, symmetric, per output channel, in [-127, 127]; activations
8 bit, asymmetric, per tensor; bias int32 at (input scale * weight scale); one scale for each residual stream.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from edge_resnet.compression.calibrate import Ranges
from edge_resnet.compression.scales import snap_scale, tensor_scales
from edge_resnet.errors import GraphError
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.nodes import (
    Conv,
    FloatWeights,
    GlobalAvgPool,
    IntWeights,
    Linear,
    Mul,
    Node,
    QuantParams,
)
from edge_resnet.graph.passes.fuse_activations import is_non_negative
from edge_resnet.graph.streams import parameter_groups

__all__ = [
    "MAX_BIAS",
    "PORTABLE_LIMIT",
    "integer_weights",
    "quantize",
    "quantize_weights",
    "tensor_parameters",
    "weight_scales",
]

# Without VNNI, x86 CPUs with AVX2 add two products of a byte and a weight in 16 bits (VPMADDUBSW), which
# saturate; 2 * 255 * 63 fits.
PORTABLE_LIMIT = 63

# A bias of up to 2**30 leaves the other half of int32 to the products.
MAX_BIAS = 2**30


def quantize(graph: Graph, ranges: Ranges, weight_limit: int = 127) -> Graph:
    """The graph in integers. `graph.input` must have its parameters (fold_normalization_into_input).

    `weight_limit`: the largest magnitude of a weight; PORTABLE_LIMIT for all x86 CPUs.

    All scales are exact in float16 (rounded up, so that no value is clipped for it): Core ML stores them
    so, and the product of two of them is exact in float32.
    """
    if graph.input.quant is None:
        raise GraphError(f"graph {graph.name!r}: the input has no quantization parameters")
    parameters = tensor_parameters(graph, ranges)
    done: list[Node] = []
    for node in graph.nodes:
        quant = parameters[node.name]
        if isinstance(node, Conv | Linear):
            assert isinstance(node.weights, FloatWeights)
            weights = quantize_weights(node.weights, parameters[node.inputs[0]].scale, weight_limit)
            done.append(replace(node, quant=quant, weights=weights))
        else:
            done.append(replace(node, quant=quant))
    return graph.with_nodes(done)


def tensor_parameters(graph: Graph, ranges: Ranges) -> dict[str, QuantParams]:
    """Scale and zero point of every tensor; what moves integers shares them with its input."""
    scales = tensor_scales(graph, ranges)
    parameters: dict[str, QuantParams] = {}
    for group in parameter_groups(graph):
        if graph.input.name in group:
            assert graph.input.quant is not None
            quant = graph.input.quant
        else:
            scale = scales[group[0]]
            low = min(ranges[name][0] for name in group)
            positive = all(is_non_negative(graph.by_name[name], graph.by_name) for name in group)
            zero = -128 if positive else round(-128 - low / scale)
            if any(isinstance(graph.by_name[name], Mul | GlobalAvgPool) for name in group):
                # ONNX Runtime adds the zero point of a product before it rounds, LiteRT after (and of an
                # average the other way round): ties, which a power of two as multiplier makes common, go to
                # the same integer if it is even.
                zero = 2 * min(round(zero / 2), 63)
            quant = QuantParams(scale, int(np.clip(zero, -128, 127)))
        parameters.update(dict.fromkeys(group, quant))
    return parameters


def quantize_weights(weights: FloatWeights, input_scale: float, limit: int = 127) -> IntWeights:
    """Symmetric per-channel integers in [-limit, limit] and the int32 bias for an input of this scale."""
    return integer_weights(weights, input_scale, weight_scales(weights, input_scale, limit), limit)


def weight_scales(weights: FloatWeights, input_scale: float, limit: int = 127) -> NDArray[np.float32]:
    """[O]: the scales at which no weight is clipped.

    A channel whose bias would not fit gets a larger scale: its weights are tiny beside its bias.
    """
    largest = np.abs(weights.weight.reshape(len(weights.weight), -1)).max(1).astype(np.float64) / limit
    for_bias = np.abs(weights.bias.astype(np.float64)) / (input_scale * MAX_BIAS)
    return snap_scale(np.maximum(largest, for_bias))


def integer_weights(
    weights: FloatWeights, input_scale: float, scale: NDArray[np.float32], limit: int = 127
) -> IntWeights:
    """The nearest integers at these scales [O]."""
    exact = scale.astype(np.float64)
    shape = (-1, *[1] * (weights.weight.ndim - 1))
    q = np.clip(np.rint(weights.weight / exact.reshape(shape)), -limit, limit).astype(np.int8)
    bias = np.rint(weights.bias / (np.float64(input_scale) * exact)).astype(np.int32)
    return IntWeights(q, scale, bias)
