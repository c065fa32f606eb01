"""GraphBuilder's operators on windows and parts of images: pooling, padding, slicing, concatenation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from edge_resnet.errors import GraphError
from edge_resnet.frontends.node_builder import NodeBuilder
from edge_resnet.frontends.values import Value
from edge_resnet.graph import nodes as g

__all__ = ["WindowBuilder", "WindowPadding"]

WindowPadding = g.Padding | str
"""Zeros around a window's image, or TensorFlow's and ONNX's words: valid, same (the odd one behind) or
same_lower (the odd one in front)."""


class WindowBuilder(NodeBuilder):
    """The part of GraphBuilder that needs no weights."""

    def max_pool(
        self,
        name: str,
        x: Value,
        kernel: tuple[int, int],
        stride: tuple[int, int],
        padding: WindowPadding = g.Padding(),  # noqa: B008
        ceil: bool = False,
    ) -> Value:
        source = self.on_image(replace(x, border=None), name)
        pad = self._padding(source, padding, kernel, stride) + (x.border or g.Padding())
        if ceil:  # windows that begin inside the image: the padding never wins, so it may grow
            pad = pad + _ceil_padding(source, kernel, stride, pad)
        made = self.add(g.MaxPool, name, source.node, kernel=kernel, stride=stride, padding=pad)
        return replace(made, axes=source.axes)

    def average_pool(
        self,
        name: str,
        x: Value,
        kernel: tuple[int, int],
        stride: tuple[int, int],
        padding: WindowPadding = g.Padding(),  # noqa: B008
        *,
        ceil: bool = False,
        counts_padding: bool = True,
    ) -> Value:
        """Mean over windows; where zeros count, they are added before."""
        source = self.on_image(x, name)
        pad = self._padding(source, padding, kernel, stride)
        if ceil and any(_clipped_ceil(source, kernel, stride, pad)):
            raise GraphError("average pooling over windows that reach beyond the image (ceil_mode)")
        if pad and not counts_padding:
            raise GraphError("average pooling that leaves its padding out of the mean")
        if pad:
            source = replace(self.add(g.Pad, f"{name}/pad", source.node, padding=pad), axes=source.axes)
        rows, columns = source.size[2:]
        if kernel == (rows, columns):
            made = self.add(g.GlobalAvgPool, name, source.node)
        elif kernel == (1, 1):
            made = source if stride == (1, 1) else self.add(g.Subsample, name, source.node, stride=stride)
        else:
            made = self.add(g.AvgPool, name, source.node, kernel=kernel, stride=stride)
        return replace(made, axes=source.axes)

    def adaptive_average_pool(self, name: str, x: Value, size: tuple[int, int]) -> Value:
        source = self.on_image(x, name)
        rows, columns = source.size[2:]
        if size == (rows, columns):
            return x
        if rows % size[0] or columns % size[1]:
            raise GraphError(f"adaptive average pooling from {rows}x{columns} to {size[0]}x{size[1]}")
        kernel = (rows // size[0], columns // size[1])
        return self.average_pool(name, source, kernel, kernel)

    def mean(self, name: str, x: Value, axes: Sequence[int], keep: bool) -> Value:
        """The mean over rows and columns; axes of one element change nothing."""
        self._check(x)
        over = {x.axis(number) for number in axes}
        large = {axis for axis in over if x.size[axis] != 1}
        spatial = {axis for axis in (2, 3) if x.size[axis] != 1}
        value = x
        # An average of one position may still have parameters of its own.
        if large or (self.quants and over == {2, 3} and len(self._shapes[x.node]) == 3):
            if large != spatial or 0 in over:
                raise GraphError("a mean over other axes than rows and columns")
            value = replace(self.add(g.GlobalAvgPool, name, x.node), axes=x.axes)
        if keep:
            return value
        dropped = {number % len(x.axes) for number in axes}
        return replace(value, axes=tuple(a for i, a in enumerate(x.axes) if i not in dropped))

    def pad(self, name: str, x: Value, amounts: Sequence[tuple[int, int]], *, reflect: bool = False) -> Value:
        """Zeros (or the mirrored image) around a tensor; `amounts` are before and behind, for each axis."""
        self._check(x)
        by_axis = {x.axis(number): amount for number, amount in enumerate(amounts)}
        nothing = (0, 0)
        if by_axis.get(0, nothing) != nothing or any(n < 0 for amount in amounts for n in amount):
            raise GraphError(f"padding by {list(amounts)}")
        value = x
        before, after = by_axis.get(1, nothing)
        if before or after:
            if reflect:
                raise GraphError("channels that are padded with themselves")
            value = self.add(g.PadChannels, name, x.node, before=before, after=after)
        (top, bottom), (left, right) = by_axis.get(2, nothing), by_axis.get(3, nothing)
        padding = g.Padding(top, left, bottom, right)
        if padding:
            mode = g.PadMode.REFLECT if reflect else g.PadMode.ZERO
            value = self.add(g.Pad, name, value.node, padding=padding, mode=mode)
        return replace(value, axes=x.axes)

    def pad_for_maximum(self, x: Value, amounts: Sequence[tuple[int, int]]) -> Value:
        """A border that never wins; the maximum that reads it takes it as its own padding."""
        self._check(x)
        by_axis = {x.axis(number): amount for number, amount in enumerate(amounts)}
        if by_axis.get(0, (0, 0)) != (0, 0) or by_axis.get(1, (0, 0)) != (0, 0):
            raise GraphError(f"padding by {list(amounts)}")
        (top, bottom), (left, right) = by_axis[2], by_axis[3]
        return replace(x, border=g.Padding(top, left, bottom, right))

    def subsample(self, name: str, x: Value, stride: tuple[int, int]) -> Value:
        """Every stride-th row and column."""
        source = self.on_image(x, name)
        return replace(self.add(g.Subsample, name, source.node, stride=stride), axes=source.axes)

    def slice(self, name: str, x: Value, number: int, start: int, stop: int | None, step: int = 1) -> Value:
        """x[start:stop:step] along one axis: a range of channels, or every step-th row or column."""
        self._check(x)
        axis = x.axis(number)
        size = x.size[axis]
        start = max(0, start + size) if start < 0 else min(start, size)
        stop = size if stop is None or stop > size else stop + size if stop < 0 else stop
        if (start, stop, step) == (0, size, 1):
            return x
        if axis == 1 and step == 1 and start < stop:
            return replace(self.add(g.SliceChannels, name, x.node, start=start, stop=stop), axes=x.axes)
        if axis in (2, 3) and start == 0 and step > 1 and stop > (size - 1) // step * step:
            return replace(self._subsampled(name, x, axis, step), axes=x.axes)
        raise GraphError(f"a slice [{start}:{stop}:{step}] of an axis of {size}")

    def _subsampled(self, name: str, x: Value, axis: int, step: int) -> Value:
        """Rows, then columns: the second slice takes the place of the first, which then nothing reads."""
        rows, columns = (step, 1) if axis == 2 else (1, step)
        source, last = x.node, self.nodes[-1]
        if isinstance(last, g.Subsample) and last.name == source and last.stride[axis - 2] == 1:
            rows, columns, source = rows * last.stride[0], columns * last.stride[1], last.inputs[0]
        return self.add(g.Subsample, name, source, stride=(rows, columns))

    def concat(self, name: str, parts: Sequence[Value], number: int) -> Value:
        """Images behind one another along their channels."""
        first = parts[0]
        for part in parts:
            self._check(part)
            if part.axes != first.axes or part.axis(number) != 1 or len(self._shapes[part.node]) != 3:
                raise GraphError("a concatenation along other axes than the channels of images")
        if len(parts) == 1:
            return first
        return replace(self.add(g.Concat, name, *(part.node for part in parts)), axes=first.axes)

    def _padding(
        self, x: Value, padding: WindowPadding, reach: Sequence[int], stride: Sequence[int]
    ) -> g.Padding:
        if isinstance(padding, g.Padding):
            return padding
        word = padding.lower()
        if word == "valid":
            return g.Padding()
        if word not in ("same", "same_upper", "same_lower"):
            raise GraphError(f"padding {padding!r}")
        same = g.Padding.same(x.size[2:], reach, stride)
        if word == "same_lower":
            return g.Padding(same.bottom, same.right, same.top, same.left)
        return same


def _clipped_ceil(x: Value, kernel: Sequence[int], stride: Sequence[int], pad: g.Padding) -> list[int]:
    """Rows and columns that the last window of ceil_mode reaches beyond the padded image."""
    beyond = []
    ends = ((pad.top, pad.bottom), (pad.left, pad.right))
    for size, window, step, (before, after) in zip(x.size[2:], kernel, stride, ends, strict=True):
        count = -(-(size + before + after - window) // step) + 1
        if (count - 1) * step >= size + before:  # a window must begin inside the image or before it
            count -= 1
        beyond.append(max(0, (count - 1) * step + window - (size + before + after)))
    return beyond


def _ceil_padding(x: Value, kernel: Sequence[int], stride: Sequence[int], pad: g.Padding) -> g.Padding:
    rows, columns = _clipped_ceil(x, kernel, stride, pad)
    return g.Padding(0, 0, rows, columns)
