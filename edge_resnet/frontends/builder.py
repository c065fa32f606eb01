"""What every frontend builds with: operators of frameworks in, graph nodes out. Windows: window_builder.py.

A method takes and returns Values (values.py) and raises GraphError for what the graph cannot say. Axis
numbers are the tensor's, as its framework counts them; `channels_last` says where the framework has its
channels.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_resnet.errors import GraphError
from edge_resnet.frontends.integers import IntegerConstant
from edge_resnet.frontends.values import Value
from edge_resnet.frontends.window_builder import WindowBuilder, WindowPadding
from edge_resnet.graph import nodes as g

__all__ = ["GraphBuilder", "WindowPadding", "affine_of"]

Array = NDArray[Any]


class GraphBuilder(WindowBuilder):
    """The operators of frameworks, each as the nodes that say the same."""

    # Layers.

    def conv(
        self,
        name: str,
        x: Value,
        weight: Array | IntegerConstant,
        bias: Array | IntegerConstant | None = None,
        *,
        stride: tuple[int, int] = (1, 1),
        padding: WindowPadding = g.Padding(),  # noqa: B008 (frozen)
        dilation: tuple[int, int] = (1, 1),
        groups: int = 1,
    ) -> Value:
        """Convolution; `weight` is [O, I/groups, kh, kw], or [O, I/groups, k] for a one-dimensional one."""
        rank = len(x.axes)
        source = self.on_image(x, name)
        weights = self._weights(x, weight, bias)
        if weights.weight.ndim == 3:
            weights = _with_weight(weights, weights.weight[..., None])
        reach = [(k - 1) * d + 1 for k, d in zip(weights.weight.shape[2:], dilation, strict=True)]
        made = self.add(
            g.Conv,
            name,
            source.node,
            weights=weights,
            stride=stride,
            padding=self._padding(source, padding, reach, stride),
            dilation=dilation,
            groups=groups,
        )
        return replace(made, axes=source.axes[:rank])

    def linear(
        self,
        name: str,
        x: Value,
        weight: Array | IntegerConstant,
        bias: Array | IntegerConstant | None = None,
    ) -> Value:
        """Fully connected; `weight` [O, I] has its columns in the order of the tensor that it reads."""
        weights = self._weights(x, weight, bias)
        if x.flat is not None and x.flat != tuple(sorted(x.flat)):
            sizes, order = [x.size[axis] for axis in x.flat], np.argsort(x.flat)
            rows = weights.weight.reshape(len(weights.weight), *sizes).transpose(0, *(order + 1))
            weights = _with_weight(weights, np.ascontiguousarray(rows.reshape(weights.weight.shape)))
        elif x.flat is None and len([size for size in x.shape if size != 1]) > 1:
            raise GraphError(f"a fully connected layer on a tensor of shape {list(x.shape)}")
        return self.add(g.Linear, name, self.vector(x).node, weights=weights)

    def affine(self, name: str, x: Value, scale: Array, shift: Array) -> Value:
        """scale * x + shift, where both broadcast to x's tensor along its channels only."""
        self._check(x)
        factors, offsets = (self._per_channel(x, values) for values in (scale, shift))
        if np.all(factors == 1) and np.all(offsets == 0):
            return x
        return replace(x, node=self.add(g.BatchNorm, name, x.node, scale=factors, shift=offsets).node)

    def _per_channel(self, x: Value, values: Array) -> NDArray[np.float32]:
        """A constant that broadcasts to the tensor -> one number a channel."""
        channels = self._shapes[x.node][0]
        values = np.asarray(values, np.float32)
        if values.size == 1:
            return np.full(channels, values.reshape(()), np.float32)
        x.check_not_flat()
        if values.ndim > len(x.axes):
            raise GraphError(f"a constant of shape {list(values.shape)} on a tensor of {list(x.shape)}")
        axes = x.axes[len(x.axes) - values.ndim :]
        along = [axis for axis, size in zip(axes, values.shape, strict=True) if size != 1]
        if along != [1] or values.size != channels:
            raise GraphError(f"a constant of shape {list(values.shape)} on a tensor of {list(x.shape)}")
        return values.reshape(-1)

    # Elementwise.

    def elementwise(self, kind: type[g.Node], name: str, x: Value, **fields: Any) -> Value:
        """A node that does the same to every element."""
        self._check(x)
        return replace(x, node=self.add(kind, name, x.node, **fields).node)

    def relu(self, name: str, x: Value) -> Value:
        return self.elementwise(g.Relu, name, x)

    def clip(self, name: str, x: Value, low: float | None, high: float | None) -> Value:
        """A clip that is one of the graph's activations."""
        kinds = {None: g.Activation.RELU, 6.0: g.Activation.RELU6, 1.0: g.Activation.UNIT}
        high = None if high is None or high >= 3e38 else float(high)
        if low is None or float(low) != 0 or high not in kinds:
            raise GraphError(f"a clip to [{low}, {high}]; [0, inf], [0, 6] and [0, 1] can be imported")
        return self.elementwise(g.Relu, name, x, activation=kinds[high])

    def gated(self, kind: type[g.Node], name: str, x: Value) -> Value:
        """x * gate(x): SiLU with a sigmoid, hard swish with a hard sigmoid."""
        source = self._channel_image(x, name) if len(self._shapes[x.node]) == 1 else x
        gate = self.elementwise(kind, f"{name}/gate", source)
        return replace(x, node=self.add(g.Mul, name, source.node, gate.node).node)

    def arithmetic(self, kind: str, name: str, a: Value | Array, b: Value | Array) -> Value:
        """`add`, `sub`, `mul` or `div` of two tensors, or of one and a constant."""
        if isinstance(a, Value) and isinstance(b, Value):
            if kind not in ("add", "mul"):
                raise GraphError(f"{kind} of two tensors that both depend on the image")
            return self.sum(name, a, b) if kind == "add" else self.product(name, a, b)
        x, scale, shift = affine_of(kind, a, b)
        return self.affine(name, x, scale, shift)

    def sum(self, name: str, a: Value, b: Value) -> Value:
        """The residual sum of two tensors of the same shape."""
        self._check(a)
        self._check(b)
        if a.shape != b.shape or a.flat != b.flat:
            raise GraphError(f"a sum of tensors of shapes {list(a.shape)} and {list(b.shape)}")
        a, b = self._alike(a, b, name)
        return replace(a, node=self.add(g.Add, name, a.node, b.node).node)

    def product(self, name: str, a: Value, b: Value) -> Value:
        """An image times its gate, in either order."""
        self._check(a)
        self._check(b)
        if a.flat is not None or b.flat is not None:
            raise GraphError("a product of flattened images")
        if np.prod(a.shape) < np.prod(b.shape):
            a, b = b, a
        if a.shape == b.shape and sum(size != 1 for size in a.shape) <= 1:  # two vectors, however they lie
            rank = len(a.axes)
            a, b = (self._channel_image(value, name) for value in (a, b))
            made = self.add(g.Mul, name, a.node, b.node)
            return replace(made, axes=made.axes[:rank] if rank < 4 else self._layout)
        if a.axes != b.axes or a.size != b.size:
            self._check_gate(a, b)
            b = self._channel_image(b, name)
        return replace(a, node=self.add(g.Mul, name, a.node, b.node).node)

    @staticmethod
    def _check_gate(a: Value, b: Value) -> None:
        """The gate must be one number a channel, however its own node holds it."""
        numbers = [number for number, size in enumerate(b.shape) if size != 1]
        behind = [number - len(b.axes) for number in numbers]
        along = [a.axes[number] for number in behind if -number <= len(a.axes)]
        if along not in ([], [1]) or any(b.shape[number] != a.size[1] for number in numbers):
            raise GraphError(f"a product of tensors of shapes {list(a.shape)} and {list(b.shape)}")
        if not numbers and a.size[1] != 1:
            raise GraphError("a product with a single number that depends on the image")

    def _channel_image(self, value: Value, name: str) -> Value:
        """A vector as [C, 1, 1]."""
        count = int(np.prod(self._shapes[value.node]))
        if self._shapes[value.node] == (count, 1, 1):
            return replace(value, axes=self._layout)
        made = self.add(g.Reshape, f"{name}/gate", value.node, shape=(count, 1, 1))
        return replace(made, axes=self._layout)

    def _alike(self, a: Value, b: Value, name: str) -> tuple[Value, Value]:
        """Two values of equal tensor shape, held in nodes of equal shape."""
        if self._shapes[a.node] == self._shapes[b.node] and (a.axes == b.axes or a.flat is not None):
            return a, b
        if sum(size != 1 for size in a.shape) > 1:
            raise GraphError("a sum of images whose axes lie differently")
        return a, replace(
            self.add(g.Reshape, f"{name}/alike", b.node, shape=self._shapes[a.node]), axes=a.axes
        )

    def softmax(self, x: Value, number: int) -> Value:
        """Probabilities over the classes; `graph` leaves it out at the end, and nothing else may read it."""
        self._check(x)
        if x.flat is None and [size for size in x.shape if size != 1] != [x.size[x.axis(number)]]:
            raise GraphError("a softmax over other axes than the classes")
        return replace(x, softmax=True)


def affine_of(kind: str, a: Value | Array, b: Value | Array) -> tuple[Value, Array, Array]:
    """x, scale and shift with scale * x + shift = a kind b, where one of the two is a constant."""
    x, other = (a, b) if isinstance(a, Value) else (b, a)
    if not isinstance(x, Value) or isinstance(other, Value):
        raise GraphError("one tensor and one constant are needed")
    first, c = x is a, np.asarray(other).astype(np.float64)
    one, nothing = np.ones(()), np.zeros(())
    if kind == "add":
        return x, one, c
    if kind == "sub":
        return (x, one, -c) if first else (x, -one, c)
    if kind == "mul":
        return x, c, nothing
    if not first:
        raise GraphError("a division by what depends on the image")
    if not c.all():
        raise GraphError("a division by zero")
    return x, 1 / c, nothing


def _with_weight(weights: g.Weights, weight: Any) -> g.Weights:
    return replace(weights, weight=weight)
