"""Whole runs through the command line: what they leave, what verify sees, what bad input gets."""

from __future__ import annotations

import errno
import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from edge_resnet import pipeline
from edge_resnet.graph.nodes import Conv, IntWeights
from edge_resnet.models.cifar_resnet import CifarResNet
from edge_resnet.run_directory import read_graphs

Command = Callable[..., tuple[int, str, str]]

INT8 = ("--target", "tflite-int8", "--target", "onnx-int8", "--target", "coreml-int8")
QUICK = ("--set", "calibration.images=64", "--set", "evaluate.images=60", "--set", "benchmark.runs=10")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the demo with all int8 targets and a float one."""
    out = tmp_path_factory.mktemp("runs") / "demo"
    arguments = ["compress", "demo", *INT8, "--target", "tflite-fp32", *QUICK, "--out", str(out)]
    done = subprocess.run([sys.executable, "-m", "edge_resnet", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_a_run_leaves_what_the_contract_says(finished: Path) -> None:
    names = {entry.name for entry in finished.iterdir()}
    assert names == {
        "demo-tflite-int8.tflite", "demo-onnx-int8.onnx", "demo-coreml-int8.mlpackage",
        "demo-tflite-fp32.tflite", "report.json", "report.html", "report.md", "graph", "state",
    }  # fmt: skip
    report = json.loads((finished / "report.json").read_text())
    assert report["schema_version"] == 1
    assert {"created", "command", "recipe", "environment", "model", "baseline", "compressed", "stages"} < set(
        report
    )
    assert report["baseline"]["n"] == 60
    for artifact in report["artifacts"]:
        assert {"target", "path", "bytes", "sha256", "ranges", "parity", "accuracy", "benchmarks"} < set(
            artifact
        )
        assert artifact["accuracy"]["n"] == 60
        assert artifact["accuracy"]["top1"] > 0.9
        kind = "emulated" if "coreml" in artifact["target"] and sys.platform != "darwin" else "measured"
        assert artifact["accuracy"]["kind"] == kind
    by_target = {artifact["target"]: artifact for artifact in report["artifacts"]}
    for target in ("tflite-int8", "onnx-int8"):
        assert by_target[target]["parity"]["identical"] == 1
        assert by_target[target]["parity"]["lsb_histogram"] == {"0": 600}
        assert by_target[target]["benchmarks"][0]["latency_ms"]["p50"] > 0
    for target in ("tflite-int8", "onnx-int8", "coreml-int8"):
        ranges = by_target[target]["ranges"]
        assert ranges["checked"] == ranges["equal"] > 20
    assert by_target["tflite-fp32"]["ranges"] is None
    assert by_target["tflite-fp32"]["parity"]["top1_agreement"] == 1


def test_nothing_given_takes_the_demo(
    edge_resnet: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = edge_resnet("compress", "--target", "tflite-int8", *QUICK)
    assert code == 0, err
    assert "taking the bundled demo" in err
    paths = [Path(line) for line in out.splitlines()]
    assert [path.name for path in paths] == ["demo-tflite-int8.tflite", "report.html"]
    assert all(path.exists() and path.parent.parent == Path("runs") for path in paths)


def test_a_project_file(
    edge_resnet: Command, tmp_path: Path, image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("edge-resnet.yaml").write_text(
        "model: resnet20\ndata: images\ntargets: [onnx-int8]\nout: here\n"
        "recipe: {calibration: {images: 8}, benchmark: {runs: 0}}\n"
    )
    code, out, err = edge_resnet("compress", "--json")
    assert code == 0, err
    report = json.loads(out)
    assert report["data"]["classes"] == ["blue", "green", "red"]
    assert any("no weights were given" in note for note in report["notes"])
    assert (tmp_path / "here" / "resnet20-onnx-int8.onnx").exists()
    Path("edge-resnet.yaml").write_text("model: resnet20\ntarget: onnx-int8\n")
    code, _, err = edge_resnet("compress")
    assert (code, err.count("\n")) == (2, 2)
    assert "edge-resnet.yaml: target:" in err


def test_two_runs_write_the_same_bytes(edge_resnet: Command, finished: Path, tmp_path: Path) -> None:
    code, _, err = edge_resnet(
        "compress", "demo", *INT8, "--target", "tflite-fp32", *QUICK, "--out", tmp_path / "b"
    )
    assert code == 0, err
    before, after = (json.loads((p / "report.json").read_text()) for p in (finished, tmp_path / "b"))
    assert [a["sha256"] for a in before["artifacts"]] == [a["sha256"] for a in after["artifacts"]]
    for name in ("quantized.json", "quantized.safetensors", "float.safetensors", "probe.safetensors"):
        assert (finished / "graph" / name).read_bytes() == (tmp_path / "b" / "graph" / name).read_bytes()


def test_verify_agrees(edge_resnet: Command, finished: Path) -> None:
    code, out, err = edge_resnet("verify", finished)
    assert code == 0, err
    assert "all 4 artifacts are what their graph says" in out
    code, out, _ = edge_resnet("verify", finished, "--json")
    rows = {row["target"]: row for row in json.loads(out)["artifacts"]}
    assert code == 0
    assert rows["onnx-int8"]["identical"] == rows["tflite-int8"]["identical"] == 1
    assert rows["onnx-int8"]["top1"] > 0.9


def test_verify_without_the_data_checks_the_probe(edge_resnet: Command, run: Path) -> None:
    record = json.loads((run / "graph" / "evaluation.json").read_text())
    (run / "graph" / "evaluation.json").write_text(json.dumps(record | {"data": "/moved/away"}))
    code, out, err = edge_resnet("verify", run, "--json")
    result = json.loads(out)
    assert code == 0, err
    assert "probe images" in result["notes"][0]
    assert {row["images"] for row in result["artifacts"]} == {32}
    assert {row["top1"] for row in result["artifacts"]} == {None}
    code, _, err = edge_resnet("verify", run, "--data", "/also/nowhere")
    assert code == 2
    assert "no such image folder" in err


def _layer(run: Path) -> tuple[Conv, IntWeights]:
    node = read_graphs(run)[0].by_name["layer2.0.conv1"]
    assert isinstance(node, Conv)
    assert isinstance(node.weights, IntWeights)
    return node, node.weights


@pytest.mark.parametrize("what", ["weight", "weight scale", "activation scale", "bias"])
@pytest.mark.parametrize("target", ["tflite", "onnx", "coreml"])
def test_verify_names_a_changed_tensor(edge_resnet: Command, run: Path, target: str, what: str) -> None:
    node, weights = _layer(run)
    assert node.quant is not None
    files = {
        "tflite": run / "demo-tflite-int8.tflite",
        "onnx": run / "demo-onnx-int8.onnx",
        "coreml": run / "demo-coreml-int8.mlpackage" / "Data" / "com.apple.CoreML" / "weights" / "weight.bin",
    }
    source = read_graphs(run)[0].by_name[node.inputs[0]].quant
    assert source is not None
    bias: np.ndarray = weights.bias
    if target == "coreml":
        bias = (weights.bias.astype(np.float64) * (np.float32(source.scale) * weights.scale)).astype(
            np.float32
        )
    arranged = weights.weight.transpose(0, 2, 3, 1) if target == "tflite" else weights.weight
    pattern = {
        "weight": np.ascontiguousarray(arranged).tobytes(),
        "weight scale": weights.scale.tobytes(),
        "activation scale": np.float32(node.quant.scale).tobytes(),
        "bias": bias.tobytes(),
    }[what]
    path = files[target]
    if target == "coreml" and what == "activation scale":
        path = path.parent.parent / "model.mlmodel"
    content = bytearray(path.read_bytes())
    at = bytes(content).find(pattern)
    assert at >= 0
    content[at + 1] ^= 4
    path.write_bytes(bytes(content))
    code, out, err = edge_resnet("verify", run)
    assert code == 1
    assert "layer2.0.conv1" in err
    assert "sha256 differs" in err
    assert "all" not in out


def test_verify_of_a_missing_or_truncated_artifact(edge_resnet: Command, run: Path) -> None:
    (run / "demo-onnx-int8.onnx").unlink()
    tflite = run / "demo-tflite-int8.tflite"
    tflite.write_bytes(tflite.read_bytes()[:3000])
    shutil.rmtree(run / "demo-coreml-int8.mlpackage" / "Data")
    code, _, err = edge_resnet("verify", run)
    assert code == 1
    assert "demo-onnx-int8.onnx: missing" in err
    assert "demo-tflite-int8.tflite: damaged TFLite file" in err
    assert "not a complete Core ML package" in err


def test_verify_of_a_changed_graph(edge_resnet: Command, run: Path) -> None:
    path = run / "graph" / "quantized.json"
    path.write_text(path.read_text().replace('"zero_point": -128', '"zero_point": -127', 1))
    assert edge_resnet("verify", run)[0] in (1, 2)
    code, _, err = edge_resnet("verify", run.parent)
    assert code == 2
    assert "report.json" in err


def test_an_interrupted_run_leaves_the_old_one(
    edge_resnet: Command, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "prove", stop)
    code, _, err = edge_resnet("compress", "demo", *INT8, *QUICK, "--out", run)
    assert code == 130
    assert "interrupted" in err
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_full_disk_is_one_line(edge_resnet: Command, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}

    def full(self: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_bytes", full)
    code, _, err = edge_resnet("compress", "demo", "--target", "tflite-int8", *QUICK, "--out", run)
    assert code == 2
    assert "No space left on device" in err
    assert "Traceback" not in err
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_bad_input_is_one_line_and_exit_2(
    edge_resnet: Command, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    weights = tmp_path / "w.pt"
    torch.save(CifarResNet(20, num_classes=10).state_dict(), weights)
    (tmp_path / "file").touch()
    data = ("--data", image_folder)
    cases: list[tuple[tuple[object, ...], str]] = [
        (("compress", "demo", "--target", "tflite-int9"), "did you mean tflite-int8"),
        (("compress", "resnet20"), "no data: give --data"),
        (("compress", "resnet20", "--data", tmp_path / "nowhere"), "no such image folder"),
        (("compress", "resnet20", *data, "--weights", tmp_path / "none.pt"), "no such weights file"),
        (
            ("compress", "resnet20", *data, "--weights", weights),
            "answers 10 values but the data has 3 classes",
        ),
        (
            ("compress", "resnet20", *data, "--set", "calibration.images=0"),
            "calibration needs at least one image",
        ),
        (
            ("compress", "resnet20", *data, "--set", "calibration.image=3"),
            "did you mean 'calibration.images'",
        ),
        (
            ("compress", "resnet20", *data, "--set", "calibration.images=x"),
            "calibration.images: expected an integer",
        ),
        (("compress", "resnet20", *data, "--set", "nonsense"), "write KEY=VALUE"),
        (("compress", "resnet20", *data, "--recipe", tmp_path / "r.yaml"), "cannot read the recipe"),
        (("compress", "resnet20", *data, "--io", "int16"), "export.tflite_io"),
        (("compress", "resnet20", *data, "--io", "int8", "--target", "tflite-fp32"), "no int8 ends"),
        (("compress", "resnet20", *data, "--out", tmp_path / "file"), "cannot write the run there"),
        (("compress", "resnet20", *data, "--out", tmp_path / "file" / "x"), "cannot write the run there"),
        (("compress", "resnet20", *data, "--frobnicate"), "No such option"),
        (("verify", tmp_path), "report.json"),
        (("benchmark", tmp_path / "none.tflite"), "no such artifact"),
        (("benchmark", tmp_path / "file"), "not an artifact"),
        (("benchmark", image_folder), "holds no artifact"),
        (("inspect", tmp_path / "none.onnx"), "no such artifact"),
        (("recipes", "chocolate"), "`schema`"),
    ]
    for arguments, message in cases:
        code, out, err = edge_resnet(*arguments)
        assert code == 2, (arguments, err)
        assert message in err
        errors = err[err.index("edge-resnet: ") :]
        assert errors.count("\n") <= 2, errors
        assert not out
    assert not list((tmp_path / "runs").glob("*"))


def test_a_device_that_is_not_there_is_exit_3(edge_resnet: Command, finished: Path) -> None:
    code, _, err = edge_resnet("benchmark", finished, "--device", "adb://X")
    assert code == 3
    assert "adb://X" in err


def test_a_missing_library_is_exit_3(edge_resnet: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "coremltools" else real(name)
    )
    code, _, err = edge_resnet("compress", "demo", "--target", "coreml-int8")
    assert code == 3
    assert "pip install coremltools" in err


def test_benchmark_inspect_and_lists(edge_resnet: Command, finished: Path) -> None:
    code, out, err = edge_resnet("benchmark", finished, "--runs", 10, "--json")
    results = {Path(key).name: entries for key, entries in json.loads(out).items()}
    assert code == 0, err
    assert results["demo-tflite-int8.tflite"][0]["runs"] == 10
    assert results["demo-tflite-int8.tflite"][0]["peak_memory_bytes"] > 10_000_000
    for what in (
        finished,
        finished / "demo-tflite-int8.tflite",
        finished / "demo-coreml-int8.mlpackage",
        "resnet20",
    ):
        code, out, err = edge_resnet("inspect", what)
        assert code == 0, err
        assert "layer2.0.conv1" in out
        assert json.loads(edge_resnet("inspect", what, "--json")[1])
    assert "resnet110b" in edge_resnet("models")[1]
    schema = json.loads(edge_resnet("recipes", "schema")[1])
    assert "calibration" in schema["properties"]
    code, out, _ = edge_resnet("doctor", "--json")
    assert code == 0
    assert {"torch", "CPU", "ONNX Runtime int8"} <= {check["name"] for check in json.loads(out)}


def test_the_library_says_the_same(tmp_path: Path, image_folder: Path) -> None:
    import edge_resnet as package

    result = package.compress(
        "resnet20",
        data=image_folder,
        targets=["onnx-int8"],
        recipe={"calibration": {"images": 8}, "benchmark": {"runs": 0}},
        out=tmp_path / "run",
    )
    assert result.failures == ()
    assert result.report.model_dump(mode="json") == json.loads((tmp_path / "run" / "report.json").read_text())


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['edge-resnet', '--help']\n"
        "from edge_resnet.cli.main import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'onnx', 'onnxruntime', 'coremltools', 'pydantic'} & set(sys.modules)\n"
        "sys.exit(', '.join(heavy) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "compress" in done.stdout
