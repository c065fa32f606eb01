"""The first stages of a run: open what the user gave, train it if the recipe says so, and import it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np
from torch import nn

from edge_resnet.compression.output_range import lacks_output_range, with_output_range
from edge_resnet.data.images import open_images
from edge_resnet.errors import InputError
from edge_resnet.files import sha256_of
from edge_resnet.frontends.sources import import_graph, open_model, resolve_preprocess
from edge_resnet.frontends.torch_models import TorchModel
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.passes import dequantized
from edge_resnet.progress import Progress
from edge_resnet.recipe import Recipe
from edge_resnet.run import Run, StageTime
from edge_resnet.targets import Target
from edge_resnet.verify.import_check import check_import, random_images

__all__ = ["import_source", "open_run", "train_source"]

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
    images = open_images(str(data))
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


def train_source(run: Run) -> None:
    """Train the model from what it is (random or given weights), if the recipe has epochs.

    The weights are left in the run's folder, also when a later stage fails; so are checkpoints.
    """
    from edge_resnet.training import FloatTask, fit, is_worker, save_trained, show_on, trained_path

    settings, split = run.recipe.train, run.images.split("train")
    if not settings.epochs:
        return
    if not isinstance(run.model, TorchModel):
        raise InputError(f"{run.model.source}: only torch models are trained; leave train.epochs at 0")
    if not set(split.paths).isdisjoint(run.images.split("val").paths):
        raise InputError(
            f"{run.images.source}: training needs images apart from those that accuracy is measured on: put "
            "them into train/CLASS and val/CLASS"
        )
    _check_classes(run, import_graph(run.model, run.preprocess))  # before hours of training, not after
    with run.stage("train", settings.epochs * len(split)) as advance:
        record = fit(
            FloatTask(run.model.module, run.preprocess, settings),
            split,
            run.preprocess,
            settings,
            run.recipe.seed,
            state=run.state,
            identity=_training_identity(run, run.model.module),
            advance=advance,
            report=show_on(advance),
            skip_corrupt=run.recipe.evaluate.skip_corrupt,
            devices=run.devices,
        )
    run.record.training.append(record)
    if record.resumed_at:
        run.mark_resumed()
    if is_worker():
        return
    path = trained_path(run.out, run.model.name)
    save_trained(run.model.module, path)
    run.model = replace(run.model, weights_sha256=sha256_of(path))
    run.note(
        f"trained for {settings.epochs} epochs of {record.images} images in {record.seconds:.0f} s: loss "
        f"{record.epochs[0].loss:.3f} to {record.epochs[-1].loss:.3f}; the weights are in {path.name}"
    )


def _training_identity(run: Run, module: nn.Module) -> str:
    """Of all that decides the trained weights."""
    from edge_resnet.training import identity_of, weights_digest

    return identity_of(
        model=run.model.source,
        weights=weights_digest(module),
        recipe=run.recipe.train.model_dump(mode="json"),
        seed=run.recipe.seed,
        preprocess=run.preprocess.to_json(),
        data=run.images.fingerprint,
        skip_corrupt=run.recipe.evaluate.skip_corrupt,
    )


def import_source(run: Run) -> None:
    """The model's graph, compared with the model on its own runtime.

    A model that is quantized already keeps its integers, unless they are to be chosen anew.
    """
    with run.stage("import"):
        run.baseline = run.model.runner(run.preprocess)
        graph = import_graph(run.model, run.preprocess)
        _check_classes(run, graph)
        graph = Graph(graph.name, graph.nodes, run.images.classes)
        if lacks_output_range(graph):
            graph = with_output_range(graph, _calibration_batches(run))
            run.note("the source leaves its logits in float: their range is that of the calibration images")
        run.import_check = check_import(
            run.model.name,
            graph,
            run.model.checker(run.preprocess),
            _check_images(run, graph),
            rounded=run.requantize,
        )
        run.floating = graph
        if graph.is_quantized:
            run.floating, run.quantized = dequantized(graph), graph
            run.note("the model came quantized: its integers are kept, nothing was calibrated")


def _check_classes(run: Run, graph: Graph) -> None:
    classes = run.images.classes
    if graph.output_shape != (len(classes),):
        raise InputError(
            f"{run.model.name} answers {'x'.join(map(str, graph.output_shape))} values but the data has "
            f"{len(classes)} classes ({', '.join(classes[:3])}, ...): not a pair"
        )


def _calibration_batches(run: Run) -> Iterator[np.ndarray]:
    train, settings = run.images.split("train"), run.recipe.calibration
    chosen = train.order(run.recipe.seed)[: settings.images]
    for batch in train.batches(chosen, run.preprocess, settings.batch, run.recipe.evaluate.skip_corrupt):
        yield batch.pixels


def _check_images(run: Run, graph: Graph) -> np.ndarray:
    """Random images, and some of the data's."""
    random, train = random_images(graph), run.images.split("train")
    chosen = train.order(run.recipe.seed)[:_CHECK_IMAGES]
    if not len(chosen):
        return random
    batches = train.batches(chosen, run.preprocess, _CHECK_IMAGES, run.recipe.evaluate.skip_corrupt)
    return np.concatenate([random, *(batch.pixels for batch in batches)])
