"""What every runtime looks like to the rest of the program."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Runner"]


class Runner(Protocol):
    """An artifact, loaded in its runtime.

    `runtime` names the runtime and its kernels, as the report shows it. `emulated` is true where something
    else computes in the runtime's place (the MIL evaluator, where there is no Core ML).
    """

    runtime: str
    version: str
    emulated: bool

    def logits(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Raw RGB images, uint8 [N, H, W, 3] -> the artifact's output, float32 [N, classes]."""
        ...
