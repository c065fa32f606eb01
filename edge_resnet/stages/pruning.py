"""Pruning and fine-tuning: from the imported float graph to a smaller one, and what each stage made of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edge_resnet.compression.plain import RANGE_IMAGES, in_integers
from edge_resnet.errors import InputError
from edge_resnet.export.tflite import tflite_bytes
from edge_resnet.graph.float_executor import FloatExecutor
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.passes import lower_for_integers
from edge_resnet.progress import Advance
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
from edge_resnet.quantization_record import TrainingRecord, training_record
from edge_resnet.run import Run
from edge_resnet.stage_cache import StageOutput, stage_key
from edge_resnet.stages.images import labelled_images
from edge_resnet.stages.kept import kept_stage
from edge_resnet.stages.layer_latencies import layer_latencies
from edge_resnet.stages.step_meter import measured_images
from edge_resnet.stages.training import fine_tune

if TYPE_CHECKING:
    from edge_resnet.latency.table import LatencyTable

__all__ = ["prune_source", "record_integers"]


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
    original, table = run.floating, layer_latencies(run, run.floating)
    pruned = _pruned(run, original, table)
    run.unpruned, run.floating = _small_integers(run, original), pruned.graph
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
    meter.add("original", original, run.unpruned)
    meter.add("pruned", pruned.graph, _small_integers(run, pruned.graph), _words(run.pruning))
    if run.recipe.finetune.epochs:
        run.floating = fine_tune(run, pruned.graph, run.recipe.finetune)
        meter.add_trained("finetune", run.floating)


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
            step = steps[-1]
            record.stages.append(
                replace(last, name=name, integers=True, top1=step.top1, n=step.n, detail=step.detail)
            )


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
    passes = image_passes(graph, settings)

    def retrained(smaller: Graph, step: int) -> Graph:
        epochs = finetune.model_copy(update={"epochs": settings.step_epochs})
        return fine_tune(run, smaller, epochs, f"finetune-step{step}")

    def make(advance: Advance) -> StageOutput:
        sample, trained_before = None, len(run.record.training)
        if passes:
            pixels, labels = labelled_images(run, "train", settings.images)
            sample = Sample(pixels, labels, np.zeros((0, 0), np.float32), finetune.precision, advance)
            sample = sample.with_answers(answers(graph, sample))
        pruned = prune(
            graph,
            settings,
            lambda smaller: _costs(settings.budget, smaller, table),
            sample,
            run.recipe.seed,
            retrained if retraining else lambda smaller, step: smaller,
        )
        # Taken out of the run again: below they come from the output, whoever made it.
        trainings = run.record.training[trained_before:]
        del run.record.training[trained_before:]
        return _to_output(pruned, trainings)

    total = passes * min(settings.images, len(run.images.split("train")))
    output = kept_stage(run, "prune", key, "prune", total, make)
    run.record.training += [training_record(values) for values in output.record["trainings"]]
    return _from_output(output)


def _costs(budget: tuple[str, float] | None, graph: Graph, table: LatencyTable | None) -> Costs:
    assert budget is not None
    if table is not None:
        return LatencyCosts(graph, table)
    return COSTS[budget[0]](graph)


def _to_output(pruned: Pruned, trainings: Sequence[TrainingRecord]) -> StageOutput:
    record = {
        "trainings": [asdict(training) for training in trainings],
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


def _small_integers(run: Run, graph: Graph) -> Graph:
    """The graph in integers: as large and as fast as with the best ranges."""
    return in_integers(graph, [labelled_images(run, "train", RANGE_IMAGES)[0]])


class _StageMeter:
    """What the float model is after each stage: its top-1, and what its int8 file will be."""

    def __init__(self, run: Run, table: LatencyTable | None) -> None:
        assert run.original is not None
        self._run, self._table = run, table
        self._count = measured_images(run.recipe.evaluate.step_images, run.original)

    @cached_property
    def _images(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        return labelled_images(self._run, "val", self._count)

    def add(self, name: str, graph: Graph, integers: Graph, detail: str = "") -> None:
        """Of a stage that made another architecture. `integers`: the graph at any ranges."""
        predicted = None if self._table is None else self._table.predict(lower_for_integers(graph))
        with self._run.stage(f"measure {name}"):
            top1, count = self._top1(graph)
            size = len(tflite_bytes(integers))
        self._put(StageRecord(name, False, top1, count, graph.macs, graph.params, size, predicted, detail))

    def add_trained(self, name: str, graph: Graph) -> None:
        """Of a stage that only changed the weights of the one before."""
        with self._run.stage(f"measure {name}"):
            top1, count = self._top1(graph)
        self._put(replace(self._record.stages[-1], name=name, top1=top1, n=count, detail=""))

    @property
    def _record(self) -> PruningRecord:
        assert self._run.pruning is not None
        return self._run.pruning

    def _put(self, stage: StageRecord) -> None:
        self._record.stages.append(stage)

    def _top1(self, graph: Graph) -> tuple[float | None, int]:
        if not self._count:
            return None, 0
        pixels, labels = self._images
        return float((FloatExecutor(graph).run(pixels).argmax(1) == labels).mean()), len(labels)
