"""How a time is taken and said: in turns, after a warm-up, as percentiles."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

__all__ = ["interleaved", "latency_summary", "seconds_of", "spread", "tail", "warm_up"]


def latency_summary(milliseconds: Sequence[float]) -> dict[str, float]:
    """mean, p50, p95 and p99 in milliseconds, as report.json names them."""
    values = np.asarray(milliseconds, np.float64)
    p50, p95, p99 = np.percentile(values, (50, 95, 99))
    return {"mean": float(values.mean()), "p50": float(p50), "p95": float(p95), "p99": float(p99)}


def spread(samples: Sequence[float]) -> dict[str, float]:
    """Median, p10 and p90 of a few samples, in their own unit, and how many there were.

    For tables of comparisons: with a dozen rounds, p95 would be the slowest round and nothing else.

    >>> spread([3.0, 1.0, 2.0])
    {'median': 2.0, 'p10': 1.2, 'p90': 2.8, 'rounds': 3}
    """
    p10, median, p90 = np.percentile(np.asarray(samples, np.float64), (10, 50, 90))
    return {"median": float(median), "p10": float(p10), "p90": float(p90), "rounds": len(samples)}


def tail(summary: Mapping[str, float]) -> float:
    """How far p95 lies above the median, as a share of the median."""
    return (summary["p95"] - summary["p50"]) / summary["p50"]


def seconds_of(function: Callable[[], object]) -> float:
    """Wall time of one call."""
    begun = time.perf_counter()
    function()
    return time.perf_counter() - begun


def interleaved(
    functions: Mapping[str, Callable[[], object]], rounds: int, warmup: int = 1
) -> dict[str, list[float]]:
    """Seconds of `rounds` calls of each function, taken in turns A B A B.

    In turns, so that a machine that slows down slows all of them alike. `warmup` rounds come first and are
    not counted. What a function raises ends the measurement.
    """
    samples: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(warmup + rounds):
        for name, function in functions.items():
            seconds = seconds_of(function)
            if turn >= warmup:
                samples[name].append(seconds)
    return samples


def warm_up(block: Callable[[], Sequence[float]], most: int, steady: float) -> int:
    """Run blocks until one's median is within the share `steady` of the one before, `most` blocks at most.

    Returns how many were run. A block without samples ends it: there is nothing left to warm.
    """
    before = float("inf")
    for count in range(1, most + 1):
        samples = block()
        if not samples:
            return count
        median = float(np.median(samples))
        if abs(median - before) <= steady * median:
            return count
        before = median
    return most
