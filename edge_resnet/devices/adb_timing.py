"""Latencies on a phone, in turns of short processes.

benchmark_model tells every latency only of up to three runs (see benchmark_model.py). So a turn of ten runs
is four processes, each warmed up for itself: percentiles are then of single inferences, as on other devices.
A GPU's delegate compiles its kernels at every start, which may take seconds: then they are kept for the next
process, if benchmark_model can. Where starting takes long all the same, a turn is one process, and the
percentiles are of the turns' averages; a note says so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from edge_resnet.benchmark.result import BenchmarkResult, BenchmarkSettings, without_figures
from edge_resnet.benchmark.timing import latency_summary, warm_up
from edge_resnet.devices.adb_session import AdbSession, command_line
from edge_resnet.devices.benchmark_model import MOST_EXACT, Delegate, Report, arguments, parse_report
from edge_resnet.devices.device import DeviceLostError, Job
from edge_resnet.devices.host import noise
from edge_resnet.devices.phone_state import heat_notes
from edge_resnet.errors import EdgeResnetError, MissingToolError
from edge_resnet.frontends.tflite import open_tflite
from edge_resnet.progress import Advance

__all__ = ["TimedOnPhone", "Tool", "library_path"]

_KIND = "measured"
# A new process starts on any core, at any clock; after some tens of milliseconds of work the scheduler has
# it on a fast one. Longer than that, and short enough for dozens of processes.
_WARM_SECONDS = 0.2
# Starting all the short processes of one artifact may take so long; more, and a turn is one process.
_MOST_STARTING = 60.0
_BATCH_PROCESSES = 3


@dataclass(frozen=True)
class Tool:
    """benchmark_model there. `version`: it tells none, so it is known by its content. `keeps`: it can keep
    what a delegate compiled for the next process.
    """

    path: str
    version: str
    keeps: bool = False


@dataclass
class _Artifact:
    """What is known of one so far; times in microseconds. `starting`: what a process takes to be ready, with
    what was compiled before in `compiled`, a folder there, if any.
    """

    remote: str
    cold: Report
    exact: bool
    starting: float
    compiled: str = ""
    latencies: list[float] = field(default_factory=list)
    averages: list[float] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    batch_per_s: float | None = None
    notes: list[str] = field(default_factory=list)


class TimedOnPhone:
    def __init__(
        self, session: AdbSession, tool: Tool, uri: str, settings: BenchmarkSettings, advance: Advance
    ) -> None:
        self._session, self._tool, self._uri = session, tool, uri
        self._settings, self._advance = settings, advance
        self._fastest: list[int] = []

    def measure(self, jobs: Sequence[Job], delegate: Delegate, threads: int) -> dict[str, BenchmarkResult]:
        """A result for each job: without figures, and with a note, where the artifact failed.

        Raises DeviceLostError.
        """
        lost: dict[str, str] = {}
        able: dict[str, _Artifact] = {}
        for job in jobs:
            try:
                able[job.key] = self._cold(job, delegate, threads)
            except DeviceLostError:
                raise
            except MissingToolError as error:
                lost[job.key] = f"{job.path.name}: {error}"
                self._advance(self._settings.runs)
        self._fastest = []
        before = self._session.conditions()
        self._turns(able, delegate, threads, lost)
        if self._settings.batch > 1:
            for job in jobs:
                if job.key in able and job.key not in lost:
                    self._batch(job, able[job.key], delegate, threads)
        after = self._session.conditions()
        conditions = {"before": before, "after": after, "mhz_after_turns": self._fastest}
        return {
            job.key: without_figures(
                self._uri, delegate.runtime, _KIND, lost[job.key], threads, self._tool.version
            )
            if job.key in lost
            else self._result(able[job.key], delegate, threads, conditions)
            for job in jobs
        }

    def _cold(self, job: Job, delegate: Delegate, threads: int) -> _Artifact:
        """The first process: how long it takes to start, its memory, and what its delegate took."""
        remote = self._session.put(job.path)
        line = self._line(remote, delegate, threads, 1, warm_runs=1, memory=True)
        cold = parse_report(*self._session.call(line, self._settings.timeout), delegate)
        found = _Artifact(remote, cold, self._soon(cold), cold.initialized)
        if not found.exact and self._tool.keeps and not delegate.on_cpu:
            self._keep_compiled(found, delegate, threads)
        return found

    def _keep_compiled(self, found: _Artifact, delegate: Delegate, threads: int) -> None:
        """For the timed processes, where that helps."""
        folder = f"{self._session.own}/compiled"
        line = self._line(found.remote, delegate, threads, 1, warm_runs=1, memory=True, compiled=folder)
        for _ in range(2):  # the first writes what the second reads
            again = parse_report(*self._session.call(line, self._settings.timeout), delegate)
        if again.initialized < found.starting:
            found.starting, found.compiled, found.exact = again.initialized, folder, self._soon(again)
            found.notes.append(
                "the timed processes found what the delegate had compiled before (--delegate_serialize_dir) "
                f"and were ready after {again.initialized / 1e6:.2f} s; the cold start compiled it"
            )

    def _soon(self, report: Report) -> bool:
        """Whether there is time to start a process for every few runs."""
        processes = math.ceil(self._settings.runs / MOST_EXACT)
        return report.initialized / 1e6 * processes <= _MOST_STARTING

    def _turns(
        self, able: Mapping[str, _Artifact], delegate: Delegate, threads: int, lost: dict[str, str]
    ) -> None:
        settings = self._settings

        def turn(key: str, count: int) -> list[float]:
            if key in lost:
                return []
            try:
                return self._turn(able[key], delegate, threads, count)
            except DeviceLostError:
                raise
            except MissingToolError as error:
                lost[key] = str(error)
                return []

        for key, artifact in able.items():
            warm_up(partial(turn, key, settings.block), settings.warmup_blocks, settings.steady)
            artifact.latencies, artifact.averages, artifact.counts = [], [], []
        self._fastest = []
        for done in range(0, settings.runs, settings.block):
            count = min(settings.block, settings.runs - done)
            for key in able:
                turn(key, count)
                self._advance(count)

    def _turn(self, artifact: _Artifact, delegate: Delegate, threads: int, count: int) -> list[float]:
        """Microseconds of each run, or the average of all of them."""
        most = MOST_EXACT if artifact.exact else count
        sizes = [min(most, count - done) for done in range(0, count, most)]
        lines = [
            self._line(
                artifact.remote,
                delegate,
                threads,
                size,
                warm_runs=max(1, self._settings.settle),
                compiled=artifact.compiled,
            )
            for size in sizes
        ]
        done, fastest = self._session.turn(lines, self._settings.timeout)
        if len(done) != len(lines):
            raise MissingToolError(f"{len(done)} of {len(lines)} processes ran")
        found: list[float] = []
        for code, said in done:
            runs = parse_report(code, said, delegate).runs
            artifact.averages.append(runs.mean)
            artifact.counts.append(runs.count)
            each = runs.each if artifact.exact else None
            artifact.exact = each is not None
            found += each or [runs.mean]
        artifact.latencies += found
        if fastest is not None:
            self._fastest.append(fastest)
        return found

    def _batch(self, job: Job, artifact: _Artifact, delegate: Delegate, threads: int) -> None:
        """Images a second where several come at once; a note where artifact or delegate takes one only."""
        batch = self._settings.batch
        try:
            shape = (batch, *open_tflite(job.path).size, 3)
            line = self._line(artifact.remote, delegate, threads, MOST_EXACT, warm_runs=1, shape=shape)
            done, _ = self._session.turn([line] * _BATCH_PROCESSES, self._settings.timeout)
            runs = [parse_report(code, said, delegate).runs for code, said in done]
            artifact.batch_per_s = 1e6 * batch / float(np.median([one.mean for one in runs]))
        except DeviceLostError:
            raise
        except EdgeResnetError as error:
            artifact.notes.append(f"no throughput at {batch} images at once: {error}")

    def _line(
        self,
        remote: str,
        delegate: Delegate,
        threads: int,
        runs: int,
        *,
        warm_runs: int,
        memory: bool = False,
        shape: Sequence[int] = (),
        compiled: str = "",
    ) -> str:
        """The first process is not warmed up: its first inference is what is asked for."""
        given = arguments(
            remote,
            delegate,
            threads,
            runs,
            warm_runs=warm_runs,
            warm_seconds=0 if memory else _WARM_SECONDS,
            most_seconds=self._settings.timeout,
            memory=memory,
            shape=shape,
            compiled=compiled,
        )
        return command_line(self._tool.path, given, library_path(delegate))

    def _result(
        self, artifact: _Artifact, delegate: Delegate, threads: int, conditions: Mapping[str, Any]
    ) -> BenchmarkResult:
        cold, facts = artifact.cold, self._session.facts
        summary = latency_summary([latency / 1000 for latency in artifact.latencies])
        summary["mean"] = float(np.average(artifact.averages, weights=artifact.counts)) / 1000
        before, after = conditions["before"], conditions["after"]
        return BenchmarkResult(
            device=self._uri,
            runtime=cold.runtime(delegate),
            runtime_version=self._tool.version,
            threads=threads,
            kind=_KIND,
            runs=sum(artifact.counts),
            latency_ms=summary,
            cold_start_ms=(cold.initialized + cold.first_inference) / 1000,
            peak_memory_bytes=cold.peak_bytes,
            throughput_per_s=1000 / summary["mean"],
            batch=None if artifact.batch_per_s is None else self._settings.batch,
            batch_throughput_per_s=artifact.batch_per_s,
            figures={
                "initialization_ms": cold.initialized / 1000,
                "first_inference_ms": cold.first_inference / 1000,
                **({} if cold.model_bytes is None else {"model_memory_bytes": cold.model_bytes}),
            },
            conditions={"phone": str(facts), **conditions},
            notes=[
                f"on {facts}",
                *cold.notes(delegate),
                self._percentiles(artifact),
                *artifact.notes,
                *heat_notes(before, after, conditions["mhz_after_turns"]),
                # Android's load average counts threads that wait for hardware: no idle phone's is low.
                *noise(summary, threads if delegate.on_cpu else 1, facts.cores, {}),
            ],
        )

    @staticmethod
    def _percentiles(artifact: _Artifact) -> str:
        """What the percentiles are of."""
        count = len(artifact.counts)
        processes = f"{count} process{'' if count == 1 else 'es'}"
        if artifact.exact:
            return (
                f"single inferences, of {processes} with at most {MOST_EXACT} timed runs, each "
                f"warmed up for {_WARM_SECONDS:g} s"
            )
        return (
            f"p50, p95 and p99 are of the averages of {processes} with {max(artifact.counts)} runs "
            f"each, not of single inferences: to start one takes {artifact.starting / 1e6:.1f} s"
        )


def library_path(delegate: Delegate) -> dict[str, str]:
    """Where a vendor's delegate finds its other libraries, on the CPU and on the DSP."""
    prefix = "--external_delegate_path="
    folders = [
        flag.removeprefix(prefix).rpartition("/")[0] for flag in delegate.flags if flag.startswith(prefix)
    ]
    return dict.fromkeys(("LD_LIBRARY_PATH", "ADSP_LIBRARY_PATH"), folders[0]) if folders else {}
