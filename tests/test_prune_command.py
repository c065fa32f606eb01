"""Pruning through the command line: what a run leaves, keeps for the next one, and says of bad input."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_resnet.graph.float_executor import FloatExecutor
from edge_resnet.run_directory import read_graphs, read_probe
from edge_resnet.runners.onnxruntime import OnnxRuntimeRunner
from tests.test_quantization_command import compressed, refused

Command = Callable[..., tuple[int, str, str]]


def settings(**values: object) -> list[str]:
    small = {
        **{"prune__macs": 0.6, "prune__multiple": 4, "prune__images": 64},
        **{"finetune__epochs": 1, "finetune__flip": "false", "finetune__crop_padding": 1},
        **{"calibration__images": 64, "evaluate__images": 100, "evaluate__step_images": 100},
        "benchmark__runs": 0,
    }
    chosen = {**small, **values}
    return [word for key, value in chosen.items() for word in ("--set", f"{key.replace('__', '.')}={value}")]


def stage(report: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = (entry for entry in report["stages"] if entry["name"] == name)
    return dict(found)


def test_a_pruned_model_is_smaller_proven_and_kept(edge_resnet: Command, tmp_path: Path) -> None:
    targets = ("--target", "tflite-int8", "--target", "onnx-int8", "--target", "onnx-fp32")
    out = tmp_path / "run"
    report = compressed(edge_resnet, out, *settings(benchmark__runs=10), *targets)
    assert report["compressed"]["macs"] <= 0.6 * report["model"]["macs"]
    pruning = report["pruning"]
    assert pruning["reached"] == pytest.approx(
        report["compressed"]["macs"] / report["model"]["macs"], rel=1e-3
    )
    assert [entry["name"] for entry in pruning["stages"]] == ["original", "pruned", "finetune", "int8"]
    tuned, damaged = (next(s for s in pruning["stages"] if s["name"] == n) for n in ("finetune", "pruned"))
    assert tuned["top1"] > damaged["top1"]
    assert pruning["latency"]["measured_ms"] > 0
    assert pruning["latency"]["measured_unpruned_ms"] > 0
    for artifact in report["artifacts"][:2]:
        assert artifact["parity"]["identical"] == 1
    (sized,) = (a for a in report["artifacts"] if a["target"] == "tflite-int8")
    assert abs(tuned["bytes"] - sized["bytes"]) < 0.02 * sized["bytes"]
    assert edge_resnet("verify", out)[0] == 0
    # The float file is the pruned and trained model, not the one that came.
    pixels = read_probe(out).pixels
    expected = FloatExecutor(read_graphs(out)[1]).run(pixels)
    answer = OnnxRuntimeRunner(out / "demo-onnx-fp32.onnx").logits(pixels)
    np.testing.assert_allclose(answer, expected, atol=1e-3)

    again = compressed(edge_resnet, out, *settings(benchmark__runs=10), *targets)
    assert stage(again, "prune")["resumed"]
    assert stage(again, "finetune")["resumed"]
    assert [a["sha256"] for a in again["artifacts"]] == [a["sha256"] for a in report["artifacts"]]
    assert again["pruning"]["layers"] == pruning["layers"]


def test_pruning_in_steps_with_training_between_them(edge_resnet: Command, tmp_path: Path) -> None:
    steps = settings(prune__steps=2, prune__schedule="cubic", prune__step_epochs=1)
    report = compressed(edge_resnet, tmp_path / "run", *steps)
    names = [entry["name"] for entry in report["stages"]]
    assert "finetune-step1" in names
    assert names.index("finetune-step1") < names.index("finetune")
    assert report["compressed"]["macs"] <= 0.6 * report["model"]["macs"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"prune__macs": 0.001}, r"prune.macs=0.001 cannot be met: 0.\d+ of the original"),
        ({"prune__keep": "[layer9.*]"}, r"prune.keep: 'layer9\.\*' names no layer"),
        ({"prune__macs": 1.5}, "prune.macs"),
        ({"prune__macs": "null"}, "finetune.epochs.* belongs to pruning"),
        ({"prune__macs": "null", "prune__latency": 0.5, "prune__device": "ssh://phone"}, "ssh://phone"),
    ],
)
def test_what_cannot_be_pruned_is_one_line(
    edge_resnet: Command, tmp_path: Path, given: dict[str, object], message: str
) -> None:
    line = refused(edge_resnet, tmp_path / "run", "demo", *settings(**given))
    assert re.search(message, line), line


def test_a_quantized_model_is_not_pruned(edge_resnet: Command, tmp_path: Path) -> None:
    compressed(edge_resnet, tmp_path / "first", "--set", "benchmark.runs=0", "--set", "evaluate.images=20")
    model = tmp_path / "first" / "demo-tflite-int8.tflite"
    line = refused(edge_resnet, tmp_path / "run", model, "--data", "demo", *settings(finetune__epochs=0))
    assert "--requantize" in line
    assert json.loads((tmp_path / "first" / "report.json").read_text())["pruning"] is None


@pytest.mark.parametrize("recipe", ["small", "tiny", "fast-phone"])
def test_each_ready_recipe_prunes_the_demo(edge_resnet: Command, tmp_path: Path, recipe: str) -> None:
    """At a part that three blocks of the demo can give."""
    short = settings(
        **{"prune__macs": "null", "prune__latency": 0.8, "prune__multiple": 8, "qat__epochs": 1},
        **{"qat__flip": "false", "qat__crop_padding": 1, "prune__channels": "true"},
        sensitivity__images=0,
    )
    report = compressed(edge_resnet, tmp_path / "run", "--recipe", recipe, *short)
    assert report["pruning"]["reached"] <= 0.8
    assert report["pruning"]["budget"] == "latency"
    assert report["pruning"]["latency"]["predicted_ms"] > 0
