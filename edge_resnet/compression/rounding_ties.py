"""Scales at which no value comes near a rounding tie, where runtimes go to different integers.

Global averages. ONNX Runtime rounds `sum * multiplier` and then adds the zero point; LiteRT/XNNPACK adds it
first, in float32. Both are right to within float rounding, but a sum that lands on a tie (or within a few ulp
of one) goes to different integers: about one in a million elements on random graphs. The output's scale is
ours to choose, so it is enlarged, by float16 steps of at most 0.1 %, until no possible sum is that close.
Where no such scale is near, the input's scale over a power of two does it, at the cost of at most a bit: with
an odd count no sum is nearer to a tie than 1 / (2 count), and with a power of two all is exact, ties included
(the zero point is even then, see quantize.py, so that both orders round them alike).

Sigmoids. Each runtime fills its table of 256 entries with an exponential of its own, right to within a few
ulp. Here the input's scale is enlarged until no entry is close to a tie.
"""

from __future__ import annotations

import numpy as np

__all__ = ["is_sigmoid_tie_free", "tie_free_scale"]

# LiteRT was off by up to 0.65 * 2**-16 * (1 + s_x / s_y) on 59 million random averages; three times that.
_MARGIN = 2.0**-15
# Half the steps give at most 5 % more range, which costs less than a tenth of a bit.
_MOST_STEPS = 64


# Of a step of the sigmoid's output. ONNX Runtime's polynomial was off by up to 3e-5 of one; eight times that.
_SIGMOID_MARGIN = 2.0**-12


def is_sigmoid_tie_free(scale: float) -> bool:
    """Whether no value of sigmoid(scale * c) * 256, for c in -255..255, comes near a rounding tie."""
    steps = 256 / (1 + np.exp(-np.arange(-255, 256) * np.float64(scale)))
    return bool(np.abs(steps - np.floor(steps) - 0.5).min() > _SIGMOID_MARGIN)


def tie_free_scale(scale: float, input_scale: float, count: int) -> float:
    """The least float16 scale from `scale` on for the mean of `count` int8 values of scale `input_scale`.

    >>> tie_free_scale(0.5, 0.5, 2) > 0.5  # the mean of two neighbours is a tie
    True
    """
    candidate = np.float16(scale)
    for _ in range(_MOST_STEPS):
        if _is_tie_free(float(candidate), input_scale, count):
            return float(candidate)
        candidate = np.nextafter(candidate, np.float16(np.inf))
    if (count % 2 and scale <= input_scale) or count & (count - 1) == 0:
        return float(input_scale * 2.0 ** np.ceil(np.log2(scale / input_scale)))
    return scale  # rare differences of one step are possible


def _is_tie_free(scale: float, input_scale: float, count: int) -> bool:
    """Whether no mean of `count` int8 values comes near a rounding tie."""
    ratio = input_scale / scale
    means = np.arange(1, 255 * count + 1, dtype=np.float64) * (ratio / count)
    means = means[means < 256]  # beyond, every runtime clips
    if not len(means):
        return True
    distance = float(np.abs(means - np.floor(means) - 0.5).min())
    return distance > _MARGIN * (1 + ratio)
