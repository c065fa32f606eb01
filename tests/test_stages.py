"""The first stages of a run, through the command line: files as models, training by recipe, import check."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from edge_resnet.compression.nncf_task import NncfTask
from edge_resnet.data.images import open_images
from edge_resnet.data.preprocess import Preprocess
from edge_resnet.distillation import Distiller
from edge_resnet.errors import InputError, VerificationError
from edge_resnet.files import sha256_of
from edge_resnet.frontends.sources import import_graph, open_model, resolve_preprocess
from edge_resnet.frontends.torch_export import graph_from_module
from edge_resnet.graph.float_executor import FloatExecutor
from edge_resnet.graph.nodes import Conv, FloatWeights, Input
from edge_resnet.models.cifar_resnet import CifarResNet
from edge_resnet.recipe import Qat, Train
from edge_resnet.training import FloatTask, fit
from edge_resnet.verify.import_check import check_import, random_images

Command = Callable[..., tuple[int, str, str]]

RECIPES = Path(__file__).resolve().parent.parent / "recipes"
MEAN = STD = (0.5, 0.5, 0.5)
QUICK = (
    *("--set", "calibration.images=24", "--set", "evaluate.images=15", "--set", "benchmark.runs=0"),
    *("--target", "tflite-int8"),
)
NORMALIZED = ("--set", "preprocess.mean=[0.5,0.5,0.5]", "--set", "preprocess.std=[0.5,0.5,0.5]")


@pytest.fixture(scope="module")
def small_module() -> torch.nn.Module:
    torch.manual_seed(0)
    return CifarResNet(8, 3).eval()


def _report(out: Path) -> dict:
    return json.loads((out / "report.json").read_text())


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_a_file_is_a_model(
    edge_resnet: Command, small_module: torch.nn.Module, image_folder: Path, tmp_path: Path, suffix: str
) -> None:
    path, example = tmp_path / f"mine{suffix}", (torch.zeros(1, 3, 32, 32),)
    if suffix == ".onnx":
        torch.onnx.export(small_module, example, str(path), dynamo=False)
    else:
        torch.export.save(torch.export.export(small_module, example), path)
    out = tmp_path / "run"
    code, _, err = edge_resnet("compress", path, "--data", image_folder, *QUICK, *NORMALIZED, "--out", out)
    assert code == 0, err
    report = _report(out)
    assert report["model"]["name"] == "mine"
    assert report["model"]["weights_sha256"] == sha256_of(path)
    check = report["model"]["import_check"]
    assert check["images"] == 4 + 8  # random ones, and some of the data's
    assert 0 <= check["relative"] < 1e-5
    assert ("ONNX Runtime" if suffix == ".onnx" else "torch") in check["runtime"]
    assert report["artifacts"][0]["parity"]["identical"] == 1.0


def test_what_does_not_fit_a_file_is_told(
    edge_resnet: Command, small_module: torch.nn.Module, image_folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "mine.onnx"
    torch.onnx.export(small_module, (torch.zeros(1, 3, 32, 32),), str(path), dynamo=False)
    huge = tmp_path / "huge.onnx"
    with huge.open("wb") as file:
        os.truncate(file.fileno(), 2**31 + 1)
    cases = (
        ((path,), "--set preprocess.mean="),
        ((path, *NORMALIZED, "--set", "preprocess.size=48"), "takes 32x32 images, not 48x48"),
        ((path, *NORMALIZED, "--weights", path), "holds its own weights"),
        ((path, *NORMALIZED, "--output", "nothing"), "no output 'nothing'; choose one: --output"),
        ((path, *NORMALIZED, "--set", "train.epochs=1"), "only torch models are trained"),
        ((huge, *NORMALIZED), "save the weights as external data"),
        (("resnet20", "--output", "x"), "--output chooses among the outputs of a file"),
        (
            ("demo", "--set", "train.epochs=1"),
            "weights of another architecture",
        ),  # before any training
    )
    for arguments, message in cases:
        code, _, err = edge_resnet("compress", *arguments, "--data", image_folder, "--out", tmp_path / "run")
        assert code == 2, err
        assert message in err
        assert "Traceback" not in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("recipe", sorted({path.name for path in RECIPES.glob("*.yaml")} - {"search.yaml"}))
def test_every_recipe_runs(edge_resnet: Command, image_folder: Path, tmp_path: Path, recipe: str) -> None:
    """With few images and epochs; the zoo's members are trained further in test_train."""
    short = (
        ()
        if recipe == "ptq.yaml"
        else (
            *("--set", "train.epochs=2", "--set", "train.batch=8", "--set", "train.device=cpu"),
            *("--set", "train.learning_rate=0.01"),
        )
    )
    out = tmp_path / "run"
    code, _, err = edge_resnet(
        *("compress", "resnet20", "--data", image_folder, "--recipe", RECIPES / recipe, *QUICK, *short),
        *("--out", out, "--json"),
    )
    assert code == 0, err
    report = _report(out)
    trained = out / "resnet20-trained.safetensors"
    assert trained.exists() == bool(short)
    assert any("random weights" in note for note in report["notes"]) != bool(short)
    if short:
        assert "train" in [stage["name"] for stage in report["stages"]]
        assert report["model"]["weights_sha256"] == sha256_of(trained)
        again = open_model("resnet20", trained, None, 0)
        assert resolve_preprocess(again.preprocess_defaults, {}).size == (32, 32)


def test_training_does_not_see_the_images_that_are_measured(
    edge_resnet: Command, image_folder: Path, tmp_path: Path
) -> None:
    shutil.rmtree(image_folder / "train")
    code, _, err = edge_resnet(
        *("compress", "resnet20", "--data", image_folder, *QUICK, "--set", "train.epochs=1"),
        *("--out", tmp_path / "run"),
    )
    assert code == 2
    assert "put them into train/CLASS and val/CLASS" in err
    assert not (tmp_path / "run").exists()


def test_another_function_is_no_import(small_module: torch.nn.Module) -> None:
    model = open_model("demo", None, None, 0)
    preprocess = resolve_preprocess(model.preprocess_defaults, {})
    graph = model.graph(preprocess)
    pixels = random_images(graph)
    assert check_import("demo", graph, model.checker(preprocess), pixels).relative < 1e-5
    conv = next(node for node in graph.nodes if isinstance(node, Conv))
    assert isinstance(conv.weights, FloatWeights)
    changed = replace(conv, weights=FloatWeights(conv.weights.weight * np.float32(1.1), conv.weights.bias))
    broken = graph.with_nodes(changed if node is conv else node for node in graph.nodes)
    with pytest.raises(VerificationError, match="not the source's function: logits differ by"):
        check_import("demo", broken, model.checker(preprocess), pixels)
    other = graph_from_module(small_module, "m", (32, 32), MEAN, STD)
    with pytest.raises(VerificationError, match="answers 10 values, the imported graph 3"):
        check_import("demo", other, model.checker(preprocess), pixels)


def test_a_model_that_takes_blue_first() -> None:
    """The graph takes RGB all the same: it is the model with its input channels turned round."""
    model = open_model("demo", None, None, 0)
    values = {"size": 32, "mean": (0.3, 0.5, 0.6), "std": (0.2, 0.25, 0.3)}
    graphs = {}
    for channels in ("rgb", "bgr"):
        preprocess = Preprocess.from_json({**values, "channels": channels})
        graphs[channels] = import_graph(model, preprocess)
        pixels = random_images(graphs[channels])
        assert check_import("demo", graphs[channels], model.checker(preprocess), pixels).relative < 1e-5
    answers = [FloatExecutor(graph).run(pixels) for graph in graphs.values()]
    assert np.abs(answers[0] - answers[1]).max() > 0.01 * np.ptp(answers[0])
    with pytest.raises(InputError, match="choose one of rgb, bgr"):
        Preprocess.from_json({**values, "channels": "grb"})


def test_inspect_says_what_a_model_is(
    edge_resnet: Command, small_module: torch.nn.Module, tmp_path: Path
) -> None:
    path = tmp_path / "mine.onnx"
    torch.onnx.export(small_module, (torch.zeros(1, 3, 32, 32),), str(path), dynamo=False)
    code, out, err = edge_resnet("inspect", path)
    assert code == 0, err
    assert "residual CNN, 7 convolutions in 3 blocks: basic blocks, option A shortcuts" in out
    assert "coreml-int8: can be written" in out
    document = json.loads(edge_resnet("inspect", path, "--json")[1])
    assert document["import_check"]["relative"] < 1e-5
    assert document["refusals"]["tflite-int8"] == ""
    assert document["params"] == sum(p.numel() for p in small_module.parameters()) - _norm(small_module)


def _norm(module: torch.nn.Module) -> int:
    """Batch norms have two parameters a channel; folded, a bias is left of them."""
    return sum(m.num_features for m in module.modules() if isinstance(m, torch.nn.BatchNorm2d))


def test_a_damaged_file_is_exit_2_everywhere(edge_resnet: Command, tmp_path: Path) -> None:
    for name in ("a.onnx", "a.tflite", "a.pt2", "a.keras", "a.h5"):
        path = tmp_path / name
        path.write_bytes(b"\x08\x07" + bytes(range(200)))
        for command in (("inspect", path), ("compress", path, "--data", "demo", *NORMALIZED)):
            code, _, err = edge_resnet(*command)
            assert code == 2 or (code == 3 and importlib.util.find_spec("h5py") is None), (name, err)
            assert str(path) in err
            assert "Traceback" not in err


def test_a_torchscript_file_is_told_how_to_export(
    edge_resnet: Command, small_module: torch.nn.Module, tmp_path: Path
) -> None:
    path = tmp_path / "scripted.pt"
    torch.jit.save(torch.jit.trace(small_module, torch.zeros(1, 3, 32, 32)), str(path))
    code, _, err = edge_resnet("inspect", path)
    assert code == 2
    assert "a TorchScript file; export the module itself: torch.export.save(" in err


def test_an_unknown_operator_names_the_node(edge_resnet: Command, tmp_path: Path) -> None:
    node = onnx.helper.make_node("Erf", ["x"], ["y"], name="strange")
    ends = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 3, 8, 8]) for name in ("x", "y")
    ]
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", ends[:1], ends[1:]))
    onnx.save(model, tmp_path / "erf.onnx")
    code, _, err = edge_resnet("inspect", tmp_path / "erf.onnx")
    assert code == 2
    assert "operator Erf of node 'strange' is not supported" in err


def test_one_pixel_is_trained_in_float32(image_folder: Path) -> None:
    """A strided 3x3 convolution on one pixel has wrong bfloat16 gradients (oneDNN): they are not used."""
    torch.manual_seed(0)
    modules = [
        torch.nn.Sequential(
            torch.nn.Conv2d(3, 64, 3, 2, 1),
            torch.nn.AdaptiveAvgPool2d(1),
            torch.nn.Conv2d(64, 64, 3, 2, 1),
            torch.nn.Flatten(),
            torch.nn.Linear(64, 3),
        )
        for _ in range(2)
    ]
    modules[1].load_state_dict(modules[0].state_dict())
    split = open_images(str(image_folder)).split("train")
    preprocess = Preprocess.from_json({"size": 16, "mean": MEAN, "std": STD})
    losses = []
    for module, precision in zip(modules, ("bfloat16", "float32"), strict=True):
        settings = Train(epochs=2, batch=8, precision=precision)
        losses.append(fit(FloatTask(module, preprocess, settings), split, preprocess, settings, 0).losses)
    assert losses[0] == losses[1]
    image, qat = Input(name="image", shape=(3, 16, 16)), Qat(epochs=1)
    assert not NncfTask(modules[0], image, Distiller(qat)).autocast(qat)
    assert NncfTask(modules[0][:2], image, Distiller(qat)).autocast(qat)
