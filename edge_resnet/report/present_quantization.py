"""How the integers came about, in words: the steps and their gain, training, and what each layer costs."""

from __future__ import annotations

from dataclasses import dataclass

from edge_resnet.benchmark.statistics import wilson_interval
from edge_resnet.report.figures import Figure, Reasons
from edge_resnet.report.schema import Kind
from edge_resnet.report.schema_quantization import Layer, Quantization, Sensitivity, Step, Training
from edge_resnet.report.wording import interval_words, join, percent, plural, points, seconds_words

__all__ = [
    "EpochRow",
    "LayerRow",
    "QuantizationPage",
    "SensitivityPart",
    "StepRow",
    "TrainingPart",
    "present_quantization",
]

_ESTIMATORS = {
    "minmax": "the least and the largest value on the calibration images (minmax)",
    "moving-average": "a moving average of the batches' extremes (moving-average)",
    "percentile": "nearly all values lie within, outliers are cut off (percentile)",
    "mse": "least squared error (mse)",
    "entropy": "least divergence of the distributions (entropy, KL)",
}
_QUANTIZERS = {"edge-resnet": "this program", "nncf": "NNCF; its ranges were read into the graph"}
_NOT_COUNTED = "the accuracy after this step was not counted (evaluate.step_images; one step alone is not)"
_NOT_COMPARED = "not compared with the float model's logits, or no difference was found"
_FIRST = "there is no step before it whose accuracy was counted"


@dataclass(frozen=True)
class StepRow:
    name: str
    detail: str
    top1: Figure
    gain: Figure
    sqnr: Figure
    seconds: Figure


@dataclass(frozen=True)
class EpochRow:
    epoch: str
    loss: str
    top1: str
    seconds: str
    speed: str


@dataclass(frozen=True)
class TrainingPart:
    """`source` is what the curves are drawn from."""

    title: str
    summary: str
    epochs: list[EpochRow]
    source: Training


@dataclass(frozen=True)
class LayerRow:
    """`position` from 1, in the network's order."""

    position: int
    name: str
    kind: str
    macs: str
    params: str
    sqnr: str
    top1: str
    lost: str
    from_weights: str
    kept_float: bool


@dataclass(frozen=True)
class SensitivityPart:
    """`layers` with the worst first."""

    summary: list[str]
    layers: list[LayerRow]
    notes: list[str]
    source: Sensitivity


@dataclass(frozen=True)
class QuantizationPage:
    """`facts`: name and words."""

    facts: list[tuple[str, str]]
    steps: list[StepRow]
    training: list[TrainingPart]
    sensitivity: SensitivityPart | None


def present_quantization(quantization: Quantization, reasons: Reasons) -> QuantizationPage:
    """Everything that a view shows of it; `reasons` numbers why figures are missing."""
    sensitivity = quantization.sensitivity
    return QuantizationPage(
        facts=_facts(quantization),
        steps=_step_rows(quantization.steps, reasons),
        training=[_training(training) for training in quantization.training],
        sensitivity=None if sensitivity is None else _sensitivity(sensitivity),
    )


def _facts(quantization: Quantization) -> list[tuple[str, str]]:
    quantizer, estimator = quantization.quantizer, quantization.estimator
    # NNCF has estimators of its own; the recipe's is not asked then.
    ranges = "chosen by NNCF" if quantizer == "nncf" else _ESTIMATORS.get(estimator, estimator)
    weights = "8 bits, symmetric, one scale for each output channel"
    if quantization.portable_x86:
        weights = (
            "portable: kept so small that the 16-bit sums of x86 CPUs with AVX2 but without VNNI cannot "
            "saturate; symmetric, one scale for each output channel"
        )
    return [
        ("Quantized by", _QUANTIZERS.get(quantizer, quantizer)),
        ("Ranges of activations", ranges),
        ("Weights", weights),
    ]


def _step_rows(steps: list[Step], reasons: Reasons) -> list[StepRow]:
    rows, before = [], None
    for step in steps:
        top1 = gain = None
        if step.top1 is not None and step.n:
            interval = wilson_interval(round(step.top1 * step.n), step.n)
            detail = f"{interval_words(*map(percent, interval))}, {plural(step.n, 'image')}"
            top1 = Figure(percent(step.top1), Kind.MEASURED, detail)
            if before is not None:
                gain = Figure(points(step.top1 - before), Kind.MEASURED)
            before = step.top1
        rows.append(
            StepRow(
                name=step.name,
                detail=step.detail,
                top1=top1 or reasons.missing(_NOT_COUNTED),
                gain=gain or reasons.missing(_NOT_COUNTED if top1 is None else _FIRST),
                sqnr=reasons.figure(step.sqnr_db, _decibels, Kind.MEASURED, _NOT_COMPARED),
                seconds=Figure(seconds_words(step.seconds), Kind.MEASURED),
            )
        )
    return rows


def _decibels(value: float) -> str:
    return f"{value:.1f} dB"


def _training(training: Training) -> TrainingPart:
    title = {"qat": "Quantization-aware training", "train": "Training in float"}.get(training.name)
    said = [
        f"{plural(len(training.epochs), 'epoch')} of {plural(training.images, 'image')} "
        f"in {seconds_words(training.seconds)}"
    ]
    said.append("no teacher" if training.teacher is None else f"teacher: {training.teacher}")
    last = training.losses[-1][0] if training.losses else None
    steps = [f"{step:,}" for step in training.resumed_at if step != last]
    if last in training.resumed_at:
        said.append("loaded from the checkpoint of an earlier run")
    if steps:
        said.append(f"interrupted, and continued from a checkpoint after step {join(steps)}")
    return TrainingPart(
        title=title or training.name,
        summary="; ".join(said) + ".",
        epochs=[
            EpochRow(
                epoch=str(epoch.epoch),
                loss=f"{epoch.loss:.4f}",
                top1=percent(epoch.top1),
                seconds=seconds_words(epoch.seconds),
                speed=f"{training.images / epoch.seconds:,.0f}" if epoch.seconds > 0 else "—",
            )
            for epoch in training.epochs
        ],
        source=training,
    )


def _sensitivity(sensitivity: Sensitivity) -> SensitivityPart:
    numbered = list(enumerate(sensitivity.layers, 1))
    worst = sorted(numbered, key=lambda pair: _badness(pair[1]))
    return SensitivityPart(
        summary=_sensitivity_summary(sensitivity),
        layers=[_layer_row(position, layer) for position, layer in worst],
        notes=list(sensitivity.notes),
        source=sensitivity,
    )


def _badness(layer: Layer) -> tuple[float, float]:
    """The largest loss of top-1 first; of equal ones, that with the most noise."""
    return -round(layer.drop, 6), float("inf") if layer.sqnr_db is None else layer.sqnr_db


def _sensitivity_summary(sensitivity: Sensitivity) -> list[str]:
    n, kept = sensitivity.n, [layer.name for layer in sensitivity.layers if layer.kept_float]
    low, high = wilson_interval(round(sensitivity.float_top1 * n), n)
    said = [
        f"On {plural(n, 'image')}: float {percent(sensitivity.float_top1)} (95 % interval {percent(low)} to "
        f"{percent(high)}), all layers in int8 {percent(sensitivity.int8_top1)}. One image is "
        f"{100 / n:.2f} points: differences of a few images are chance."
    ]
    if not any(layer.drop for layer in sensitivity.layers):
        said.append("No layer alone costs or wins one of these images.")
    if sensitivity.max_drop is not None:
        allowed = f"{sensitivity.max_drop:g} points may be lost (sensitivity.max_drop)"
        if kept:
            result = f"so {join(kept)} {'was' if len(kept) == 1 else 'were'} kept in float"
            if sensitivity.mixed_top1 is not None:
                lost = 100 * (sensitivity.float_top1 - sensitivity.mixed_top1)
                result += f": {percent(sensitivity.mixed_top1)}, {_lost(lost)}"
        elif (
            round((sensitivity.float_top1 - sensitivity.int8_top1) * n)
            <= sensitivity.max_drop / 100 * n + 1e-9
        ):
            result = "and int8 loses no more than that: no layer was kept in float"
        else:
            result = "but int8 loses more, and so would all layers in float: none was kept"
        said.append(f"{allowed}, {result}.")
    return said


def _lost(lost: float) -> str:
    """In points; what came out better than float is said to be so."""
    return f"{lost:.2f} points lost" if lost >= 0 else f"{-lost:.2f} points won"


def _layer_row(position: int, layer: Layer) -> LayerRow:
    return LayerRow(
        position=position,
        name=layer.name,
        kind=layer.kind,
        macs=f"{layer.macs:,}",
        params=f"{layer.params:,}",
        sqnr="no noise" if layer.sqnr_db is None else _decibels(layer.sqnr_db),
        top1=percent(layer.top1),
        lost=f"{100 * layer.drop + 0.0:.2f}",
        from_weights="—" if layer.from_weights is None else f"{layer.from_weights:.0%}",
        kept_float=layer.kept_float,
    )
