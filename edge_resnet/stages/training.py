"""The stages that train: the float model before it is imported or after it was pruned, and the integers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from torch import nn

from edge_resnet.errors import InputError
from edge_resnet.files import sha256_of
from edge_resnet.frontends.sources import import_graph
from edge_resnet.frontends.torch_models import TorchModel
from edge_resnet.graph.graph import Graph
from edge_resnet.recipe import Distillation, FineTuning, Optimization, Qat, Recipe
from edge_resnet.run import Run
from edge_resnet.stages.images import labelled_images
from edge_resnet.stages.source import check_classes

if TYPE_CHECKING:
    from edge_resnet.distillation import Distiller, Teacher
    from edge_resnet.training import Task

__all__ = [
    "check_integers",
    "check_training",
    "distiller_of",
    "fine_tune",
    "teacher_of",
    "train_integers",
    "train_module",
    "train_source",
]

_BATCH_NORM_BATCHES = 8
_HINT_BATCHES = 16


def train_source(run: Run) -> None:
    """Train the model from what it is (random or given weights), if the recipe has epochs.

    The weights are left in the run's folder, also when a later stage fails; so are checkpoints.
    """
    from edge_resnet.training import FloatTask, is_worker, save_trained, trained_path

    settings = run.recipe.train
    if not settings.epochs:
        return
    if not isinstance(run.model, TorchModel):
        raise InputError(f"{run.model.source}: only torch models are trained; leave train.epochs at 0")
    check_classes(run, import_graph(run.model, run.preprocess))  # before hours of training, not after
    train_module(run, FloatTask(run.model.module, run.preprocess, settings), settings)
    record = run.record.training[-1]
    if is_worker():
        return
    path = trained_path(run.out, run.model.name)
    save_trained(run.model.module, path)
    run.model = replace(run.model, weights_sha256=sha256_of(path))
    run.note(
        f"trained for {settings.epochs} epochs of {record.images} images in {record.seconds:.0f} s: loss "
        f"{record.epochs[0].loss:.3f} to {record.epochs[-1].loss:.3f}; the weights are in {path.name}"
    )


def check_training(run: Run) -> None:
    """Whether all is there that the recipe's training needs, before any work. Raises InputError and
    MissingToolError."""
    from edge_resnet.training import check_start

    train, val = (run.images.split(name) for name in ("train", "val"))
    for name, settings in _trainings(run.recipe):
        if not set(train.paths).isdisjoint(val.paths):
            raise InputError(
                f"{run.images.source}: training needs images apart from those that accuracy is measured on: "
                "put them into train/CLASS and val/CLASS"
            )
        check_start(name, settings, len(train), run.devices)


def _trainings(recipe: Recipe) -> Iterator[tuple[str, Optimization]]:
    """The sections of the recipe that train."""
    tunes = recipe.prune.budget is not None and (recipe.finetune.epochs or recipe.prune.step_epochs)
    for name, settings, on in (
        ("train", recipe.train, recipe.train.epochs),
        ("finetune", recipe.finetune, tunes),
        ("qat", recipe.qat, recipe.qat.epochs),
    ):
        if on:
            yield name, settings


def fine_tune(run: Run, graph: Graph, settings: FineTuning, name: str = "finetune") -> Graph:
    """The float graph, trained for `settings.epochs` with batch normalization behind its convolutions.

    It learns from `--teacher`, or from the model as it came. `name`: of the training's record and of its
    checkpoint's folder; a training between steps of pruning has one of its own, finetune-step1 and so on.
    Raises InputError: the teacher does not fit, or what `fit` raises.
    """
    from edge_resnet.compression.fine_tuning import FineTuningTask, normalized_module, trained_graph
    from edge_resnet.graph.float_executor import image_bytes, input_values

    if not settings.epochs:
        return graph
    distiller = distiller_of(run, settings, graph)
    pixels, _ = labelled_images(run, "train", run.recipe.prune.images)
    parts = np.array_split(pixels, math.ceil(len(pixels) / run.recipe.calibration.batch))
    module = normalized_module(graph, (input_values(graph.input, part) for part in parts))
    inputs = (input_values(graph.input, part) for part in parts[:_HINT_BATCHES])
    distiller.start(module.eval(), ((values, image_bytes(graph.input, values)) for values in inputs))
    train_module(run, FineTuningTask(module, graph, distiller, name), settings, distiller.teacher)
    return trained_graph(graph, module)


def check_integers(run: Run) -> None:
    """Whether the integers can be trained as the recipe says, now that the model is imported."""
    from edge_resnet.distillation import check_teacher, stage_pairs

    if not run.recipe.qat.epochs:
        return
    if run.quantized is not None:
        raise InputError(
            f"{run.model.source}: the model came quantized, and its integers are kept; --requantize chooses "
            "them anew, and trains them"
        )
    assert run.floating is not None
    if run.teacher is not None:
        check_teacher(run.teacher, run.floating)
    if run.recipe.qat.distill.compares_tensors:
        assert run.original is not None
        stage_pairs(run.floating, run.teacher or run.original)


def train_integers(
    run: Run,
    floating: Graph,
    quantized: Graph,
    calibration: Callable[[], Iterable[np.ndarray]],
    weight_limit: int,
) -> tuple[Graph, Graph]:
    """The trained float graph and its integers. `calibration`: the calibration images, in batches."""
    from edge_resnet.compression.qat import QatTask, trained_graph
    from edge_resnet.compression.qat_module import QatModule

    settings = run.recipe.qat
    module = QatModule(floating, quantized, settings, weight_limit)
    if settings.batch_norm == "trained":
        images = [module.inputs(b) for b, _ in zip(calibration(), range(_BATCH_NORM_BATCHES), strict=False)]
        module.calibrate_batch_norm(images)
    distiller = distiller_of(run, settings, floating)
    module.eval()  # in which it takes float32, and follows no ranges
    inputs = (module.inputs(b) for b, _ in zip(calibration(), range(_HINT_BATCHES), strict=False))
    distiller.start(module, ((values, values + module.byte_zero) for values in inputs))
    train_module(run, QatTask(module.train(), distiller), settings, distiller.teacher)
    return module.floating(), trained_graph(module, calibration)


def teacher_of(run: Run, distill: Distillation, precision: str) -> Teacher | None:
    """Whom training learns from as well: the model that `--teacher` names, else the model as it came."""
    from edge_resnet.distillation import Teacher

    if not distill.on:
        return None
    graph = run.teacher or run.original
    assert graph is not None
    return Teacher(graph, precision)


def distiller_of(run: Run, settings: FineTuning | Qat, student: Graph) -> Distiller:
    """The loss of a training of `student`, with its teacher, whose answers are kept where that is worth it.

    Raises InputError where the teacher does not fit.
    """
    from edge_resnet.distillation import Distiller, TeacherAnswers, check_teacher, worth_keeping

    teacher, split = teacher_of(run, settings.distill, settings.precision), run.images.split("train")
    if teacher is None:
        return Distiller(settings)
    check_teacher(teacher.graph, student)
    if settings.distill.compares_tensors or not worth_keeping(settings, len(split), len(run.images.classes)):
        return Distiller(settings, teacher, student)
    answers = TeacherAnswers(
        run.state / "teacher", teacher, settings, len(split), run.preprocess, run.images.fingerprint
    )
    if answers.missing:
        with run.stage("teacher", answers.missing) as advance:
            answers.fill(split, settings.device, run.recipe.evaluate.skip_corrupt, advance)
    return Distiller(settings, teacher, student, answers)


def train_module(run: Run, task: Task, settings: Optimization, teacher: Teacher | None = None) -> None:
    """Train a task's module in place, with its checkpoints in the run's folder and its record in the run."""
    from edge_resnet.training import fit, show_on

    split = run.images.split("train")
    with run.stage(task.name, settings.epochs * len(split)) as advance:
        record = fit(
            task,
            split,
            run.preprocess,
            settings,
            run.recipe.seed,
            state=run.state,
            identity=_identity(run, settings, task.module, teacher),
            advance=advance,
            report=show_on(advance),
            skip_corrupt=run.recipe.evaluate.skip_corrupt,
            devices=run.devices,
        )
    run.record.training.append(replace(record, teacher=None if teacher is None else teacher.name))
    if record.resumed_at:
        run.mark_resumed()


def _identity(run: Run, settings: Optimization, module: nn.Module, teacher: Teacher | None) -> str:
    """Of all that decides the trained weights."""
    from edge_resnet.training import identity_of, weights_digest

    # The limit of weights is in no tensor that training begins with, unlike all else that was chosen before.
    portable = {"portable_x86": True} if settings is run.recipe.qat and run.recipe.portable_x86 else {}
    return identity_of(
        model=run.model.source,
        weights=weights_digest(module),
        teacher=None if teacher is None else teacher.digest,
        recipe=settings.model_dump(mode="json"),
        **run.images_identity(),
        **portable,
    )
