"""What a GraphDef computes from constants alone: batch normalization's factors, shapes, kernels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_resnet.errors import GraphError

__all__ = ["FOLDED", "evaluate"]

Array = NDArray[Any]
_LARGEST = 2**27  # elements; the largest classifier of a ResNet has a fiftieth of them


def _numbers(array: Array) -> list[int]:
    return [int(number) for number in array.reshape(-1)]


def _squeeze(x: Array, attributes: Mapping[str, Any]) -> Array:
    axes = tuple(int(n) for n in attributes.get("squeeze_dims") or ())
    return np.squeeze(x, axes or None)


def _strided_slice(x: Array, begin: Array, end: Array, step: Array, attributes: Mapping[str, Any]) -> Array:
    mask = {name: int(attributes.get(f"{name}_mask") or 0) for name in ("begin", "end", "ellipsis")}
    new, dropped = int(attributes.get("new_axis_mask") or 0), int(attributes.get("shrink_axis_mask") or 0)
    index: list[Any] = []
    for i, (first, last, by) in enumerate(zip(_numbers(begin), _numbers(end), _numbers(step), strict=True)):
        bit = 1 << i
        if mask["ellipsis"] & bit:
            index.append(Ellipsis)
        elif new & bit:
            index.append(None)
        elif dropped & bit:
            index.append(first)
        else:
            index.append(
                slice(None if mask["begin"] & bit else first, None if mask["end"] & bit else last, by)
            )
    return np.asarray(x[tuple(index)])


def _split(axis: Array, x: Array, attributes: Mapping[str, Any]) -> list[Array]:
    return np.split(x, int(attributes["num_split"]), int(axis))


def _plain(function: Callable[..., Any]) -> Callable[..., Any]:
    """An operator without attributes."""
    return lambda *inputs: function(*inputs[:-1])


FOLDED: dict[str, Callable[..., Any]] = {
    "Add": _plain(np.add),
    "AddV2": _plain(np.add),
    "BiasAdd": _plain(np.add),
    "BroadcastTo": _plain(lambda x, shape: np.broadcast_to(x, _numbers(shape))),
    "Cast": lambda x, attributes: x.astype(str(attributes["DstT"])),
    "ConcatV2": _plain(lambda *inputs: np.concatenate(inputs[:-1], int(inputs[-1]))),
    "Div": _plain(np.divide),
    "Exp": _plain(np.exp),
    "ExpandDims": _plain(lambda x, axis: np.expand_dims(x, int(axis))),
    "Fill": _plain(lambda shape, value: np.broadcast_to(value, _numbers(shape))),
    "FloorDiv": _plain(np.floor_divide),
    "GatherV2": _plain(lambda x, indices, axis: np.take(x, indices, int(axis))),
    "Identity": _plain(lambda x: x),
    "Maximum": _plain(np.maximum),
    "Minimum": _plain(np.minimum),
    "Mul": _plain(np.multiply),
    "Neg": _plain(np.negative),
    "Pack": lambda *inputs: np.stack(inputs[:-1], int(inputs[-1].get("axis") or 0)),
    "Pow": _plain(np.power),
    "Prod": lambda x, axes, attributes: np.prod(
        x, tuple(_numbers(axes)), dtype=x.dtype, keepdims=bool(attributes.get("keep_dims"))
    ),
    "RealDiv": _plain(np.divide),
    "Reciprocal": _plain(np.reciprocal),
    "Reshape": _plain(lambda x, shape: np.reshape(x, _numbers(shape))),
    "Rsqrt": _plain(lambda x: np.reciprocal(np.sqrt(x))),
    "Split": _split,
    "Sqrt": _plain(np.sqrt),
    "Square": _plain(np.square),
    "Squeeze": _squeeze,
    "StridedSlice": _strided_slice,
    "Sub": _plain(np.subtract),
    "Transpose": _plain(lambda x, order: np.transpose(x, _numbers(order))),
}

_ELEMENTWISE = [
    FOLDED[kind]
    for kind in (
        "Add",
        "AddV2",
        "BiasAdd",
        "Div",
        "FloorDiv",
        "Maximum",
        "Minimum",
        "Mul",
        "Pow",
        "RealDiv",
        "Sub",
    )
]


def evaluate(kind: str, inputs: Sequence[Array], attributes: Mapping[str, Any]) -> list[Array]:
    """The operator's outputs. Raises GraphError where it cannot be computed or would be huge."""
    function = FOLDED.get(kind)
    if function is None:
        raise GraphError("of constants")
    try:
        if function in _ELEMENTWISE:
            _check_size(np.broadcast_shapes(*(array.shape for array in inputs)))
        if kind == "GatherV2":
            _check_size((inputs[0].size, inputs[1].size))
        with np.errstate(all="ignore"):
            results = function(*inputs, attributes)
    except (ValueError, TypeError, IndexError, ArithmeticError, KeyError) as error:
        raise GraphError(f"it cannot be computed: {error}") from None
    return [np.asarray(result) for result in (results if isinstance(results, list) else [results])]


def _check_size(shape: Sequence[int]) -> None:
    size = 1
    for number in shape:
        size *= max(1, number)
    if size > _LARGEST:
        raise GraphError(f"a constant of {size:,} elements")
