"""What an artifact says, in the graph's own terms, so that it can be compared with the graph."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_resnet.graph.nodes import QuantParams

__all__ = ["ArtifactContents", "StoredFloats", "StoredWeights"]


@dataclass(frozen=True, eq=False)
class StoredWeights:
    """A convolution's or classifier's integers as they stand in the file, in the graph's axis order.

    `weight` int8 [O, I/groups, kh, kw] or [O, I], `scale` float32 [O], `zero_point` int [O] (0 everywhere in
    this scheme). `bias` [O] is int32 with its own `bias_scale` in the file, or, in a format without integer
    biases (Core ML), the float that stands there in the file's own precision.
    """

    weight: NDArray[np.int8]
    scale: NDArray[np.float32]
    zero_point: NDArray[np.int64]
    bias: NDArray[Any]
    bias_scale: NDArray[np.float32] | None = None


@dataclass(frozen=True, eq=False)
class StoredFloats:
    """A convolution's or classifier's numbers in a float file, in the file's type and the graph's axis order.

    `weight` [O, I/groups, kh, kw] or [O, I], `bias` [O]. Where the weights are entries of palettes, these are
    `palettes` [groups, entries], one for each of so many equal parts of the output channels.
    """

    weight: NDArray[np.floating]
    bias: NDArray[np.floating]
    palettes: NDArray[np.floating] | None = None


@dataclass(frozen=True, eq=False)
class ArtifactContents:
    """Read back from the file alone.

    `activations` maps a node's name to its parameters in int8 terms (ONNX's uint8 zero point minus 128). A
    tensor that is quantized in several places of the file must say the same everywhere; where it does not,
    `conflicts` names it. `floats` are layers that were kept in float.
    """

    activations: dict[str, QuantParams]
    weights: dict[str, StoredWeights]
    conflicts: tuple[str, ...] = field(default=())
    floats: dict[str, StoredFloats] = field(default_factory=dict)
