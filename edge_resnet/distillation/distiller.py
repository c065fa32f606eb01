"""The loss of a training that may have a teacher."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edge_resnet.distillation.cache import TeacherAnswers
from edge_resnet.distillation.features import Pair, attention_distance, fitted_maps, stage_pairs
from edge_resnet.distillation.losses import SOFT_LOSSES
from edge_resnet.distillation.teacher import Teacher
from edge_resnet.graph.graph import Graph
from edge_resnet.recipe import FineTuning, Qat
from edge_resnet.training.data import Portion

__all__ = ["Distiller", "Student"]

_NO_TENSORS: Mapping[str, Tensor] = {}


class Student(Protocol):
    """A GraphModule or a QatModule."""

    def run(self, images: Tensor, wanted: tuple[str, ...]) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits, and the real values of the wanted nodes' outputs, [N, C, H, W]."""
        ...


class Distiller:
    """(1 - weight) * cross entropy + weight * soft + hints * H + attention * A, as `settings` say.

    H and A are means over the resolutions that student and teacher share. Without a teacher it is cross
    entropy. With hints, `start` comes before training, and `trained` is what is trained. `answers`: the
    teacher's, known before. Raises InputError where there is no resolution to compare.
    """

    def __init__(
        self,
        settings: FineTuning | Qat,
        teacher: Teacher | None = None,
        student: Graph | None = None,
        answers: TeacherAnswers | None = None,
    ) -> None:
        self.settings, self.label_smoothing = settings.distill, settings.label_smoothing
        self.teacher, self._answers = teacher, answers
        self._pairs: tuple[Pair, ...] = ()
        if teacher is not None and self.settings.compares_tensors:
            assert student is not None
            self._pairs = stage_pairs(student, teacher.graph)
        self._maps: nn.ModuleList | None = None

    @property
    def wanted(self) -> tuple[str, ...]:
        """The student's nodes whose outputs `loss` needs."""
        return tuple(pair.student for pair in self._pairs)

    @torch.no_grad()
    def start(self, student: Student, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Find the maps of hints. `batches`: what the student takes, and bytes as `loss` has them.

        The student should be at evaluation: it is only looked at.
        """
        if self.teacher is None or not self.settings.hints:
            return
        teacher, theirs = self.teacher, tuple(pair.teacher for pair in self._pairs)

        def seen(inputs: Tensor, images: Tensor) -> list[tuple[Tensor, Tensor]]:
            mine, others = student.run(inputs, self.wanted)[1], teacher.run(images, theirs)[1]
            return [(mine[pair.student], others[pair.teacher]) for pair in self._pairs]

        self._maps = fitted_maps(seen(inputs, images) for inputs, images in batches)

    def trained(self, student: nn.Module) -> nn.Module:
        """The student, together with what is trained along and dropped afterwards."""
        if self._maps is None:
            return student
        return nn.ModuleDict({"student": student, "hints": self._maps})

    def loss(
        self,
        logits: Tensor,
        labels: Tensor,
        portion: Portion,
        images: Callable[[], Tensor],
        tensors: Mapping[str, Tensor] = _NO_TENSORS,
    ) -> Tensor:
        """A scalar. `logits` float32 [N, classes]; `images` gives the bytes [N, C, H, W], held in floats;
        `tensors`: the student's, of the nodes `wanted`.
        """
        hard = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        if self.teacher is None:
            return hard
        settings = self.settings
        theirs: Mapping[str, Tensor] = _NO_TENSORS
        if self._answers is not None:
            answers = self._answers.of(portion.indices, portion.mirrored).to(logits.device)
        else:
            answers, theirs = self.teacher.run(images(), tuple(pair.teacher for pair in self._pairs))
        total = (1 - settings.weight) * hard
        if settings.weight:
            soft = SOFT_LOSSES[settings.loss](logits, answers, settings.temperature)
            total = total + settings.weight * soft
        return total + self._distances(tensors, theirs) if self._pairs else total

    def _distances(self, mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> Tensor:
        """hints * H + attention * A."""
        found: list[Tensor] = []
        for index, pair in enumerate(self._pairs):
            tensors = mine[pair.student], theirs[pair.teacher]
            if self.settings.attention:
                found.append(self.settings.attention * attention_distance(*tensors))
            if self.settings.hints:
                assert self._maps is not None, "hints without start"
                found.append(self.settings.hints * self._maps[index](*tensors))
        return torch.stack(found).sum() / len(self._pairs)
