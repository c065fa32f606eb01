"""One function for each TFLite operator of the family: what it does, said to the GraphBuilder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from edge_resnet.errors import GraphError
from edge_resnet.frontends.builder import GraphBuilder
from edge_resnet.frontends.integers import IntegerConstant
from edge_resnet.frontends.values import Value, reshaped, squeezed, transposed
from edge_resnet.graph import nodes as g

__all__ = ["OPERATORS", "TfliteCall"]

Array = NDArray[Any]


@dataclass(frozen=True)
class TfliteCall:
    """One operator: inputs are Values or constants, None where an optional one is left out."""

    builder: GraphBuilder
    name: str
    inputs: tuple[Value | Array | IntegerConstant | None, ...]
    options: Any

    def value(self, index: int = 0) -> Value:
        value = self.inputs[index] if index < len(self.inputs) else None
        if not isinstance(value, Value):
            raise GraphError(f"input {index} does not depend on the image")
        return value

    def constant(self, index: int) -> Array | IntegerConstant | None:
        value = self.inputs[index] if index < len(self.inputs) else None
        if isinstance(value, Value):
            raise GraphError(f"input {index} depends on the image; it must be a constant")
        return value

    def numbers(self, index: int) -> list[int]:
        value = self.constant(index)
        if value is None or isinstance(value, IntegerConstant):
            raise GraphError(f"input {index} is no list of integers")
        return [int(number) for number in value.reshape(-1)]

    def real(self, index: int) -> Array:
        value = self.constant(index)
        if value is None:
            raise GraphError(f"input {index} is missing")
        return value.real if isinstance(value, IntegerConstant) else value

    def activated(self, value: Value) -> Value:
        """The result behind its fused activation."""
        kinds, kind = schema.ActivationFunctionType, int(self.options.fusedActivationFunction)
        if kind == kinds.NONE:
            return value
        if kind == kinds.RELU:
            return self.builder.relu(f"{self.name}/relu", value)
        if kind == kinds.RELU6:
            return self.builder.clip(f"{self.name}/relu", value, 0.0, 6.0)
        raise GraphError(f"fused activation {kind}")

    @property
    def padding(self) -> str:
        return "same" if int(self.options.padding) == schema.Padding.SAME else "valid"

    @property
    def stride(self) -> tuple[int, int]:
        return int(self.options.strideH), int(self.options.strideW)


def _arranged(weight: Array | IntegerConstant | None, order: list[int]) -> Array | IntegerConstant:
    if weight is None:
        raise GraphError("no weight")
    rank = weight.values.ndim if isinstance(weight, IntegerConstant) else weight.ndim
    if rank != len(order):
        raise GraphError(f"a weight of {rank} axes")
    return weight.transposed(order) if isinstance(weight, IntegerConstant) else weight.transpose(order)


def _conv(call: TfliteCall) -> Value:
    x, weight = call.value(), _arranged(call.constant(1), [0, 3, 1, 2])  # OHWI -> OIHW
    shape = weight.values.shape if isinstance(weight, IntegerConstant) else weight.shape
    channels = x.size[x.axis(3)]
    if channels % shape[1]:
        raise GraphError(f"a weight of {shape[1]} channels on {channels}")
    made = call.builder.conv(
        call.name,
        x,
        weight,
        call.constant(2),
        stride=call.stride,
        padding=call.padding,
        dilation=(int(call.options.dilationHFactor), int(call.options.dilationWFactor)),
        groups=channels // shape[1],
    )
    return call.activated(made)


def _depthwise(call: TfliteCall) -> Value:
    x, weight = call.value(), _arranged(call.constant(1), [3, 0, 1, 2])  # 1HWO -> O1HW
    made = call.builder.conv(
        call.name,
        x,
        weight,
        call.constant(2),
        stride=call.stride,
        padding=call.padding,
        dilation=(int(call.options.dilationHFactor), int(call.options.dilationWFactor)),
        groups=x.size[x.axis(3)],
    )
    return call.activated(made)


def _fully_connected(call: TfliteCall) -> Value:
    x = call.value()
    if x.flat is None and len(x.axes) > 2:
        x = reshaped(x, [1, -1])
    weight = _arranged(call.constant(1), [0, 1])
    made = call.builder.linear(call.name, x, weight, call.constant(2))
    if call.options.keepNumDims and len(call.value().axes) > 2:
        raise GraphError("a fully connected layer along the last of several axes")
    return call.activated(made)


def _arithmetic(kind: str) -> Callable[[TfliteCall], Value]:
    def run(call: TfliteCall) -> Value:
        sides = [
            value if isinstance(value, Value) else call.real(at) for at, value in enumerate(call.inputs[:2])
        ]
        return call.activated(call.builder.arithmetic(kind, call.name, *sides))

    return run


def _max_pool(call: TfliteCall) -> Value:
    kernel = (int(call.options.filterHeight), int(call.options.filterWidth))
    x = call.value()
    if kernel == (1, 1) and call.stride != (1, 1):
        made = call.builder.subsample(call.name, x, call.stride)
    else:
        made = call.builder.max_pool(call.name, x, kernel, call.stride, call.padding)
    return call.activated(made)


def _average_pool(call: TfliteCall) -> Value:
    kernel = (int(call.options.filterHeight), int(call.options.filterWidth))
    made = call.builder.average_pool(
        call.name, call.value(), kernel, call.stride, call.padding, counts_padding=False
    )
    return call.activated(made)


def _mean(call: TfliteCall) -> Value:
    return call.builder.mean(call.name, call.value(), call.numbers(1), bool(call.options.keepDims))


def _pad(call: TfliteCall) -> Value:
    amounts = call.numbers(1)
    pairs = [(amounts[i], amounts[i + 1]) for i in range(0, len(amounts), 2)]
    lowest = False
    if len(call.inputs) > 2:
        fill = call.real(2)
        constant = call.constant(2)
        raw = constant.values if isinstance(constant, IntegerConstant) else fill
        lowest = bool(np.all(raw == -128) if raw.dtype == np.int8 else np.all(fill < -1e30))
        if not lowest and np.any(fill != 0):
            raise GraphError(f"padding with {float(fill.reshape(-1)[0])}")
    if lowest:  # what a maximum is padded with: MaxPool's own padding
        return call.builder.pad_for_maximum(call.value(), pairs)
    return call.builder.pad(call.name, call.value(), pairs)


def _mirror_pad(call: TfliteCall) -> Value:
    if int(call.options.mode) != schema.MirrorPadMode.REFLECT:
        raise GraphError("mirrored padding that repeats the border")
    amounts = call.numbers(1)
    pairs = [(amounts[i], amounts[i + 1]) for i in range(0, len(amounts), 2)]
    return call.builder.pad(call.name, call.value(), pairs, reflect=True)


def _reshape(call: TfliteCall) -> Value:
    if len(call.inputs) > 1 and call.constant(1) is not None:
        return reshaped(call.value(), call.numbers(1))
    return reshaped(call.value(), [int(size) for size in call.options.newShape])


def _concat(call: TfliteCall) -> Value:
    parts = [call.value(index) for index in range(len(call.inputs))]
    return call.activated(call.builder.concat(call.name, parts, int(call.options.axis)))


def _slice(call: TfliteCall) -> Value:
    value = call.value()
    for axis, (start, size) in enumerate(zip(call.numbers(1), call.numbers(2), strict=True)):
        value = call.builder.slice(call.name, value, axis, start, None if size == -1 else start + size)
    return value


def _strided_slice(call: TfliteCall) -> Value:
    options = call.options
    if options.ellipsisMask or options.newAxisMask or options.shrinkAxisMask:
        raise GraphError("a slice with masks for new or dropped axes")
    value = call.value()
    ends = zip(call.numbers(1), call.numbers(2), call.numbers(3), strict=True)
    for axis, (start, stop, step) in enumerate(ends):
        first = 0 if int(options.beginMask) >> axis & 1 else start
        last = None if int(options.endMask) >> axis & 1 else stop
        value = call.builder.slice(call.name, value, axis, first, last, step)
    return value


def _same(call: TfliteCall) -> Value:
    """The same numbers in another type; parameters are the tensors' own."""
    return call.value()


def _softmax(call: TfliteCall) -> Value:
    if float(call.options.beta) != 1:
        raise GraphError("a softmax with beta other than 1")
    return call.builder.softmax(call.value(), -1)


OPERATORS: dict[str, Callable[[TfliteCall], Value]] = {
    "CONV_2D": _conv,
    "DEPTHWISE_CONV_2D": _depthwise,
    "FULLY_CONNECTED": _fully_connected,
    "ADD": _arithmetic("add"),
    "SUB": _arithmetic("sub"),
    "MUL": _arithmetic("mul"),
    "DIV": _arithmetic("div"),
    "RELU": lambda call: call.builder.relu(call.name, call.value()),
    "RELU6": lambda call: call.builder.clip(call.name, call.value(), 0.0, 6.0),
    "RELU_0_TO_1": lambda call: call.builder.clip(call.name, call.value(), 0.0, 1.0),
    "LOGISTIC": lambda call: call.builder.elementwise(g.Sigmoid, call.name, call.value()),
    "HARD_SWISH": lambda call: call.builder.gated(g.HardSigmoid, call.name, call.value()),
    "MAX_POOL_2D": _max_pool,
    "AVERAGE_POOL_2D": _average_pool,
    "MEAN": _mean,
    "PAD": _pad,
    "PADV2": _pad,
    "MIRROR_PAD": _mirror_pad,
    "RESHAPE": _reshape,
    "SQUEEZE": lambda call: squeezed(
        call.value(), None if call.options.squeezeDims is None else list(call.options.squeezeDims)
    ),
    "TRANSPOSE": lambda call: transposed(call.value(), call.numbers(1)),
    "CONCATENATION": _concat,
    "SLICE": _slice,
    "STRIDED_SLICE": _strided_slice,
    "SOFTMAX": _softmax,
    "QUANTIZE": _same,
    "DEQUANTIZE": _same,
    "CAST": _same,
}
