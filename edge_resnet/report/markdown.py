"""report.md: the tables of the report, fit for a pull request."""

from __future__ import annotations

from collections.abc import Sequence

from edge_resnet.report.present import artifact_rows, verdict
from edge_resnet.report.schema import Report

__all__ = ["to_markdown"]


def to_markdown(report: Report) -> str:
    """The whole report as GitHub-flavoured Markdown."""
    judged = verdict(report)
    sections = [
        f"# {_text(report.model.name)}: {'verified' if judged.good else 'FAILED'}",
        judged.text,
        *(_failures(report)),
        _artifacts(report),
        _parity(report),
        _facts(report),
        _notes(report),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _text(value: object) -> str:
    """Names come from users: keep them from being table syntax or HTML."""
    return str(value).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    lines += ["| " + " | ".join(_text(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def _failures(report: Report) -> list[str]:
    return ["\n".join(f"* **{_text(failure)}**" for failure in report.failures)] if report.failures else []


def _artifacts(report: Report) -> str:
    head = (
        "target",
        "size",
        "top-1",
        "95 % interval",
        "delta (points)",
        "how",
        "p50",
        "cold start",
        "peak memory",
    )
    rows = [
        (
            row.target,
            f"{row.size} {f'({row.ratio})' if row.ratio else ''}".strip(),
            row.top1,
            row.interval,
            f"{row.delta} {f'({row.delta_interval})' if row.delta_interval else ''}".strip(),
            f"{row.kind}, {row.runtime}" if row.kind else "not measured",
            f"{row.p50} {f'({row.latency_kind})' if row.latency_kind else ''}".strip(),
            row.cold_start,
            row.memory,
        )
        for row in artifact_rows(report)
    ]
    baseline = report.baseline
    text = _table(head, rows)
    if baseline.top1 is not None:
        text += f"\n\nFloat baseline (torch): {baseline.top1:.2%} on {baseline.n:,} images."
    return text


def _parity(report: Report) -> str:
    rows = []
    for artifact, row in zip(report.artifacts, artifact_rows(report), strict=True):
        parity = artifact.parity
        if parity is not None:
            lsb = "—" if parity.max_lsb is None else f"{parity.max_lsb} / {parity.mean_lsb:.3f}"
            rows.append(
                (row.target, row.ranges, parity.against, f"{parity.n:,}", row.identical, row.agreement, lsb)
            )
    if not rows:
        return ""
    head = (
        "target",
        "integers equal",
        "logits against",
        "images",
        "identical",
        "top-1 agrees",
        "max / mean LSB",
    )
    return "## Proof\n\n" + _table(head, rows)


def _facts(report: Report) -> str:
    model, environment = report.model, report.environment
    rows = [
        ("model", f"{model.name} ({model.source})"),
        ("weights (sha256)", model.weights_sha256 or "random"),
        ("input", "x".join(map(str, model.input_shape))),
        ("parameters, MACs", f"{model.params:,}, {model.macs:,}"),
        ("data", f"{report.data.get('source', '—')}, {len(report.data.get('classes', []))} classes"),
        ("machine", f"{environment.cpu}, {environment.os}, Python {environment.python}"),
        ("packages", ", ".join(f"{name} {number}" for name, number in environment.packages.items())),
        ("created", report.created),
        ("command", f"`{report.command}`" if report.command else "library call"),
        ("stages", ", ".join(f"{stage.name} {stage.seconds:.1f} s" for stage in report.stages)),
    ]
    return "## Facts\n\n" + _table(("", ""), rows)


def _notes(report: Report) -> str:
    notes = list(report.notes)
    for artifact in report.artifacts:
        notes += [f"{artifact.target}: {note}" for note in artifact.notes]
        notes += [f"{artifact.target}: {note}" for bench in artifact.benchmarks for note in bench.notes]
    return "## Notes\n\n" + "\n".join(f"* {_text(note)}" for note in notes) if notes else ""
