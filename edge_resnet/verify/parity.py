"""How far two sets of logits are apart: share of identical images, top-1 agreement, LSB histogram."""

from __future__ import annotations

from collections import Counter

import numpy as np
from numpy.typing import NDArray

__all__ = ["ParityTally"]

Logits = NDArray[np.float32]

# Two float runtimes that sum in different orders may swap a top-1 whose lead is below this share of the
# logits' spread: a tie, not a disagreement.
_TIE = 1e-4


class ParityTally:
    """Compares logits batch by batch.

    `scale` is the output's scale, in which one LSB is counted; None between float outputs. `to_the_bit`
    compares the float32 values themselves; otherwise the integers that they stand for (a runtime in float16
    cannot hold every dequantized value).
    """

    def __init__(self, against: str, scale: float | None, to_the_bit: bool = True) -> None:
        self.against = against
        self.scale = scale
        self.to_the_bit = to_the_bit
        self.n = 0
        self.identical_images = 0
        self.agreeing_images = 0
        self.histogram: Counter[int] = Counter()
        self.max_abs = 0.0

    def update(self, expected: Logits, got: Logits) -> None:
        """Both [N, classes]."""
        difference = np.abs(got.astype(np.float64) - expected)
        self.n += len(expected)
        self.max_abs = max(self.max_abs, float(difference.max(initial=0.0)))
        if self.scale is not None:
            # NaN or infinite outputs must not look equal: they count as the largest difference there is.
            lsb = np.nan_to_num(np.rint(difference / self.scale), nan=255, posinf=255).astype(np.int64)
            values, counts = np.unique(lsb, return_counts=True)
            self.histogram.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
        same = expected == got if self.to_the_bit or self.scale is None else lsb == 0
        self.identical_images += int(same.all(1).sum())
        self.agreeing_images += int(self._agree(expected, got).sum())

    def _agree(self, expected: Logits, got: Logits) -> NDArray[np.bool_]:
        chosen = got.argmax(1)
        agree = expected.argmax(1) == chosen
        if self.scale is None:
            spread = expected.max(1) - expected.min(1)
            rows = np.arange(len(expected))
            agree |= expected.max(1) - expected[rows, chosen] <= _TIE * spread
        result: NDArray[np.bool_] = agree
        return result

    @property
    def identical(self) -> float:
        return self.identical_images / self.n if self.n else 0.0

    @property
    def top1_agreement(self) -> float:
        return self.agreeing_images / self.n if self.n else 0.0

    @property
    def max_lsb(self) -> int | None:
        return max(self.histogram) if self.histogram else None

    @property
    def mean_lsb(self) -> float | None:
        total = sum(self.histogram.values())
        return sum(lsb * count for lsb, count in self.histogram.items()) / total if total else None
