"""From the float graph to the integers: calibrate, quantize, repair, train, keep layers in float."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from edge_resnet.compression.bias_correction import correct_biases
from edge_resnet.compression.equalize import equalize
from edge_resnet.compression.estimators import estimate
from edge_resnet.compression.learned_rounding import learn_rounding, rounding_steps
from edge_resnet.compression.quantize import PORTABLE_LIMIT, quantize
from edge_resnet.compression.statistics import collect
from edge_resnet.errors import InputError
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.passes import lower_for_integers
from edge_resnet.progress import Advance
from edge_resnet.quantization_record import LayerCost, SensitivityRecord
from edge_resnet.recipe import Qat
from edge_resnet.run import Run
from edge_resnet.stage_cache import StageOutput, stage_key
from edge_resnet.stages.images import CalibrationImages, labelled_images
from edge_resnet.stages.kept import Made, Step, kept_stage, kept_step
from edge_resnet.stages.pruning import record_integers
from edge_resnet.stages.step_meter import StepMeter
from edge_resnet.stages.training import check_integers, distiller_of, train_integers, train_module

__all__ = ["quantize_source"]

# Less can be chance: of 1,000 images, 20.
_LOST_IN_TRAINING = 0.02


def quantize_source(run: Run) -> None:
    """The run's float graph in integers, as the recipe says. A model that came quantized keeps its own."""
    check_integers(run)
    if run.quantized is not None:
        _check_kept(run)
        return
    assert run.floating is not None
    recipe, record = run.recipe, run.record
    record.quantizer, record.portable_x86 = recipe.quantizer, recipe.portable_x86
    record.estimator = recipe.calibration.estimator
    floating = lower_for_integers(run.floating)
    images, meter = CalibrationImages(run), StepMeter(run, run.floating)
    if recipe.quantizer == "nncf":
        floating, quantized = _quantize_with_nncf(run, floating, images, meter)
    else:
        floating, quantized = _quantize(run, floating, images, meter)
        if recipe.qat.epochs:
            started = time.perf_counter()
            floating, quantized = train_integers(run, floating, quantized, images, _limit(run))
            meter.add("qat", _qat_seconds(run, started), quantized, _qat_words(recipe.qat))
    _note_what_training_lost(run)
    record_integers(run)
    run.quantized = quantized
    if recipe.sensitivity.images:
        _sensitivity(run, floating, quantized)


def _note_what_training_lost(run: Run) -> None:
    """Training with too large a learning rate ends well, with integers that are worse."""
    if not run.recipe.qat.epochs:
        return
    before, after = (step.top1 for step in run.record.steps[-2:])
    if before is not None and after is not None and before - after > _LOST_IN_TRAINING:
        run.note(
            f"training made the integers worse: {before:.2%} before it, {after:.2%} after it, on "
            f"{run.record.steps[-1].n} images; lower qat.learning_rate "
            f"(now {run.recipe.qat.learning_rate:g})"
        )


def _check_kept(run: Run) -> None:
    """Raises InputError where the recipe wants something of integers that are kept as they came."""
    recipe = run.recipe
    asked = {
        "portable_x86": recipe.portable_x86,
        "quantizer": recipe.quantizer != "edge-resnet",
        "repair.equalize": recipe.repair.equalize,
        "repair.correct_biases": recipe.repair.correct_biases,
        "repair.rounding.steps": recipe.repair.rounding.steps > 0,
        "sensitivity.images": recipe.sensitivity.images > 0,
    }
    for key, wanted in asked.items():
        if wanted:
            raise InputError(
                f"{run.model.source}: the model came quantized, and its integers are kept: {key} does "
                "nothing for them; --requantize chooses them anew"
            )


def _limit(run: Run) -> int:
    return PORTABLE_LIMIT if run.recipe.portable_x86 else 127


def _qat_seconds(run: Run, started: float) -> float:
    """Of all runs that trained, where this one went on from a checkpoint."""
    return max(time.perf_counter() - started, run.record.training[-1].seconds)


def _qat_words(qat: Qat) -> str:
    epochs = "1 epoch" if qat.epochs == 1 else f"{qat.epochs} epochs"
    taught = f", distilled at temperature {qat.distill.temperature:g}" if qat.distill.on else ""
    return f"{epochs}, {qat.scales} scales, batch norm {qat.batch_norm}{taught}"


def _quantize(run: Run, floating: Graph, images: CalibrationImages, meter: StepMeter) -> tuple[Graph, Graph]:
    """Post-training quantization with the recipe's repairs: the float graph and its integers."""
    repair = run.recipe.repair
    if not repair.equalize or meter.on:  # without equalization, to see what that gains
        quantized = _calibrated(run, floating, images, meter, "ptq")
    if repair.equalize:
        floating = equalize(floating)
        quantized = _calibrated(run, floating, images, meter, "equalize")
    if repair.rounding.steps:
        quantized = _rounded(run, floating, quantized, images, meter)
    if repair.correct_biases:
        quantized = _corrected(run, floating, quantized, images, meter)
    return floating, quantized


def _calibrated(run: Run, floating: Graph, images: CalibrationImages, meter: StepMeter, name: str) -> Graph:
    """The integers at the ranges that the calibration images show."""
    settings = run.recipe.calibration

    def make(advance: Advance) -> Made:
        statistics = collect(floating, images(advance))
        ranges = estimate(statistics, floating, settings.estimator, settings.percentile)
        return {"quantized": quantize(floating, ranges, _limit(run))}, statistics.warnings

    title = "quantize" if name == "ptq" else name
    step = Step(name, title, len(images), settings.estimator)
    return kept_step(run, meter, step, make, floating=floating, limit=_limit(run))["quantized"]


def _rounded(
    run: Run, floating: Graph, quantized: Graph, images: CalibrationImages, meter: StepMeter
) -> Graph:
    settings, limit, seed = run.recipe.repair.rounding, _limit(run), run.recipe.seed

    def make(advance: Advance) -> Made:
        pixels = images.at_once()
        return {"quantized": learn_rounding(quantized, floating, pixels, settings, seed, limit, advance)}, ()

    total, detail = rounding_steps(quantized, settings), f"{settings.steps} steps a block"
    step = Step("learned rounding", "learn rounding", total, detail)
    parts = {"floating": floating, "quantized": quantized, "limit": limit}
    return kept_step(run, meter, step, make, settings=settings.model_dump(mode="json"), **parts)["quantized"]


def _corrected(
    run: Run, floating: Graph, quantized: Graph, images: CalibrationImages, meter: StepMeter
) -> Graph:
    def make(advance: Advance) -> Made:
        return {"quantized": correct_biases(quantized, floating, images, advance)}, ()

    step = Step("bias correction", "correct biases", len(quantized.nodes) - 1)
    return kept_step(run, meter, step, make, floating=floating, quantized=quantized)["quantized"]


def _quantize_with_nncf(
    run: Run, floating: Graph, images: CalibrationImages, meter: StepMeter
) -> tuple[Graph, Graph]:
    """NNCF's integers, after its post-training quantization and its training, and their float graph."""
    from edge_resnet.compression.nncf_quantizer import calibrate_with_nncf, check_nncf, import_nncf

    qat, title = run.recipe.qat, "quantize (NNCF)"
    if qat.epochs:  # what is trained is NNCF's module, which no cache holds
        return _trained_with_nncf(run, floating, images, meter, title)

    def make(advance: Advance) -> Made:
        check_nncf(floating)  # whether its scheme can be carried, before it takes its time
        result = calibrate_with_nncf(floating, images(advance)).quantized()
        return {"quantized": result.graph, "floating": result.floating}, result.notes

    step = Step("ptq", title, len(images), "NNCF")
    graphs = kept_step(run, meter, step, make, floating=floating, nncf=import_nncf().__version__)
    return graphs["floating"], graphs["quantized"]


def _trained_with_nncf(
    run: Run, floating: Graph, images: CalibrationImages, meter: StepMeter, title: str
) -> tuple[Graph, Graph]:
    from edge_resnet.compression.nncf_quantizer import calibrate_with_nncf, check_nncf
    from edge_resnet.compression.nncf_task import NncfTask

    check_nncf(floating)
    qat, started = run.recipe.qat, time.perf_counter()
    with run.stage(title, len(images)) as advance:
        model = calibrate_with_nncf(floating, images(advance))
        result = model.quantized()
    meter.add("ptq", time.perf_counter() - started, result.graph, "NNCF")
    started = time.perf_counter()
    distiller = distiller_of(run, qat, floating)
    task = NncfTask(model.module, floating.input, distiller)
    train_module(run, task, qat, distiller.teacher)
    result = model.quantized()
    meter.add("qat", _qat_seconds(run, started), result.graph, f"NNCF, {_qat_words(qat)}")
    for note in result.notes:
        run.note(note)
    return result.floating, result.graph


def _sensitivity(run: Run, floating: Graph, quantized: Graph) -> None:
    """What each layer costs, and, where the recipe limits the loss, the layers that stay in float."""
    from edge_resnet.compression.mixed import choose_float_layers
    from edge_resnet.compression.sensitivity import measure_sensitivity
    from edge_resnet.verify.npu import npu_notes

    settings, identity = run.recipe.sensitivity, run.images_identity()
    inputs = {"floating": floating, "quantized": quantized, "images": settings.images}
    count = min(settings.images, len(run.images.split("val")))

    def measured(advance: Advance) -> StageOutput:
        pixels, labels = labelled_images(run, "val", settings.images)
        return StageOutput({}, asdict(measure_sensitivity(floating, quantized, pixels, labels, advance)))

    key = stage_key(**inputs, **identity)
    record = _sensitivity_record(kept_stage(run, "sensitivity", key, "sensitivity", count, measured).record)
    if settings.max_drop is not None:
        max_drop, costs = settings.max_drop, record

        def chosen(advance: Advance) -> StageOutput:
            pixels, labels = labelled_images(run, "val", settings.images)
            graph, found = choose_float_layers(floating, quantized, pixels, labels, max_drop, costs)
            return StageOutput({"quantized": graph}, asdict(found))

        key, kind = stage_key(max_drop=max_drop, **inputs, **identity), "mixed-precision"
        output = kept_stage(run, kind, key, "mixed precision", None, chosen)
        run.quantized, record = output.graphs["quantized"], _sensitivity_record(output.record)
        notes = npu_notes(run.quantized, [target.name for target in run.targets])
        record = replace(record, notes=(*record.notes, *notes))
    run.record.sensitivity = record


def _sensitivity_record(record: Mapping[str, Any]) -> SensitivityRecord:
    layers, notes = (LayerCost(**layer) for layer in record["layers"]), record["notes"]
    return SensitivityRecord(**{**record, "layers": tuple(layers), "notes": tuple(notes)})
