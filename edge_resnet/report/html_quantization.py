"""The pictures of the page's quantization section."""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup

from edge_resnet.report.curves import Column, Curve, column_chart, curve_chart, smoothed
from edge_resnet.report.present_quantization import QuantizationPage
from edge_resnet.report.schema import Kind
from edge_resnet.report.schema_quantization import Sensitivity, Training

__all__ = ["Chart", "sensitivity_charts", "training_charts"]

# A mean over a twenty-fifth of the curve shows the trend and keeps the shape.
_WINDOWS = 25
_MOST_DOTS = 20


@dataclass(frozen=True)
class Chart:
    """`kinds`: how the figures in it were had. `caption` explains what the picture alone does not say."""

    title: str
    kinds: list[str]
    picture: Markup
    caption: str = ""


def training_charts(page: QuantizationPage) -> list[list[Chart]]:
    """For each training, its curves."""
    return [_curves(part.source) for part in page.training]


def _curves(training: Training) -> list[Chart]:
    charts = []
    window = max(1, len(training.losses) // _WINDOWS) | 1
    curves = [Curve("loss", training.losses, faint=window > 1)]
    if window > 1:
        curves.append(Curve(f"mean of {window} points", smoothed(training.losses, window)))
    picture = curve_chart(curves, "step", "loss", marks=training.resumed_at, x_from=0)
    if picture is not None:
        said = f"The dark line is the mean of {window} neighbouring points." if window > 1 else ""
        if training.resumed_at:
            said = f"{said} Dashed: continued from a checkpoint.".strip()
        charts.append(Chart("Loss", [Kind.MEASURED], picture, said))
    points = [(float(epoch.epoch), epoch.top1) for epoch in training.epochs]
    picture = curve_chart(
        [Curve("top-1", points, dots=len(points) <= _MOST_DOTS)], "epoch", "top-1 in training", _percent
    )
    if picture is not None and len(points) > 1:
        caption = "Counted on the augmented images that are trained on, which no test's top-1 compares with."
        charts.append(Chart("Accuracy in training", [Kind.MEASURED], picture, caption))
    return charts


def sensitivity_charts(sensitivity: Sensitivity) -> list[Chart]:
    """SQNR and lost top-1 of each layer, in the network's order."""
    layers = sensitivity.layers
    kept = " Hollow: kept in float." if any(layer.kept_float for layer in layers) else ""
    noise = [
        Column(
            layer.name,
            layer.sqnr_db,
            "no noise" if layer.sqnr_db is None else f"{layer.sqnr_db:.1f} dB",
            layer.kept_float,
        )
        for layer in layers
    ]
    lost = [
        Column(layer.name, 100 * layer.drop, f"{100 * layer.drop:.2f} points", layer.kept_float)
        for layer in layers
    ]
    number = "layer, by its number in the table"
    pictures = (
        (
            "Signal to noise of the logits",
            column_chart(noise, number, "SQNR, dB"),
            "One layer quantized alone. Low columns hurt: 10 dB less is ten times the noise.",
        ),
        (
            "Top-1 lost",
            column_chart(lost, number, "points of top-1") if any(layer.drop for layer in layers) else None,
            "One layer quantized alone. Below zero, top-1 rose, which is chance.",
        ),
    )
    return [
        Chart(title, [Kind.MEASURED], picture, f"{caption}{kept}")
        for title, picture, caption in pictures
        if picture is not None
    ]


def _percent(value: float) -> str:
    return f"{100 * value:.5g}%"
