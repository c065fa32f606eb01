"""Images for a search: a part of the train split takes the place of the validation split.

A search that chose by the accuracy on the test split would report on the images that it chose by.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from edge_resnet.data.images import ImageData, ImageSplit, Store
from edge_resnet.data.preprocess import Preprocess
from edge_resnet.errors import InputError

__all__ = ["with_held_out"]

_MOST_PART = 5  # of the train split: a fifth
_STREAM = 0x5EA2C4  # of random numbers: apart from the one that orders a split
_MEMORY = 2**30


def with_held_out(data: ImageData, images: int, seed: int) -> ImageData:
    """`train` without some of its images, and these as `val`: `images`, or a fifth where that is less.

    Decoded images are kept in memory, up to 1 GiB. Raises InputError: fewer than five images to train on.
    """
    train = data.split("train")
    count = min(images, len(train) // _MOST_PART)
    if not count:
        raise InputError(f"{data.source}: {len(train)} images to train on are too few to keep some apart")
    order = np.random.default_rng([seed, _STREAM]).permutation(len(train))
    store = _Kept(train.store)
    splits = {"val": _part(train, store, order[:count]), "train": _part(train, store, order[count:])}
    digest = hashlib.sha256(f"{data.fingerprint} search {count} {seed}".encode()).hexdigest()
    return replace(data, splits=splits, fingerprint=digest)


def _part(split: ImageSplit, store: Store, chosen: NDArray[np.int64]) -> ImageSplit:
    indices = np.sort(chosen)
    return ImageSplit(store, [split.paths[i] for i in indices.tolist()], split.labels[indices])


class _Kept:
    """A store that decodes an image once. One preprocessing at a time is kept: trials share theirs."""

    def __init__(self, store: Store) -> None:
        self.source, self._store = store.source, store
        self._images: dict[str, NDArray[np.uint8]] = {}
        self._preprocess: Preprocess | None = None
        self._bytes = 0

    def names(self) -> list[tuple[str, str]]:
        return list(self._store.names())

    def pixels(self, name: str, preprocess: Preprocess) -> NDArray[np.uint8]:
        if preprocess != self._preprocess:
            self._images, self._preprocess, self._bytes = {}, preprocess, 0
        found = self._images.get(name)
        if found is None:
            found = self._store.pixels(name, preprocess)
            if self._bytes + found.nbytes <= _MEMORY:
                self._images[name] = found
                self._bytes += found.nbytes
        return found
