"""A tensor of the model that is imported: which graph node holds it, and how its axes lie.

Frameworks transpose, squeeze and reshape; the graph does not. So a transpose makes no node: it changes which
axis of the node an axis of the tensor stands for, and most of them cancel before anything is computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from edge_resnet.errors import GraphError
from edge_resnet.graph.nodes import Padding, Shape

__all__ = ["Value", "reshaped", "squeezed", "transposed", "unsqueezed"]


@dataclass(frozen=True)
class Value:
    """`axes[i]` is the node's axis for the tensor's axis i: 0 batch, 1 channels, 2 rows, 3 columns.

    A node's axis that is not among `axes` has one element. `size` holds the node's sizes, by axis, with 1 for
    the batch; a vector [C] has the sizes (1, C, 1, 1). `flat` is set where several axes were flattened into
    the tensor's last one: the order in which they were, as axes of the node. `softmax`: the tensor is the
    node's softmax. `border`: it has a border of the lowest value that the node lacks.
    """

    node: str
    axes: tuple[int, ...]
    size: tuple[int, int, int, int]
    flat: tuple[int, ...] | None = None
    softmax: bool = False
    border: Padding | None = None

    @property
    def shape(self) -> Shape:
        """Shape of the tensor, the batch axis included (as 1)."""
        if self.flat is not None:
            count = 1
            for axis in self.flat:
                count *= self.size[axis]
            return (1, count)
        return tuple(self.size[axis] for axis in self.axes)

    def axis(self, number: int) -> int:
        """The node's axis that the tensor's axis `number` (negative from the end) stands for."""
        self.check_not_flat()
        if not -len(self.axes) <= number < len(self.axes):
            raise GraphError(f"axis {number} of a tensor of shape {self.shape}")
        return self.axes[number]

    def check_not_flat(self) -> None:
        if self.flat is not None:
            raise GraphError("an operation on an image that was flattened")


def transposed(value: Value, order: Sequence[int]) -> Value:
    """numpy.transpose, without a node."""
    value.check_not_flat()
    order = [number % len(value.axes) for number in order]
    if sorted(order) != list(range(len(value.axes))):
        raise GraphError(f"a transpose in the order {order}")
    axes = tuple(value.axes[number] for number in order)
    if axes[0] != 0 and value.size[axes[0]] != 1:
        raise GraphError("a transpose that moves the batch axis")
    return replace(value, axes=axes)


def squeezed(value: Value, numbers: Sequence[int] | None) -> Value:
    """numpy.squeeze over these axes; None takes all of one element but the batch."""
    value.check_not_flat()
    if numbers is None:
        numbers = [i for i, axis in enumerate(value.axes) if axis != 0 and value.size[axis] == 1]
    dropped = {number % len(value.axes) for number in numbers}
    if any(value.size[value.axes[i]] != 1 or value.axes[i] == 0 for i in dropped):
        raise GraphError(f"a squeeze of {value.shape} over {sorted(dropped)}")
    return replace(value, axes=tuple(a for i, a in enumerate(value.axes) if i not in dropped))


def unsqueezed(value: Value, numbers: Sequence[int]) -> Value:
    """numpy.expand_dims."""
    value.check_not_flat()
    rank = len(value.axes) + len(numbers)
    at = {number % rank for number in numbers}
    if len(at) != len(numbers) or 0 in at:
        raise GraphError(f"axes {list(numbers)} added to a tensor of shape {list(value.shape)}")
    rest = iter(value.axes)
    return replace(value, axes=_filled([None if i in at else next(rest) for i in range(rank)]))


def reshaped(value: Value, shape: Sequence[int]) -> Value:
    """numpy.reshape, where axes of one element come and go, or all is flattened behind the batch axis."""
    if value.flat is not None:
        if tuple(shape)[1:] in ((-1,), value.shape[1:]):
            return value
        raise GraphError(f"a reshape of a flattened image to {list(shape)}")
    target = _sizes(value, shape)
    axes = [axis for axis in value.axes if axis != 0 and value.size[axis] != 1]
    wanted = [size for size in target[1:] if size != 1]
    if wanted == [value.size[axis] for axis in axes]:
        used = iter(axes)
        return replace(value, axes=_filled([0, *(next(used) if size != 1 else None for size in target[1:])]))
    if len(target) == 2:
        return replace(value, axes=(0, 1), flat=tuple(axes))
    parts = " (split attention, as ResNeSt has, needs a softmax between parts)" if len(target) == 5 else ""
    raise GraphError(f"a reshape from {list(value.shape)} to {list(shape)}{parts}")


def _filled(axes: Sequence[int | None]) -> tuple[int, ...]:
    """The None of an axis of one element become axes that are not used yet."""
    free = [axis for axis in range(1, 4) if axis not in axes]
    if axes.count(None) > len(free):
        raise GraphError(f"a tensor of {len(axes)} axes")
    return tuple(free.pop(0) if axis is None else axis for axis in axes)


def _sizes(value: Value, shape: Sequence[int]) -> list[int]:
    """`shape` with its -1 resolved; the first axis must stay the batch."""
    sizes = [int(size) for size in shape]
    count = 1
    for size in value.shape:
        count *= size
    if len(sizes) > 1 and sizes[0] == -1 and -1 not in sizes[1:]:
        sizes[0] = 1  # the batch, left open
    known = 1
    for size in sizes:
        known *= size if size != -1 else 1
    if sizes.count(-1) > 1 or known <= 0 or count % known:
        raise GraphError(f"a reshape from {list(value.shape)} to {sizes}")
    sizes = [count // known if size == -1 else size for size in sizes]
    total = 1
    for size in sizes:
        total *= size
    if not sizes or sizes[0] != 1 or total != count:
        raise GraphError(f"a reshape from {list(value.shape)} to {sizes}")
    return sizes
