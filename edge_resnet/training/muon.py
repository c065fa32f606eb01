"""Muon: steps that turn a convolution's weights in all directions alike.

Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024,
https://kellerjordan.github.io/posts/muon/. torch.optim.Muon takes matrices only, and no convolutions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

__all__ = ["MOMENTUM", "Muon"]

MOMENTUM = 0.9  # He et al., 2015 (1512.03385), section 3.4
# The quintic iteration that takes all singular values of up to 1 to about 1, and so often.
_COEFFICIENTS, _ITERATIONS = (3.4445, -4.7750, 2.0315), 5
_LEAST_NORM = 1e-7
_BUFFER = "momentum_buffer"


class Muon(torch.optim.Optimizer):
    """Convolutions by Muon; all else, and depthwise convolutions, by SGD with Nesterov momentum 0.9.

    A convolution's filters are the rows of a matrix [filters, inputs * height * width]. Its step is the
    orthogonal matrix nearest to the momentum, of `lr` times the length of the weights themselves: behind a
    convolution stands a batch normalization, so that only their direction means anything (LARS: You et al.,
    2017, 1708.03888). Nor do they decay, then.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], lr: float) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None
        for group in self.param_groups:
            alike: dict[tuple[int, ...], list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                if parameter.ndim == 4 and parameter.shape[1] > 1:
                    alike.setdefault(tuple(parameter.shape), []).append(parameter)
                else:
                    gradient = parameter.grad + group["weight_decay"] * parameter
                    parameter.sub_(group["lr"] * self._pushed(parameter, gradient))
            for parameters in alike.values():
                self._turn(parameters, group["lr"])

    def _turn(self, parameters: list[Tensor], rate: float) -> None:
        """A step of convolutions of one shape."""
        pushes = [self._pushed(p, p.grad) for p in parameters if p.grad is not None]
        steps = _orthogonal(torch.stack([push.flatten(1) for push in pushes]))
        for parameter, step in zip(parameters, steps, strict=True):
            length = parameter.norm() / step.norm().clamp_min(_LEAST_NORM)
            parameter.sub_(rate * length * step.view(parameter.shape))

    def _pushed(self, parameter: Tensor, gradient: Tensor) -> Tensor:
        """The gradient with Nesterov momentum."""
        state = self.state[parameter]
        if _BUFFER not in state:
            state[_BUFFER] = torch.zeros_like(parameter)
        buffer: Tensor = state[_BUFFER].mul_(MOMENTUM).add_(gradient)
        return gradient + MOMENTUM * buffer


def _orthogonal(matrices: Tensor) -> Tensor:
    """[N, rows, columns], each with singular values near 1 and the same singular vectors."""
    wide = matrices.shape[1] <= matrices.shape[2]
    x: Tensor = matrices if wide else matrices.mT
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp_min(_LEAST_NORM)
    first, third, fifth = _COEFFICIENTS
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = first * x + (third * gram + fifth * gram @ gram) @ x
    return x if wide else x.mT
