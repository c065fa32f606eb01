"""Image files in a folder or in a .zip."""

from __future__ import annotations

import io
import os
import threading
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edge_resnet.data.preprocess import Preprocess
from edge_resnet.errors import InputError

__all__ = ["FolderStore", "ZipStore"]

_IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
# One image file larger than this is not a photo: a zip member may claim to be small and unpack to gigabytes.
_LARGEST_FILE = 256 * 2**20


def _decoded(data: bytes | Path, preprocess: Preprocess) -> NDArray[np.uint8]:
    try:
        with Image.open(io.BytesIO(data) if isinstance(data, bytes) else data) as image:
            image.load()
            return preprocess.to_pixels(image)
    except Image.DecompressionBombError as error:
        raise ValueError(str(error)) from error


def _is_image(name: str) -> bool:
    # Files that start with a dot are macOS's and editors' leftovers, images only by their names.
    return name.lower().endswith(_IMAGES) and not name.rsplit("/", 1)[-1].startswith(".")


class FolderStore:
    """Files below a folder. The content token is the size: cheap, and the same on another machine."""

    def __init__(self, folder: Path) -> None:
        self.source = str(folder)
        self._folder = folder

    def names(self) -> Sequence[tuple[str, str]]:
        found: list[tuple[str, str]] = []
        for directory, _, files in os.walk(self._folder, followlinks=True):
            relative = Path(directory).relative_to(self._folder).as_posix()
            prefix = "" if relative == "." else f"{relative}/"
            for file in files:
                if _is_image(file):
                    found.append((prefix + file, str((Path(directory) / file).stat().st_size)))
        return sorted(found)

    def pixels(self, name: str, preprocess: Preprocess) -> NDArray[np.uint8]:
        return _decoded(self._folder / name, preprocess)


class ZipStore:
    """Members of a .zip, read in place. The content token is the member's CRC."""

    def __init__(self, path: Path) -> None:
        self.source = str(path)
        try:
            self._zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError) as error:
            raise InputError(f"{path}: not an image folder and not a readable .zip: {error}") from error
        self._lock = threading.Lock()

    def names(self) -> Sequence[tuple[str, str]]:
        found: list[tuple[str, str]] = []
        for member in self._zip.infolist():
            name = member.filename
            if member.is_dir() or not _is_image(name) or name.startswith("__MACOSX/"):
                continue
            if name.startswith("/") or ".." in name.split("/") or "\\" in name:
                raise InputError(f"{self.source}: member {name!r} points outside the archive")
            if member.flag_bits & 1:
                raise InputError(f"{self.source}: member {name!r} is encrypted")
            if member.file_size > _LARGEST_FILE:
                raise InputError(f"{self.source}: member {name!r} unpacks to {member.file_size:,} bytes")
            found.append((name, f"{member.CRC:08x}"))
        return sorted(found)

    def pixels(self, name: str, preprocess: Preprocess) -> NDArray[np.uint8]:
        try:
            with self._lock:  # one file handle
                data = self._zip.read(name)
        except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError) as error:
            raise ValueError(str(error)) from error
        return _decoded(data, preprocess)
