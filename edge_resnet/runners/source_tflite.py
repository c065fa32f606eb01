"""A user's own .tflite file on LiteRT: the baseline of a model that came as one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edge_resnet.data.preprocess import Preprocess
from edge_resnet.errors import InputError, VerificationError
from edge_resnet.frontends.tflite import TfliteSource
from edge_resnet.runners.litert import LiteRTRunner

__all__ = ["SourceTfliteRunner"]


class SourceTfliteRunner:
    """The file, fed with images as it wants them; `probabilities`: it answers behind a softmax."""

    emulated = False

    def __init__(self, source: TfliteSource, preprocess: Preprocess, threads: int = 2) -> None:
        try:
            self._runner = LiteRTRunner(source.path, threads=threads)
        except VerificationError as error:
            raise InputError(str(error)) from error
        self.runtime = f"{self._runner.runtime} (the source file)"
        self.version = self._runner.version
        self.probabilities = any(
            source.file.kind(operator) == "SOFTMAX" for operator in source.file.operators[-2:]
        )
        self._source, self._preprocess = source, preprocess

    def logits(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 [N, H, W, 3] -> float32 [N, ...]."""
        source, p = self._source, self._preprocess
        dtype = source.file.dtype(source.input)
        if dtype == "float32":
            images = p.normalized(pixels).numpy().transpose(0, 2, 3, 1)
        elif source.quant is None or source.as_declared(p.mean, p.std):
            images = p.in_model_order(pixels)  # the runner makes int8 of them where the file wants that
        else:
            real = p.normalized(pixels).numpy().transpose(0, 2, 3, 1) / np.float32(source.quant.scale)
            images = np.clip(np.rint(real) + source.quant.zero_point + 128, 0, 255).astype(np.uint8)
        answer = self._runner.infer(images, source.output)
        return answer.reshape(len(answer), -1)
