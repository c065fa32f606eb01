"""What the doctor finds, on this machine and on machines that lack something; and what a CPU is."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
from rich.console import Console

from edge_resnet import cpu, doctor
from edge_resnet.cpu import Cpu, onnx_runtime_saturates, read_cpu, saturation_warning
from edge_resnet.doctor import Check, Status, checks_to_json, examine, exit_code, print_doctor


def _by_name(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


def _without(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    found = doctor.version

    def version(name: str) -> str:
        if name in names:
            raise PackageNotFoundError(name)
        return found(name)

    monkeypatch.setattr(doctor, "version", version)


def test_this_machine_has_what_is_required() -> None:
    checks = _by_name(examine())
    assert {"Python", "torch", "ai-edge-litert", "onnxruntime"} == {
        c.name for c in checks.values() if c.required
    }
    assert all(check.status is Status.OK for check in checks.values() if check.required)
    assert {"Core ML", "scikit-learn", "torchvision", "timm", "CPU", "memory", "disk", "Chromium"} <= set(
        checks
    )
    assert exit_code(list(checks.values())) == 0
    loaded = json.loads(json.dumps(checks_to_json(list(checks.values()))))
    assert set(loaded[0]) == {"name", "status", "detail", "fix", "required"}
    assert {check["status"] for check in loaded} <= {"ok", "warn", "missing"}


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys; from edge_resnet.doctor import examine; examine()\n"
        "print([m for m in ('torch', 'onnxruntime', 'ai_edge_litert', 'coremltools', 'sklearn') "
        "if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


def test_a_missing_requirement_is_exit_code_3_and_says_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    _without(monkeypatch, "onnxruntime", "timm")
    checks = examine()
    assert _by_name(checks)["onnxruntime"].status is Status.MISSING
    console = Console(file=io.StringIO(), width=200)
    assert print_doctor(checks, console) == 3
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "onnxruntime: pip install onnxruntime" in shown
    assert 'timm: pip install "edge-resnet[timm]"' in shown


def test_a_missing_extra_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    _without(monkeypatch, "timm", "torchvision", "scikit-learn")
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    checks = examine()
    missing = {check.name for check in checks if check.status is Status.MISSING}
    assert {"timm", "torchvision", "scikit-learn", "Chromium"} <= missing
    assert exit_code(checks) == 0
    assert all(check.fix for check in checks if check.status is not Status.OK)


@pytest.mark.parametrize(
    ("probe", "reason"),
    [
        ("raise ImportError('libgomp.so.1: cannot open shared object file')", "libgomp.so.1"),
        ("import os; os._exit(7)", "exit code 7"),
        ("import time; time.sleep(60)", "no answer within"),
    ],
)
def test_a_runtime_that_does_not_load(monkeypatch: pytest.MonkeyPatch, probe: str, reason: str) -> None:
    monkeypatch.setattr(doctor, "_PROBE_SECONDS", 0.3 if "sleep" in probe else 30.0)
    check = doctor._runtime("onnxruntime", probe)
    assert check.status is Status.MISSING
    assert check.required
    assert reason in check.detail
    assert "force-reinstall" in check.fix


@pytest.mark.parametrize(
    ("system", "machine", "status", "text"),
    [
        ("linux", "aarch64", Status.MISSING, "no wheel for Linux on aarch64"),
        ("linux", "x86_64", Status.MISSING, "not installed"),
        ("darwin", "arm64", Status.MISSING, "not installed"),
    ],
)
def test_without_coremltools(
    monkeypatch: pytest.MonkeyPatch, system: str, machine: str, status: Status, text: str
) -> None:
    _without(monkeypatch, "coremltools")
    monkeypatch.setattr(doctor.sys, "platform", system)
    monkeypatch.setattr(doctor.platform, "machine", lambda: machine)
    check = doctor._coreml()
    assert check.status is status
    assert text in check.detail
    assert not check.required


def test_core_ml_runs_on_a_mac_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "version", lambda name: "9.0")
    monkeypatch.setattr(doctor.sys, "platform", "darwin")
    assert doctor._coreml().status is Status.OK
    monkeypatch.setattr(doctor.sys, "platform", "linux")
    assert doctor._coreml().status is Status.WARN


def test_saturation_memory_and_disk_are_warnings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    haswell = Cpu("Haswell", "x86_64", 2, frozenset({"avx2"}))
    monkeypatch.setattr(doctor, "this_cpu", lambda: haswell)
    limit = tmp_path / "memory.max"
    limit.write_text(f"{2**30}\n")
    monkeypatch.setattr(doctor, "_CGROUP_LIMIT", limit)
    monkeypatch.setattr(doctor, "_LEAST_FREE_BYTES", 2**70)
    for check in (doctor._saturation(), doctor._memory(), doctor._disk()):
        assert check.status is Status.WARN
        assert check.fix
    assert doctor._memory().detail == "1.0 GiB"
    limit.write_text("max\n")
    assert doctor._memory().detail != "1.0 GiB"
    assert doctor._saturation().detail == saturation_warning(haswell)


def test_details_with_brackets_are_shown_as_they_are() -> None:
    console = Console(file=io.StringIO(), width=100)
    print_doctor([Check("x", Status.WARN, "a [bold] b", "pip install [c]")], console)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "a [bold] b" in shown
    assert "pip install [c]" in shown


def test_arm_cores_have_names(tmp_path: Path) -> None:
    core = "processor : 0\nFeatures : fp asimd asimddp\nCPU implementer : {}\nCPU part : {}\n"
    info = tmp_path / "cpuinfo"
    info.write_text(core.format("0x41", "0xd05") * 2 + core.format("0x41", "0xd0b"))
    read = read_cpu(info, "aarch64")
    assert read.name == "Cortex-A55 + Cortex-A76"
    assert read.flags == {"asimddp"}
    info.write_text(core.format("0x51", "0x001"))
    assert read_cpu(info, "aarch64").name == "ARM implementer 0x51 part 0x001"


@pytest.mark.parametrize(
    ("settings", "architecture", "flags", "saturates"),
    [
        (
            {"hw.optional.arm.FEAT_DotProd": "1", "hw.optional.arm.FEAT_I8MM": "0"},
            "arm64",
            {"asimddp"},
            False,
        ),
        ({"hw.optional.avx2_0": "1", "hw.optional.avx512f": "0"}, "x86_64", {"avx2"}, True),
        (
            {"hw.optional.avx2_0": "1", "hw.optional.avx512vnni": "1"},
            "x86_64",
            {"avx2", "avx512_vnni"},
            False,
        ),
    ],
)
def test_a_mac_is_asked_through_sysctl(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    settings: dict[str, str],
    architecture: str,
    flags: set[str],
    saturates: bool,
) -> None:
    named = {"machdep.cpu.brand_string": "A Mac", **settings}
    monkeypatch.setattr(cpu, "_sysctl", lambda key: named.get(key, ""))
    read = read_cpu(tmp_path / "absent", architecture)
    assert (read.name, read.flags) == ("A Mac", flags)
    assert onnx_runtime_saturates(read) is saturates


def test_the_warning_is_one_line_that_names_the_cure() -> None:
    text = saturation_warning(Cpu("Haswell", "x86_64", 2, frozenset({"avx2"})))
    assert "\n" not in text
    assert "Haswell" in text
    assert "portable_x86: true" in text
    assert "session.x64quantprecision=1" in text


def test_what_devices_need_is_looked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("EDGE_RESNET_ARM_ROOT", str(tmp_path / "none"))
    checks = _by_name(examine())
    for name, fix in (
        ("ssh", "openssh-client"),
        ("adb", "adb"),
        ("benchmark_model", "EDGE_RESNET_BENCHMARK_MODEL"),
        ("ARM64, emulated", "qemu-user-static"),
    ):
        assert checks[name].status is Status.MISSING
        assert fix in checks[name].fix
    (tmp_path / "qemu-aarch64-static").write_text("#!/bin/sh\n")
    (tmp_path / "qemu-aarch64-static").chmod(0o755)
    assert doctor._emulated_arm().fix == "make arm-root"
