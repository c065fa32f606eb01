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
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.nodes import (
    Activation,
    Add,
    AvgPool,
    BatchNorm,
    Conv,
    Flatten,
    FloatWeights,
    GlobalAvgPool,
    Input,
    Linear,
    MaxPool,
    Node,
    Normalize,
    Pad,
    PadChannels,
    Padding,
    Relu,
    Subsample,
)

__all__ = ["FloatExecutor"]

NodeFunction = Callable[..., Tensor]


class FloatExecutor:
    """Runs a float graph on batches of images; the weights become tensors once.

    `device`-free on purpose: calibration and comparison run on the CPU, as the phone will.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._functions = [(node, _float_function(node)) for node in graph.nodes[1:]]

    @torch.no_grad()
    def run(
        self, pixels: NDArray[np.uint8], observe: Callable[[str, Tensor], None] | None = None
    ) -> NDArray[np.float32]:
        """uint8 [N, H, W, C] -> float32 output [N, ...]; `observe` sees every node's output, NCHW."""
        source = self.graph.input
        values: dict[str, Tensor] = {source.name: _input_values(source, pixels)}
        readers = {name: len(nodes) for name, nodes in self.graph.consumers.items()}
        if observe:
            observe(source.name, values[source.name])
        for node, function in self._functions:
            values[node.name] = function(*(values[name] for name in node.inputs))
            if observe:
                observe(node.name, values[node.name])
            for name in node.inputs:  # free what nobody reads any more: ResNet-50 at 224 is large
                readers[name] -= 1
                if not readers[name]:
                    values.pop(name, None)
        result: NDArray[np.float32] = values[self.graph.output.name].numpy()
        return result


def _input_values(node: Input, pixels: NDArray[np.uint8]) -> Tensor:
    """[N, H, W, C] bytes -> the input's real values [N, C, H, W]."""
    values = torch.from_numpy(pixels).permute(0, 3, 1, 2).float()
    if node.quant is not None:
        values = (values - (128 + node.quant.zero_point)) * node.quant.scale
    return values.contiguous(memory_format=torch.channels_last)


def _activate(value: Tensor, activation: Activation) -> Tensor:
    return value.relu() if activation is Activation.RELU else value


def _pad(value: Tensor, padding: Padding, fill: float = 0.0) -> Tensor:
    if not padding:
        return value
    return F.pad(value, (padding.left, padding.right, padding.top, padding.bottom), value=fill)


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
        return _activate(x, node.activation)

    return run


def _linear(node: Linear) -> NodeFunction:
    weight, bias = _weights(node)
    return lambda x: F.linear(x, weight, bias)


def _batch_norm(node: BatchNorm) -> NodeFunction:
    scale, shift = _per_channel(node.scale), _per_channel(node.shift)
    return lambda x: x * scale + shift


def _normalize(node: Normalize) -> NodeFunction:
    mean, std = _per_channel(node.mean), _per_channel(node.std)
    return lambda x: (x - mean) / std


def _max_pool(node: MaxPool) -> NodeFunction:
    return lambda x: F.max_pool2d(_pad(x, node.padding, -torch.inf), node.kernel, node.stride)


_FUNCTIONS: dict[type[Node], Callable[..., NodeFunction]] = {
    Normalize: _normalize,
    Conv: _conv,
    BatchNorm: _batch_norm,
    Relu: lambda node: lambda x: x.relu(),
    Add: lambda node: lambda a, b: _activate(a + b, node.activation),
    MaxPool: _max_pool,
    AvgPool: lambda node: lambda x: F.avg_pool2d(x, node.kernel, node.stride),
    GlobalAvgPool: lambda node: lambda x: x.mean((2, 3), keepdim=True),
    Subsample: lambda node: lambda x: x[:, :, :: node.stride[0], :: node.stride[1]],
    PadChannels: lambda node: lambda x: F.pad(x, (0, 0, 0, 0, node.before, node.after)),
    Pad: lambda node: lambda x: _pad(x, node.padding),
    Flatten: lambda node: lambda x: x.flatten(1),
    Linear: _linear,
}


def _float_function(node: Node) -> NodeFunction:
    return _FUNCTIONS[type(node)](node)
