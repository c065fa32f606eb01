"""One function for each TensorFlow operator of the family: a GraphDef node, said to the GraphBuilder.

A function returns the operator's outputs and raises GraphError for a form of it that the graph cannot say.
Nothing here imports TensorFlow. What TensorFlow says in several operators and the graph in one node (a
dilated convolution, a clip, a hard sigmoid) is recognized when its last operator comes; nodes that nothing
reads then are dropped by the builder.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_resnet.errors import GraphError
from edge_resnet.frontends.builder import affine_of
from edge_resnet.frontends.keras_call import Below, Result, TensorflowCall
from edge_resnet.frontends.keras_convolutions import batch_to_space, conv, depthwise, space_to_batch
from edge_resnet.frontends.keras_slices import (
    reversed_channels,
    split,
    split_by_sizes,
    stacked,
    strided_slice,
)
from edge_resnet.frontends.values import Value, reshaped, squeezed, transposed, unsqueezed
from edge_resnet.graph import nodes as g

__all__ = ["OPERATORS"]

Array = NDArray[Any]


def _bias(call: TensorflowCall) -> Value:
    """Into the convolution or the fully connected layer before, where only this reads it."""
    x, bias = call.value(), call.constant(1)
    node = call.node(x.node)
    plain = x.flat is None and not x.softmax and x.axis(-1 if call.channels_last else 1) == 1
    if (
        call.alone
        and plain
        and isinstance(node, g.Conv | g.Linear)
        and isinstance(node.weights, g.FloatWeights)
        and node.weights.bias.shape == bias.shape
    ):
        weights = g.FloatWeights(node.weights.weight, node.weights.bias + bias.astype(np.float32))
        return replace(x, node=_copy(call, node, weights=weights))
    if not call.channels_last:
        bias = bias.reshape(-1, 1, 1)
    return _affine(call, x, np.ones((), np.float32), bias)


def _copy(call: TensorflowCall, node: g.Node, **changes: Any) -> str:
    """A second form of a node under this operator's name."""
    known = {field.name: getattr(node, field.name) for field in fields(node)}
    known.update(changes)
    inputs = known.pop("inputs")
    known.pop("name")
    return call.builder.add(type(node), call.name, *inputs, **known).node


def _affine(call: TensorflowCall, x: Value, scale: Array, shift: Array) -> Value:
    """scale * x + shift; a chain becomes one node, and the image's own normalization takes it in."""
    made = call.builder.affine(call.name, x, scale, shift)
    if made.node == x.node or not call.alone:
        return made
    new, old = call.node(made.node), call.node(x.node)
    assert isinstance(new, g.BatchNorm)
    factor, offset = new.scale.astype(np.float64), new.shift.astype(np.float64)
    if isinstance(old, g.BatchNorm):
        merged_scale, merged_shift = old.scale * factor, old.shift * factor + offset
        changes: dict[str, Any] = {"scale": merged_scale, "shift": merged_shift}
    elif isinstance(old, g.Normalize) and (factor > 0).all():
        changes = {"mean": old.mean - offset * old.std / factor, "std": old.std / factor}
    else:
        return made
    changes = {key: np.asarray(value, np.float32) for key, value in changes.items()}
    return replace(x, node=_copy(call, old, **changes))


def _arithmetic(kind: str) -> Callable[[TensorflowCall], Value]:
    """Of two tensors, or of one and a constant; (relu6(x + 3)) / 6 is recognized."""

    def run(call: TensorflowCall) -> Value:
        sides = [
            value if isinstance(value, Value) else call.constant(at)
            for at, value in enumerate(call.inputs[:2])
        ]
        if all(isinstance(side, Value) for side in sides):
            return call.builder.arithmetic(kind, call.name, *sides)
        x, scale, shift = affine_of(kind, *sides)
        if kind in ("mul", "div") and scale.size == 1:
            gate = _hard_sigmoid(call, x, float(scale.reshape(())))
            if gate is not None:
                return gate
        return _affine(call, x, scale, shift)

    return run


def _hard_sigmoid(call: TensorflowCall, x: Value, factor: float) -> Value | None:
    """relu6(z + 3) / 6, which is how Keras says it."""
    relu = call.node(x.node)
    if (
        x.softmax
        or not isinstance(relu, g.Relu)
        or relu.activation is not g.Activation.RELU6
        or abs(factor * 6 - 1) > 1e-5
    ):
        return None
    norm = call.node(relu.inputs[0])
    if not isinstance(norm, g.BatchNorm):
        return None
    if (norm.scale == 1).all() and (norm.shift == 3).all():
        source = norm.inputs[0]
    else:
        source = call.builder.add(
            g.BatchNorm, f"{call.name}/scaled", norm.inputs[0], scale=norm.scale, shift=norm.shift - 3
        ).node
    return replace(x, node=call.builder.add(g.HardSigmoid, call.name, source).node)


def _limit(call: TensorflowCall) -> tuple[Value | Below, float]:
    at = 1 if isinstance(call.inputs[0], np.ndarray) else 0
    limit, value = call.constant(1 - at), call.inputs[at]
    if limit.size != 1 or not isinstance(value, Value | Below):
        raise GraphError("a limit that is not one number")
    return value, float(limit.reshape(()))


def _minimum(call: TensorflowCall) -> Value | Below:
    value, high = _limit(call)
    if isinstance(value, Below):
        return Below(value.value, min(high, value.high))
    node = call.node(value.node)
    if isinstance(node, g.Relu) and node.activation is g.Activation.RELU:
        return call.builder.clip(call.name, replace(value, node=node.inputs[0]), 0.0, high)
    return Below(value, high)


def _maximum(call: TensorflowCall) -> Value:
    value, low = _limit(call)
    if isinstance(value, Below):
        return call.builder.clip(call.name, value.value, low, value.high)
    if low == 0 and isinstance(call.node(value.node), g.Relu):
        return value
    return call.builder.clip(call.name, value, low, None)


def _clip(call: TensorflowCall) -> Value:
    low, high = (float(call.constant(i).reshape(())) for i in (1, 2))
    return call.builder.clip(call.name, call.value(), low, high)


def _batch_norm(call: TensorflowCall) -> Value:
    if call.get("is_training"):
        raise GraphError("batch normalization in training mode")
    gamma, beta, mean, variance = (call.constant(i).astype(np.float64) for i in range(1, 5))
    scale = gamma / np.sqrt(variance + float(call.get("epsilon", 1e-4)))
    shift = beta - mean * scale
    shape = (-1,) if call.channels_last else (-1, 1, 1)
    return _affine(call, call.value(), scale.reshape(shape), shift.reshape(shape))


def _max_pool(call: TensorflowCall) -> Value:
    made = call.builder.max_pool(
        call.name, call.image(), call.window("ksize"), call.window("strides"), call.padding()
    )
    return call.as_format(made)


def _average_pool(call: TensorflowCall) -> Value:
    kernel, stride = call.window("ksize"), call.window("strides")
    made = call.builder.average_pool(
        call.name, call.image(), kernel, stride, call.padding(), counts_padding=False
    )
    return call.as_format(made)


def _mean(call: TensorflowCall) -> Value:
    return call.builder.mean(call.name, call.value(), call.numbers(1), bool(call.get("keep_dims")))


def _max(call: TensorflowCall) -> Value:
    """The maximum over rows and columns: max pooling with the whole image as window."""
    x, numbers = call.value(), call.numbers(1)
    if x.softmax or sorted(x.axis(number) for number in numbers) != [2, 3] or len(x.axes) != 4:
        raise GraphError("a maximum over other axes than rows and columns")
    kernel = (x.size[2], x.size[3])
    pooled = call.builder.add(g.MaxPool, call.name, x.node, kernel=kernel, stride=kernel)
    pooled = replace(pooled, axes=x.axes)
    return pooled if call.get("keep_dims") else squeezed(pooled, numbers)


def _matmul(call: TensorflowCall) -> Value:
    weight = call.constant(1)
    if weight.ndim != 2 or call.get("transpose_a") or call.get("adj_x"):
        raise GraphError(f"a product with a constant of shape {list(weight.shape)}")
    turned = call.get("transpose_b") or call.get("adj_y")
    return call.builder.linear(call.name, call.value(), weight if turned else weight.T)


def _pad(call: TensorflowCall) -> Value:
    mode = call.get("mode")
    fill = call.constant(2) if len(call.inputs) > 2 else np.zeros(())
    if mode not in (None, "REFLECT") or fill.any():
        raise GraphError(f"padding in mode {mode} with value {fill}")
    amounts = [(int(before), int(behind)) for before, behind in call.constant(1)]
    return call.builder.pad(call.name, call.value(), amounts, reflect=mode == "REFLECT")


def _concat(call: TensorflowCall) -> Value:
    *parts, axis = range(len(call.inputs))
    return call.builder.concat(call.name, [call.value(i) for i in parts], call.numbers(axis)[0])


def _stack(call: TensorflowCall) -> Value:
    parts = [call.value(i) for i in range(len(call.inputs))]
    return stacked(call.builder, call.name, parts, int(call.get("axis") or 0))


def _cast(call: TensorflowCall) -> Value:
    """Bytes to floats, or a float type to another: the graph knows only numbers."""
    if not str(call.get("DstT")).startswith(("float", "half", "bfloat", "double")):
        raise GraphError(f"a cast to {call.get('DstT')}")
    return call.value()


def _reverse(call: TensorflowCall) -> Value:
    numbers = call.numbers(1)
    if [call.value().axis(number) for number in numbers] != [1]:
        raise GraphError("a reversal of other axes than the channels")
    return reversed_channels(call.builder, call.name, call.value())


def _identity_of_several(call: TensorflowCall) -> list[Value]:
    """Keras' custom gradients: only the first result is ever read."""
    return [call.value()]


def _strided_slice(call: TensorflowCall) -> Value:
    begin, end, step = (call.numbers(i) for i in (1, 2, 3))
    masks = {name: int(call.get(f"{name}_mask", 0)) for name in ("begin", "end", "ellipsis", "shrink_axis")}
    if call.get("new_axis_mask"):
        raise GraphError("an index that adds an axis")
    return strided_slice(call.builder, call.name, call.value(), (begin, end, step), masks)


OPERATORS: dict[str, Callable[[TensorflowCall], Result]] = {
    "Add": _arithmetic("add"),
    "AddV2": _arithmetic("add"),
    "AvgPool": _average_pool,
    "BatchToSpaceND": batch_to_space,
    "BiasAdd": _bias,
    "Cast": _cast,
    "ClipByValue": _clip,
    "ConcatV2": _concat,
    "Conv2D": conv,
    "DepthwiseConv2dNative": depthwise,
    "Div": _arithmetic("div"),
    "ExpandDims": lambda call: unsqueezed(call.value(), call.numbers(1)),
    "FusedBatchNorm": _batch_norm,
    "FusedBatchNormV2": _batch_norm,
    "FusedBatchNormV3": _batch_norm,
    "Identity": lambda call: call.inputs[0],
    "IdentityN": _identity_of_several,
    "MatMul": _matmul,
    "BatchMatMulV2": _matmul,
    "Max": _max,
    "MaxPool": _max_pool,
    "Maximum": _maximum,
    "Mean": _mean,
    "Minimum": _minimum,
    "MirrorPad": _pad,
    "Mul": _arithmetic("mul"),
    "Neg": lambda call: _affine(call, call.value(), np.asarray(-1.0), np.zeros(())),
    "Pack": _stack,
    "Pad": _pad,
    "PadV2": _pad,
    "PreventGradient": lambda call: call.value(),
    "RealDiv": _arithmetic("div"),
    "Relu": lambda call: call.builder.relu(call.name, call.value()),
    "Relu6": lambda call: call.builder.clip(call.name, call.value(), 0.0, 6.0),
    "Reshape": lambda call: reshaped(call.value(), call.numbers(1)),
    "ReverseV2": _reverse,
    "Sigmoid": lambda call: call.builder.elementwise(g.Sigmoid, call.name, call.value()),
    "Softmax": lambda call: call.builder.softmax(call.value(), -1),
    "SpaceToBatchND": space_to_batch,
    "Split": lambda call: split(
        call.builder, call.name, call.value(1), call.numbers(0)[0], int(call.get("num_split"))
    ),
    "SplitV": lambda call: split_by_sizes(
        call.builder, call.name, call.value(), call.numbers(2)[0], call.numbers(1)
    ),
    "Squeeze": lambda call: squeezed(call.value(), [int(n) for n in call.get("squeeze_dims") or []] or None),
    "StopGradient": lambda call: call.value(),
    "StridedSlice": _strided_slice,
    "Sub": _arithmetic("sub"),
    "Transpose": lambda call: transposed(call.value(), call.numbers(1)),
}
