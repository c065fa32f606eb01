"""`edge-resnet benchmark`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from edge_resnet.benchmark.result import BenchmarkResult, BenchmarkSettings
from edge_resnet.cli.console import ConsoleProgress, error_console
from edge_resnet.devices.local import benchmark_local
from edge_resnet.errors import InputError, MissingToolError
from edge_resnet.targets import TARGETS, target_of_file

__all__ = ["run"]

_SUFFIXES = {target.suffix for target in TARGETS.values()}


def run(paths: Sequence[Path], devices: Sequence[str], threads: int, runs: int, as_json: bool) -> int:
    """Measure on this machine and print one row an artifact."""
    other = [device for device in devices if device != "local"]
    if other:
        raise MissingToolError(f"device {other[0]!r}: this version measures on `local` only")
    artifacts = _artifacts(paths)
    console = error_console()
    with ConsoleProgress(console, quiet=as_json).stage("benchmark", len(artifacts) * runs) as advance:
        results = benchmark_local(artifacts, threads, BenchmarkSettings(runs=runs), advance)
    if as_json:
        print(json.dumps({name: result.to_json() for name, result in results.items()}, indent=1))
    else:
        console.print(_table(results))
        for name, result in results.items():
            for note in result.notes:
                console.print(f"{name}: {note}", markup=False, highlight=False, soft_wrap=True)
    return 0


def _artifacts(paths: Sequence[Path]) -> list[tuple[str, Path]]:
    found: list[Path] = []
    for path in paths:
        if not path.exists():
            raise InputError(f"{path}: there is no such artifact or folder")
        if path.is_dir() and path.suffix not in _SUFFIXES:
            inside = sorted(entry for entry in path.iterdir() if entry.suffix in _SUFFIXES)
            if not inside:
                raise InputError(f"{path}: holds no artifact ({', '.join(sorted(_SUFFIXES))})")
            found += inside
        else:
            target_of_file(path)
            found.append(path)
    return [(str(path), path) for path in dict.fromkeys(found)]


def _table(results: dict[str, BenchmarkResult]) -> Table:
    table = Table(title="measured on this machine", title_justify="left", box=None, pad_edge=False)
    columns = ("artifact", "runtime", "p50 ms", "p95 ms", "p99 ms", "cold start ms", "peak MiB", "images/s")
    for heading in columns:
        table.add_column(heading, overflow="fold", justify="left" if heading in columns[:2] else "right")
    for name, result in results.items():
        latency = result.latency_ms
        memory = result.peak_memory_bytes
        table.add_row(
            Path(name).name,
            result.runtime,
            *(f"{latency[key]:.3f}" if latency else "—" for key in ("p50", "p95", "p99")),
            "—" if result.cold_start_ms is None else f"{result.cold_start_ms:.1f}",
            "—" if memory is None else f"{memory / 2**20:.0f}",
            "—" if result.throughput_per_s is None else f"{result.throughput_per_s:.0f}",
        )
    return table
