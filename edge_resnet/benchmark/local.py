"""Measure artifacts on this machine: one fresh process each, timed in turn, A B A B.

The process of an artifact gives its cold start and its peak memory; it then waits for its turns, so that a
machine that slows down slows all artifacts alike.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from edge_resnet.benchmark.process import WorkerProcess, worker_command
from edge_resnet.benchmark.timing import latency_summary, tail, warm_up
from edge_resnet.cpu import this_cpu
from edge_resnet.errors import InputError, MissingToolError

__all__ = ["BenchmarkResult", "BenchmarkSettings", "benchmark_local"]

# The worker's name of the runtime, and the report's.
_RUNTIMES = {".tflite": ("litert", "LiteRT/XNNPACK"), ".onnx": ("onnxruntime", "ONNX Runtime/CPU")}
_COREML_SUFFIX = ".mlpackage"
# A p95 this share above the median means that something else was running, or that the clock changed.
_NOISY_TAIL = 0.5


@dataclass(frozen=True)
class BenchmarkSettings:
    """`runs` timed inferences of each artifact, in turns of `block`, each after `settle` untimed ones.

    Settling: the first inference after another process had the core was measured at 1.2 to 1.7 times the
    median, the second at 1.01 to 1.07, the third at 1.00 to 1.02 (ResNet-20). Timed, the
    first would be one sample in ten: the p95.
    Warm-up: blocks until a block's median is within the share `steady` of the one before it,
    `warmup_blocks` at most. `timeout` bounds each answer of a process, in seconds.
    """

    runs: int = 200
    block: int = 10
    settle: int = 2
    warmup_blocks: int = 10
    steady: float = 0.05
    timeout: float = 120.0

    def __post_init__(self) -> None:
        if self.runs < 1 or self.block < 1 or self.settle < 0:
            raise InputError(f"benchmark: {self.runs} runs in blocks of {self.block} cannot be timed")


@dataclass(frozen=True)
class BenchmarkResult:
    """One entry of report.json's `benchmarks`. A figure that could not be had is None, with a note.

    Latencies and cold start are in milliseconds for one image, throughput in images a second at batch 1.
    """

    device: str
    runtime: str
    runtime_version: str
    threads: int
    kind: str
    runs: int
    latency_ms: dict[str, float] | None
    cold_start_ms: float | None
    peak_memory_bytes: int | None
    throughput_per_s: float | None
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def benchmark_local(
    artifacts: Sequence[tuple[str, Path]],
    threads: int,
    settings: BenchmarkSettings,
    advance: Callable[[int], None] = lambda steps: None,
) -> dict[str, BenchmarkResult]:
    """Results by the artifacts' keys, in their order.

    `advance(steps)` follows the timed inferences, `runs` for each artifact; those of an artifact that fails
    count as done. Such an artifact has a result without figures and a note that
    says why. Raises InputError for a file that no runtime here knows.
    """
    for _, path in artifacts:
        if path.suffix not in (*_RUNTIMES, _COREML_SUFFIX):
            raise InputError(f"{path}: not an artifact ({', '.join((*_RUNTIMES, _COREML_SUFFIX))})")
    load = _load_per_core()
    results: dict[str, BenchmarkResult] = {}
    with contextlib.ExitStack() as stack:
        workers: dict[str, WorkerProcess] = {}
        for key, path in artifacts:
            try:
                workers[key] = stack.enter_context(_open(path, threads, settings.timeout))
            except MissingToolError as error:
                results[key] = _without_figures(path, threads, str(error))
                advance(settings.runs)
        samples, lost = _measure(workers, settings, advance)
        for key, path in artifacts:
            if key in lost:
                results[key] = _without_figures(path, threads, lost[key])
            elif key in samples:
                results[key] = _result(path, workers[key], samples[key], threads, load)
    return {key: results[key] for key, _ in artifacts}


def _open(path: Path, threads: int, timeout: float) -> WorkerProcess:
    if path.suffix == _COREML_SUFFIX:
        if sys.platform == "darwin":
            raise MissingToolError("Core ML is not timed by this version; Xcode's performance report does")
        raise MissingToolError("Core ML runs on a Mac only; not measured here")
    return WorkerProcess(worker_command(path, _RUNTIMES[path.suffix][0], threads), path.name, timeout)


def _measure(
    workers: Mapping[str, WorkerProcess], settings: BenchmarkSettings, advance: Callable[[int], None]
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Milliseconds of each artifact, measured in turns, and why those that were lost on the way were."""
    samples: dict[str, list[float]] = {key: [] for key in workers}
    lost: dict[str, str] = {}

    def turn(key: str, count: int) -> list[float]:
        if key in lost:
            return []
        try:
            return workers[key].run(settings.settle + count)[settings.settle :]
        except MissingToolError as error:
            lost[key] = str(error)
            return []

    for key in workers:
        warm_up(partial(turn, key, settings.block), settings.warmup_blocks, settings.steady)
    for done in range(0, settings.runs, settings.block):
        count = min(settings.block, settings.runs - done)
        for key in workers:
            samples[key] += turn(key, count)
            advance(count)
    return samples, lost


def _result(
    path: Path, worker: WorkerProcess, latencies: Sequence[float], threads: int, load: float | None
) -> BenchmarkResult:
    summary, start = latency_summary(latencies), worker.start
    return BenchmarkResult(
        device="local",
        runtime=_RUNTIMES[path.suffix][1],
        runtime_version=start.version,
        threads=threads,
        kind="measured",
        runs=len(latencies),
        latency_ms=summary,
        cold_start_ms=start.cold_start_ms,
        peak_memory_bytes=worker.peak_memory_bytes,
        throughput_per_s=1000 / summary["mean"],
        notes=[
            f"of the peak memory, {start.rss_before_bytes / 2**20:.0f} MiB were there before the model was "
            f"loaded; importing the runtime took {start.import_ms:.0f} ms, which is not in the cold start",
            *_noise(summary, threads, load),
        ],
    )


def _noise(summary: Mapping[str, float], threads: int, load: float | None) -> list[str]:
    """What makes these latencies doubtful, a line each."""
    notes = []
    if tail(summary) > _NOISY_TAIL:
        notes.append(
            f"noisy: p95 is {tail(summary):.0%} above the median; another program ran, "
            "or the CPU changed its frequency"
        )
    if load is not None and load > 1:
        notes.append(f"noisy: the machine's load was {load:.1f} for each core before the start")
    if threads > this_cpu().cores:
        notes.append(f"noisy: {threads} threads shared {this_cpu().cores} cores")
    return notes


def _without_figures(path: Path, threads: int, reason: str) -> BenchmarkResult:
    runtime = "Core ML" if path.suffix == _COREML_SUFFIX else _RUNTIMES[path.suffix][1]
    return BenchmarkResult("local", runtime, "", threads, "measured", 0, None, None, None, None, [reason])


def _load_per_core() -> float | None:
    """The system's load of the last minute for each of its cores; None where it does not tell."""
    try:
        return os.getloadavg()[0] / (os.cpu_count() or 1)
    except OSError:
        return None
