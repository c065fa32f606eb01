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

# Decoded images are kept in memory up to this many bytes; more are decoded again in every epoch.
MEMORY = 2 * 2**30
_DECODED_AT_ONCE = 256
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
    """The train split, decoded once where that fits into memory.

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
        self._decoded: Batch | None = None
        if len(split) * math.prod(preprocess.size) * 3 <= MEMORY:
            self._decoded = self._decode()
        self._count = len(split) if self._decoded is None else len(self._decoded.labels)
        self.batch = min(settings.batch, self._count)
        if self.batch < 2:
            raise InputError(f"{self.name}: {self._count} images to train on; batch normalization needs two")
        self.steps = self._count // self.batch

    def portions(self, epoch: int, first: int, rank: int, world: int) -> Iterator[Portion]:
        """What process `rank` of `world` sees of an epoch, from step `first` on.

        Where corrupt images are skipped a step can have fewer images, and is left out when it has too few.
        """
        order = np.random.default_rng([self._seed, epoch, _ORDER]).permutation(self._count)
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
        mine = _share(self.batch, rank, world)
        if self._decoded is not None:
            for step, chunk in enumerate(chunks, first):
                yield step, self._decoded.of(chunk[mine]), self.batch
        elif not self._skip_corrupt:
            own = chunks[:, mine]
            batches = self._split.batches(own.ravel(), self._preprocess, own.shape[1])
            for step, batch in enumerate(batches, first):
                yield step, batch, self.batch
        else:
            yield from self._incomplete(chunks, first, rank, world)

    def _incomplete(
        self, chunks: NDArray[np.int64], first: int, rank: int, world: int
    ) -> Iterator[tuple[int, Batch, int]]:
        """Every process decodes the whole batch, for how many images are left of it is known only then."""
        step_of = np.empty(self._count, np.int64)
        step_of[chunks.ravel()] = np.repeat(np.arange(len(chunks)), self.batch)
        for batch in self._split.batches(chunks.ravel(), self._preprocess, self.batch, True):
            count = len(batch.labels)
            if count < max(2, world):
                continue
            mine = _share(count, rank, world)
            yield first + int(step_of[batch.indices[0]]), batch.of(mine), count

    def _decode(self) -> Batch:
        pixels = np.empty((len(self._split), *self._preprocess.size, 3), np.uint8)
        labels, indices = np.empty(len(self._split), np.int64), np.empty(len(self._split), np.int64)
        filled = 0
        for batch in self._split.batches(
            np.arange(len(self._split)), self._preprocess, _DECODED_AT_ONCE, self._skip_corrupt
        ):
            end = filled + len(batch.labels)
            pixels[filled:end], labels[filled:end] = batch.pixels, batch.labels
            indices[filled:end], filled = batch.indices, end
        return Batch(pixels[:filled], labels[:filled], indices[:filled])


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
