"""The table at the end of a run."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from edge_resnet.report.present import baseline_name, headline_benchmark, present
from edge_resnet.report.present_quantization import QuantizationPage
from edge_resnet.report.schema import Artifact, Kind, Report
from edge_resnet.report.verdict import Status, problems
from edge_resnet.report.wording import (
    NO_FIGURE,
    bytes_words,
    interval_words,
    milliseconds,
    percent,
    points,
    share,
)

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["print_summary"]

_HEADINGS = ("target", "size", "top-1", "delta", "identical", "p50", "how")
_STYLES = {Status.VERIFIED: "bold green", Status.INCOMPLETE: "bold yellow", Status.FAILED: "bold red"}


def print_summary(report: Report, console: Console, directory: Path | None = None) -> None:
    """One row an artifact, the verdict with its evidence, and warnings; 80 columns are enough.

    With `directory`, the last line says where the report is.
    """
    page = present(report)
    console.print(_table(report))
    style = _STYLES[page.verdict.status]
    _say(console, f"{page.verdict.status.value}. {page.verdict.headline}", style)
    for failure in page.failures:
        _say(console, failure, "red", indent=2)
    for evidence in page.verdict.evidence:
        _say(console, evidence, indent=2)
    if page.pruning is not None:
        for line in page.pruning.summary:
            _say(console, line, indent=2)
    if page.quantization is not None:
        for line in _quantization(page.quantization):
            _say(console, line, indent=2)
    for artifact in report.artifacts:
        for note in artifact.notes:
            _say(console, f"warning: {artifact.target}: {note}", "yellow")
    for remark in _other_kinds(report):
        _say(console, remark, "yellow")
    if directory is not None:
        _say(console, f"report: {directory / 'report.html'}")


def _quantization(part: QuantizationPage) -> list[str]:
    """The steps' accuracies in one sentence, each training, and what --max-drop came to."""
    lines = []
    counted = [step for step in part.steps if step.top1.reason is None]
    if counted:
        steps = ", ".join(f"{step.name} {step.top1.text}" for step in counted)
        lines.append(f"Top-1 of the integer reference, measured: {steps}.")
    lines += [f"{training.title}: {training.summary}" for training in part.training]
    if part.sensitivity is not None and part.sensitivity.source.max_drop is not None:
        lines.append(part.sensitivity.summary[-1])
        if any(layer.kept_float for layer in part.sensitivity.layers):
            lines += part.sensitivity.notes
    return lines


def _say(console: Console, text: str, style: str = "", indent: int = 0) -> None:
    """Plain text: a name from a user is never taken for rich's markup.

    Lines break between words only: a path or a target that is cut in two cannot be copied.
    """
    margin = " " * indent
    lines = textwrap.wrap(
        text,
        width=console.width,
        initial_indent=margin,
        subsequent_indent=margin,
        break_long_words=False,
        break_on_hyphens=False,
    )
    for line in lines:
        console.print(Text(line, style=style), soft_wrap=True)


def _table(report: Report) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in _HEADINGS:
        left = heading in ("target", "how")
        table.add_column(heading, justify="left" if left else "right", no_wrap=True, overflow="ellipsis")
    baseline = report.baseline
    if baseline.top1 is not None:
        p50 = NO_FIGURE if baseline.latency_ms is None else milliseconds(baseline.latency_ms.p50)
        cells = (
            baseline_name(baseline),
            NO_FIGURE,
            percent(baseline.top1),
            NO_FIGURE,
            NO_FIGURE,
            p50,
            Kind.MEASURED,
        )
        table.add_row(*map(Text, cells))
    for artifact in report.artifacts:
        style = "red" if problems(artifact) else ""
        table.add_row(*map(Text, _cells(artifact)), style=style)
    return table


def _cells(artifact: Artifact) -> tuple[str, ...]:
    accuracy, parity, benchmark = artifact.accuracy, artifact.parity, headline_benchmark(artifact)
    top1 = delta = identical = p50 = NO_FIGURE
    if accuracy is not None:
        top1 = percent(accuracy.top1)
        if accuracy.delta is not None:
            delta = points(accuracy.delta)
            if accuracy.delta_ci95 is not None:
                low, high = accuracy.delta_ci95
                delta += f" ±{50 * (high - low):.2f}"
    if parity is not None and artifact.ranges is not None:
        identical = share(parity.identical)
    if benchmark is not None and benchmark.latency_ms is not None:
        p50 = milliseconds(benchmark.latency_ms.p50)
    how = "FAILED" if problems(artifact) else NO_FIGURE if accuracy is None else accuracy.kind
    return artifact.target, bytes_words(artifact.bytes), top1, delta, identical, p50, how


def _other_kinds(report: Report) -> list[str]:
    """The column says how accuracies were had; a latency had in another way gets a line of its own."""
    remarks = []
    for artifact in report.artifacts:
        benchmark, accuracy = headline_benchmark(artifact), artifact.accuracy
        if benchmark is None or benchmark.latency_ms is None:
            continue
        if benchmark.kind != (Kind.MEASURED if accuracy is None else accuracy.kind):
            remark = f"{artifact.target}: the latency is {benchmark.kind} ({benchmark.device})"
            if benchmark.latency_interval_ms is not None:
                low, high = map(milliseconds, benchmark.latency_interval_ms)
                remark += f"; 80 % interval {interval_words(low, high)}"
            remarks.append(remark)
    return remarks
