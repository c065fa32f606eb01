"""What is trained, and how a batch becomes a loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from edge_resnet.data.preprocess import Preprocess
from edge_resnet.errors import InputError
from edge_resnet.progress import StageBar
from edge_resnet.recipe import Optimization, Train
from edge_resnet.training.data import Portion
from edge_resnet.training.optimizer import decayed
from edge_resnet.training.precision import module_strides_over_one_pixel

__all__ = ["FloatTask", "LiveMetrics", "Task", "check_logits", "show_on"]


class Task(Protocol):
    """A module and its loss. `name` is the recipe's section: train, finetune (or finetune-step1) or qat.

    All that training changes is in the module's state dict (parameters and buffers), so that checkpoints
    hold it.
    """

    @property
    def name(self) -> str: ...

    @property
    def module(self) -> nn.Module:
        """Trained in place."""
        ...

    def inputs(self, pixels: NDArray[np.uint8]) -> Tensor:
        """Augmented uint8 [N, H, W, 3] -> what the module takes, channels_last. Called in a thread."""
        ...

    def loss(
        self, module: nn.Module, inputs: Tensor, labels: Tensor, portion: Portion
    ) -> tuple[Tensor, Tensor]:
        """The mean loss of the batch, a scalar, and its logits, float32 [N, classes].

        `portion` is where `inputs` and `labels`, which are on the module's device, come from.
        """
        ...

    def parameter_groups(self, settings: Optimization) -> list[dict[str, Any]]:
        """For the optimizer: which parameters decay."""
        ...

    def on_step(self, step: int, total: int) -> None:
        """Called before each step, for schedules."""
        ...

    def autocast(self, settings: Optimization) -> bool:
        """Whether the loop runs `loss` in bfloat16 autocast."""
        ...


@dataclass(frozen=True)
class LiveMetrics:
    """Where training is: `loss` and `accuracy` (0 to 1) are means over the epoch so far."""

    name: str
    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    accuracy: float
    ended: bool = False

    @property
    def text(self) -> str:
        return f"epoch {self.epoch}/{self.epochs}  loss {self.loss:.3f}  accuracy {100 * self.accuracy:.1f} %"


def show_on(bar: StageBar) -> Callable[[LiveMetrics], None]:
    """A `report` for fit: the figures beside the bar."""
    return lambda live: bar.show(live.text, keep=live.ended)


@dataclass(frozen=True, eq=False)
class FloatTask:
    """Cross entropy of a module that maps normalized images, float32 [N, 3, H, W], to logits."""

    module: nn.Module
    preprocess: Preprocess
    settings: Train
    name: str = "train"

    def inputs(self, pixels: NDArray[np.uint8]) -> Tensor:
        # uint8 [N, H, W, 3] is channels_last already; what follows keeps that order.
        return self.preprocess.normalized(pixels).contiguous(memory_format=torch.channels_last)

    def loss(
        self, module: nn.Module, inputs: Tensor, labels: Tensor, portion: Portion
    ) -> tuple[Tensor, Tensor]:
        logits = check_logits(module(inputs), labels)
        return F.cross_entropy(logits, labels, label_smoothing=self.settings.label_smoothing), logits

    def parameter_groups(self, settings: Optimization) -> list[dict[str, Any]]:
        return decayed(self.module, settings)

    def on_step(self, step: int, total: int) -> None:
        pass

    def autocast(self, settings: Optimization) -> bool:
        return settings.precision == "bfloat16" and not module_strides_over_one_pixel(
            self.module, self.preprocess.size
        )


def check_logits(logits: object, labels: Tensor) -> Tensor:
    """The same in float32, whatever the arithmetic of the layers: the loss is computed in it.

    Raises InputError where the model does not fit the labels.
    """
    highest = int(labels.max())
    if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[1] <= highest:
        answer = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise InputError(
            f"the model answers {answer} to a batch of {len(labels)} images with labels up to {highest}: "
            "training needs one logit for each class"
        )
    return logits.float()
