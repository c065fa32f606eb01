"""Boards by ssh: the system's OpenSSH against a real sshd on loopback, and boards that cannot be used."""

from __future__ import annotations

import os
import shutil
import sys

import numpy as np
import pytest

from edge_resnet.devices.device import Job, Request
from edge_resnet.devices.local import LocalDevice
from edge_resnet.devices.registry import open_device
from edge_resnet.devices.ssh_target import OPTIONS_VARIABLE, parse_target
from edge_resnet.errors import InputError
from edge_resnet.graph.graph import Graph
from tests.random_graphs import random_pixels
from tests.ssh_board import (
    KEPT,
    PYTHON,
    QUICK,
    check_nothing_runs,
    left_there,
    lost,
    measured,
)
from tests.ssh_server import SshServer


def test_measures_and_answers_as_here(
    ssh_board: SshServer, ssh_jobs: list[Job], small_quantized: Graph
) -> None:
    pixels = random_pixels(small_quantized, 60, 3)
    done: list[int] = []
    request = Request(QUICK, (1, 2), pixels)
    device = open_device(ssh_board.uri())
    (ssh_board.home / "json.py").write_text("raise SystemExit('of another subject')")
    found = device.measure(ssh_jobs, request, done.append)
    here = LocalDevice().measure(ssh_jobs, Request(QUICK, (), pixels), lambda n: None)
    assert sum(done) == device.steps(ssh_jobs, request) == 2 * (2 * QUICK.runs + len(pixels))
    for job in ssh_jobs:
        there, same = found[job.key].answers, here[job.key].answers
        assert there is not None
        assert same is not None
        np.testing.assert_array_equal(there.logits, same.logits)
        assert (there.kind, there.runtime_version) == ("measured", same.runtime_version)
        assert [result.threads for result in found[job.key].benchmarks] == [1, 2]
        for result in found[job.key].benchmarks:
            assert (result.device, result.kind, result.runs) == (ssh_board.uri(), "measured", QUICK.runs)
            assert result.latency_ms is not None
            assert result.conditions["host"]["python"] == sys.version.split()[0]
            assert "before" in result.conditions
            assert "cores" in result.notes[-1]
    # Images and all else of the session are gone; what may travel once stays.
    assert left_there(ssh_board) == KEPT
    check_nothing_runs(ssh_board)


def test_files_travel_once(ssh_board: SshServer, ssh_jobs: list[Job]) -> None:
    measured(ssh_board.uri(), ssh_jobs)
    files = ssh_board.home / ".cache/edge-resnet/files"
    first = {path.name: path.stat().st_ino for path in files.iterdir()}
    spoiled = next(path for path in files.iterdir() if path.suffix == ".onnx")
    spoiled.write_bytes(spoiled.read_bytes()[:-1] + b"?")  # a card that forgets
    unused, users = files / f"{'0' * 64}.tflite", files / "holiday.jpg"
    for path in (unused, users):
        path.write_bytes(b"x")
        os.utime(path, (0, 0))
    measured(ssh_board.uri(), ssh_jobs)
    second = {path.name: path.stat().st_ino for path in files.iterdir()}
    assert list(first) != []
    assert {name for name in first if first[name] != second.get(name)} == {spoiled.name}
    assert set(second) == {*first, users.name}


@pytest.mark.parametrize("shell", ["sh", "bash", "busybox sh", "zsh", "tcsh", "fish"])
def test_login_shells_and_folders(ssh_board: SshServer, ssh_jobs: list[Job], shell: str) -> None:
    if shutil.which(shell.split(maxsplit=1)[0]) is None:
        pytest.skip(f"no {shell} here: apt-get install {shell.split(maxsplit=1)[0]}")
    ssh_board.run_here(PYTHON, shell=shell)
    job = ssh_jobs[0]
    found = measured(ssh_board.uri("/~/my%20boards/it's%20$HOME%5C"), [job])[job.key].benchmarks[0]
    assert found.latency_ms is not None, found.notes
    assert left_there(ssh_board, "my boards/it's $HOME\\") == ["files/.py", "files/.tflite"]
    assert not (ssh_board.home / ".cache/edge-resnet").exists()


def test_more_sessions_than_the_server_allows_in_a_connection(
    ssh_board: SshServer, ssh_jobs: list[Job]
) -> None:
    ssh_board.stop()
    ssh_board.start("MaxSessions 2")
    many = [Job(f"{index}", ssh_jobs[index % 2].path) for index in range(4)]
    found = measured(ssh_board.uri(), many)
    assert all(measurement.benchmarks[0].latency_ms is not None for measurement in found.values())
    check_nothing_runs(ssh_board)


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("ssh://", "not the name of a host"),
        ("ssh://-oProxyCommand=touch", "not the name of a host"),
        ("ssh://-l@host", "not the name of a user"),
        ("ssh://@host", "not the name of a user"),
        ("ssh://host:ssh", "'ssh' is not a port"),
        ("ssh://host:", "'' is not a port"),
        ("ssh://host:0", "'0' is not a port"),
        ("ssh://host:99999999999999999999", "is not a port"),
        ("ssh://host:٢٢", "is not a port"),
        ("ssh://me:secret@host", "passwords are not taken"),
        ("ssh://a host", "not the name of a host"),
        ("ssh://host;reboot", "not the name of a host"),
        ("ssh://fe80::1", "brackets"),
        ("ssh://host/a%0Ab", "unprintable"),
        ("ssh:host", "no such device"),
    ],
)
def test_a_bad_uri_is_the_users_mistake(uri: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        open_device(uri)


def test_what_a_uri_says() -> None:
    target = parse_target("ssh://me@pi.local:2222/~/x%20y/")
    assert (target.host, target.user, target.port, target.folder) == ("pi.local", "me", 2222, "~/x y")
    assert target.login == "-p 2222 me@pi.local"
    assert target.arguments == ["-l", "me", "-p", "2222", "--", "pi.local"]
    plain = parse_target("ssh://[fe80::1%eth0]")
    assert (plain.host, plain.user, plain.port, plain.folder) == (
        "fe80::1%eth0", None, None, "~/.cache/edge-resnet",
    )  # fmt: skip
    assert parse_target("ssh://host/").folder == "~/.cache/edge-resnet"


@pytest.mark.parametrize("options", ["host reboot", "-o", "-N", "'-i", "-i a -- x"])
def test_options_that_are_not_taken(options: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OPTIONS_VARIABLE, options)
    with pytest.raises(InputError, match=OPTIONS_VARIABLE):
        open_device("ssh://host")


def test_nobody_there(ssh_board: SshServer, ssh_jobs: list[Job]) -> None:
    ssh_board.stop()
    assert "unreachable" in lost(ssh_board.uri(), ssh_jobs)
    assert "no host of that name" in lost("ssh://no-such-host.invalid", ssh_jobs)


def test_host_keys(ssh_board: SshServer, ssh_jobs: list[Job]) -> None:
    ssh_board.change_host_key()
    message = lost(ssh_board.uri(), ssh_jobs)
    assert "host key has changed" in message
    assert f"ssh-keygen -R '[127.0.0.1]:{ssh_board.port}'" in message
    (ssh_board.folder / "known_hosts").write_text("")
    message = lost(ssh_board.uri(), ssh_jobs)
    assert "not known yet" in message
    assert f"`ssh -p {ssh_board.port} 127.0.0.1`" in message
    ssh_board.trust()
    measured(ssh_board.uri(), ssh_jobs[:1])


def test_login_refused(ssh_board: SshServer, ssh_jobs: list[Job], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OPTIONS_VARIABLE, ssh_board.options("other_key"))
    assert "login refused" in lost(ssh_board.uri(), ssh_jobs)


def test_no_python(ssh_board: SshServer, ssh_jobs: list[Job]) -> None:
    programs = ssh_board.folder / "bin"
    programs.mkdir()
    for name in ("sh", "cat"):
        (programs / name).symlink_to(shutil.which(name) or "")
    ssh_board.run_here(str(programs))
    assert "there is no Python there" in lost(ssh_board.uri(), ssh_jobs)
    (programs / "python3").write_text("#!/bin/sh\n[ $1 = --version ] && echo Python 3.8.10\nexit 1\n")
    (programs / "python3").chmod(0o755)
    assert "too old (Python 3.8.10)" in lost(ssh_board.uri(), ssh_jobs)
    # Beside an old one, a newer one is found.
    (programs / "python3.11").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (programs / "python3.11").chmod(0o755)
    measured(ssh_board.uri(), ssh_jobs[:1])


def test_a_shell_that_talks(ssh_board: SshServer, ssh_jobs: list[Job]) -> None:
    ssh_board.run_here(PYTHON, "echo Welcome to my board")
    assert "prints 'Welcome to my board'" in lost(ssh_board.uri(), ssh_jobs)
    ssh_board.behave("echo This account is closed >&2; exit 1")
    assert "the connection failed: This account is closed" in lost(ssh_board.uri(), ssh_jobs)
    check_nothing_runs(ssh_board)


def test_a_folder_that_cannot_be(ssh_board: SshServer, ssh_jobs: list[Job]) -> None:
    (ssh_board.home / "file").write_text("")
    assert "cannot be used there" in lost(ssh_board.uri("/~/file/x"), ssh_jobs)


def test_a_full_disk(ssh_board: SshServer, ssh_jobs: list[Job]) -> None:
    small = ssh_board.home / "small"
    small.mkdir()
    ssh_board.run_here(PYTHON, "ulimit -f 4")  # files of 2 or 4 KB at most, whatever file system it is
    message = lost(ssh_board.uri("/~/small"), ssh_jobs)
    assert "no space left there" in message
    assert not [path for path in small.rglob("*") if path.is_file()]
    check_nothing_runs(ssh_board)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system takes root's rights")
def test_a_full_file_system(ssh_board: SshServer, ssh_jobs: list[Job]) -> None:
    small = ssh_board.home / "small"
    small.mkdir()
    ssh_board.behave(
        f"export HOME={ssh_board.home} PATH={PYTHON}\n"
        'exec unshare -m sh -c \'mount -t tmpfs -o size=24k none "$HOME/small" '
        '&& exec sh -c "$SSH_ORIGINAL_COMMAND"\''
    )
    message = lost(ssh_board.uri("/~/small"), ssh_jobs)
    assert "no space left there" in message
    assert "MiB free" in message
