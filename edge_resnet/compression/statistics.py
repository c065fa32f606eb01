"""What one calibration run keeps of every tensor, enough for each of the estimators (estimators.py).

Least and largest value, a moving average of the batches' extremes, and a histogram. The histogram's bins are
a power of two wide and begin at 0, so that widening it, when a larger value comes, joins whole bins: what it
holds depends on the values, not on where the range stood when they came.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edge_resnet.errors import InputError
from edge_resnet.graph.float_executor import FloatExecutor
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.streams import moves_integers

__all__ = ["HALF_BINS", "Statistics", "TensorStatistics", "collect"]

# Bins on either side of 0. Half or more of the larger side's are in use: at least four a step of 8 bit.
HALF_BINS = 2048
# A batch counts this much in the moving average: 512 images are 16 batches of 32.
_MOMENTUM = 0.1
# Counting costs five times as much a value as finding the extremes: of each tensor's batch at most so many
# values are counted, evenly spaced. Extremes are those of all values.
_COUNTED = 2**16
# Powers of two that float32 holds, with bins 2**11 times smaller. No scale is stored for more than 2**24.
_LEAST_EXPONENT, _LARGEST_EXPONENT = -100, 100
_NAMED = 3  # tensors that a warning lists


@dataclass
class TensorStatistics:
    """Of one tensor. `counts` [2 * HALF_BINS] are of values other than 0; bin i begins at
    (i - HALF_BINS) * `width`. `zeros` counts the values that are exactly 0, as behind a ReLU.
    """

    low: float = np.inf
    high: float = -np.inf
    average: tuple[float, float] | None = None
    zeros: int = 0
    exponent: int | None = None
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(2 * HALF_BINS, np.int64))

    @property
    def width(self) -> float:
        """Of a bin."""
        return 2.0 ** (self.exponent or 0) / HALF_BINS

    def widened(self, exponent: int) -> NDArray[np.int64]:
        """`counts` in bins of 2**exponent / HALF_BINS, which must be no narrower than they are."""
        if self.exponent is None or exponent == self.exponent:
            return self.counts
        # More than HALF_BINS bins at once: all of one side are in the bin next to 0.
        joined = min(2 ** (exponent - self.exponent), HALF_BINS)
        inner = self.counts.reshape(-1, joined).sum(1)
        counts = np.zeros_like(self.counts)
        start = HALF_BINS - len(inner) // 2
        counts[start : start + len(inner)] = inner
        return counts

    def update(self, value: Tensor, low: float, high: float, with_histogram: bool) -> None:
        """Take in a batch's values, whose extremes are `low` and `high`."""
        self.low, self.high = min(self.low, low), max(self.high, high)
        before = self.average or (low, high)
        self.average = (
            before[0] + _MOMENTUM * (low - before[0]),
            before[1] + _MOMENTUM * (high - before[1]),
        )
        if with_histogram:
            self._count(value, max(-low, high))

    def _count(self, value: Tensor, magnitude: float) -> None:
        flat = (value.permute(0, 2, 3, 1) if value.dim() == 4 else value).reshape(-1)
        step = -(-len(flat) // _COUNTED)
        # An odd step comes by all channels, whose number is most often even.
        sample = flat[:: step + 1 - step % 2] if step > 1 else flat
        zeros = int((sample == 0).sum())
        self.zeros += zeros
        if magnitude == 0:
            return
        exponent = int(np.clip(np.frexp(magnitude)[1], _LEAST_EXPONENT, _LARGEST_EXPONENT))
        if self.exponent is None or exponent > self.exponent:
            self.counts = self.widened(exponent)
            self.exponent = exponent
        # Exact: the width is a power of two (torch.histc would round at the edges of bins).
        index = (sample * (1 / self.width)).floor_().clamp_(-HALF_BINS, HALF_BINS - 1).int() + HALF_BINS
        self.counts += torch.bincount(index, minlength=2 * HALF_BINS).numpy()
        self.counts[HALF_BINS] -= zeros


@dataclass(frozen=True)
class Statistics:
    """Of every tensor of a graph, by node name, over `images` images; `warnings` name what looks wrong.

    What only moves integers (streams.py) has no counts of its own: nothing is rounded there.
    """

    tensors: dict[str, TensorStatistics]
    images: int
    warnings: tuple[str, ...]


def collect(graph: Graph, batches: Iterable[NDArray[np.uint8]]) -> Statistics:
    """One run of the float graph over batches of images, uint8 [N, H, W, C].

    Raises InputError when there is no image, or when a tensor is not finite (the message names the node).
    """
    tensors = {node.name: TensorStatistics() for node in graph.nodes}
    counted = {node.name for node in graph.nodes if not moves_integers(node)} - {graph.input.name}

    def observe(name: str, value: Tensor) -> None:
        low, high = (float(extreme) for extreme in torch.aminmax(value))
        if not np.isfinite((low, high)).all():
            raise InputError(
                f"node {name!r} computes {(low, high)} on the calibration images: the model overflows"
            )
        tensors[name].update(value, low, high, name in counted)

    executor = FloatExecutor(graph)
    count = 0
    sight = _Sight()
    for batch in batches:
        if not len(batch):
            continue
        executor.run(batch, observe)
        sight.update(batch)
        count += len(batch)
    if not count:
        raise InputError(
            "calibration needs at least one image (calibration.images is 0 or the data is empty)"
        )
    return Statistics(tensors, count, (*sight.warnings(count), *_unvaried(graph, tensors)))


class _Sight:
    """Whether the images show anything."""

    def __init__(self) -> None:
        self._first: NDArray[np.uint8] | None = None
        self._alike = self._plain = True

    def update(self, batch: NDArray[np.uint8]) -> None:
        if self._first is None:
            self._first = batch[0].copy()
        self._alike = self._alike and bool((batch == self._first).all())
        self._plain = self._plain and bool((batch == batch[:, :1, :1]).all())

    def warnings(self, count: int) -> list[str]:
        assert self._first is not None
        if self._plain and self._alike:
            colour = ", ".join(str(byte) for byte in self._first[0, 0])
            what = f"all {count} calibration images are one constant colour ({colour})"
        elif self._plain:
            what = f"each of the {count} calibration images is one constant colour"
        elif self._alike and count > 1:
            what = f"all {count} calibration images are the same"
        else:
            return []
        return [f"{what}: the ranges will not fit other images; calibrate on images like those in use"]


def _unvaried(graph: Graph, tensors: dict[str, TensorStatistics]) -> list[str]:
    names = [
        node.name
        for node in graph.nodes
        if tensors[node.name].low == tensors[node.name].high and not moves_integers(node)
    ]
    if not names:
        return []
    listed = ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
    return [f"tensors that held a single value on all calibration images: {listed}"]
