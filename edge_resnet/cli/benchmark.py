"""`edge-resnet benchmark`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from edge_resnet.benchmark.result import BenchmarkSettings
from edge_resnet.cli.console import ConsoleProgress, error_console
from edge_resnet.devices.benchmark import Benchmarked, benchmark
from edge_resnet.report.present_devices import figure_words
from edge_resnet.report.schema import Benchmark
from edge_resnet.report.wording import NO_FIGURE, memory_words, milliseconds, percent, points, share

__all__ = ["print_benchmarks", "run"]

_INTERRUPTED = 130
_LOST = 3


def run(
    paths: Sequence[Path],
    devices: Sequence[str],
    data: str | None,
    images: int | None,
    threads: Sequence[int],
    settings: BenchmarkSettings,
    as_json: bool,
) -> int:
    """Measure, put what was found into the runs' reports, and print one row for each artifact and device."""
    console = error_console()
    progress = ConsoleProgress(console, quiet=as_json)
    found = benchmark(
        paths, devices, data=data, images=images, threads=threads, settings=settings, progress=progress
    )
    if as_json:
        rows = {key: [entry.model_dump(mode="json") for entry in row] for key, row in found.entries.items()}
        print(json.dumps(rows, indent=1))
    code = print_benchmarks(found, None if as_json else console)
    if not as_json:
        for report in found.reports:
            print(report)
    return code


def print_benchmarks(found: Benchmarked, console: Console | None) -> int:
    """Tables and notes on the console, and what went wrong on standard error; returns the exit code."""
    if console is not None:
        for table in _tables(found.entries):
            console.print(table)
        for key, rows in found.entries.items():
            lines = (
                f"{entry.device}: {line}"
                for entry in rows
                for line in (figure_words(entry), *entry.notes)
                if line
            )
            for line in dict.fromkeys(lines):
                console.print(f"{Path(key).name}: {line}", markup=False, highlight=False, soft_wrap=True)
    for reason in found.lost:
        print(f"edge-resnet: {reason}", file=sys.stderr)
    if found.interrupted:
        print("edge-resnet: interrupted; what was found before is kept", file=sys.stderr)
        return _INTERRUPTED
    return _LOST if found.lost else 0


def _tables(entries: Mapping[str, Sequence[Benchmark]]) -> Iterator[Table]:
    """One for each artifact, for a terminal of 80 columns; report.html has every figure."""
    for key, rows in entries.items():
        table = Table(
            box=None, pad_edge=False, title=Path(key).name, title_justify="left", title_style="bold"
        )
        table.add_column("device", overflow="fold")
        table.add_column("runtime", overflow="fold")
        table.add_column("how", no_wrap=True)
        for heading in ("p50", "memory", "top-1", "delta", "same"):
            table.add_column(heading, justify="right", no_wrap=True)
        for entry in rows:
            # As Text: a name may hold brackets, which rich would take for its own markup.
            table.add_row(*map(Text, _cells(entry)))
        yield table


def _p50(value: float, interval: tuple[float, float] | None) -> str:
    """A prediction is never shown without its interval."""
    if interval is None:
        return milliseconds(value)
    return f"{milliseconds(value)}\n{interval[0]:.3g} to {interval[1]:.3g}"


def _cells(entry: Benchmark) -> tuple[str, ...]:
    latency, accuracy, parity = entry.latency_ms, entry.accuracy, entry.parity
    delta = None if accuracy is None else accuracy.delta
    memory = entry.peak_memory_bytes
    return (
        entry.device if entry.threads == 1 else f"{entry.device}, {entry.threads} threads",
        entry.runtime,
        entry.kind,
        NO_FIGURE if latency is None else _p50(latency.p50, entry.latency_interval_ms),
        NO_FIGURE if memory is None else memory_words(memory),
        NO_FIGURE if accuracy is None else percent(accuracy.top1),
        NO_FIGURE if delta is None else points(delta),
        NO_FIGURE if parity is None else share(parity.identical),
    )
