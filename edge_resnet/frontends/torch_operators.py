"""One function for each aten operator of the family: what an fx node does, said to the GraphBuilder.

A function returns the operator's result (a list for one that has several) and raises GraphError for a form of
it that the graph cannot say.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edge_resnet.errors import GraphError
from edge_resnet.frontends.builder import GraphBuilder, WindowPadding
from edge_resnet.frontends.values import Value, reshaped, squeezed, transposed, unsqueezed
from edge_resnet.graph import nodes as g

__all__ = ["OPERATORS", "Call"]

FxNode = torch.fx.Node
Result = Value | list[Value] | int


@dataclass(frozen=True)
class Call:
    """One call of the exported program: arguments are numbers, Values, or tensors made of parameters."""

    builder: GraphBuilder
    name: str
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]

    def get(self, index: int, default: Any = None) -> Any:
        return self.arguments[index] if index < len(self.arguments) else default

    def value(self, index: int = 0) -> Value:
        argument = self.get(index)
        if not isinstance(argument, Value):
            raise GraphError(f"argument {index} is not a tensor that the image flows through")
        return argument

    def constant(self, index: int) -> NDArray[np.float32] | None:
        """A parameter, or None where there is none."""
        argument = self.get(index)
        if argument is None:
            return None
        if isinstance(argument, Value):
            raise GraphError(f"argument {index} depends on the image; it must be a parameter of the model")
        return np.asarray(torch.as_tensor(argument).detach().float().numpy())

    def weight(self, index: int) -> NDArray[np.float32]:
        weight = self.constant(index)
        if weight is None:
            raise GraphError(f"argument {index} is missing")
        return weight


def _pair(value: Any) -> tuple[int, int]:
    values = (value, value) if isinstance(value, int) else tuple(value)
    if len(values) == 1:
        values *= 2
    return int(values[0]), int(values[1])


def _along(value: Any, rank: int, other: int) -> tuple[int, int]:
    """A pair for a two-dimensional window; a one-dimensional one has `other` along the axis it lacks."""
    if rank == 2:
        return _pair(value)
    return int(value if isinstance(value, int) else value[0]), other


def _conv(call: Call) -> Value:
    weight = call.weight(1)
    rank = weight.ndim - 2
    padding: WindowPadding
    if isinstance(call.get(4, 0), str):
        padding = str(call.get(4))
    else:
        padding = g.Padding.symmetric(*_along(call.get(4, 0), rank, 0))
    return call.builder.conv(
        call.name,
        call.value(),
        weight,
        call.constant(2),
        stride=_along(call.get(3, 1), rank, 1),
        padding=padding,
        dilation=_along(call.get(5, 1), rank, 1),
        groups=int(call.get(6, 1)),
    )


def _batch_norm(call: Call) -> Value:
    if call.get(5, False):
        raise GraphError("batch normalization in training mode")
    mean, variance = call.weight(3).astype(np.float64), call.weight(4).astype(np.float64)
    gamma, beta = call.constant(1), call.constant(2)
    scale = (1.0 if gamma is None else gamma.astype(np.float64)) / np.sqrt(
        variance + float(call.get(7, 1e-5))
    )
    shift = (0.0 if beta is None else beta.astype(np.float64)) - mean * scale
    shape = (1, -1) + (1,) * (len(call.value().axes) - 2)
    return call.builder.affine(call.name, call.value(), scale.reshape(shape), np.reshape(shift, shape))


def _arithmetic(kind: str) -> Callable[[Call], Result]:
    def run(call: Call) -> Value:
        if call.keywords.get("alpha", 1) != 1:
            raise GraphError("a sum with alpha other than 1")
        sides = [
            value if isinstance(value, Value) else call.weight(at)
            for at, value in enumerate(call.arguments[:2])
        ]
        return call.builder.arithmetic(kind, call.name, *sides)

    return run


def _max_pool(call: Call) -> Value:
    if _pair(call.get(4, 1)) != (1, 1):
        raise GraphError("max pooling with dilation")
    kernel = _pair(call.get(1))
    padding = g.Padding.symmetric(*_pair(call.get(3, 0)))
    stride = _pair(call.get(2) or kernel)
    return call.builder.max_pool(call.name, call.value(), kernel, stride, padding, bool(call.get(5, False)))


def _avg_pool(call: Call) -> Value:
    kernel = _pair(call.get(1))
    if call.get(6) is not None:
        raise GraphError("average pooling with a divisor of its own")
    return call.builder.average_pool(
        call.name,
        call.value(),
        kernel,
        _pair(call.get(2) or kernel),
        g.Padding.symmetric(*_pair(call.get(3, 0))),
        ceil=bool(call.get(4, False)),
        counts_padding=bool(call.get(5, True)),
    )


def _mean(call: Call) -> Value:
    axes = call.get(1) or range(1, len(call.value().axes))
    return call.builder.mean(call.name, call.value(), list(axes), bool(call.get(2, False)))


def _flatten(call: Call) -> Value:
    value = call.value()
    shape = list(value.shape)
    first, last = (int(n) % len(shape) for n in (call.get(1, 0), call.get(2, -1)))
    return reshaped(value, [*shape[:first], -1, *shape[last + 1 :]])


def _pad(call: Call) -> Value:
    amounts = [int(value) for value in call.get(1)]
    mode, fill = call.get(2, "constant"), call.get(3)
    if mode not in ("constant", "reflect") or fill not in (None, 0, 0.0):
        raise GraphError(f"padding in mode {mode!r} with value {fill}")
    return _bordered(call, amounts, reflect=mode == "reflect")


def _constant_pad(call: Call) -> Value:
    if call.get(2, 0) != 0:
        raise GraphError(f"padding with value {call.get(2)}")
    return _bordered(call, [int(value) for value in call.get(1)])


def _bordered(call: Call, amounts: Sequence[int], reflect: bool = False) -> Value:
    """torch lists its amounts from the last axis on."""
    rank = len(call.value().axes)
    pairs = [(amounts[i], amounts[i + 1]) for i in range(0, len(amounts), 2)]
    by_axis = [*[(0, 0)] * (rank - len(pairs)), *reversed(pairs)]
    return call.builder.pad(call.name, call.value(), by_axis, reflect=reflect)


def _slice(call: Call) -> Value:
    start, stop = call.get(2), call.get(3)
    return call.builder.slice(
        call.name, call.value(), int(call.get(1, 0)), start or 0, stop, int(call.get(4, 1))
    )


def _split(call: Call) -> list[Value]:
    """split(x, size or sizes, axis)."""
    value, sizes, axis = call.value(), call.get(1), int(call.get(2, 0))
    total = value.shape[axis]
    if isinstance(sizes, int):
        sizes = [min(sizes, total - start) for start in range(0, total, sizes)]
    return _parts(call, value, [int(size) for size in sizes], axis)


def _chunk(call: Call) -> list[Value]:
    value, axis = call.value(), int(call.get(2, 0))
    total = value.shape[axis]
    size = -(-total // int(call.get(1)))
    return _parts(call, value, [min(size, total - start) for start in range(0, total, size)], axis)


def _parts(call: Call, value: Value, sizes: list[int], axis: int) -> list[Value]:
    ends = np.cumsum(sizes).tolist()
    return [
        call.builder.slice(f"{call.name}/{number}", value, axis, end - size, end)
        for number, (size, end) in enumerate(zip(sizes, ends, strict=True))
    ]


def _getitem(call: Call) -> Value:
    parts, index = call.arguments
    if not isinstance(parts, list):
        raise GraphError("an element of what is no list of tensors")
    value: Value = parts[index]
    return value


def _cat(call: Call) -> Value:
    parts = call.get(0)
    if not all(isinstance(part, Value) for part in parts):
        raise GraphError("a concatenation with a constant")
    return call.builder.concat(call.name, parts, int(call.get(1, 0)))


def _stack(call: Call) -> Value:
    raise GraphError("branches on an axis of their own, as selective kernels (SK) have for their softmax")


def _transpose(call: Call) -> Value:
    order = list(range(len(call.value().axes)))
    first, second = (int(n) % len(order) for n in call.arguments[1:3])
    order[first], order[second] = order[second], order[first]
    return transposed(call.value(), order)


def _squeeze(call: Call) -> Value:
    axes = call.get(1)
    numbers = None if axes is None else [axes] if isinstance(axes, int) else list(axes)
    value = call.value()
    if numbers is not None:  # torch leaves an axis of more than one element as it is
        numbers = [number for number in numbers if value.shape[number] == 1]
    return squeezed(value, numbers)


def _expand(call: Call) -> Value:
    """A product that follows broadcasts in any case; here it only must not do more than that."""
    target = call.get(1)
    shape = list(target.shape) if isinstance(target, Value) else [int(size) for size in target]
    if len(shape) != len(call.value().axes):
        raise GraphError(f"an expansion from {list(call.value().shape)} to {shape}")
    return call.value()


def _softmax(call: Call) -> Value:
    return call.builder.softmax(call.value(), int(call.get(1)))


def _same(call: Call) -> Value:
    """The operator does nothing at inference."""
    return call.value()


def _clip(call: Call) -> Value:
    return call.builder.clip(call.name, call.value(), call.get(1, -1.0), call.get(2, 1.0))


def _unary(kind: type[g.Node]) -> Callable[[Call], Result]:
    return lambda call: call.builder.elementwise(kind, call.name, call.value())


def _gated(kind: type[g.Node]) -> Callable[[Call], Result]:
    return lambda call: call.builder.gated(kind, call.name, call.value())


_BY_NAME: dict[str, Callable[[Call], Result]] = {
    "conv1d.default": _conv,
    "conv2d.default": _conv,
    "conv2d.padding": _conv,
    "batch_norm.default": _batch_norm,
    "relu.default": lambda call: call.builder.relu(call.name, call.value()),
    "relu6.default": lambda call: call.builder.clip(call.name, call.value(), 0.0, 6.0),
    "hardtanh.default": _clip,
    "clamp.default": lambda call: call.builder.clip(call.name, call.value(), call.get(1), call.get(2)),
    "clamp_min.default": lambda call: call.builder.clip(call.name, call.value(), call.get(1), None),
    "sigmoid.default": _unary(g.Sigmoid),
    "hardsigmoid.default": _unary(g.HardSigmoid),
    "silu.default": _gated(g.Sigmoid),
    "hardswish.default": _gated(g.HardSigmoid),
    "add.Tensor": _arithmetic("add"),
    "mul.Tensor": _arithmetic("mul"),
    "sub.Tensor": _arithmetic("sub"),
    "div.Tensor": _arithmetic("div"),
    "max_pool2d.default": _max_pool,
    "avg_pool2d.default": _avg_pool,
    "adaptive_avg_pool2d.default": lambda call: call.builder.adaptive_average_pool(
        call.name, call.value(), _pair(call.get(1))
    ),
    "mean.dim": _mean,
    "flatten.using_ints": _flatten,
    "view.default": lambda call: reshaped(call.value(), call.get(1)),
    "reshape.default": lambda call: reshaped(call.value(), call.get(1)),
    "squeeze.default": _squeeze,
    "squeeze.dim": _squeeze,
    "squeeze.dims": _squeeze,
    "unsqueeze.default": lambda call: unsqueezed(call.value(), [int(call.get(1))]),
    "permute.default": lambda call: transposed(call.value(), call.get(1)),
    "transpose.int": _transpose,
    "expand.default": _expand,
    "expand_as.default": _expand,
    "linear.default": lambda call: call.builder.linear(
        call.name, call.value(), call.weight(1), call.constant(2)
    ),
    "pad.default": _pad,
    "constant_pad_nd.default": _constant_pad,
    "reflection_pad2d.default": lambda call: _bordered(call, call.get(1), reflect=True),
    "slice.Tensor": _slice,
    "split.Tensor": _split,
    "split_with_sizes.default": _split,
    "chunk.default": _chunk,
    "cat.default": _cat,
    "stack.default": _stack,
    "softmax.int": _softmax,
    "sym_size.int": lambda call: call.value().shape[int(call.get(1))],
    "dropout.default": _same,
    "feature_dropout.default": _same,
    "clone.default": _same,
    "contiguous.default": _same,
    "alias.default": _same,
    "detach.default": _same,
    "to.dtype": _same,
}
# In place or not, an operator is the same function.
_IN_PLACE = (
    "relu",
    "relu6",
    "hardtanh",
    "sigmoid",
    "hardsigmoid",
    "silu",
    "hardswish",
    "add",
    "mul",
    "sub",
    "div",
)

OPERATORS: dict[Any, Callable[[Call], Result]] = {f"aten.{name}": made for name, made in _BY_NAME.items()}
OPERATORS |= {
    f"aten.{name.replace('.', '_.', 1)}": made
    for name, made in _BY_NAME.items()
    if name.partition(".")[0] in (*_IN_PLACE, "dropout", "clamp", "clamp_min", "squeeze")
}
OPERATORS[str(operator.getitem)] = _getitem
