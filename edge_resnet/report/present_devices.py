"""What devices say, in words: answers there, their own figures, and their layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edge_resnet.report.figures import Figure, Reasons, because
from edge_resnet.report.schema import Accuracy, Artifact, Benchmark
from edge_resnet.report.wording import bytes_words, interval_words, memory_words, percent, points, share

__all__ = ["AnswerRow", "DeviceFigure", "DevicePage", "LayerTable", "figure_words", "present_devices"]

_NOT_ANSWERED = "no test images were answered there"
_FLOAT = "a float file has no LSB; its logits are compared as real numbers"
_MOST_LAYERS = 400  # rows of a page; report.json has all


@dataclass(frozen=True)
class AnswerRow:
    """What an artifact answered on a device, beside the float baseline and beside what it should answer."""

    target: str
    device: str
    runtime: str
    images: str
    top1: Figure
    delta: Figure
    identical: Figure
    agreement: Figure
    max_lsb: Figure


@dataclass(frozen=True)
class DeviceFigure:
    """Something that only this device tells."""

    target: str
    device: str
    name: str
    value: Figure


@dataclass(frozen=True)
class LayerTable:
    """The device's own rows, one a layer."""

    title: str
    kind: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    hidden: int


@dataclass(frozen=True)
class DevicePage:
    answers: list[AnswerRow]
    figures: list[DeviceFigure]
    layers: list[LayerTable]


def present_devices(artifacts: Sequence[Artifact], reasons: Reasons) -> DevicePage | None:
    """None where no device says more than how fast it is."""
    pairs = [(artifact.target, benchmark) for artifact in artifacts for benchmark in artifact.benchmarks]
    answers = [
        _answers(target, benchmark, benchmark.accuracy, reasons)
        for target, benchmark in pairs
        if benchmark.accuracy is not None
    ]
    figures = [figure for target, benchmark in pairs for figure in _figures(target, benchmark)]
    layers = [_layers(target, benchmark) for target, benchmark in pairs if benchmark.layers]
    return DevicePage(answers, figures, layers) if answers or figures or layers else None


def _answers(target: str, benchmark: Benchmark, accuracy: Accuracy, reasons: Reasons) -> AnswerRow:
    kind, parity = accuracy.kind, benchmark.parity
    reason = f"{target} on {benchmark.device}: {because(benchmark.notes, _NOT_ANSWERED)}"
    paired = accuracy.delta_ci95
    identical = agreement = lsb = None
    if parity is not None:
        identical, agreement, lsb = parity.identical, parity.top1_agreement, parity.max_lsb
    return AnswerRow(
        target=target,
        device=benchmark.device,
        runtime=f"{accuracy.runtime} {accuracy.runtime_version}".strip(),
        images=f"{accuracy.n:,}",
        top1=Figure(percent(accuracy.top1), kind, interval_words(*map(percent, accuracy.ci95))),
        delta=reasons.figure(
            accuracy.delta,
            points,
            kind,
            reason,
            "" if paired is None else interval_words(*map(points, paired)),
        ),
        identical=reasons.figure(identical, share, kind, reason),
        agreement=reasons.figure(agreement, share, kind, reason),
        max_lsb=reasons.figure(lsb, str, kind, _FLOAT),
    )


def figure_words(benchmark: Benchmark) -> str:
    """What only this device tells, in a line; empty: nothing."""
    return ", ".join(f"{_name(key)} {_words(key, value)}" for key, value in benchmark.figures.items())


def _figures(target: str, benchmark: Benchmark) -> list[DeviceFigure]:
    found = [
        DeviceFigure(target, benchmark.device, _name(key), Figure(_words(key, value), benchmark.kind))
        for key, value in benchmark.figures.items()
    ]
    if benchmark.energy_mj is not None:
        words = Figure(f"{benchmark.energy_mj:.3g} mJ an image", benchmark.kind, "the whole processor")
        found.append(DeviceFigure(target, benchmark.device, "energy", words))
    return found


def _name(key: str) -> str:
    return key.removesuffix("_bytes").removesuffix("_seconds").replace("_", " ")


def _words(key: str, value: float) -> str:
    if key.endswith("_bytes"):
        small = value < 2**20
        return bytes_words(round(value)) if small else memory_words(round(value))
    if key.endswith("_seconds"):
        return f"{value:.2f} s"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def _layers(target: str, benchmark: Benchmark) -> LayerTable:
    rows = benchmark.layers[:_MOST_LAYERS]
    head = list(dict.fromkeys(key for row in rows for key in row))
    return LayerTable(
        f"{target} on {benchmark.device}, layer by layer",
        benchmark.kind,
        [key.replace("_", " ") for key in head],
        [[_cell(row.get(key)) for key in head] for row in rows],
        len(benchmark.layers) - len(rows),
    )


def _cell(value: object) -> str:
    if value is None:
        return "—"
    if isinstance(value, float):
        return f"{value:,.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
