"""A float graph as a torch module that trains, and what was trained back into the graph.

Every node is a submodule of plain torch layers under the node's own name, so that tools which look into
modules (torch.fx, NNCF) find the layers they know, and a parameter says which node it belongs to. Zero
padding that torch's layers cannot do themselves, unequal on two sides, is a layer of its own in front.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edge_resnet.errors import GraphError
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
    Shape,
    Sigmoid,
    SliceChannels,
    Subsample,
)

__all__ = ["GraphModule", "module_key", "with_trained_weights"]


class GraphModule(nn.Module):
    """Computes what the float graph computes: image [N, C, H, W] -> [N, classes].

    The image is real values, as float_executor.input_values makes them. Every node but the input is a child
    of this module under `module_key(name)`, in the graph's order: no container lies between, since some tools
    name what they find by attributes alone. It is in training mode at first, as torch's modules are, and all
    weights are trainable. Raises GraphError for a graph that holds integers.
    """

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        for node in graph.nodes[1:]:
            self.add_module(module_key(node.name), _module(node))
        self._order = [(node.name, node.inputs, module_key(node.name)) for node in graph.nodes[1:]]
        self._first, self._last = graph.input.name, graph.output.name
        self._finished = _last_readers(graph)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, image: Tensor) -> Tensor:
        return self.run(image, ())[0]

    def run(self, image: Tensor, wanted: tuple[str, ...]) -> tuple[Tensor, dict[str, Tensor]]:
        """The output, and those of the nodes that are wanted."""
        values, found = {self._first: image}, {}
        for name, inputs, key in self._order:
            values[name] = getattr(self, key)(*[values[source] for source in inputs])
            if name in wanted:
                found[name] = values[name]
            for source in self._finished[name]:  # in evaluation nobody else keeps them
                del values[source]
        return values[self._last], found


def with_trained_weights(graph: Graph, module: nn.Module) -> Graph:
    """The graph with the weights, biases, scales and shifts of `module`: its GraphModule, trained.

    A module that a tool made of it (NNCF, torch.fx) will do, if the layers kept their names.
    """
    nodes: list[Node] = []
    for node in graph.nodes:
        if isinstance(node, Conv | Linear):
            layer = module.get_submodule(f"{module_key(node.name)}.layer")
            weights = FloatWeights(_array(layer.weight), _array(layer.bias))
            nodes.append(replace(node, weights=weights))
        elif isinstance(node, BatchNorm):
            affine = module.get_submodule(module_key(node.name))
            nodes.append(replace(node, scale=_array(affine.scale), shift=_array(affine.shift)))
        else:
            nodes.append(node)
    return graph.with_nodes(nodes)


def module_key(name: str) -> str:
    """A node's name as torch takes it for a submodule: without dots, and different for different names."""
    return "node_" + name.replace("_", "__").replace(".", "_d").replace("/", "_s").replace(":", "_c")


def _array(values: object) -> NDArray[np.float32]:
    assert isinstance(values, Tensor)
    return values.detach().cpu().float().contiguous().numpy().copy()


def _last_readers(graph: Graph) -> dict[str, list[str]]:
    """For each node, the tensors that nobody reads after it."""
    last: dict[str, str] = {}
    for node in graph.nodes:
        last.update(dict.fromkeys(node.inputs, node.name))
    finished: dict[str, list[str]] = {node.name: [] for node in graph.nodes}
    for source, reader in last.items():
        finished[reader].append(source)
    return finished


class _Layer(nn.Module):
    """Zero padding where the layer cannot do it itself, the layer, and its activation."""

    def __init__(self, pad: nn.Module, layer: nn.Module, activation: Activation) -> None:
        super().__init__()
        self.pad, self.layer, self.activation = pad, layer, _activation(activation)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.activation(self.layer(self.pad(x)))
        return result


class _Affine(nn.Module):
    """scale * x + shift for each channel: batch normalization with its statistics folded."""

    def __init__(self, node: BatchNorm) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(_tensor(node.scale)), nn.Parameter(_tensor(node.shift))

    def forward(self, x: Tensor) -> Tensor:
        shape = (-1,) + (1,) * (x.dim() - 2)
        return x * self.scale.view(shape) + self.shift.view(shape)


class _Normalize(nn.Module):
    mean: Tensor
    std: Tensor

    def __init__(self, node: Normalize) -> None:
        super().__init__()
        self.register_buffer("mean", _tensor(node.mean)[:, None, None])
        self.register_buffer("std", _tensor(node.std)[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


class _Sum(nn.Module):
    def __init__(self, activation: Activation) -> None:
        super().__init__()
        self.activation = _activation(activation)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        result: Tensor = self.activation(a + b)
        return result


class _Product(nn.Module):
    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        return x * gate


class _Concat(nn.Module):
    def forward(self, *parts: Tensor) -> Tensor:
        return torch.cat(parts, 1)


class _Slice(nn.Module):
    def __init__(self, node: SliceChannels) -> None:
        super().__init__()
        self.start, self.stop = node.start, node.stop

    def forward(self, x: Tensor) -> Tensor:
        return x[:, self.start : self.stop]


class _Subsample(nn.Module):
    def __init__(self, stride: tuple[int, int]) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, :: self.stride[0], :: self.stride[1]]


class _Reshape(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], *self.shape)


def _tensor(values: NDArray[np.float32]) -> Tensor:
    return torch.from_numpy(values.copy())


def _activation(activation: Activation) -> nn.Module:
    if activation is Activation.NONE:
        return nn.Identity()
    if activation.limit is None:
        return nn.ReLU()
    return nn.ReLU6() if activation is Activation.RELU6 else nn.Hardtanh(0.0, activation.limit)


def _own_padding(padding: Padding, mode: Callable[..., nn.Module]) -> tuple[nn.Module, tuple[int, int]]:
    """(layer in front, what the layer pads itself)."""
    if (padding.top, padding.left) == (padding.bottom, padding.right):
        return nn.Identity(), (padding.top, padding.left)
    return mode(padding.sides), (0, 0)


def _with_weights(layer: nn.Conv2d | nn.Linear, node: Conv | Linear) -> None:
    if not isinstance(node.weights, FloatWeights):
        raise GraphError(f"node {node.name!r} holds integers; only a float graph becomes a float module")
    layer.weight = nn.Parameter(_tensor(node.weights.weight))
    layer.bias = nn.Parameter(_tensor(node.weights.bias))


def _conv(node: Conv) -> nn.Module:
    out, per_group, *kernel = node.weights.weight.shape
    pad, inside = _own_padding(node.padding, nn.ZeroPad2d)
    layer = nn.Conv2d(
        per_group * node.groups,
        out,
        (kernel[0], kernel[1]),
        node.stride,
        inside,
        node.dilation,
        node.groups,
        device="meta",
    )
    _with_weights(layer, node)
    return _Layer(pad, layer, node.activation)


def _linear(node: Linear) -> nn.Module:
    out, features = node.weights.weight.shape
    layer = nn.Linear(features, out, device="meta")
    _with_weights(layer, node)
    return _Layer(nn.Identity(), layer, node.activation)


def _max_pool(node: MaxPool) -> nn.Module:
    # torch pads at most half a window itself.
    pad, inside = _own_padding(node.padding, lambda amounts: nn.ConstantPad2d(amounts, -torch.inf))
    if any(2 * amount > window for amount, window in zip(inside, node.kernel, strict=True)):
        pad, inside = nn.ConstantPad2d(node.padding.sides, -torch.inf), (0, 0)
    return _Layer(pad, nn.MaxPool2d(node.kernel, node.stride, inside), Activation.NONE)


def _border(node: Pad) -> nn.Module:
    kind = nn.ReflectionPad2d if node.mode is PadMode.REFLECT else nn.ZeroPad2d
    return kind(node.padding.sides)


_MODULES: dict[type[Node], Callable[..., nn.Module]] = {
    Normalize: _Normalize,
    Conv: _conv,
    BatchNorm: _Affine,
    Relu: lambda node: _activation(node.activation),
    Sigmoid: lambda node: nn.Sigmoid(),
    HardSigmoid: lambda node: nn.Hardsigmoid(),
    Add: lambda node: _Sum(node.activation),
    Mul: lambda node: _Product(),
    Concat: lambda node: _Concat(),
    SliceChannels: _Slice,
    MaxPool: _max_pool,
    AvgPool: lambda node: nn.AvgPool2d(node.kernel, node.stride),
    GlobalAvgPool: lambda node: nn.AdaptiveAvgPool2d(1),
    Subsample: lambda node: _Subsample(node.stride),
    PadChannels: lambda node: nn.ConstantPad3d((0, 0, 0, 0, node.before, node.after), 0.0),
    Pad: _border,
    Flatten: lambda node: nn.Flatten(1),
    Reshape: lambda node: _Reshape(node.shape),
    Linear: _linear,
}


def _module(node: Node) -> nn.Module:
    return _MODULES[type(node)](node)
