"""Pruning and fine-tuning: from the imported float graph to a smaller one, and what each stage made of it."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np

from edge_resnet.compression.calibrate import calibrate
from edge_resnet.compression.quantize import quantize
from edge_resnet.errors import InputError
from edge_resnet.export.tflite import tflite_bytes
from edge_resnet.graph.float_executor import FloatExecutor
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.passes import lower_for_integers
from edge_resnet.pruning.costs import COSTS, Costs, LatencyCosts
from edge_resnet.pruning.evidence import Sample, answers
from edge_resnet.pruning.prune import Pruned, image_passes, prune
from edge_resnet.pruning_record import (
    BlockChange,
    LatencyRecord,
    LayerChange,
    PruningRecord,
    StageRecord,
)
from edge_resnet.run import Run
from edge_resnet.stage_cache import StageOutput, stage_key
from edge_resnet.stages.images import labelled_images
from edge_resnet.stages.step_meter import measured_images
from edge_resnet.stages.training import fine_tune

if TYPE_CHECKING:
    from edge_resnet.latency.table import LatencyTable

__all__ = ["prune_source", "record_integers"]

# The size and the speed of a file do not depend on its ranges: few images will do.
_RANGE_IMAGES = 8


def prune_source(run: Run) -> None:
    """Prune the run's float graph to the recipe's budget, and train what is left."""
    settings = run.recipe.prune
    if settings.budget is None:
        return
    if run.quantized is not None:
        raise InputError(
            f"{run.model.source}: the model came quantized, and its integers are kept; --requantize chooses "
            "them anew, after pruning"
        )
    assert run.floating is not None
    original, table = run.floating, _latency_table(run, run.floating)
    pruned = _pruned(run, original, table)
    run.unpruned, run.floating = _in_integers(run, original), pruned.graph
    name, part = settings.budget
    run.pruning = PruningRecord(
        name, part, pruned.reached, settings.criterion, settings.multiple, pruned.layers, pruned.blocks
    )
    if table is not None:
        run.pruning.latency = LatencyRecord(
            table.runtime,
            table.threads,
            table.description,
            table.spread,
            table.predict(lower_for_integers(pruned.graph)),
            table.predict(lower_for_integers(original)),
        )
    meter = _StageMeter(run, table)
    meter.add("original", original)
    meter.add("pruned", pruned.graph, _words(run.pruning))
    if run.recipe.finetune.epochs:
        run.floating = fine_tune(run, pruned.graph, run.recipe.finetune)
        meter.add("finetune", run.floating)


def record_integers(run: Run) -> None:
    """Put what quantization measured beside the stages of pruning."""
    record = run.pruning
    if record is None:
        return
    last = record.stages[-1]
    for name, steps in (
        ("int8", [step for step in run.record.steps if step.name != "qat"]),
        ("qat", [step for step in run.record.steps if step.name == "qat"]),
    ):
        if steps:
            record.stages.append(
                StageRecord(
                    name,
                    True,
                    steps[-1].top1,
                    steps[-1].n,
                    last.macs,
                    last.params,
                    last.bytes,
                    last.predicted_ms,
                    steps[-1].detail,
                )
            )


def _latency_table(run: Run, graph: Graph) -> LatencyTable | None:
    """The measured latencies of the graph's layers, where the budget is latency."""
    settings = run.recipe.prune
    if settings.latency is None:
        return None
    from edge_resnet.latency.table import latency_table, missing_entries

    choice = settings.device, "litert", run.recipe.benchmark.threads, settings.multiple
    lowered = lower_for_integers(graph)
    with run.stage("measure layers", missing_entries(lowered, *choice)) as advance:
        return latency_table(lowered, *choice, advance=advance)


def _pruned(run: Run, graph: Graph, table: LatencyTable | None) -> Pruned:
    """The smaller graph; an earlier run's, where all that decides it is the same."""
    settings, finetune = run.recipe.prune, run.recipe.finetune
    retraining = settings.steps > 1 and settings.step_epochs > 0
    key = stage_key(
        graph=graph,
        settings=settings.model_dump(mode="json"),
        precision=finetune.precision,
        finetune=finetune.model_dump(mode="json") if retraining else None,
        teacher=run.teacher if retraining else None,
        table=None if table is None else table.digest,
        **run.images_identity(),
    )
    kept = run.cache.get("prune", key)
    passes = image_passes(graph, settings)
    with run.stage("prune", passes * min(settings.images, len(run.images.split("train")))) as advance:
        if kept is not None:
            pruned = _from_output(kept)
        else:
            sample = None
            if passes:
                pixels, labels = labelled_images(run, "train", settings.images)
                sample = Sample(pixels, labels, np.zeros((0, 0), np.float32), finetune.precision, advance)
                sample = sample.with_answers(answers(graph, sample))

            def retrained(smaller: Graph, step: int) -> Graph:
                epochs = finetune.model_copy(update={"epochs": settings.step_epochs})
                return fine_tune(run, smaller, epochs, f"finetune-step{step}")

            pruned = prune(
                graph,
                settings,
                lambda smaller: _costs(settings.budget, smaller, table),
                sample,
                run.recipe.seed,
                retrained if retraining else lambda smaller, step: smaller,
            )
            run.cache.put("prune", key, _to_output(pruned))
    if kept is not None:
        run.mark_resumed()
    return pruned


def _costs(budget: tuple[str, float] | None, graph: Graph, table: LatencyTable | None) -> Costs:
    assert budget is not None
    if table is not None:
        return LatencyCosts(graph, table)
    return COSTS[budget[0]](graph)


def _to_output(pruned: Pruned) -> StageOutput:
    record = {
        "reached": pruned.reached,
        "layers": [asdict(layer) for layer in pruned.layers],
        "blocks": [asdict(block) for block in pruned.blocks],
    }
    return StageOutput({"pruned": pruned.graph}, record)


def _from_output(output: StageOutput) -> Pruned:
    record = output.record
    return Pruned(
        output.graphs["pruned"],
        record["reached"],
        tuple(LayerChange(**{**layer, "size": tuple(layer["size"])}) for layer in record["layers"]),
        tuple(BlockChange(**{**block, "layers": tuple(block["layers"])}) for block in record["blocks"]),
    )


def _words(record: PruningRecord) -> str:
    """What went, in a few words."""
    blocks = sum(block.removed for block in record.blocks)
    narrowed = sum(0 < layer.after < layer.before for layer in record.layers)
    return f"{blocks} of {len(record.blocks)} blocks gone, {narrowed} layers narrower"


def _in_integers(run: Run, graph: Graph) -> Graph:
    """The graph quantized at some ranges: as large and as fast as with the best ones."""
    lowered = lower_for_integers(graph)
    pixels, _ = labelled_images(run, "train", _RANGE_IMAGES)
    return quantize(lowered, calibrate(lowered, [pixels]))


class _StageMeter:
    """What the float model is after each stage: its top-1, and what its int8 file will be."""

    def __init__(self, run: Run, table: LatencyTable | None) -> None:
        assert run.original is not None
        self._run, self._table = run, table
        self._count = measured_images(run.recipe.evaluate.step_images, run.original)

    def add(self, name: str, graph: Graph, detail: str = "") -> None:
        run, top1, count = self._run, None, 0
        assert run.pruning is not None
        with run.stage(f"measure {name}"):
            if self._count:
                pixels, labels = labelled_images(run, "val", self._count)
                top1 = float((FloatExecutor(graph).run(pixels).argmax(1) == labels).mean())
                count = len(labels)
            size = len(tflite_bytes(_in_integers(run, graph)))
        lowered = lower_for_integers(graph)
        run.pruning.stages.append(
            StageRecord(
                name,
                False,
                top1,
                count,
                graph.macs,
                graph.params,
                size,
                None if self._table is None else self._table.predict(lowered),
                detail,
            )
        )
