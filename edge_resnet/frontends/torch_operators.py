"""One function for each aten operator of the family: an fx node becomes a graph node.

A function raises GraphError for a form of its operator that the graph cannot say.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from edge_resnet.errors import GraphError
from edge_resnet.graph import nodes as g

__all__ = ["IMPORTERS", "Importer"]

FxNode = torch.fx.Node


class Importer(Protocol):
    """What the functions use of the walk over the exported program. Shapes are without the batch axis."""

    nodes: list[g.Node]
    made: dict[FxNode, str]

    def source(self, fx: FxNode, index: int = 0) -> str:
        """Name of the graph node that an argument became."""
        ...

    def tensor(
        self, fx: FxNode, index: int, default: float | None = None, size: int = 0
    ) -> NDArray[np.float32]:
        """A parameter's values; where it is absent, `size` times `default`."""
        ...

    def add(self, fx: FxNode, make: Callable[[str], g.Node]) -> None:
        """Add the node that `make` builds with the name it is given."""
        ...

    def skip(self, fx: FxNode) -> None:
        """The operator does nothing at inference."""
        ...

    def shape(self, fx: FxNode) -> tuple[int, ...]:
        """Shape of an fx node's result."""
        ...


def _argument(fx: FxNode, index: int, default: Any) -> Any:
    return fx.args[index] if index < len(fx.args) else default


def _pair(value: Any) -> tuple[int, int]:
    values = (value, value) if isinstance(value, int) else tuple(value)
    if len(values) == 1:
        values *= 2
    return int(values[0]), int(values[1])


def _conv(importer: Importer, fx: FxNode) -> None:
    source, weight = importer.source(fx), importer.tensor(fx, 1)
    bias = importer.tensor(fx, 2, default=0.0, size=len(weight))
    stride, dilation = _pair(_argument(fx, 3, 1)), _pair(_argument(fx, 5, 1))
    padding = _argument(fx, 4, 0)
    if isinstance(padding, str):
        padding = _named_padding(padding, weight.shape[2:], dilation)
    else:
        padding = g.Padding.symmetric(*_pair(padding))
    importer.add(
        fx,
        lambda name: g.Conv(
            name=name,
            inputs=(source,),
            weights=g.FloatWeights(weight, bias),
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=int(_argument(fx, 6, 1)),
        ),
    )


def _named_padding(name: str, kernel: tuple[int, ...], dilation: tuple[int, int]) -> g.Padding:
    if name == "valid":
        return g.Padding()
    rows, columns = ((k - 1) * d for k, d in zip(kernel, dilation, strict=True))
    return g.Padding(rows // 2, columns // 2, rows - rows // 2, columns - columns // 2)


def _batch_norm(importer: Importer, fx: FxNode) -> None:
    source = importer.source(fx)
    if _argument(fx, 5, False):
        raise GraphError("batch normalization in training mode")
    mean, variance = importer.tensor(fx, 3), importer.tensor(fx, 4)
    gamma = importer.tensor(fx, 1, default=1.0, size=len(mean)).astype(np.float64)
    beta = importer.tensor(fx, 2, default=0.0, size=len(mean)).astype(np.float64)
    scale = gamma / np.sqrt(variance.astype(np.float64) + float(_argument(fx, 7, 1e-5)))
    shift = beta - mean * scale
    importer.add(
        fx,
        lambda name: g.BatchNorm(
            name=name, inputs=(source,), scale=scale.astype(np.float32), shift=shift.astype(np.float32)
        ),
    )


def _relu(importer: Importer, fx: FxNode) -> None:
    source = importer.source(fx)
    importer.add(fx, lambda name: g.Relu(name=name, inputs=(source,)))


def _add(importer: Importer, fx: FxNode) -> None:
    if fx.kwargs.get("alpha", 1) != 1:
        raise GraphError("a sum with alpha other than 1")
    sources = (importer.source(fx, 0), importer.source(fx, 1))
    importer.add(fx, lambda name: g.Add(name=name, inputs=sources))


def _max_pool(importer: Importer, fx: FxNode) -> None:
    source, kernel = importer.source(fx), _pair(fx.args[1])
    if _pair(_argument(fx, 4, 1)) != (1, 1):
        raise GraphError("max pooling with dilation")
    stride = _pair(_argument(fx, 2, None) or kernel)
    padding = g.Padding.symmetric(*_pair(_argument(fx, 3, 0)))
    if _argument(fx, 5, False):
        padding = padding + _ceil_padding(importer, fx, kernel, stride, padding)
    importer.add(
        fx,
        lambda name: g.MaxPool(name=name, inputs=(source,), kernel=kernel, stride=stride, padding=padding),
    )


def _ceil_padding(
    importer: Importer, fx: FxNode, kernel: tuple[int, int], stride: tuple[int, int], padding: g.Padding
) -> g.Padding:
    """The extra rows and columns at the end that ceil_mode makes room for."""
    source = fx.args[0]
    assert isinstance(source, FxNode)
    (_, height, width), (_, rows, columns) = importer.shape(source), importer.shape(fx)
    need = ((rows - 1) * stride[0] + kernel[0], (columns - 1) * stride[1] + kernel[1])
    have = (height + padding.top + padding.bottom, width + padding.left + padding.right)
    return g.Padding(bottom=max(0, need[0] - have[0]), right=max(0, need[1] - have[1]))


def _avg_pool(importer: Importer, fx: FxNode) -> None:
    source, kernel = importer.source(fx), _pair(fx.args[1])
    stride = _pair(_argument(fx, 2, None) or kernel)
    padding = _pair(_argument(fx, 3, 0))
    argument = fx.args[0]
    assert isinstance(argument, FxNode)
    height, width = importer.shape(argument)[1:]
    ragged = (height - kernel[0]) % stride[0] or (width - kernel[1]) % stride[1]
    if padding != (0, 0) or (_argument(fx, 4, False) and ragged) or _argument(fx, 6, None) is not None:
        raise GraphError("average pooling with padding, ragged ceil_mode or divisor_override")
    if kernel == (height, width):
        importer.add(fx, lambda name: g.GlobalAvgPool(name=name, inputs=(source,)))
    else:
        importer.add(fx, lambda name: g.AvgPool(name=name, inputs=(source,), kernel=kernel, stride=stride))


def _adaptive_avg_pool(importer: Importer, fx: FxNode) -> None:
    source, size = importer.source(fx), _pair(fx.args[1])
    argument = fx.args[0]
    assert isinstance(argument, FxNode)
    height, width = importer.shape(argument)[1:]
    if size == (1, 1):
        importer.add(fx, lambda name: g.GlobalAvgPool(name=name, inputs=(source,)))
    elif size == (height, width):
        importer.skip(fx)
    elif height % size[0] == 0 and width % size[1] == 0:
        kernel = (height // size[0], width // size[1])
        importer.add(fx, lambda name: g.AvgPool(name=name, inputs=(source,), kernel=kernel, stride=kernel))
    else:
        raise GraphError(f"adaptive average pooling from {height}x{width} to {size[0]}x{size[1]}")


def _mean(importer: Importer, fx: FxNode) -> None:
    """x.mean((2, 3)): global average pooling, with or without the two axes kept."""
    source, argument = importer.source(fx), fx.args[0]
    assert isinstance(argument, FxNode)
    rank = len(importer.shape(argument)) + 1
    axes = {axis % rank for axis in _argument(fx, 1, ()) or ()}
    if rank != 4 or axes != {2, 3}:
        raise GraphError("a mean over other axes than height and width")
    importer.add(fx, lambda name: g.GlobalAvgPool(name=name, inputs=(source,)))
    if not _argument(fx, 2, False):
        pooled = importer.made[fx]
        importer.add(fx, lambda name: g.Flatten(name=name, inputs=(pooled,)))


def _flatten(importer: Importer, fx: FxNode) -> None:
    source, argument = importer.source(fx), fx.args[0]
    assert isinstance(argument, FxNode)
    before, after = importer.shape(argument), importer.shape(fx)
    if before == after:
        importer.skip(fx)
    elif len(after) == 1 and len(before) == 3:
        importer.add(fx, lambda name: g.Flatten(name=name, inputs=(source,)))
    else:
        raise GraphError(f"a reshape from {before} to {after}")


def _linear(importer: Importer, fx: FxNode) -> None:
    source, weight = importer.source(fx), importer.tensor(fx, 1)
    bias = importer.tensor(fx, 2, default=0.0, size=len(weight))
    importer.add(fx, lambda name: g.Linear(name=name, inputs=(source,), weights=g.FloatWeights(weight, bias)))


def _pad(importer: Importer, fx: FxNode) -> None:
    source = importer.source(fx)
    amounts = [int(value) for value in fx.args[1]]  # type: ignore[union-attr,arg-type]
    mode, value = _argument(fx, 2, "constant"), _argument(fx, 3, None)
    if mode != "constant" or value not in (None, 0, 0.0):
        raise GraphError(f"padding in mode {mode!r} with value {value}")
    left, right, top, bottom, before, after = (amounts + [0] * 6)[:6]
    if any(amounts[6:]) or min(amounts) < 0:
        raise GraphError(f"padding by {amounts}")
    if before or after:
        importer.add(fx, lambda name: g.PadChannels(name=name, inputs=(source,), before=before, after=after))
        source = importer.made[fx]
    if any((left, right, top, bottom)):
        padding = g.Padding(top, left, bottom, right)
        importer.add(fx, lambda name: g.Pad(name=name, inputs=(source,), padding=padding))
    importer.made[fx] = importer.nodes[-1].name if any(amounts) else source


def _slice(importer: Importer, fx: FxNode) -> None:
    """x[:, :, ::s, ::s] comes as one slice an axis; each that takes everything is skipped."""
    source, argument = importer.source(fx), fx.args[0]
    assert isinstance(argument, FxNode)
    axis, start, end, step = (_argument(fx, i, d) for i, d in ((1, 0), (2, None), (3, None), (4, 1)))
    size = int(argument.meta["val"].shape[axis])
    if start not in (None, 0) or (end is not None and end < size):
        raise GraphError(f"a slice [{start}:{end}:{step}] of axis {axis}")
    if step == 1:
        importer.skip(fx)
    elif axis in (2, 3):
        _subsample(importer, fx, source, axis, step)
    else:
        raise GraphError(f"a slice [{start}:{end}:{step}] of axis {axis}")


def _subsample(importer: Importer, fx: FxNode, source: str, axis: int, step: int) -> None:
    """Rows, then columns: the second slice joins the first when nothing else reads it."""
    argument = fx.args[0]
    assert isinstance(argument, FxNode)
    last = importer.nodes[-1]
    if axis == 3 and isinstance(last, g.Subsample) and last.name == source and len(argument.users) == 1:
        importer.nodes[-1] = g.Subsample(name=last.name, inputs=last.inputs, stride=(last.stride[0], step))
        importer.made[fx] = last.name
        return
    stride = (step, 1) if axis == 2 else (1, step)
    importer.add(fx, lambda name: g.Subsample(name=name, inputs=(source,), stride=stride))


IMPORTERS: dict[str, Callable[[Importer, FxNode], None]] = {
    "aten.conv2d.default": _conv,
    "aten.conv2d.padding": _conv,
    "aten.batch_norm.default": _batch_norm,
    "aten.relu.default": _relu,
    "aten.relu_.default": _relu,
    "aten.add.Tensor": _add,
    "aten.add_.Tensor": _add,
    "aten.max_pool2d.default": _max_pool,
    "aten.avg_pool2d.default": _avg_pool,
    "aten.adaptive_avg_pool2d.default": _adaptive_avg_pool,
    "aten.mean.dim": _mean,
    "aten.flatten.using_ints": _flatten,
    "aten.view.default": _flatten,
    "aten.reshape.default": _flatten,
    "aten.linear.default": _linear,
    "aten.pad.default": _pad,
    "aten.slice.Tensor": _slice,
    "aten.dropout.default": lambda importer, fx: importer.skip(fx),
    "aten.dropout_.default": lambda importer, fx: importer.skip(fx),
    "aten.feature_dropout.default": lambda importer, fx: importer.skip(fx),
    "aten.clone.default": lambda importer, fx: importer.skip(fx),
    "aten.contiguous.default": lambda importer, fx: importer.skip(fx),
    "aten.alias.default": lambda importer, fx: importer.skip(fx),
}
