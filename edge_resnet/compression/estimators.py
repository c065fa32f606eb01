"""The range of every tensor from the statistics of a calibration run.

  minmax           least and largest value
  moving-average   exponential moving average of the batches' extremes (Jacob et al., 2017, 1712.05877, 3.1)
  percentile       so many of 100 values lie within, the rest as many above as below
  mse              least squared error of rounding and clipping together
  entropy          least Kullback-Leibler divergence of the clipped and rounded histogram (Migacz, "8-bit
                   Inference with TensorRT", GTC 2017; ONNX Runtime's EntropyCalibrater does the same)

Tensors that share a scale: each has its own estimate, and the widest decides (scales.py), but for mse, where
one scale is sought that minimizes the error summed over all values of the group. A tensor that is given more
width than it asked for gets back what was cut off. The graph's output is never clipped: two classes that
saturate would tie.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from edge_resnet.compression.statistics import HALF_BINS, Statistics, TensorStatistics
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.streams import moves_integers, parameter_groups, scale_groups

__all__ = ["ESTIMATORS", "Ranges", "estimate"]

Ranges = dict[str, tuple[float, float]]
"""For each node, the least and the largest value of its output; both include 0."""

Range = tuple[float, float]
Estimator = Callable[[Sequence[Sequence[TensorStatistics]], float], list[Range]]
"""(the tensors of one scale, by common zero point; percentile) -> a range for each of the inner sequences."""

_STEPS = 255
# Scales that mse tries, from the full range's down to a hundredth: each 3 % below the last.
_CANDIDATES: NDArray[np.float64] = 0.97 ** np.arange(152, dtype=np.float64)
# Thresholds that entropy tries; more change nothing that 8 bits show.
_THRESHOLDS = 128


def estimate(
    statistics: Statistics, graph: Graph, estimator: str = "minmax", percentile: float = 99.99
) -> Ranges:
    """The ranges of all tensors. `estimator` is a key of ESTIMATORS, `percentile` (over 50) in percent."""
    function = ESTIMATORS[estimator]
    tensors = statistics.tensors
    ranges: Ranges = {name: _seen([tensor]) for name, tensor in tensors.items()}
    number = {name: index for index, group in enumerate(parameter_groups(graph)) for name in group}
    for group in scale_groups(graph):
        if estimator == "minmax" or graph.input.name in group or graph.output.name in group:
            continue
        parts: dict[int, list[str]] = {}
        for name in group:
            if not moves_integers(graph.by_name[name]):
                parts.setdefault(number[name], []).append(name)
        members = [[tensors[name] for name in part] for part in parts.values()]
        estimates = _given_back(function(members, percentile), [_seen(part) for part in members])
        of_part = dict(zip(parts, estimates, strict=True))
        for name in group:
            (low, high), seen = of_part[number[name]], ranges[name]
            ranges[name] = (max(low, seen[0]), min(high, seen[1]))
    return ranges


def _seen(tensors: Sequence[TensorStatistics]) -> Range:
    return min(0.0, *(t.low for t in tensors)), max(0.0, *(t.high for t in tensors))


def _given_back(estimates: list[Range], seen: list[Range]) -> list[Range]:
    """Each range grown towards what was seen, up to the width of the widest."""
    width = max(high - low for low, high in estimates)
    grown = []
    for (low, high), (least, largest) in zip(estimates, seen, strict=True):
        cut = (low - least) + (largest - high)
        part = min(1.0, (width - (high - low)) / cut) if cut > 0 else 0.0
        grown.append((low - part * (low - least), high + part * (largest - high)))
    return grown


def _minmax(groups: Sequence[Sequence[TensorStatistics]], percentile: float) -> list[Range]:
    return [_seen(group) for group in groups]


def _moving_average(groups: Sequence[Sequence[TensorStatistics]], percentile: float) -> list[Range]:
    averages = [[t.average or (0.0, 0.0) for t in group] for group in groups]
    return [(min(0.0, *(a[0] for a in group)), max(0.0, *(a[1] for a in group))) for group in averages]


def _percentile(groups: Sequence[Sequence[TensorStatistics]], percentile: float) -> list[Range]:
    def of(tensor: TensorStatistics) -> Range:
        counts = tensor.counts.astype(np.float64)
        total = counts.sum() + tensor.zeros
        # Half of what may lie outside on either side, or all of it on the only one.
        sides = (tensor.low < 0) + (tensor.high > 0)
        outside = total * (1 - percentile / 100) / max(1, sides)
        below, above = np.cumsum(counts), np.cumsum(counts[::-1])
        # The first bin that may not be cut off entirely; its outer edge is the bound.
        first = min(int(np.searchsorted(below, outside, side="right")), HALF_BINS)
        last = min(int(np.searchsorted(above, outside, side="right")), HALF_BINS)
        low, high = (first - HALF_BINS) * tensor.width, (HALF_BINS - last) * tensor.width
        return max(min(0.0, tensor.low), low), min(max(0.0, tensor.high), high)

    return [_union([of(tensor) for tensor in group]) for group in groups]


def _union(ranges: Sequence[Range]) -> Range:
    return min(low for low, _ in ranges), max(high for _, high in ranges)


def _mse(groups: Sequence[Sequence[TensorStatistics]], percentile: float) -> list[Range]:
    seen = [_seen(group) for group in groups]
    widest = max(high - low for low, high in seen)
    if widest == 0:
        return seen
    scales: NDArray[np.float64] = widest / _STEPS * _CANDIDATES
    errors, zeros = zip(*(_squared_errors(group, scales) for group in groups), strict=True)
    best = int(np.sum(errors, axis=0).argmin())
    scale = float(scales[best])
    return [(-float(z[best]) * scale, (_STEPS - float(z[best])) * scale) for z in zeros]


def _squared_errors(
    group: Sequence[TensorStatistics], scales: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """For each scale the least sum of squared errors over all zero points, and that zero point (0 to 255).

    Within the clipping bounds a value's error does not depend on the zero point; outside it is the distance
    to the bound. Both are differences of prefix sums over the bins.
    """
    exponent = max((t.exponent for t in group if t.exponent is not None), default=0)
    counts = np.sum([t.widened(exponent) for t in group], axis=0).astype(np.float64)
    width = 2.0**exponent / HALF_BINS
    used = np.flatnonzero(counts)
    if not len(used):
        return np.zeros(len(scales)), np.zeros(len(scales), np.int64)
    counts = counts[used]
    values = (used - HALF_BINS + 0.5) * width
    rest = values - scales[:, None] * np.rint(values / scales[:, None])  # [scales, bins]
    rounding = _prefix(counts * rest**2)
    first, second, third = (_prefix(counts * values**power) for power in (0, 1, 2))
    if values[0] > 0:
        zero_points = np.zeros(1, np.int64)
    elif values[-1] < 0:
        zero_points = np.full(1, _STEPS)
    else:
        zero_points = np.arange(_STEPS + 1)
    low = -scales[:, None] * zero_points  # [scales, zero points]
    high = low + scales[:, None] * _STEPS
    below, above = np.searchsorted(values, low), np.searchsorted(values, high)
    rows = np.arange(len(scales))[:, None]
    errors = rounding[rows, above] - rounding[rows, below]
    errors += third[below] - 2 * low * second[below] + low**2 * first[below]
    errors += (third[-1] - third[above]) - 2 * high * (second[-1] - second[above])
    errors += high**2 * (first[-1] - first[above])
    best = errors.argmin(1)
    return errors[rows[:, 0], best], zero_points[best]


def _prefix(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sums of the first 0, 1, 2, ... along the last axis."""
    sums = np.zeros((*values.shape[:-1], values.shape[-1] + 1))
    np.cumsum(values, -1, out=sums[..., 1:])
    return sums


def _entropy(groups: Sequence[Sequence[TensorStatistics]], percentile: float) -> list[Range]:
    return [_union([_least_divergence(tensor) for tensor in group]) for group in groups]


def _least_divergence(tensor: TensorStatistics) -> Range:
    low, high = _seen([tensor])
    end = int(np.ceil(max(-low, high) / tensor.width)) if tensor.counts.any() else 0
    if end <= _STEPS + 1:
        return low, high
    thresholds = np.unique(np.linspace(_STEPS + 1, end, _THRESHOLDS).astype(int))
    left = int(np.ceil(-low / tensor.width))
    right = int(np.ceil(high / tensor.width))
    divergences = [
        _divergence(tensor.counts, HALF_BINS - min(left, bins), HALF_BINS + min(right, bins))
        for bins in thresholds
    ]
    bound = float(thresholds[int(np.argmin(divergences))]) * tensor.width
    return max(low, -bound), min(high, bound)


def _divergence(counts: NDArray[np.int64], start: int, stop: int) -> float:
    """KL(P || Q) of the histogram clipped to bins [start, stop): P has what is outside in its last bins.

    Q is the part inside, spread evenly over the bins of each of 256 levels that are not empty. Values that
    are exactly 0 are left out: they are exact whatever the range.
    """
    inside = counts[start:stop].astype(np.float64)
    clipped = inside.copy()
    clipped[0] += counts[:start].sum()
    clipped[-1] += counts[stop:].sum()
    levels = min(_STEPS + 1, len(inside))
    level = np.arange(len(inside)) * levels // len(inside)
    filled = clipped > 0
    sums = np.bincount(level, inside, levels)
    members = np.bincount(level, filled, levels)
    spread = (sums / np.maximum(members, 1))[level][filled]
    if not spread.sum():
        return np.inf
    p, q = clipped[filled] / clipped.sum(), spread / spread.sum()
    # A level that is empty inside has Q = 0, and the divergence would be infinite: ONNX Runtime smooths too.
    return float((p * np.log(p / np.maximum(q, 1e-12))).sum())


ESTIMATORS: dict[str, Estimator] = {
    "minmax": _minmax,
    "moving-average": _moving_average,
    "percentile": _percentile,
    "mse": _mse,
    "entropy": _entropy,
}
"""Keyed as `calibration.estimator` of a recipe."""
