"""Latency of the float model in torch: what the artifacts are compared with."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from edge_resnet.benchmark.timing import latency_summary, seconds_of

__all__ = ["eager_latency"]

_WARM_UP, _RUNS = 5, 50
_SECONDS = 5.0


def eager_latency(
    logits: Callable[[np.ndarray[Any, Any]], Any], size: tuple[int, int], threads: int
) -> dict[str, float]:
    """Milliseconds for one image, as report.json names them; up to 50 runs or 5 seconds."""
    image = np.random.default_rng(0).integers(0, 256, (1, *size, 3), np.uint8)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for _ in range(_WARM_UP):
            logits(image)
        samples: list[float] = []
        until = time.perf_counter() + _SECONDS
        while len(samples) < _RUNS and (not samples or time.perf_counter() < until):
            samples.append(seconds_of(lambda: logits(image)) * 1e3)
    finally:
        torch.set_num_threads(before)
    return latency_summary(samples)
