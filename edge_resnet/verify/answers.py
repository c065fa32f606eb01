"""What a model's answers on some device are worth: accuracy, the delta against the baseline, and parity."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_resnet.graph.float_executor import FloatExecutor
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.mixed_executor import MixedExecutor
from edge_resnet.verify.evaluate import Outcome
from edge_resnet.verify.parity import ParityTally

__all__ = ["Expected", "outcome_of"]

_AT_ONCE = 100


def outcome_of(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> Outcome:
    """Which of the first len(logits) images were answered rightly."""
    outcome = Outcome()
    outcome.add(logits, labels[: len(logits)])
    return outcome


@dataclass
class Expected:
    """What `graph` (in integers or floats) means on some images, computed as far as it is asked for.

    `name`: of what computes it, in the report.
    """

    graph: Graph
    name: str
    pixels: NDArray[np.uint8]

    def __post_init__(self) -> None:
        quantized = self.graph.input.quant is not None
        self._logits = MixedExecutor(self.graph).logits if quantized else FloatExecutor(self.graph).run
        self._known: list[NDArray[np.float32]] = []
        output = self.graph.output.quant
        self.scale = None if output is None else output.scale

    def first(self, count: int) -> NDArray[np.float32]:
        """The logits of the first `count` images, float32 [count, classes]."""
        for at in range(len(self._known) * _AT_ONCE, count, _AT_ONCE):
            self._known.append(self._logits(self.pixels[at : at + _AT_ONCE]))
        logits: NDArray[np.float32] = np.concatenate(self._known)[:count]
        return logits

    def compare(self, logits: NDArray[np.float32]) -> ParityTally:
        """The answers to the first images beside what they should be."""
        tally = ParityTally(self.name, self.scale)
        tally.update(self.first(len(logits)), logits)
        return tally
