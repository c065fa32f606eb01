"""Run a .onnx file in ONNX Runtime on the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_resnet.errors import VerificationError, first_line

__all__ = ["OnnxRuntimeRunner"]


class OnnxRuntimeRunner:
    """An .onnx file with one uint8 image input [N, 3, H, W] and one output.

    Raises VerificationError when ONNX Runtime does not accept the file.
    """

    runtime = "ONNX Runtime/CPU"
    emulated = False

    def __init__(self, path: Path, threads: int = 2, optimized: Path | None = None) -> None:
        """`optimized`: where ONNX Runtime is to write the model as it will run it, for inspection."""
        import onnxruntime

        self.version = str(onnxruntime.__version__)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        if optimized is not None:
            options.optimized_model_filepath = str(optimized)
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its exception types are created at run time, under no common base
            raise VerificationError(
                f"{path}: ONNX Runtime does not accept the file: {first_line(error)}"
            ) from error
        self._input = self._session.get_inputs()[0].name

    def logits(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 [N, H, W, 3] -> float32 [N, ...]; channels first where the output is an image."""
        images = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
        result: NDArray[np.float32] = self._session.run(None, {self._input: images})[0]
        return result
