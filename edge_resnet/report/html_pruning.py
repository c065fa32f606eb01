"""The pictures of the page's pruning section."""

from __future__ import annotations

from edge_resnet.benchmark.statistics import wilson_interval
from edge_resnet.report.channel_chart import channel_charts
from edge_resnet.report.charts import Bar, Interval, bar_chart, interval_chart
from edge_resnet.report.curves import Column, column_chart
from edge_resnet.report.html_quantization import Chart
from edge_resnet.report.schema import Kind
from edge_resnet.report.schema_pruning import Pruning, PruningLatency
from edge_resnet.report.wording import milliseconds

__all__ = ["removal_charts", "stage_charts"]


def removal_charts(pruning: Pruning) -> list[Chart]:
    """Which channels and blocks went, and what each block was worth."""
    pictures = channel_charts(pruning)
    charts = []
    for one in pictures:
        title = "Channels" if len(pictures) == 1 else f"Channels, layers {one.first} to {one.last}"
        caption = "Solid: channels that stayed. Hollow: channels that went, at their places."
        if any(block.removed for block in pruning.blocks):
            caption += " Dashed: went with its block."
        if pruning.blocks:
            caption += " A line joins the layers of a block that could go."
        if one.squared:
            caption += " Bars grow with the square root of the channels."
        charts.append(Chart(title, [], one.picture, caption))
    costs = [
        Column(
            block.name,
            block.cost,
            "not measured" if block.cost is None else f"{block.cost:.3g} nats{', removed' * block.removed}",
            block.removed,
        )
        for block in pruning.blocks
    ]
    picture = column_chart(costs, "block, by its number in the table", "divergence, nats")
    if picture is not None:
        caption = "How far the answers move from the original's (KL) when this block alone goes."
        hollow = " Hollow: removed." if any(block.removed for block in pruning.blocks) else ""
        charts.append(Chart("What removing each block costs", [Kind.MEASURED], picture, caption + hollow))
    return charts


def stage_charts(pruning: Pruning) -> list[Chart]:
    """Accuracy after each stage, and latency before and after."""
    charts = []
    rows = [
        Interval(
            stage.name, stage.top1, *wilson_interval(round(stage.top1 * stage.n), stage.n), Kind.MEASURED
        )
        for stage in pruning.stages
        if stage.top1 is not None and stage.n
    ]
    reference = pruning.stages[0].top1 if pruning.stages else None
    picture = interval_chart(rows, "top-1, 95 % interval", reference, lambda value: f"{100 * value:.5g}%")
    if picture is not None:
        charts.append(Chart("Accuracy after each stage", [Kind.MEASURED], picture, "Dashed: the original."))
    if pruning.latency is not None and (chart := _latencies(pruning.latency)):
        charts.append(chart)
    return charts


def _latencies(latency: PruningLatency) -> Chart | None:
    figures = (
        ("unpruned", latency.predicted_unpruned_ms, Kind.PREDICTED),
        ("unpruned", latency.measured_unpruned_ms, Kind.MEASURED),
        ("final", latency.predicted_ms, Kind.PREDICTED),
        ("final", latency.measured_ms, Kind.MEASURED),
    )
    bars = [Bar(name, value, milliseconds(value), kind) for name, value, kind in figures if value is not None]
    picture = bar_chart(bars, "latency of one image in the int8 file, ms")
    if picture is None:
        return None
    kinds = list(dict.fromkeys(str(bar.kind) for bar in bars))
    caption = "Hollow: predicted from the table." if Kind.PREDICTED in kinds else ""
    return Chart("Latency before and after", kinds, picture, caption)
