"""Turn a float graph and the ranges of its tensors into a graph of integers.

The scheme (one for all runtimes): weights int8, symmetric, per output channel, in [-127, 127]; activations
8 bit, asymmetric, per tensor; bias int32 at (input scale * weight scale); one scale for each residual stream.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from edge_resnet.compression.average_scale import tie_free_scale
from edge_resnet.compression.calibrate import Ranges
from edge_resnet.errors import GraphError
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.nodes import Conv, FloatWeights, GlobalAvgPool, IntWeights, Linear, Node, QuantParams
from edge_resnet.graph.passes.fuse_activations import is_non_negative
from edge_resnet.graph.streams import moves_integers, scale_groups

__all__ = ["quantize", "quantize_weights", "snap_scale"]

# The smallest scale: float16's least normal number, which Core ML's fp16 programs can still store. It also
# keeps the bias of a dead channel (all weights about 0) within int32.
MIN_SCALE = 2.0**-14
# A bias of up to 2**30 leaves the other half of int32 to the products.
_MAX_BIAS = 2**30


def quantize(graph: Graph, ranges: Ranges) -> Graph:
    """The graph in integers. `graph.input` must have its parameters (fold_normalization_into_input).

    All scales are exact in float16 (rounded up, so that no value is clipped for it): Core ML stores them
    so, and the product of two of them is exact in float32.
    """
    if graph.input.quant is None:
        raise GraphError(f"graph {graph.name!r}: the input has no quantization parameters")
    scales = _tensor_scales(graph, ranges)
    done: dict[str, Node] = {}
    for node in graph.nodes:
        if moves_integers(node):
            quant = done[node.inputs[0]].quant
        elif node is graph.input:
            quant = node.quant
        else:
            scale = scales[node.name]
            zero = (
                -128 if is_non_negative(node, graph.by_name) else round(-128 - ranges[node.name][0] / scale)
            )
            quant = QuantParams(scale, int(np.clip(zero, -128, 127)))
        done[node.name] = replace(node, quant=quant)
        if isinstance(node, Conv | Linear):
            source = done[node.inputs[0]].quant
            assert source is not None
            assert isinstance(node.weights, FloatWeights)
            weights = quantize_weights(node.weights, source.scale)
            done[node.name] = replace(node, quant=quant, weights=weights)
    return graph.with_nodes(done.values())


def quantize_weights(weights: FloatWeights, input_scale: float) -> IntWeights:
    """Symmetric per-channel int8 weights and the int32 bias for an input of this scale.

    A channel whose bias would not fit gets a larger scale: its weights are tiny beside its bias.
    """
    channels = weights.weight.reshape(len(weights.weight), -1).astype(np.float64)
    scale = np.abs(channels).max(1) / 127
    for_bias = np.abs(weights.bias.astype(np.float64)) / (input_scale * _MAX_BIAS)
    scale = snap_scale(np.maximum(scale, for_bias))
    exact = scale.astype(np.float64)
    q = np.clip(np.rint(channels / exact[:, None]), -127, 127).astype(np.int8)
    bias = np.rint(weights.bias / (np.float64(input_scale) * exact)).astype(np.int32)
    return IntWeights(q.reshape(weights.weight.shape), scale, bias)


def snap_scale(scale: NDArray[np.float64] | float) -> NDArray[np.float32]:
    """The next float16 number at or above each scale, at least MIN_SCALE, as float32."""
    scale = np.maximum(np.asarray(scale, np.float64), MIN_SCALE)
    if scale.max() > np.finfo(np.float16).max:
        raise GraphError("a tensor's range is too large for a float16 scale (over 65504)")
    half = scale.astype(np.float16)
    half = np.where(half.astype(np.float64) < scale, np.nextafter(half, np.float16(np.inf)), half)
    return np.asarray(half, np.float32)


def _tensor_scales(graph: Graph, ranges: Ranges) -> dict[str, float]:
    """One scale for each group: the largest that any of its tensors needs to cover its range."""
    scales: dict[str, float] = {}
    for group in scale_groups(graph):
        if graph.input.name in group:
            assert graph.input.quant is not None
            scale = graph.input.quant.scale
        else:
            scale = float(snap_scale(max((ranges[n][1] - ranges[n][0]) / 255 for n in group)))
            first = graph.by_name[group[0]]
            if isinstance(first, GlobalAvgPool) and all(moves_integers(graph.by_name[n]) for n in group[1:]):
                source = first.inputs[0]
                count = int(np.prod(graph.shapes[source][1:]))
                scale = tie_free_scale(scale, scales[source], count)
        scales.update(dict.fromkeys(group, scale))
    return scales
