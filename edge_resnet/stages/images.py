"""The images of a run that its stages share: those to calibrate on, and some with labels."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from edge_resnet.errors import InputError
from edge_resnet.progress import Advance
from edge_resnet.run import Run

__all__ = ["CalibrationImages", "calibration_batches", "labelled_images"]

# Calibration images are kept in memory up to this many bytes; more are decoded again for every step.
_MEMORY = 2**30

Pixels = NDArray[np.uint8]


def calibration_batches(run: Run) -> Iterator[Pixels]:
    """The first images of the shuffled train split, uint8 [n, H, W, 3], as many as the recipe says."""
    split, settings = run.images.split("train"), run.recipe.calibration
    chosen = split.order(run.recipe.seed)[: settings.images]
    for batch in split.batches(chosen, run.preprocess, settings.batch, run.recipe.evaluate.skip_corrupt):
        yield batch.pixels


class CalibrationImages:
    """The calibration images, as often as they are wanted."""

    def __init__(self, run: Run) -> None:
        self._run, wanted = run, run.recipe.calibration.images
        self._count = min(wanted, len(run.images.split("train")))
        if self._count < wanted:
            run.note(f"calibration takes all {self._count} images there are (calibration.images {wanted})")
        self._kept: list[Pixels] | None = None
        self._bytes = self._count * int(np.prod(run.preprocess.size)) * 3

    def __len__(self) -> int:
        return self._count

    def __call__(self, advance: Advance = lambda images: None) -> Iterator[Pixels]:
        """uint8 [n, H, W, 3], batch after batch; `advance` is told the images of each."""
        seen: list[Pixels] = []
        for batch in calibration_batches(self._run) if self._kept is None else self._kept:
            if self._bytes <= _MEMORY:
                seen.append(batch)
            yield batch
            advance(len(batch))
        self._kept = seen or self._kept

    def at_once(self) -> Pixels:
        """As many of them as are kept in memory."""
        batches: list[Pixels] = []
        for batch in self():
            if sum(b.nbytes for b in batches) + batch.nbytes > _MEMORY:
                break
            batches.append(batch)
        if not batches:
            raise InputError("calibration needs at least one image (calibration.images is 0, or no data)")
        return np.concatenate(batches)


def labelled_images(run: Run, split: str, count: int) -> tuple[Pixels, NDArray[np.int64]]:
    """The first `count` images of the shuffled split, uint8 [N, H, W, 3], and their labels [N]."""
    images, settings = run.images.split(split), run.recipe.evaluate
    chosen = images.order(run.recipe.seed)[:count]
    batches = list(images.batches(chosen, run.preprocess, settings.batch, settings.skip_corrupt))
    if not batches:
        raise InputError(f"{run.images.source}: no image of the {split} split could be decoded")
    return np.concatenate([b.pixels for b in batches]), np.concatenate([b.labels for b in batches])
