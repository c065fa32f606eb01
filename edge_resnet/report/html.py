"""report.html: one file that opens offline, in light and dark, on a phone and on paper."""

from __future__ import annotations

from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from edge_resnet.report.charts import accuracy_chart, bar_chart, histogram_chart
from edge_resnet.report.present import artifact_rows, verdict
from edge_resnet.report.schema import Report

__all__ = ["to_html"]


def to_html(report: Report) -> str:
    """The page. Names from users are escaped; nothing is loaded from elsewhere."""
    environment = Environment(
        loader=PackageLoader("edge_resnet.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template("report.html.j2")
    rows = artifact_rows(report)
    return template.render(
        report=report,
        verdict=verdict(report),
        rows=rows,
        pairs=list(zip(report.artifacts, rows, strict=True)),
        recipe=yaml.safe_dump(report.recipe, sort_keys=False),
        charts=_charts(report),
    )


def _charts(report: Report) -> dict[str, Any]:
    artifacts = report.artifacts
    latencies = [
        (a.target, bench.latency_ms["p50"], f"{bench.latency_ms['p50']:.3g} ms")
        for a in artifacts
        for bench in a.benchmarks[:1]
        if bench.latency_ms is not None
    ]
    sizes = [
        (a.target, float(a.bytes), row.size) for a, row in zip(artifacts, artifact_rows(report), strict=True)
    ]
    deltas = [
        (a.target, a.accuracy.delta * 100, a.accuracy.delta_ci95[0] * 100, a.accuracy.delta_ci95[1] * 100)
        for a in artifacts
        if a.accuracy is not None
    ]
    return {
        "size": bar_chart(sizes),
        "latency": bar_chart(latencies),
        "delta": accuracy_chart(deltas),
        "lsb": [
            (a.target, histogram_chart(a.parity.lsb_histogram))
            for a in artifacts
            if a.parity is not None and set(a.parity.lsb_histogram) - {"0"}
        ],
    }
