"""The Mac's device. No Mac here: its worker runs for real, in processes of its own, on a stand-in for
coremltools that has the documented attributes, and whose Core ML is a formula.
"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Callable
from dataclasses import fields
from importlib.util import find_spec
from inspect import signature
from pathlib import Path

import numpy as np
import pytest

from edge_resnet.benchmark.result import BenchmarkResult, BenchmarkSettings
from edge_resnet.devices.apple import AppleDevice, AppleProcess
from edge_resnet.devices.apple_worker import UNITS, image_size, plan_rows
from edge_resnet.devices.device import Job, Measurement, Request
from edge_resnet.devices.registry import open_device
from edge_resnet.errors import InputError, MissingToolError
from edge_resnet.export.coreml import write_coreml
from edge_resnet.export.coreml_library import import_coremltools
from edge_resnet.graph.graph import Graph
from edge_resnet.recipe import Export
from edge_resnet.targets import TARGETS

Command = Callable[..., tuple[int, str, str]]

# As documented: MLModel(path, compute_units), predict({"image": PIL image}), get_spec(),
# get_compiled_model_path(); MLComputePlan.load_from_path(path, compute_units), its structure and usages.
STAND_IN = """
import enum, os, pathlib, sys, time, types
import numpy as np

__version__ = "9.0"
print("Core ML prints what it likes")

class ComputeUnit(enum.Enum):
    ALL = 1
    CPU_AND_GPU = 2
    CPU_ONLY = 3
    CPU_AND_NE = 4

class MLModel:
    def __init__(self, path, compute_units=ComputeUnit.ALL):
        self.path, self.units = pathlib.Path(path), compute_units
        if not self.path.exists():
            raise RuntimeError("Error compiling model: no such package.")
        self.mode = self.path.read_text()
        self.__proxy__ = None if self.mode == "refused" else object()
        if self.mode == "no-engine" and compute_units is ComputeUnit.CPU_AND_NE:
            raise ValueError("ComputeUnit.CPU_AND_NE is only available on\\nmacOS >= 13.0")

    def get_spec(self):
        kind = types.SimpleNamespace(imageType=types.SimpleNamespace(height=6, width=4))
        image = types.SimpleNamespace(name="image", type=kind)
        return types.SimpleNamespace(description=types.SimpleNamespace(input=[image]))

    def get_compiled_model_path(self):
        return str(self.path) + "c"

    def predict(self, inputs):
        pixels = np.asarray(inputs["image"])
        assert pixels.shape == (6, 4, 3) and pixels.dtype == np.uint8
        if self.mode == "dies" and pixels[0, 0, 0] == 99:
            os._exit(9)
        if self.mode == "hangs":
            time.sleep(60)
        return {"logits": np.array([[pixels.mean(), pixels[0, 0, 0]]], np.float32), "classLabel": "a"}

class MLCPUComputeDevice: pass
class MLGPUComputeDevice: pass
class MLNeuralEngineComputeDevice: pass

class Plan:
    def __init__(self, units):
        names = ["const", "conv", "relu", "softmax"]
        self.operations = [types.SimpleNamespace(operator_name=name, inputs={}, blocks=[],
            outputs=[types.SimpleNamespace(name=name + "_out")]) for name in names]
        block = types.SimpleNamespace(operations=self.operations)
        functions = {"main": types.SimpleNamespace(inputs=[], block=block)}
        program = types.SimpleNamespace(functions=functions)
        self.model_structure = types.SimpleNamespace(program=program, neuralnetwork=None, pipeline=None)
        self.units = units

    def get_compute_device_usage_for_mlprogram_operation(self, operation):
        name = operation.operator_name
        if name == "const":
            return None
        engine = "NE" in self.units.name or self.units is ComputeUnit.ALL
        preferred = MLNeuralEngineComputeDevice() if engine and name != "softmax" else MLCPUComputeDevice()
        return types.SimpleNamespace(preferred_compute_device=preferred,
            supported_compute_devices=[MLCPUComputeDevice(), MLNeuralEngineComputeDevice()])

    def get_estimated_cost_for_mlprogram_operation(self, operation):
        costs = {"conv": 0.75, "relu": 0.125, "softmax": 0.125}
        return types.SimpleNamespace(weight=costs[operation.operator_name])

class MLComputePlan:
    @classmethod
    def load_from_path(cls, path, compute_units=ComputeUnit.ALL):
        assert path.endswith(".mlpackagec")
        if pathlib.Path(path[:-1]).read_text() == "no-plan":
            raise ValueError("MLComputePlan is not supported.")
        return Plan(compute_units)

models = types.SimpleNamespace(MLModel=MLModel,
    compute_plan=types.SimpleNamespace(MLComputePlan=MLComputePlan))
"""

PIXELS = np.random.default_rng(0).integers(0, 90, (7, 6, 4, 3), np.uint8)


@pytest.fixture
def mac(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine that says it is a Mac, whose new Pythons find the stand-in."""
    folder = tmp_path / "stand-in"
    folder.mkdir()
    (folder / "coremltools.py").write_text(STAND_IN)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    return tmp_path


def package(folder: Path, mode: str = "works") -> Job:
    path = folder / f"{mode}-coreml-int8.mlpackage"
    path.write_text(mode)
    return Job(mode, path)


def measured(*jobs: Job, pixels: np.ndarray | None = None, timeout: float = 60.0) -> dict[str, Measurement]:
    done: list[int] = []
    request = Request(BenchmarkSettings(runs=20, timeout=timeout), (1,), pixels)
    device = AppleDevice()
    found = device.measure(jobs, request, done.append)
    assert sum(done) <= device.steps(jobs, request)
    assert list(found) == [job.key for job in jobs]
    return found


def by_units(found: Measurement) -> dict[str, BenchmarkResult]:
    return {one.runtime.removeprefix("Core ML (").removesuffix(")"): one for one in found.benchmarks}


def test_each_choice_of_units_is_timed_with_its_plan(mac: Path) -> None:
    found = measured(package(mac), pixels=PIXELS)["works"]
    results = by_units(found)
    assert tuple(results) == UNITS
    for units, result in results.items():
        assert (result.device, result.kind, result.runs, result.threads) == ("apple", "measured", 20, 1)
        assert result.latency_ms is not None
        assert 0 < result.latency_ms["p50"] <= result.latency_ms["p95"] <= result.latency_ms["p99"]
        assert result.cold_start_ms is not None
        assert result.peak_memory_bytes is not None
        assert result.peak_memory_bytes > 2**20
        assert "coremltools 9.0" in result.runtime_version
        assert [row["operator"] for row in result.layers] == ["conv", "relu", "softmax"], units
    everything = results["ALL"]
    assert everything.layers[0] == {
        "name": "conv_out",
        "operator": "conv",
        "runs_on": "Neural Engine",
        "can_run_on": ["CPU", "Neural Engine"],
        "cost_share": 0.75,
    }
    assert everything.figures == {
        "neural_engine_operations": 2,
        "neural_engine_cost_share": 0.875,
        "cpu_operations": 1,
        "cpu_cost_share": 0.125,
    }
    assert results["CPU_ONLY"].figures == {"cpu_operations": 3, "cpu_cost_share": 1.0}


def test_what_core_ml_leaves_to_the_cpu_is_said(mac: Path) -> None:
    results = by_units(measured(package(mac))["works"])
    assert any(
        "1 of 3 operations run on the CPU" in n and "softmax" in n for n in results["CPU_AND_NE"].notes
    )
    assert any("3 of 3 operations run on the CPU, not on the GPU" in n for n in results["CPU_AND_GPU"].notes)
    assert not any("operations run on the CPU" in note for note in results["CPU_ONLY"].notes)


def test_answers_are_the_packages_logits_in_the_images_order(mac: Path) -> None:
    answers = measured(package(mac), pixels=PIXELS)["works"].answers
    assert answers is not None
    assert (answers.runtime, answers.kind) == ("Core ML (ALL)", "measured")
    expected = np.stack([[image.mean(), image[0, 0, 0]] for image in PIXELS]).astype(np.float32)
    np.testing.assert_allclose(answers.logits, expected)


def test_one_choice_that_fails_takes_no_other_with_it(mac: Path) -> None:
    old, bare = package(mac, "no-engine"), package(mac, "no-plan")
    found = measured(old, bare)
    results = by_units(found["no-engine"])
    assert results["CPU_AND_NE"].latency_ms is None
    assert "macOS >= 13.0" in results["CPU_AND_NE"].notes[0]
    assert results["ALL"].latency_ms is not None
    for result in found["no-plan"].benchmarks:
        assert result.latency_ms is not None
        assert result.layers == []
        assert any("no compute plan" in note for note in result.notes)


def test_a_package_that_is_refused_or_dies_says_why(mac: Path) -> None:
    refused = measured(package(mac, "refused"))["refused"]
    assert all("does not load the package" in one.notes[0] for one in refused.benchmarks)
    images = PIXELS.copy()
    images[5, 0, 0, 0] = 99
    dying = measured(package(mac, "dies"), pixels=images)["dies"]
    assert dying.answers is None
    assert "only 0 of 7 images" in dying.benchmarks[-1].notes[0]
    assert "ended with code 9" in dying.benchmarks[-1].notes[0]
    assert by_units(dying)["CPU_ONLY"].latency_ms is not None


def test_a_package_that_hangs_is_stopped(mac: Path) -> None:
    job = package(mac, "hangs")
    command = [sys.executable, "-m", "edge_resnet.devices.apple_worker", str(job.path), "--units", "ALL"]
    with pytest.raises(MissingToolError, match="no answer within 2 s"):
        AppleProcess(command, job.path.name, 2.0)


def test_other_files_are_not_core_mls(mac: Path) -> None:
    found = measured(Job("t", mac / "x-tflite-int8.tflite"))["t"]
    assert [one.latency_ms for one in found.benchmarks] == [None]
    assert "--device local" in found.benchmarks[0].notes[0]


def test_elsewhere_a_mac_is_asked_for(
    edge_resnet: Command, small_quantized: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    with pytest.raises(MissingToolError, match="apple: needs a Mac, and this is Linux"):
        open_device("apple").measure([], Request(BenchmarkSettings()), lambda steps: None)
    path = tmp_path / "small-tflite-int8.tflite"
    TARGETS["tflite-int8"].write(small_quantized, path, Export())
    code, out, err = edge_resnet("benchmark", path, "--device", "apple", "--device", "galaxy-s24", "--json")
    assert code == 3
    assert "edge-resnet: apple: needs a Mac" in err
    assert [entry["device"] for entry in json.loads(out)[str(path)]] == ["galaxy-s24"]
    with pytest.raises(InputError, match="called `apple`"):
        open_device("apple://this")


def test_the_stand_ins_names_are_coremltools_own(small_quantized: Graph, tmp_path: Path) -> None:
    if find_spec("coremltools") is None:
        pytest.skip("pip install coremltools (there is no wheel for Linux on ARM)")
    ct = import_coremltools()
    assert {unit.name for unit in ct.ComputeUnit} == set(UNITS)
    assert {"compute_units"} <= set(signature(ct.models.MLModel.__init__).parameters)
    assert {"get_spec", "predict", "get_compiled_model_path"} <= set(dir(ct.models.MLModel))
    plan = ct.models.compute_plan
    assert list(signature(plan.MLComputePlan.load_from_path).parameters) == ["path", "compute_units"]
    for name in (
        "get_compute_device_usage_for_mlprogram_operation",
        "get_estimated_cost_for_mlprogram_operation",
    ):
        assert list(signature(getattr(plan.MLComputePlan, name)).parameters) == ["self", "operation"]
    expected = {
        "MLModelStructure": {"program"},
        "MLModelStructureProgram": {"functions"},
        "MLModelStructureProgramFunction": {"block"},
        "MLModelStructureProgramBlock": {"operations"},
        "MLModelStructureProgramOperation": {"operator_name", "outputs"},
        "MLModelStructureProgramNamedValueType": {"name"},
        "MLComputePlanDeviceUsage": {"preferred_compute_device", "supported_compute_devices"},
        "MLComputePlanCost": {"weight"},
    }
    for name, attributes in expected.items():
        assert attributes <= {each.name for each in fields(getattr(plan, name))}, name
    devices = {"MLCPUComputeDevice", "MLGPUComputeDevice", "MLNeuralEngineComputeDevice"}
    assert devices <= set(dir(ct.models.compute_device))
    path = tmp_path / "small.mlpackage"
    write_coreml(small_quantized, path, precision="float16", labels=())
    spec = ct.models.MLModel(str(path), skip_model_load=True).get_spec()
    assert image_size(spec) == small_quantized.input.shape[1:]


def test_a_model_that_is_no_program_has_no_plan() -> None:
    from types import SimpleNamespace

    with pytest.raises(RuntimeError, match="no ML program"):
        plan_rows(SimpleNamespace(model_structure=SimpleNamespace(program=None)))


@pytest.mark.skipif(sys.platform != "darwin", reason="needs a Mac with Core ML; none was at hand")
def test_on_a_mac(small_quantized: Graph, tmp_path: Path) -> None:
    path = tmp_path / "small-coreml-int8.mlpackage"
    write_coreml(small_quantized, path, precision="float16", labels=())
    found = by_units(measured(Job("it", path))["it"])
    assert found["CPU_ONLY"].latency_ms is not None
    assert found["ALL"].layers
