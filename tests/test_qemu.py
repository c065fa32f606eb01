"""Real runtimes on emulated CPUs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from edge_resnet.benchmark.result import BenchmarkSettings
from edge_resnet.devices import arm_build
from edge_resnet.devices import arm_root as arm_roots
from edge_resnet.devices.arm_cpus import ARM_CPUS
from edge_resnet.devices.arm_root import PACKAGES, PYTHON, arm_command, arm_shell
from edge_resnet.devices.device import Job, Measurement, Request
from edge_resnet.devices.local import LocalDevice
from edge_resnet.devices.registry import open_device
from edge_resnet.errors import InputError, MissingToolError
from edge_resnet.export.onnx import onnx_bytes
from edge_resnet.export.tflite import tflite_bytes
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.reference import ReferenceExecutor, dequantize
from tests.random_graphs import random_pixels

SETTINGS = BenchmarkSettings(runs=1, block=1, warmup_blocks=1)
X86 = pytest.mark.skipif(
    shutil.which("qemu-x86_64-static") is None and shutil.which("qemu-x86_64") is None,
    reason="qemu-x86_64 is not installed: apt-get install qemu-user-static",
)
COUNTS = pytest.mark.skipif(
    shutil.which("qemu-aarch64") is None or shutil.which("gcc") is None,
    reason="instructions cannot be counted here: apt-get install qemu-user gcc libc6-dev",
)


@pytest.fixture
def jobs(tmp_path: Path, small_quantized: Graph) -> list[Job]:
    contents = {"small.tflite": tflite_bytes(small_quantized), "small.onnx": onnx_bytes(small_quantized)}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    return [Job(name, tmp_path / name, small_quantized) for name in contents]


def measured(uri: str, jobs: list[Job], pixels: np.ndarray | None) -> dict[str, Measurement]:
    device, request, done = open_device(uri), Request(SETTINGS, (1,), pixels), []
    found = device.measure(jobs, request, done.append)
    assert sum(done) == device.steps(jobs, request)
    return found


def expected(graph: Graph, pixels: np.ndarray) -> np.ndarray:
    assert graph.output.quant is not None
    return dequantize(ReferenceExecutor(graph).run(pixels), graph.output.quant)


def logits(measurement: Measurement) -> np.ndarray:
    assert measurement.answers is not None, measurement.benchmarks
    return measurement.answers.logits


def test_arm_answers_to_the_bit_and_counts(arm_root: Path, jobs: list[Job], small_quantized: Graph) -> None:
    pixels = random_pixels(small_quantized, 6, 1)
    measurement = measured("qemu://cortex-a76", jobs[:1], pixels)["small.tflite"]
    assert np.array_equal(logits(measurement), expected(small_quantized, pixels))
    assert measurement.answers is not None
    assert measurement.answers.kind == "emulated"
    (benchmark,) = measurement.benchmarks
    assert (benchmark.kind, benchmark.latency_ms, benchmark.runs) == ("emulated", None, 0)
    assert benchmark.runtime_version == measurement.answers.runtime_version != ""
    assert any("not latency" in note or "not counted" in note for note in benchmark.notes)


@pytest.mark.slow
@X86
def test_litert_answers_the_same_on_older_x86(jobs: list[Job], small_quantized: Graph) -> None:
    pixels = random_pixels(small_quantized, 6, 1)
    here = LocalDevice().measure(jobs[:1], Request(SETTINGS, (), pixels), lambda steps: None)
    there = measured("qemu://x86-haswell", jobs[:1], pixels)
    assert np.array_equal(logits(there["small.tflite"]), logits(here["small.tflite"]))


@pytest.mark.slow
@COUNTS
@X86
def test_resnet20_on_every_emulated_cpu(arm_root: Path, shared_data: Path, tmp_path: Path) -> None:
    """All answer as the integer reference does, but for ONNX Runtime on AVX2 without VNNI, as counts show.

    No dot products before Armv8.2, matrix products since Armv8.6, fewer instructions each time; they repeat.
    """
    from benchmarks.models import cifar, floating, integers, pixels_of

    train, test = cifar(shared_data)
    graph, preprocess = floating("resnet20", shared_data / "resnet20-cifar10.pt")
    quantized = integers(graph, pixels_of(train, preprocess, 128)[0])
    pixels, _ = pixels_of(test, preprocess, 12)
    paths = {"litert": tmp_path / "r20.tflite", "onnxruntime": tmp_path / "r20.onnx"}
    paths["litert"].write_bytes(tflite_bytes(quantized))
    paths["onnxruntime"].write_bytes(onnx_bytes(quantized))
    jobs = [Job(name, path) for name, path in paths.items()]
    different, counts = [], {}
    for cpu in ("cortex-a72", "cortex-a76", "armv9-i8mm", "x86-haswell", "x86-nehalem"):
        for name, found in measured(f"qemu://{cpu}", jobs, pixels).items():
            if not np.array_equal(logits(found), expected(quantized, pixels)):
                different.append((cpu, name))
            counts[cpu, name] = found.benchmarks[0].figures
    assert different == [("x86-haswell", "onnxruntime")]
    kinds = {place: set(figures) - {"instructions"} for place, figures in counts.items()}
    assert kinds == {
        ("cortex-a72", "litert"): set(),
        ("cortex-a72", "onnxruntime"): set(),
        ("cortex-a76", "litert"): {"sdot_instructions"},
        ("cortex-a76", "onnxruntime"): {"sdot_instructions", "udot_instructions"},
        ("armv9-i8mm", "litert"): {"smmla_instructions"},
        ("armv9-i8mm", "onnxruntime"): {"sdot_instructions", "ummla_instructions"},
        ("x86-haswell", "litert"): set(),
        ("x86-haswell", "onnxruntime"): {"pmaddubsw_instructions"},
        ("x86-nehalem", "litert"): set(),
        ("x86-nehalem", "onnxruntime"): set(),
    }
    for name in paths:
        all_of = [counts[cpu, name]["instructions"] for cpu in ("armv9-i8mm", "cortex-a76", "cortex-a72")]
        assert all_of == sorted(all_of)
    again = measured("qemu://cortex-a76", jobs[:1], None)["litert"].benchmarks[0].figures
    before = counts["cortex-a76", "litert"]
    assert again["sdot_instructions"] == before["sdot_instructions"]
    assert again["instructions"] == pytest.approx(before["instructions"], rel=0.001)


@pytest.mark.slow
def test_a_damaged_file_is_said_to_be_and_the_other_is_measured(
    arm_root: Path, jobs: list[Job], small_quantized: Graph
) -> None:
    jobs[0].path.write_bytes(b"TFL3" * 40)
    found = measured("qemu://cortex-a76", jobs, random_pixels(small_quantized, 2))
    (benchmark,) = found["small.tflite"].benchmarks
    assert found["small.tflite"].answers is None
    assert benchmark.figures == {}
    assert "small.tflite" in benchmark.notes[0]
    assert len(logits(found["small.onnx"])) == 2


@pytest.mark.parametrize("cpu", ARM_CPUS)
def test_programs_there_see_the_emulated_cpu(cpu: str, arm_root: Path) -> None:
    """/proc/cpuinfo there is what qemu tells in the auxiliary vector, by which kernels are chosen."""
    if not (arm_root / "cpus" / cpu).exists():
        pytest.skip(f"this qemu has no {cpu}")
    program = "import platform; print(platform.machine()); print(open('/proc/cpuinfo').read())"
    command = arm_command(arm_root, cpu, [PYTHON, "-c", program])
    said = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
    has = set(next(line for line in said.splitlines() if line.startswith("Features")).split()[2:])
    assert said.startswith("aarch64\n")
    assert said.count("processor") == os.cpu_count()
    assert {"fp", "asimd"} <= has
    assert ("asimddp" in has) == (cpu in ("cortex-a76", "neoverse-n1", "armv9-i8mm"))
    assert ("i8mm" in has) == (cpu == "armv9-i8mm")
    assert "sme" not in has


def test_a_shell_session_is_arm_throughout(arm_root: Path, tmp_path: Path) -> None:
    """Children of children too, files of its own, and the command's exit code."""
    script = (
        "python3 -m venv --without-pip own && printf '#!/root/own/bin/python\\nimport platform, sys\\n"
        "print(platform.machine(), sys.prefix)\\n' > it && chmod +x it && ./it && echo $0 > /tmp/x; exit 7"
    )
    done = subprocess.run(
        arm_shell(arm_root, "cortex-a72", script, home=tmp_path), capture_output=True, text=True, timeout=120
    )
    if "Operation not permitted" in done.stderr:
        pytest.skip("this system gives users no namespaces of their own")
    assert (done.returncode, done.stdout) == (7, "aarch64 /root/own\n"), done.stderr
    assert (tmp_path / "own" / "bin" / "python").is_symlink()
    assert (tmp_path / ".tmp" / "x").exists()
    script = "cat /proc/cpuinfo; python3 -c 'import numpy; print(numpy.__version__)'"
    command = arm_shell(arm_root, "cortex-a76", script, {"PYTHONPATH": PACKAGES}, tmp_path)
    said = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    assert "asimddp" in said
    assert said.splitlines()[-1] == np.__version__


@pytest.mark.parametrize("uri", ["qemu://cortex-a99", "qemu://max", "qemu://", "qemu:///usr/bin"])
def test_unknown_cpus_are_refused_with_a_list(uri: str) -> None:
    with pytest.raises(InputError, match=r"cortex-a53, .*armv9-i8mm, x86-haswell, x86-nehalem") as raised:
        open_device(uri)
    assert uri in str(raised.value)


def test_without_a_root_the_command_that_builds_it_is_named(
    jobs: list[Job], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arm_root: Path
) -> None:
    monkeypatch.setenv("EDGE_RESNET_ARM_ROOT", str(tmp_path / "none"))
    with pytest.raises(MissingToolError, match="make arm-root"):
        measured("qemu://cortex-a76", jobs, None)
    # One that was made for other runtimes would compare two versions, not two CPUs.
    old = tmp_path / "old"
    old.mkdir()
    content = json.loads((arm_root / arm_roots.MARKER).read_text())
    content["packages"]["onnxruntime"] = "1.0"
    (old / arm_roots.MARKER).write_text(json.dumps(content))
    monkeypatch.setenv("EDGE_RESNET_ARM_ROOT", str(old))
    with pytest.raises(MissingToolError, match=r"onnxruntime 1\.0, here is .*make arm-root"):
        measured("qemu://cortex-a76", jobs, None)


@pytest.mark.parametrize("cpu", ["cortex-a76", "x86-haswell"])
def test_without_qemu_the_package_is_named(
    cpu: str, jobs: list[Job], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingToolError, match=r"apt-get install qemu-user-static"):
        measured(f"qemu://{cpu}", jobs, None)


@pytest.mark.parametrize(("lacks", "says"), [("gcc", "gcc libc6-dev"), ("qemu-aarch64", "qemu-user")])
@COUNTS
def test_without_a_compiler_or_plugins_there_is_no_count(
    lacks: str,
    says: str,
    arm_root: Path,
    jobs: list[Job],
    small_quantized: Graph,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """The answers are there all the same."""
    monkeypatch.setenv("EDGE_RESNET_CACHE", str(tmp_path / "cache"))  # without a plugin that was built before
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in {"env", "gcc", "qemu-aarch64", "qemu-aarch64-static"} - {lacks}:
        (tools / name).symlink_to(shutil.which(name) or name)
    monkeypatch.setenv("PATH", str(tools))
    found = measured("qemu://cortex-a76", jobs[:1], random_pixels(small_quantized, 1))["small.tflite"]
    assert len(logits(found)) == 1
    assert found.benchmarks[0].figures == {}
    assert f"apt-get install {says}" in found.benchmarks[0].notes[1]


def test_nothing_is_built_over_something_else(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("keep")
    with pytest.raises(InputError, match="is not an ARM64 root"):
        arm_build.build_arm_root(tmp_path)
    assert (tmp_path / "mine").read_text() == "keep"


def test_a_build_without_network_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    try:
        arm_build._tools()
    except MissingToolError as error:
        pytest.skip(str(error))
    monkeypatch.setattr(arm_build, "_MIRROR", "http://127.0.0.1:9/debian")
    with pytest.raises(MissingToolError, match=r"127\.0\.0\.1:9"):
        arm_build.build_arm_root(tmp_path / "root")
    assert list(tmp_path.iterdir()) == []
