"""Run a .tflite file in LiteRT, with XNNPACK's kernels or with the reference ones."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_resnet.errors import VerificationError

__all__ = ["Kernels", "LiteRTRunner", "quiet_standard_error"]


class Kernels(Enum):
    """Which kernels compute. They round differently: compare like with like.

    XNNPACK is what apps get on a CPU; REFERENCE is what TFLite Micro and the specification's tests use.
    """

    XNNPACK = "XNNPACK"
    REFERENCE = "reference kernels"


@contextmanager
def quiet_standard_error() -> Iterator[None]:
    """LiteRT's C++ code announces its delegate on standard error; what goes wrong comes as an exception."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nothing:
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


class LiteRTRunner:
    """A .tflite file with one image input and one output, any of the input and output types of export.

    Raises VerificationError when LiteRT does not accept the file.
    """

    emulated = False

    def __init__(self, path: Path, kernels: Kernels = Kernels.XNNPACK, threads: int = 2) -> None:
        from importlib.metadata import version

        from ai_edge_litert.interpreter import Interpreter, OpResolverType

        self.runtime = f"LiteRT/{kernels.value}"
        self.version = version("ai-edge-litert")
        resolver = OpResolverType.AUTO if kernels is Kernels.XNNPACK else OpResolverType.BUILTIN_REF
        try:
            with quiet_standard_error():
                self._interpreter = Interpreter(
                    model_path=str(path), num_threads=threads, experimental_op_resolver_type=resolver
                )
                self._interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[-1] if str(error).strip() else "no reason given"
            raise VerificationError(f"{path}: LiteRT does not accept the file: {reason}") from error
        self._input = self._interpreter.get_input_details()[0]
        self._output = self._interpreter.get_output_details()[0]

    def logits(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 [N, H, W, 3] -> float32 [N, ...]; channels last where the output is an image."""
        return self.infer(pixels, int(self._output["index"]))

    def infer(self, images: NDArray[Any], output: int) -> NDArray[np.float32]:
        """Images as the input wants them (uint8 ones are shifted for an int8 input) -> tensor `output`."""
        dtype = self._input["dtype"]
        if dtype is np.int8 and images.dtype == np.uint8:
            images = (images.astype(np.int16) - 128).astype(np.int8)
        images = images.astype(dtype, copy=False)
        results = []
        for image in images:  # one at a time, as an app does; a call costs microseconds beside the kernels
            self._interpreter.set_tensor(self._input["index"], image[None])
            self._interpreter.invoke()
            results.append(self._interpreter.get_tensor(output)[0])
        values = np.stack(results)
        if values.dtype in (np.int8, np.uint8):
            details = {int(entry["index"]): entry for entry in self._interpreter.get_output_details()}
            scale, zero = details[output]["quantization"]
            values = (values.astype(np.float32) - np.float32(zero)) * np.float32(scale)
        return values.astype(np.float32, copy=False)
