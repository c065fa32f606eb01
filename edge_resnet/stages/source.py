"""The first stages of a run: open what the user gave, and import it."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np

from edge_resnet.compression.output_range import lacks_output_range, with_output_range
from edge_resnet.data.images import open_images
from edge_resnet.errors import InputError
from edge_resnet.frontends.sources import import_graph, open_model, resolve_preprocess
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.passes import dequantized
from edge_resnet.progress import Progress
from edge_resnet.recipe import Recipe
from edge_resnet.run import Run, StageTime
from edge_resnet.stages.images import calibration_batches
from edge_resnet.targets import Target
from edge_resnet.verify.import_check import check_import, random_images

__all__ = ["check_classes", "import_source", "open_run", "open_teacher"]

_CHECK_IMAGES = 8


def open_run(
    model: str,
    weights: str | Path | None,
    data: str | Path | None,
    output: str | None,
    requantize: bool,
    recipe: Recipe,
    targets: tuple[Target, ...],
    out: str | Path | None,
    progress: Progress,
    devices: int = 1,
) -> Run:
    """Look at all that the user gave before any work is done."""
    if data is None and model == "demo":
        data = "demo"
    if data is None:
        raise InputError("no data: give --data DIR with {train,val|test}/CLASS/*.jpg, a .zip of one, or demo")
    started = time.perf_counter()
    images = open_images(str(data), recipe.evaluate.skip_corrupt)
    loaded = open_model(
        model,
        Path(weights) if weights else None,
        len(images.classes),
        recipe.seed,
        output,
        keep_integers=not requantize,
    )
    preprocess = resolve_preprocess(loaded.preprocess_defaults, recipe.preprocess)
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    directory = Path(out) if out else Path("runs") / f"{loaded.name}-{stamp}"
    run = Run(recipe, targets, progress, loaded, images, preprocess, directory, requantize, devices)
    run.stages.append(StageTime("open", time.perf_counter() - started))
    notes = loaded.notes
    if recipe.train.epochs:  # what is said of random weights is no longer true then
        notes = tuple(note for note in notes if "random weights" not in note)
    for note in (*notes, *images.notes):
        run.note(note)
    return run


def open_teacher(run: Run, teacher: str | None, weights: str | Path | None) -> None:
    """The model that training learns from as well: what `--teacher` names, else the run's own float model."""
    recipe = run.recipe
    distils = (recipe.qat.epochs and recipe.qat.distill.on) or (
        recipe.finetune.epochs and recipe.finetune.distill.on
    )
    if teacher is None:
        if weights is not None:
            raise InputError("--teacher-weights without --teacher: name the model that they belong to")
        return
    if not distils:
        raise InputError(
            f"--teacher {teacher}: the recipe has no distillation; set qat.epochs and qat.distill.weight, "
            "as --recipe qat-distill does, or finetune.epochs behind pruning"
        )
    named = f"--teacher {teacher}"
    source = open_model(
        teacher, Path(weights) if weights else None, len(run.images.classes), 0, keep_integers=False
    )
    if any("random weights" in note for note in source.notes):
        raise InputError(f"{named}: no weights; give --teacher-weights FILE: random weights teach nothing")
    for note in source.notes:
        run.note(f"teacher: {note}")
    declared = {**run.preprocess.to_json(), **source.preprocess_defaults}
    seen = replace(resolve_preprocess(declared, {}), size=run.preprocess.size)
    try:
        run.teacher = import_graph(source, seen)
    except InputError as error:
        raise InputError(f"{named} must take the same images as {run.model.name}: {error}") from error
    classes = len(run.images.classes)
    if run.teacher.output_shape != (classes,):
        raise InputError(
            f"{named} answers {'x'.join(map(str, run.teacher.output_shape))} values, but the data has "
            f"{classes} classes: a teacher needs the same classes"
        )


def import_source(run: Run) -> None:
    """The model's graph, compared with the model on its own runtime.

    A model that is quantized already keeps its integers, unless they are to be chosen anew.
    """
    with run.stage("import"):
        run.baseline = run.model.runner(run.preprocess)
        graph = import_graph(run.model, run.preprocess)
        check_classes(run, graph)
        graph = Graph(graph.name, graph.nodes, run.images.classes)
        if lacks_output_range(graph):
            graph = with_output_range(graph, calibration_batches(run))
            run.note("the source leaves its logits in float: their range is that of the calibration images")
        run.import_check = check_import(
            run.model.name,
            graph,
            run.model.checker(run.preprocess),
            _check_images(run, graph),
            rounded=run.requantize,
        )
        run.floating = run.original = graph
        if graph.is_quantized:
            run.floating = run.original = dequantized(graph)
            run.quantized = graph
            run.note("the model came quantized: its integers are kept, nothing was calibrated")


def check_classes(run: Run, graph: Graph) -> None:
    """Raises InputError where the graph's answers do not fit the data's classes."""
    classes = run.images.classes
    if graph.output_shape != (len(classes),):
        raise InputError(
            f"{run.model.name} answers {'x'.join(map(str, graph.output_shape))} values but the data has "
            f"{len(classes)} classes ({', '.join(classes[:3])}, ...): not a pair"
        )


def _check_images(run: Run, graph: Graph) -> np.ndarray:
    """Random images, and some of the data's.

    Only the data's where a quantized source is read as floats: its integers cut off what its calibration did
    not see, and random images are nothing but that.
    """
    random, train = random_images(graph), run.images.split("train")
    chosen = train.order(run.recipe.seed)[:_CHECK_IMAGES]
    if not len(chosen):
        return random
    batches = train.batches(chosen, run.preprocess, _CHECK_IMAGES, run.recipe.evaluate.skip_corrupt)
    seen = [batch.pixels for batch in batches]
    return np.concatenate(seen if run.requantize and seen else [random, *seen])
