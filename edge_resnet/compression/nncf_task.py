"""NNCF's module as a task of the training loop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from edge_resnet.distillation import Distiller
from edge_resnet.graph.float_executor import image_bytes, input_values
from edge_resnet.graph.nodes import Input
from edge_resnet.recipe import Optimization
from edge_resnet.training import Portion, check_logits
from edge_resnet.training.precision import module_strides_over_one_pixel

__all__ = ["NncfTask"]


@dataclass(frozen=True, eq=False)
class NncfTask:
    """`module` is that of an NncfModel, `source` the graph's input."""

    module: nn.Module
    source: Input
    distiller: Distiller
    name: str = "qat"

    def inputs(self, pixels: NDArray[np.uint8]) -> Tensor:
        return input_values(self.source, pixels)

    def loss(
        self, module: nn.Module, inputs: Tensor, labels: Tensor, portion: Portion
    ) -> tuple[Tensor, Tensor]:
        logits = check_logits(module(inputs), labels)
        loss = self.distiller.loss(logits, labels, portion, lambda: image_bytes(self.source, inputs))
        return loss, logits

    def parameter_groups(self, settings: Optimization) -> list[dict[str, Any]]:
        """Weights decay; biases and NNCF's ranges do not, though those of weights have four axes."""
        named = [(name, p) for name, p in self.module.named_parameters() if p.requires_grad]
        weights = [p for name, p in named if name.endswith(".layer.weight")]
        others = [p for name, p in named if not name.endswith(".layer.weight")]
        return [
            {"params": weights, "weight_decay": settings.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]

    def on_step(self, step: int, total: int) -> None:
        pass

    def autocast(self, settings: Optimization) -> bool:
        size = (self.source.shape[1], self.source.shape[2])
        return settings.precision == "bfloat16" and not module_strides_over_one_pixel(self.module, size)
