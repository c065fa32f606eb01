"""A context binary on the emulator of the Hexagon NPU that it was compiled for."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_resnet.benchmark.process import WorkerProcess
from edge_resnet.devices.emulated import emulator_command
from edge_resnet.devices.qnn import QNN, RUNTIME
from edge_resnet.errors import MissingToolError, VerificationError

__all__ = ["HexagonRunner"]

_TIMEOUT = 600.0  # seconds for a few images; a large model takes three an image
_IMAGES_AT_ONCE = 4


class HexagonRunner:
    """Raises MissingToolError where there is no emulator, VerificationError where it does not take the file.

    A process runs while it answers, and no longer.
    """

    runtime = RUNTIME
    emulated = True

    def __init__(self, path: Path) -> None:
        QNN.check(path.name)
        self._path = path
        try:
            with self._process() as process:
                self.version = process.start.version
        except MissingToolError as error:
            raise VerificationError(str(error)) from error

    def logits(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 [N, H, W, 3] -> the output, float32 [N, classes]."""
        with tempfile.TemporaryDirectory(prefix="edge-resnet-") as folder:
            images = str(Path(folder) / "images.npy")
            np.save(images, pixels)
            try:
                with self._process() as process:
                    parts = [
                        process.logits(images, first, min(_IMAGES_AT_ONCE, len(pixels) - first))
                        for first in range(0, len(pixels), _IMAGES_AT_ONCE)
                    ]
            except MissingToolError as error:
                raise VerificationError(str(error)) from error
        return np.concatenate(parts)

    def _process(self) -> WorkerProcess:
        return WorkerProcess(emulator_command("qnn", self._path), self._path.name, _TIMEOUT)
