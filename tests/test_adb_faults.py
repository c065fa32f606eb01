"""Phones that are lost, full, hot, refused or not there: one line each, and nothing stays on them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edge_resnet.devices import adb_client, adb_session
from edge_resnet.devices.adb import open_adb
from edge_resnet.devices.adb_client import state_refusal
from edge_resnet.devices.device import DeviceLostError, Job, Request
from edge_resnet.devices.registry import open_device
from edge_resnet.errors import InputError, MissingToolError
from edge_resnet.graph.graph import Graph
from edge_resnet.runners.litert import LiteRTRunner
from tests.adb_device import AdbDevice
from tests.adb_phone import QUICK, left_there, measure, tool_text, use_tool
from tests.random_graphs import random_pixels


def refused(uri: str, jobs: list[Job], request: Request | None = None) -> str:
    """The one line that it ends with, which names the device; exit code 3."""
    with pytest.raises(MissingToolError) as caught:
        measure(uri, jobs, request)
    assert caught.value.exit_code == 3
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_phone_that_is_lost_keeps_what_was_found(phone: AdbDevice, phone_jobs: list[Job]) -> None:
    phone.breaks = lambda command: "--use_gpu=true" in command
    uri = f"adb://{phone.serial}"
    with pytest.raises(DeviceLostError, match=f"{uri}: lost during the run") as caught:
        measure(uri, phone_jobs[:1])
    (result,) = caught.value.partial["uint8"].benchmarks
    assert (result.runtime, result.runs) == ("LiteRT/XNNPACK", 3)
    # It is back before what it still did there has ended; the next session is not in its way.
    phone.breaks = lambda command: False


def test_a_phone_that_is_lost_keeps_the_answers_it_gave(
    phone: AdbDevice, phone_jobs: list[Job], small_quantized: Graph
) -> None:
    pixels = random_pixels(small_quantized, 3)
    # The first image goes alone; then the others, in a loop.
    phone.breaks = lambda command: "--output_filepath" in command and "-lt 1 " not in command
    with pytest.raises(DeviceLostError) as caught:
        measure(f"adb://{phone.serial}/cpu", phone_jobs[:1], Request(QUICK, (), pixels))
    answers = caught.value.partial["uint8"].answers
    assert answers is not None
    expected = LiteRTRunner(phone_jobs[0].path, threads=1).logits(pixels[:1])
    np.testing.assert_array_equal(answers.logits, expected)


def test_a_phone_that_stops_answering(
    phone: AdbDevice, phone_jobs: list[Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What hangs is the phone, not the artifact: its conditions are not told."""
    monkeypatch.setattr(adb_session, "_SHORT", 1.0)
    (phone.home / "bin" / "dumpsys").write_text("#!/bin/sh\nexec sleep 3\n")
    message = refused(f"adb://{phone.serial}/cpu", phone_jobs[:1])
    assert message == f"adb://{phone.serial}/cpu: adb shell gave no answer within 1 s"


def test_a_phone_that_restarts(
    phone: AdbDevice, phone_jobs: list[Job], adb_server: Callable[..., str]
) -> None:
    def restart(command: str) -> bool:
        if "--use_gpu=true" not in command:
            return False
        phone.boot("second")
        threading.Timer(0.2, lambda: (phone.listen(), adb_server("connect", phone.serial))).start()
        return True

    phone.breaks = restart
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adb_client, "_BACK_WITHIN", 20.0)
        message = refused(f"adb://{phone.serial}", phone_jobs[:1])
    assert message == f"adb://{phone.serial}: it restarted during the run"


def test_a_full_phone(phone: AdbDevice, phone_jobs: list[Job]) -> None:
    def fill(command: str) -> bool:
        phone.full = phone.full or "--help" in command
        return False

    phone.breaks = fill
    message = refused(f"adb://{phone.serial}", phone_jobs[:1])
    assert f"adb://{phone.serial}: no room left on the phone for uint8.tflite" in message
    assert left_there(phone) == []


def test_a_phone_that_gets_full_on_the_way(
    phone: AdbDevice, phone_jobs: list[Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_tool(monkeypatch, tmp_path, full=True)
    assert "no room left on the phone: make room in /data/local/tmp" in refused("adb://", phone_jobs[:1])


def test_no_phone_or_another_or_several(
    phone: AdbDevice, phone_jobs: list[Job], adb_server: Callable[..., str], tmp_path: Path
) -> None:
    assert open_adb("adb://").measure([], Request(QUICK), print) == {}
    message = refused("adb://R5CT00000", phone_jobs[:1])
    assert message == f"adb://R5CT00000: no phone of that serial number; there is {phone.serial}"
    second = AdbDevice(tmp_path / "second")
    adb_server("connect", second.serial)
    try:
        message = refused("adb://", phone_jobs[:1])
        assert message.startswith("adb://: 2 phones are attached (")
        assert phone.serial in message
        assert second.serial in message
    finally:
        second.vanish()
        adb_server("disconnect", second.serial)
    found = measure("adb:///cpu", phone_jobs[:1])  # the only one
    assert found["uint8"].benchmarks[0].device == "adb:///cpu"
    adb_server("disconnect", phone.serial)
    assert "no phone is attached: switch on USB debugging" in refused("adb://", phone_jobs[:1])
    assert "no phone of that serial number; no phone is attached" in refused("adb://X", phone_jobs[:1])


def test_a_phone_that_has_not_allowed_this_computer(
    adb_server: Callable[..., str], phone_jobs: list[Job], phone: AdbDevice, tmp_path: Path
) -> None:
    other = AdbDevice(tmp_path / "other")
    other.refuses = True
    try:
        adb_server("connect", other.serial)
        message = refused(f"adb://{other.serial}", phone_jobs[:1])
        assert message == f"adb://{other.serial}: {state_refusal('unauthorized')}"
        assert "tap Allow" in message
        other.vanish()
        deadline = time.monotonic() + 20
        while "offline" not in adb_server("devices"):
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert "does not answer (offline)" in refused(f"adb://{other.serial}", phone_jobs[:1])
    finally:
        other.vanish()
        adb_server("disconnect", other.serial)


def fake_adb(folder: Path, monkeypatch: pytest.MonkeyPatch, said: str, code: int = 0) -> None:
    """In place of adb: what it says of phones that cannot be attached here."""
    (folder / "path").mkdir()
    (folder / "path" / "adb").write_text(f"#!/bin/sh\ncat <<END\n{said}\nEND\nexit {code}\n")
    (folder / "path" / "adb").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'path'}:{os.environ['PATH']}")
    monkeypatch.setenv("EDGE_RESNET_BENCHMARK_MODEL", sys.executable)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (
            "0123456789ABCDEF  device usb:1-1 product:a model:A device:a transport_id:1\n"
            "0123456789ABCDEF  device usb:1-2 product:b model:B device:b transport_id:2",
            "2 phones with one serial number (usb:1-1 product:a model:A device:a transport_id:1; usb:1-2",
        ),
        (
            "0123456789ABCDEF  no permissions (user in plugdev group; are your udev rules wrong?); see "
            "[http://developer.android.com/tools/device.html] usb:1-1 transport_id:1",
            "this user may not open its USB device: install Android's udev rules",
        ),
        ("0123456789ABCDEF  recovery usb:1-1 transport_id:1", "it is in recovery mode"),
        ("0123456789ABCDEF  strange usb:1-1 transport_id:1", "it is 'strange'"),
    ],
)
def test_phones_that_cannot_be_used(
    phone_jobs: list[Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, words: str
) -> None:
    fake_adb(tmp_path, monkeypatch, f"List of devices attached\n{said}\n")
    message = refused("adb://0123456789ABCDEF", phone_jobs[:1])
    assert message.startswith("adb://0123456789ABCDEF: ")
    assert words in message


def test_no_adb_or_one_that_does_not_work(
    phone_jobs: list[Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_adb(tmp_path, monkeypatch, "* daemon not running\nadb: error: cannot bind to port", 1)
    assert "cannot list its devices: cannot bind to port" in refused("adb://", phone_jobs[:1])
    monkeypatch.setenv("PATH", str(tmp_path))
    for variable in ("ANDROID_HOME", "ANDROID_SDK_ROOT"):
        monkeypatch.delenv(variable, raising=False)
    assert "adb is not installed: `apt-get install adb`" in refused("adb://", phone_jobs[:1])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "download https://storage.googleapis.com/tensorflow-nightly-public/"),
        ("missing", "there is no file"),
        (b"PK\3\4an app", "is the benchmark app (.apk)"),
        (b"<html>404</html>", "is no Android program"),
        (
            b"\x7fELF\2\1\1" + bytes(9) + b"\2\0\x3e\0",
            "compiled for x86_64, the phone runs arm64-v8a: take LiteRT's android_aarch64_benchmark_model",
        ),
        (b"\x7fELF\2\1\1" + bytes(9) + b"\2\0\xb7\0", "does not run on the phone"),
        (b"#!/no/such/shell\n", "does not run on the phone"),
    ],
)  # fmt: skip
def test_a_tool_that_cannot_be_used(
    phone: AdbDevice,
    phone_jobs: list[Job],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    content: bytes | str | None,
    words: str,
) -> None:
    path = tmp_path / "benchmark_model"
    monkeypatch.setenv("EDGE_RESNET_BENCHMARK_MODEL", str(path))
    path.unlink()
    if content is None:
        monkeypatch.delenv("EDGE_RESNET_BENCHMARK_MODEL")
    elif isinstance(content, bytes):
        path.write_bytes(content)
    assert words in refused(f"adb://{phone.serial}", phone_jobs[:1])
    assert left_there(phone) == []


def test_the_other_benchmark_model(
    phone: AdbDevice, phone_jobs: list[Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_tool(monkeypatch, tmp_path, unknown="input_layer_value_files output_filepath use_nnapi")
    assert "is LiteRT's benchmark_model for the CompiledModel API" in refused("adb://", phone_jobs[:1])


def test_an_old_phone(phone: AdbDevice, phone_jobs: list[Job], adb_server: Callable[..., str]) -> None:
    """Before Android 7: no exit codes, and lines that end as on a terminal."""
    phone.vanish()
    adb_server("disconnect", phone.serial)
    phone.features = ""
    phone.listen()
    adb_server("connect", phone.serial)
    (result,) = measure(f"adb://{phone.serial}/cpu", phone_jobs[:1])["uint8"].benchmarks
    assert result.runs == 3
    assert result.conditions["before"]["celsius"] == 57.9
    assert left_there(phone) == []


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("adb:SERIAL", "no such device"),
        ("adb", "write adb://SERIAL"),
        ("adb://X/tpu", "no delegate 'tpu'; there are cpu, gpu, npu, external"),
        ("adb://-s", "is no serial number"),
        ("adb://a b", "is no serial number"),
    ],
)
def test_names_that_mean_nothing(uri: str, words: str) -> None:
    with pytest.raises(InputError, match=re.escape(words)):
        open_device(uri)


def test_an_interruption_cleans_up_there(phone: AdbDevice, phone_jobs: list[Job], tmp_path: Path) -> None:
    path = tmp_path / "slow" / "benchmark_model"
    path.parent.mkdir()
    path.write_text(tool_text(sys.executable, hangs="at once"))
    code = "from edge_resnet.cli.main import main; main()"
    command = [sys.executable, "-c", code, "benchmark", str(phone_jobs[0].path)]
    process = subprocess.Popen(
        [*command, "--device", f"adb://{phone.serial}/cpu"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "EDGE_RESNET_BENCHMARK_MODEL": str(path)},
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 60
        while not any("--graph" in command for command in phone.commands):
            assert time.monotonic() < deadline, process.communicate(timeout=1)
            time.sleep(0.05)
        time.sleep(0.5)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: adb gets it too
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "Traceback" not in said
    assert left_there(phone) == []
