"""What a graph means in floats: one torch operation a node.

Used for calibration and as the float side of every comparison.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from edge_resnet.errors import GraphError
from edge_resnet.graph.execution import NodeFunction, centred_image, run_nodes
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.nodes import (
    Activation,
    Add,
    AvgPool,
    BatchNorm,
    Concat,
    Conv,
    Flatten,
    FloatWeights,
    GlobalAvgPool,
    HardSigmoid,
    Input,
    Linear,
    MaxPool,
    Mul,
    Node,
    Normalize,
    Pad,
    PadChannels,
    Padding,
    PadMode,
    Relu,
    Reshape,
    Sigmoid,
    SliceChannels,
    Subsample,
)

__all__ = ["FloatExecutor", "activate", "float_function", "image_bytes", "input_values"]


class FloatExecutor:
    """Runs a float graph on batches of images; the weights become tensors once.

    `device`-free on purpose: calibration and comparison run on the CPU, as the phone will.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._functions = [(node, float_function(node)) for node in graph.nodes[1:]]

    @torch.no_grad()
    def run(
        self, pixels: NDArray[np.uint8], observe: Callable[[str, Tensor], None] | None = None
    ) -> NDArray[np.float32]:
        """uint8 [N, H, W, C] -> float32 output [N, ...]; `observe` sees every node's output, NCHW."""
        image = input_values(self.graph.input, pixels)
        result: NDArray[np.float32] = run_nodes(self.graph, self._functions, image, observe).numpy()
        return result


def input_values(node: Input, pixels: NDArray[np.uint8]) -> Tensor:
    """Bytes [N, H, W, C] -> the input's real values [N, C, H, W], float32, channels_last."""
    centred = centred_image(node, pixels)
    return centred if node.quant is None else centred * node.quant.scale


def image_bytes(node: Input, values: Tensor) -> Tensor:
    """The bytes that input_values made `values` of, held in floats: [N, C, H, W]."""
    return values if node.quant is None else values / node.quant.scale + (128 + node.quant.zero_point)


def activate(value: Tensor, activation: Activation) -> Tensor:
    """What the activation makes of real values."""
    if activation is Activation.NONE:
        return value
    return value.relu() if activation.limit is None else value.clamp(0, activation.limit)


def _pad(value: Tensor, padding: Padding, fill: float = 0.0) -> Tensor:
    return F.pad(value, padding.sides, value=fill) if padding else value


def _weights(node: Conv | Linear) -> tuple[Tensor, Tensor]:
    if not isinstance(node.weights, FloatWeights):
        raise GraphError(f"node {node.name!r} holds integers; run it with the reference executor")
    return torch.from_numpy(node.weights.weight), torch.from_numpy(node.weights.bias)


def _per_channel(values: NDArray[np.float32]) -> Tensor:
    return torch.from_numpy(values)[:, None, None]


def _conv(node: Conv) -> NodeFunction:
    weight, bias = _weights(node)

    def run(x: Tensor) -> Tensor:
        x = F.conv2d(
            _pad(x, node.padding), weight, bias, node.stride, dilation=node.dilation, groups=node.groups
        )
        return activate(x, node.activation)

    return run


def _linear(node: Linear) -> NodeFunction:
    weight, bias = _weights(node)
    return lambda x: activate(F.linear(x, weight, bias), node.activation)


def _batch_norm(node: BatchNorm) -> NodeFunction:
    scale, shift = torch.from_numpy(node.scale), torch.from_numpy(node.shift)

    def run(x: Tensor) -> Tensor:
        shape = (-1,) + (1,) * (x.dim() - 2)  # an image's channels, or a vector's elements
        return x * scale.view(shape) + shift.view(shape)

    return run


def _normalize(node: Normalize) -> NodeFunction:
    mean, std = _per_channel(node.mean), _per_channel(node.std)
    return lambda x: (x - mean) / std


def _max_pool(node: MaxPool) -> NodeFunction:
    return lambda x: F.max_pool2d(_pad(x, node.padding, -torch.inf), node.kernel, node.stride)


def _border(node: Pad) -> NodeFunction:
    if node.mode is PadMode.REFLECT:
        return lambda x: F.pad(x, node.padding.sides, mode="reflect")
    return lambda x: _pad(x, node.padding)


_FUNCTIONS: dict[type[Node], Callable[..., NodeFunction]] = {
    Normalize: _normalize,
    Conv: _conv,
    BatchNorm: _batch_norm,
    Relu: lambda node: lambda x: activate(x, node.activation),
    Sigmoid: lambda node: lambda x: x.sigmoid(),
    HardSigmoid: lambda node: F.hardsigmoid,
    Mul: lambda node: lambda x, gate: x * gate,
    Concat: lambda node: lambda *parts: torch.cat(parts, 1),
    SliceChannels: lambda node: lambda x: x[:, node.start : node.stop],
    Add: lambda node: lambda a, b: activate(a + b, node.activation),
    MaxPool: _max_pool,
    AvgPool: lambda node: lambda x: F.avg_pool2d(x, node.kernel, node.stride),
    GlobalAvgPool: lambda node: lambda x: x.mean((2, 3), keepdim=True),
    Subsample: lambda node: lambda x: x[:, :, :: node.stride[0], :: node.stride[1]],
    PadChannels: lambda node: lambda x: F.pad(x, (0, 0, 0, 0, node.before, node.after)),
    Pad: _border,
    Flatten: lambda node: lambda x: x.flatten(1),
    Reshape: lambda node: lambda x: x.reshape(len(x), *node.shape),
    Linear: _linear,
}


def float_function(node: Node) -> NodeFunction:
    """What the node does to real values: inputs [N, C, H, W] or [N, C] to its output."""
    return _FUNCTIONS[type(node)](node)
