"""What nodes are described with: activation, padding, integers, weights; frozen, checked as they are made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from edge_resnet.errors import GraphError

__all__ = [
    "Activation",
    "FloatArray",
    "FloatWeights",
    "IntWeights",
    "PadMode",
    "Padding",
    "QuantParams",
    "Shape",
    "Weights",
]

Shape = tuple[int, ...]
FloatArray = NDArray[np.float32]


class Activation(StrEnum):
    """What is applied to a node's sum before it is stored."""

    NONE = "none"
    RELU = "relu"
    RELU6 = "relu6"
    UNIT = "unit"

    @property
    def limit(self) -> float | None:
        """Where values are cut off above: RELU6 clips to [0, 6], UNIT to [0, 1]."""
        if self is Activation.RELU6:
            return 6.0
        return 1.0 if self is Activation.UNIT else None


class PadMode(StrEnum):
    """What stands outside the image: zeros, or the image mirrored at its border pixels."""

    ZERO = "zero"
    REFLECT = "reflect"


@dataclass(frozen=True)
class QuantParams:
    """real = scale * (q - zero_point), q in int8. `scale` is a float32 value.

    The unsigned form that ONNX uses is the same number: q_uint8 = q + 128, zero_point + 128.
    """

    scale: float
    zero_point: int

    def __post_init__(self) -> None:
        if not (np.isfinite(self.scale) and self.scale > 0 and float(np.float32(self.scale)) == self.scale):
            raise GraphError(f"scale {self.scale!r} is not a positive float32")
        if not -128 <= self.zero_point <= 127:
            raise GraphError(f"zero point {self.zero_point} is outside int8")


@dataclass(frozen=True)
class Padding:
    """Zeros around an image, in pixels."""

    top: int = 0
    left: int = 0
    bottom: int = 0
    right: int = 0

    def __bool__(self) -> bool:
        return any((self.top, self.left, self.bottom, self.right))

    def __add__(self, other: Padding) -> Padding:
        return Padding(
            self.top + other.top, self.left + other.left, self.bottom + other.bottom, self.right + other.right
        )

    @property
    def sides(self) -> tuple[int, int, int, int]:
        """Left, right, top, bottom: as torch's padding takes them."""
        return self.left, self.right, self.top, self.bottom

    @classmethod
    def symmetric(cls, vertical: int, horizontal: int) -> Padding:
        return cls(vertical, horizontal, vertical, horizontal)

    @classmethod
    def same(cls, size: Sequence[int], reach: Sequence[int], stride: Sequence[int]) -> Padding:
        """What TensorFlow's SAME adds to rows and columns of `size`: the odd one at the end."""
        rows, columns = (
            max(0, (-(-length // step) - 1) * step + window - length)
            for length, window, step in zip(size, reach, stride, strict=True)
        )
        return cls(rows // 2, columns // 2, rows - rows // 2, columns - columns // 2)


@dataclass(frozen=True, eq=False)
class FloatWeights:
    """`weight` [O, I/groups, kh, kw] or [O, I], `bias` [O], both float32."""

    weight: FloatArray
    bias: FloatArray

    def __post_init__(self) -> None:
        if self.weight.dtype != np.float32 or self.bias.dtype != np.float32:
            raise GraphError("float weights must be float32")
        if self.bias.shape != self.weight.shape[:1]:
            raise GraphError(f"bias {self.bias.shape} does not fit weight {self.weight.shape}")


@dataclass(frozen=True, eq=False)
class IntWeights:
    """Symmetric per-channel integers: `weight` int8 in [-127, 127], `scale` float32 [O], `bias` int32 [O].

    The bias is in units of (input scale * scale[o]).
    """

    weight: NDArray[np.int8]
    scale: FloatArray
    bias: NDArray[np.int32]

    def __post_init__(self) -> None:
        channels = self.weight.shape[:1]
        types = [array.dtype.name for array in (self.weight, self.scale, self.bias)]
        if types != ["int8", "float32", "int32"]:
            raise GraphError("integer weights must be int8 with a float32 scale and an int32 bias")
        if self.scale.shape != channels or self.bias.shape != channels:
            raise GraphError(
                f"scale {self.scale.shape} or bias {self.bias.shape} does not fit {self.weight.shape}"
            )
        if self.weight.size and int(self.weight.min()) < -127:
            raise GraphError("an integer weight is -128, outside [-127, 127]")
        if not (np.isfinite(self.scale).all() and (self.scale > 0).all()):
            raise GraphError("a weight scale is not positive and finite")


Weights = FloatWeights | IntWeights
