"""Intervals for accuracies on a finite number of images, and percentiles of latencies."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edge_resnet.errors import InputError

__all__ = ["latency_summary", "paired_difference", "wilson_interval"]

_Z95 = 1.959963984540054


def wilson_interval(correct: int, n: int) -> tuple[float, float]:
    """95 % interval of a share. Wilson, "Probable inference", JASA 22, 1927."""
    if not 0 <= correct <= n or n == 0:
        raise InputError(f"{correct} of {n} images is not a share")
    share, z2 = correct / n, _Z95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z95 / (1 + z2 / n) * np.sqrt(share * (1 - share) / n + z2 / (4 * n**2))
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


def paired_difference(base: NDArray[np.bool_], new: NDArray[np.bool_]) -> tuple[float, float, float]:
    """new - base accuracy on the same images, and its 95 % interval.

    The interval is Agresti and Min's: Wald's for matched pairs, with half a count added to each cell
    ("Simple improved confidence intervals for comparing matched proportions", Statistics in Medicine 24,
    2005).
    """
    n = len(base)
    if n == 0 or len(new) != n:
        raise InputError(f"cannot pair {n} with {len(new)} images")
    gained, lost = int((new & ~base).sum()), int((base & ~new).sum())
    delta = (gained - lost) / n
    n_adjusted, b, c = n + 2, gained + 0.5, lost + 0.5
    centre = (b - c) / n_adjusted
    half = _Z95 * np.sqrt(b + c - (b - c) ** 2 / n_adjusted) / n_adjusted
    return delta, max(-1.0, float(centre - half)), min(1.0, float(centre + half))


def latency_summary(milliseconds: Sequence[float]) -> dict[str, float]:
    """mean, p50, p95 and p99, as report.json names them."""
    values = np.asarray(milliseconds, np.float64)
    p50, p95, p99 = np.percentile(values, (50, 95, 99))
    return {"mean": float(values.mean()), "p50": float(p50), "p95": float(p95), "p99": float(p99)}
