"""The table at the end of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from edge_resnet.report.present import NO_FIGURE, artifact_rows, verdict
from edge_resnet.report.schema import Report

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["print_summary"]


def print_summary(report: Report, console: Console) -> None:
    """One row an artifact and the verdict; 80 columns are enough."""
    table = Table(box=None, pad_edge=False)
    headings = ("target", "size", "top-1", "delta", "integers", "identical", "p50", "how")
    for heading in headings:
        left = heading in ("target", "how")
        table.add_column(heading, justify="left" if left else "right", no_wrap=True, overflow="ellipsis")
    if report.baseline.top1 is not None:
        latency = report.baseline.latency_ms
        p50 = NO_FIGURE if latency is None else f"{latency['p50']:.3g} ms"
        top1 = f"{report.baseline.top1:.2%}"
        table.add_row("float (torch)", NO_FIGURE, top1, *[NO_FIGURE] * 3, p50, "measured")
    for row in artifact_rows(report):
        how = "FAILED" if row.failed else row.kind
        ranges = row.ranges.replace(" of ", "/")
        table.add_row(row.target, row.size, row.top1, row.delta, ranges, row.identical, row.p50, how)
    console.print(table)
    judged = verdict(report)
    console.print(Text(judged.text, style="green" if judged.good else "bold red"))
    for artifact in report.artifacts:
        for note in artifact.notes:
            console.print(Text(f"warning: {artifact.target}: {note}", style="yellow"))
