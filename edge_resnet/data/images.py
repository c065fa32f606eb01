"""DATA: an image folder, a .zip of one, WebDataset shards, or the demo; streamed, never held as a whole.

DIR/{train,val|test}/CLASS/*.jpg|png       in a .zip also below one top folder
DIR/CLASS/*.jpg|png                        without splits: calibration and evaluation share the images
DIR/{train,val|test}-*.tar                 shards; or DIR/{train,val|test}/*.tar, {train,val}-{0000..0009}.tar

Split names and file extensions in any case; hidden files and folders are no images.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edge_resnet.data.preprocess import Preprocess
from edge_resnet.errors import InputError

__all__ = ["Batch", "ImageData", "ImageSplit", "Store", "open_images"]

_VALIDATION = ("val", "test", "validation")
# Pillow decodes without holding the interpreter. What is decoded ahead is bounded: parts of a batch.
_DECODERS = min(16, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
_PART = 16
_SHOWN = 3  # names in an error


class Store(Protocol):
    """Where image files lie. Names are relative, with `/`."""

    source: str

    def names(self) -> Sequence[tuple[str, str]]:
        """(name, a token that changes with the content) of every image file, sorted by name."""
        ...

    def pixels(self, name: str, preprocess: Preprocess) -> NDArray[np.uint8]:
        """Decode one image, uint8 [H, W, 3]. Raises ValueError or OSError for a corrupt one."""
        ...


@dataclass(frozen=True, eq=False)
class Batch:
    """pixels uint8 [n, H, W, 3], labels int64 [n], indices int64 [n] into the split."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    indices: NDArray[np.int64]

    def of(self, chosen: slice | NDArray[np.int64]) -> Batch:
        """Some of it."""
        return Batch(self.pixels[chosen], self.labels[chosen], self.indices[chosen])


@dataclass
class ImageSplit:
    """One split: file names and labels, sorted by name (so by class: always take `order`).

    `shards` int64 [n]: in which shard each image lies, where there are shards.
    """

    store: Store
    paths: list[str]
    labels: NDArray[np.int64]
    skipped: list[str] = field(default_factory=list)
    shards: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def order(self, seed: int) -> NDArray[np.int64]:
        """All indices, shuffled; the same for the same seed."""
        return np.random.default_rng(seed).permutation(len(self.paths))

    def training_order(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """All indices, shuffled for an epoch: anyhow, or where there are shards as they are best read."""
        if self.shards is None:
            return rng.permutation(len(self.paths))
        from edge_resnet.data.shards import streaming_order

        return streaming_order(self.shards, rng)

    def batches(
        self,
        indices: NDArray[np.int64],
        preprocess: Preprocess,
        batch_size: int,
        skip_corrupt: bool = False,
    ) -> Iterator[Batch]:
        """Decode in order, a little ahead.

        Corrupt images raise InputError that names them, or, with `skip_corrupt`, are left out and listed in
        `skipped`.
        """
        chunks = (indices[i : i + batch_size] for i in range(0, len(indices), batch_size))
        return (batch for batch in self.decoded(chunks, preprocess, skip_corrupt) if len(batch.labels))

    def decoded(
        self, chunks: Iterable[NDArray[np.int64]], preprocess: Preprocess, skip_corrupt: bool = False
    ) -> Iterator[Batch]:
        """One batch for each chunk of indices, in order; empty where all are corrupt."""
        with ThreadPoolExecutor(_DECODERS) as pool:
            waiting: deque[tuple[NDArray[np.int64], list[Future[_Decoded]]]] = deque()
            ahead = 0
            try:
                for chunk in chunks:
                    parts = [chunk[i : i + _PART] for i in range(0, len(chunk), _PART)]
                    waiting.append((chunk, [pool.submit(self._decode, part, preprocess) for part in parts]))
                    ahead += len(parts)
                    while len(waiting) > 1 and ahead - len(waiting[0][1]) >= 4 * _DECODERS:
                        ahead -= len(waiting[0][1])
                        yield self._batch(*waiting.popleft(), preprocess, skip_corrupt)
                while waiting:
                    yield self._batch(*waiting.popleft(), preprocess, skip_corrupt)
            finally:
                pool.shutdown(cancel_futures=True)

    def _decode(self, chunk: NDArray[np.int64], preprocess: Preprocess) -> _Decoded:
        good: list[NDArray[np.uint8]] = []
        kept: list[int] = []
        corrupt: list[tuple[str, str]] = []
        for index in chunk.tolist():
            try:
                good.append(self.store.pixels(self.paths[index], preprocess))
                kept.append(index)
            except (OSError, ValueError, SyntaxError) as error:  # PIL raises SyntaxError for a broken PNG
                corrupt.append((self.paths[index], str(error)))
        return _Decoded(good, np.array(kept, np.int64), corrupt)

    def _batch(
        self,
        chunk: NDArray[np.int64],
        parts: list[Future[_Decoded]],
        preprocess: Preprocess,
        skip_corrupt: bool,
    ) -> Batch:
        done = [part.result() for part in parts]
        corrupt = [image for part in done for image in part.corrupt]
        if corrupt:
            names = [name for name, _ in corrupt]
            if not skip_corrupt:
                raise InputError(
                    f"{self.store.source}: corrupt image {_first(names)} in this batch ({corrupt[0][1]}); "
                    "repair or remove it, or skip such images with --set evaluate.skip_corrupt=true"
                )
            self.skipped += [name for name in names if name not in self.skipped]
        pixels = [image for part in done for image in part.pixels]
        indices = np.concatenate([chunk[:0], *(part.indices for part in done)])
        shaped = np.stack(pixels) if pixels else np.empty((0, *preprocess.size, 3), np.uint8)
        return Batch(shaped, self.labels[indices], indices)


@dataclass(frozen=True, eq=False)
class _Decoded:
    pixels: list[NDArray[np.uint8]]
    indices: NDArray[np.int64]
    corrupt: list[tuple[str, str]]


@dataclass(frozen=True)
class ImageData:
    """A labelled data set. `classes` are sorted; `notes` say what the user should know of its layout."""

    source: str
    classes: tuple[str, ...]
    fingerprint: str
    splits: dict[str, ImageSplit]
    notes: tuple[str, ...] = ()

    def split(self, name: str) -> ImageSplit:
        """`train` or `val`."""
        return self.splits[name]


def open_images(source: str, skip_corrupt: bool = False) -> ImageData:
    """Look through DATA without decoding.

    Raises InputError for what is missing, unreadable, empty, of one class, or of other classes in train than
    in val, for names that no report could hold (not UTF-8), and for a damaged shard, unless `skip_corrupt`:
    then the images before the damage are used, and the notes tell.
    """
    if source == "demo":
        from edge_resnet.data.demo import DigitStore

        return _arranged(store := DigitStore(), store.names())
    from edge_resnet.data.shards import find_shards
    from edge_resnet.data.stores import FolderStore, ZipStore

    path = Path(source)
    shards = find_shards(source)
    if not path.exists() and not shards:
        raise InputError(f"{source}: there is no such image folder, .zip or shard")
    if path.is_dir():
        folder = FolderStore(path)
        entries = folder.names()
        if not shards or any(
            "/" in name for name, _ in entries
        ):  # a tar beside a folder's images is no shard
            return _arranged(folder, entries)
    elif not shards:
        return _arranged(archive := ZipStore(path), archive.names())
    return _of_shards(source, shards, skip_corrupt)


def _of_shards(source: str, files: Sequence[Path], skip_corrupt: bool) -> ImageData:
    from edge_resnet.data.shards import ShardStore

    store = ShardStore(source, files, skip_corrupt)
    data = _arranged(store, store.names(), store.by_split(), store.classes)
    for split in data.splits.values():
        split.shards = store.shards(split.paths)
    return replace(data, notes=(*store.notes, *data.notes))


def _by_folder(entries: Sequence[tuple[str, str]]) -> Mapping[str, Entries]:
    """(class, name) of every file that lies in a folder, by its split."""
    found: dict[str, Entries] = {}
    for name, _ in entries:
        *folders, _file = name.split("/")
        split = folders[-2].lower() if len(folders) >= 2 else ""
        if split in ("train", *_VALIDATION):
            found.setdefault(split, []).append((folders[-1], name))
        elif len(folders) >= 1:
            found.setdefault("", []).append((folders[-1], name))
    return found


def _arranged(
    store: Store,
    entries: Sequence[tuple[str, str]],
    by_split: Mapping[str, Entries] | None = None,
    order: tuple[str, ...] | None = None,
) -> ImageData:
    """Sort files into splits and classes. `order`: of the classes, where it is not that of their names."""
    if not entries:
        raise InputError(f"{store.source}: no images; expected {{train,val|test}}/CLASS/*.jpg or *.png")
    digest = hashlib.sha256()
    for name, token in entries:
        try:
            digest.update(f"{name}\0{token}\n".encode())
        except UnicodeEncodeError as error:
            raise InputError(f"{store.source}: the file name {name!r} is not UTF-8; rename it") from error
    train, validation, notes = _choose_splits(
        store.source, _by_folder(entries) if by_split is None else by_split
    )
    used = {name for _, name in train} | {name for _, name in validation}
    unused = [name for name, _ in entries if name not in used]
    if unused:
        notes += (f"{store.source}: {len(unused)} images in other folders are not used: {_first(unused)}",)
    present = tuple(sorted({label for label, _ in validation}))
    _check_classes(store.source, present, {label for label, _ in train})
    classes = order or present
    splits = {"train": _split(store, train, classes), "val": _split(store, validation, classes)}
    return ImageData(store.source, classes, digest.hexdigest(), splits, notes)


Entries = list[tuple[str, str]]


def _choose_splits(source: str, found: Mapping[str, Entries]) -> tuple[Entries, Entries, tuple[str, ...]]:
    validation = next((name for name in _VALIDATION if name in found), None)
    if validation and "train" in found:
        return found["train"], found[validation], ()
    if validation:
        note = f"{source} has no train folder: calibration shares the images of {validation}"
        return found[validation], found[validation], (note,)
    if "train" in found:
        raise InputError(f"{source}: has train but no val or test folder; accuracy needs images kept apart")
    if "" not in found:
        raise InputError(f"{source}: the images are not in {{train,val|test}}/CLASS folders")
    if {label.lower() for label, _ in found[""]} <= {"train", *_VALIDATION}:
        raise InputError(
            f"{source}: the images lie in {_first(sorted({label for label, _ in found['']}))} without their "
            "classes; put them into train/CLASS and val/CLASS"
        )
    note = f"{source} has no train and val folders: calibration and evaluation share the images"
    return found[""], found[""], (note,)


def _check_classes(source: str, classes: tuple[str, ...], train: set[str]) -> None:
    if len(classes) < 2:
        raise InputError(
            f"{source}: only one class ({classes[0]}); a classifier needs one folder for each class"
        )
    if set(classes) != train:
        sides = (("train", train - set(classes)), ("val/test", set(classes) - train))
        told = [
            f"class {_first([repr(label) for label in sorted(only)])} is in {where} only"
            for where, only in sides
            if only
        ]
        raise InputError(f"{source}: {'; '.join(told)}; both need the same class folders")


def _first(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _split(store: Store, entries: Entries, classes: tuple[str, ...]) -> ImageSplit:
    number = {label: index for index, label in enumerate(classes)}
    labels = np.array([number[label] for label, _ in entries], np.int64)
    return ImageSplit(store, [name for _, name in entries], labels)
