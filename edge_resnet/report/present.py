"""How a report's figures are worded; shared by HTML, Markdown and the terminal."""

from __future__ import annotations

from dataclasses import dataclass

from edge_resnet.report.schema import Artifact, Benchmark, Report

__all__ = ["NO_FIGURE", "Row", "Verdict", "artifact_rows", "verdict"]

NO_FIGURE = "—"


@dataclass(frozen=True)
class Verdict:
    """`good`: every check passed. `text` is one or two sentences."""

    good: bool
    text: str


@dataclass(frozen=True)
class Row:
    """One artifact, in words. `kind` is how the accuracy was had, `latency_kind` the latency."""

    target: str
    file: str
    size: str
    ratio: str
    top1: str
    interval: str
    delta: str
    delta_interval: str
    runtime: str
    kind: str
    identical: str
    agreement: str
    ranges: str
    p50: str
    p95: str
    cold_start: str
    memory: str
    latency_kind: str
    failed: bool


def verdict(report: Report) -> Verdict:
    """What a reader must know first."""
    if report.failures:
        count = sum(bool(artifact.failures) for artifact in report.artifacts)
        return Verdict(
            False, f"{count} of {len(report.artifacts)} artifacts failed verification: do not ship."
        )
    int8 = [artifact for artifact in report.artifacts if artifact.ranges is not None]
    parts = [f"{len(report.artifacts)} artifact{'s' if len(report.artifacts) != 1 else ''} verified."]
    if int8:
        parts.append(
            f"{'All' if len(int8) > 1 else 'The'} int8 file{'s' if len(int8) > 1 else ''} hold"
            f"{'s' if len(int8) == 1 else ''} the graph's integers."
        )
    exact = [a for a in int8 if a.parity is not None and a.parity.identical == 1]
    if exact:
        images = min(a.parity.n for a in exact if a.parity is not None)
        names = " and ".join(a.target for a in exact)
        parts.append(f"Logits of {names} equal the integer reference bit for bit on {images:,} images.")
    crossed = [(a, c) for a in int8 for c in a.cross_parity if c.identical == 1 and a.target < c.against]
    parts += [f"{a.target} and {c.against} agree bit for bit on all {c.n:,} images." for a, c in crossed]
    return Verdict(True, " ".join(parts))


def artifact_rows(report: Report) -> list[Row]:
    """The artifacts in order."""
    float_bytes = {a.path.rsplit(".", 1)[-1]: a.bytes for a in report.artifacts if a.ranges is None}
    return [_row(artifact, float_bytes) for artifact in report.artifacts]


def _row(artifact: Artifact, float_bytes: dict[str, int]) -> Row:
    accuracy, parity, ranges = artifact.accuracy, artifact.parity, artifact.ranges
    benchmark = artifact.benchmarks[0] if artifact.benchmarks else None
    whole = float_bytes.get(artifact.path.rsplit(".", 1)[-1])
    return Row(
        target=artifact.target,
        file=artifact.path,
        size=_size(artifact.bytes),
        ratio=f"{artifact.bytes / whole:.0%} of float" if whole and ranges is not None else "",
        top1=NO_FIGURE if accuracy is None else f"{accuracy.top1:.2%}",
        interval="" if accuracy is None else f"{accuracy.ci95[0]:.2%} to {accuracy.ci95[1]:.2%}",
        delta=NO_FIGURE if accuracy is None else f"{accuracy.delta * 100:+.2f}",
        delta_interval=""
        if accuracy is None
        else f"{accuracy.delta_ci95[0] * 100:+.2f} to {accuracy.delta_ci95[1] * 100:+.2f}",
        runtime=NO_FIGURE if accuracy is None else accuracy.runtime,
        kind="" if accuracy is None else accuracy.kind,
        identical=NO_FIGURE if parity is None or ranges is None else _share(parity.identical),
        agreement=NO_FIGURE if parity is None else _share(parity.top1_agreement),
        ranges=NO_FIGURE if ranges is None else f"{ranges.equal} of {ranges.checked}",
        p50=_latency(benchmark, "p50"),
        p95=_latency(benchmark, "p95"),
        cold_start=NO_FIGURE
        if benchmark is None or benchmark.cold_start_ms is None
        else f"{benchmark.cold_start_ms:.1f} ms",
        memory=NO_FIGURE
        if benchmark is None or benchmark.peak_memory_bytes is None
        else _size(benchmark.peak_memory_bytes),
        latency_kind="" if benchmark is None or benchmark.latency_ms is None else benchmark.kind,
        failed=bool(artifact.failures),
    )


def _latency(benchmark: Benchmark | None, key: str) -> str:
    if benchmark is None or benchmark.latency_ms is None:
        return NO_FIGURE
    return f"{benchmark.latency_ms[key]:.3g} ms"


def _share(value: float) -> str:
    """Never rounds up to 100 %."""
    return "100%" if value == 1 else f"{min(value, 0.9999):.2%}"


def _size(count: int) -> str:
    return f"{count / 1e6:.2f} MB" if count >= 1e6 else f"{count / 1e3:.0f} KB"
