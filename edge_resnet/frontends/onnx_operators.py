"""One function for each ONNX operator of the family: what a node does, said to the GraphBuilder.

A function returns the operator's outputs and raises GraphError for a form of it that the graph cannot say.
Attributes that became inputs in a later opset are looked for in both places.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_resnet.errors import GraphError
from edge_resnet.frontends.builder import GraphBuilder, WindowPadding
from edge_resnet.frontends.integers import IntegerConstant
from edge_resnet.frontends.values import Value, reshaped, squeezed, transposed, unsqueezed
from edge_resnet.graph import nodes as g

__all__ = ["OPERATORS", "OnnxCall", "convolution"]

Array = NDArray[Any]
Result = Value | list[Value]


@dataclass(frozen=True)
class OnnxCall:
    """One node of the file: inputs are Values or constants; None where an optional one is left out."""

    builder: GraphBuilder
    name: str
    inputs: tuple[Value | Array | IntegerConstant | None, ...]
    attributes: dict[str, Any]
    outputs: int
    opset: int

    def value(self, index: int = 0) -> Value:
        value = self.inputs[index] if index < len(self.inputs) else None
        if not isinstance(value, Value):
            raise GraphError(f"input {index} does not depend on the image")
        return value

    def maybe(self, index: int) -> Array | None:
        value = self.inputs[index] if index < len(self.inputs) else None
        if isinstance(value, Value):
            raise GraphError(f"input {index} depends on the image; it must be a constant")
        return value.real if isinstance(value, IntegerConstant) else value

    def weight(self, index: int) -> Array | IntegerConstant | None:
        """A constant with its integers, where it has some."""
        value = self.inputs[index] if index < len(self.inputs) else None
        return value if isinstance(value, IntegerConstant) else self.maybe(index)

    def constant(self, index: int) -> Array:
        value = self.maybe(index)
        if value is None:
            raise GraphError(f"input {index} is missing")
        return value

    def get(self, name: str, default: Any = None) -> Any:
        return self.attributes.get(name, default)

    def numbers(self, name: str, index: int) -> list[int] | None:
        """Integers that are an attribute in old opsets and an input in new ones."""
        found = self.get(name)
        given = self.maybe(index) if found is None else np.asarray(found)
        return None if given is None else [int(number) for number in np.atleast_1d(given)]


def _pair(numbers: Sequence[int], other: int = 1) -> tuple[int, int]:
    """Two numbers; a one-dimensional window has `other` along the axis that it lacks."""
    if len(numbers) not in (1, 2):
        raise GraphError(f"a window of {len(numbers)} dimensions")
    return (int(numbers[0]), int(numbers[1])) if len(numbers) == 2 else (int(numbers[0]), other)


def _window_padding(call: OnnxCall, rank: int) -> WindowPadding:
    word = str(call.get("auto_pad", "NOTSET"))
    if word != "NOTSET":
        return word
    pads = [int(number) for number in call.get("pads") or [0] * (2 * rank)]
    if len(pads) != 2 * rank:
        raise GraphError(f"pads {pads}")
    if rank == 1:
        return g.Padding(pads[0], 0, pads[1], 0)
    return g.Padding(pads[0], pads[1], pads[2], pads[3])


def _conv(call: OnnxCall) -> Value:
    return convolution(call, call.value(), call.weight(1), call.weight(2))


def _shape_of(weight: Array | IntegerConstant | None) -> tuple[int, ...]:
    if weight is None:
        return ()
    return weight.values.shape if isinstance(weight, IntegerConstant) else weight.shape


def convolution(
    call: OnnxCall, x: Value, weight: Array | IntegerConstant | None, bias: Array | IntegerConstant | None
) -> Value:
    """A convolution by the attributes that Conv and QLinearConv share."""
    shape = _shape_of(weight)
    rank = len(shape) - 2
    if weight is None or rank not in (1, 2):
        raise GraphError(f"a convolution with weights of shape {list(shape)}")
    return call.builder.conv(
        call.name,
        x,
        weight,
        bias,
        stride=_pair(call.get("strides") or [1] * rank),
        padding=_window_padding(call, rank),
        dilation=_pair(call.get("dilations") or [1] * rank),
        groups=int(call.get("group", 1)),
    )


def _batch_norm(call: OnnxCall) -> Value:
    if call.get("training_mode", 0):
        raise GraphError("batch normalization in training mode")
    gamma, beta, mean, variance = (call.constant(i).astype(np.float64) for i in range(1, 5))
    scale = gamma / np.sqrt(variance + float(call.get("epsilon", 1e-5)))
    shape = (1, -1) + (1,) * (len(call.value().axes) - 2)
    shift = beta - mean * scale
    return call.builder.affine(call.name, call.value(), scale.reshape(shape), shift.reshape(shape))


def _clip(call: OnnxCall) -> Value:
    ends = [call.get("min"), call.get("max")]
    for index in (0, 1):
        given = call.maybe(index + 1)
        if given is not None and given.dtype.kind == "f":
            ends[index] = float(given.reshape(()))
        elif given is not None:
            ends[index] = _real_end(call, given)
    low, high = ends
    return call.builder.clip(call.name, call.value(), None if low is None or low < -3e38 else low, high)


def _real_end(call: OnnxCall, end: Array) -> float | None:
    """An end among the integers as the real value of an activation's; None at the type's own end."""
    quant = call.builder.quants.get(call.value().node)
    if quant is None or end.dtype not in (np.int8, np.uint8):
        raise GraphError("a clip of integers")
    q = int(end.reshape(())) - (128 if end.dtype == np.uint8 else 0)
    if q == 127:
        return None
    if q == quant.zero_point:
        return 0.0
    limits = (activation.limit for activation in g.Activation if activation.limit is not None)
    found = [
        v for v in limits if int(np.rint(np.float32(v) / np.float32(quant.scale))) + quant.zero_point == q
    ]
    if not found:
        raise GraphError(f"a clip at integer {int(end.reshape(()))}")
    return found[0]


def _hard_sigmoid(call: OnnxCall) -> Value:
    """clip(alpha x + beta), by way of the graph's own, whose alpha is 1/6 and beta 1/2."""
    alpha, beta = float(call.get("alpha", 0.2)), float(call.get("beta", 0.5))
    scale, shift = np.array(6 * alpha), np.array(6 * (beta - 0.5))
    x = call.value()
    if abs(scale - 1) > 1e-6 or shift != 0:
        x = call.builder.affine(f"{call.name}/scaled", x, scale, shift)
    return call.builder.elementwise(g.HardSigmoid, call.name, x)


def _arithmetic(kind: str) -> Callable[[OnnxCall], Value]:
    def run(call: OnnxCall) -> Value:
        sides = [
            value if isinstance(value, Value) else call.constant(at)
            for at, value in enumerate(call.inputs[:2])
        ]
        return call.builder.arithmetic(kind, call.name, *sides)

    return run


def _sum(call: OnnxCall) -> Value:
    total = call.value()
    for index in range(1, len(call.inputs)):
        total = call.builder.sum(call.name, total, call.value(index))
    return total


def _max_pool(call: OnnxCall) -> Value:
    kernel = _pair(call.get("kernel_shape") or [])
    if set(call.get("dilations") or [1]) != {1}:
        raise GraphError("max pooling with dilation")
    if call.outputs > 1:
        raise GraphError("max pooling that also answers indices")
    return call.builder.max_pool(
        call.name,
        call.value(),
        kernel,
        _pair(call.get("strides") or [1, 1]),
        _window_padding(call, 2),
        bool(call.get("ceil_mode", 0)),
    )


def _average_pool(call: OnnxCall) -> Value:
    return call.builder.average_pool(
        call.name,
        call.value(),
        _pair(call.get("kernel_shape") or []),
        _pair(call.get("strides") or [1, 1]),
        _window_padding(call, 2),
        ceil=bool(call.get("ceil_mode", 0)),
        counts_padding=bool(call.get("count_include_pad", 0)),
    )


def _reduce_mean(call: OnnxCall) -> Value:
    axes = call.numbers("axes", 1)
    if axes is None:
        axes = list(range(len(call.value().axes)))
    return call.builder.mean(call.name, call.value(), axes, bool(call.get("keepdims", 1)))


def _gemm(call: OnnxCall) -> Value:
    if call.get("transA", 0) or float(call.get("alpha", 1)) != 1 or float(call.get("beta", 1)) != 1:
        raise GraphError("a Gemm with transA, or with alpha or beta other than 1")
    weight, bias = call.weight(1), call.weight(2)
    if weight is None:
        raise GraphError("a Gemm without a weight")
    if not call.get("transB", 0):
        weight = weight.transposed([1, 0]) if isinstance(weight, IntegerConstant) else weight.T
    if isinstance(bias, np.ndarray) and bias.size == 1 and not isinstance(weight, IntegerConstant):
        bias = np.full(len(weight), bias.reshape(()))
    return call.builder.linear(call.name, call.value(), weight, bias)


def _matmul(call: OnnxCall) -> Value:
    weight = call.weight(1)
    shape = _shape_of(weight)
    if weight is None or len(shape) != 2:
        raise GraphError(f"a MatMul with a constant of shape {list(shape)}")
    turned = weight.transposed([1, 0]) if isinstance(weight, IntegerConstant) else weight.T
    return call.builder.linear(call.name, call.value(), turned)


def _flatten(call: OnnxCall) -> Value:
    value, axis = call.value(), int(call.get("axis", 1))
    if axis not in (1, 1 - len(value.shape)):
        raise GraphError(f"a Flatten at axis {axis}")
    return reshaped(value, [1, -1])


def _reshape(call: OnnxCall) -> Value:
    value, shape = call.value(), call.numbers("shape", 1) or []
    if not call.get("allowzero", 0):
        shape = [
            value.shape[i] if size == 0 and i < len(value.shape) else size for i, size in enumerate(shape)
        ]
    return reshaped(value, shape)


def _transpose(call: OnnxCall) -> Value:
    value = call.value()
    return transposed(value, call.get("perm") or list(reversed(range(len(value.axes)))))


def _pad(call: OnnxCall) -> Value:
    mode = str(call.get("mode", "constant"))
    fill = call.maybe(2) if len(call.inputs) > 2 else np.asarray(call.get("value", 0.0))
    if mode not in ("constant", "reflect") or (mode == "constant" and fill is not None and np.any(fill != 0)):
        raise GraphError(f"padding in mode {mode!r} with value {fill}")
    pads = call.numbers("pads", 1) or call.numbers("paddings", 1) or []
    value, half = call.value(), len(pads) // 2
    axes = call.numbers("axes", 3) if len(call.inputs) > 3 else None
    amounts = [(0, 0)] * len(value.axes)
    for number, axis in enumerate(axes if axes is not None else range(half)):
        amounts[axis] = (pads[number], pads[number + half])
    return call.builder.pad(call.name, value, amounts, reflect=mode == "reflect")


def _slice(call: OnnxCall) -> Value:
    value = call.value()
    starts, ends = call.numbers("starts", 1) or [], call.numbers("ends", 2) or []
    axes = call.numbers("axes", 3) or list(range(len(starts)))
    steps = call.numbers("steps", 4) or [1] * len(starts)
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        value = call.builder.slice(call.name, value, axis, start, end, step)
    return value


def _split(call: OnnxCall) -> list[Value]:
    value, axis = call.value(), int(call.get("axis", 0))
    total, sizes = value.size[value.axis(axis)], call.numbers("split", 1)
    if sizes is None:
        size = -(-total // call.outputs)
        sizes = [min(size, total - size * i) for i in range(call.outputs)]
    ends = np.cumsum(sizes).tolist()
    return [
        call.builder.slice(f"{call.name}/{number}", value, axis, end - size, end)
        for number, (size, end) in enumerate(zip(sizes, ends, strict=True))
    ]


def _concat(call: OnnxCall) -> Value:
    parts = [call.value(index) for index in range(len(call.inputs))]
    return call.builder.concat(call.name, parts, int(call.get("axis", 1)))


def _squeeze(call: OnnxCall) -> Value:
    return squeezed(call.value(), call.numbers("axes", 1))


def _unsqueeze(call: OnnxCall) -> Value:
    return unsqueezed(call.value(), call.numbers("axes", 1) or [])


def _expand(call: OnnxCall) -> Value:
    """A product that follows broadcasts in any case."""
    return call.value()


def _cast(call: OnnxCall) -> Value:
    """The image's bytes to floats, or a float type to another: the graph knows only numbers."""
    if int(call.get("to", 1)) not in (1, 10, 11, 16):  # float, float16, double, bfloat16
        raise GraphError("a cast to integers")
    return call.value()


def _softmax(call: OnnxCall) -> Value:
    value = call.value()
    axis = int(call.get("axis", -1 if call.opset >= 13 else 1))
    if value.flat is None and call.opset < 13 and len(value.axes) > 2:
        raise GraphError("a softmax over several axes")
    return call.builder.softmax(value, axis)


def _unary(kind: type[g.Node]) -> Callable[[OnnxCall], Result]:
    return lambda call: call.builder.elementwise(kind, call.name, call.value())


def _gated(kind: type[g.Node]) -> Callable[[OnnxCall], Result]:
    return lambda call: call.builder.gated(kind, call.name, call.value())


def _global_average_pool(call: OnnxCall) -> Value:
    rank = len(call.value().axes)
    return call.builder.mean(call.name, call.value(), list(range(2, rank)), True)


OPERATORS: dict[str, Callable[[OnnxCall], Result]] = {
    "Conv": _conv,
    "BatchNormalization": _batch_norm,
    "Relu": lambda call: call.builder.relu(call.name, call.value()),
    "Clip": _clip,
    "Sigmoid": _unary(g.Sigmoid),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _gated(g.HardSigmoid),
    "Swish": _gated(g.Sigmoid),
    "Add": _arithmetic("add"),
    "Sub": _arithmetic("sub"),
    "Mul": _arithmetic("mul"),
    "Div": _arithmetic("div"),
    "Sum": _sum,
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "GlobalAveragePool": _global_average_pool,
    "ReduceMean": _reduce_mean,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Flatten": _flatten,
    "Reshape": _reshape,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Transpose": _transpose,
    "Pad": _pad,
    "Slice": _slice,
    "Split": _split,
    "Concat": _concat,
    "Expand": _expand,
    "Cast": _cast,
    "Softmax": _softmax,
    "LogSoftmax": _softmax,
    "Dropout": lambda call: call.value(),
    "Identity": lambda call: call.value(),
}
