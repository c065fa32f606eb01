"""The shuffled, augmented batches of every epoch, each derived from the seed, the epoch and the step alone.

So training goes on anywhere without a generator's state, and several processes draw alike.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from edge_resnet.data.images import Batch, ImageSplit
from edge_resnet.data.preprocess import Preprocess
from edge_resnet.errors import InputError
from edge_resnet.recipe import Optimization
from edge_resnet.training.augment import draw_changes

__all__ = ["Portion", "TrainingImages", "one_ahead", "step_seed"]

# A split of up to this many decoded bytes is kept in memory; a larger one is decoded again in every epoch.
MEMORY = 2 * 2**30
# Whether an image is in that memory.
_UNSEEN, _KEPT, _CORRUPT = range(3)
# Seeds are (seed, epoch, purpose): numpy takes a missing last number for 0, so none of ours is 0.
_ORDER = 1
_FIRST_STEP = 2

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Portion:
    """One process's part of step `step` of an epoch: pixels uint8 [n, H, W, 3] and labels int64 [n].

    `count` are the images of the step in all processes together. `indices` int64 [n] into the split, and
    `mirrored` bool [n], say what the pixels were made of.
    """

    step: int
    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    count: int
    indices: NDArray[np.int64]
    mirrored: NDArray[np.bool_]


class TrainingImages:
    """The train split. Where it fits into memory, each image is decoded when it is first shown, and kept.

    An incomplete last batch of an epoch is left out: the shuffling of the next epoch brings its images back.
    """

    def __init__(
        self,
        split: ImageSplit,
        preprocess: Preprocess,
        settings: Optimization,
        seed: int,
        skip_corrupt: bool,
    ) -> None:
        self._split, self._preprocess, self._skip_corrupt = split, preprocess, skip_corrupt
        self._settings, self._seed = settings, seed
        self.name = split.store.source
        count = len(split)
        # Memory that nothing was written to yet takes no room.
        self._kept: NDArray[np.uint8] | None = None
        if count * math.prod(preprocess.size) * 3 <= MEMORY:
            self._kept = np.empty((count, *preprocess.size, 3), np.uint8)
        self._state = np.full(count, _UNSEEN, np.int8)
        self._count = count
        self.batch = min(settings.batch, self._count)
        if self.batch < 2:
            raise InputError(f"{self.name}: {self._count} images to train on; batch normalization needs two")
        self.steps = self._count // self.batch

    def portions(self, epoch: int, first: int, rank: int, world: int) -> Iterator[Portion]:
        """What process `rank` of `world` sees of an epoch, from step `first` on.

        Where corrupt images are skipped a step can have fewer images, and is left out when it has too few.
        """
        order = self._split.training_order(np.random.default_rng([self._seed, epoch, _ORDER]))
        chunks = order[: self.steps * self.batch].reshape(self.steps, self.batch)[first:]
        for step, batch, count in self._batches(chunks, first, rank, world):
            mine = _share(count, rank, world)
            rng = np.random.default_rng(step_seed(self._seed, epoch, step))
            changes = draw_changes(rng, count, self._settings).of(mine)
            pixels, mirrored = changes.apply(batch.pixels), changes.mirrored
            if mirrored is None:
                mirrored = np.zeros(len(pixels), np.bool_)
            yield Portion(step, pixels, batch.labels, count, batch.indices, mirrored)

    def _batches(
        self, chunks: NDArray[np.int64], first: int, rank: int, world: int
    ) -> Iterator[tuple[int, Batch, int]]:
        """(step, this process's images, the number of images in all processes)."""
        if not self._skip_corrupt:
            own = chunks[:, _share(self.batch, rank, world)]
            for step, batch in enumerate(self._images(own), first):
                yield step, batch, self.batch
            return
        # Every process decodes the whole batch, for how many images are left of it is known only then.
        for step, batch in enumerate(self._images(chunks), first):
            count = len(batch.labels)
            if count >= max(2, world):
                yield step, batch.of(_share(count, rank, world)), count

    def _images(self, chunks: NDArray[np.int64]) -> Iterator[Batch]:
        """What can be decoded of each row of indices. In one pass no index occurs twice."""
        kept = self._kept
        # Decoding runs ahead, so what it has to do is settled now.
        rows = [chunk[self._state[chunk] == _UNSEEN] for chunk in chunks]
        for chunk, batch in zip(
            chunks, self._split.decoded(rows, self._preprocess, self._skip_corrupt), strict=True
        ):
            if kept is None:
                yield batch
                continue
            new = chunk[self._state[chunk] == _UNSEEN]
            kept[batch.indices] = batch.pixels
            self._state[new] = _CORRUPT
            self._state[batch.indices] = _KEPT
            good = chunk[self._state[chunk] == _KEPT]
            yield Batch(kept[good], self._split.labels[good], good)


def step_seed(seed: int, epoch: int, step: int) -> list[int]:
    """What the random numbers of a step derive from."""
    return [seed, epoch, _FIRST_STEP + step]


def one_ahead(items: Iterator[T]) -> Iterator[T]:
    """The same items, each made in a thread while the one before is used."""
    end = object()
    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(next, items, end)
        while (item := pending.result()) is not end:
            pending = pool.submit(next, items, end)
            yield item  # type: ignore[misc]


def _share(count: int, rank: int, world: int) -> slice:
    return slice(count * rank // world, count * (rank + 1) // world)
