"""The product's promises on real weights and real sizes; minutes, not seconds."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from edge_resnet.frontends.torch_export import graph_from_module
from edge_resnet.graph.reference import ReferenceExecutor, dequantize
from edge_resnet.models.torchvision_models import import_torchvision
from edge_resnet.recipe import Export
from edge_resnet.runners.onnxruntime import OnnxRuntimeRunner
from edge_resnet.targets import TARGETS
from tests.conftest import quantized
from tests.random_graphs import random_pixels

pytestmark = pytest.mark.slow

Command = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize(("name", "least"), [("resnet20", 0.8835), ("resnet56", 0.88)])
def test_trained_models_keep_their_accuracy_and_agree(
    edge_resnet: Command, shared_data: Path, tmp_path: Path, name: str, least: float
) -> None:
    images = 10_000 if name == "resnet20" else 2_000
    given = ("--weights", shared_data / f"{name}-cifar10.pt", "--data", shared_data / "cifar10-jpeg.zip")
    targets = ("--target", "tflite-int8", "--target", "onnx-int8", "--target", "coreml-int8")
    settings = ("--set", f"evaluate.images={images}", "--set", "benchmark.runs=0")
    code, _, err = edge_resnet("compress", name, *given, *targets, *settings, "--out", tmp_path / "run")
    assert code == 0, err
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    for artifact in report["artifacts"]:
        assert artifact["ranges"]["checked"] == artifact["ranges"]["equal"]
        assert artifact["parity"]["n"] == 2000
        if artifact["target"] == "coreml-int8":
            assert artifact["parity"]["top1_agreement"] >= (0.998 if name == "resnet20" else 0.99)
        else:
            assert artifact["parity"]["identical"] == 1
            assert artifact["cross_parity"][0]["identical"] == 1
            assert artifact["accuracy"]["top1"] >= least


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext50_32x4d"])
def test_torchvision_models_at_full_size(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    module = import_torchvision().models.get_model(name, weights=None)
    graph = quantized(
        graph_from_module(module, name, (224, 224), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    pixels = random_pixels(graph, 5, seed=1)
    assert graph.output.quant is not None
    expected = dequantize(ReferenceExecutor(graph).run(pixels), graph.output.quant)
    for target in ("tflite-int8", "onnx-int8"):
        path = TARGETS[target].path(tmp_path, name)
        TARGETS[target].write(graph, path, Export())
        assert np.array_equal(TARGETS[target].open(path).logits(pixels), expected)
    optimized = tmp_path / "optimized.onnx"
    OnnxRuntimeRunner(TARGETS["onnx-int8"].path(tmp_path, name), optimized=optimized)
    kinds = Counter(node.op_type for node in onnx.load(str(optimized)).graph.node)
    assert kinds.pop("DequantizeLinear") == 1
    fused = {"QLinearConv", "QLinearAdd", "QLinearGlobalAveragePool", "QGemm", "Flatten"}
    assert set(kinds) - fused <= {"NhwcMaxPool", "MaxPool", "Transpose"}


def test_an_int8_tflite_comes_in_and_goes_out_the_same(
    edge_resnet: Command, shared_data: Path, tmp_path: Path
) -> None:
    """Same integers, same logits on LiteRT, and in the end the same bytes."""
    data = ("--data", shared_data / "cifar10-jpeg.zip")
    quick = ("--set", "evaluate.images=1000", "--set", "benchmark.runs=0")
    weights = ("--weights", shared_data / "resnet20-cifar10.pt")
    first, second = tmp_path / "first", tmp_path / "second"
    code, _, err = edge_resnet("compress", "resnet20", *weights, *data, *quick, "--out", first)
    assert code == 0, err
    phone = first / "resnet20-tflite-int8.tflite"
    targets = ("--target", "tflite-int8", "--target", "onnx-int8", "--target", "coreml-int8")
    code, _, err = edge_resnet("compress", phone, *data, *quick, *targets, "--out", second)
    assert code == 0, err
    report = json.loads((second / "report.json").read_text())
    assert report["model"]["import_check"]["max_abs"] == 0
    for artifact in report["artifacts"]:
        assert artifact["ranges"]["checked"] == artifact["ranges"]["equal"]
        if artifact["target"] != "coreml-int8":
            assert artifact["parity"]["identical"] == 1
            assert artifact["accuracy"]["delta"] == 0
    again = second / "resnet20-tflite-int8.tflite"
    pixels = np.random.default_rng(0).integers(0, 256, (500, 32, 32, 3), np.uint8)
    runners = [TARGETS["tflite-int8"].open(path) for path in (phone, again)]
    assert np.array_equal(*(runner.logits(pixels) for runner in runners))
    assert again.read_bytes() == phone.read_bytes()
