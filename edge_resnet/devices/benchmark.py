"""`edge-resnet benchmark` as a function: artifacts on devices, into the reports of their runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edge_resnet.benchmark.result import BenchmarkSettings
from edge_resnet.devices.device import Job, Request
from edge_resnet.devices.into_report import add_to_report, benchmarks_of
from edge_resnet.devices.measure import Found, measure_all
from edge_resnet.devices.registry import open_devices
from edge_resnet.devices.run_artifacts import Images, MeasuredRun, artifacts_of, images_of
from edge_resnet.progress import Progress, SilentProgress
from edge_resnet.report.schema import Benchmark

__all__ = ["ALL_THREADS", "Benchmarked", "benchmark"]

ALL_THREADS = (1, 2, 0)
"""One, two, and as many as there are cores."""


@dataclass(frozen=True)
class Benchmarked:
    """`entries`: by the artifact's path. `reports`: what was written anew. `lost`: devices without all
    results, and why; `interrupted`: Ctrl-C ended it.
    """

    entries: Mapping[str, Sequence[Benchmark]]
    reports: tuple[Path, ...]
    lost: tuple[str, ...]
    interrupted: bool


def benchmark(
    paths: Sequence[str | Path],
    devices: Sequence[str] = ("local",),
    *,
    data: str | None = None,
    images: int | None = None,
    threads: Sequence[int] = ALL_THREADS,
    settings: BenchmarkSettings | None = None,
    progress: Progress | None = None,
) -> Benchmarked:
    """Measure artifacts, or the artifacts in folders, on devices by their URIs.

    `data`: the run's data; then the artifacts answer its test images on each device, `images` of them or as
    many as the device can bear. `threads`: 0 stands for all cores. Raises InputError for what is given
    wrongly; a device that is lost does not raise.
    """
    progress = progress or SilentProgress()
    opened = open_devices(devices)
    jobs, owners = artifacts_of([Path(path) for path in paths])
    runs = list({id(owner): owner for owner in owners.values()}.values())
    shown = None
    if data is not None:
        with progress.stage("read images"):
            shown = images_of(runs, jobs, data)
    settings = settings or BenchmarkSettings()
    request = Request(settings, tuple(dict.fromkeys(threads)), None if shown is None else shown.pixels)
    found = measure_all(opened, jobs, request, progress, images)
    with progress.stage("judge"):
        entries = _entries(found, jobs, owners, shown)
    for run in runs:
        add_to_report(run, {Path(key).name: entries[key] for key, owner in owners.items() if owner is run})
    reports = tuple(run.directory / "report.html" for run in runs)
    return Benchmarked(entries, reports, tuple(found.lost), found.interrupted)


def _entries(
    found: Found, jobs: Sequence[Job], owners: Mapping[str, MeasuredRun], images: Images | None
) -> dict[str, list[Benchmark]]:
    return {
        job.key: [
            entry
            for device, measurements in found.measurements.items()
            if job.key in measurements
            for entry in benchmarks_of(device, job.path, measurements[job.key], owners.get(job.key), images)
        ]
        for job in jobs
    }
