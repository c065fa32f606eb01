"""The loss of a training that may have a teacher."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from edge_resnet.distillation.losses import SOFT_LOSSES
from edge_resnet.distillation.teacher import Teacher
from edge_resnet.recipe import FineTuning, Qat

__all__ = ["Distiller"]


class Distiller:
    """(1 - weight) * cross entropy + weight * soft, as `settings` say; without a teacher cross entropy."""

    def __init__(self, settings: FineTuning | Qat, teacher: Teacher | None = None) -> None:
        self.settings, self.label_smoothing = settings.distill, settings.label_smoothing
        self.teacher = teacher

    def loss(self, logits: Tensor, labels: Tensor, images: Callable[[], Tensor]) -> Tensor:
        """A scalar. `logits` float32 [N, classes]; `images` gives the bytes [N, C, H, W], held in floats."""
        hard = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        if self.teacher is None:
            return hard
        settings = self.settings
        answers = self.teacher.logits(images())
        soft = SOFT_LOSSES[settings.loss](logits, answers, settings.temperature)
        return (1 - settings.weight) * hard + settings.weight * soft
