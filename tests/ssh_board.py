"""Boards for the tests: fixtures (named in conftest.py) and what is checked of them."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edge_resnet.benchmark.result import BenchmarkSettings
from edge_resnet.devices.device import DeviceLostError, Job, Measurement, Request
from edge_resnet.devices.registry import open_device
from edge_resnet.devices.ssh_target import OPTIONS_VARIABLE
from edge_resnet.export.onnx import onnx_bytes
from edge_resnet.export.tflite import tflite_bytes
from edge_resnet.graph.graph import Graph
from tests.ssh_server import SshServer, descendants, ssh_server

QUICK = BenchmarkSettings(runs=6, block=3, settle=0, warmup_blocks=1)
# Longer than any test, so that what happens meanwhile happens during the run.
LONG = BenchmarkSettings(runs=10_000_000, block=1000, settle=0, warmup_blocks=1)
# The Python that has the runtimes, as a board's `python3`.
PYTHON = f"{Path(sys.executable).parent}:{os.environ['PATH']}"

# A package index that nobody serves.
NOWHERE = "http://127.0.0.1:9/simple"


@pytest.fixture
def ssh_board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SshServer]:
    with ssh_server(tmp_path / "board") as running:
        running.run_here(PYTHON)
        monkeypatch.setenv(OPTIONS_VARIABLE, running.options())
        yield running


@pytest.fixture(scope="session")
def ssh_jobs(tmp_path_factory: pytest.TempPathFactory, small_quantized: Graph) -> list[Job]:
    folder = tmp_path_factory.mktemp("ssh")
    (folder / "a.tflite").write_bytes(tflite_bytes(small_quantized))
    (folder / "b.onnx").write_bytes(onnx_bytes(small_quantized))
    return [Job(path.name, path) for path in sorted(folder.iterdir())]


def measured(
    uri: str,
    jobs: list[Job],
    request: Request | None = None,
    advance: Callable[[int], None] = lambda n: None,
) -> dict[str, Measurement]:
    return open_device(uri).measure(jobs, request or Request(QUICK), advance)


def check_left(server: SshServer, kinds: list[str]) -> None:
    """The board cleans up by itself where the connection broke, a moment later."""
    end = time.monotonic() + 20
    while left_there(server) != kinds:
        assert time.monotonic() < end, left_there(server)
        time.sleep(0.05)


def left_there(server: SshServer, folder: str = ".cache/edge-resnet") -> list[str]:
    """Kinds of files that are still in the folder on the board."""
    there = server.home / folder
    return sorted({str(path.relative_to(there).parent / path.suffix) for path in there.glob("*/**/*")})


def check_nothing_runs(server: SshServer) -> None:
    assert server.process is not None
    end = time.monotonic() + 20
    while descendants(server.process.pid) or strays(server):
        assert time.monotonic() < end, (descendants(server.process.pid), strays(server))
        time.sleep(0.05)


def strays(server: SshServer) -> list[str]:
    """Processes with a file of the board's in their command line, whoever is their parent now."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            text = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if f"{server.home}/" in text and path.parent.name != str(os.getpid()):
                found.append(text)
    return found


# What stays on a board that measured both.
KEPT = ["files/.onnx", "files/.py", "files/.tflite"]


def lost(uri: str, jobs: list[Job]) -> str:
    """The message, which is one line, names the device and has exit code 3."""
    with pytest.raises(DeviceLostError) as raised:
        measured(uri, jobs)
    message = str(raised.value)
    assert raised.value.exit_code == 3
    assert "\n" not in message
    assert message.startswith(uri + ":")
    return message
