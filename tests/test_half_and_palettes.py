"""float16 files and Core ML palettes: what they hold, what runtimes compute with them, what verify sees."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_resnet.errors import GraphError
from edge_resnet.export.coreml_library import import_coremltools
from edge_resnet.export.coreml_palette import PALETTES, PaletteFormat, packed, palette_of
from edge_resnet.export.onnx import onnx_bytes
from edge_resnet.export.tflite import IoType, tflite_bytes
from edge_resnet.files import sha256_of, size_of
from edge_resnet.graph import nodes as g
from edge_resnet.graph.float_executor import FloatExecutor
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.passes import fold_normalization_std, simplify
from edge_resnet.recipe import Export
from edge_resnet.run_directory import read_graphs
from edge_resnet.runners.litert import Kernels, LiteRTRunner
from edge_resnet.runners.mil_evaluator import MilEvaluator
from edge_resnet.runners.mil_program import palettes, read_package
from edge_resnet.runners.onnxruntime import OnnxRuntimeRunner
from edge_resnet.targets import TARGETS
from edge_resnet.verify.float_weights import compare_floats, with_stored_weights
from edge_resnet.verify.prove import Proof, prove
from edge_resnet.verify.readback_coreml import read_coreml_floats
from edge_resnet.verify.trial import refusals
from tests.conftest import quantized
from tests.random_graphs import random_graph, random_pixels

Command = Callable[..., tuple[int, str, str]]

SEEDS = st.integers(0, 1_000_000)
FLOATS = [name for name, target in TARGETS.items() if not target.quantized]
HALVES = [name for name in FLOATS if TARGETS[name].float_type == "float16"]
PALETTE_TARGETS = [name for name in FLOATS if TARGETS[name].palette_bits]


def _weights(shape: tuple[int, ...], seed: int) -> g.FloatWeights:
    rng = np.random.default_rng(seed)
    spread = np.sqrt(2 / np.prod(shape[1:]))
    return g.FloatWeights(
        rng.normal(0, spread, shape).astype(np.float32), rng.normal(0, 0.1, shape[0]).astype(np.float32)
    )


def _graph() -> Graph:
    """`wide` and `head` have enough weights for palettes; `first` and `deep` have not."""
    mean = np.array([120, 117, 104], np.float32)
    side = g.Padding(1, 1, 1, 1)
    relu = g.Activation.RELU
    return Graph(
        "small",
        (
            g.Input(name="image", shape=(3, 8, 8)),
            g.Normalize(name="norm", inputs=("image",), mean=mean, std=np.full(3, 60, np.float32)),
            g.Conv(name="first", inputs=("norm",), weights=_weights((16, 3, 3, 3), 0), activation=relu),
            g.Conv(
                name="deep",
                inputs=("first",),
                weights=_weights((16, 1, 3, 3), 1),
                groups=16,
                padding=side,
                activation=relu,
            ),
            g.Conv(name="wide", inputs=("deep",), weights=_weights((24, 16, 3, 3), 2), activation=relu),
            g.Flatten(name="flat", inputs=("wide",)),
            g.Linear(name="head", inputs=("flat",), weights=_weights((10, 24 * 4 * 4), 3)),
        ),
    )


@pytest.fixture(scope="module")
def graph() -> Graph:
    return fold_normalization_std(_graph())


def _replaced(graph: Graph, name: str, change: Callable[[np.ndarray], np.ndarray]) -> Graph:
    node: Any = graph.by_name[name]
    weights = g.FloatWeights(change(node.weights.weight.copy()).astype(np.float32), node.weights.bias)
    return graph.with_nodes(replace(node, weights=weights) if n is node else n for n in graph.nodes)


def _write(graph: Graph, target: str, folder: Path) -> Path:
    path = TARGETS[target].path(folder, "x")
    TARGETS[target].write(graph, path, Export())
    return path


def _prove(graph: Graph, written: Graph, target: str, folder: Path, images: int = 32) -> Proof:
    path, pixels = _write(written, target, folder), random_pixels(graph, images)
    reference = quantized(graph, 0)
    batches = [(pixels, np.zeros(images, np.int64))]
    run = FloatExecutor(graph).run
    proofs = prove(
        {TARGETS[target]: path}, reference, run, "float graph", batches, images, images, floating=graph
    )
    return proofs.artifacts[0]


@given(seed=SEEDS)
@settings(max_examples=10, deadline=None)
def test_half_files_compute_the_float_graph(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    graph = fold_normalization_std(simplify(random_graph(seed, 3)))
    folder, pixels = tmp_path_factory.mktemp("half"), random_pixels(graph, 4, seed)
    tflite, onnx_file = _write(graph, "tflite-fp16", folder), _write(graph, "onnx-fp16", folder)
    expected = FloatExecutor(graph).run(pixels)
    onnx.checker.check_model(str(onnx_file), full_check=True)
    runners = (LiteRTRunner(tflite), LiteRTRunner(tflite, Kernels.REFERENCE), OnnxRuntimeRunner(onnx_file))
    for runner in runners:
        got = runner.logits(pixels)
        assert got.dtype == np.float32
        assert np.abs(got - expected).max() <= 5e-3 * np.abs(expected).max()
    for target, path in (("tflite-fp16", tflite), ("onnx-fp16", onnx_file)):
        check = compare_floats(graph, TARGETS[target].read_floats(path), "float16", None)
        assert check.mismatches == ()
        assert check.checked == 2 * sum(isinstance(node, g.Conv | g.Linear) for node in graph.nodes)


def test_a_half_tflite_file_is_as_tflite_quantizes_it(tmp_path: Path, graph: Graph) -> None:
    """float16 constants, each behind a DEQUANTIZE of version 3; every operator computes in float32."""
    path = _write(graph, "tflite-fp16", tmp_path)
    interpreter = Interpreter(str(path))
    interpreter.allocate_tensors()
    stored = {d["name"]: d for d in interpreter.get_tensor_details() if d["dtype"] == np.float16}
    for node in graph.nodes:
        if isinstance(node, g.Conv):
            found = interpreter.get_tensor(stored[f"{node.name}/weight"]["index"])
            depthwise = node.groups > 1
            arranged = node.weights.weight.transpose((1, 2, 3, 0) if depthwise else (0, 2, 3, 1))
            assert np.array_equal(found, arranged.astype(np.float16))
    assert len(stored) == 8
    model = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    versions = {code.builtinCode: code.version for code in model.operatorCodes}
    assert versions[schema.BuiltinOperator.DEQUANTIZE] == 3
    kinds = [model.operatorCodes[op.opcodeIndex].builtinCode for op in model.subgraphs[0].operators]
    assert kinds.count(schema.BuiltinOperator.DEQUANTIZE) == 8
    assert size_of(path) < 0.6 * size_of(_write(graph, "tflite-fp32", tmp_path))


def test_ends_of_a_half_tflite_file(tmp_path: Path, graph: Graph) -> None:
    pixels = random_pixels(graph, 4)
    answers = []
    for io in (IoType.UINT8, IoType.FLOAT32):
        (tmp_path / "g.tflite").write_bytes(tflite_bytes(graph, io, half=True))
        answers.append(LiteRTRunner(tmp_path / "g.tflite").logits(pixels))
    assert np.array_equal(*answers)
    with pytest.raises(GraphError, match="no int8 ends"):
        tflite_bytes(graph, IoType.INT8, half=True)


def test_a_half_onnx_file_is_float16_between_its_ends(graph: Graph) -> None:
    model = onnx.shape_inference.infer_shapes(
        onnx.load_from_string(onnx_bytes(graph, half=True)), strict_mode=True
    )
    kinds = {value.type.tensor_type.elem_type for value in model.graph.value_info}
    assert kinds == {onnx.TensorProto.FLOAT16}
    assert {entry.data_type for entry in model.graph.initializer} == {onnx.TensorProto.FLOAT16}
    assert model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert model.graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT


@pytest.mark.parametrize("target", HALVES)
def test_a_weight_too_large_for_float16_is_refused(tmp_path: Path, graph: Graph, target: str) -> None:
    large = _replaced(graph, "wide", lambda weight: weight * 1e6)
    with pytest.raises(GraphError, match=r"node 'wide': a number is too large for float16"):
        _write(large, target, tmp_path)
    assert not TARGETS[target].path(tmp_path, "x").exists()


@pytest.mark.parametrize("target", FLOATS)
def test_float_artifacts_are_proven(tmp_path: Path, graph: Graph, target: str) -> None:
    proof = _prove(graph, graph, target, tmp_path)
    assert proof.failures == []
    assert proof.ranges is None
    assert proof.weights is not None
    assert (proof.weights.checked, proof.weights.equal) == (8, 8)


@pytest.mark.parametrize("name", ["first", "wide"])
@pytest.mark.parametrize("target", FLOATS)
def test_another_weight_is_found_in_the_file(tmp_path: Path, graph: Graph, target: str, name: str) -> None:
    def change(weight: np.ndarray) -> np.ndarray:
        weight[3, 1] *= -1
        return weight

    proof = _prove(graph, _replaced(graph, name, change), target, tmp_path, 4)
    assert len(proof.failures) == 1
    assert f"{name}/weight: " in proof.failures[0]
    assert "differ" in proof.failures[0]
    assert proof.runner is None


def test_one_bit_of_a_weight_is_seen(tmp_path: Path, graph: Graph) -> None:
    node: Any = graph.by_name["wide"]
    stored = TARGETS["onnx-fp16"].read_floats(_write(graph, "onnx-fp16", tmp_path))
    weight = node.weights.weight.astype(np.float16)
    weight.reshape(-1).view(np.uint16)[100] ^= 1
    changed = {**stored, "wide": replace(stored["wide"], weight=weight)}
    problems = compare_floats(graph, changed, "float16", None).mismatches
    assert len(problems) == 1
    assert problems[0].startswith("wide/weight: 1 number differs, at [0, 11, 0, 1]")
    assert len(compare_floats(graph, stored, "float32", None).mismatches) == 8  # the wrong type


def test_what_float16_loses_is_a_warning(tmp_path: Path, graph: Graph) -> None:
    """Tiny weights and a huge factor behind them; the float32 file is not concerned."""
    tiny = _replaced(graph, "wide", lambda weight: weight * 1e-8)
    proof = _prove(tiny, tiny, "tflite-fp16", tmp_path)
    assert any("node 'wide'" in text and "become 0 in float16" in text for text in proof.warnings)
    large = _replaced(graph, "first", lambda weight: weight * 3e4)
    proof = _prove(large, large, "onnx-fp16", tmp_path)
    assert any("node 'first': values reach" in text for text in proof.warnings)
    assert _prove(large, large, "onnx-fp32", tmp_path).warnings == []
    assert _prove(graph, graph, "onnx-fp16", tmp_path).warnings == []


@given(bits=st.sampled_from([1, 2, 4, 6, 8]), values=st.lists(st.integers(0, 255), min_size=1, max_size=50))
def test_numbers_are_packed_as_coremltools_packs_them(bits: int, values: list[int]) -> None:
    import_coremltools()
    from coremltools.optimize._utils import pack_elements_into_bits

    numbers = (np.array(values) % 2**bits).astype(np.uint8)
    assert np.array_equal(packed(numbers, bits), pack_elements_into_bits(numbers, bits))


def test_palettes_have_the_least_squared_error() -> None:
    """Against all ways to cut 15 different numbers into 4 runs, 150 times each so that they count as many."""
    numbers = np.sort(np.random.default_rng(0).normal(0, 1, 15).astype(np.float16)).astype(np.float32)

    def error(cuts: tuple[int, ...]) -> float:
        return sum(float(part.var() * len(part)) for part in np.split(numbers, cuts))

    best = min(error(cuts) for cuts in combinations(range(1, 15), 3))
    found = palette_of(np.tile(numbers, (150, 1)), PaletteFormat(2, None))
    assert found is not None
    dense = found.entries[0][found.indices]
    assert ((dense[0] - numbers) ** 2).sum() == pytest.approx(best, rel=1e-2)


@given(outputs=st.integers(1, 200), channels=st.one_of(st.none(), st.integers(1, 64)))
def test_groups_divide_the_channels(outputs: int, channels: int | None) -> None:
    groups = PaletteFormat(4, channels).groups(outputs)
    assert outputs % groups == 0
    assert groups == 1 or (channels is not None and outputs // groups >= channels)


@pytest.mark.parametrize("target", PALETTE_TARGETS)
def test_palette_packages(tmp_path: Path, graph: Graph, target: str) -> None:
    """coremltools reads the same weights; the evaluator computes with them; twice the same bytes."""
    path, bits = _write(graph, target, tmp_path), TARGETS[target].palette_bits
    assert bits is not None
    before = sha256_of(path)
    assert sha256_of(_write(graph, target, tmp_path)) == before
    ct = import_coremltools()
    spec = ct.utils.load_spec(str(path / "Data" / "com.apple.CoreML" / "model.mlmodel"))
    # Several palettes for a weight came with iOS 18 (specification 9).
    assert spec.specificationVersion == (8 if PALETTES[bits].channels is None else 9)
    tables = [op for op in read_package(path).operations if op.op_type == "constexpr_lut_to_dense"]
    assert [op.outputs[0].name for op in tables] == ["wide_weight", "head_weight"]
    stored = read_coreml_floats(path)
    for op, name in zip(tables, ("wide", "head"), strict=True):
        assert np.array_equal(op.materialized_val_inference(), stored[name].weight)
        assert palettes(op)[1].shape[1] == 2**bits
        for group in np.split(stored[name].weight, len(palettes(op)[1])):
            assert len(np.unique(group)) <= 2**bits
    pixels = random_pixels(graph, 8)
    expected = FloatExecutor(with_stored_weights(graph, stored)).run(pixels)
    got = MilEvaluator(path).logits(pixels)
    assert np.abs(got - expected).max() <= 5e-3 * np.abs(expected).max()


def test_fewer_bits_are_smaller_and_farther(tmp_path: Path, graph: Graph) -> None:
    node: Any = graph.by_name["wide"]
    sizes, errors = [], []
    for target in ("coreml-fp16", *PALETTE_TARGETS):
        path = _write(graph, target, tmp_path)
        sizes.append(size_of(path))
        errors.append(float(np.abs(read_coreml_floats(path)["wide"].weight - node.weights.weight).mean()))
    assert sizes == sorted(sizes, reverse=True)
    assert errors == sorted(errors)


def test_a_palette_of_another_class_is_a_warning(tmp_path: Path, graph: Graph) -> None:
    """Classes that differ by less than a palette can say: the loss is told, and is no failure."""
    close = _replaced(graph, "head", lambda weight: weight[:1] + 0.05 * weight)
    proof = _prove(close, close, "coreml-palette4", tmp_path, 64)
    assert proof.failures == []
    assert any("weights of 4 bits are approximations" in text for text in proof.warnings)


@pytest.mark.parametrize("target", ["coreml-palette8", "coreml-palette4"])
def test_a_program_that_is_another_one_fails(tmp_path: Path, graph: Graph, target: str) -> None:
    """The right weights in a program without the activation of a layer."""
    node: Any = graph.by_name["wide"]
    other = replace(node, activation=g.Activation.NONE)
    written = graph.with_nodes(other if n is node else n for n in graph.nodes)
    proof = _prove(graph, written, target, tmp_path)
    assert proof.weights is not None
    assert proof.weights.mismatches == ()
    assert any("float graph with the file's weights" in text for text in proof.failures)


def test_refusals_speak_of_every_target(graph: Graph) -> None:
    assert refusals(_graph()) == dict.fromkeys(TARGETS, "")


# Through the command line.

SHOWN = ("tflite-fp16", "onnx-fp16", "coreml-fp16", "coreml-palette8", "coreml-palette4")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    out = tmp_path_factory.mktemp("runs") / "demo"
    quick = [f"--set={text}" for text in ("calibration.images=64", "evaluate.images=60", "benchmark.runs=0")]
    arguments = ["compress", "demo", *(f"--target={name}" for name in SHOWN), *quick, "--out", str(out)]
    done = subprocess.run(
        [sys.executable, "-m", "edge_resnet", *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return out


def test_the_report_of_half_and_palettes(finished: Path) -> None:
    report = json.loads((finished / "report.json").read_text())
    for artifact in report["artifacts"]:
        assert artifact["ranges"] is None
        assert artifact["weights"]["checked"] == artifact["weights"]["equal"] > 10
        assert artifact["accuracy"]["top1"] > 0.9
    text = (finished / "report.md").read_text()
    assert "tflite-fp16, onnx-fp16 and coreml-fp16 hold the float model's weights" in text
    assert "% of fp16" in text


@pytest.mark.parametrize("target", SHOWN)
def test_verify_names_a_changed_weight(
    edge_resnet: Command, finished: Path, tmp_path: Path, target: str
) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    path, name = TARGETS[target].path(run, "demo"), "layer2.0.conv1"
    floating = fold_normalization_std(read_graphs(run)[1])
    node: Any = floating.by_name[name]
    weight, bits = node.weights.weight, TARGETS[target].palette_bits
    if bits is not None:
        palette = palette_of(weight, PALETTES[bits])
        assert palette is not None
        pattern = packed(palette.indices, bits).tobytes()
    else:
        arranged = weight.transpose(0, 2, 3, 1) if path.suffix == ".tflite" else weight
        pattern = np.ascontiguousarray(arranged.astype(np.float16)).tobytes()
    if path.is_dir():
        path = path / "Data" / "com.apple.CoreML" / "weights" / "weight.bin"
    content = bytearray(path.read_bytes())
    at = bytes(content).find(pattern)
    assert at >= 0
    content[at + 1] ^= 4
    path.write_bytes(bytes(content))
    code, _, err = edge_resnet("verify", run)
    assert code == 1
    assert f"{name}/weight: 1 number differs" in err
    assert "sha256 differs" in err
