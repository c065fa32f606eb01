"""report.html: one file that opens offline, in light and dark, on a phone and on paper."""

from __future__ import annotations

import yaml
from markupsafe import Markup

from edge_resnet.report.charts import Bar, Interval, bar_chart, histogram_chart, interval_chart
from edge_resnet.report.html_pruning import removal_charts, stage_charts
from edge_resnet.report.html_quantization import Chart, sensitivity_charts, training_charts
from edge_resnet.report.pages import page_environment
from edge_resnet.report.present import baseline_interval, baseline_name, headline_benchmark, present
from edge_resnet.report.schema import Accuracy, Kind, Parity, Report
from edge_resnet.report.wording import bytes_words, import_words, milliseconds, percent

__all__ = ["to_html"]


def to_html(report: Report) -> str:
    """The page. Names from users are escaped; nothing is loaded from elsewhere."""
    environment = page_environment()
    environment.filters["percent"] = percent
    page = present(report)
    part = page.quantization
    sensitivity = None if part is None else part.sensitivity
    return environment.get_template("report.html.j2").render(
        report=report,
        page=page,
        import_words=import_words,
        recipe=yaml.safe_dump(report.recipe, sort_keys=False, allow_unicode=True),
        charts=[
            chart for chart in (_sizes(report), _latencies(report), _top1(report), _deltas(report)) if chart
        ],
        histograms=[
            chart
            for artifact in report.artifacts
            for chart in _histogram(artifact.target, artifact.parity, artifact.accuracy)
        ],
        device_histograms=[
            chart
            for artifact in report.artifacts
            for benchmark in artifact.benchmarks
            for chart in _histogram(
                f"{artifact.target} on {benchmark.device}", benchmark.parity, benchmark.accuracy
            )
        ],
        pruning=page.pruning,
        removals=[] if report.pruning is None else removal_charts(report.pruning),
        pruned_stages=[] if report.pruning is None else stage_charts(report.pruning),
        quantization=part,
        curves=[] if part is None else training_charts(part),
        layers=[] if sensitivity is None else sensitivity_charts(sensitivity.source),
    )


def _chart(title: str, kinds: list[str], picture: Markup | None) -> Chart | None:
    return None if picture is None else Chart(title, list(dict.fromkeys(filter(None, kinds))), picture)


def _sizes(report: Report) -> Chart | None:
    unit, name = (1e6, "MB") if any(a.bytes >= 999_500 for a in report.artifacts) else (1e3, "KB")
    bars = [Bar(a.target, a.bytes / unit, bytes_words(a.bytes), Kind.MEASURED) for a in report.artifacts]
    return _chart("Size", [bar.kind for bar in bars], bar_chart(bars, f"size of the file, {name}"))


def _latencies(report: Report) -> Chart | None:
    bars, latency = [], report.baseline.latency_ms
    if latency is not None:
        bars.append(
            Bar(baseline_name(report.baseline), latency.p50, milliseconds(latency.p50), Kind.MEASURED)
        )
    for artifact in report.artifacts:
        benchmark = headline_benchmark(artifact)
        if benchmark is not None and benchmark.latency_ms is not None:
            p50 = benchmark.latency_ms.p50
            bars.append(Bar(artifact.target, p50, milliseconds(p50), benchmark.kind))
    picture = bar_chart(bars, "median latency of one image, ms")
    return _chart("Latency", [bar.kind for bar in bars], picture)


def _top1(report: Report) -> Chart | None:
    baseline, interval = report.baseline, baseline_interval(report.baseline)
    rows = []
    if baseline.top1 is not None and interval is not None:
        rows.append(Interval(baseline_name(baseline), baseline.top1, *interval, Kind.MEASURED))
    rows += [
        Interval(artifact.target, artifact.accuracy.top1, *artifact.accuracy.ci95, artifact.accuracy.kind)
        for artifact in report.artifacts
        if artifact.accuracy is not None
    ]
    picture = interval_chart(rows, "top-1, 95 % interval", baseline.top1, lambda value: f"{100 * value:.5g}%")
    return _chart("Accuracy", [row.kind for row in rows], picture)


def _deltas(report: Report) -> Chart | None:
    rows = []
    for artifact in report.artifacts:
        accuracy = artifact.accuracy
        if accuracy is not None and accuracy.delta is not None and accuracy.delta_ci95 is not None:
            low, high = accuracy.delta_ci95
            figures = (100 * accuracy.delta, 100 * low, 100 * high)
            rows.append(Interval(artifact.target, *figures, accuracy.kind))
    axis = "points of top-1 against float, paired 95 % interval"
    picture = interval_chart(rows, axis, 0.0, lambda value: f"{value:+.3g}" if value else "0")
    return _chart("Accuracy lost or won", [row.kind for row in rows], picture)


def _histogram(name: str, parity: Parity | None, accuracy: Accuracy | None) -> list[Chart]:
    """Only where some logit is off: otherwise there is one bar, and the table says it."""
    if parity is None or not set(parity.lsb_histogram) - {"0"}:
        return []
    kind = parity.kind or (accuracy.kind if accuracy else "")
    title = f"{name}: distance from the {parity.against}"
    chart = _chart(title, [kind], histogram_chart(parity.lsb_histogram, kind))
    return [chart] if chart else []
