"""A phone for tests: adb's real client and server, a stand-in for the phone, artifacts to measure there."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edge_resnet.benchmark.result import BenchmarkSettings
from edge_resnet.devices import adb_client, adb_timing
from edge_resnet.devices.adb import open_adb
from edge_resnet.devices.device import Job, Request
from edge_resnet.export.tflite import IoType, tflite_bytes
from edge_resnet.graph.graph import Graph
from tests import benchmark_model_script
from tests.adb_device import AdbDevice

QUICK = BenchmarkSettings(runs=3, block=3, settle=1, warmup_blocks=1, timeout=60)
FOLDER = "data/local/tmp/edge-resnet"


@pytest.fixture(scope="module")
def adb_server() -> Iterator[Callable[..., str]]:
    """A server of its own: the user's phones and server are left alone."""
    if shutil.which("adb") is None:
        pytest.skip("adb is not installed: apt-get install adb")
    if not Path("/proc/self").exists():
        pytest.skip("the stand-in for a phone needs Linux's /proc")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]

    def adb(*arguments: str) -> str:
        done = subprocess.run(["adb", *arguments], capture_output=True, text=True, timeout=60)
        return done.stdout + done.stderr

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANDROID_ADB_SERVER_PORT", str(port))
        patch.setattr(adb_client, "_BACK_WITHIN", 1.0)
        patch.setattr(adb_timing, "_WARM_SECONDS", 0.01)
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
power) echo "  mWakefulness=Awake";;
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
ro.product.model) printf 'SM-S\\033[31m921B\\n';;
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
def phone_jobs(tmp_path: Path, small_quantized: Graph) -> list[Job]:
    jobs = []
    for io in (IoType.UINT8, IoType.INT8, IoType.FLOAT32):
        path = tmp_path / f"{io}.tflite"
        path.write_bytes(tflite_bytes(small_quantized, io))
        jobs.append(Job(str(io), path))
    return jobs


def measure(uri: str, jobs: list[Job], request: Request | None = None) -> dict[str, Any]:
    return open_adb(uri).measure(jobs, request or Request(QUICK), lambda steps: None)
