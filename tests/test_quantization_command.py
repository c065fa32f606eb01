"""Quantization through the command line: what a run leaves, goes on from, and says of bad input."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from PIL import Image

from edge_resnet.data.preprocess import Preprocess
from edge_resnet.models.zoo import ZOO
from edge_resnet.training import loop
from edge_resnet.verify.readback_tflite import read_tflite

Command = Callable[..., tuple[int, str, str]]

TARGETS = ("--target", "tflite-int8", "--target", "onnx-int8")


def settings(**values: object) -> list[str]:
    """--set for each; `qat__epochs` is qat.epochs. What is not given is small."""
    small = {
        **{"calibration__images": 64, "evaluate__images": 60, "evaluate__step_images": 60},
        **{"benchmark__runs": 0, "qat__flip": "false", "qat__crop_padding": 1, "qat__epochs": 1},
    }
    chosen = {**small, **values}
    return [word for key, value in chosen.items() for word in ("--set", f"{key.replace('__', '.')}={value}")]


def compressed(edge_resnet: Command, out: Path, *arguments: object, code: int = 0) -> dict[str, Any]:
    """The report of a run of the demo."""
    ended, _, err = edge_resnet("compress", "demo", *arguments, "--out", out)
    assert ended == code, err
    report: dict[str, Any] = json.loads((out / "report.json").read_text())
    return report


def refused(edge_resnet: Command, out: Path, *arguments: object, code: int = 2) -> str:
    """What a command that must fail says, in one line; it leaves no file."""
    before = contents(out)
    ended, stdout, err = edge_resnet("compress", *arguments, "--out", out)
    assert (ended, stdout) == (code, "")
    (line,) = (line for line in err.splitlines() if line.startswith("edge-resnet: "))
    assert err.endswith(f"{line}\n")
    assert contents(out) == before
    return line


def contents(out: Path) -> dict[str, bytes]:
    """All files but what stages made and keep for the next run, whatever became of this one."""
    files = {str(p.relative_to(out)): p for p in sorted(out.rglob("*")) if p.is_file()}
    return {name: p.read_bytes() for name, p in files.items() if not name.startswith("state/stages/")}


def artifacts(out: Path) -> dict[str, bytes]:
    """All that a run leaves but its report and its checkpoints, which hold times."""
    return {n: c for n, c in contents(out).items() if not n.startswith(("report", "state"))}


def checkpoint(out: Path) -> Path:
    return out / "state" / "qat" / "checkpoint.safetensors"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of QAT, on portable weights."""
    out = tmp_path_factory.mktemp("runs") / "demo"
    arguments = ["compress", "demo", *TARGETS, *settings(portable_x86="true"), "--out", str(out)]
    done = subprocess.run([sys.executable, "-m", "edge_resnet", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


def test_qat_leaves_one_set_of_integers_and_says_how_it_came_about(trained: Path) -> None:
    report = json.loads((trained / "report.json").read_text())
    quantization = report["quantization"]
    assert [(step["name"], step["n"]) for step in quantization["steps"]] == [("ptq", 60), ("qat", 60)]
    assert all(step["top1"] > 0.9 for step in quantization["steps"])
    (training,) = quantization["training"]
    assert (training["name"], len(training["epochs"]), training["resumed_at"]) == ("qat", 1, [])
    assert training["losses"][-1][0] == 10  # 1,347 images in batches of 128
    assert training["images"] == 1280
    assert quantization["portable_x86"] is True
    for artifact in report["artifacts"]:
        assert artifact["ranges"]["checked"] == artifact["ranges"]["equal"] > 20
        assert (artifact["parity"]["identical"], artifact["accuracy"]["n"]) == (1, 60)
    (cross,) = report["artifacts"][1]["cross_parity"]
    assert (cross["identical"], cross["n"]) == (1, 60)
    page = (trained / "report.md").read_text()
    assert "| qat | 1 epoch, fixed scales, batch norm folded |" in page
    assert "### Quantization-aware training" in page


def test_portable_weights_are_within_seven_bits_in_both_files(trained: Path) -> None:
    model = onnx.load(trained / "demo-onnx-int8.onnx")
    arrays = [numpy_helper.to_array(tensor) for tensor in model.graph.initializer]
    weights = {"onnx": [array for array in arrays if array.dtype == np.int8 and array.ndim > 1]}
    read = read_tflite(trained / "demo-tflite-int8.tflite").weights.values()
    weights["tflite"] = [stored.weight for stored in read]
    for found in weights.values():
        assert len(found) == 8
        assert max(int(np.abs(array.astype(int)).max()) for array in found) == 63


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def test_what_is_trained_is_loaded_and_another_recipe_refused(edge_resnet: Command, run: Path) -> None:
    first = artifacts(run)
    report = compressed(edge_resnet, run, *TARGETS, *settings(portable_x86="true"))
    assert artifacts(run) == first
    assert {stage["name"]: stage["resumed"] for stage in report["stages"]}["qat"] is True
    (training,) = report["quantization"]["training"]
    assert training["resumed_at"] == [10]
    assert report["quantization"]["steps"][1]["seconds"] >= training["seconds"]
    assert "loaded from the checkpoint of an earlier run" in (run / "report.md").read_text()
    for change in ({"qat__learning_rate": 0.001}, {"portable_x86": "false"}):
        said = refused(edge_resnet, run, "demo", *settings(**{"portable_x86": "true", **change}))
        assert f"{checkpoint(run)}: the checkpoint of another model, recipe or data set" in said


def test_quantized_sources_are_trained_with_requantize_only(
    edge_resnet: Command, trained: Path, tmp_path: Path
) -> None:
    for name in ("demo-tflite-int8.tflite", "demo-onnx-int8.onnx"):
        given = (trained / name, "--data", "demo")
        said = refused(edge_resnet, tmp_path / "kept", *given, *settings())
        assert "the model came quantized" in said
        assert "--requantize" in said
        out = tmp_path / name
        epochs = 1 if name.endswith(".tflite") else 0
        anew = ("--requantize", *TARGETS, *settings(qat__epochs=epochs), "--out", out)
        code, _, err = edge_resnet("compress", *given, *anew)
        assert code == 0, err
        report = json.loads((out / "report.json").read_text())
        assert [step["name"] for step in report["quantization"]["steps"]] == ["ptq", "qat"][: 1 + epochs]
        assert all(artifact["accuracy"]["top1"] > 0.95 for artifact in report["artifacts"])


def test_repairs_are_steps_of_the_report(edge_resnet: Command, tmp_path: Path) -> None:
    small = settings(qat__epochs=0, repair__rounding__steps=3)
    report = compressed(edge_resnet, tmp_path / "run", "--recipe", "ptq-repair", *small)
    steps = report["quantization"]["steps"]
    assert [step["name"] for step in steps] == ["ptq", "equalize", "learned rounding", "bias correction"]
    assert all(step["top1"] > 0.95 and step["sqnr_db"] > 15 for step in steps)


# Of a quantized teacher, the floats that it stands for are asked.
@pytest.mark.parametrize("teacher", [pytest.param("demo", marks=pytest.mark.slow), "demo-tflite-int8.tflite"])
def test_a_teacher_is_named_in_the_report(
    edge_resnet: Command, trained: Path, tmp_path: Path, teacher: str
) -> None:
    named = trained / teacher if Path(teacher).suffix else teacher
    small = settings(sensitivity__images=0)
    report = compressed(edge_resnet, tmp_path / "run", "--recipe", "qat-distill", "--teacher", named, *small)
    assert report["quantization"]["training"][0]["teacher"] == "demo"
    assert report["artifacts"][0]["accuracy"]["top1"] > 0.95


def test_teachers_that_cannot_teach(edge_resnet: Command, tmp_path: Path) -> None:
    """Told before any work: nothing is trained, calibrated or even imported before."""
    out, distil = tmp_path / "run", ("demo", "--recipe", "qat-distill", *settings())
    weights = tmp_path / "four.pt"
    torch.save(ZOO["resnet20"].build(4).state_dict(), weights)
    large = tmp_path / "large.onnx"
    torch.manual_seed(0)
    _write_onnx(large, size=48, classes=10)
    for arguments, message in (
        (("demo", "--teacher", "demo", *settings()), "the recipe has no distillation"),
        ((*distil, "--teacher-weights", weights), "--teacher-weights without --teacher"),
        ((*distil, "--teacher", "resnet20"), "--teacher resnet20: no weights; give --teacher-weights FILE"),
        ((*distil, "--teacher", "resnet20", "--teacher-weights", weights), "the data has 10 classes"),
        ((*distil, "--teacher", large), "must take the same images as demo: "),
    ):
        assert message in refused(edge_resnet, out, *arguments)
    assert not out.exists()


def _write_onnx(path: Path, size: int, classes: int) -> None:
    from edge_resnet.export.onnx import onnx_bytes
    from edge_resnet.frontends.torch_models import open_torch_model

    preprocess = Preprocess((size, size), (0.5,) * 3, (0.5,) * 3)
    graph = open_torch_model("resnet20", None, classes, 0).graph(preprocess)
    from edge_resnet.graph.passes import fold_normalization_std, simplify

    path.write_bytes(onnx_bytes(fold_normalization_std(simplify(graph))))


def test_divergence_names_step_epoch_and_rate_and_keeps_the_last_good_checkpoint(
    edge_resnet: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "_CHECKPOINT_SECONDS", -1.0)  # after each step
    out = tmp_path / "run"
    code, _, err = edge_resnet("compress", "demo", *settings(qat__learning_rate=1e6), "--out", out)
    assert code == 2
    (said,) = (line for line in err.splitlines() if line.startswith("edge-resnet: "))
    assert "training diverged: " in said
    assert " (epoch 1); lower qat.learning_rate (now 1e+06)" in said
    step = int(said.split(" at step ")[1].split()[0])
    assert step > 1
    assert f"the checkpoint of step {step - 1} is kept in {checkpoint(out)}" in said
    assert [path.name for path in checkpoint(out).parent.iterdir()] == ["checkpoint.safetensors"]
    assert not list(out.glob("*.tflite"))


def test_training_that_made_it_worse_is_told(edge_resnet: Command, tmp_path: Path) -> None:
    report = compressed(edge_resnet, tmp_path / "run", *settings(qat__learning_rate=3))
    (note,) = (note for note in report["notes"] if "training made the integers worse" in note)
    assert "lower qat.learning_rate (now 3)" in note


def test_no_space_in_mid_training(
    edge_resnet: Command, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file size limit: the third checkpoint's write fails half-way, as on a full disk."""
    monkeypatch.setattr(loop, "_CHECKPOINT_SECONDS", -1.0)
    out, written = tmp_path / "run", loop.Checkpoints.write
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def write(self: loop.Checkpoints, module: Any, position: Any, *state: Any) -> None:
        if position.step == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        written(self, module, position, *state)

    arguments = ("compress", "demo", *TARGETS, *settings(portable_x86="true"), "--out", out)
    with monkeypatch.context() as patched:
        patched.setattr(loop.Checkpoints, "write", write)
        try:
            code, _, err = edge_resnet(*arguments)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, hard))
    assert code == 2
    assert "cannot write the checkpoint: " in err.splitlines()[-1]
    assert list(contents(out)) == ["state/qat/checkpoint.safetensors"]
    report = compressed(edge_resnet, out, *arguments[2:-2])
    assert report["quantization"]["training"][0]["resumed_at"] == [2]
    assert artifacts(out) == artifacts(trained)


def picture_folder(folder: Path, pattern: str) -> Path:
    """One colour everywhere. `pattern` has {split}, {label} and {index}."""
    for split in ("train", "val"):
        for number in range(20):
            path = folder / pattern.format(split=split, label=number % 10, index=number)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (32, 32), (120, 7, 200)).save(path)
    return folder


def test_images_of_one_colour_work_and_are_named(edge_resnet: Command, tmp_path: Path) -> None:
    data = picture_folder(tmp_path / "plain", "{split}/{label}/{index}.png")
    report = compressed(edge_resnet, tmp_path / "run", "--data", data, *settings())
    expected = "all 20 calibration images are one constant colour (120, 7, 200)"
    assert any(note.startswith(expected) for note in report["notes"])
    assert report["artifacts"][0]["parity"]["identical"] == 1


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("val/{label}/{index}.png", "training needs images apart from those that accuracy is measured on"),
        ("{label}/{index}.png", "training needs images apart from those that accuracy is measured on"),
        ("{split}/{index}.png", "the images lie in train, val without their classes"),
        ("{split}{index}.png", "the images are not in {train,val|test}/CLASS folders"),
    ],
)
def test_data_that_cannot_be_trained_on(
    edge_resnet: Command, tmp_path: Path, pattern: str, message: str
) -> None:
    data = picture_folder(tmp_path / "images", pattern)
    said = refused(edge_resnet, tmp_path / "run", "demo", "--data", data, *settings())
    assert message in said
    assert str(data) in said


def test_what_is_not_there_is_told_before_any_work(
    edge_resnet: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    out = tmp_path / "run"
    said = refused(edge_resnet, out, "demo", *settings(qat__device="cuda"), code=3)
    assert "qat.device=cuda: this torch sees no CUDA device" in said
    said = refused(edge_resnet, out, "demo", *settings(), "--devices", 129)
    assert "128 images a step are too few for 129 processes" in said
    assert not out.exists()


def test_max_drop_tells_which_layers_stay_in_float(edge_resnet: Command, tmp_path: Path) -> None:
    small = settings(qat__epochs=0, sensitivity__images=60)
    out = tmp_path / "run"
    code, _, err = edge_resnet("compress", "demo", "--max-drop", "0.5", *small, "--out", out)
    assert code == 0
    assert "0.5 points may be lost (sensitivity.max_drop)" in " ".join(err.split())
    report = json.loads((out / "report.json").read_text())
    sensitivity = report["quantization"]["sensitivity"]
    assert (sensitivity["max_drop"], sensitivity["n"]) == (0.5, 60)
    assert len(sensitivity["layers"]) > 8
    kept = [layer["name"] for layer in sensitivity["layers"] if layer["kept_float"]]
    assert kept or "no layer is kept in float" in sensitivity["notes"][0]


def test_without_nncf_nothing_is_begun(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util\n"
        "found = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *more: None if name == 'nncf' else found(name, *more)\n"
    )
    out = tmp_path / "run"
    arguments = ["compress", "demo", "--quantizer", "nncf", *settings(qat__epochs=0), "--out", str(out)]
    ended = subprocess.run(
        [sys.executable, "-m", "edge_resnet", *arguments],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (3, "", 1)
    assert "pip install 'edge-resnet[nncf]'" in ended.stderr
    assert not out.exists()


def command(out: Path, *more: str) -> list[str]:
    arguments = ["compress", "demo", *TARGETS, *settings(qat__epochs=4, qat__batch=16), *more]
    return [sys.executable, "-m", "edge_resnet", *arguments, "--out", str(out)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [{}, {"qat__scales": "learned", "qat__batch_norm": "trained"}, {"qat__scales": "moving-average"}],
)
def test_kill_9_and_the_same_command_again(tmp_path: Path, change: dict[str, str]) -> None:
    more = [word for key, value in change.items() for word in ("--set", f"{key.replace('__', '.')}={value}")]
    whole, out = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(command(whole, *more), check=True, capture_output=True)
    process = subprocess.Popen(command(out, *more), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 600
    while not checkpoint(out).exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.1)  # in the middle of an epoch
    process.kill()
    process.wait()
    assert not (out / "report.json").exists()
    subprocess.run(command(out, *more), check=True, capture_output=True)
    assert artifacts(out) == artifacts(whole)
    report = json.loads((out / "report.json").read_text())
    assert {stage["name"]: stage["resumed"] for stage in report["stages"]}["qat"] is True
    assert 0 < report["quantization"]["training"][0]["resumed_at"][0] < 4 * 84


@pytest.mark.slow
def test_two_processes_train_what_one_trains(tmp_path: Path) -> None:
    exact = ("--set", "qat.precision=float32")
    curves = []
    for name, devices in (("one", "1"), ("two", "2")):
        out = tmp_path / name
        subprocess.run(command(out, *exact, "--devices", devices), check=True, capture_output=True)
        report = json.loads((out / "report.json").read_text())
        curves.append(np.array(report["quantization"]["training"][0]["losses"]))
        assert report["artifacts"][0]["parity"]["identical"] == 1
    assert curves[0].shape == curves[1].shape == (168, 2)
    np.testing.assert_allclose(curves[0][:20], curves[1][:20], rtol=1e-3)
    # A weight at the edge of two integers may fall on either side, and from there on rounding differs.
    np.testing.assert_allclose(curves[0], curves[1], rtol=0.1, atol=0.02)
