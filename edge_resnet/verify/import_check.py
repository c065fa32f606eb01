"""Is the imported graph the function that was trained? Compared with the source's own runtime."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_resnet.errors import VerificationError
from edge_resnet.graph.float_executor import FloatExecutor
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.reference import ReferenceExecutor, dequantize
from edge_resnet.runners.base import Runner

__all__ = ["ImportCheck", "check_import", "random_images"]

# Floats summed in another order differ by about 1e-6 of the logits' range.
_MOST_FLOAT = 1e-3
# A source's own integer sums may round each tensor differently (scales at sums that differ, other kernels).
_MOST_INTEGER = 0.15


@dataclass(frozen=True)
class ImportCheck:
    """`max_abs` is the largest difference of two logits, `relative` in parts of the logits' range."""

    runtime: str
    images: int
    max_abs: float
    relative: float


def random_images(graph: Graph, count: int = 4) -> NDArray[np.uint8]:
    """uint8 [N, H, W, 3]: noise with structure at two scales, the same each time."""
    channels, height, width = graph.input.shape
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 200, (count, -(-height // 8), -(-width // 8), channels))
    large = coarse.repeat(8, 1).repeat(8, 2)[:, :height, :width]
    return (large + rng.integers(0, 56, large.shape)).astype(np.uint8)


def check_import(
    name: str, graph: Graph, runner: Runner, pixels: NDArray[np.uint8], *, rounded: bool = False
) -> ImportCheck:
    """Run both on uint8 images [N, H, W, 3]. Raises VerificationError where they differ.

    `rounded`: the source is quantized, and the graph is the floats that its integers stand for.
    """
    expected = runner.logits(pixels).reshape(len(pixels), -1)
    if graph.is_quantized:
        output = graph.output.quant
        assert output is not None
        got = dequantize(ReferenceExecutor(graph).run(pixels), output)
    else:
        got = FloatExecutor(graph).run(pixels)
    got = got.reshape(len(pixels), -1)
    probabilities = bool(getattr(runner, "probabilities", False))
    if probabilities:
        got = _softmax(got)
    if got.shape != expected.shape:
        raise VerificationError(
            f"{name}: the source answers {expected.shape[1]} values, the imported graph {got.shape[1]}"
        )
    difference = float(np.abs(got - expected).max())
    spread = 1.0 if probabilities else float(np.ptp(expected))
    relative = difference / spread if spread else float(difference > 0)
    limit = _MOST_INTEGER if graph.is_quantized or rounded else _MOST_FLOAT
    if not relative <= limit:  # NaN too
        raise VerificationError(
            f"{name}: the imported graph is not the source's function: logits differ by {difference:.3g} "
            f"({relative:.2%} of their range) from {runner.runtime}; this is a defect, please report it"
        )
    return ImportCheck(runner.runtime, len(pixels), difference, relative)


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    result: NDArray[np.float32] = powers / powers.sum(1, keepdims=True)
    return result
