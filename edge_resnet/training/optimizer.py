"""The optimizer of a recipe, what decays, and the learning rate's schedule."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from edge_resnet.errors import InputError
from edge_resnet.recipe import Optimization
from edge_resnet.training.muon import MOMENTUM, Muon

__all__ = ["decayed", "make_optimizer", "one_cycle", "set_rate"]

_FIRST_RATE = 1 / 25  # of the peak, where the one-cycle schedule begins


def decayed(module: nn.Module, settings: Optimization) -> list[dict[str, Any]]:
    """Parameter groups: weights decay, biases and batch normalization do not. Raises InputError for none.

    Decay of the latter only unbalances them: He et al., "Bag of Tricks for Image Classification", 2018
    (1812.01187), section 3.1.
    """
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if not parameters:
        raise InputError("the model has no parameters to train")
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def make_optimizer(groups: list[dict[str, Any]], settings: Optimization) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum, AdamW (Loshchilov and Hutter, 2017, 1711.05101), or Muon."""
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, settings.learning_rate)
    if settings.optimizer == "muon":
        return Muon(groups, settings.learning_rate)
    return torch.optim.SGD(groups, settings.learning_rate, momentum=MOMENTUM, nesterov=True)


def set_rate(optimizer: torch.optim.Optimizer, settings: Optimization, done: float) -> None:
    """The learning rate when `done` (0 to 1) of all steps are done."""
    rate = settings.learning_rate * one_cycle(done, settings.warmup)
    for group in optimizer.param_groups:
        group["lr"] = rate


def one_cycle(done: float, warmup: float) -> float:
    """The learning rate, as a part of its peak, when `done` (0 to 1) of all steps are done.

    Two half cosines: from 1/25 to the peak during `warmup`, and then to 0 (Smith and Topin,
    "Super-Convergence", 2017, 1708.07120).
    """
    if done < warmup:
        return _FIRST_RATE + (1 - _FIRST_RATE) * (1 - math.cos(math.pi * done / warmup)) / 2
    return (1 + math.cos(math.pi * (done - warmup) / (1 - warmup))) / 2
