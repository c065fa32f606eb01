"""How much faster pruning made a model: its int8 file and the unpruned one are timed in turn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from edge_resnet.pruning_record import LatencyRecord
from edge_resnet.run import Run
from edge_resnet.targets import TARGETS

if TYPE_CHECKING:
    from edge_resnet.benchmark.result import BenchmarkResult

__all__ = ["record_speed", "unpruned_files"]

# What latencies are predicted for, and the name under which the unpruned one is timed.
_TIMED, _UNPRUNED = "tflite-int8", "unpruned tflite-int8"


def unpruned_files(run: Run, folder: Path) -> list[tuple[str, Path]]:
    """What else is to be timed, written into `folder`; none of it is an artifact.

    The unpruned int8 .tflite; and the run's own, where that is no target. Nothing where nothing was pruned.
    """
    if run.pruning is None or run.unpruned is None:
        return []
    assert run.quantized is not None
    graphs = {_UNPRUNED: run.unpruned}
    if _TIMED not in {target.name for target in run.targets}:
        graphs[_TIMED] = run.quantized
    files = []
    for name, graph in graphs.items():
        path = folder / f"{name.replace(' ', '-')}.tflite"
        TARGETS[_TIMED].write(graph, path, run.recipe.export)
        files.append((name, path))
    return files


def record_speed(run: Run, results: Mapping[str, BenchmarkResult]) -> None:
    """Put the measured medians beside what was predicted; without a table they stand alone."""
    if run.pruning is None or _UNPRUNED not in results:
        return
    final, unpruned = results[_TIMED], results[_UNPRUNED]
    latency = run.pruning.latency
    if latency is None:
        runtime = f"{final.runtime} {final.runtime_version}".strip()
        latency = LatencyRecord(runtime, final.threads, None, None, None, None)
    run.pruning.latency = replace(
        latency,
        measured_ms=None if final.latency_ms is None else final.latency_ms["p50"],
        measured_unpruned_ms=None if unpruned.latency_ms is None else unpruned.latency_ms["p50"],
    )
