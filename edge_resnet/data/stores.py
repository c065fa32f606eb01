"""Image files in a folder or in a .zip."""

from __future__ import annotations

import io
import os
import threading
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edge_resnet.data.preprocess import Preprocess
from edge_resnet.errors import InputError

__all__ = ["FolderStore", "ZipStore", "decoded"]

_IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
# What files of these names really hold (a .jpg is now and then a PNG or a GIF). PIL knows many more formats,
# some of which start programs (EPS: Ghostscript); none of them is needed.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
# One image file larger than this is not a photo: a zip member may claim to be small and unpack to gigabytes.
_LARGEST_FILE = 256 * 2**20


def decoded(data: bytes | Path, preprocess: Preprocess) -> NDArray[np.uint8]:
    """One image file, uint8 [H, W, 3]. Raises ValueError, OSError or SyntaxError for a corrupt one."""
    try:
        with Image.open(io.BytesIO(data) if isinstance(data, bytes) else data, formats=_FORMATS) as image:
            # PIL itself only warns up to twice its limit.
            if Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > Image.MAX_IMAGE_PIXELS:
                raise ValueError(f"{image.width}x{image.height} pixels, a decompression bomb")
            image.load()
            return preprocess.to_pixels(image)
    except Image.DecompressionBombError as error:
        raise ValueError(str(error)) from error


def _is_hidden(name: str) -> bool:
    # macOS's and editors' leftovers, images only by their names: ._0.jpg, .ipynb_checkpoints/0.jpg.
    return name.startswith(".") or name == "__MACOSX"


class FolderStore:
    """Files below a folder. The content token is the size: cheap, and the same on another machine."""

    def __init__(self, folder: Path) -> None:
        self.source = str(folder)
        self._folder = folder

    def names(self) -> Sequence[tuple[str, str]]:
        try:
            return sorted(self._walk(self._folder, "", frozenset()))
        except OSError as error:
            raise InputError(f"{error.filename or self.source}: cannot be read: {error.strerror}") from error

    def _walk(
        self, folder: Path, prefix: str, above: frozenset[tuple[int, int]]
    ) -> Iterator[tuple[str, str]]:
        """Follows links, for data sets are often made of them. `above`: the folders that hold this one."""
        status = folder.stat()
        here = (status.st_dev, status.st_ino)
        if here in above:
            raise InputError(f"{folder}: a link back to a folder that holds it; remove the link")
        with os.scandir(folder) as entries:
            for entry in entries:
                if _is_hidden(entry.name):
                    continue
                if entry.is_dir():
                    yield from self._walk(folder / entry.name, f"{prefix}{entry.name}/", above | {here})
                elif entry.name.lower().endswith(_IMAGES):
                    # A broken link is listed, and then treated as any other corrupt image.
                    size = str(entry.stat().st_size) if entry.is_file() else "no file"
                    yield prefix + entry.name, size

    def pixels(self, name: str, preprocess: Preprocess) -> NDArray[np.uint8]:
        path = self._folder / name
        if not path.is_file():  # a named pipe would block for ever
            raise ValueError("a broken link, or not a file")
        return decoded(path, preprocess)


class _OpenZip:
    """An archive as this process has it open."""

    def __init__(self, path: Path) -> None:
        self.file, self.lock, self.process = zipfile.ZipFile(path), threading.Lock(), os.getpid()


class ZipStore:
    """Members of a .zip, read in place. The content token is the member's CRC."""

    def __init__(self, path: Path) -> None:
        self.source = str(path)
        try:
            self._opened = _OpenZip(path)
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            raise InputError(f"{path}: not an image folder and not a readable .zip: {error}") from error

    def names(self) -> Sequence[tuple[str, str]]:
        found: list[tuple[str, str]] = []
        for member in self._opened.file.infolist():
            name = member.filename
            if member.is_dir() or not name.lower().endswith(_IMAGES):
                continue
            if name.startswith("/") or ".." in name.split("/") or "\\" in name:
                raise InputError(f"{self.source}: member {name!r} points outside the archive")
            if any(map(_is_hidden, name.split("/"))):
                continue
            if member.flag_bits & 1:
                raise InputError(f"{self.source}: member {name!r} is encrypted")
            if member.file_size > _LARGEST_FILE:
                raise InputError(f"{self.source}: member {name!r} unpacks to {member.file_size:,} bytes")
            found.append((name, f"{member.CRC:08x}"))
        return sorted(found)

    def pixels(self, name: str, preprocess: Preprocess) -> NDArray[np.uint8]:
        opened = self._opened
        try:
            if opened.process != os.getpid():
                # Forked for training: a file handle shared with other processes has one position for all.
                self._opened = opened = _OpenZip(Path(self.source))
            with opened.lock, opened.file.open(name) as member:  # one file handle
                # Not read(): it unpacks everything first, and a member may hold far more than it declares.
                data = member.read(opened.file.getinfo(name).file_size)
        except Exception as error:  # each compression method has error types of its own
            raise ValueError(str(error) or type(error).__name__) from error
        return decoded(data, preprocess)
