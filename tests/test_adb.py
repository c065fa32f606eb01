"""Phones: the real adb client, and a stand-in for the phone (adb_device.py, benchmark_model_script.py)."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_resnet.benchmark.result import BenchmarkSettings
from edge_resnet.devices import adb_client
from edge_resnet.devices.adb import open_adb
from edge_resnet.devices.adb_client import Adb, state_refusal
from edge_resnet.devices.device import DeviceLostError, Job, Request
from edge_resnet.errors import InputError, MissingToolError
from edge_resnet.export.tflite import IoType, tflite_bytes
from edge_resnet.graph.graph import Graph
from edge_resnet.runners.litert import LiteRTRunner
from tests import benchmark_model_script
from tests.adb_device import AdbDevice, Enter, local_shell
from tests.random_graphs import random_pixels

QUICK = BenchmarkSettings(runs=3, block=3, settle=1, warmup_blocks=1, timeout=60)
FOLDER = "data/local/tmp/edge-resnet"


@pytest.fixture(scope="module")
def adb_server() -> Iterator[Callable[..., str]]:
    """A server of its own: the user's phones and server are left alone."""
    if shutil.which("adb") is None:
        pytest.skip("adb is not installed: apt-get install adb")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]

    def adb(*arguments: str) -> str:
        done = subprocess.run(["adb", *arguments], capture_output=True, text=True, timeout=60)
        return done.stdout + done.stderr

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANDROID_ADB_SERVER_PORT", str(port))
        patch.setattr(adb_client, "_BACK_WITHIN", 1.0)
        yield adb
        adb("kill-server")


def tool_text(python: str, **falls: Any) -> str:
    source = (
        Path(benchmark_model_script.__file__).read_text().replace("FALLS: dict = {}", f"FALLS = {falls!r}")
    )
    return f"#!/bin/sh\nexec {python} - \"$@\" <<'PROGRAM'\n{source}\nPROGRAM\n"


DUMPSYS = """#!/bin/sh
case $1 in
thermalservice) cat <<END
IsStatusOverride: false
Thermal Status: $(cat {home}/thermal_status)
Cached temperatures:
\tTemperature{{mValue=99.0, mType=0, mName=CPU, mStatus=0}}
HAL Ready: true
Current temperatures from HAL:
\tTemperature{{mValue=41.5, mType=0, mName=CPU0, mStatus=0}}
\tTemperature{{mValue=57.9, mType=0, mName=CPU1, mStatus=0}}
\tTemperature{{mValue=34.351, mType=3, mName=SKIN, mStatus=0}}
Current cooling devices from HAL:
\tCoolingDevice{{mValue=0, mType=2, mName=fan}}
END
;;
battery) cat <<END
Current Battery Service state:
  AC powered: false
  USB powered: true
  status: 2
  level: 85
  temperature: 284
END
;;
esac
"""
GETPROP = """#!/bin/sh
case $1 in
ro.product.manufacturer) echo Samsung;;
ro.product.model) echo SM-S921B;;
ro.build.version.release) echo 15;;
ro.build.version.sdk) echo 35;;
ro.soc.manufacturer) echo Qualcomm;;
ro.soc.model) echo SM8650;;
ro.product.cpu.abilist) echo arm64-v8a;;
esac
"""


def phone_home(home: Path, inside: str) -> None:
    """A phone's commands and sysfs."""
    (home / "bin").mkdir(parents=True)
    for name, text in (("dumpsys", DUMPSYS.format(home=inside)), ("getprop", GETPROP)):
        (home / "bin" / name).write_text(text)
        (home / "bin" / name).chmod(0o755)
    (home / "thermal_status").write_text("0\n")
    for core in range(4):
        folder = home / f"sys/devices/system/cpu/cpu{core}/cpufreq"
        folder.mkdir(parents=True)
        (folder / "scaling_cur_freq").write_text("2000000\n")
        (folder / "scaling_max_freq").write_text("3000000\n")


@pytest.fixture
def phone(
    adb_server: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[AdbDevice]:
    """Attached, ready, and its commands run by this machine's shell."""
    home = tmp_path / "phone"
    phone_home(home, str(home))
    device = AdbDevice(home)
    tool = tmp_path / "benchmark_model"
    tool.write_text(tool_text(sys.executable))
    monkeypatch.setenv("EDGE_RESNET_BENCHMARK_MODEL", str(tool))
    assert "connected to" in adb_server("connect", device.serial)
    yield device
    device.vanish()
    adb_server("disconnect", device.serial)
    # Whatever a test started there must have been ended by us.
    left = [pid for pid in _processes() if str(home / FOLDER) in _command_line(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert left == []


def _processes() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
    except OSError:
        return ""


def left_there(phone: AdbDevice) -> list[str]:
    """Of our folder on the phone, without the programs that are kept."""
    folder = phone.home / FOLDER
    return [str(path.relative_to(folder)) for path in folder.rglob("*") if path.name != "tools" and
            path.parent.name != "tools" and path.name != "benchmark_model"]  # fmt: skip


def use_tool(monkeypatch: pytest.MonkeyPatch, folder: Path, **falls: Any) -> None:
    path = folder / "benchmark_model"
    path.write_text(tool_text(sys.executable, **falls))
    monkeypatch.setenv("EDGE_RESNET_BENCHMARK_MODEL", str(path))


@pytest.fixture
def artifacts(tmp_path: Path, small_quantized: Graph) -> list[Job]:
    jobs = []
    for io in (IoType.UINT8, IoType.INT8, IoType.FLOAT32):
        path = tmp_path / f"{io}.tflite"
        path.write_bytes(tflite_bytes(small_quantized, io))
        jobs.append(Job(str(io), path))
    return jobs


def measure(uri: str, jobs: list[Job], request: Request | None = None) -> dict[str, Any]:
    return open_adb(uri).measure(jobs, request or Request(QUICK), lambda steps: None)


def test_a_phone_is_measured(phone: AdbDevice, artifacts: list[Job], tmp_path: Path) -> None:
    onnx = Job("onnx", tmp_path / "x.onnx")
    jobs, steps = [artifacts[0], onnx], []
    device = open_adb(f"adb://{phone.serial}")
    request = Request(QUICK, (1, 2))
    found = device.measure(jobs, request, steps.append)
    assert list(found) == [job.key for job in jobs]
    assert sum(steps) == device.steps(jobs, request) == 2 * 4 * 3
    for job in jobs[:1]:
        results = found[job.key].benchmarks
        assert [(result.runtime, result.threads) for result in results] == [
            ("LiteRT/XNNPACK", 1), ("LiteRT/XNNPACK", 2), ("LiteRT/GPU", 1), ("LiteRT/NNAPI", 1),
        ]  # fmt: skip
        for result in results:
            assert (result.device, result.kind, result.runs) == (device.uri, "measured", 3)
            assert result.latency_ms is not None
            assert 0 < result.latency_ms["p50"] <= result.latency_ms["p95"] <= result.latency_ms["p99"]
            assert result.throughput_per_s == pytest.approx(1000 / result.latency_ms["mean"])
            assert result.cold_start_ms > result.figures["initialization_ms"] > 0
            assert result.peak_memory_bytes > 1e7
            assert result.notes[0] == "on Samsung SM-S921B, Qualcomm SM8650, Android 15 (API 35)"
            before = result.conditions["before"]
            assert before["celsius"] == 57.9
            assert before["battery_celsius"] == 28.4
            assert (before["battery"], before["thermal_status"]) == ("Charging", 0)
            assert before["mhz"] == [2000] * 4
    assert found["onnx"].benchmarks[0].latency_ms is None
    assert "takes .tflite" in found["onnx"].benchmarks[0].notes[0]
    assert left_there(phone) == []


def turns(phone: AdbDevice) -> str:
    """Which artifact each command that timed ran, A or B, in their order."""
    timed = [text for text in phone.commands if "--graph" in text and "warmup_min_secs=0 " not in text]
    graphs = [text.partition("--graph=")[2].split()[0] for text in timed]
    return "".join("AB"[graph != graphs[0]] for graph in graphs)


def test_artifacts_take_turns_and_are_copied_once(
    phone: AdbDevice, artifacts: list[Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = BenchmarkSettings(runs=4, block=2, settle=1, warmup_blocks=1)
    pushed: list[str] = []
    push = adb_client.Phone.push

    def counted(self: adb_client.Phone, local: Path, remote: str) -> None:
        pushed.append(local.name)
        push(self, local, remote)

    monkeypatch.setattr(adb_client.Phone, "push", counted)
    uri = f"adb://{phone.serial}/cpu"
    found = measure(uri, artifacts[:2], Request(settings))
    assert turns(phone) == "AB" + "ABAB"  # the first two are the warm-up
    assert pushed == ["benchmark_model", artifacts[0].path.name, artifacts[1].path.name]
    assert all(len(found[job.key].benchmarks) == 1 for job in artifacts[:2])
    pushed.clear()
    measure(uri, artifacts[:1], Request(QUICK))
    assert pushed == [artifacts[0].path.name]


def test_answers_are_those_of_litert(phone: AdbDevice, artifacts: list[Job], small_quantized: Graph) -> None:
    pixels = random_pixels(small_quantized, 5)
    found = measure(f"adb://{phone.serial}/cpu", artifacts, Request(QUICK, (), pixels))
    for job in artifacts:
        answers = found[job.key].answers
        assert answers is not None
        assert (answers.kind, answers.runtime) == ("measured", "LiteRT/XNNPACK")
        np.testing.assert_array_equal(answers.logits, LiteRTRunner(job.path, threads=1).logits(pixels))
    assert left_there(phone) == []
