"""What the functions of keras_operators.py are given: one GraphDef node, and what its inputs became."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_resnet.errors import GraphError
from edge_resnet.frontends.builder import GraphBuilder, WindowPadding
from edge_resnet.frontends.values import Value, transposed
from edge_resnet.graph import nodes as g

__all__ = ["Below", "Blocks", "Item", "Result", "TensorflowCall"]

Array = NDArray[Any]


@dataclass(frozen=True)
class Blocks:
    """A tensor between SpaceToBatchND and BatchToSpaceND: TensorFlow's way to say a dilation."""

    value: Value
    block: tuple[int, int]
    padding: tuple[tuple[int, int], tuple[int, int]]
    weight: Array | None = None
    groups: int = 1


@dataclass(frozen=True)
class Below:
    """min(value, high): the first half of a clip."""

    value: Value
    high: float


Item = Value | Array | Blocks | Below
Result = Item | list[Value]


@dataclass(frozen=True)
class TensorflowCall:
    """One GraphDef node. `alone`: only this one reads the tensor that it reads, so that may be rewritten."""

    builder: GraphBuilder
    name: str
    inputs: tuple[Item, ...]
    attributes: Mapping[str, Any]
    alone: bool

    def value(self, index: int = 0) -> Value:
        value = self.inputs[index]
        if not isinstance(value, Value):
            raise GraphError(
                f"input {index} does not depend on the image, or only half of a pattern is there"
            )
        return value

    def constant(self, index: int) -> Array:
        value = self.inputs[index]
        if not isinstance(value, np.ndarray):
            raise GraphError(f"input {index} depends on the image; it must be a constant")
        return value

    def numbers(self, index: int) -> list[int]:
        return [int(number) for number in self.constant(index).reshape(-1)]

    def get(self, name: str, default: Any = None) -> Any:
        return self.attributes.get(name, default)

    @property
    def channels_last(self) -> bool:
        return str(self.get("data_format", "NHWC")) == "NHWC"

    def image(self, index: int = 0) -> Value:
        """An input as NHWC, whatever the node's data_format."""
        value = self.value(index)
        return value if self.channels_last else transposed(value, (0, 2, 3, 1))

    def as_format(self, value: Value) -> Value:
        return value if self.channels_last else transposed(value, (0, 3, 1, 2))

    def window(self, name: str) -> tuple[int, int]:
        """Rows and columns of an attribute that has four numbers."""
        numbers = [int(n) for n in self.get(name) or [1, 1, 1, 1]]
        rows, columns = (numbers[1:3]) if self.channels_last else (numbers[2:4])
        rest = [numbers[0], numbers[3] if self.channels_last else numbers[1]]
        if rest != [1, 1]:
            raise GraphError(f"{name} {numbers}")
        return rows, columns

    def padding(self) -> WindowPadding:
        word = str(self.get("padding"))
        if word != "EXPLICIT":
            return word.lower()
        pads = [int(n) for n in self.get("explicit_paddings") or []]
        first = 2 if self.channels_last else 4
        return g.Padding(pads[first], pads[first + 2], pads[first + 1], pads[first + 3])

    def node(self, name: str) -> g.Node:
        return next(node for node in reversed(self.builder.nodes) if node.name == name)
