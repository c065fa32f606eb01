"""The stages of `compress`: open, train, import, prune, quantize, export, prove, benchmark, report.

The first five are in stages/.

Everything is written into a folder beside the final place and moved there in the end, so that a run that
fails or is interrupted leaves what was there before.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_resnet.data.images import ImageSplit
from edge_resnet.errors import InputError
from edge_resnet.export.coreml_library import import_coremltools
from edge_resnet.files import check_writable, replace_directory
from edge_resnet.graph.mixed_executor import MixedExecutor
from edge_resnet.graph.passes import fold_normalization_std
from edge_resnet.progress import Progress, SilentProgress
from edge_resnet.recipe import load_recipe
from edge_resnet.run import Run
from edge_resnet.run_directory import EvaluationRecord, Probe, write_graph_directory
from edge_resnet.stages.pruned_speed import record_speed, unpruned_files
from edge_resnet.stages.pruning import prune_source
from edge_resnet.stages.quantization import quantize_source
from edge_resnet.stages.source import import_source, open_run, open_teacher
from edge_resnet.stages.training import check_training, train_source
from edge_resnet.targets import Target, parse_targets
from edge_resnet.verify.prove import Proofs, prove

if TYPE_CHECKING:
    from edge_resnet.benchmark.result import BenchmarkResult
    from edge_resnet.report.schema import Report

__all__ = ["RunResult", "compress"]

_PROBE_IMAGES = 32
_WORK = ".work-"


@dataclass(frozen=True)
class RunResult:
    """A finished run: its report (what report.json holds), its folder, and what failed, if anything."""

    report: Report
    directory: Path
    failures: tuple[str, ...]


def compress(
    model: str = "demo",
    *,
    weights: str | Path | None = None,
    data: str | Path | None = None,
    targets: Sequence[str] = ("tflite-int8",),
    recipe: str | Path | Mapping[str, Any] | None = None,
    settings: Sequence[str] = (),
    out: str | Path | None = None,
    output: str | None = None,
    teacher: str | None = None,
    teacher_weights: str | Path | None = None,
    requantize: bool = False,
    devices: int = 1,
    progress: Progress | None = None,
    command: str = "",
) -> RunResult:
    """Quantize a trained model, write it for each target, prove each file, and report.

    The arguments are those of `edge-resnet compress` (see docs). Raises InputError for what the user gave
    wrongly. A failed verification does not raise: look at `failures`. Training leaves checkpoints in
    `out`/state, and the same call goes on from them. `devices`: processes that train together. Under torchrun
    all processes but the first raise edge_resnet.training.WorkerDone when training is over.
    """
    progress = progress or SilentProgress()
    chosen = parse_targets(targets)
    parsed = load_recipe(recipe, settings)
    if parsed.export.tflite_io == "int8" and any(t.suffix == ".tflite" and not t.quantized for t in chosen):
        raise InputError("--io int8 needs an int8 target: a float .tflite has no int8 ends")
    if any(target.suffix == ".mlpackage" for target in chosen):
        import_coremltools()  # not installed: say so before any work
    for target in chosen:
        if target.compiled_from is not None:
            from edge_resnet.export.compiled import check_compiler

            check_compiler(target.name, parsed.export)
    if parsed.quantizer == "nncf":
        from edge_resnet.compression.nncf_quantizer import import_nncf

        import_nncf()
    run = open_run(model, weights, data, output, requantize, parsed, chosen, out, progress, devices)
    check_training(run)
    open_teacher(run, teacher, teacher_weights)
    existed = run.out.exists()
    check_writable(run.out)
    work = Path(tempfile.mkdtemp(prefix=_WORK, dir=run.out))
    try:
        return _run(run, work, command)
    finally:
        shutil.rmtree(work, ignore_errors=True)
        if not existed:
            with suppress(OSError):  # it goes when nothing was put into it
                run.out.rmdir()


def _run(run: Run, work: Path, command: str) -> RunResult:
    from edge_resnet.report.assemble import assemble_report
    from edge_resnet.report.save import save_report
    from edge_resnet.training import leave_worker

    train_source(run)
    import_source(run)
    prune_source(run)
    quantize_source(run)
    leave_worker()  # all training is done: one process goes on
    paths = _export(run, work)
    validation = run.images.split("val")
    chosen = validation.order(run.recipe.seed)[: run.recipe.evaluate.images]
    proofs = _prove(run, paths, validation, chosen)
    latency, benchmarks = _benchmark(run, paths)
    if validation.skipped:
        run.note(
            f"{len(validation.skipped)} corrupt images were skipped, for example {validation.skipped[0]}"
        )
    report = assemble_report(run, proofs, latency, benchmarks, command)
    _write_graphs(run, work / "graph", validation, chosen, proofs)
    save_report(report, work)
    _move_into_place(work, run.out)
    failures = tuple(failure for proof in proofs.artifacts for failure in proof.failures)
    return RunResult(report, run.out, failures)


def _export(run: Run, work: Path) -> dict[Target, Path]:
    assert run.floating is not None
    assert run.quantized is not None
    floating = fold_normalization_std(run.floating)
    paths: dict[Target, Path] = {}
    for target in run.targets:
        path = target.path(work, run.model.name)
        with run.stage(f"export {target.name}"):
            target.write(run.quantized if target.quantized else floating, path, run.recipe.export)
        paths[target] = path
    return paths


def _prove(run: Run, paths: dict[Target, Path], split: ImageSplit, chosen: np.ndarray) -> Proofs:
    assert run.floating is not None
    assert run.quantized is not None
    assert run.baseline is not None
    settings = run.recipe.evaluate
    with run.stage("verify", len(chosen)) as advance:
        return prove(
            paths,
            run.quantized,
            run.baseline.logits,
            run.baseline.runtime,
            (
                (b.pixels, b.labels)
                for b in split.batches(chosen, run.preprocess, settings.batch, settings.skip_corrupt)
            ),
            settings.parity_images,
            settings.emulated_images,
            advance,
            fold_normalization_std(run.floating),
            changed=run.pruning is not None,
        )


def _benchmark(
    run: Run, paths: dict[Target, Path]
) -> tuple[dict[str, float] | None, dict[str, BenchmarkResult]]:
    """Latency of the model on its own runtime, and what was measured of each artifact."""
    from edge_resnet.benchmark.baseline import eager_latency
    from edge_resnet.benchmark.result import BenchmarkSettings
    from edge_resnet.devices.local import benchmark_local

    assert run.baseline is not None
    settings = run.recipe.benchmark
    if not settings.runs:
        return None, {}
    with tempfile.TemporaryDirectory() as folder:
        # What was compiled for an NPU runs on no CPU.
        artifacts = [(t.name, path) for t, path in paths.items() if t.compiled_from is None]
        artifacts += unpruned_files(run, Path(folder))
        with run.stage("benchmark", len(artifacts) * settings.runs) as advance:
            latency = eager_latency(run.baseline.logits, run.preprocess.size, settings.threads)
            results = benchmark_local(
                artifacts, settings.threads, BenchmarkSettings(runs=settings.runs), advance
            )
    record_speed(run, results)
    return latency, results


def _write_graphs(run: Run, directory: Path, split: ImageSplit, chosen: np.ndarray, proofs: Proofs) -> None:
    assert run.floating is not None
    assert run.quantized is not None
    assert proofs.baseline is not None
    settings = run.recipe.evaluate
    record = EvaluationRecord(
        data=run.images.source if run.images.source == "demo" else str(Path(run.images.source).resolve()),
        fingerprint=run.images.fingerprint,
        preprocess=run.preprocess.to_json(),
        seed=run.recipe.seed,
        images=len(chosen),
        parity_images=settings.parity_images,
        emulated_images=settings.emulated_images,
        batch=settings.batch,
        skip_corrupt=settings.skip_corrupt,
    )
    batches = split.batches(chosen[:_PROBE_IMAGES], run.preprocess, _PROBE_IMAGES, settings.skip_corrupt)
    pixels = next(iter(batches)).pixels
    probe = Probe(pixels, MixedExecutor(run.quantized).run(pixels))
    write_graph_directory(directory, run.quantized, run.floating, record, probe, proofs.baseline.top1_correct)


def _move_into_place(work: Path, out: Path) -> None:
    """Each finished file or folder takes its name in one step; the report comes last."""
    entries = sorted(work.iterdir(), key=lambda entry: (entry.name.startswith("report"), entry.name))
    for entry in entries:
        final = out / entry.name
        if entry.is_dir():
            replace_directory(entry, final)
        else:
            entry.replace(final)
    for leftover in out.glob(f"{_WORK}*"):  # of runs that were killed
        shutil.rmtree(leftover, ignore_errors=True)
