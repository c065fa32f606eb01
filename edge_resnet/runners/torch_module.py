"""The float model as its owner trained it, in torch: the baseline of every comparison."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edge_resnet.data.preprocess import Preprocess

__all__ = ["TorchModuleRunner"]


class TorchModuleRunner:
    """An nn.Module at evaluation, fed with images normalized as its training did."""

    runtime = "torch (eager, float32)"
    emulated = False

    def __init__(self, module: nn.Module, preprocess: Preprocess) -> None:
        self.version = str(torch.__version__)
        self._module = module.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._preprocess = preprocess

    @torch.no_grad()
    def logits(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 [N, H, W, 3] -> float32 [N, classes]."""
        images = self._preprocess.normalized(pixels).contiguous(memory_format=torch.channels_last)
        result: NDArray[np.float32] = self._module(images).float().numpy()
        return result
