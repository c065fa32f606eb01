"""One trial: the stages of `compress` that decide the integers, and what these are worth.

What is the same in all trials is opened once for each process (`Bench`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edge_resnet.compression.plain import RANGE_IMAGES, in_integers
from edge_resnet.errors import InputError
from edge_resnet.files import check_writable
from edge_resnet.progress import Progress, SilentProgress, StageBar
from edge_resnet.quantization_record import QuantizationRecord
from edge_resnet.recipe import Recipe
from edge_resnet.run import Run
from edge_resnet.runners.litert import LiteRTRunner
from edge_resnet.search.front import Point
from edge_resnet.search.held_out import with_held_out
from edge_resnet.search.speed import Speed, measure_speed, measuring
from edge_resnet.stage_cache import StageCache, stage_key
from edge_resnet.stages.images import labelled_images
from edge_resnet.stages.layer_latencies import layer_latencies, unmeasured_layers
from edge_resnet.stages.pruning import prune_source
from edge_resnet.stages.quantization import quantize_source
from edge_resnet.stages.source import import_source, open_run, open_teacher
from edge_resnet.stages.training import check_training, fine_tune
from edge_resnet.targets import TARGETS

__all__ = ["Bench", "Measured", "Source"]

_LEAST_RUNS = 10
_TARGET = TARGETS["tflite-int8"]

Watch = Callable[[str, Point], None]
Show = Callable[[str], None]


@dataclass(frozen=True)
class Source:
    """What the user named: the model, the data and the teacher, as for `compress`."""

    model: str
    weights: str | None = None
    data: str | None = None
    output: str | None = None
    teacher: str | None = None
    teacher_weights: str | None = None
    requantize: bool = False


@dataclass(frozen=True)
class Measured:
    """What a trial came to: top-1 of its int8 file in LiteRT, its speed, its size in bytes."""

    accuracy: float
    speed: Speed
    bytes: int
    macs: int
    params: int


class Bench:
    """The opened model and data, with images kept apart; measures recipes, one after the other."""

    def __init__(self, source: Source, recipe: Recipe, out: Path, progress: Progress) -> None:
        """`recipe`: one of those to come, for all that they share.

        Raises InputError for what `compress` would refuse of the model and the data, and for what leaves a
        search nothing to measure.
        """
        if recipe.train.epochs:
            raise InputError(
                "train.epochs: a search begins with a trained model; train it with `compress`, then search "
                "with its --weights and --set train.epochs=0"
            )
        if recipe.benchmark.runs < _LEAST_RUNS:
            raise InputError(f"benchmark.runs: a search measures latency; set it to {_LEAST_RUNS} or more")
        run = open_run(
            source.model,
            source.weights,
            source.data,
            source.output,
            source.requantize,
            recipe,
            (_TARGET,),
            out,
            progress,
        )
        run.images = with_held_out(run.images, recipe.search.images, recipe.seed)
        open_teacher(run, source.teacher, source.teacher_weights)
        check_writable(out)
        import_source(run)
        self._run, self.model, self.data_source = run, run.model.name, run.images.source
        self._pixels, self._labels = labelled_images(run, "val", len(run.images.split("val")))
        self.images = len(self._labels)

    @property
    def identity(self) -> dict[str, Any]:
        """Of all that the trials of a study share but their recipe."""
        run = self._run
        model = stage_key(original=run.original, quantized=run.quantized, teacher=run.teacher)
        return {"model": model, "data": run.images_identity()}

    def unpruned(self) -> Measured:
        """The model as it came, quantized as the recipe says, without any training."""
        with self._folder() as folder:
            run = self._trial(self._run.recipe, folder, lambda text: None)
            run.recipe = _without(run.recipe, "qat")
            quantize_source(run)
            return self._result(run, folder, None)

    def measure(self, recipe: Recipe, watch: Watch, show: Show) -> Measured:
        """Make the recipe's model and measure it.

        `watch(place, point)` is told what the model is worth before each training, and may raise to end the
        trial; `show` is told what is done. Raises InputError where a stage does: a budget that cannot be
        met, a training that diverges.
        """
        with self._folder() as folder:
            run = self._trial(recipe, folder, show)
            check_training(run)
            self._prune(run)
            speed = None
            if run.pruning is not None and recipe.finetune.epochs:
                speed = self._pass(run, "pruned", folder, speed, watch)
                assert run.floating is not None
                run.floating = fine_tune(run, run.floating, recipe.finetune)
            if recipe.qat.epochs:
                speed = self._pass(run, "int8", folder, speed, watch)
            quantize_source(run)
            # Layers that stay in float are chosen at the end, and change the speed.
            return self._result(run, folder, None if recipe.sensitivity.max_drop is not None else speed)

    def _trial(self, recipe: Recipe, folder: Path, show: Show) -> Run:
        """A run that begins behind the import. Steps are not measured one by one: only the end counts."""
        evaluate = recipe.evaluate.model_copy(update={"step_images": 0})
        update: dict[str, Any] = {"evaluate": evaluate}
        if recipe.sensitivity.max_drop is None:
            update["sensitivity"] = recipe.sensitivity.model_copy(update={"images": 0})
        return replace(
            self._run,
            recipe=recipe.model_copy(update=update),
            progress=_Shown(show),
            out=folder,
            stages=[],
            notes=[],
            record=QuantizationRecord(),
            stage_cache=StageCache(self._run.out / "state" / "search"),
        )

    def _prune(self, run: Run) -> None:
        if run.quantized is None:
            assert run.original is not None
            if unmeasured_layers(run, run.original):
                with measuring():
                    layer_latencies(run, run.original)
        recipe = run.recipe
        run.recipe = _without(recipe, "finetune")  # which follows on its own, once it is worth it
        prune_source(run)
        run.recipe = recipe

    def _pass(self, run: Run, place: str, folder: Path, speed: Speed | None, watch: Watch) -> Speed:
        """What the model would be worth if no training came any more; its speed will stay the same."""
        passing = replace(
            run, recipe=_without(run.recipe, "qat"), record=QuantizationRecord(), pruning=None, notes=[]
        )
        quantize_source(passing)
        measured = self._result(passing, folder, speed)
        watch(place, Point(measured.accuracy, measured.speed.part))
        return measured.speed

    def _result(self, run: Run, folder: Path, speed: Speed | None) -> Measured:
        assert run.quantized is not None
        path, settings = folder / "trial.tflite", run.recipe.benchmark
        _TARGET.write(run.quantized, path, run.recipe.export)
        if speed is None:
            with run.stage("latency"):
                speed = measure_speed(path, self._unpruned(folder), settings.runs, settings.threads)
        with run.stage("accuracy"):
            answers = LiteRTRunner(path, threads=1).logits(self._pixels).argmax(1)
        accuracy = float((answers == self._labels).mean())
        graph = run.quantized
        return Measured(accuracy, speed, path.stat().st_size, graph.macs, graph.params)

    def _unpruned(self, folder: Path) -> Path:
        """The file of the model as it came, at some ranges: as fast as with the best ones."""
        path = folder / "unpruned.tflite"
        if not path.exists():
            run = self._run
            assert run.original is not None
            graph = run.quantized or in_integers(run.original, [self._pixels[:RANGE_IMAGES]])
            _TARGET.write(graph, path, run.recipe.export)
        return path

    @contextmanager
    def _folder(self) -> Iterator[Path]:
        """For the files and checkpoints of one trial, deleted with it."""
        with tempfile.TemporaryDirectory(prefix=".trial-", dir=self._run.out) as folder:
            yield Path(folder)


def _without(recipe: Recipe, training: str) -> Recipe:
    """The recipe without a section's epochs."""
    section = getattr(recipe, training)
    return recipe.model_copy(update={training: section.model_copy(update={"epochs": 0})})


class _Shown(SilentProgress):
    """Progress of a trial's stages: their names are shown, nothing else."""

    def __init__(self, show: Show) -> None:
        self._show = show

    @contextmanager
    def stage(self, title: str, total: int | None = None) -> Iterator[StageBar]:
        self._show(title)
        with super().stage(title, total) as bar:
            yield bar
