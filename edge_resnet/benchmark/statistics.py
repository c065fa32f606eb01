"""95 % intervals for accuracies that were counted on a finite number of images."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from edge_resnet.errors import InputError

__all__ = ["paired_difference", "wilson_interval"]

_Z95 = 1.959963984540054


def wilson_interval(correct: int, n: int) -> tuple[float, float]:
    """95 % score interval (low, high) of the share `correct / n`, within [0, 1].

    E. B. Wilson, "Probable inference, the law of succession, and statistical inference", Journal of the
    American Statistical Association 22, 1927. Raises InputError when there are no images, or more correct
    ones than images.
    """
    if not 0 <= correct <= n or n == 0:
        raise InputError(f"{correct} of {n} images is not a share")
    share, z2 = correct / n, _Z95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z95 / (1 + z2 / n) * np.sqrt(share * (1 - share) / n + z2 / (4 * n**2))
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


def paired_difference(base_correct: ArrayLike, new_correct: ArrayLike) -> tuple[float, float, float]:
    """new - base accuracy on the same images, and its 95 % interval: (delta, low, high).

    Both are one boolean an image, [N]. The interval is Wald's for matched pairs with half a count added to
    each of the four cells (`Wald+2`): A. Agresti and Y. Min, "Simple improved confidence intervals for
    comparing matched proportions", Statistics in Medicine 24, 2005. Raises InputError when the two are not
    of one length, or empty.
    """
    base, new = np.asarray(base_correct, bool), np.asarray(new_correct, bool)
    n = len(base)
    if n == 0 or len(new) != n:
        raise InputError(f"cannot pair {n} with {len(new)} images")
    gained, lost = int((new & ~base).sum()), int((base & ~new).sum())
    delta = (gained - lost) / n
    n_adjusted, b, c = n + 2, gained + 0.5, lost + 0.5
    centre = (b - c) / n_adjusted
    half = _Z95 * np.sqrt(b + c - (b - c) ** 2 / n_adjusted) / n_adjusted
    return delta, max(-1.0, float(centre - half)), min(1.0, float(centre + half))
