"""The teacher: a float graph that answers to the student's own augmented images."""

from __future__ import annotations

import torch
from torch import Tensor

from edge_resnet.compression.graph_module import GraphModule
from edge_resnet.errors import InputError
from edge_resnet.graph.graph import Graph
from edge_resnet.training.checkpoint import weights_digest

__all__ = ["Teacher", "check_teacher"]


class Teacher:
    """`precision` bfloat16: in autocast, enough for soft targets, and twice as fast where CPUs have it.

    `digest`: of its weights, for the identity of a training.
    """

    def __init__(self, graph: Graph, precision: str) -> None:
        self.name, self.graph = graph.name, graph
        self._module = GraphModule(graph).eval()
        self.digest = weights_digest(self._module)
        self._quant = graph.input.quant
        self._low = precision == "bfloat16"

    def logits(self, images: Tensor) -> Tensor:
        """Bytes [N, C, H, W], of any type -> float32 [N, classes]."""
        return self.run(images, ())[0]

    @torch.no_grad()
    def run(self, images: Tensor, wanted: tuple[str, ...]) -> tuple[Tensor, dict[str, Tensor]]:
        """And the outputs of the wanted nodes, as precise as the layers."""
        self._module.to(images.device)
        values = images.float()
        if self._quant is not None:
            values = (values - (128 + self._quant.zero_point)) * self._quant.scale
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self._low):
            logits, tensors = self._module.run(values, wanted)
        return logits.float(), tensors


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
