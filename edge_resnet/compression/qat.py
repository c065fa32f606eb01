"""Quantization-aware training: the integers of a graph, trained on labelled images."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from edge_resnet.compression.output_range import with_output_range
from edge_resnet.compression.qat_module import QatModule
from edge_resnet.distillation import Distiller
from edge_resnet.graph.graph import Graph
from edge_resnet.recipe import Optimization
from edge_resnet.training import Portion, check_logits, decayed

__all__ = ["QatTask", "trained_graph"]


@dataclass(frozen=True, eq=False)
class QatTask:
    """What `fit` trains. The module computes in the recipe's precision itself: no autocast."""

    student: QatModule
    distiller: Distiller
    name: str = "qat"

    @cached_property
    def module(self) -> nn.Module:
        return self.distiller.trained(self.student)

    def inputs(self, pixels: NDArray[np.uint8]) -> Tensor:
        return self.student.inputs(pixels)

    def loss(
        self, module: nn.Module, inputs: Tensor, labels: Tensor, portion: Portion
    ) -> tuple[Tensor, Tensor]:
        logits, tensors = self.student.run(inputs, self.distiller.wanted)

        def images() -> Tensor:
            return inputs.float() + self.student.byte_zero

        logits = check_logits(logits, labels)
        return self.distiller.loss(logits, labels, portion, images, tensors), logits

    def parameter_groups(self, settings: Optimization) -> list[dict[str, Any]]:
        return decayed(self.module, settings)  # scales have one axis, as biases have: they do not decay

    def on_step(self, step: int, total: int) -> None:
        self.student.before_step(step, total)

    def autocast(self, settings: Optimization) -> bool:
        return False


def trained_graph(module: QatModule, batches: Callable[[], Iterable[NDArray[np.uint8]]]) -> Graph:
    """The trained integers. The logits' range is that of calibration images, as it is after training."""
    graph = module.finish()
    output = replace(graph.output, quant=None)
    return with_output_range(graph.with_nodes([*graph.nodes[:-1], output]), batches())
