"""How fast a trial's file is, timed in turn with the unpruned one, one process at a time."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edge_resnet.benchmark.result import BenchmarkResult, BenchmarkSettings
from edge_resnet.devices.local import benchmark_local
from edge_resnet.errors import MissingToolError

__all__ = ["Speed", "measure_speed", "measuring"]


@dataclass(frozen=True)
class Speed:
    """Median latencies of one image in milliseconds, measured in turn."""

    milliseconds: float
    unpruned: float

    @property
    def part(self) -> float:
        return self.milliseconds / self.unpruned


def measure_speed(path: Path, unpruned: Path, runs: int, threads: int) -> Speed:
    """Raises MissingToolError where the runtime cannot run one of the two files."""
    with measuring():
        files = [("trial", path), ("unpruned", unpruned)]
        results = benchmark_local(files, threads, BenchmarkSettings(runs=runs))
    return Speed(_median(results["trial"]), _median(results["unpruned"]))


def _median(result: BenchmarkResult) -> float:
    if result.latency_ms is None:
        raise MissingToolError(f"the latency could not be measured: {'; '.join(result.notes)}")
    return result.latency_ms["p50"]


@contextmanager
def measuring() -> Iterator[None]:
    """Only one process of a user measures on this machine while the block runs."""
    try:
        import fcntl
    except ImportError:  # Windows: workers there disturb each other, and the ratio has to bear it
        yield
        return
    path = Path(tempfile.gettempdir()) / f"edge-resnet-measuring-{os.getuid()}.lock"
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)  # released with the process, however it ends
        yield
    finally:
        os.close(handle)
