"""Phones: the real adb client, and a stand-in for the phone (adb_device.py, benchmark_model_script.py)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_resnet.benchmark.result import BenchmarkSettings
from edge_resnet.devices import adb_client, adb_timing
from edge_resnet.devices.adb import open_adb
from edge_resnet.devices.arm_root import PACKAGES
from edge_resnet.devices.device import Job, Request
from edge_resnet.graph.graph import Graph
from edge_resnet.runners.litert import LiteRTRunner
from tests.adb_device import AdbDevice
from tests.adb_phone import QUICK, left_there, measure, phone_home, tool_text, use_tool
from tests.random_graphs import random_pixels


def test_a_phone_is_measured(phone: AdbDevice, phone_jobs: list[Job], tmp_path: Path) -> None:
    onnx = Job("onnx", tmp_path / "x.onnx")
    jobs, steps = [phone_jobs[0], onnx], []
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
            assert result.peak_memory_bytes > result.figures["model_memory_bytes"] > 1e6
            assert result.batch is None
            assert result.notes[0] == "on Samsung SM-S[31m921B, Qualcomm SM8650, Android 15 (API 35)"
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
    phone: AdbDevice, phone_jobs: list[Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = BenchmarkSettings(runs=4, block=2, settle=1, warmup_blocks=1)
    pushed: list[str] = []
    push = adb_client.Phone.push

    def counted(self: adb_client.Phone, local: Path, remote: str) -> None:
        pushed.append(local.name)
        push(self, local, remote)

    monkeypatch.setattr(adb_client.Phone, "push", counted)
    uri = f"adb://{phone.serial}/cpu"
    found = measure(uri, phone_jobs[:2], Request(settings))
    assert turns(phone) == "AB" + "ABAB"  # the first two are the warm-up
    assert pushed == ["benchmark_model", phone_jobs[0].path.name, phone_jobs[1].path.name]
    assert all(len(found[job.key].benchmarks) == 1 for job in phone_jobs[:2])
    pushed.clear()
    measure(uri, phone_jobs[:1], Request(QUICK))
    assert pushed == [phone_jobs[0].path.name]


def test_answers_are_those_of_litert(phone: AdbDevice, phone_jobs: list[Job], small_quantized: Graph) -> None:
    pixels = random_pixels(small_quantized, 3)
    found = measure(f"adb://{phone.serial}/cpu", phone_jobs, Request(QUICK, (), pixels))
    for job in phone_jobs:
        answers = found[job.key].answers
        assert answers is not None
        assert (answers.kind, answers.runtime) == ("measured", "LiteRT/XNNPACK")
        np.testing.assert_array_equal(answers.logits, LiteRTRunner(job.path, threads=1).logits(pixels))
    assert left_there(phone) == []


@pytest.mark.slow
def test_in_the_arm_root(
    adb_server: Callable[..., str],
    arm_root: Path,
    phone_jobs: list[Job],
    small_quantized: Graph,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same with ARM64's shell, tools, Python and LiteRT: it answers there what it answers here."""
    from edge_resnet.devices.arm_root import arm_shell

    home = tmp_path / "arm-phone"
    phone_home(home, "/root")

    def enter(command: str, environment: Mapping[str, str]) -> list[str]:
        variables = {"PYTHONPATH": PACKAGES, "OMP_NUM_THREADS": "1", **environment}
        return arm_shell(arm_root, "cortex-a76", command, variables, home)

    phone = AdbDevice(home, "/root", enter)
    tool = tmp_path / "benchmark_model"
    tool.write_text(tool_text("python3"))
    monkeypatch.setenv("EDGE_RESNET_BENCHMARK_MODEL", str(tool))
    adb_server("connect", phone.serial)
    pixels = random_pixels(small_quantized, 2)
    settings = BenchmarkSettings(runs=2, block=2, settle=1, warmup_blocks=1)
    try:
        job = phone_jobs[0]
        found = measure(f"adb://{phone.serial}/cpu", [job], Request(settings, (1,), pixels))[job.key]
        assert left_there(phone) == []
    finally:
        phone.vanish()
        adb_server("disconnect", phone.serial)
    result = found.benchmarks[0]
    assert (result.runtime, result.runs) == ("LiteRT/XNNPACK", 2), result.notes
    assert result.latency_ms is not None
    assert found.answers is not None, result.notes
    np.testing.assert_array_equal(found.answers.logits, LiteRTRunner(job.path, threads=1).logits(pixels))


def test_what_a_delegate_left_is_said(
    phone: AdbDevice,
    phone_jobs: list[Job],
    small_quantized: Graph,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use_tool(monkeypatch, tmp_path, GPU="some", NNAPI="none", new=False)
    library = tmp_path / "vendor" / "libVendorDelegate.so"
    library.parent.mkdir()
    library.write_bytes(b"a library")
    (library.parent / "libSkel.so").write_bytes(b"another")
    monkeypatch.setenv("EDGE_RESNET_EXTERNAL_DELEGATE", str(library.parent))
    monkeypatch.setenv("EDGE_RESNET_EXTERNAL_DELEGATE_OPTIONS", "backend_type:htp;log_level:1")
    uri = f"adb://{phone.serial}/gpu,npu,external"
    pixels = random_pixels(small_quantized, 1)
    found = measure(uri, phone_jobs[:1], Request(QUICK, (1,), pixels))["uint8"]
    gpu, npu, vendor = found.benchmarks
    assert gpu.runtime == "LiteRT/GPU + XNNPACK"
    assert "partly on the CPU: the GPU took 12 of 20 operators in 3 pieces" in gpu.notes[1]
    assert npu.runtime == "LiteRT/XNNPACK instead of NNAPI"
    assert "fell back to the CPU: the NPU (by NNAPI) was asked for and took no operator" in npu.notes[1]
    assert vendor.runtime == "LiteRT/libVendorDelegate.so"
    assert found.answers is not None
    assert found.answers.runtime == "LiteRT/GPU + XNNPACK"  # the first that was named answers
    started = [command for command in phone.commands if "--external_delegate_path" in command]
    folder = started[0].partition("--external_delegate_path=")[2].partition("/libVendorDelegate.so")[0]
    assert f"LD_LIBRARY_PATH={folder} ADSP_LIBRARY_PATH={folder} " in started[0]
    assert "backend_type:htp;log_level:1" in started[0]
    assert (phone.home / folder.lstrip("/") / "libSkel.so").read_bytes() == b"another"


def test_where_starting_takes_long_averages_are_said_to_be_averages(
    phone: AdbDevice, phone_jobs: list[Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adb_timing, "_MOST_STARTING", 0.0)
    settings = BenchmarkSettings(runs=8, block=4, settle=1, warmup_blocks=1)
    (result,) = measure(f"adb://{phone.serial}/cpu", phone_jobs[:1], Request(settings))["uint8"].benchmarks
    assert result.runs == 8
    assert "of the averages of 2 processes with 4 runs each, not of single inferences" in result.notes[1]


def test_several_images_at_once(phone: AdbDevice, phone_jobs: list[Job], small_quantized: Graph) -> None:
    settings = BenchmarkSettings(runs=3, block=3, settle=1, warmup_blocks=1, batch=8)
    (result,) = measure(f"adb://{phone.serial}/cpu", phone_jobs[:1], Request(settings))["uint8"].benchmarks
    assert result.batch == 8
    assert result.batch_throughput_per_s > 0
    _, height, width = small_quantized.input.shape
    assert any(f"--input_layer_shape=8,{height},{width},3" in command for command in phone.commands)


@pytest.mark.parametrize("old", [False, True])
def test_what_a_gpu_compiles_is_kept_for_the_next_process(
    phone: AdbDevice, phone_jobs: list[Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: bool
) -> None:
    unknown = "delegate_serialize_dir delegate_serialize_token" if old else ""
    use_tool(monkeypatch, tmp_path, compiles=1.0, unknown=unknown)
    monkeypatch.setattr(adb_timing, "_MOST_STARTING", 0.9)
    (result,) = measure(f"adb://{phone.serial}/gpu", phone_jobs[:1])["uint8"].benchmarks
    assert result.latency_ms is not None, result.notes
    assert result.figures["initialization_ms"] > 1000
    if old:
        assert "of the averages of 1 process with 3 runs each" in result.notes[2]
    else:
        assert "single inferences, of 1 process with" in result.notes[2]
        assert "found what the delegate had compiled before" in result.notes[3]
    assert left_there(phone) == []


def test_throttling_is_noted(
    phone: AdbDevice, phone_jobs: list[Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    def hot(command: str) -> bool:
        if "--warmup_min_secs=0.01" in command:
            (phone.home / "thermal_status").write_text("3\n")
        return False

    phone.breaks = hot
    (result,) = measure(f"adb://{phone.serial}/cpu", phone_jobs[:1])["uint8"].benchmarks
    assert "throttled: the thermal status rose from none to severe" in result.notes
    assert result.conditions["after"]["thermal_status"] == 3


def test_an_artifact_that_fails_does_not_stop_the_others(
    phone: AdbDevice, phone_jobs: list[Job], tmp_path: Path, small_quantized: Graph
) -> None:
    broken = tmp_path / "broken.tflite"
    broken.write_bytes(b"\x1c\0\0\0TFL3" + b"rubbish" * 9)
    steps: list[int] = []
    device = open_adb(f"adb://{phone.serial}/cpu")
    jobs = [Job("broken", broken), phone_jobs[0]]
    request = Request(QUICK, (1,), random_pixels(small_quantized, 2))
    found = device.measure(jobs, request, steps.append)
    assert sum(steps) == device.steps(jobs, request)
    assert found["broken"].answers is None
    timed, answered = found["broken"].benchmarks
    assert timed.latency_ms is None
    assert "broken.tflite: benchmark_model measured nothing" in timed.notes[0]
    assert "only 0 of 2 images" in answered.notes[0]
    assert found["uint8"].benchmarks[0].latency_ms is not None
    assert found["uint8"].answers is not None


@pytest.mark.parametrize(
    ("falls", "words"),
    [
        ({"hangs": "at once"}, "no answer within 2 s"),
        ({"hangs": "later"}, "no answer within 2 s"),
        ({"crashes": True}, "ended by SIGABRT"),
        ({"unknown": "output_filepath warmup_min_secs"}, "does not know --warmup_min_secs"),
    ],
)
def test_a_tool_that_does_not_do_as_asked(
    phone: AdbDevice,
    phone_jobs: list[Job],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    falls: dict[str, Any],
    words: str,
) -> None:
    use_tool(monkeypatch, tmp_path, **falls)
    settings = BenchmarkSettings(runs=12, block=12, timeout=2 if "hangs" in falls else 60)
    (result,) = measure(f"adb://{phone.serial}/cpu", phone_jobs[:1], Request(settings))["uint8"].benchmarks
    assert result.latency_ms is None
    assert words in result.notes[0]
    assert left_there(phone) == []  # and nothing runs any more: see the fixture
