"""report.md: the tables of the report, fit for a pull request."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import yaml

from edge_resnet.report.figures import Figure
from edge_resnet.report.present import Page, present
from edge_resnet.report.present_devices import DevicePage
from edge_resnet.report.present_pruning import PruningPage
from edge_resnet.report.present_quantization import SensitivityPart, TrainingPart
from edge_resnet.report.schema import Report
from edge_resnet.report.verdict import Status
from edge_resnet.report.wording import import_words, plural

__all__ = ["to_markdown"]

# What could open emphasis, code, a link, HTML or a cell in the middle of a name.
_SYNTAX = re.compile(r"([\\`*_\[\]|~<>#])")
_TITLES = {Status.VERIFIED: "verified", Status.INCOMPLETE: "not fully verified", Status.FAILED: "FAILED"}
# A pull request lists the first few; report.json holds all.
_MOST_MISMATCHES = 20
_MOST_LAYERS = 15
_MOST_EPOCHS = 12
_MOST_CHANNELS = 100  # letters


def to_markdown(report: Report) -> str:
    """The whole report as GitHub-flavoured Markdown."""
    page = present(report)
    sections = [
        f"# {_text(report.model.name)}: {_TITLES[page.verdict.status]}",
        f"**{page.verdict.status.value}.** {_text(page.verdict.headline)}",
        _list(f"**{_text(failure)}**" for failure in page.failures),
        _list(map(_text, page.verdict.evidence)),
        _artifacts(page),
        _parity(page),
        _ranges(report),
        "" if page.pruning is None else _pruning(page.pruning),
        _quantization(page),
        _speed(page),
        "" if page.devices is None else _devices(page.devices),
        _notes(page),
        _facts(report),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _text(value: object) -> str:
    """Names come from users: one line of plain text, neither table syntax nor HTML."""
    return _SYNTAX.sub(r"\\\1", " ".join(str(value).split())).replace("&", "&amp;").replace("\\<", "&lt;")


def _figure(figure: Figure) -> str:
    """`88.70% (88.10% to 89.30%), measured`; a dash is followed by the number of its reason."""
    if figure.reason:
        return f"{figure.text} ({figure.reason})"
    text = _text(figure.text) + (f" ({_text(figure.detail)})" if figure.detail else "")
    return f"{text}, {figure.kind}" if figure.kind else text


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"* {line}" for line in lines)


def _table(head: Sequence[str], rows: Sequence[Sequence[str | Figure]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for row in rows:
        cells = [_figure(cell) if isinstance(cell, Figure) else _text(cell) for cell in row]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _artifacts(page: Page) -> str:
    head = (
        "target",
        "file",
        "size",
        "top-1 (95 %)",
        "delta, points (paired 95 %)",
        "p50",
        "cold start",
        "peak memory",
        "runtime",
    )
    rows = []
    for row in page.rows:
        name = f"{row.target}{' FAILED' if row.failed else ''}"
        figures = (row.size, row.top1, row.delta, row.p50, row.cold_start, row.memory)
        rows.append((name, row.file, *figures, row.runtime))
    return "## Artifacts\n\n" + _table(head, rows)


def _parity(page: Page) -> str:
    head = ("target", "runtime", "compared with", "images", "identical", "same top-1", "max LSB", "mean LSB")
    rows = [
        (r.target, r.runtime, r.against, r.images, r.identical, r.agreement, r.max_lsb, r.mean_lsb)
        for r in page.proof
    ]
    return "## Parity\n\n" + _table(head, rows) if rows else ""


def _ranges(report: Report) -> str:
    rows, mismatches = [], []
    for artifact in report.artifacts:
        ranges = artifact.ranges or artifact.weights
        if ranges is None:
            continue
        result = "all equal" if ranges.equal == ranges.checked else f"{ranges.checked - ranges.equal} differ"
        rows.append((artifact.target, f"{ranges.checked:,}", f"{ranges.equal:,}", result))
        mismatches += [f"{artifact.target}: {name}" for name in ranges.mismatches]
    if not rows:
        return ""
    shown = [_text(name) for name in mismatches[:_MOST_MISMATCHES]]
    if len(mismatches) > _MOST_MISMATCHES:
        shown.append(f"and {len(mismatches) - _MOST_MISMATCHES} more, in report.json")
    table = _table(("target", "tensors checked", "equal", "result"), rows)
    return "\n\n".join(part for part in ("## Read back and compared", table, _list(shown)) if part)


def _devices(part: DevicePage) -> str:
    """Layers are in report.html."""
    parts = ["## Devices"]
    if part.answers:
        head: tuple[str, ...] = (
            *("target", "device", "runtime", "images", "top-1 (95 %)", "delta, points (paired 95 %)"),
            *("identical", "same top-1", "max LSB"),
        )
        rows = [
            (
                *(r.target, r.device, r.runtime, r.images, r.top1, r.delta),
                *(r.identical, r.agreement, r.max_lsb),
            )
            for r in part.answers
        ]
        parts.append(_table(head, rows))
    if part.figures:
        rows_of_figures = [(r.target, r.device, r.name, r.value) for r in part.figures]
        parts.append(_table(("target", "device", "what", "figure"), rows_of_figures))
    return "\n\n".join(parts)


def _pruning(part: PruningPage) -> str:
    parts = ["## Pruning", _list(f"{name}: {_text(words)}" for name, words in part.facts)]
    if part.stages:
        head = (
            *("stage", "what", "top-1 (95 %)", "change, points", "MACs", "parameters", "int8 file"),
            *("latency, predicted", "latency, measured"),
        )
        stages = [
            (r.name, r.detail, r.top1, r.change, r.macs, r.params, r.size, r.predicted, r.measured)
            for r in part.stages
        ]
        parts.append(_table(head, stages))
    if part.latency:
        rows = [(r.name, r.predicted, r.measured, r.error) for r in part.latency]
        parts.append(_table(("latency", "predicted", "measured", "error of the prediction"), rows))
    if part.layers:
        parts += ["### What went", _list(map(_text, _went(part)))]
    return "\n\n".join(parts)


def _went(part: PruningPage) -> list[str]:
    """Each block in a line, then each layer that stayed, narrower."""
    gone = [block for block in part.blocks if block.removed]
    lines = [
        f"{block.name}: the whole block ({block.layers})"
        + ("" if block.cost.reason else f"; divergence without it {block.cost.text} nats, {block.cost.kind}")
        for block in gone
    ]
    for layer in part.layers:
        if layer.removed:
            continue
        channels = layer.gone
        if len(channels) > _MOST_CHANNELS:
            channels = f"{channels[:_MOST_CHANNELS].rpartition(', ')[0]}, …; all are in report.json"
        lines.append(f"{layer.name}: {layer.channels}; gone: {channels}")
    return lines


def _quantization(page: Page) -> str:
    quantization = page.quantization
    if quantization is None:
        return ""
    parts = ["## Quantization", _list(f"{name}: {_text(words)}" for name, words in quantization.facts)]
    if quantization.steps:
        head = ("step", "what", "top-1 of the integer reference (95 %)", "gain, points", "SQNR", "time")
        steps = [(r.name, r.detail, r.top1, r.gain, r.sqnr, r.seconds) for r in quantization.steps]
        parts.append(_table(head, steps))
    parts += [_training(part) for part in quantization.training]
    if quantization.sensitivity is not None:
        parts.append(_sensitivity(quantization.sensitivity))
    return "\n\n".join(parts)


def _training(part: TrainingPart) -> str:
    head = ("epoch", "loss, measured", "top-1 in training, measured", "time", "images per s")
    shown = part.epochs[-_MOST_EPOCHS:]
    rows = [(r.epoch, r.loss, r.top1, r.seconds, r.speed) for r in shown]
    hidden = len(part.epochs) - len(shown)
    left_out = f" The last {len(shown)}; all are in report.json." if hidden else ""
    return f"### {part.title}\n\n{_text(part.summary)}{left_out}\n\n{_table(head, rows)}"


def _sensitivity(part: SensitivityPart) -> str:
    head = (
        "no.",
        "layer",
        "kind",
        "points lost",
        "top-1",
        "SQNR",
        "noise from weights",
        "MACs",
        "in the files",
    )
    rows = [
        (
            *(str(r.position), r.name, r.kind, r.lost, r.top1, r.sqnr, r.from_weights, r.macs),
            "float" if r.kept_float else "int8",
        )
        for r in part.layers[:_MOST_LAYERS]
    ]
    title = "### Sensitivity: one layer in int8, measured"
    shown = f"The {len(rows)} worst of {plural(len(part.layers), 'layer')}, the worst first:"
    return "\n\n".join([title, _list(map(_text, [*part.summary, *part.notes])), shown, _table(head, rows)])


def _speed(page: Page) -> str:
    head = ("target", "device", "runtime", "threads", "runs", "mean", "p50", "p95", "p99", "images per s")
    rows = [
        (r.target, r.device, r.runtime, r.threads, r.runs, r.mean, r.p50, r.p95, r.p99, r.throughput)
        for r in page.speed
    ]
    return "## Speed\n\n" + _table(head, rows) if rows else ""


def _notes(page: Page) -> str:
    parts = []
    if page.notes:
        parts.append("## Notes\n\n" + _list(map(_text, page.notes)))
    if page.reasons:
        numbered = "\n".join(f"{number}. {_text(reason)}" for number, reason in enumerate(page.reasons, 1))
        parts.append("## Missing figures\n\n" + numbered)
    return "\n\n".join(parts)


def _facts(report: Report) -> str:
    model, data, environment = report.model, report.data, report.environment
    seconds = sum(stage.seconds for stage in report.stages)
    stages = [f"{s.name} {s.seconds:.2f} s{' (resumed)' if s.resumed else ''}" for s in report.stages]
    rows = [
        ("model", f"{model.name} ({model.source})"),
        ("weights, sha256", model.weights_sha256 or "none given"),
        ("input", " x ".join(map(str, model.input_shape))),
        ("import", import_words(model.import_check)),
        ("parameters", f"{model.params:,}, compressed {report.compressed.params:,}"),
        ("MACs", f"{model.macs:,}, compressed {report.compressed.macs:,}"),
        (
            "data",
            f"{data.source or '—'}, {len(data.classes):,} classes, {_count(data.n_val)} images to measure on",
        ),
        ("preprocessing", "; ".join(f"{key} {value}" for key, value in report.preprocess.items()) or "—"),
        ("stages, measured", f"{', '.join(stages)}; {seconds:.2f} s in all"),
        ("machine", f"{environment.cpu}, {environment.os}, Python {environment.python}"),
        ("packages", ", ".join(f"{name} {version}" for name, version in environment.packages.items())),
        ("created", report.created),
    ]
    recipe = yaml.safe_dump(report.recipe, sort_keys=False, allow_unicode=True)
    command = _fenced("sh", report.command) if report.command else "By a call of the library."
    return "\n\n".join(
        ["## How it was made", command, _table(("", ""), rows), "Recipe:", _fenced("yaml", recipe)]
    )


def _count(value: int | None) -> str:
    return "—" if value is None else f"{value:,}"


def _fenced(language: str, text: str) -> str:
    """A code block whose fence is longer than any that the text itself holds."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
