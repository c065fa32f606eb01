"""What `files.py` promises when writing goes wrong; the ordinary paths are in test_files_and_recipes.py."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from edge_resnet import files
from edge_resnet.errors import InputError
from edge_resnet.files import atomic_write, check_writable, replace_directory, sha256_of, size_of


def _fail(error: BaseException) -> Callable[..., None]:
    def failing(*arguments: object, **options: object) -> None:
        raise error

    return failing


def _full() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _names(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())


def _folder(path: Path, content: str) -> Path:
    path.mkdir()
    (path / "file").write_text(content)
    return path


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("error", [_full(), KeyboardInterrupt()], ids=["full disk", "Ctrl-C"])
def test_no_error_costs_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, error: BaseException
) -> None:
    path = tmp_path / "report.json"
    atomic_write(path, "old")
    monkeypatch.setattr(files.os, call, _fail(error))
    expected = InputError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected) as caught:
        atomic_write(path, "new")
    assert path.read_text() == "old"
    assert _names(tmp_path) == ["report.json"]
    if expected is InputError:
        assert str(caught.value) == f"{path}: cannot write: No space left on device"


def test_the_first_error_is_the_one_that_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.os, "fsync", _fail(_full()))
    monkeypatch.setattr(Path, "unlink", _fail(OSError(errno.EROFS, os.strerror(errno.EROFS))))
    with pytest.raises(InputError, match="No space left"):
        atomic_write(tmp_path / "x", "new")


def test_places_that_are_no_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot write: .*directory"):
        atomic_write(_folder(tmp_path / "folder", "kept"), "x")
    with pytest.raises(InputError, match="cannot write: No such file"):
        atomic_write(tmp_path / "nowhere" / "x", "x")
    assert _names(tmp_path) == ["folder"]
    assert (tmp_path / "folder" / "file").read_text() == "kept"


def test_bytes_text_and_the_users_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        atomic_write(tmp_path / "private", "größer\n")
    finally:
        os.umask(before)
    atomic_write(tmp_path / "bytes", b"\x00\xff")
    assert (tmp_path / "private").read_bytes() == "größer\n".encode()
    assert (tmp_path / "private").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "bytes").read_bytes() == b"\x00\xff"


@pytest.mark.parametrize("error", [_full(), KeyboardInterrupt()], ids=["full disk", "Ctrl-C"])
@pytest.mark.parametrize("failing_call", [1, 2])
def test_no_error_costs_the_old_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing_call: int, error: BaseException
) -> None:
    new, path = _folder(tmp_path / "new", "new"), _folder(tmp_path / "graph", "old")
    replace, calls = os.replace, 0

    def flaky(source: Path, destination: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == failing_call:
            raise error
        replace(source, destination)

    monkeypatch.setattr(files.os, "replace", flaky)
    with pytest.raises(InputError if isinstance(error, OSError) else KeyboardInterrupt):
        replace_directory(new, path)
    assert (path / "file").read_text() == "old"
    assert (new / "file").read_text() == "new"
    assert _names(tmp_path) == ["graph", "new"]


def test_an_old_directory_that_cannot_go_back_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new, path = _folder(tmp_path / "new", "new"), _folder(tmp_path / "graph", "old")
    replace, calls = os.replace, 0

    def only_once(source: Path, destination: Path) -> None:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise _full()
        replace(source, destination)

    monkeypatch.setattr(files.os, "replace", only_once)
    with pytest.raises(InputError, match="what stood there is now") as caught:
        replace_directory(new, path)
    (kept,) = (entry for entry in tmp_path.iterdir() if entry.name.startswith(".graph."))
    assert str(kept) in str(caught.value)
    assert (kept / "file").read_text() == "old"


@pytest.mark.parametrize("before", ["nothing", "file", "dangling link"])
def test_a_directory_takes_the_place_of_anything(tmp_path: Path, before: str) -> None:
    path = tmp_path / "m.mlpackage"
    if before == "file":
        path.write_text("old")
    elif before == "dangling link":
        path.symlink_to(tmp_path / "gone")
    replace_directory(_folder(tmp_path / "new", "new"), path)
    assert (path / "file").read_text() == "new"
    assert _names(tmp_path) == ["m.mlpackage"]


def test_only_a_directory_replaces_a_directory(tmp_path: Path) -> None:
    path = _folder(tmp_path / "graph", "old")
    with pytest.raises(InputError, match="not a directory"):
        replace_directory(tmp_path / "nowhere", path)
    assert (path / "file").read_text() == "old"


def test_the_probe_leaves_nothing_and_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_writable(tmp_path / "run")
    assert _names(tmp_path / "run") == []
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="it is a file, not a directory"):
        check_writable(tmp_path / "file")
    with pytest.raises(InputError, match="cannot write the run there: Not a directory"):
        check_writable(tmp_path / "file" / "run")
    monkeypatch.setattr(files.os, "fsync", _fail(_full()))
    with pytest.raises(InputError, match="No space left"):
        check_writable(tmp_path / "run")
    assert _names(tmp_path / "run") == []


def test_a_digest_of_a_directory_does_not_move(tmp_path: Path) -> None:
    """Digests are in the reports of earlier runs, so they may never change."""
    package = _folder(tmp_path / "m.mlpackage", "a")
    (package / "Data").mkdir()
    (package / "Data" / "weights.bin").write_bytes(b"\x01\x02")
    known = "11098665"
    assert sha256_of(package).startswith(known)
    assert size_of(package) == 3


@pytest.mark.skipif(os.name != "posix", reason="names of raw bytes are a POSIX matter")
def test_names_need_not_be_utf8(tmp_path: Path) -> None:
    try:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")).write_text("x")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only (macOS); any Linux one takes others")
    assert len(sha256_of(tmp_path)) == 64
