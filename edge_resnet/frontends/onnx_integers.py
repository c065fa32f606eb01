"""Quantized ONNX files: QDQ (between QuantizeLinear and DequantizeLinear) and QOperator (QLinearConv ...).

Integers and their real values are the same node of the graph: QuantizeLinear says which parameters it has,
DequantizeLinear says them once more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_resnet.errors import GraphError
from edge_resnet.frontends.integers import IntegerConstant
from edge_resnet.frontends.onnx_operators import OnnxCall, convolution
from edge_resnet.frontends.values import Value
from edge_resnet.graph import nodes as g

__all__ = ["INTEGER_OPERATORS", "dequantized_constant"]

Array = NDArray[Any]


def _parameters(call: OnnxCall, at: int) -> g.QuantParams:
    """Of an activation, from inputs `at` and the next: 8 bit, one scale for the tensor."""
    scale, zero = call.maybe(at), call.maybe(at + 1)
    if scale is None:
        raise GraphError("no scale")
    if np.size(scale) != 1 or (zero is not None and np.size(zero) != 1):
        raise GraphError("per-channel parameters of an activation")
    number = np.zeros((), np.uint8) if zero is None else np.asarray(zero).reshape(())
    if not call.builder.keep_integers and number.dtype in (np.int16, np.uint16):
        lowest = int(number) == np.iinfo(number.dtype).min  # as floats, only what they cut off counts
        return g.QuantParams(float(np.float32(np.asarray(scale).reshape(()))), -128 if lowest else 0)
    if number.dtype not in (np.int8, np.uint8):
        raise GraphError(f"activations of type {number.dtype.name}; 8 bit can be carried")
    offset = 128 if number.dtype == np.uint8 else 0
    return g.QuantParams(float(np.float32(np.asarray(scale).reshape(()))), int(number) - offset)


def dequantized_constant(inputs: Sequence[Any], axis: int) -> IntegerConstant:
    """DequantizeLinear of a constant: its integers are kept."""
    values, scale = np.asarray(inputs[0]), np.asarray(inputs[1], np.float32)
    zero = np.zeros(scale.shape, values.dtype)
    if len(inputs) > 2 and inputs[2] is not None:
        zero = np.asarray(inputs[2])
    if scale.ndim > 1:
        raise GraphError("block-wise parameters")
    return IntegerConstant(values, scale, zero, axis if scale.size > 1 else 0)


def _quantize(call: OnnxCall) -> Value:
    return call.builder.quantized(call.value(), _parameters(call, 1))


def _check(call: OnnxCall, at: int) -> Value:
    """A tensor with its scale and zero point behind it, as QOperator's nodes list them."""
    return call.builder.quantized(call.value(at), _parameters(call, at + 1))


def _weight(call: OnnxCall, at: int, axis: int) -> IntegerConstant:
    values, scale, zero = (call.maybe(at + index) for index in range(3))
    if values is None or scale is None:
        raise GraphError("no weight")
    return IntegerConstant(
        values,
        np.asarray(scale, np.float32),
        np.zeros((), values.dtype) if zero is None else zero,
        axis if np.size(scale) > 1 else 0,
    )


def _made(call: OnnxCall, value: Value, at: int) -> Value:
    """The result, with the parameters that the node lists for it."""
    return call.builder.quantized(value, _parameters(call, at))


def _bias(call: OnnxCall, at: int, weight: IntegerConstant) -> IntegerConstant | None:
    """In units of the input's scale (the node's second input) times the weight's."""
    values = call.maybe(at)
    if values is None:
        return None
    unit = np.asarray(call.constant(1), np.float32).reshape(()) * weight.scale
    return IntegerConstant(values, unit, np.zeros((), np.int32))


def _qlinear_conv(call: OnnxCall) -> Value:
    x, weight = _check(call, 0), _weight(call, 3, 0)
    return _made(call, convolution(call, x, weight, _bias(call, 8, weight)), 6)


def _qgemm(call: OnnxCall) -> Value:
    if call.get("transA", 0) or float(call.get("alpha", 1)) != 1:
        raise GraphError("a QGemm with transA, or with alpha other than 1")
    x, turned = _check(call, 0), bool(call.get("transB", 0))
    weight = _weight(call, 3, 0 if turned else 1)
    weight = weight if turned else weight.transposed([1, 0])
    bias = _bias(call, 6, weight)
    return _made(call, call.builder.linear(call.name, x, weight, bias), 7)


def _qlinear_matmul(call: OnnxCall) -> Value:
    x, weight = _check(call, 0), _weight(call, 3, 1)
    if weight.values.ndim != 2:
        raise GraphError(f"a weight of shape {list(weight.values.shape)}")
    return _made(call, call.builder.linear(call.name, x, weight.transposed([1, 0])), 6)


def _qlinear_add(call: OnnxCall) -> Value:
    return _made(call, call.builder.sum(call.name, _check(call, 0), _check(call, 3)), 6)


def _qlinear_mul(call: OnnxCall) -> Value:
    return _made(call, call.builder.product(call.name, _check(call, 0), _check(call, 3)), 6)


def _qlinear_average(call: OnnxCall) -> Value:
    if call.get("channels_last", 0):
        raise GraphError("channels_last")
    x = _check(call, 0)
    return _made(call, call.builder.mean(call.name, x, list(range(2, len(x.axes))), True), 3)


def _qlinear_sigmoid(call: OnnxCall) -> Value:
    return _made(call, call.builder.elementwise(g.Sigmoid, call.name, _check(call, 0)), 3)


def _qlinear_concat(call: OnnxCall) -> Value:
    parts = [_check(call, at) for at in range(2, len(call.inputs), 3)]
    return _made(call, call.builder.concat(call.name, parts, int(call.get("axis", 1))), 0)


def _dynamic(call: OnnxCall) -> Value:
    raise GraphError("dynamic quantization has no ranges to carry; export the float model instead")


INTEGER_OPERATORS: dict[str, Callable[[OnnxCall], Value]] = {
    "QuantizeLinear": _quantize,
    "DequantizeLinear": _quantize,
    "QLinearConv": _qlinear_conv,
    "QLinearMatMul": _qlinear_matmul,
    "QGemm": _qgemm,
    "QLinearAdd": _qlinear_add,
    "QLinearMul": _qlinear_mul,
    "QLinearGlobalAveragePool": _qlinear_average,
    "QLinearSigmoid": _qlinear_sigmoid,
    "QLinearConcat": _qlinear_concat,
    "DynamicQuantizeLinear": _dynamic,
    "ConvInteger": _dynamic,
    "MatMulInteger": _dynamic,
}
