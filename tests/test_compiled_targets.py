"""The targets vela and qnn-context: what vendors make of the int8 file, and what is known of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from edge_resnet.devices import emulated
from edge_resnet.errors import MissingToolError, VerificationError
from edge_resnet.export.compiled import check_compiler
from edge_resnet.export.hexagon_windows import widen_windows
from edge_resnet.export.onnx import onnx_bytes
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.mixed_executor import MixedExecutor
from edge_resnet.graph.nodes import IntWeights, Linear
from edge_resnet.recipe import Export
from edge_resnet.runners.hexagon import HexagonRunner
from edge_resnet.runners.onnxruntime import OnnxRuntimeRunner
from edge_resnet.targets import TARGETS, target_of_file
from edge_resnet.verify.prove import Proof, prove
from tests.conftest import quantized
from tests.npu_files import INSTALL, measure
from tests.random_graphs import random_graph, random_pixels

Command = Callable[..., tuple[int, str, str]]
COMPILED = {"vela": "ethosu", "qnn-context": "onnxruntime_qnn"}

needs_vela = pytest.mark.skipif(find_spec("ethosu") is None, reason=f"no ethos-u-vela: {INSTALL}")
needs_qnn = pytest.mark.skipif(find_spec("onnxruntime_qnn") is None, reason=f"no onnxruntime-qnn: {INSTALL}")
needs_all = pytest.mark.skipif(
    None in map(find_spec, ("ethosu", "onnxruntime_qnn", "tflite_micro")),
    reason=f"no NPU compilers: {INSTALL}",
)


def _written(name: str, graph: Graph, folder: Path, export: Export | None = None) -> Path:
    path = TARGETS[name].path(folder, "m")
    TARGETS[name].write(graph, path, export or Export())
    return path


def _proof(path: Path, graph: Graph) -> Proof:
    pixels = random_pixels(graph, 6, seed=3)
    batches = [(pixels, np.zeros(6, np.int64))]
    (proof,) = prove({target_of_file(path): path}, graph, None, "none", batches, 6, 6).artifacts
    return proof


@needs_vela
def test_vela_writes_the_same_bytes_twice_and_what_the_recipe_asks(
    tmp_path: Path, small_quantized: Graph
) -> None:
    default = _written("vela", small_quantized, tmp_path).read_bytes()
    assert b"ethos-u" in default
    assert _written("vela", small_quantized, tmp_path).read_bytes() == default
    other = _written("vela", small_quantized, tmp_path, Export(vela="ethos-u85-512"))
    assert other.read_bytes() != default
    assert [path.name for path in tmp_path.iterdir()] == ["m-vela.tflite"]
    note = measure("vela://ethos-u55-128", other).benchmarks[0].notes[0]
    assert note == "compiled already; the int8 file that it was compiled from has the estimate"
    note = measure("local", other).benchmarks[0].notes[0]
    assert note == "compiled for an NPU: it does not run on a CPU"


@needs_vela
def test_nothing_is_claimed_of_what_nobody_here_can_run(tmp_path: Path, small_quantized: Graph) -> None:
    proof = _proof(_written("vela", small_quantized, tmp_path), small_quantized)
    assert (proof.failures, proof.runner, proof.parity, proof.ranges) == ([], None, None, None)
    assert "nothing but the NPU itself runs it" in proof.warnings[1]


@needs_qnn
def test_a_context_binary_is_run_on_the_emulator(tmp_path: Path, small_quantized: Graph) -> None:
    proof = _proof(_written("qnn-context", small_quantized, tmp_path), small_quantized)
    assert proof.failures == []
    assert proof.ranges is None
    assert proof.parity is not None
    assert proof.parity.n == 6
    assert proof.parity.max_lsb is not None
    assert proof.parity.max_lsb <= 3
    assert proof.runner is not None
    assert proof.runner.emulated


@needs_qnn
def test_a_damaged_context_binary_is_a_failure(tmp_path: Path, small_quantized: Graph) -> None:
    path = _written("qnn-context", small_quantized, tmp_path)
    content = bytearray(path.read_bytes())
    content[len(content) // 4 : len(content) // 2] = bytes(len(content) // 2 - len(content) // 4)
    path.write_bytes(content)
    (failure,) = _proof(path, small_quantized).failures
    assert failure.startswith("m-qnn-context.onnx: ")
    assert "\n" not in failure


@needs_qnn
def test_another_model_of_the_same_name_is_seen(tmp_path: Path, small_quantized: Graph) -> None:
    """Classes in another order: the emulator's answers tell, though no integer can be read back."""
    last = small_quantized.nodes[-1]
    assert isinstance(last, Linear)
    assert isinstance(last.weights, IntWeights)
    weights = IntWeights(last.weights.weight[::-1], last.weights.scale[::-1], last.weights.bias[::-1])
    other = small_quantized.with_nodes([*small_quantized.nodes[:-1], replace(last, weights=weights)])
    (failure,) = _proof(_written("qnn-context", other, tmp_path), small_quantized).failures
    assert "m-qnn-context.onnx: top-1 differs from the reference executor's on " in failure


@needs_qnn
@pytest.mark.parametrize("architecture", [68, 73])
@pytest.mark.parametrize("seed", [1, 14])  # an average over 2x2; a ReLU behind an addition
def test_what_the_compiler_gets_wrong_is_written_otherwise(
    tmp_path: Path, seed: int, architecture: int
) -> None:
    graph = quantized(random_graph(seed, blocks=3))
    path = _written("qnn-context", graph, tmp_path, Export(qnn_htp=architecture))
    proof = _proof(path, graph)
    assert proof.parity is not None
    assert proof.parity.max_lsb is not None
    assert proof.parity.max_lsb <= 4


def test_wider_windows_compute_the_same(tmp_path: Path) -> None:
    graph = quantized(random_graph(1, blocks=3))
    pixels = random_pixels(graph, 5)
    content = bytes(onnx_bytes(graph))
    path = tmp_path / "wide.onnx"
    path.write_bytes(widen_windows(content))
    assert path.stat().st_size > len(content)
    np.testing.assert_array_equal(OnnxRuntimeRunner(path).logits(pixels), MixedExecutor(graph).logits(pixels))


@needs_qnn
def test_the_runner_keeps_no_process(tmp_path: Path, small_quantized: Graph) -> None:
    runner = HexagonRunner(_written("qnn-context", small_quantized, tmp_path, Export(qnn_htp=75)))
    pixels = random_pixels(small_quantized, 6)
    first = runner.logits(pixels)
    np.testing.assert_array_equal(first[4:], runner.logits(pixels[4:]))
    assert (first.argmax(1) == MixedExecutor(small_quantized).logits(pixels).argmax(1)).mean() > 0.6


@pytest.mark.parametrize("name", COMPILED)
def test_without_the_compiler_no_work_is_begun(
    edge_resnet: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    monkeypatch.setattr(emulated, "find_spec", lambda module: None)
    with pytest.raises(MissingToolError, match=f"--target {name}: "):
        check_compiler(name, Export())
    code, _, err = edge_resnet("compress", "demo", "--target", name, "--out", tmp_path / "run")
    assert code == 3
    assert f"--target {name}: " in err
    assert not (tmp_path / "run").exists()


@needs_qnn
def test_verify_goes_on_where_there_is_no_emulator(
    tmp_path: Path, small_quantized: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _written("qnn-context", small_quantized, tmp_path)
    monkeypatch.setattr(emulated.platform, "machine", lambda: "arm64")
    proof = _proof(path, small_quantized)
    assert proof.failures == []
    assert (
        "not run here: m-qnn-context.onnx: onnxruntime-qnn has it for Linux x86-64 only" in proof.warnings[-1]
    )
    with pytest.raises(MissingToolError):
        HexagonRunner(path)


@needs_qnn
def test_rubbish_is_no_context_binary(tmp_path: Path) -> None:
    path = tmp_path / "m-qnn-context.onnx"
    path.write_bytes(b"rubbish")
    with pytest.raises(VerificationError, match=r"m-qnn-context\.onnx: "):
        HexagonRunner(path)


@needs_vela
@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("export.vela=ethos-u99-1", "export.vela: no such accelerator; Vela has ethos-u55-32"),
        ("export.vela=gpu", "export.vela"),
        ("export.qnn_htp=72", "expected one of 68, 69, 73, 75, 79, 81"),
    ],
)
def test_an_unknown_npu_is_refused(edge_resnet: Command, tmp_path: Path, setting: str, words: str) -> None:
    given = ("compress", "demo", "--target", "vela", "--set", setting, "--out", tmp_path / "run")
    code, _, err = edge_resnet(*given)
    assert code == 2
    assert words in err


@needs_all
@pytest.mark.slow
def test_resnet20_on_every_npu(edge_resnet: Command, shared_data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    data = ("--data", shared_data / "cifar10-jpeg.zip")
    targets = [part for name in ("tflite-int8", "onnx-int8", *COMPILED) for part in ("--target", name)]
    settings = ["evaluate.images=100", "evaluate.emulated_images=40", "benchmark.runs=0"]
    given = [part for setting in settings for part in ("--set", setting)]
    weights = ("--weights", shared_data / "resnet20-cifar10.pt")
    code, _, err = edge_resnet("compress", "resnet20", *weights, *data, *targets, *given, "--out", run)
    assert code == 0, err
    assert "vela was not run: nothing is known of the logits" in " ".join(
        (run / "report.md").read_text().split()
    )
    devices = ("vela://ethos-u55-128", "vela://ethos-u85-512", "tflm://host", "qnn-htp://73")
    asked = [part for name in devices for part in ("--device", name)]
    code, _, err = edge_resnet("benchmark", run, *asked, *data, "--images", 40)
    assert code == 0, err
    found = {
        (artifact["target"], entry["device"]): entry
        for artifact in json.loads((run / "report.json").read_text())["artifacts"]
        for entry in artifact["benchmarks"]
    }
    small, large = (found["tflite-int8", name] for name in devices[:2])
    assert 500_000 < small["figures"]["total_cycles"] < 800_000
    assert large["figures"]["total_cycles"] < small["figures"]["total_cycles"] / 2
    assert small["figures"]["npu_macs"] == pytest.approx(40.55e6, rel=0.01)
    assert small["latency_ms"]["p50"] == pytest.approx(small["figures"]["total_cycles"] / 5e5, rel=1e-6)
    for key in (
        ("tflite-int8", "tflm://host"),
        ("onnx-int8", "qnn-htp://73"),
        ("qnn-context", "qnn-htp://73"),
    ):
        parity, accuracy = found[key]["parity"], found[key]["accuracy"]
        assert parity["n"] == accuracy["n"] == 40
        assert parity["top1_agreement"] >= 0.95
        assert 0 < parity["max_lsb"] <= 10
        assert accuracy["kind"] == "emulated"
        assert found[key]["latency_ms"] is None
    assert 60_000 < found["tflite-int8", "tflm://host"]["figures"]["arena_bytes"] < 120_000
