"""Measuring where Python runs: on this machine, on a board, on an emulated CPU.

One process an artifact, timed in turn, A B A B: benchmark/worker.py, which speaks JSON lines over whatever
connects us. The process gives its cold start and its peak memory; it then waits for its turns, so that a
machine that slows down slows all artifacts alike.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edge_resnet.benchmark.process import WorkerProcess
from edge_resnet.benchmark.result import BenchmarkResult, without_figures
from edge_resnet.benchmark.timing import latency_summary, tail
from edge_resnet.benchmark.turns import batch_throughput, conditions_there, measure_in_turns
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
            before = conditions_there(workers, lost)
            samples, energy = measure_in_turns(workers, self._settings, self._advance, lost, self._reason)
            batches = batch_throughput(workers, self._settings, lost, self._reason)
            after = conditions_there(workers, lost)
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
        """The logits of each artifact for all images, or for those before it failed."""
        there = self._session.images(pixels)
        for job in jobs:
            parts: list[NDArray[np.float32]] = []
            version = ""
            try:
                with self._worker(job, 1) as worker:
                    version = worker.start.version
                    for part in worker.parts(there, len(pixels), _IMAGES_AT_ONCE):
                        parts.append(part)
                        self._advance(len(part))
            except MissingToolError as error:
                known = sum(map(len, parts))
                self._keep(job, parts, version)
                note = f"only {known} of {len(pixels)} images: {self._reason(error)}"
                self._found[job.key].benchmarks.append(self._without(job, 1, note))
                self._advance(len(pixels) - known)
            else:
                self._keep(job, parts, version)

    def _keep(self, job: Job, parts: Sequence[NDArray[np.float32]], version: str) -> None:
        if parts:
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
