"""`edge-resnet benchmark`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rich.console import JustifyMethod
from rich.table import Table
from rich.text import Text

from edge_resnet.benchmark.result import BenchmarkSettings
from edge_resnet.cli.console import ConsoleProgress, error_console
from edge_resnet.devices.device import Job, Request
from edge_resnet.devices.into_report import add_to_report, benchmarks_of
from edge_resnet.devices.measure import Found, measure_all
from edge_resnet.devices.registry import open_devices
from edge_resnet.devices.run_artifacts import Images, MeasuredRun, artifacts_of, images_of
from edge_resnet.report.schema import Benchmark
from edge_resnet.report.wording import NO_FIGURE, memory_words, milliseconds, percent, points, share

__all__ = ["run"]

INTERRUPTED = 130
LOST = 3


def run(
    paths: Sequence[Path],
    devices: Sequence[str],
    data: str | None,
    images: int | None,
    threads: Sequence[int],
    runs: int,
    batch: int,
    as_json: bool,
) -> int:
    """Measure, put what was found into the runs' reports, and print one row for each artifact and device."""
    opened = open_devices(devices)
    jobs, owners = artifacts_of(paths)
    distinct = list({id(owner): owner for owner in owners.values()}.values())
    console = error_console()
    progress = ConsoleProgress(console, quiet=as_json)
    shown = None
    if data is not None:
        with progress.stage("read images"):
            shown = images_of(distinct, jobs, data)
    settings = BenchmarkSettings(runs=runs, batch=batch)
    request = Request(settings, tuple(dict.fromkeys(threads)), None if shown is None else shown.pixels)
    found = measure_all(opened, jobs, request, progress, images)
    with progress.stage("judge"):
        entries = _entries(found, jobs, owners, shown)
    for owner in distinct:
        mine = {Path(key).name: entries[key] for key, other in owners.items() if other is owner}
        add_to_report(owner, mine)
    if as_json:
        dumped = {key: [entry.model_dump(mode="json") for entry in rows] for key, rows in entries.items()}
        print(json.dumps(dumped, indent=1))
    else:
        for table in _tables(entries):
            console.print(table)
        for key, rows in entries.items():
            for line in dict.fromkeys(f"{entry.device}: {note}" for entry in rows for note in entry.notes):
                console.print(f"{Path(key).name}: {line}", markup=False, highlight=False, soft_wrap=True)
        for owner in distinct:
            print(owner.directory / "report.html")
    for reason in found.lost:
        print(f"edge-resnet: {reason}", file=sys.stderr)
    if found.interrupted:
        print("edge-resnet: interrupted; what was found before is kept", file=sys.stderr)
        return INTERRUPTED
    return LOST if found.lost else 0


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


def _tables(entries: Mapping[str, Sequence[Benchmark]]) -> Iterator[Table]:
    """One for each artifact; report.html has every figure, these fit into a terminal."""
    left = ("device", "runtime", "how")
    headings = (*left, "thr", "p50", "p99", "memory", "top-1", "delta", "same")
    for key, rows in entries.items():
        table = Table(
            box=None, pad_edge=False, title=Path(key).name, title_justify="left", title_style="bold"
        )
        for heading in headings:
            side: JustifyMethod = "left" if heading in left else "right"
            table.add_column(heading, justify=side, overflow="fold" if heading in left else "ellipsis")
        for entry in rows:
            # As Text: a name may hold brackets, which rich would take for its own markup.
            table.add_row(*map(Text, _cells(entry)))
        yield table


def _cells(entry: Benchmark) -> tuple[str, ...]:
    latency, accuracy, parity = entry.latency_ms, entry.accuracy, entry.parity
    times = [NO_FIGURE] * 2
    if latency is not None:
        times = [NO_FIGURE if t is None else milliseconds(t) for t in (latency.p50, latency.p99)]
    delta = None if accuracy is None else accuracy.delta
    return (
        entry.device,
        entry.runtime,
        entry.kind,
        str(entry.threads),
        *times,
        NO_FIGURE if entry.peak_memory_bytes is None else memory_words(entry.peak_memory_bytes),
        NO_FIGURE if accuracy is None else percent(accuracy.top1),
        NO_FIGURE if delta is None else points(delta),
        NO_FIGURE if parity is None else share(parity.identical),
    )
