"""Run an .mlpackage: Core ML itself on a Mac, the MIL evaluator elsewhere.

The Mac's side is written against coremltools' documented interface and was never seen running.
"""

from __future__ import annotations

import platform
import sys
import warnings
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edge_resnet.errors import VerificationError
from edge_resnet.export.coreml_library import import_coremltools
from edge_resnet.runners.base import Runner
from edge_resnet.runners.mil_evaluator import MilEvaluator

__all__ = ["CoreMLRunner", "open_coreml"]


def open_coreml(path: Path) -> Runner:
    """The real runtime where there is one. Raises VerificationError when the package is not accepted."""
    return CoreMLRunner(path) if sys.platform == "darwin" else MilEvaluator(path)


class CoreMLRunner:
    """Core ML on this Mac, on all of its compute units or (`units` "CPU_ONLY") on the CPU.

    Raises VerificationError when Core ML does not accept the package or fails to run it.
    """

    emulated = False

    def __init__(self, path: Path, units: Literal["ALL", "CPU_ONLY"] = "ALL") -> None:
        ct = import_coremltools()
        self.runtime = f"Core ML ({units})"
        self.version = f"macOS {platform.mac_ver()[0]}"
        self._path = path
        try:
            with warnings.catch_warnings():
                # That Core ML refused the program is only a RuntimeWarning of coremltools.
                warnings.simplefilter("error", RuntimeWarning)
                self._model = ct.models.MLModel(str(path), compute_units=ct.ComputeUnit[units])
        except Exception as error:  # Core ML's errors arrive as RuntimeError and plain Exception
            raise VerificationError(
                f"{path}: Core ML does not accept the package: {_reason(error)}"
            ) from error

    def logits(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 [N, H, W, 3] -> the output `logits`, float32 [N, classes]."""
        from PIL import Image

        try:
            answers = [self._model.predict({"image": Image.fromarray(image)})["logits"] for image in pixels]
        except Exception as error:
            raise VerificationError(f"{self._path}: Core ML does not run it: {_reason(error)}") from error
        return np.concatenate(answers).astype(np.float32)


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
