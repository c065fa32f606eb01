"""TensorFlow's convolutions: plain, grouped, depthwise, and dilated in its roundabout way."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from numpy.typing import NDArray

from edge_resnet.errors import GraphError
from edge_resnet.frontends.keras_call import Blocks, Item, TensorflowCall
from edge_resnet.frontends.values import Value
from edge_resnet.graph import nodes as g

__all__ = ["batch_to_space", "conv", "depthwise", "space_to_batch"]

Array = NDArray[Any]


def conv(call: TensorflowCall) -> Item:
    """The kernel is [rows, columns, in / groups, out]."""
    kernel = call.constant(1)
    if kernel.ndim != 4:
        raise GraphError(f"a kernel of shape {list(kernel.shape)}")
    return _convolved(call, kernel.transpose(3, 2, 0, 1), kernel.shape[2])


def depthwise(call: TensorflowCall) -> Item:
    """The kernel is [rows, columns, in, multiplier]; output channel c * multiplier + m reads channel c."""
    kernel = call.constant(1)
    if kernel.ndim != 4:
        raise GraphError(f"a kernel of shape {list(kernel.shape)}")
    rows, columns, channels, multiplier = kernel.shape
    weight = kernel.reshape(rows, columns, channels * multiplier).transpose(2, 0, 1)[:, None]
    return _convolved(call, weight, 1)


def _convolved(call: TensorflowCall, weight: Array, per_group: int) -> Item:
    source = call.inputs[0]
    stride, dilation = call.window("strides"), call.window("dilations")
    if isinstance(source, Blocks):
        if source.weight is not None or stride != (1, 1) or dilation != (1, 1) or call.padding() != "valid":
            raise GraphError("a dilated convolution of an unknown form")
        return replace(source, weight=weight, groups=source.value.shape[-1] // per_group)
    x = call.image()
    groups, rest = divmod(x.shape[-1], per_group)
    if rest:
        raise GraphError(f"a kernel for {per_group} channels on {x.shape[-1]}")
    made = call.builder.conv(
        call.name, x, weight, stride=stride, padding=call.padding(), dilation=dilation, groups=groups
    )
    return call.as_format(made)


def space_to_batch(call: TensorflowCall) -> Blocks:
    block, pads = call.numbers(1), call.numbers(2)
    if len(block) != 2 or len(pads) != 4:
        raise GraphError(f"blocks {block}")
    return Blocks(call.value(), (block[0], block[1]), ((pads[0], pads[1]), (pads[2], pads[3])))


def batch_to_space(call: TensorflowCall) -> Value:
    source, crops = call.inputs[0], call.numbers(2)
    if not isinstance(source, Blocks) or source.weight is None or call.numbers(1) != list(source.block):
        raise GraphError("it does not end a dilated convolution")
    (top, bottom), (left, right) = source.padding
    padding = g.Padding(top - crops[0], left - crops[2], bottom - crops[1], right - crops[3])
    return call.builder.conv(
        call.name, source.value, source.weight, padding=padding, dilation=source.block, groups=source.groups
    )
