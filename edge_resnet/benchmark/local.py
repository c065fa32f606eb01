"""Measure artifacts on this machine: one fresh process each, timed in turn, A B A B.

The process of an artifact gives its cold start and its peak memory; it then waits for its turns, so that a
machine that slows down slows all artifacts alike.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edge_resnet.benchmark.statistics import latency_summary
from edge_resnet.errors import MissingToolError

__all__ = ["BenchmarkResult", "BenchmarkSettings", "benchmark_local"]

_WORKER = Path(__file__).with_name("worker.py")
_RUNTIMES = {".tflite": ("litert", "LiteRT/XNNPACK"), ".onnx": ("onnxruntime", "ONNX Runtime/CPU")}
# A spread above this share of the median means that something else was running.
_NOISY_SPREAD = 0.5


@dataclass(frozen=True)
class BenchmarkSettings:
    """`runs` timed inferences of each artifact, in turns of `block`.

    Warm-up: blocks until a block's median is within `steady` of the one before it, `warmup_blocks` at most.
    `timeout` bounds each answer of a process, in seconds.
    """

    runs: int = 200
    block: int = 10
    warmup_blocks: int = 10
    steady: float = 0.05
    timeout: float = 120.0


@dataclass(frozen=True)
class BenchmarkResult:
    """One entry of report.json's `benchmarks`. A figure that could not be had is None, with a note."""

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
    """Results by the artifacts' keys. `advance` counts timed inferences.

    An artifact whose process fails has a result without figures and a note that says why.
    """
    load = _load_per_core()
    results: dict[str, BenchmarkResult] = {}
    with contextlib.ExitStack() as stack:
        workers: dict[str, _Worker] = {}
        for key, path in artifacts:
            if path.suffix not in _RUNTIMES:
                results[key] = _without_figures(
                    "Core ML", threads, "Core ML runs on a Mac only; not measured here"
                )
                continue
            try:
                workers[key] = stack.enter_context(_Worker(path, threads, settings.timeout))
            except MissingToolError as error:
                results[key] = _without_figures(_RUNTIMES[path.suffix][1], threads, str(error))
        samples = _sample(workers, results, settings, advance)
        for key, latencies in samples.items():
            results[key] = _result(workers[key], latencies, threads, load)
    return {key: results[key] for key, _ in artifacts}


def _sample(
    workers: dict[str, _Worker],
    results: dict[str, BenchmarkResult],
    settings: BenchmarkSettings,
    advance: Callable[[int], None],
) -> dict[str, list[float]]:
    """Milliseconds of each artifact, measured in turns; a process that fails drops out."""
    samples: dict[str, list[float]] = {key: [] for key in workers}

    def turn(key: str, count: int) -> list[float]:
        try:
            return workers[key].run(count)
        except MissingToolError as error:
            worker = workers[key]
            results[key] = _without_figures(worker.runtime, worker.threads, str(error))
            samples.pop(key, None)
            return []

    for key in workers:
        _warm_up(lambda count, key=key: turn(key, count), settings)  # type: ignore[misc]
    for done in range(0, settings.runs, settings.block):
        for key in list(samples):
            latencies = turn(key, min(settings.block, settings.runs - done))
            if key in samples:
                samples[key] += latencies
            advance(len(latencies))
    return samples


def _warm_up(run: Callable[[int], list[float]], settings: BenchmarkSettings) -> None:
    before = float("inf")
    for _ in range(settings.warmup_blocks):
        latencies = run(settings.block)
        if not latencies:
            return
        median = float(np.median(latencies))
        if abs(median - before) <= settings.steady * median:
            return
        before = median


def _result(worker: _Worker, latencies: list[float], threads: int, load: float | None) -> BenchmarkResult:
    summary = latency_summary(latencies)
    hello = worker.hello
    before = hello["rss_before_bytes"] / 2**20
    notes = [f"of the peak memory, {before:.0f} MiB were there before the model was loaded"]
    spread = (summary["p95"] - summary["p50"]) / summary["p50"]
    if spread > _NOISY_SPREAD:
        notes.append(f"noisy: p95 is {spread:.0%} above the median")
    if load is not None and load > 1:
        notes.append(f"noisy: the machine's load was {load:.1f} for each core before the start")
    return BenchmarkResult(
        device="local",
        runtime=worker.runtime,
        runtime_version=hello["version"],
        threads=threads,
        kind="measured",
        runs=len(latencies),
        latency_ms=summary,
        cold_start_ms=hello["cold_start_ms"],
        peak_memory_bytes=worker.peak_memory,
        throughput_per_s=1000 / summary["mean"],
        notes=notes,
    )


def _without_figures(runtime: str, threads: int, reason: str) -> BenchmarkResult:
    return BenchmarkResult("local", runtime, "", threads, "measured", 0, None, None, None, None, [reason])


def _load_per_core() -> float | None:
    try:
        return os.getloadavg()[0] / (os.cpu_count() or 1)
    except OSError:
        return None


class _Worker:
    """A worker process; ends with the `with` block, whatever happens inside."""

    def __init__(self, path: Path, threads: int, timeout: float) -> None:
        self.path, self.threads, self.timeout = path, threads, timeout
        name, self.runtime = _RUNTIMES[path.suffix]
        command = [sys.executable, str(_WORKER), str(path), "--runtime", name, "--threads", str(threads)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self._lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        self.peak_memory = 0
        try:
            self.hello = self._answer()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> _Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, count: int) -> list[float]:
        """Milliseconds of `count` inferences. Raises MissingToolError when the process is lost."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"run": count}) + "\n")
            self._process.stdin.flush()
        except OSError as error:
            raise MissingToolError(f"{self.path.name}: the benchmark process ended: {error}") from error
        return [nanoseconds / 1e6 for nanoseconds in self._answer()["latency_ns"]]

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with contextlib.suppress(ValueError):  # closed while reading, at the end
            for line in self._process.stdout:
                self._lines.put(line)
        self._lines.put(None)

    def _answer(self) -> dict[str, Any]:
        try:
            line = self._lines.get(timeout=self.timeout)
        except queue.Empty:
            raise MissingToolError(f"{self.path.name}: no answer within {self.timeout:.0f} s") from None
        if line is None:
            code = self._process.wait()
            raise MissingToolError(f"{self.path.name}: the benchmark process ended with code {code}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise MissingToolError(f"{self.path.name}: {answer['error']}")
        self.peak_memory = int(answer["peak_memory_bytes"])
        return answer
