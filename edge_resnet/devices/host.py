"""Measuring where Python runs: on this machine, on a board, on an emulated CPU.

One process an artifact, timed in turn, A B A B: benchmark/worker.py, which speaks JSON lines over whatever
connects us. The process gives its cold start and its peak memory; it then waits for its turns, so that a
machine that slows down slows all artifacts alike.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edge_resnet.benchmark.process import WorkerProcess
from edge_resnet.benchmark.result import BenchmarkResult, BenchmarkSettings, without_figures
from edge_resnet.benchmark.timing import latency_summary, tail, warm_up
from edge_resnet.devices.device import Answers, DeviceLostError, Job, Measurement, Request
from edge_resnet.errors import InputError, MissingToolError
from edge_resnet.progress import Advance
from edge_resnet.targets import target_of_file

__all__ = ["RUNTIMES", "Host", "Session", "measure_on_host", "noise", "steps_on_host"]

# The worker's name of the runtime, and the report's.
RUNTIMES = {".tflite": ("litert", "LiteRT/XNNPACK"), ".onnx": ("onnxruntime", "ONNX Runtime/CPU")}
_COREML_SUFFIX = ".mlpackage"
# A p95 this share above the median means that something else was running, or that the clock changed.
_NOISY_TAIL = 0.5
_IMAGES_AT_ONCE = 50
_NO_MAC = "Core ML runs on a Mac only, and is measured there by --device apple; not measured here"


class Session(Protocol):
    """A host that is ready: reachable, with a Python that has numpy and the runtimes."""

    cores: int

    def command(self, artifact: Path, runtime: str, threads: int) -> list[str]:
        """The command line, run on this machine, that starts worker.py with the artifact there.

        What the artifact needs is copied before.
        """
        ...

    def images(self, pixels: NDArray[np.uint8]) -> str:
        """Copies images there, uint8 [N, H, W, 3]; the path of the .npy file as the worker sees it."""
        ...

    def lost(self) -> str | None:
        """Why the host itself cannot be reached any more, in a line that names it; None: it can."""
        ...


class Host(Protocol):
    """`kind` of its figures. `timed`: its clock means something; where not, no latency is claimed."""

    uri: str
    kind: str
    timed: bool

    def session(self, runtimes: Sequence[str]) -> AbstractContextManager[Session]:
        """Ready for the worker's `runtimes`; when it ends, nothing of ours runs there.

        Raises DeviceLostError, MissingToolError.
        """
        ...


def steps_on_host(jobs: Sequence[Job], request: Request, timed: bool = True) -> int:
    runs = request.settings.runs * len(request.threads) if timed else 0
    return len(jobs) * (runs + (0 if request.pixels is None else len(request.pixels)))


def measure_on_host(
    host: Host, jobs: Sequence[Job], request: Request, advance: Advance = lambda steps: None
) -> dict[str, Measurement]:
    """A measurement for each job, in their order. `advance` counts up to `steps_on_host`.

    An artifact that fails has benchmarks without figures, with a note that says why. Raises InputError for a
    file that no runtime knows, and what `Host.session` raises.
    """
    for job in jobs:
        if job.path.suffix not in (*RUNTIMES, _COREML_SUFFIX):
            raise InputError(f"{job.path}: not an artifact ({', '.join((*RUNTIMES, _COREML_SUFFIX))})")
    found = {job.key: Measurement() for job in jobs}
    able = []
    for job in jobs:
        name, note = "Core ML", _NO_MAC
        if job.path.suffix in RUNTIMES:
            if target_of_file(job.path).compiled_from is None:
                able.append(job)
                continue
            name, note = RUNTIMES[job.path.suffix][1], "compiled for an NPU: it does not run on a CPU"
        found[job.key].benchmarks.append(without_figures(host.uri, name, host.kind, note))
        advance(steps_on_host([job], request, host.timed))
    if not able:
        return found
    runtimes = list(dict.fromkeys(RUNTIMES[job.path.suffix][0] for job in able))
    try:
        with host.session(runtimes) as session:
            measured = _Measured(host, session, request, advance, found)
            if host.timed:
                for threads in _numbers_of_threads(request.threads, session.cores):
                    measured.time(able, threads)
            if request.pixels is not None:
                measured.answer(able, request.pixels)
    except DeviceLostError as error:
        error.partial = error.partial or found  # it may be lost on the way there with images
        raise
    return found


def _numbers_of_threads(wanted: Sequence[int], cores: int) -> list[int]:
    """Each once; 0 is all cores."""
    return list(dict.fromkeys(number or cores for number in wanted))


class _Measured:
    """What one session finds, put into `found` as it comes."""

    def __init__(
        self,
        host: Host,
        session: Session,
        request: Request,
        advance: Advance,
        found: dict[str, Measurement],
    ) -> None:
        self._host, self._session, self._settings = host, session, request.settings
        self._advance, self._found = advance, found

    def time(self, jobs: Sequence[Job], threads: int) -> None:
        lost: dict[str, str] = {}
        with contextlib.ExitStack() as stack:
            workers: dict[str, WorkerProcess] = {}
            for job in jobs:
                try:
                    workers[job.key] = stack.enter_context(self._worker(job, threads))
                except MissingToolError as error:
                    lost[job.key] = self._reason(error)
                    self._advance(self._settings.runs)
            before = _conditions(workers, lost)
            samples, energy = _measure(workers, self._settings, self._advance, lost, self._reason)
            batches = _batches(workers, self._settings, lost, self._reason)
            after = _conditions(workers, lost)
            for job in jobs:
                if job.key in lost:
                    result = self._without(job, threads, lost[job.key])
                else:
                    result = self._result(
                        job,
                        workers[job.key],
                        samples[job.key],
                        threads,
                        energy.get(job.key),
                        batches.get(job.key),
                        {"before": before, "after": after},
                    )
                self._found[job.key].benchmarks.append(result)

    def answer(self, jobs: Sequence[Job], pixels: NDArray[np.uint8]) -> None:
        """The logits of each artifact for all images."""
        there = self._session.images(pixels)
        for job in jobs:
            parts: list[NDArray[np.float32]] = []
            try:
                with self._worker(job, 1) as worker:
                    for first in range(0, len(pixels), _IMAGES_AT_ONCE):
                        count = min(_IMAGES_AT_ONCE, len(pixels) - first)
                        parts.append(worker.logits(there, first, count))
                        self._advance(count)
                    version = worker.start.version
            except MissingToolError as error:
                note = f"only {sum(map(len, parts))} of {len(pixels)} images: {self._reason(error)}"
                self._found[job.key].benchmarks.append(self._without(job, 1, note))
                continue
            name = RUNTIMES[job.path.suffix][1]
            self._found[job.key].answers = Answers(np.concatenate(parts), name, version, self._host.kind)

    def _worker(self, job: Job, threads: int) -> WorkerProcess:
        command = self._session.command(job.path, RUNTIMES[job.path.suffix][0], threads)
        return WorkerProcess(command, job.path.name, self._settings.timeout)

    def _reason(self, error: MissingToolError) -> str:
        """Why an artifact failed. Raises DeviceLostError where it is the host that is gone."""
        gone = self._session.lost()
        if gone is not None:
            raise DeviceLostError(gone, self._found) from error
        return str(error)

    def _without(self, job: Job, threads: int, reason: str) -> BenchmarkResult:
        runtime = RUNTIMES[job.path.suffix][1]
        return without_figures(self._host.uri, runtime, self._host.kind, reason, threads)

    def _result(
        self,
        job: Job,
        worker: WorkerProcess,
        latencies: Sequence[float],
        threads: int,
        energy_mj: float | None,
        batch: float | None,
        conditions: Mapping[str, Any],
    ) -> BenchmarkResult:
        summary, start = latency_summary(latencies), worker.start
        return BenchmarkResult(
            device=self._host.uri,
            runtime=RUNTIMES[job.path.suffix][1],
            runtime_version=start.version,
            threads=threads,
            kind=self._host.kind,
            runs=len(latencies),
            latency_ms=summary,
            cold_start_ms=start.cold_start_ms,
            peak_memory_bytes=worker.peak_memory_bytes,
            throughput_per_s=1000 / summary["mean"],
            batch=None if batch is None else self._settings.batch,
            batch_throughput_per_s=batch,
            energy_mj=energy_mj,
            conditions=conditions,
            notes=[
                f"of the peak memory, {start.rss_before_bytes / 2**20:.0f} MiB were there before the model "
                f"was loaded; importing the runtime took {start.import_ms:.0f} ms, which is not in the cold "
                "start",
                *noise(summary, threads, self._session.cores, conditions["before"]),
            ],
        )


def _measure(
    workers: Mapping[str, WorkerProcess],
    settings: BenchmarkSettings,
    advance: Callable[[int], None],
    lost: dict[str, str],
    reason: Callable[[MissingToolError], str],
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Milliseconds of each artifact, measured in turns, and millijoules for one image where the host tells.

    `lost` receives why those that were lost on the way were.
    """
    samples: dict[str, list[float]] = {key: [] for key in workers}
    energy: dict[str, list[float]] = {key: [] for key in workers}

    def turn(key: str, count: int) -> list[float]:
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


def _batches(
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


def _conditions(workers: Mapping[str, WorkerProcess], lost: Mapping[str, str]) -> dict[str, Any]:
    """Clock, load and temperature there; empty where nobody is left to ask."""
    for key, worker in workers.items():
        if key not in lost:
            with contextlib.suppress(MissingToolError):
                return worker.conditions()
    return {}


def noise(
    summary: Mapping[str, float], threads: int, cores: int, conditions: Mapping[str, Any]
) -> Iterator[str]:
    """What makes these latencies doubtful, a line each. `conditions`: before the runs, as the worker says."""
    if tail(summary) > _NOISY_TAIL:
        yield (
            f"noisy: p95 is {tail(summary):.0%} above the median; another program ran, "
            "or the CPU changed its frequency"
        )
    load = conditions.get("load_per_core")
    if load is not None and load > 1:
        yield f"noisy: the machine's load was {load:.1f} for each core before the start"
    if threads > cores:
        yield f"noisy: {threads} threads shared {cores} cores"
