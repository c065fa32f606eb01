"""What a WebDataset shard holds: its headers are read, its images are not. Kept in the user's cache folder.

A shard is a plain tar. Members that follow each other and share all before the first dot of the file name are
one sample (the rule of webdataset's `base_plus_ext`): 000123.jpg and 000123.cls. The class is the number in
`.cls`, else "label" in `.json`, else the folder: n01440764/000123.JPEG. Of all other members only the header
is read, so nothing in a shard is ever unpickled or run.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from edge_resnet.errors import InputError
from edge_resnet.files import atomic_write, cache_folder, check_regular_file

__all__ = ["Member", "ShardIndex", "index_of"]

_FORMAT = 1
_IMAGES = ("jpg", "jpeg", "png", "webp", "bmp")
# As the stores': no photo is larger. Labels are small, too.
_LARGEST_IMAGE = 256 * 2**20
_LARGEST_LABEL = 2**20
_NAME = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)")
_META = re.compile(r"__[^/]*__($|/)")  # webdataset's own notes
_BLOCK = 512
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"\x28\xb5": "zstd"}


@dataclass(frozen=True)
class Member:
    """One image: where its bytes lie in the shard, and its class, a number or a name."""

    name: str
    label: int | str
    offset: int
    size: int
    modified: int


@dataclass(frozen=True)
class ShardIndex:
    """The images of a shard in its order. `damage` says where and why reading ended early."""

    members: tuple[Member, ...]
    damage: str | None = None


def index_of(path: Path) -> ShardIndex:
    """From the cache where path, size and time of change are the same, else from the shard's headers.

    Raises InputError for a compressed tar, an image without a class, and what cannot be opened.
    """
    if path.is_file() and not path.stat().st_size:
        return ShardIndex((), "at byte 0 (the file is empty)")
    check_regular_file(path, "shard")
    status = path.stat()
    key = f"{_FORMAT}\0{path.resolve()}\0{status.st_size}\0{status.st_mtime_ns}"
    kept = (
        cache_folder() / "shards" / f"{hashlib.sha256(key.encode(errors='surrogateescape')).hexdigest()}.json"
    )
    with suppress(OSError, ValueError, TypeError, KeyError):  # absent, or spoiled: made anew
        document = json.loads(kept.read_bytes())
        return ShardIndex(tuple(Member(*row) for row in document["members"]), document["damage"])
    try:
        with path.open("rb") as file:
            index = _read(path, file)
    except OSError as error:
        raise InputError(f"{path}: the shard cannot be read: {error.strerror or error}") from error
    with suppress(OSError, InputError, UnicodeEncodeError):  # a cache that cannot be written costs time only
        kept.parent.mkdir(parents=True, exist_ok=True)
        rows = [list(asdict(member).values()) for member in index.members]
        atomic_write(kept, json.dumps({"members": rows, "damage": index.damage}))
    return index


@dataclass
class _Sample:
    """The members of one name: the image, and what says its class."""

    key: str
    image: tarfile.TarInfo | None = None
    number: int | None = None
    label: int | str | None = None


def _read(path: Path, file: IO[bytes]) -> ShardIndex:
    start = file.read(2)
    for magic, kind in _COMPRESSED.items():
        if start == magic:
            raise InputError(
                f"{path}: compressed with {kind}; images in the middle of it cannot be reached, and they are "
                "compressed already: unpack it to a plain .tar"
            )
    file.seek(0)
    members: list[Member] = []
    sample: _Sample | None = None
    damage: str | None = None
    position = 0
    try:
        archive = tarfile.TarFile(fileobj=file, mode="r")
        while (info := archive.next()) is not None:
            archive.members = []  # type: ignore[attr-defined]  # it would remember every one
            name = _NAME.fullmatch(info.name)
            if name and info.isreg() and not info.issparse() and not _META.match(info.name):
                if sample is None or sample.key != name[1]:
                    _finish(path, sample, members)
                    sample = _Sample(name[1])
                _add(path, file, sample, info, name[2].lower())
            if archive.offset <= position:  # a hostile size would lead back
                raise tarfile.ReadError("a member that ends before it begins")
            position = archive.offset
        damage = _end(file, position)
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
        damage = f"at byte {position:,} ({error})"
    if damage is None or _is_whole(sample, file):
        _finish(path, sample, members)
    return ShardIndex(tuple(members), damage)


def _is_whole(sample: _Sample | None, file: IO[bytes]) -> bool:
    """Whether the last sample before the damage is all there. A folder may be its class only for want of the
    .cls that is lost."""
    if sample is None or sample.image is None or (sample.number is None and sample.label is None):
        return False
    return sample.image.offset_data + sample.image.size <= file.seek(0, io.SEEK_END)


def _end(file: IO[bytes], position: int) -> str | None:
    """tarfile takes for the end what is no header. A tar ends with zeros."""
    file.seek(position)
    block = file.read(_BLOCK)
    if not block:
        return f"at byte {position:,} (it ends without a tar's end mark)"
    if len(block) < _BLOCK or any(block):
        return f"at byte {position:,} (no tar header)"
    return None


def _add(path: Path, file: IO[bytes], sample: _Sample, info: tarfile.TarInfo, kind: str) -> None:
    if kind in _IMAGES and sample.image is None:
        if info.size > _LARGEST_IMAGE:
            raise InputError(f"{path}: member {info.name!r} is {info.size:,} bytes large, no image")
        sample.image = info
    elif kind in ("cls", "json"):
        if info.size > _LARGEST_LABEL:
            raise InputError(f"{path}: member {info.name!r} is {info.size:,} bytes large, no label")
        here = file.tell()
        file.seek(info.offset_data)
        data = file.read(info.size)
        file.seek(here)
        if len(data) < info.size:
            raise EOFError("unexpected end of data")
        if kind == "cls":
            sample.number = _number(path, info.name, data)
        else:
            sample.label = _label(path, info.name, data)


def _number(path: Path, name: str, data: bytes) -> int:
    text = data.strip()
    if not text.isdigit() or len(text) > 6:
        raise InputError(f"{path}: member {name!r} holds {text[:20]!r}; a .cls holds the class's number")
    return int(text)


def _label(path: Path, name: str, data: bytes) -> int | str | None:
    try:
        content: Any = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: member {name!r} is no JSON: {error}") from error
    label = content.get("label") if isinstance(content, dict) else None
    if isinstance(label, str) and label:
        return label.replace("/", "_")
    if isinstance(label, int) and not isinstance(label, bool) and 0 <= label < 10**6:
        return label
    return None


def _finish(path: Path, sample: _Sample | None, members: list[Member]) -> None:
    if sample is None or sample.image is None:
        return
    info = sample.image
    label = sample.number if sample.number is not None else sample.label
    if label is None:
        folders = info.name.split("/")[:-1]
        if not folders or folders[-1] in ("", ".", ".."):
            raise InputError(
                f'{path}: image {info.name!r} has no class: no .cls, no .json with "label", and no folder'
            )
        label = folders[-1]
    members.append(Member(info.name, label, info.offset_data, info.size, int(info.mtime)))
