"""The moving average of the weights: what comes out of training is less noisy than its last step.

Exponential, over steps (Polyak and Juditsky, 1992; for deep networks Izmailov et al., "Averaging Weights
Leads to Wider Optima and Better Generalization", 2018, 1803.05407). It begins at the weights before training,
so that few steps change little.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

__all__ = ["WeightAverage"]


class WeightAverage:
    """Of the parameters that are trained, over about `steps` steps; buffers stay as they are. 0: none."""

    def __init__(self, module: nn.Module, steps: float) -> None:
        self._weight = 1 / max(1.0, steps)
        self._parameters = {n: p for n, p in module.named_parameters() if p.requires_grad} if steps else {}
        self.values = {name: p.detach().clone() for name, p in self._parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """After a step."""
        if self.values:
            torch._foreach_lerp_(
                list(self.values.values()), [p.detach() for p in self._parameters.values()], self._weight
            )

    @torch.no_grad()
    def restore(self, values: Mapping[str, Tensor]) -> None:
        """As `values` of a checkpoint were."""
        for name, value in self.values.items():
            value.copy_(values[name])

    @torch.no_grad()
    def take(self) -> None:
        """The parameters become the average."""
        for name, value in self.values.items():
            self._parameters[name].copy_(value)
