"""`apple`: this Mac, through Core ML, on each choice of compute units.

Written against coremltools' documented interface, its logic tested with objects that have that interface; it
was never seen running on a Mac.
"""

from __future__ import annotations

import contextlib
import platform
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edge_resnet.benchmark.process import WorkerProcess
from edge_resnet.benchmark.result import BenchmarkResult, BenchmarkSettings, without_figures
from edge_resnet.benchmark.timing import latency_summary
from edge_resnet.benchmark.turns import measure_in_turns
from edge_resnet.cpu import this_cpu
from edge_resnet.devices.apple_worker import UNITS
from edge_resnet.devices.device import Answers, Job, Measurement, Request
from edge_resnet.devices.host import noise
from edge_resnet.errors import InputError, MissingToolError
from edge_resnet.progress import Advance

__all__ = ["AppleDevice", "AppleProcess", "open_apple"]

_SUFFIX = ".mlpackage"
_KIND = "measured"
_ANSWERING = "ALL"  # what an app gets that does not ask for anything
_IMAGES_AT_ONCE = 50
# The processor that is there besides the CPU.
_WANTED = {"CPU_AND_GPU": ("GPU",), "CPU_AND_NE": ("Neural Engine",), "ALL": ("GPU", "Neural Engine")}
_BRIDGE = (
    "a latency includes coremltools' way from Python to Core ML and back; Core ML chooses its own threads, "
    "and the processor of each operation: `layers` is its plan, `cost_share` its estimate"
)


class AppleProcess(WorkerProcess):
    """apple_worker.py, running."""

    def __enter__(self) -> AppleProcess:
        return self

    def plan(self) -> list[dict[str, Any]]:
        """Which processor runs each operation; see apple_worker.plan_rows."""
        layers: list[dict[str, Any]] = self._asked({"plan": True})["layers"]
        return layers


class AppleDevice:
    """A Device. Each package has an entry for each choice of compute units, all timed in turns."""

    uri = "apple"
    most_images: int | None = None

    def steps(self, jobs: Sequence[Job], request: Request) -> int:
        images = 0 if request.pixels is None else len(request.pixels)
        return len(jobs) * (len(UNITS) * request.settings.runs + images)

    def measure(self, jobs: Sequence[Job], request: Request, advance: Advance) -> dict[str, Measurement]:
        """Raises MissingToolError where this is no Mac."""
        if platform.system() != "Darwin":
            raise MissingToolError(
                f"{self.uri}: needs a Mac, and this is {platform.system()}; run edge-resnet there, with the "
                "folder of the run"
            )
        found = {job.key: Measurement() for job in jobs}
        able = [job for job in jobs if job.path.suffix == _SUFFIX]
        for job in jobs:
            if job not in able:
                note = (
                    f"Core ML runs {_SUFFIX} only; `--device local` measures {job.path.suffix} on a Mac too"
                )
                found[job.key].benchmarks.append(without_figures(self.uri, "Core ML", _KIND, note))
                advance(self.steps([job], request))
        _time(able, request.settings, found, advance)
        if request.pixels is not None:
            with tempfile.TemporaryDirectory(prefix="edge-resnet-") as folder:
                images = Path(folder) / "images.npy"
                np.save(images, request.pixels)
                for job in able:
                    _answer(job, images, len(request.pixels), request.settings, found[job.key], advance)
        return found


def _process(job: Job, units: str, timeout: float) -> AppleProcess:
    module = "edge_resnet.devices.apple_worker"
    command = [sys.executable, "-m", module, str(job.path), "--units", units]
    return AppleProcess(command, f"{job.path.name} on {units}", timeout)


def _time(
    jobs: Sequence[Job], settings: BenchmarkSettings, found: dict[str, Measurement], advance: Advance
) -> None:
    """Latencies, memory, cold start and plan of each package on each choice of units."""
    keys = [(job, units) for job in jobs for units in UNITS]
    lost: dict[tuple[str, str], str] = {}
    with contextlib.ExitStack() as stack:
        running: dict[tuple[str, str], AppleProcess] = {}
        for job, units in keys:
            try:
                running[job.key, units] = stack.enter_context(_process(job, units, settings.timeout))
            except MissingToolError as error:
                lost[job.key, units] = str(error)
                advance(settings.runs)
        samples, _ = measure_in_turns(running, settings, advance, lost, str)
        for job, units in keys:
            key = (job.key, units)
            if key not in lost:
                try:
                    result = _result(units, running[key], samples[key])
                except MissingToolError as error:
                    lost[key] = str(error)
            if key in lost:
                result = without_figures(AppleDevice.uri, f"Core ML ({units})", _KIND, lost[key])
            found[job.key].benchmarks.append(result)


def _result(units: str, process: AppleProcess, latencies: Sequence[float]) -> BenchmarkResult:
    summary, start = latency_summary(latencies), process.start
    layers, reason = _plan(process)
    return BenchmarkResult(
        device=AppleDevice.uri,
        runtime=f"Core ML ({units})",
        runtime_version=start.version,
        threads=1,
        kind=_KIND,
        runs=len(latencies),
        latency_ms=summary,
        cold_start_ms=start.cold_start_ms,
        peak_memory_bytes=process.peak_memory_bytes,
        throughput_per_s=1000 / summary["mean"],
        figures=_figures(layers),
        layers=layers,
        notes=[_BRIDGE, *reason, *_fallback(units, layers), *noise(summary, 1, this_cpu().cores, {})],
    )


def _plan(process: AppleProcess) -> tuple[list[dict[str, Any]], list[str]]:
    """The plan, or why there is none: macOS before 14.4 has no such interface."""
    try:
        return process.plan(), []
    except MissingToolError as error:
        return [], [f"no compute plan: {error}"]


def _figures(layers: Sequence[dict[str, Any]]) -> dict[str, float | int]:
    """How many operations each processor runs, and its share of Core ML's estimate of the cost."""
    figures: dict[str, float | int] = {}
    for processor, count in Counter(row["runs_on"] for row in layers).items():
        name = processor.lower().replace(" ", "_")
        costs = [row["cost_share"] for row in layers if row["runs_on"] == processor]
        figures[f"{name}_operations"] = count
        if all(cost is not None for cost in costs):
            figures[f"{name}_cost_share"] = round(sum(costs), 4)
    return figures


def _fallback(units: str, layers: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Core ML says nothing when it leaves operations to the CPU; this does."""
    wanted = _WANTED.get(units, ())
    if not wanted or not layers:
        return
    left = [row for row in layers if row["runs_on"] not in wanted]
    if not left:
        return
    kinds = ", ".join(dict.fromkeys(str(row["operator"]) for row in left))
    where = " or the ".join(wanted)
    yield f"{len(left)} of {len(layers)} operations run on the CPU, not on the {where}: {kinds}"


def _answer(
    job: Job, images: Path, count: int, settings: BenchmarkSettings, found: Measurement, advance: Advance
) -> None:
    """The package's logits for all images, on all of the Mac's processors."""
    parts: list[np.ndarray[Any, np.dtype[np.float32]]] = []
    runtime, version = f"Core ML ({_ANSWERING})", ""
    try:
        with _process(job, _ANSWERING, settings.timeout) as process:
            version = process.start.version
            for part in process.parts(str(images), count, _IMAGES_AT_ONCE):
                parts.append(part)
                advance(len(part))
    except MissingToolError as error:
        note = f"only {sum(map(len, parts))} of {count} images: {error}"
        found.benchmarks.append(without_figures(AppleDevice.uri, runtime, _KIND, note))
    if parts:
        found.answers = Answers(np.concatenate(parts), runtime, version, _KIND)


def open_apple(uri: str) -> AppleDevice:
    if uri != "apple":
        raise InputError(f"--device {uri}: this Mac is called `apple`, with nothing behind it")
    return AppleDevice()
