"""The demo's data: the handwritten digits that scikit-learn ships, enlarged to 32x32 RGB.

1,797 images of 8x8 (UCI's optical digits test set); every fourth is for evaluation.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edge_resnet.data.preprocess import Preprocess

__all__ = ["DigitStore"]


class DigitStore:
    """Digits under names like train/7/0042, as if they were files."""

    source = "demo"

    def __init__(self) -> None:
        from sklearn.datasets import load_digits

        digits = load_digits()
        self._images = (digits.images * (255 / 16)).round().astype(np.uint8)  # [1797, 8, 8], 0..255
        self._labels = digits.target

    def names(self) -> Sequence[tuple[str, str]]:
        return sorted(
            (f"{'val' if index % 4 == 0 else 'train'}/{label}/{index:04d}", "sklearn-digits")
            for index, label in enumerate(self._labels)
        )

    def pixels(self, name: str, preprocess: Preprocess) -> NDArray[np.uint8]:
        small = Image.fromarray(self._images[int(name.rsplit("/", 1)[1])])
        return preprocess.to_pixels(small.resize((32, 32), Image.Resampling.BICUBIC).convert("RGB"))
