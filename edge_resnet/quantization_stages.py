"""From the float graph to the integers: calibrate, quantize, repair, train, keep layers in float."""

from __future__ import annotations

import time
from dataclasses import replace

from torch import nn

from edge_resnet.compression.calibrate import calibrate
from edge_resnet.compression.quantize import PORTABLE_LIMIT, quantize
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.passes import lower_for_integers
from edge_resnet.run import Run
from edge_resnet.run_images import CalibrationImages, validation_images
from edge_resnet.step_meter import StepMeter
from edge_resnet.training_stages import check_training, train_integers, train_module

__all__ = ["quantize_source"]


def quantize_source(run: Run) -> None:
    """The run's float graph in integers, as the recipe says. A model that came quantized keeps its own."""
    check_training(run)
    if run.quantized is not None:
        return
    assert run.floating is not None
    recipe, record = run.recipe, run.record
    record.quantizer, record.portable_x86 = recipe.quantizer, recipe.portable_x86
    record.estimator = recipe.calibration.estimator
    floating = lower_for_integers(run.floating)
    images, meter = CalibrationImages(run), StepMeter(run, run.floating)
    if recipe.quantizer == "nncf":
        quantized = _quantize_with_nncf(run, floating, images)
    else:
        floating, quantized = _quantize(run, floating, images, meter)
        if recipe.qat.epochs:
            started = time.perf_counter()
            floating, quantized = train_integers(run, floating, quantized, images, _limit(run))
            qat = recipe.qat
            detail = f"{qat.epochs} epochs, {qat.scales} scales, batch norm {qat.batch_norm}"
            meter.add("qat", time.perf_counter() - started, quantized, detail)
    run.quantized = quantized
    if recipe.sensitivity.images:
        _sensitivity(run, floating, quantized)


def _limit(run: Run) -> int:
    return PORTABLE_LIMIT if run.recipe.portable_x86 else 127


def _quantize(run: Run, floating: Graph, images: CalibrationImages, meter: StepMeter) -> tuple[Graph, Graph]:
    """Post-training quantization with the recipe's repairs: the float graph and its integers."""
    settings = run.recipe.calibration
    started = time.perf_counter()
    with run.stage("quantize", len(images)) as advance:
        ranges = calibrate(floating, images(advance))
        quantized = quantize(floating, ranges, _limit(run))
    meter.add("ptq", time.perf_counter() - started, quantized, settings.estimator)
    return floating, quantized


def _quantize_with_nncf(run: Run, floating: Graph, images: CalibrationImages) -> Graph:
    """NNCF's integers: its post-training quantization, and its training if the recipe has epochs."""
    from edge_resnet.compression.nncf_quantizer import quantize_with_nncf
    from edge_resnet.compression.nncf_task import NncfTask

    qat = run.recipe.qat

    def trainer(module: nn.Module) -> None:
        train_module(run, NncfTask(module, floating.input, qat), qat)

    with run.stage("quantize (NNCF)", len(images)) as advance:
        result = quantize_with_nncf(floating, images(advance), trainer if qat.epochs else None)
    for note in result.notes:
        run.note(note)
    return result.graph


def _sensitivity(run: Run, floating: Graph, quantized: Graph) -> None:
    """What each layer costs, and, where the recipe limits the loss, the layers that stay in float."""
    from edge_resnet.compression.mixed import choose_float_layers
    from edge_resnet.compression.sensitivity import measure_sensitivity
    from edge_resnet.verify.npu import npu_notes

    settings = run.recipe.sensitivity
    pixels, labels = validation_images(run, settings.images)
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
