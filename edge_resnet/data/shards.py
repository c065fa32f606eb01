"""WebDataset shards: which there are, whose split each is, and the order in which training reads them."""

from __future__ import annotations

import itertools
import json
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from edge_resnet.data.preprocess import Preprocess
from edge_resnet.data.shard_index import Member, index_of
from edge_resnet.data.stores import decoded
from edge_resnet.errors import InputError

__all__ = ["ShardStore", "find_shards", "streaming_order"]

_SPLITS = ("train", "val", "test", "validation")
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}")
_MOST_SHARDS = 100_000
_OPEN_FILES = 64
# Shards that training reads side by side, and how far in each of them an image can move.
_LANES = 8
_REACH = 1024


def find_shards(source: str) -> list[Path]:
    """The tar files that `source` names: a file, a brace pattern, or a folder with *.tar, or with *.tar in
    folders named as splits. [] where there are none.

    Raises InputError for compressed ones, and where a file of a pattern is missing.
    """
    path = Path(source)
    if path.is_dir():
        folders = [path, *(child for child in sorted(path.iterdir()) if child.name.lower() in _SPLITS)]
        files = [file for folder in folders if folder.is_dir() for file in sorted(folder.iterdir())]
        found = [file for file in files if file.name.lower().endswith((".tar", *_COMPRESSED))]
    elif path.exists() or not _RANGE.search(source):
        found = [path] if source.lower().endswith((".tar", *_COMPRESSED)) else []
    else:
        found = [Path(name) for name in _expanded(source)]
        if missing := [str(file) for file in found if not file.exists()]:
            raise InputError(f"{source}: {len(missing)} of {len(found)} files are missing: {missing[0]}")
    for file in found:
        if file.name.lower().endswith(_COMPRESSED):
            raise InputError(
                f"{file}: a compressed tar; images in the middle of it cannot be reached, and they are "
                "compressed already: unpack it to a plain .tar"
            )
    return [file for file in found if not file.name.startswith(".")]


def _expanded(pattern: str) -> list[str]:
    """Of `{0000..0009}` and `{train,val}`, as a shell does; numbers keep their width."""
    parts: list[Sequence[str]] = []
    end, count = 0, 1
    for match in _RANGE.finditer(pattern):
        first, last, names = match.groups()
        if names is None:
            if not int(first) <= int(last) < int(first) + _MOST_SHARDS:
                raise InputError(f"{pattern}: {match[0]} must rise, by fewer than {_MOST_SHARDS:,}")
            values = [str(i).zfill(len(first)) for i in range(int(first), int(last) + 1)]
        else:
            values = names.split(",")
        count *= len(values)
        parts += [[pattern[end : match.start()]], values]
        end = match.end()
    if count > _MOST_SHARDS:
        raise InputError(f"{pattern}: {count:,} shards; {_MOST_SHARDS:,} at most")
    return ["".join(words) for words in itertools.product(*parts, [pattern[end:]])]


class ShardStore:
    """Images in tar files, read in place. Names are SHARD/MEMBER, in the order of the shards.

    Raises InputError for a damaged shard, unless `skip_corrupt`: then its images before the damage are used.
    """

    def __init__(self, source: str, files: Sequence[Path], skip_corrupt: bool = False) -> None:
        self.source = source
        self._files = list(files)
        self._open: OrderedDict[int, BinaryIO] = OrderedDict()
        self._lock = threading.Lock()
        with ThreadPoolExecutor(min(_LANES, os.cpu_count() or 1)) as pool:
            indices = list(pool.map(index_of, self._files))
        damaged = [
            f"{file} is damaged {index.damage}, after {len(index.members)} images"
            for file, index in zip(self._files, indices, strict=True)
            if index.damage is not None
        ]
        if damaged and not skip_corrupt:
            raise InputError(
                f"{damaged[0]}; copy it anew, or skip the rest of such shards with "
                "--set evaluate.skip_corrupt=true"
            )
        self.notes = tuple(
            [f"the rest of {len(damaged)} damaged shards was skipped: {'; '.join(damaged[:3])}"]
            if damaged
            else []
        )
        root = os.path.commonpath([file.parent for file in self._files])
        self._place: dict[str, tuple[int, Member]] = {}
        for number, (file, index) in enumerate(zip(self._files, indices, strict=True)):
            shard = file.relative_to(root).as_posix()
            for member in index.members:
                name = f"{shard}/{member.name}"
                if name in self._place:
                    raise InputError(f"{file}: two images are named {member.name!r}")
                self._place[name] = (number, member)
        self.classes = _class_names(self.source, self._files, [m.label for _, m in self._place.values()])

    def names(self) -> Sequence[tuple[str, str]]:
        return [
            (name, f"{self._class(m)} {m.offset} {m.size} {m.modified}")
            for name, (_, m) in self._place.items()
        ]

    def by_split(self) -> Mapping[str, list[tuple[str, str]]]:
        """(class, name) of every image, by its split in lower case, "" where nothing tells one."""
        splits = [_split_of(file) for file in self._files]
        found: dict[str, list[tuple[str, str]]] = {}
        for name, (number, member) in self._place.items():
            folders = member.name.lower().split("/")[:-1]
            split = splits[number] or (folders[-2] if len(folders) > 1 and folders[-2] in _SPLITS else "")
            found.setdefault(split, []).append((self._class(member), name))
        return found

    def shards(self, names: Sequence[str]) -> NDArray[np.int64]:
        """The number of the shard in which each image lies."""
        return np.array([self._place[name][0] for name in names], np.int64)

    def pixels(self, name: str, preprocess: Preprocess) -> NDArray[np.uint8]:
        number, member = self._place[name]
        file = self._file(number)
        data = os.pread(file.fileno(), member.size, member.offset)
        if len(data) < member.size:
            raise ValueError("the shard has become shorter")
        return decoded(data, preprocess)

    def _class(self, member: Member) -> str:
        return self.classes[member.label] if isinstance(member.label, int) else member.label

    def _file(self, number: int) -> BinaryIO:
        """Kept open, for the system reads ahead in a file that stays open. A file that falls out is closed
        when the last thread that reads it lets go of it."""
        with self._lock:
            file = self._open.get(number)
            if file is None:
                file = self._open[number] = self._files[number].open("rb")
                if len(self._open) > _OPEN_FILES:
                    self._open.popitem(last=False)
            self._open.move_to_end(number)
            return file


def _split_of(file: Path) -> str:
    """val/0000.tar, val-0000.tar, imagenet_validation.0000.tar."""
    words = re.split(r"[^a-z]+", file.stem.lower())
    named = [word for word in (*words, file.parent.name.lower()) if word in _SPLITS]
    return named[0] if named else ""


def _class_names(source: str, files: Sequence[Path], labels: Sequence[int | str]) -> tuple[str, ...]:
    """In the order of the model's answers. Numbers are places in the list beside the shards."""
    numbers = {label for label in labels if isinstance(label, int)}
    if numbers and len(numbers) < len(set(labels)):
        other = next(label for label in labels if isinstance(label, str))
        raise InputError(f"{source}: some classes are numbers ({min(numbers)}), some are names ({other!r})")
    if not numbers:
        return tuple(sorted({str(label) for label in labels}))
    found = next((list_ for file in files for list_ in _lists_beside(file)), None)
    if found is None:
        return tuple(map(str, range(max(numbers) + 1)))
    names, where = _names_in(found), found
    if max(numbers) >= len(names):
        raise InputError(f"{where}: {len(names)} classes, but a shard has an image of class {max(numbers)}")
    if len(set(names)) < len(names):
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise InputError(f"{where}: two classes are named {twice!r}")
    return names


def _lists_beside(file: Path) -> Iterator[Path]:
    folders = [file.parent, *([file.parent.parent] if file.parent.name.lower() in _SPLITS else [])]
    for folder in folders:
        for name in ("classes.txt", "labels.txt", "dataset.json"):
            if (folder / name).is_file():
                yield folder / name


def _names_in(path: Path) -> tuple[str, ...]:
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".txt":
            return tuple(line.strip() for line in text.splitlines() if line.strip())
        content: Any = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: the list of classes cannot be read: {error}") from error
    names = content.get("classes") if isinstance(content, dict) else None
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise InputError(f'{path}: no list of names under "classes"')
    return tuple(names)


def streaming_order(shards: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """All places in `shards`, int64 [n], shuffled such that every shard is read almost from front to back.

    `shards` int64 [n]: the shard of each image, images of one in the order in which it holds them. Shards are
    dealt out to a few lanes, each one after the other; an image moves up to 1,024 places in its lane, and the
    lanes run side by side to the same end. It is what a reader with a shuffle buffer does (webdataset's
    `shuffle`), but known beforehand, so any step is reached without reading those before it.
    """
    numbers, counts = np.unique(shards, return_counts=True)
    by_shard = np.argsort(shards, kind="stable")
    places = np.split(by_shard, np.cumsum(counts)[:-1])
    dealt = rng.permutation(len(numbers))
    keys = np.empty(len(shards))
    for lane in range(min(_LANES, len(numbers))):
        images = np.concatenate([places[number] for number in dealt[lane::_LANES]])
        reach = min(_REACH, len(images))
        keys[images] = (np.arange(len(images)) + rng.uniform(0, reach, len(images))) / (len(images) + reach)
    return np.argsort(keys, kind="stable")
