"""What a quantized graph means: exact integer arithmetic, rounding included.

This is the specification that every artifact is compared with. It equals ONNX Runtime and LiteRT/XNNPACK bit
for bit on every CPU (except where x86 without VNNI makes ONNX Runtime saturate; see docs/architecture.md).

The rules, with q the int8 value of a tensor, s its scale and z its zero point:

  convolution, classifier   acc = sum((q_x - z_x) * w) + bias        exact, int32; zero padding adds nothing
                            q_y = clip(round(float32(acc) * (s_x * s_w / s_y)) + z_y)
  global average pooling    acc = sum(q_x - z_x)
                            q_y = clip(round(float32(acc) * (s_x / (s_y * count))) + z_y)
  residual sum (one scale)  q_y = clip((q_a - z_a) + (q_b - z_b) + z_y)
  residual sum (scales of a model that came quantized)
                            q_y = clip(round((q_a - z_a) * (s_a / s_y) + (q_b - z_b) * (s_b / s_y)) + z_y);
                            runtimes round this one differently, by at most a step
  normalization (of a model that came quantized)
                            q_y = clip(round((byte - mean) / std / s_y) + z_y)
  product with a gate       acc = (q_a - z_a) * (q_b - z_b)
                            q_y = clip(round(float32(acc) * (s_a * s_b / s_y)) + z_y)
  sigmoid                   q_y = clip(round(sigmoid(s_x * (q_x - z_x)) / s_y) + z_y)       a table of 256
  maximum, padding, slicing, concatenating, reshaping     move integers; padding writes z, in a maximum -128

round is to nearest, ties to even; the multiplier is computed in float32 in the order written; clip is to
[-128, 127], and to [z_y, 127] where a ReLU is fused (RELU6 and UNIT also clip above; see clipping.py).

Everything moves through torch as integers held in float32 (or float64 where a sum could pass 2**24), since
those convolutions are fast and, within that bound, exact.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from edge_resnet.errors import GraphError
from edge_resnet.graph.clipping import integer_bounds
from edge_resnet.graph.execution import NodeFunction, run_exactly
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.nodes import (
    Add,
    Concat,
    Conv,
    Flatten,
    GlobalAvgPool,
    IntWeights,
    Linear,
    MaxPool,
    Mul,
    Node,
    Normalize,
    Pad,
    PadChannels,
    Padding,
    PadMode,
    QuantParams,
    Relu,
    Reshape,
    Sigmoid,
    SliceChannels,
    Subsample,
)
from edge_resnet.graph.streams import moves_integers

__all__ = ["ReferenceExecutor", "centred_bounds", "dequantize", "integer_function", "sigmoid_table"]

# Integers up to here are exact in float32, whatever the order in which they are summed.
_EXACT_FLOAT32 = 2**24
# A centred activation q - z lies in [-255, 255].
_MAX_CENTRED = 255


class ReferenceExecutor:
    """Runs a quantized graph in integers.

    Raises GraphError for a node that has no integer meaning (a float graph, an average pool that was not
    lowered).
    """

    def __init__(self, graph: Graph) -> None:
        if not graph.is_quantized:
            raise GraphError(f"graph {graph.name!r} is not quantized")
        self.graph = graph
        self._functions = [(node, integer_function(node, graph)) for node in graph.nodes[1:]]

    @torch.no_grad()
    def run(self, pixels: NDArray[np.uint8]) -> NDArray[np.int8]:
        """uint8 [N, H, W, C] -> the output's int8 values [N, ...], channels first."""
        centred = run_exactly(self.graph, self._functions, pixels)
        q = (centred + _quant(self.graph.output).zero_point).to(torch.int8)
        result: NDArray[np.int8] = q.contiguous().numpy()
        return result


def dequantize(q: NDArray[np.int8], quant: QuantParams) -> NDArray[np.float32]:
    """int8 -> float32, as every runtime's dequantize does it."""
    return (q.astype(np.float32) - np.float32(quant.zero_point)) * np.float32(quant.scale)


# Values between nodes are centred, c = q - z, so that zero padding is zero. A node's function maps centred
# inputs to its centred output; clipping bounds move along with z.


def _quant(node: Node) -> QuantParams:
    assert node.quant is not None
    return node.quant


def centred_bounds(node: Node) -> tuple[int, int]:
    """Where the node's centred output is cut off."""
    low, high = integer_bounds(node)
    zero = _quant(node).zero_point
    return low - zero, high - zero


def _requantize(acc: Tensor, multiplier: Tensor, bounds: tuple[int, int]) -> Tensor:
    """round(float32(acc) * multiplier), clipped. `acc` is an exact integer in int32's range."""
    return acc.float().mul_(multiplier).round_().clamp_(*bounds)


def _weighted(node: Conv | Linear, graph: Graph) -> tuple[Tensor, Tensor, Tensor]:
    """Weight and bias as exact floats, and the float32 multiplier of each output channel."""
    weights = node.weights
    assert isinstance(weights, IntWeights)
    s_x = np.float32(_quant(graph.by_name[node.inputs[0]]).scale)
    multiplier = (s_x * weights.scale) / np.float32(_quant(node).scale)
    largest_sum = (
        np.abs(weights.weight.astype(np.int64)).reshape(len(weights.weight), -1).sum(1) * _MAX_CENTRED
        + np.abs(weights.bias.astype(np.int64))
    ).max()
    dtype = torch.float32 if largest_sum < _EXACT_FLOAT32 else torch.float64
    if largest_sum >= 2**31:
        raise GraphError(f"node {node.name!r}: its sums do not fit int32")
    return (
        torch.from_numpy(weights.weight).to(dtype),
        torch.from_numpy(weights.bias).to(dtype),
        torch.from_numpy(multiplier.astype(np.float32)),
    )


def _conv(node: Conv, graph: Graph) -> NodeFunction:
    weight, bias, multiplier = _weighted(node, graph)
    weight = weight.contiguous(memory_format=torch.channels_last)
    multiplier = multiplier[:, None, None]
    bounds = centred_bounds(node)

    def run(x: Tensor) -> Tensor:
        x = _pad(x, node.padding).to(weight.dtype)
        acc = F.conv2d(x, weight, bias, node.stride, dilation=node.dilation, groups=node.groups)
        return _requantize(acc, multiplier, bounds)

    return run


def _linear(node: Linear, graph: Graph) -> NodeFunction:
    weight, bias, multiplier = _weighted(node, graph)
    bounds = centred_bounds(node)
    return lambda x: _requantize(F.linear(x.to(weight.dtype), weight, bias), multiplier, bounds)


def _global_avg_pool(node: GlobalAvgPool, graph: Graph) -> NodeFunction:
    source = node.inputs[0]
    count = int(np.prod(graph.shapes[source][1:]))
    s_x, s_y = np.float32(_quant(graph.by_name[source]).scale), np.float32(_quant(node).scale)
    multiplier = torch.tensor(s_x / (s_y * np.float32(count)))
    bounds = centred_bounds(node)
    return lambda x: _requantize(x.sum((2, 3), keepdim=True, dtype=torch.float64), multiplier, bounds)


def _add(node: Add, graph: Graph) -> NodeFunction:
    bounds = centred_bounds(node)
    s_a, s_b, s_y = (np.float32(_quant(graph.by_name[n]).scale) for n in (*node.inputs, node.name))
    if s_a == s_b == s_y:
        return lambda a, b: (a + b).clamp_(*bounds)
    of_a, of_b = torch.tensor(s_a / s_y), torch.tensor(s_b / s_y)
    return lambda a, b: (a * of_a + b * of_b).round_().clamp_(*bounds)


def _normalize(node: Normalize, graph: Graph) -> NodeFunction:
    mean, std = (torch.from_numpy(values)[:, None, None] for values in (node.mean, node.std))
    scale, bounds = torch.tensor(np.float32(_quant(node).scale)), centred_bounds(node)
    zero = 128 + _quant(graph.input).zero_point
    return lambda x: ((x + zero - mean) / std / scale).round_().clamp_(*bounds)


def _mul(node: Mul, graph: Graph) -> NodeFunction:
    s_a, s_b = (np.float32(_quant(graph.by_name[name]).scale) for name in node.inputs)
    multiplier = torch.tensor(s_a * s_b / np.float32(_quant(node).scale))
    bounds = centred_bounds(node)
    return lambda a, b: _requantize(a * b, multiplier, bounds)


def sigmoid_table(source: QuantParams, output: QuantParams) -> NDArray[np.int8]:
    """The sigmoid's int8 value for each of the 256 inputs -128..127."""
    x = (np.arange(-128, 128) - source.zero_point) * source.scale
    q = np.rint(1 / (1 + np.exp(-x)) / output.scale) + output.zero_point
    table: NDArray[np.int8] = np.clip(q, -128, 127).astype(np.int8)
    return table


def _sigmoid(node: Sigmoid, graph: Graph) -> NodeFunction:
    source, output = _quant(graph.by_name[node.inputs[0]]), _quant(node)
    table = torch.from_numpy(sigmoid_table(source, output).astype(np.float32) - output.zero_point)
    return lambda x: table[x.long() + (128 + source.zero_point)]


def _concat(node: Concat, graph: Graph) -> NodeFunction:
    return lambda *parts: torch.cat(parts, 1)


def _border(node: Pad, graph: Graph) -> NodeFunction:
    if node.mode is PadMode.REFLECT:
        return lambda x: F.pad(x, node.padding.sides, mode="reflect")
    return lambda x: _pad(x, node.padding)


def _relu(node: Relu, graph: Graph) -> NodeFunction:
    bounds = centred_bounds(node)
    return lambda x: x.clamp(*bounds)


def _max_pool(node: MaxPool, graph: Graph) -> NodeFunction:
    lowest = -128 - _quant(node).zero_point
    return lambda x: F.max_pool2d(_pad(x, node.padding, lowest), node.kernel, node.stride)


def _pad(value: Tensor, padding: Padding, fill: float = 0.0) -> Tensor:
    return F.pad(value, padding.sides, value=fill) if padding else value


_FUNCTIONS: dict[type[Node], Callable[..., NodeFunction]] = {
    Conv: _conv,
    Linear: _linear,
    GlobalAvgPool: _global_avg_pool,
    Add: _add,
    Normalize: _normalize,
    Mul: _mul,
    Sigmoid: _sigmoid,
    Concat: _concat,
    SliceChannels: lambda node, graph: lambda x: x[:, node.start : node.stop],
    Relu: _relu,
    MaxPool: _max_pool,
    Subsample: lambda node, graph: lambda x: x[:, :, :: node.stride[0], :: node.stride[1]],
    PadChannels: lambda node, graph: lambda x: F.pad(x, (0, 0, 0, 0, node.before, node.after)),
    Pad: _border,
    Flatten: lambda node, graph: lambda x: x.flatten(1),
    Reshape: lambda node, graph: lambda x: x.reshape(len(x), *node.shape),
}


def integer_function(node: Node, graph: Graph) -> NodeFunction:
    """What the node does to centred integers, held in floats: centred inputs to centred output."""
    if type(node) not in _FUNCTIONS:
        raise GraphError(f"node {node.name!r} ({type(node).__name__}) has no meaning in integers")
    if moves_integers(node) and any(graph.by_name[name].quant != node.quant for name in node.inputs):
        raise GraphError(f"node {node.name!r} moves integers but its parameters are not its input's")
    return _FUNCTIONS[type(node)](node, graph)
