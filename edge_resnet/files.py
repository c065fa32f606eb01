"""The one place that writes, replaces and fingerprints files."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

from edge_resnet.errors import InputError

__all__ = ["atomic_write", "check_writable", "replace_directory", "sha256_of", "size_of"]


def atomic_write(path: Path, content: bytes | str) -> None:
    """Write the whole file or nothing: a temporary sibling, flushed to disk, then renamed.

    Raises InputError when the place cannot be written (full, read-only, a directory); the old file stays.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary: Path | None = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = Path(file.name)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise InputError(f"{path}: cannot write: {error.strerror or error}") from error


def replace_directory(new: Path, path: Path) -> None:
    """Give the finished directory `new` the name `path`; what stood there goes, or stays on failure."""
    old: Path | None = None
    try:
        if path.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent)) / "old"
            path.replace(old)
        new.replace(path)
    except OSError as error:
        if old is not None and old.exists() and not path.exists():
            old.replace(path)
        raise InputError(f"{path}: cannot write: {error.strerror or error}") from error
    finally:
        if old is not None:
            shutil.rmtree(old.parent, ignore_errors=True)


def check_writable(directory: Path) -> None:
    """Make the directory and try to write in it. Raises InputError before any work is done."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory) as file:
            file.write(b"edge-resnet")
            file.flush()
    except OSError as error:
        raise InputError(f"{directory}: cannot write the run there: {error.strerror or error}") from error


def sha256_of(path: Path) -> str:
    """Digest of a file, or of a directory's relative names and contents in sorted order."""
    if not path.is_dir():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha256()
    for entry in _files_of(path):
        digest.update(entry.relative_to(path).as_posix().encode() + b"\0")
        digest.update(bytes.fromhex(sha256_of(entry)))
    return digest.hexdigest()


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files below a directory."""
    return sum(entry.stat().st_size for entry in _files_of(path)) if path.is_dir() else path.stat().st_size


def _files_of(directory: Path) -> list[Path]:
    return sorted(entry for entry in directory.rglob("*") if entry.is_file())
