"""The training loop: the same weights for the same seed, interrupted or not, bit for bit on one CPU."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from edge_resnet.data.images import ImageSplit
from edge_resnet.data.preprocess import Preprocess
from edge_resnet.errors import GraphError, InputError, MissingToolError
from edge_resnet.progress import Advance
from edge_resnet.quantization_record import EpochRecord, TrainingRecord
from edge_resnet.recipe import Optimization
from edge_resnet.training.average import WeightAverage
from edge_resnet.training.checkpoint import Checkpoints, Position
from edge_resnet.training.data import Portion, TrainingImages, one_ahead, step_seed
from edge_resnet.training.launch import is_worker, launch, under_torchrun
from edge_resnet.training.optimizer import make_optimizer, set_rate
from edge_resnet.training.ranks import Ranks
from edge_resnet.training.task import LiveMetrics, Task

__all__ = ["check_start", "fit"]

# A checkpoint is at most 60 s old; the rest is for the step that is under way, and for writing.
_CHECKPOINT_SECONDS = 45.0
_CURVE_POINTS = 300


def fit(
    task: Task,
    split: ImageSplit,
    preprocess: Preprocess,
    settings: Optimization,
    seed: int,
    *,
    state: Path | None = None,
    identity: str = "",
    advance: Advance = lambda images: None,
    report: Callable[[LiveMetrics], None] = lambda live: None,
    skip_corrupt: bool = False,
    devices: int = 1,
) -> TrainingRecord:
    """Train the task's module in place, and leave it at evaluation, on the CPU.

    `advance` is called with numbers of images that add up to `settings.epochs` * len(split). With `state`, a
    folder, checkpoints are left below it, and training goes on from one that has the same `identity`; what
    is finished is only loaded. Raises InputError: the loss is no number any more, the model does not fit the
    labels, the checkpoint is another training's or damaged, or cannot be written.
    """
    if not settings.epochs:
        return TrainingRecord(task.name, (), (), 0, 0.0)
    check_start(_section(task), settings, len(split), devices)
    checkpoints = None if state is None else Checkpoints(state, task.name, identity)
    job = _Job(task, split, preprocess, settings, seed, checkpoints, advance, report, skip_corrupt)
    saved = None if checkpoints is None or is_worker() else checkpoints.read()
    if not under_torchrun():
        if checkpoints is not None and saved is not None and checkpoints.position(saved).finished:
            devices = 1
        else:
            _ = job.images  # decoded before processes are forked: they share the memory
    return launch(lambda ranks: _train(job, ranks, saved), devices, settings.device, task.autocast(settings))


def check_start(name: str, settings: Optimization, images: int, devices: int) -> None:
    """What is known before an image is decoded. `name`: the recipe's section; `images` to train on.

    Raises MissingToolError where there is no such device, InputError where a step has no image for some of
    the processes.
    """
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise MissingToolError(f"{name}.device=cuda: this torch sees no CUDA device; leave it at cpu")
    batch = min(settings.batch, images)
    if batch < devices:
        raise InputError(f"--devices {devices}: {batch} images a step are too few for {devices} processes")


@dataclass(frozen=True)
class _Job:
    task: Task
    split: ImageSplit
    preprocess: Preprocess
    settings: Optimization
    seed: int
    checkpoints: Checkpoints | None
    advance: Advance
    report: Callable[[LiveMetrics], None]
    skip_corrupt: bool

    @cached_property
    def images(self) -> TrainingImages:
        return TrainingImages(self.split, self.preprocess, self.settings, self.seed, self.skip_corrupt)


def _train(job: _Job, ranks: Ranks, saved: bytes | None) -> TrainingRecord:
    """What each process does."""
    saved, module = ranks.from_first(saved), job.task.module
    if saved is not None:
        assert job.checkpoints is not None
        position = job.checkpoints.position(saved)
        if position.finished:
            job.checkpoints.restore(saved, module)
            module.eval()
            job.advance(job.settings.epochs * len(job.split))
            position.resumed_at.append(position.total)
            return position.record(job.task.name)
    with torch.random.fork_rng(devices=[] if ranks.device.type == "cpu" else None):
        try:
            record = _Loop(job, ranks, saved).run()
        except BaseException:
            with suppress(Exception):  # spoiled weights must not hide why
                _put_back(module)
            raise
    _put_back(module)
    return record


def _put_back(module: nn.Module) -> None:
    module.to("cpu").eval()
    module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]


class _Loop:
    """The optimizer, where it stands, and one step after the other."""

    def __init__(self, job: _Job, ranks: Ranks, saved: bytes | None) -> None:
        self.job, self.ranks, self.task, self.settings = job, ranks, job.task, job.settings
        self.images = job.images
        if self.images.batch < ranks.world:
            raise InputError(f"{self.images.batch} images a step are too few for {ranks.world} processes")
        self.module = self.task.module.train().to(ranks.device)
        self.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = make_optimizer(self.task.parameter_groups(self.settings), self.settings)
        self.total = self.settings.epochs * self.images.steps
        self.average = WeightAverage(self.module, self.settings.average * self.total)
        self.position = Position(images=self.images.steps * self.images.batch, total=self.total)
        self.last_saved: int | None = None
        # One process tells how it goes on.
        self.advance = job.advance if ranks.rank == 0 else lambda images: None
        self.report = job.report if ranks.rank == 0 else lambda live: None
        if saved is not None:
            assert job.checkpoints is not None
            job.checkpoints.restore(saved, self.module, self.optimizer, self.average)
            self.position = job.checkpoints.position(saved)
            self.position.resumed_at.append(self.done)
            self.last_saved = self.done
            self.advance(self.position.epoch * len(job.split) + self.position.seen)
        self._watch = time.perf_counter()
        self._saved_at = self._watch

    @property
    def done(self) -> int:
        """Steps, all in all."""
        return self.position.epoch * self.images.steps + self.position.step

    def run(self) -> TrainingRecord:
        if self.job.checkpoints is not None and self.ranks.rank == 0:
            self.job.checkpoints.clean()
        with self.ranks.together():
            while self.position.epoch < self.settings.epochs:
                self._epoch()
        self._check_finite()
        self.average.take()
        self.position.finished = True
        self._save(finished=True)
        return self.position.record(self.task.name)

    def _epoch(self) -> None:
        at, ranks = self.position, self.ranks
        portions = self.images.portions(at.epoch, at.step, ranks.rank, ranks.world)
        # Pixels become inputs in the other thread, too: there is nothing random in it.
        prepared = ((portion, self.task.inputs(portion.pixels)) for portion in portions)
        for portion, inputs in one_ahead(prepared):
            at.step = portion.step
            loss, correct = self._step(portion, inputs)
            self._count(portion, loss, correct)
            if time.perf_counter() - self._saved_at > _CHECKPOINT_SECONDS and at.step < self.images.steps:
                self._save()
        if not at.seen:
            raise InputError(f"{self.images.name}: no image of the train split could be decoded")
        self._time()
        self._report(ended=True)
        self.advance(len(self.job.split) - at.seen)
        at.epochs.append(EpochRecord(at.epoch + 1, at.loss / at.seen, at.correct / at.seen, at.epoch_seconds))
        at.epoch, at.step = at.epoch + 1, 0
        at.loss, at.correct, at.seen, at.epoch_seconds = 0.0, 0, 0, 0.0
        if at.epoch < self.settings.epochs:
            self._save()

    def _step(self, portion: Portion, inputs: Tensor) -> tuple[float, int]:
        """The mean loss of all processes' images before the step, and how many were classified rightly."""
        at, ranks = self.position, self.ranks
        seeds = np.random.SeedSequence([*step_seed(self.job.seed, at.epoch, at.step), 1 + ranks.rank])
        _seed_generators(int(seeds.generate_state(1, np.uint64)[0]), ranks.device)  # dropout draws from them
        self.task.on_step(self.done, self.total)
        set_rate(self.optimizer, self.settings, self.done / self.total)
        labels = torch.from_numpy(portion.labels).to(ranks.device)
        try:
            with ranks.autocast():
                loss, logits = self.task.loss(self.module, inputs.to(ranks.device), labels, portion)
        except GraphError as error:  # weights or ranges that no scale can hold any more
            raise self._diverged(str(error), self.done + 1) from error
        if ranks.world > 1:
            loss = loss * (len(labels) / portion.count)
        correct = (logits.detach().argmax(1) == labels).sum()
        value, right = ranks.sum(torch.stack([loss.detach().double(), correct.double()])).tolist()
        if not math.isfinite(value):
            raise self._diverged(f"the loss is {value}", self.done + 1)
        self.optimizer.zero_grad(set_to_none=True)
        ranks.backward(loss)
        ranks.sum_gradients([p for group in self.optimizer.param_groups for p in group["params"]])
        self.optimizer.step()
        self.average.update()
        return value, int(right)

    def _count(self, portion: Portion, loss: float, correct: int) -> None:
        at = self.position
        at.step = portion.step + 1
        at.loss, at.correct, at.seen = (
            at.loss + loss * portion.count,
            at.correct + correct,
            at.seen + portion.count,
        )
        at.point = (at.point[0] + loss, at.point[1] + 1)
        if self.done % math.ceil(self.total / _CURVE_POINTS) == 0 or self.done == self.total:
            at.losses.append((self.done, at.point[0] / at.point[1]))
            at.point = (0.0, 0)
        self.advance(portion.count)
        self._report()

    def _report(self, ended: bool = False) -> None:
        at = self.position
        self.report(
            LiveMetrics(
                self.task.name,
                at.epoch + 1,
                self.settings.epochs,
                self.done,
                self.total,
                at.loss / at.seen,
                at.correct / at.seen,
                ended,
            )
        )

    def _time(self) -> None:
        now = time.perf_counter()
        self.position.seconds += now - self._watch
        self.position.epoch_seconds += now - self._watch
        self._watch = now

    def _save(self, finished: bool = False) -> None:
        """A checkpoint, unless the weights are spoiled: then the one before it stays."""
        self._saved_at = time.perf_counter()
        if self.job.checkpoints is None or self.ranks.rank:
            return
        self._check_finite()
        self._time()
        if finished:
            self.job.checkpoints.write(self.module, self.position)
        else:
            self.job.checkpoints.write(self.module, self.position, self.optimizer, self.average)
        self.last_saved = self.done

    def _check_finite(self) -> None:
        """The last step can still spoil the weights, or a loss that stays finite the batch statistics."""
        for name, tensor in self.module.state_dict().items():
            if (
                isinstance(tensor, Tensor)
                and tensor.is_floating_point()
                and not bool(tensor.isfinite().all())
            ):
                raise self._diverged(f"{name} holds values that are not finite", self.done)

    def _diverged(self, what: str, step: int) -> InputError:
        section, settings = _section(self.task), self.settings
        epoch = min(self.position.epoch + 1, settings.epochs)
        kept = ""
        if self.last_saved is not None and self.job.checkpoints is not None:
            kept = f" and give another --out (the checkpoint of step {self.last_saved} is kept in "
            kept += f"{self.job.checkpoints.path})"
        return InputError(
            f"training diverged: {what} at step {step} (epoch {epoch}); lower "
            f"{section}.learning_rate (now {settings.learning_rate:g}), or raise {section}.warmup "
            f"(now {settings.warmup:g}){kept}"
        )


def _section(task: Task) -> str:
    """Of the recipe: finetune-step1 is trained as finetune says."""
    return task.name.partition("-")[0]


def _seed_generators(seed: int, device: torch.device) -> None:
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)
