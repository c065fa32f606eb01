"""The base of GraphBuilder: nodes and their shapes, the ends, and tensors seen as images or vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_resnet.errors import GraphError
from edge_resnet.frontends.integers import IntegerConstant, integer_weights
from edge_resnet.frontends.values import Value
from edge_resnet.graph import nodes as g
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.passes.fuse_activations import is_non_negative
from edge_resnet.graph.streams import moves_integers

__all__ = ["NodeBuilder", "check_finite"]

Array = NDArray[Any]


class NodeBuilder:
    """Collects the nodes of one graph."""

    def __init__(self, name: str, *, channels_last: bool, keep_integers: bool = True) -> None:
        """`keep_integers=False` reads a model that is quantized already as the floats it stands for."""
        self.name = name
        self.keep_integers = keep_integers
        self.nodes: list[g.Node] = []
        self._shapes: dict[str, g.Shape] = {}
        self.quants: dict[str, g.QuantParams] = {}  # of a model that is quantized already
        # Tensor axes of a framework's image, as the node's axes.
        self._layout = (0, 2, 3, 1) if channels_last else (0, 1, 2, 3)

    # The ends.

    def image(self, shape: g.Shape, mean: Sequence[float], std: Sequence[float]) -> Value:
        """The input [C, H, W], normalized by (RGB / 255 - mean) / std."""
        self.add(g.Input, "image", shape=shape)
        mean255, std255 = (np.asarray(values, np.float32) * np.float32(255) for values in (mean, std))
        value = self.add(g.Normalize, "normalize", "image", mean=mean255, std=std255)
        return replace(value, axes=self._layout)

    def raw_image(self, shape: g.Shape) -> Value:
        """The input [C, H, W] as bytes, of which a quantized model says itself what they mean."""
        return replace(self.add(g.Input, "image", shape=shape), axes=self._layout)

    def _real(self, value: Value, quant: g.QuantParams) -> Value:
        """What the bytes of a raw image stand for: (byte - zero point) * scale."""
        if "normalize" not in self._shapes:
            zero, steps = (
                np.full(3, number, np.float32) for number in (quant.zero_point + 128, 1 / quant.scale)
            )
            self.add(g.Normalize, "normalize", value.node, mean=zero, std=steps)
        return replace(value, node="normalize")

    def quantized(self, value: Value, quant: g.QuantParams) -> Value:
        """The value in integers of these parameters; asked again, they must be the same.

        As floats, what is left is that integers which begin at 0 cut off what is below: converters leave out
        the ReLU in front of them.
        """
        if not self.keep_integers:
            if value.node == "image":  # raw bytes: `image` has them behind a Normalize
                return self._real(value, quant)
            nodes = {node.name: node for node in self.nodes}
            # A needless ReLU would stand between a padding and the window that it belongs to.
            if quant.zero_point != -128 or is_non_negative(nodes[value.node], nodes):
                return value
            return replace(value, node=self.add(g.Relu, f"{value.node}/cut", value.node).node)
        if self.quants.setdefault(value.node, quant) != quant:
            raise GraphError("a tensor that is quantized again, with other parameters")
        return value

    def graph(self, output: Value, labels: Sequence[str] = ()) -> Graph:
        """The graph of what the output needs; a softmax at its end is left out."""
        node = self.vector(replace(output, softmax=False)).node
        wanted = {node}
        for entry in reversed(self.nodes):
            if entry.name in wanted:
                wanted.update(entry.inputs)
        nodes = [replace(n, quant=self.quants.get(n.name)) for n in self.nodes if n.name in wanted]
        nodes.sort(key=lambda entry: entry.name == node)  # the output comes last
        return Graph(self.name, tuple(nodes), tuple(labels))

    # Nodes and shapes.

    def add(self, kind: type[g.Node], name: str, *inputs: str, **fields: Any) -> Value:
        """A node under `name`, or that with a number where it is taken."""
        unique, number = name, 1
        while unique in self._shapes:
            number += 1
            unique = f"{name}_{number}"
        node = kind(name=unique, inputs=inputs, **fields)
        shape = node.output_shape(*(self._shapes[source] for source in inputs))
        self._shapes[unique] = shape
        self.nodes.append(node)
        if len(shape) == 1:
            return Value(unique, (0, 1), (1, shape[0], 1, 1))
        return Value(unique, (0, 1, 2, 3), (1, *shape))  # type: ignore[arg-type]

    def on_image(self, value: Value, name: str) -> Value:
        """The value as an image whose tensor axes lie as the framework's; a vector is seen along its axis."""
        self._check(value)
        if value.flat is not None or len(value.axes) not in (2, 3, 4):
            raise GraphError(f"an image is needed, not a tensor of shape {list(value.shape)}")
        layout = self._layout if len(value.axes) == 4 else (0, 1, 2, 3)
        sizes = [*value.shape, 1, 1][:4] if len(value.axes) < 4 else list(value.shape)
        wanted: list[int] = [0, 0, 0, 0]
        for size, axis in zip(sizes, layout, strict=True):
            wanted[axis] = size
        shape = tuple(wanted[1:])
        if value.axes == layout[: len(value.axes)] and self._shapes[value.node] == shape:
            return value if len(value.axes) == 4 else replace(value, axes=layout)
        if sum(size != 1 for size in shape) > 1:
            if shape == self._shapes[value.node] and value.axes == layout[: len(value.axes)]:
                return value
            raise GraphError("a transposed image; only transposes that cancel can be imported")
        if self._shapes[value.node] != shape:
            value = self.add(g.Reshape, f"{name}/image", value.node, shape=shape)
        return replace(value, axes=layout)

    def vector(self, value: Value) -> Value:
        """The value as [C]: a Flatten where it still is an image."""
        self._check(value)
        shape = self._shapes[value.node]
        if len(shape) == 1:
            return replace(value, axes=(0, 1))
        if value.flat is None and sum(size != 1 for size in shape) > 1:
            if len(value.axes) == 4:
                return value  # an output that is an image; whoever asked will refuse it
            raise GraphError(f"a vector is needed, not a tensor of shape {list(value.shape)}")
        return self.add(g.Flatten, f"{value.node}/flat", value.node)

    @staticmethod
    def _check(value: Value) -> None:
        if value.border:
            raise GraphError("padding with the lowest value, which only a maximum may read")
        if value.softmax:
            raise GraphError("a softmax inside the network; only one at its end can be imported")

    def _weights(
        self, x: Value, weight: Array | IntegerConstant, bias: Array | IntegerConstant | None
    ) -> g.Weights:
        if isinstance(weight, IntegerConstant) and not self.keep_integers:
            weight = weight.real
        if isinstance(weight, IntegerConstant):
            return integer_weights(weight, bias, self.quants.get(x.node) or self._moved(x.node))
        if isinstance(bias, IntegerConstant):
            bias = bias.real
        return _weights(weight, bias)

    def _moved(self, name: str) -> g.QuantParams | None:
        """Parameters of what only moves integers: those of the node that made them."""
        nodes = {node.name: node for node in self.nodes}
        while name not in self.quants and moves_integers(nodes[name]) and nodes[name].inputs:
            name = nodes[name].inputs[0]
        return self.quants.get(name)


def _weights(weight: Array, bias: Array | None) -> g.FloatWeights:
    weight = np.array(weight, np.float32, order="C")  # a copy: a file's bytes are not ours to keep
    bias = np.zeros(len(weight), np.float32) if bias is None else np.array(bias, np.float32).reshape(-1)
    return g.FloatWeights(weight, bias)


def check_finite(graph: Graph) -> None:
    """Raises GraphError that names the first layer of which a number is none."""
    for node in graph.nodes:
        arrays: list[Array] = []
        if isinstance(node, g.Conv | g.Linear) and isinstance(node.weights, g.FloatWeights):
            arrays = [node.weights.weight, node.weights.bias]
        elif isinstance(node, g.BatchNorm):
            arrays = [node.scale, node.shift]
        if not all(np.isfinite(array).all() for array in arrays):
            raise GraphError(f"layer {node.name!r} holds NaN or infinite values; training diverged there")
