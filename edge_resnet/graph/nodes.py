"""The node kinds of a residual CNN; what they are described with (attributes.py) is imported from here too.

A node is a frozen value: its inputs are names of other nodes, its weights are numpy arrays, and a node that
exists has consistent shapes. Tensors are described as [C, H, W] or [C]; the batch axis is never written.
`quant` is the node's output in integers (None in a float graph).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from edge_resnet.errors import GraphError
from edge_resnet.graph.attributes import (
    Activation,
    FloatArray,
    FloatWeights,
    IntWeights,
    Padding,
    PadMode,
    QuantParams,
    Shape,
    Weights,
)

__all__ = [
    "NODE_KINDS",
    "Activation",
    "Add",
    "AvgPool",
    "BatchNorm",
    "Concat",
    "Conv",
    "Flatten",
    "FloatArray",
    "FloatWeights",
    "GlobalAvgPool",
    "HardSigmoid",
    "Input",
    "IntWeights",
    "Linear",
    "MaxPool",
    "Mul",
    "Node",
    "Normalize",
    "Pad",
    "PadChannels",
    "PadMode",
    "Padding",
    "QuantParams",
    "Relu",
    "Reshape",
    "Shape",
    "Sigmoid",
    "SliceChannels",
    "Subsample",
    "Weights",
]


@dataclass(frozen=True, eq=False, kw_only=True)
class Node:
    """Common to all kinds. `arity` is the number of inputs; None stands for one or more."""

    arity: ClassVar[int | None] = 1
    name: str
    inputs: tuple[str, ...]
    quant: QuantParams | None = None

    def output_shape(self, *shapes: Shape) -> Shape:
        """Shape of the output for these input shapes; GraphError when they do not fit."""
        return shapes[0]


@dataclass(frozen=True, eq=False, kw_only=True)
class Input(Node):
    """An RGB image. With `quant`, the image's raw bytes are the integers: q_uint8 = byte."""

    arity: ClassVar[int | None] = 0
    shape: Shape
    inputs: tuple[str, ...] = ()

    def output_shape(self, *shapes: Shape) -> Shape:
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise GraphError(f"input shape {self.shape} is not [C, H, W]")
        return self.shape


@dataclass(frozen=True, eq=False, kw_only=True)
class Normalize(Node):
    """(x - mean[c]) / std[c], with x in 0..255."""

    mean: FloatArray
    std: FloatArray

    def output_shape(self, *shapes: Shape) -> Shape:
        _channels_fit(self.mean, shapes[0], "mean")
        _channels_fit(self.std, shapes[0], "std")
        return shapes[0]


@dataclass(frozen=True, eq=False, kw_only=True)
class Conv(Node):
    """2-D cross-correlation, zero padding, groups, bias, and an optional activation."""

    weights: Weights
    stride: tuple[int, int] = (1, 1)
    padding: Padding = Padding()  # noqa: RUF009 (frozen)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    activation: Activation = Activation.NONE

    def output_shape(self, *shapes: Shape) -> Shape:
        out, per_group, kernel_h, kernel_w = self.weights.weight.shape
        channels = _image(shapes[0])[0]
        if channels != per_group * self.groups or out % self.groups:
            raise GraphError(
                f"weight {self.weights.weight.shape} x {self.groups} groups on {channels} channels"
            )
        reach = ((kernel_h - 1) * self.dilation[0] + 1, (kernel_w - 1) * self.dilation[1] + 1)
        return (out, *_window(shapes[0], reach, self.stride, self.padding))


@dataclass(frozen=True, eq=False, kw_only=True)
class BatchNorm(Node):
    """scale * x + shift for each channel: batch normalization at inference."""

    scale: FloatArray
    shift: FloatArray

    def output_shape(self, *shapes: Shape) -> Shape:
        _channels_fit(self.scale, shapes[0], "scale")
        _channels_fit(self.shift, shapes[0], "shift")
        return shapes[0]


@dataclass(frozen=True, eq=False, kw_only=True)
class Relu(Node):
    """max(x, 0) or a clipped form of it, where it could not be fused into the node before it."""

    activation: Activation = Activation.RELU

    def output_shape(self, *shapes: Shape) -> Shape:
        if self.activation is Activation.NONE:
            raise GraphError("an activation that does nothing")
        return shapes[0]


@dataclass(frozen=True, eq=False, kw_only=True)
class Sigmoid(Node):
    """1 / (1 + exp(-x)): the gate of squeeze-and-excitation."""


@dataclass(frozen=True, eq=False, kw_only=True)
class HardSigmoid(Node):
    """min(max(x / 6 + 1/2, 0), 1). Quantized graphs hold it as a depthwise Conv that clips to [0, 1]."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Add(Node):
    """The residual sum."""

    arity: ClassVar[int | None] = 2
    activation: Activation = Activation.NONE

    def output_shape(self, *shapes: Shape) -> Shape:
        if shapes[0] != shapes[1]:
            raise GraphError(f"cannot add {shapes[0]} and {shapes[1]}")
        return shapes[0]


@dataclass(frozen=True, eq=False, kw_only=True)
class Mul(Node):
    """An image times its gate, which comes second: [C, H, W] times [C, H, W] or [C, 1, 1]."""

    arity: ClassVar[int | None] = 2

    def output_shape(self, *shapes: Shape) -> Shape:
        if shapes[1] not in (shapes[0], (_image(shapes[0])[0], 1, 1)):
            raise GraphError(f"cannot multiply {shapes[0]} by {shapes[1]}")
        return shapes[0]


@dataclass(frozen=True, eq=False, kw_only=True)
class Concat(Node):
    """Images behind one another, along the channels."""

    arity: ClassVar[int | None] = None

    def output_shape(self, *shapes: Shape) -> Shape:
        if any(_image(shape)[1:] != shapes[0][1:] for shape in shapes):
            raise GraphError(f"cannot concatenate {', '.join(map(str, shapes))}")
        return (sum(shape[0] for shape in shapes), *shapes[0][1:])


@dataclass(frozen=True, eq=False, kw_only=True)
class SliceChannels(Node):
    """Channels `start` up to, not including, `stop`."""

    start: int
    stop: int

    def output_shape(self, *shapes: Shape) -> Shape:
        channels, height, width = _image(shapes[0])
        if not 0 <= self.start < self.stop <= channels:
            raise GraphError(f"channels {self.start} to {self.stop} of {channels}")
        return (self.stop - self.start, height, width)


@dataclass(frozen=True, eq=False, kw_only=True)
class MaxPool(Node):
    """Maximum over a window; the padding never wins."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: Padding = Padding()  # noqa: RUF009 (frozen)

    def output_shape(self, *shapes: Shape) -> Shape:
        return (shapes[0][0], *_window(shapes[0], self.kernel, self.stride, self.padding))


@dataclass(frozen=True, eq=False, kw_only=True)
class AvgPool(Node):
    """Mean over a window without padding. Quantized graphs hold it as a depthwise Conv, which is exact."""

    kernel: tuple[int, int]
    stride: tuple[int, int]

    def output_shape(self, *shapes: Shape) -> Shape:
        return (shapes[0][0], *_window(shapes[0], self.kernel, self.stride, Padding()))


@dataclass(frozen=True, eq=False, kw_only=True)
class GlobalAvgPool(Node):
    """[C, H, W] -> [C, 1, 1]."""

    def output_shape(self, *shapes: Shape) -> Shape:
        return (_image(shapes[0])[0], 1, 1)


@dataclass(frozen=True, eq=False, kw_only=True)
class Subsample(Node):
    """Every `stride`-th row and column, starting at the first (the option A shortcut of CIFAR ResNets)."""

    stride: tuple[int, int]

    def output_shape(self, *shapes: Shape) -> Shape:
        return (shapes[0][0], *_window(shapes[0], (1, 1), self.stride, Padding()))


@dataclass(frozen=True, eq=False, kw_only=True)
class PadChannels(Node):
    """Zero channels in front and behind (the option A shortcut of CIFAR ResNets)."""

    before: int
    after: int

    def output_shape(self, *shapes: Shape) -> Shape:
        channels, height, width = _image(shapes[0])
        if self.before < 0 or self.after < 0:
            raise GraphError("a negative number of channels")
        return (channels + self.before + self.after, height, width)


@dataclass(frozen=True, eq=False, kw_only=True)
class Pad(Node):
    """Zeros or a mirrored border around the image, where they could not be fused into a convolution."""

    padding: Padding
    mode: PadMode = PadMode.ZERO

    def output_shape(self, *shapes: Shape) -> Shape:
        height, width = _image(shapes[0])[1:]
        p = self.padding
        if self.mode is PadMode.REFLECT and (max(p.top, p.bottom) >= height or max(p.left, p.right) >= width):
            raise GraphError(f"a mirrored border of {p} on {height}x{width}")
        return (shapes[0][0], *_window(shapes[0], (1, 1), (1, 1), self.padding))


@dataclass(frozen=True, eq=False, kw_only=True)
class Flatten(Node):
    """[C, H, W] -> [C * H * W], channels first."""

    def output_shape(self, *shapes: Shape) -> Shape:
        return (int(np.prod(shapes[0])),)


@dataclass(frozen=True, eq=False, kw_only=True)
class Reshape(Node):
    """A vector seen along another axis, for example [C, 1, 1] as [1, C, 1]: at most one axis is not 1.

    So it means the same whether channels lie first or last in memory.
    """

    shape: Shape

    def output_shape(self, *shapes: Shape) -> Shape:
        if len(self.shape) not in (1, 3):
            raise GraphError(f"a reshape to {self.shape}")
        if [n for n in shapes[0] if n != 1] != [n for n in self.shape if n != 1] or (
            sum(n != 1 for n in self.shape) > 1
        ):
            raise GraphError(f"a reshape from {shapes[0]} to {self.shape}")
        return self.shape


@dataclass(frozen=True, eq=False, kw_only=True)
class Linear(Node):
    """A fully connected layer: weight [O, I] times [I], plus bias, and an optional activation."""

    weights: Weights
    activation: Activation = Activation.NONE

    def output_shape(self, *shapes: Shape) -> Shape:
        out, features = self.weights.weight.shape
        if shapes[0] != (features,):
            raise GraphError(f"weight {self.weights.weight.shape} on input {shapes[0]}")
        return (out,)


NODE_KINDS: dict[str, type[Node]] = {
    kind.__name__: kind
    for kind in (
        Input,
        Normalize,
        Conv,
        BatchNorm,
        Relu,
        Sigmoid,
        HardSigmoid,
        Add,
        Mul,
        Concat,
        SliceChannels,
        MaxPool,
        AvgPool,
        GlobalAvgPool,
        Subsample,
        PadChannels,
        Pad,
        Flatten,
        Reshape,
        Linear,
    )
}


def _image(shape: Shape) -> Shape:
    if len(shape) != 3:
        raise GraphError(f"needs an image [C, H, W], got {shape}")
    return shape


def _channels_fit(values: FloatArray, shape: Shape, what: str) -> None:
    if values.shape != shape[:1]:
        raise GraphError(f"{what} {values.shape} does not fit {shape[0]} channels")


def _window(shape: Shape, reach: Sequence[int], stride: Sequence[int], padding: Padding) -> Shape:
    """Height and width after a sliding window."""
    _, height, width = _image(shape)
    if min(padding.top, padding.left, padding.bottom, padding.right) < 0 or min(stride) < 1:
        raise GraphError(f"padding {padding} or stride {tuple(stride)} is out of range")
    rows = height + padding.top + padding.bottom - reach[0]
    columns = width + padding.left + padding.right - reach[1]
    if rows < 0 or columns < 0:
        raise GraphError(f"a {reach[0]}x{reach[1]} window does not fit {height}x{width}")
    return rows // stride[0] + 1, columns // stride[1] + 1
