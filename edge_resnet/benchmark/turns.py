"""Worker processes that are timed in turn, A B A B, and what became of those that were lost on the way."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Mapping
from functools import partial
from typing import Any, TypeVar

import numpy as np

from edge_resnet.benchmark.process import WorkerProcess
from edge_resnet.benchmark.result import BenchmarkSettings
from edge_resnet.benchmark.timing import warm_up
from edge_resnet.errors import MissingToolError

__all__ = ["batch_throughput", "conditions_there", "measure_in_turns"]

Key = TypeVar("Key", bound=Hashable)


def measure_in_turns(
    workers: Mapping[Key, WorkerProcess],
    settings: BenchmarkSettings,
    advance: Callable[[int], None],
    lost: dict[Key, str],
    reason: Callable[[MissingToolError], str],
) -> tuple[dict[Key, list[float]], dict[Key, float]]:
    """Milliseconds of each worker's artifact, in turns, and millijoules for one image where the host tells.

    `lost` receives why those that were lost on the way were.
    """
    samples: dict[Key, list[float]] = {key: [] for key in workers}
    energy: dict[Key, list[float]] = {key: [] for key in workers}

    def turn(key: Key, count: int) -> list[float]:
        if key in lost:
            return []
        try:
            times = workers[key].run(settings.settle + count)
        except MissingToolError as error:
            lost[key] = reason(error)
            return []
        used = workers[key].energy_uj
        if used is not None:
            energy[key].append(used / (1000 * len(times)))
        return times[settings.settle :]

    for key in workers:
        warm_up(partial(turn, key, settings.block), settings.warmup_blocks, settings.steady)
        energy[key].clear()
    for done in range(0, settings.runs, settings.block):
        count = min(settings.block, settings.runs - done)
        for key in workers:
            samples[key] += turn(key, count)
            advance(count)
    return samples, {key: float(np.median(values)) for key, values in energy.items() if values}


def batch_throughput(
    workers: Mapping[str, WorkerProcess],
    settings: BenchmarkSettings,
    lost: Mapping[str, str],
    reason: Callable[[MissingToolError], str],
) -> dict[str, float]:
    """Images a second of each artifact at batches of `settings.batch`, in turns."""
    if settings.batch == 1:
        return {}
    turns = max(2, settings.runs // settings.block)
    samples: dict[str, list[float]] = {key: [] for key in workers if key not in lost}
    for _ in range(turns):
        for key in list(samples):
            try:
                samples[key] += workers[key].run_batch(settings.batch, 2)[1:]
            except MissingToolError as error:
                reason(error)  # a runtime that takes single images only: the throughput stays unknown
                del samples[key]
    return {key: 1000 * settings.batch / float(np.median(times)) for key, times in samples.items()}


def conditions_there(workers: Mapping[str, WorkerProcess], lost: Mapping[str, str]) -> dict[str, Any]:
    """Clock, load and temperature there; empty where nobody is left to ask."""
    for key, worker in workers.items():
        if key not in lost:
            with contextlib.suppress(MissingToolError):
                return worker.conditions()
    return {}
