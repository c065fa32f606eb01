"""Boards without the runtimes, without internet, and of another architecture."""

from __future__ import annotations

import ast
import os
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

from edge_resnet.benchmark.process import WORKER
from edge_resnet.devices import board, ssh_environment
from edge_resnet.devices.arm_root import PACKAGES, arm_shell
from edge_resnet.devices.device import Job, Request
from edge_resnet.devices.local import LocalDevice
from edge_resnet.devices.ssh_environment import download, wheel_platforms
from edge_resnet.graph.graph import Graph
from tests.random_graphs import random_pixels
from tests.ssh_board import (
    KEPT,
    NOWHERE,
    PYTHON,
    QUICK,
    check_nothing_runs,
    left_there,
    lost,
    measured,
)
from tests.ssh_server import SshServer


@pytest.fixture
def bare(ssh_board: SshServer) -> SshServer:
    """A board whose Python has nothing installed, and no internet."""
    base = Path(sys.base_prefix) / "bin" / f"python3.{sys.version_info.minor}"
    programs = ssh_board.folder / "bin"
    programs.mkdir()
    (programs / "python3").write_text(f'#!/bin/sh\nexec {base} -S "$@"\n')
    (programs / "python3").chmod(0o755)
    ssh_board.run_here(
        f"{programs}:/usr/bin:/bin", f"export PIP_INDEX_URL={NOWHERE} PIP_CONFIG_FILE=/dev/null"
    )
    return ssh_board


def test_no_virtual_environment(bare: SshServer, ssh_jobs: list[Job]) -> None:
    """Debian has ensurepip in a package of its own."""
    hidden = bare.folder / "hidden"
    hidden.mkdir()
    (hidden / "ensurepip.py").write_text("raise SystemExit('No module named ensurepip')")
    bare.run_here(f"{bare.folder / 'bin'}:/usr/bin:/bin", f"export PYTHONPATH={hidden}")
    message = lost(bare.uri(), ssh_jobs)
    assert f"apt install python3.{sys.version_info.minor}-venv" in message
    assert "No module named ensurepip" in message
    assert left_there(bare) == ["files/.py"]


def test_no_space_for_packages(bare: SshServer, ssh_jobs: list[Job]) -> None:
    """The folder takes our files, but not pip's 2 MB."""
    bare.run_here(f"{bare.folder / 'bin'}:/usr/bin:/bin", "ulimit -f 2000")
    assert "no space left there" in lost(bare.uri(), ssh_jobs)
    assert left_there(bare) == ["files/.py"]


@pytest.mark.slow
def test_one_runtime_that_cannot_be_had(
    bare: SshServer, ssh_jobs: list[Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The board's own Python has it in another version; nothing can be installed, from here neither."""
    bare.run_here(PYTHON, f"export PIP_INDEX_URL={NOWHERE} PIP_CONFIG_FILE=/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", NOWHERE)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    versions = {"ai-edge-litert": "99.0"}
    monkeypatch.setattr(ssh_environment, "version", lambda name: versions.get(name) or version(name))
    found = measured(bare.uri(), ssh_jobs)
    tflite, onnx = (found[job.key].benchmarks[0] for job in ssh_jobs)
    assert f"{version('ai-edge-litert')} of the board, not 99.0 as here" in tflite.notes[-1]
    assert "no internet, and this machine cannot download ai-edge-litert==99.0" in tflite.notes[-1]
    assert tflite.latency_ms is not None
    assert "not 99.0" not in " ".join(onnx.notes)
    assert left_there(bare) == KEPT


def needs_an_index(folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), "tqdm"]
    if subprocess.run(command, capture_output=True, timeout=120).returncode:
        pytest.skip("no package index can be reached from here")


@pytest.mark.slow
def test_wheels_for_another_machine(tmp_path: Path) -> None:
    """Raspberry Pi OS 11: an older Python, an older C library, and ARM."""
    needs_an_index(tmp_path)
    facts = {"python": "3.9.2", "platform": "linux-aarch64", "bits": 64, "libc": ["glibc", "2.31"]}
    folder = tmp_path / "wheels"
    download(facts, "ssh://pi", "onnxruntime", folder)
    names = {path.name.split("-")[0]: path.name for path in folder.iterdir()}
    for package in ("numpy", "onnxruntime"):
        assert "-cp39-cp39-manylinux" in names[package]
        assert names[package].endswith("aarch64.whl")


@pytest.mark.slow
def test_wheels_are_sent_to_a_board_without_internet(
    bare: SshServer, ssh_jobs: list[Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs_an_index(tmp_path)
    real = version("ai-edge-litert")
    found = measured(bare.uri(), ssh_jobs[:1])
    assert found[ssh_jobs[0].key].benchmarks[0].runtime_version == real
    environments = bare.home / ".cache/edge-resnet/environments"
    (made,) = environments.iterdir()
    assert made.name.startswith(f"ai-edge-litert-{real}-")
    first = made.stat().st_ino
    assert not list((bare.home / ".cache/edge-resnet/sessions").iterdir())
    measured(bare.uri(), ssh_jobs[:1])
    assert made.stat().st_ino == first
    # There is no such version: the newest that the board can have takes its place, and it is said.
    monkeypatch.setattr(ssh_environment, "version", lambda name: "99.0")
    result = measured(bare.uri(), ssh_jobs[:1])[ssh_jobs[0].key].benchmarks[0]
    assert result.latency_ms is not None
    assert "not 99.0 as here, which has no wheel for the board" in result.notes[-1]
    check_nothing_runs(bare)


@pytest.mark.slow
def test_an_arm_board(
    ssh_board: SshServer, arm_root: Path, ssh_jobs: list[Job], small_quantized: Graph
) -> None:
    """The ARM builds of both runtimes answer as this machine's do, to the last bit."""
    words = arm_shell(arm_root, "cortex-a72", "COMMAND", {"PYTHONPATH": PACKAGES}, ssh_board.home)
    command = shlex.join(words).replace("COMMAND", '"$SSH_ORIGINAL_COMMAND"')
    ssh_board.behave(f"exec {command}")
    pixels = random_pixels(small_quantized, 40, 5)
    found = measured(ssh_board.uri(), ssh_jobs, Request(QUICK, (1,), pixels))
    here = LocalDevice().measure(ssh_jobs, Request(QUICK, (), pixels), lambda n: None)
    for job in ssh_jobs:
        there, same = found[job.key].answers, here[job.key].answers
        assert there is not None
        assert same is not None
        np.testing.assert_array_equal(there.logits, same.logits)
        result = found[job.key].benchmarks[0]
        assert result.latency_ms is not None
        assert result.conditions["host"]["machine"] == "aarch64"
        assert "Cortex-A72" in result.notes[-1]
    assert left_there(ssh_board) == KEPT
    check_nothing_runs(ssh_board)


def test_what_travels_needs_no_new_python() -> None:
    for program in (Path(board.__file__), WORKER):
        ast.parse(program.read_text(), feature_version=(3, 9))


def test_platforms_of_wheels() -> None:
    tags = wheel_platforms("linux-aarch64", 64, "glibc", "2.36")
    assert tags[0] == "manylinux_2_36_aarch64"
    assert tags[-2:] == ["manylinux2014_aarch64", "linux_aarch64"]
    assert "manylinux_2_28_aarch64" in tags
    assert wheel_platforms("linux-aarch64", 32, "glibc", "2.31")[0] == "manylinux_2_31_armv7l"
    assert wheel_platforms("linux-x86_64", 64, "", "")[0] == "musllinux_1_2_x86_64"
