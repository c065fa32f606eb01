"""Weights of few different values: each is the number of an entry in a table of float16 values, the palette.

The entries are those of the least squared error: k-means of numbers on a line has an exact answer (Groenlund
et al., 2017, arXiv:1701.07204, in the implementation that coremltools brings), so nothing is drawn by chance
and the same weights give the same palette. (Exact for the runs of neighbouring numbers that are clustered.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["PALETTES", "Palette", "PaletteFormat", "packed", "palette_of", "write_palettes"]

# Weights of up to so many numbers stay float16, as coremltools has it: little to save, and the first
# convolution and the classifier are the most sensitive ones.
_FEW_WEIGHTS = 2048
# Large layers have tens of thousands of different numbers. With so many runs of neighbours in their place the
# squared error grows by 0.3 %, and the time shrinks by far.
_POINTS_PER_ENTRY = 16


@dataclass(frozen=True)
class PaletteFormat:
    """`bits` of an entry's number. `channels`: so many output channels share a palette; None: all of them.

    One palette for all needs iOS 17, several need iOS 18.
    """

    bits: int
    channels: int | None

    def groups(self, outputs: int) -> int:
        """Of how many equal groups of channels each has its own palette: the most of at least `channels`."""
        if self.channels is None:
            return 1
        return next(n for n in range(max(1, outputs // self.channels), 0, -1) if outputs % n == 0)


# Chosen by measurement, see docs/accuracy.md.
PALETTES = {
    8: PaletteFormat(8, None),
    6: PaletteFormat(6, None),
    4: PaletteFormat(4, 4),
}


@dataclass(frozen=True, eq=False)
class Palette:
    """`indices` uint8 [O, ...], `entries` float16 [groups, 2 ** bits], ascending (the last repeats).

    The weights of output channel o are entries[o * groups // O].
    """

    indices: NDArray[np.uint8]
    entries: NDArray[np.float16]


def palette_of(weight: NDArray[np.float32], form: PaletteFormat) -> Palette | None:
    """The palettes of a weight [O, ...]; None where it has too few numbers to be worth one."""
    if weight.size <= _FEW_WEIGHTS:
        return None
    groups = weight.reshape(form.groups(len(weight)), -1)  # [O, ...] -> [groups, numbers]
    entries = np.stack([_entries(group.astype(np.float16), 2**form.bits) for group in groups])
    indices = np.stack([_nearest(*pair) for pair in zip(groups, entries, strict=True)])
    return Palette(indices.reshape(weight.shape), entries)


def write_palettes(mb: Any, weight: NDArray[np.float32], form: PaletteFormat, name: str) -> Any:
    """The operation (of `mb`, the MIL Builder) whose result is the weight; None where it has no palette."""
    found = palette_of(weight, form)
    if found is None:
        return None
    if form.channels is None:
        numbers, shape = packed(found.indices, form.bits), np.array(weight.shape, np.uint32)
        return mb.constexpr_lut_to_dense(indices=numbers, lut=found.entries[0], shape=shape, name=name)
    from coremltools.converters.mil.mil import types

    number = types.nptype_from_builtin(types.string_to_builtin(f"uint{form.bits}"))
    lut = found.entries.reshape(len(found.entries), *(1,) * (weight.ndim - 1), -1, 1)
    return mb.constexpr_lut_to_dense(indices=found.indices.astype(number), lut=lut, name=name)


def packed(indices: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Numbers of `bits` bits without gaps, least significant bit first.

    >>> packed(np.array([1, 2, 3], np.uint8), 4)
    array([33,  3], dtype=uint8)
    """
    single = np.unpackbits(indices.reshape(-1, 1), axis=1, count=bits, bitorder="little")
    return np.packbits(single.reshape(-1), bitorder="little")


def _entries(values: NDArray[np.float16], count: int) -> NDArray[np.float16]:
    from coremltools._deps.kmeans1d import cluster

    points, times = np.unique(values, return_counts=True)
    if len(points) > count:
        means, weights = _runs(points.astype(np.float64), times, count * _POINTS_PER_ENTRY)
        centroids = cluster(means, count, weights=weights).centroids
        points = np.sort(np.array(centroids)).astype(np.float16)
    return np.pad(points, (0, count - len(points)), mode="edge")


def _runs(
    points: NDArray[np.float64], times: NDArray[np.int64], most: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Neighbouring points as one: the mean and the count of each of at most 2 * `most` runs.

    A run ends after 1 / `most` of the range, which is what the error asks for, and after 1 / `most` of the
    numbers, since a few outliers may take most of the range.
    """
    shares = np.arange(1, most) / most
    along_range = np.searchsorted(points, points[0] + shares * (points[-1] - points[0]))
    along_count = np.searchsorted(np.cumsum(times), shares * times.sum())
    starts = np.unique(np.concatenate([[0], along_range, along_count]))
    weights = np.add.reduceat(times, starts)
    means: NDArray[np.float64] = np.add.reduceat(points * times, starts) / weights
    return means, weights


def _nearest(values: NDArray[np.float32], entries: NDArray[np.float16]) -> NDArray[np.uint8]:
    exact = entries.astype(np.float64)
    return np.searchsorted((exact[1:] + exact[:-1]) / 2, values.astype(np.float64)).astype(np.uint8)
