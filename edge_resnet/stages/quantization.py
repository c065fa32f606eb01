"""From the float graph to the integers: calibrate, quantize, repair, train, keep layers in float."""

from __future__ import annotations

import time
from dataclasses import replace

from edge_resnet.compression.bias_correction import correct_biases
from edge_resnet.compression.equalize import equalize
from edge_resnet.compression.estimators import estimate
from edge_resnet.compression.learned_rounding import learn_rounding, rounding_steps
from edge_resnet.compression.quantize import PORTABLE_LIMIT, quantize
from edge_resnet.compression.statistics import collect
from edge_resnet.errors import InputError
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.passes import lower_for_integers
from edge_resnet.recipe import Qat
from edge_resnet.run import Run
from edge_resnet.stages.images import CalibrationImages, labelled_images
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
        started = time.perf_counter()
        with run.stage("learn rounding", rounding_steps(quantized, repair.rounding)) as advance:
            quantized = learn_rounding(
                quantized, floating, images.at_once(), repair.rounding, run.recipe.seed, _limit(run), advance
            )
        detail = f"{repair.rounding.steps} steps a block"
        meter.add("learned rounding", time.perf_counter() - started, quantized, detail)
    if repair.correct_biases:
        started = time.perf_counter()
        with run.stage("correct biases", len(quantized.nodes) - 1) as advance:
            quantized = correct_biases(quantized, floating, images, advance)
        meter.add("bias correction", time.perf_counter() - started, quantized)
    return floating, quantized


def _calibrated(run: Run, floating: Graph, images: CalibrationImages, meter: StepMeter, name: str) -> Graph:
    """The integers at the ranges that the calibration images show."""
    settings = run.recipe.calibration
    started = time.perf_counter()
    with run.stage("quantize" if name == "ptq" else name, len(images)) as advance:
        statistics = collect(floating, images(advance))
        ranges = estimate(statistics, floating, settings.estimator, settings.percentile)
        quantized = quantize(floating, ranges, _limit(run))
    for warning in statistics.warnings:
        if warning not in run.notes:
            run.note(warning)
    meter.add(name, time.perf_counter() - started, quantized, settings.estimator)
    return quantized


def _quantize_with_nncf(
    run: Run, floating: Graph, images: CalibrationImages, meter: StepMeter
) -> tuple[Graph, Graph]:
    """NNCF's integers, after its post-training quantization and its training, and their float graph."""
    from edge_resnet.compression.nncf_quantizer import calibrate_with_nncf, check_nncf
    from edge_resnet.compression.nncf_task import NncfTask

    check_nncf(floating)  # whether its scheme can be carried, before it takes its time
    qat, started = run.recipe.qat, time.perf_counter()
    with run.stage("quantize (NNCF)", len(images)) as advance:
        model = calibrate_with_nncf(floating, images(advance))
        result = model.quantized()
    meter.add("ptq", time.perf_counter() - started, result.graph, "NNCF")
    if qat.epochs:
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

    settings = run.recipe.sensitivity
    pixels, labels = labelled_images(run, "val", settings.images)
    with run.stage("sensitivity", len(pixels)) as advance:
        record = measure_sensitivity(floating, quantized, pixels, labels, advance)
    if settings.max_drop is not None:
        with run.stage("mixed precision"):
            run.quantized, record = choose_float_layers(
                floating, quantized, pixels, labels, settings.max_drop, record
            )
        notes = npu_notes(run.quantized, [target.name for target in run.targets])
        record = replace(record, notes=(*record.notes, *notes))
    run.record.sensitivity = record
