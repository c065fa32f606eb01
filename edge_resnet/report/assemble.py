"""From what a run saw to its report."""

from __future__ import annotations

import math
import platform
import sys
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edge_resnet.benchmark.result import BenchmarkResult
from edge_resnet.benchmark.statistics import paired_difference, wilson_interval
from edge_resnet.cpu import this_cpu
from edge_resnet.files import sha256_of, size_of
from edge_resnet.pruning_record import PruningRecord
from edge_resnet.quantization_record import QuantizationRecord
from edge_resnet.report import schema
from edge_resnet.runners.base import Runner
from edge_resnet.verify.evaluate import Outcome
from edge_resnet.verify.parity import ParityTally
from edge_resnet.verify.prove import Proof, Proofs
from edge_resnet.verify.ranges import RangeCheck

if TYPE_CHECKING:
    from edge_resnet.run import Run

__all__ = ["accuracy_part", "assemble_report", "parity_part", "pruning_part", "quantization_part"]

_PACKAGES = (
    "edge-resnet",
    "torch",
    "numpy",
    "onnx",
    "onnxruntime",
    "ai-edge-litert",
    "coremltools",
    "pillow",
)


def assemble_report(
    run: Run,
    proofs: Proofs,
    latency: dict[str, float] | None,
    benchmarks: Mapping[str, BenchmarkResult],
    command: str,
) -> schema.Report:
    """All that report.json holds; artifacts are read from where the proofs found them."""
    assert run.original is not None
    assert run.quantized is not None
    assert run.baseline is not None
    model, check = run.model, run.import_check
    validation = run.images.split("val")
    return schema.Report(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=command,
        recipe=run.recipe.model_dump(mode="json"),
        environment=_environment(),
        model=schema.Model(
            name=model.name,
            source=model.source,
            weights_sha256=model.weights_sha256,
            input_shape=[1, *run.original.input.shape],
            params=run.original.params if model.params is None else model.params,
            macs=run.original.macs,
            import_check=None if check is None else schema.ImportCheck(**asdict(check)),
        ),
        baseline=_baseline(proofs.baseline, latency, run.baseline.runtime),
        compressed=schema.Compressed(params=run.quantized.params, macs=run.quantized.macs),
        stages=[
            schema.Stage(name=s.name, seconds=round(s.seconds, 3), resumed=s.resumed) for s in run.stages
        ],
        artifacts=[
            _artifact(proof, proofs.baseline, benchmarks.get(proof.target.name)) for proof in proofs.artifacts
        ],
        data=schema.Data(
            source=run.images.source,
            classes=list(run.images.classes),
            n_train=len(run.images.split("train")),
            n_val=len(validation),
            fingerprint=run.images.fingerprint,
        ),
        preprocess=run.preprocess.to_json(),
        notes=list(run.notes),
        quantization=quantization_part(run.record),
        pruning=None if run.pruning is None else pruning_part(run.pruning),
    )


def quantization_part(record: QuantizationRecord) -> schema.Quantization | None:
    """None where nothing was quantized here: the model came with its integers, or all targets are float."""
    if not record.steps and not record.training and record.sensitivity is None:
        return None
    return schema.Quantization.model_validate(_finite(asdict(record)))


def pruning_part(record: PruningRecord) -> schema.Pruning:
    return schema.Pruning.model_validate(_finite(asdict(record)))


def _finite(value: Any) -> Any:
    """JSON has no infinity, which is what an SQNR without noise is: null stands for it."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return value


def _environment() -> schema.Environment:
    packages = {}
    for name in _PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            continue
    return schema.Environment(
        python=sys.version.split()[0], packages=packages, cpu=this_cpu().name, os=platform.platform()
    )


def _baseline(outcome: Outcome | None, latency: dict[str, float] | None, runtime: str) -> schema.Baseline:
    timed = None if latency is None else schema.Latency.model_validate(latency)
    if outcome is None or not len(outcome.top1_correct):
        return schema.Baseline(top1=None, top5=None, n=0, latency_ms=timed, runtime=runtime)
    return schema.Baseline(
        top1=float(outcome.top1_correct.mean()),
        top5=float(outcome.top5_correct.mean()),
        n=len(outcome.top1_correct),
        latency_ms=timed,
        runtime=runtime,
    )


def _artifact(proof: Proof, baseline: Outcome | None, benchmark: BenchmarkResult | None) -> schema.Artifact:
    return schema.Artifact(
        target=proof.target.name,
        path=proof.path.name,
        bytes=size_of(proof.path),
        sha256=sha256_of(proof.path),
        ranges=_ranges(proof.ranges),
        weights=_ranges(proof.weights),
        parity=_parity(proof),
        accuracy=_accuracy(proof, baseline),
        benchmarks=[] if benchmark is None else [schema.Benchmark.model_validate(benchmark.to_json())],
        cross_parity=_cross_parity(proof.outcome),
        failures=list(proof.failures),
        notes=list(proof.warnings),
    )


def _ranges(check: RangeCheck | None) -> schema.Ranges | None:
    if check is None:
        return None
    return schema.Ranges(checked=check.checked, equal=check.equal, mismatches=list(check.mismatches))


def _parity(proof: Proof) -> schema.Parity | None:
    runner = proof.runner
    if runner is None:
        return parity_part(proof.parity, None, None)
    return parity_part(proof.parity, runner.runtime, _kind(runner))


def parity_part(
    tally: ParityTally | None, runtime: str | None, kind: schema.Kind | None
) -> schema.Parity | None:
    if tally is None or not tally.n:
        return None
    return schema.Parity(
        against=tally.against,
        n=tally.n,
        identical=tally.identical,
        top1_agreement=tally.top1_agreement,
        max_lsb=tally.max_lsb,
        mean_lsb=tally.mean_lsb,
        lsb_histogram={str(lsb): count for lsb, count in sorted(tally.histogram.items())},
        max_abs=tally.max_abs,
        runtime=runtime,
        kind=kind,
        to_the_bit=tally.to_the_bit,
    )


def _kind(runner: Runner) -> schema.Kind:
    return schema.Kind.EMULATED if runner.emulated else schema.Kind.MEASURED


def _cross_parity(outcome: Outcome | None) -> list[schema.CrossParity]:
    if outcome is None:
        return []
    return [
        schema.CrossParity(
            against=name, n=tally.n, identical=tally.identical, top1_agreement=tally.top1_agreement
        )
        for name, tally in sorted(outcome.cross.items())
    ]


def _accuracy(proof: Proof, baseline: Outcome | None) -> schema.Accuracy | None:
    outcome, runner = proof.outcome, proof.runner
    if outcome is None or runner is None or baseline is None or not len(outcome.top1_correct):
        return None
    return accuracy_part(outcome, runner.runtime, runner.version, _kind(runner), baseline.top1_correct)


def accuracy_part(
    outcome: Outcome, runtime: str, version: str, kind: schema.Kind, baseline: NDArray[np.bool_] | None
) -> schema.Accuracy:
    """`baseline`: what the float baseline answered rightly, image by image; the delta is of those in both."""
    correct = outcome.top1_correct
    n = len(correct)
    delta, interval = None, None
    if baseline is not None:
        both = min(n, len(baseline))
        delta, *ends = paired_difference(baseline[:both], correct[:both])
        interval = ends[0], ends[1]
    return schema.Accuracy(
        runtime=runtime,
        top1=float(correct.mean()),
        top5=float(outcome.top5_correct.mean()),
        n=n,
        ci95=wilson_interval(int(correct.sum()), n),
        delta=delta,
        delta_ci95=interval,
        kind=kind,
        runtime_version=version,
    )
