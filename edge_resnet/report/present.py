"""What every view shows, in words: the tables' rows, the notes, and why a figure is missing."""

from __future__ import annotations

from dataclasses import dataclass

from edge_resnet.benchmark.statistics import wilson_interval
from edge_resnet.report.figures import Figure, Reasons, because
from edge_resnet.report.present_devices import DevicePage, present_devices
from edge_resnet.report.present_pruning import PruningPage, present_pruning
from edge_resnet.report.present_quantization import QuantizationPage, present_quantization
from edge_resnet.report.schema import Artifact, Baseline, Benchmark, Kind, Latency, Parity, Report
from edge_resnet.report.verdict import Verdict, problems, verdict
from edge_resnet.report.wording import (
    NO_FIGURE,
    bytes_words,
    interval_words,
    memory_words,
    milliseconds,
    percent,
    points,
    share,
)

__all__ = [
    "Page",
    "ProofRow",
    "Row",
    "SpeedRow",
    "baseline_interval",
    "baseline_name",
    "headline_benchmark",
    "present",
]

_NO_FILE = "the baseline runs inside this program: it is no file that starts by itself"
_FLOAT_FILE = "a float file has no integers and no LSB; its logits are compared as real numbers"
_PAIR = "runtimes are compared with each other for identity only; distances are counted from the reference"


@dataclass(frozen=True)
class Row:
    """One artifact, or the float baseline."""

    target: str
    file: str
    runtime: str
    failed: bool
    size: Figure
    top1: Figure
    delta: Figure
    p50: Figure
    cold_start: Figure
    memory: Figure


@dataclass(frozen=True)
class ProofRow:
    """Logits of one artifact, compared with the reference's or with another runtime's."""

    target: str
    runtime: str
    against: str
    images: str
    identical: Figure
    agreement: Figure
    max_lsb: Figure
    mean_lsb: Figure


@dataclass(frozen=True)
class SpeedRow:
    """One benchmark of one artifact."""

    target: str
    device: str
    runtime: str
    threads: str
    runs: str
    mean: Figure
    p50: Figure
    p95: Figure
    p99: Figure
    throughput: Figure


@dataclass(frozen=True)
class Page:
    """The report in words. `reasons[i]` is reason number i + 1."""

    verdict: Verdict
    failures: list[str]
    rows: list[Row]
    proof: list[ProofRow]
    speed: list[SpeedRow]
    devices: DevicePage | None
    pruning: PruningPage | None
    quantization: QuantizationPage | None
    notes: list[str]
    reasons: list[str]


def present(report: Report) -> Page:
    """Everything that a view shows but the report's own plain values."""
    reasons = Reasons()
    artifacts = report.artifacts
    rows = [_baseline_row(report.baseline, reasons)]
    rows += [_artifact_row(artifact, report, reasons) for artifact in artifacts]
    pruning, quantization = report.pruning, report.quantization
    return Page(
        verdict=verdict(report),
        failures=[problem for artifact in artifacts for problem in problems(artifact)],
        rows=rows,
        proof=[row for artifact in artifacts for row in _proof_rows(artifact, reasons)],
        speed=[_speed_row(a, benchmark, reasons) for a in artifacts for benchmark in a.benchmarks],
        devices=present_devices(artifacts, reasons),
        pruning=None if pruning is None else present_pruning(pruning, reasons),
        quantization=None if quantization is None else present_quantization(quantization, reasons),
        notes=_notes(report),
        reasons=reasons.texts,
    )


def headline_benchmark(artifact: Artifact) -> Benchmark | None:
    """The one of the main table: with a latency before one without, measured before what is not, this machine
    before others, one thread before several.
    """

    def order(benchmark: Benchmark) -> tuple[bool, ...]:
        return (
            benchmark.latency_ms is None,
            benchmark.kind is not Kind.MEASURED,
            benchmark.device != "local",
            benchmark.threads != 1,
        )

    return min(artifact.benchmarks, key=order, default=None)


def baseline_interval(baseline: Baseline) -> tuple[float, float] | None:
    """Wilson's 95 % interval of the float model's top-1, which report.json holds as a share and a count."""
    if baseline.top1 is None or not baseline.n:
        return None
    return wilson_interval(round(baseline.top1 * baseline.n), baseline.n)


def baseline_name(baseline: Baseline) -> str:
    """The model as it came, in a word or two."""
    return "float (torch)" if baseline.runtime.startswith("torch") else "the source model"


def _baseline_row(baseline: Baseline, reasons: Reasons) -> Row:
    interval, latency = baseline_interval(baseline), baseline.latency_ms
    no_file = reasons.missing(_NO_FILE)
    return Row(
        target=baseline_name(baseline),
        file="the model as trained",
        runtime=baseline.runtime,
        failed=False,
        size=no_file,
        top1=reasons.figure(
            baseline.top1,
            percent,
            Kind.MEASURED,
            "no labelled images were evaluated",
            "" if interval is None else interval_words(*map(percent, interval)),
        ),
        delta=Figure("reference"),
        p50=_latency(latency, "p50", Kind.MEASURED, reasons, "the float baseline was not timed"),
        cold_start=no_file,
        memory=no_file,
    )


def _artifact_row(artifact: Artifact, report: Report, reasons: Reasons) -> Row:
    accuracy, benchmark = artifact.accuracy, headline_benchmark(artifact)
    name = f"{artifact.target}: "
    uncounted = name + because([*artifact.failures, *artifact.notes], "no accuracy was counted")
    top1 = delta = None
    if accuracy is not None:
        top1 = Figure(percent(accuracy.top1), accuracy.kind, interval_words(*map(percent, accuracy.ci95)))
        if accuracy.delta is not None:
            paired = accuracy.delta_ci95
            detail = "" if paired is None else interval_words(*map(points, paired))
            delta = Figure(points(accuracy.delta), accuracy.kind, detail)
    kind = "" if benchmark is None else benchmark.kind
    untimed = name + because(_untimed(artifact, benchmark), "no benchmark was run")
    latency = cold_start = memory = None
    if benchmark is not None:
        latency, cold_start = benchmark.latency_ms, benchmark.cold_start_ms
        memory = benchmark.peak_memory_bytes
    return Row(
        target=artifact.target,
        file=artifact.path,
        runtime="not run" if accuracy is None else f"{accuracy.runtime} {accuracy.runtime_version}".strip(),
        failed=bool(problems(artifact)),
        size=Figure(bytes_words(artifact.bytes), Kind.MEASURED, _ratio(artifact, report)),
        top1=top1 or reasons.missing(uncounted),
        delta=delta or reasons.missing(uncounted),
        p50=_latency(latency, "p50", kind, reasons, untimed, _threads(benchmark)),
        cold_start=reasons.figure(cold_start, milliseconds, kind, untimed),
        memory=reasons.figure(memory, memory_words, kind, untimed),
    )


def _untimed(artifact: Artifact, benchmark: Benchmark | None) -> list[str]:
    return list(benchmark.notes) if benchmark else [*artifact.failures, *artifact.notes]


def _threads(benchmark: Benchmark | None) -> str:
    if benchmark is None:
        return ""
    threads = "" if benchmark.threads == 1 else f"{benchmark.threads} threads"
    device = "" if benchmark.device == "local" else benchmark.device
    return ", ".join(part for part in (device, threads, _interval(benchmark)) if part)


def _interval(benchmark: Benchmark) -> str:
    """Of a prediction."""
    interval = benchmark.latency_interval_ms
    return "" if interval is None else f"80 %: {interval_words(*map(milliseconds, interval))}"


def _latency(
    latency: Latency | None, key: str, kind: str, reasons: Reasons, reason: str, detail: str = ""
) -> Figure:
    value: float | None = None if latency is None else getattr(latency, key)
    return reasons.figure(value, milliseconds, kind, reason, detail)


def _ratio(artifact: Artifact, report: Report) -> str:
    """Against the plain float file of the same format, which it names; nothing where there is none."""
    family, _, kind = artifact.target.rpartition("-")
    sizes = {other.target: other.bytes for other in report.artifacts}
    for plain in ("fp32", "fp16"):
        if kind == plain:
            break
        if whole := sizes.get(f"{family}-{plain}"):
            return f"{artifact.bytes / whole:.0%} of {plain}"
    return ""


def _proof_rows(artifact: Artifact, reasons: Reasons) -> list[ProofRow]:
    parity, kind = artifact.parity, _parity_kind(artifact)
    if parity is None:
        why = because([*artifact.failures, *artifact.notes], "it was not run on its runtime")
        missing = reasons.missing(f"{artifact.target}: {why}")
        rows = [ProofRow(artifact.target, "not run", NO_FIGURE, NO_FIGURE, *[missing] * 4)]
    else:
        rows = [_parity_row(artifact, parity, reasons)]
    for cross in artifact.cross_parity:
        if artifact.target > cross.against:
            continue  # each pair once; report.json has it with both
        row = ProofRow(
            target=artifact.target,
            runtime=rows[0].runtime,
            against=cross.against,
            images=f"{cross.n:,}",
            identical=Figure(share(cross.identical), kind),
            agreement=Figure(share(cross.top1_agreement), kind),
            max_lsb=reasons.missing(_PAIR),
            mean_lsb=reasons.missing(_PAIR),
        )
        rows.append(row)
    return rows


def _parity_row(artifact: Artifact, parity: Parity, reasons: Reasons) -> ProofRow:
    kind = _parity_kind(artifact)
    exact = None if artifact.ranges is None else parity.identical
    return ProofRow(
        target=artifact.target,
        runtime=parity.runtime or (artifact.accuracy.runtime if artifact.accuracy else NO_FIGURE),
        against=parity.against,
        images=f"{parity.n:,}",
        identical=reasons.figure(exact, share, kind, _FLOAT_FILE),
        agreement=Figure(share(parity.top1_agreement), kind),
        max_lsb=reasons.figure(parity.max_lsb, str, kind, _FLOAT_FILE),
        mean_lsb=reasons.figure(parity.mean_lsb, lambda value: f"{value:.4f}", kind, _FLOAT_FILE),
    )


def _parity_kind(artifact: Artifact) -> str:
    if artifact.parity is not None and artifact.parity.kind is not None:
        return artifact.parity.kind
    return artifact.accuracy.kind if artifact.accuracy is not None else ""


def _speed_row(artifact: Artifact, benchmark: Benchmark, reasons: Reasons) -> SpeedRow:
    reason = f"{artifact.target}: {because(benchmark.notes, 'not timed')}"
    latency, kind = benchmark.latency_ms, benchmark.kind
    batch, between = "", _interval(benchmark)
    if benchmark.batch_throughput_per_s is not None:
        batch = f"{benchmark.batch_throughput_per_s:,.1f} at batch {benchmark.batch}"
    mean, p50, p95, p99 = (
        _latency(latency, key, kind, reasons, reason, between if key == "p50" else "")
        for key in ("mean", "p50", "p95", "p99")
    )
    return SpeedRow(
        target=artifact.target,
        device=benchmark.device,
        runtime=f"{benchmark.runtime} {benchmark.runtime_version}".strip(),
        threads=str(benchmark.threads),
        runs=f"{benchmark.runs:,}",
        mean=mean,
        p50=p50,
        p95=p95,
        p99=p99,
        throughput=reasons.figure(
            benchmark.throughput_per_s, lambda value: f"{value:,.1f}", kind, reason, batch
        ),
    )


def _notes(report: Report) -> list[str]:
    """The run's, the model's, then each artifact's; benchmarks without a figure say theirs as a reason."""
    notes = [*report.notes, *report.model.notes]
    for artifact in report.artifacts:
        notes += [f"{artifact.target}: {note}" for note in artifact.notes]
        for benchmark in artifact.benchmarks:
            if benchmark.latency_ms is not None:
                where = "" if benchmark.device == "local" else f" on {benchmark.device}"
                notes += [f"{artifact.target}{where}: {note}" for note in benchmark.notes]
    return list(dict.fromkeys(notes))
