"""The one place that writes, replaces and fingerprints files."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
import stat
import tempfile
from pathlib import Path

from edge_resnet.errors import InputError

__all__ = [
    "atomic_write",
    "cache_folder",
    "check_regular_file",
    "check_writable",
    "replace_directory",
    "sha256_of",
    "size_of",
]


def atomic_write(path: Path, content: bytes | str) -> None:
    """Write the whole file or nothing: a temporary sibling, flushed to disk, then renamed.

    Text is UTF-8. Raises InputError when the place cannot be written (full, read-only, a directory). After
    any error, an interruption included, the old file is as it was and the temporary one is gone.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = _sibling(path)
    try:
        # "x" never follows what stands there, and the permissions are the user's umask's.
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise _cannot_write(path, error) from error
        raise


def cache_folder() -> Path:
    """Where what is costly to make anew is kept for this user.

    EDGE_RESNET_CACHE, else XDG_CACHE_HOME/edge-resnet, else ~/.cache/edge-resnet.
    """
    own = os.environ.get("EDGE_RESNET_CACHE")
    if own:
        return Path(own)
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "edge-resnet"


def check_regular_file(path: Path, what: str) -> int:
    """Bytes of the file. Raises InputError where it is none, before anything is opened.

    A named pipe, for one, would block for ever. `what` says in the message what it should have been.
    """
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"{path}: there is no such {what}") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: the {what} cannot be read: {getattr(error, 'strerror', error)}") from error
    if stat.S_ISDIR(status.st_mode):
        raise InputError(f"{path}: a folder, not a {what}")
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{path}: a device or a pipe, not a {what}")
    if status.st_size == 0:
        raise InputError(f"{path}: the {what} is empty")
    return status.st_size


def replace_directory(new: Path, path: Path) -> None:
    """Give the finished directory `new` the name `path`; what stood there goes, or stays on failure.

    Both must be on one file system. Raises InputError. The old content is deleted only once the new one has
    its name; should it be impossible to put it back, the error says where it is.
    """
    if not new.is_dir():
        raise InputError(f"{path}: cannot write: {new} is not a directory")
    kept = _sibling(path)
    try:
        if os.path.lexists(path):
            os.replace(path, kept)
        os.replace(new, path)
    except BaseException as error:
        _put_back(kept, path, error)
        if isinstance(error, OSError):
            raise _cannot_write(path, error) from error
        raise
    _remove(kept)


def check_writable(directory: Path) -> None:
    """Make the directory and try to write in it. Raises InputError before any work is done."""
    try:
        if directory.exists() and not directory.is_dir():
            raise InputError(f"{directory}: cannot write the run there: it is a file, not a directory")
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=directory, prefix=".probe-") as file:
            file.write(b"edge-resnet")
            file.flush()
            # A full disk or a spent quota may only say so when the data is really put there.
            os.fsync(file.fileno())
    except OSError as error:
        raise InputError(f"{directory}: cannot write the run there: {error.strerror or error}") from error


def sha256_of(path: Path) -> str:
    """Digest of a file, or of a directory's relative names and contents in sorted order."""
    if not path.is_dir():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha256()
    for entry in _files_of(path):
        # Names need not be valid UTF-8; `surrogateescape` gives back the bytes that they are.
        digest.update(entry.relative_to(path).as_posix().encode("utf-8", "surrogateescape") + b"\0")
        digest.update(bytes.fromhex(sha256_of(entry)))
    return digest.hexdigest()


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files below a directory."""
    return sum(entry.stat().st_size for entry in _files_of(path)) if path.is_dir() else path.stat().st_size


def _files_of(directory: Path) -> list[Path]:
    return sorted(entry for entry in directory.rglob("*") if entry.is_file())


def _sibling(path: Path) -> Path:
    """A hidden name beside `path` (the same file system) that nothing has."""
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}")


def _cannot_write(path: Path, error: OSError) -> InputError:
    return InputError(f"{path}: cannot write: {error.strerror or error}")


def _put_back(kept: Path, path: Path, error: BaseException) -> None:
    """Undo the first of two renames, if it was done. Never deletes: the old content may be all there is."""
    if not os.path.lexists(kept) or os.path.lexists(path):
        return
    try:
        os.replace(kept, path)
    except OSError as second:
        raise InputError(
            f"{path}: cannot write; what stood there is now {kept}: {second.strerror}"
        ) from error


def _remove(path: Path) -> None:
    """Away with it, best effort: the new content is in place, and a leftover is no reason to fail."""
    if not os.path.lexists(path):
        return
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()
