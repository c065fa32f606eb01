"""A user's own Keras model: what it answers itself, and the graph where that would take too long."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_resnet.data.preprocess import Preprocess
from edge_resnet.frontends.keras import keras_outputs
from edge_resnet.graph.float_executor import FloatExecutor
from edge_resnet.graph.graph import Graph

__all__ = ["GraphRunner", "SourceKerasRunner"]


class SourceKerasRunner:
    """The model in TensorFlow: a process for each call, so it is for a few images (the import check)."""

    runtime = "TensorFlow (the source file)"
    version = ""
    emulated = False

    def __init__(self, path: Path, preprocess: Preprocess, output: str | None) -> None:
        self._path, self._preprocess, self._output = path, preprocess, output

    def logits(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 [N, H, W, 3] -> float32 [N, ...]."""
        pixels, p = self._preprocess.in_model_order(pixels), self._preprocess.as_model_sees()
        return keras_outputs(self._path, np.ascontiguousarray(pixels), p.mean, p.std, self._output)


class GraphRunner:
    """The imported graph in floats: the baseline on thousands of images, once the import was checked."""

    runtime = "torch (the imported float graph, checked against the source)"
    version = ""
    emulated = False

    def __init__(self, graph: Callable[[], Graph]) -> None:
        self._graph = graph
        self._executor: FloatExecutor | None = None

    def logits(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 [N, H, W, 3] -> float32 [N, ...]."""
        if self._executor is None:
            self._executor = FloatExecutor(self._graph())
        return self._executor.run(pixels)
