"""Learning from a teacher's logits."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from edge_resnet.compression.graph_module import GraphModule
from edge_resnet.errors import InputError
from edge_resnet.graph.graph import Graph
from edge_resnet.recipe import Distillation, Qat

__all__ = ["Teacher", "check_teacher", "distillation_loss", "qat_loss"]


class Teacher:
    """A float graph that answers to the student's own augmented images.

    `precision` bfloat16: in autocast, which is enough for soft targets, and twice as fast where CPUs have it.
    """

    def __init__(self, graph: Graph, precision: str) -> None:
        self.name = graph.name
        self._module = GraphModule(graph).eval()
        self._module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._quant = graph.input.quant
        self._low = precision == "bfloat16"

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Bytes [N, C, H, W], held in floats -> float32 [N, classes]."""
        self._module.to(images.device)
        values = images.float()
        if self._quant is not None:
            values = (values - (128 + self._quant.zero_point)) * self._quant.scale
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self._low):
            logits: Tensor = self._module(values)
        return logits.float()


def check_teacher(teacher: Graph, student: Graph) -> None:
    """Raises InputError where the teacher does not see the same images or knows other classes."""
    if teacher.output_shape != student.output_shape:
        raise InputError(
            f"--teacher {teacher.name} answers {teacher.output_shape[0]} classes, {student.name} has "
            f"{student.output_shape[0]}: a teacher needs the same classes"
        )
    if teacher.input.shape != student.input.shape:
        raise InputError(
            f"--teacher {teacher.name} takes images {list(teacher.input.shape)}, {student.name} takes "
            f"{list(student.input.shape)}: a teacher needs the same size"
        )


def qat_loss(
    logits: Tensor, labels: Tensor, settings: Qat, teacher: Teacher | None, images: Callable[[], Tensor]
) -> Tensor:
    """What QAT minimizes: with a teacher distillation_loss, without one cross entropy.

    `images` gives the batch's bytes [N, C, H, W], held in floats.
    """
    if teacher is None:
        return F.cross_entropy(logits, labels, label_smoothing=settings.label_smoothing)
    answers = teacher.logits(images())
    return distillation_loss(logits, answers, labels, settings.distill, settings.label_smoothing)


def distillation_loss(
    logits: Tensor, teacher: Tensor, labels: Tensor, settings: Distillation, label_smoothing: float
) -> Tensor:
    """(1 - weight) * cross entropy + weight * T**2 * KL(teacher || student), both at temperature T.

    T**2 keeps the soft targets' gradients as large as the labels' (Hinton et al., "Distilling the Knowledge
    in a Neural Network", 2015, 1503.02531, section 2).
    """
    hard = F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
    t = settings.temperature
    soft = F.kl_div(
        F.log_softmax(logits / t, 1), F.log_softmax(teacher / t, 1), reduction="batchmean", log_target=True
    )
    return (1 - settings.weight) * hard + settings.weight * t * t * soft
