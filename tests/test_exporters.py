"""What is written is accepted by tools not written here, says the graph's integers, and computes them."""

from __future__ import annotations

import contextlib
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from ai_edge_litert import schema_py_generated as schema
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_resnet.compression.rounding_ties import tie_free_scale
from edge_resnet.errors import GraphError, VerificationError
from edge_resnet.export.coreml import write_coreml
from edge_resnet.export.onnx import onnx_bytes
from edge_resnet.export.tflite import IoType, tflite_bytes
from edge_resnet.files import sha256_of
from edge_resnet.graph.float_executor import FloatExecutor
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.nodes import GlobalAvgPool, Input, QuantParams
from edge_resnet.graph.passes import fold_normalization_std, lower_average_pools, simplify
from edge_resnet.graph.reference import ReferenceExecutor, dequantize
from edge_resnet.runners.litert import Kernels, LiteRTRunner
from edge_resnet.runners.mil_evaluator import MilEvaluator
from edge_resnet.runners.onnxruntime import OnnxRuntimeRunner
from edge_resnet.verify.ranges import compare_ranges
from edge_resnet.verify.readback_coreml import read_coreml
from edge_resnet.verify.readback_onnx import read_onnx
from edge_resnet.verify.readback_tflite import read_tflite
from tests.conftest import quantized
from tests.random_graphs import random_graph, random_pixels

SEEDS = st.integers(0, 1_000_000)


def _expected(graph: Graph, pixels: np.ndarray) -> np.ndarray:
    assert graph.output.quant is not None
    return dequantize(ReferenceExecutor(graph).run(pixels), graph.output.quant)


def _file(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


@given(seed=SEEDS, blocks=st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_logits_are_identical_on_all_cpu_runtimes(
    tmp_path_factory: pytest.TempPathFactory, seed: int, blocks: int
) -> None:
    """The promise: reference = ONNX Runtime = LiteRT/XNNPACK, to the bit, on random residual graphs."""
    graph = quantized(random_graph(seed, blocks), seed)
    folder, pixels = tmp_path_factory.mktemp("same"), random_pixels(graph, 6, seed + 1)
    expected = _expected(graph, pixels)
    tflite = _file(folder, "g.tflite", tflite_bytes(graph))
    onnx_file = _file(folder, "g.onnx", onnx_bytes(graph))
    assert np.array_equal(LiteRTRunner(tflite).logits(pixels), expected)
    assert np.array_equal(OnnxRuntimeRunner(onnx_file).logits(pixels), expected)
    assert compare_ranges(graph, read_tflite(tflite)).mismatches == ()
    assert compare_ranges(graph, read_onnx(onnx_file)).mismatches == ()


@pytest.mark.parametrize("seed", [10_000_851, 10_002_286, 10_004_275, 10_005_140])
def test_averages_near_a_tie(tmp_path: Path, seed: int) -> None:
    """Graphs whose averages once fell on rounding ties, where the runtimes differ (rounding_ties.py)."""
    graph = quantized(random_graph(seed, seed % 6), seed)
    pixels = random_pixels(graph, 4, seed)
    path = _file(tmp_path, "g.tflite", tflite_bytes(graph))
    assert np.array_equal(LiteRTRunner(path).logits(pixels), _expected(graph, pixels))


@given(
    seed=SEEDS,
    sides=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    ratio=st.sampled_from([1.0, 1.5, 2.0, 3.0, 4.0, 5.3]),
    zeros=st.tuples(st.integers(-128, 60), st.integers(-128, 60)),
)
@settings(max_examples=60)
def test_averages_agree_for_any_parameters(
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    sides: tuple[int, int],
    ratio: float,
    zeros: tuple[int, int],
) -> None:
    """A pool alone, at scales that would make half of all averages ties: LiteRT equals the reference."""
    scale = 0.03125
    smallest = float(np.float16(scale / ratio))
    average = QuantParams(tie_free_scale(smallest, scale, sides[0] * sides[1]), zeros[1])
    source = Input(name="image", shape=(16, *sides), quant=QuantParams(scale, zeros[0]))
    graph = Graph("pool", (source, GlobalAvgPool(name="pool", inputs=("image",), quant=average)))
    pixels = random_pixels(graph, 20, seed)
    path = _file(tmp_path_factory.mktemp("pool"), "g.tflite", tflite_bytes(graph))
    got = LiteRTRunner(path).logits(pixels).transpose(0, 3, 1, 2)
    assert np.array_equal(got, _expected(graph, pixels))


@pytest.mark.parametrize("io", list(IoType))
def test_every_kind_of_ends_gives_the_same_logits(tmp_path: Path, small_quantized: Graph, io: IoType) -> None:
    path = _file(tmp_path, "g.tflite", tflite_bytes(small_quantized, io))
    pixels = random_pixels(small_quantized, 4)
    assert np.array_equal(LiteRTRunner(path).logits(pixels), _expected(small_quantized, pixels))
    assert compare_ranges(small_quantized, read_tflite(path)).mismatches == ()
    subgraph = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0).subgraphs[0]
    types = {
        schema.TensorType.UINT8: "uint8",
        schema.TensorType.INT8: "int8",
        schema.TensorType.FLOAT32: "float32",
    }
    assert types[subgraph.tensors[subgraph.inputs[0]].type] == io.value
    assert types[subgraph.tensors[subgraph.outputs[0]].type] == ("int8" if io is IoType.INT8 else "float32")


def test_reference_kernels_accept_the_file(tmp_path: Path, small_quantized: Graph) -> None:
    path = _file(tmp_path, "g.tflite", tflite_bytes(small_quantized))
    pixels = random_pixels(small_quantized, 4)
    expected = _expected(small_quantized, pixels)
    assert small_quantized.output.quant is not None
    lsb = np.abs(LiteRTRunner(path, Kernels.REFERENCE).logits(pixels) - expected)
    # They round twice, in fixed point: a few steps apart, not more.
    assert lsb.max() / small_quantized.output.quant.scale < 10


@given(seed=SEEDS)
@settings(max_examples=15, deadline=None)
def test_float_files_compute_the_float_graph(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    graph = simplify(random_graph(seed, 3))
    pixels = random_pixels(graph, 4, seed)
    expected = FloatExecutor(graph).run(pixels)
    folder = tmp_path_factory.mktemp("float")
    for version in (graph, fold_normalization_std(graph)):
        tflite = _file(folder, "g.tflite", tflite_bytes(version))
        onnx_file = _file(folder, "g.onnx", onnx_bytes(version))
        for runner in (LiteRTRunner(tflite), OnnxRuntimeRunner(onnx_file)):
            got = runner.logits(pixels)
            np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def test_float_ends_of_a_float_file(tmp_path: Path, small_graph: Graph) -> None:
    graph = simplify(small_graph)
    pixels = random_pixels(graph, 2)
    path = _file(tmp_path, "g.tflite", tflite_bytes(graph, IoType.FLOAT32))
    np.testing.assert_allclose(LiteRTRunner(path).logits(pixels), FloatExecutor(graph).run(pixels), atol=1e-3)
    with pytest.raises(GraphError, match="no int8 ends"):
        tflite_bytes(graph, IoType.INT8)


def test_onnx_passes_the_full_checker(tmp_path: Path, small_graph: Graph, small_quantized: Graph) -> None:
    for graph in (small_quantized, simplify(small_graph)):
        path = _file(tmp_path, "g.onnx", onnx_bytes(graph))
        onnx.checker.check_model(str(path), full_check=True)
        model = onnx.load(str(path))
        assert model.metadata_props[0].value.split("\n") == list(graph.labels)


def test_onnx_runtime_fuses_everything(tmp_path: Path) -> None:
    from edge_resnet.frontends.torch_export import graph_from_module
    from edge_resnet.models.cifar_resnet import CifarResNet

    graph = quantized(graph_from_module(CifarResNet(8, shortcut="B"), "m", (32, 32), (0.5,) * 3, (0.25,) * 3))
    path, optimized = _file(tmp_path, "g.onnx", onnx_bytes(graph)), tmp_path / "optimized.onnx"
    OnnxRuntimeRunner(path, optimized=optimized)
    kinds = Counter(node.op_type for node in onnx.load(str(optimized)).graph.node)
    assert kinds.pop("DequantizeLinear") == 1
    assert kinds.pop("Transpose", 0) <= 2  # ONNX Runtime's own, into and out of its channels-last kernels
    assert set(kinds) == {"QLinearConv", "QLinearAdd", "QLinearGlobalAveragePool", "QGemm", "Flatten"}


@given(seed=SEEDS)
@settings(max_examples=15, deadline=None)
def test_tflite_holds_no_layout_changes_and_no_inner_floats(seed: int) -> None:
    graph = quantized(random_graph(seed, 4))
    model = schema.ModelT.InitFromPackedBuf(tflite_bytes(graph), 0)
    names = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
    kinds = {names[code.builtinCode] for code in model.operatorCodes}
    assert not kinds & {"TRANSPOSE", "STRIDED_SLICE", "CAST"}
    subgraph = model.subgraphs[0]
    floats = [index for index, t in enumerate(subgraph.tensors) if t.type == schema.TensorType.FLOAT32]
    assert floats == list(subgraph.outputs)


def test_tflite_buffers_are_aligned(small_quantized: Graph) -> None:
    data = tflite_bytes(small_quantized)
    model = schema.Model.GetRootAs(data, 0)
    for index in range(1, model.BuffersLength()):
        vector = model.Buffers(index)._tab
        assert vector.Vector(vector.Offset(4)) % 16 == 0


@pytest.mark.parametrize("precision", ["float16", "float32"])
@given(seed=SEEDS)
@settings(max_examples=4, deadline=None)
def test_core_ml_holds_the_integers(
    tmp_path_factory: pytest.TempPathFactory, precision: str, seed: int
) -> None:
    graph = quantized(random_graph(seed, 3))
    path = tmp_path_factory.mktemp("coreml") / "g.mlpackage"
    write_coreml(graph, path, precision=precision, labels=graph.labels)  # type: ignore[arg-type]
    assert compare_ranges(graph, read_coreml(path)).mismatches == ()
    pixels = random_pixels(graph, 8)
    assert graph.output.quant is not None
    lsb = np.abs(MilEvaluator(path).logits(pixels) - _expected(graph, pixels)) / graph.output.quant.scale
    assert lsb.mean() < (2.0 if precision == "float16" else 0.3)


def test_core_ml_float_and_its_ends(tmp_path: Path, small_graph: Graph) -> None:
    import coremltools as ct

    graph = fold_normalization_std(lower_average_pools(simplify(small_graph)))
    path = tmp_path / "g.mlpackage"
    write_coreml(graph, path, precision="float16", labels=graph.labels)
    pixels = random_pixels(graph, 6)
    expected, got = FloatExecutor(graph).run(pixels), MilEvaluator(path).logits(pixels)
    np.testing.assert_allclose(got, expected, atol=0.03 * np.abs(expected).max())
    description = ct.models.MLModel(str(path), skip_model_load=True).get_spec().description
    assert description.input[0].type.WhichOneof("Type") == "imageType"
    assert [o.name for o in description.output] == ["classLabel", "classLabel_probs", "logits"]
    assert description.predictedFeatureName == "classLabel"


def test_every_format_is_byte_identical_twice(tmp_path: Path, small_quantized: Graph) -> None:
    assert tflite_bytes(small_quantized) == tflite_bytes(small_quantized)
    assert onnx_bytes(small_quantized) == onnx_bytes(small_quantized)
    digests = []
    for name in ("a.mlpackage", "b.mlpackage"):
        write_coreml(small_quantized, tmp_path / name, precision="float16", labels=small_quantized.labels)
        digests.append(sha256_of(tmp_path / name))
    assert digests[0] == digests[1]
    assert not [entry for entry in tmp_path.iterdir() if entry.name.startswith(".")]


def test_core_ml_replaces_an_old_package(tmp_path: Path, small_quantized: Graph) -> None:
    path = tmp_path / "g.mlpackage"
    for _ in range(2):
        write_coreml(small_quantized, path, precision="float32", labels=small_quantized.labels)
    assert compare_ranges(small_quantized, read_coreml(path)).mismatches == ()
    assert [entry.name for entry in tmp_path.iterdir()] == ["g.mlpackage"]


@pytest.mark.parametrize("reader", [read_tflite, read_onnx, read_coreml])
@pytest.mark.parametrize("content", [b"", b"rubbish" * 100])
def test_files_that_are_no_artifacts(tmp_path: Path, reader: object, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(VerificationError, match="file"):
        reader(path)  # type: ignore[operator]


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_damaged_files_raise_one_kind_of_error(
    tmp_path_factory: pytest.TempPathFactory, small_quantized: Graph, data: st.DataObject
) -> None:
    """Random bytes changed or cut: read back as something else, or refused; never another exception."""
    content, reader = data.draw(
        st.sampled_from(
            [(tflite_bytes(small_quantized), read_tflite), (onnx_bytes(small_quantized), read_onnx)]
        )
    )
    damaged = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.one_of(st.just(len(damaged)), st.integers(0, len(damaged))))
    path = _file(tmp_path_factory.mktemp("damaged"), "file", bytes(damaged[:cut]))
    with contextlib.suppress(VerificationError):
        compare_ranges(small_quantized, reader(path))
