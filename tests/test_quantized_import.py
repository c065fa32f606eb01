"""Models that come quantized: their integers are carried, or what cannot be is said with the way out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from edge_resnet.data.preprocess import Preprocess
from edge_resnet.errors import GraphError, InputError
from edge_resnet.export.coreml import write_coreml
from edge_resnet.export.onnx import onnx_bytes
from edge_resnet.export.tflite import IoType, tflite_bytes
from edge_resnet.frontends.sources import SourceModel, open_model, resolve_preprocess
from edge_resnet.graph import nodes as g
from edge_resnet.graph.float_executor import FloatExecutor
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.reference import ReferenceExecutor, dequantize
from edge_resnet.runners.litert import LiteRTRunner
from edge_resnet.verify.import_check import check_import, random_images
from edge_resnet.verify.ranges import compare_ranges
from edge_resnet.verify.readback_coreml import read_coreml
from edge_resnet.verify.readback_onnx import read_onnx
from edge_resnet.verify.readback_tflite import read_tflite
from tests.conftest import quantized, write_image_folder
from tests.random_graphs import random_graph, random_pixels

Command = Callable[..., tuple[int, str, str]]
SEEDS = st.integers(0, 1_000_000)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # with 0.5, half of all bytes would lie on a tie
RAW = {"mean": (0.0,) * 3, "std": (1 / 255,) * 3}


def _open(path: Path, keep_integers: bool = True, **overrides: Any) -> tuple[SourceModel, Preprocess]:
    source = open_model(str(path), None, None, 0, keep_integers=keep_integers)
    return source, resolve_preprocess({"mean": MEAN, "std": STD, **source.preprocess_defaults}, overrides)


def _graph(path: Path, keep_integers: bool = True, **overrides: Any) -> Graph:
    source, preprocess = _open(path, keep_integers, **overrides)
    return source.graph(preprocess)


def _answers(graph: Graph, pixels: np.ndarray) -> np.ndarray:
    assert graph.output.quant is not None
    return dequantize(ReferenceExecutor(graph).run(pixels), graph.output.quant)


# Models that ONNX Runtime quantized.


def _float_model(folder: Path) -> Path:
    """A small residual network as an exporter writes it."""
    rng = np.random.default_rng(3)

    def conv(name: str, x: str, y: str, out: int, inputs: int, kernel: int, **attributes: Any) -> None:
        spread = (inputs * kernel**2) ** -0.5
        weight = rng.normal(0, spread, (out, inputs, kernel, kernel)).astype(np.float32)
        constants[f"{name}.weight"] = weight
        constants[f"{name}.bias"] = rng.normal(0, 0.1, out).astype(np.float32)
        nodes.append(
            helper.make_node("Conv", [x, f"{name}.weight", f"{name}.bias"], [y], name=name, **attributes)
        )

    constants: dict[str, np.ndarray] = {}
    nodes: list[onnx.NodeProto] = []
    conv("stem", "x", "s", 8, 3, 3, strides=[2, 2], pads=[1] * 4)
    nodes.append(helper.make_node("Relu", ["s"], ["sr"]))
    nodes.append(helper.make_node("MaxPool", ["sr"], ["p"], kernel_shape=[2, 2], strides=[2, 2]))
    conv("one", "p", "a", 8, 8, 3, pads=[1] * 4)
    nodes.append(helper.make_node("Relu", ["a"], ["ar"]))
    conv("two", "ar", "b", 8, 8, 3, pads=[1] * 4)
    nodes.append(helper.make_node("Add", ["b", "p"], ["sum"], name="sum"))
    nodes.append(helper.make_node("Relu", ["sum"], ["r"]))
    nodes.append(helper.make_node("GlobalAveragePool", ["r"], ["g"]))
    nodes.append(helper.make_node("Flatten", ["g"], ["f"]))
    constants["fc.weight"] = rng.normal(0, 0.3, (5, 8)).astype(np.float32)
    constants["fc.bias"] = rng.normal(0, 0.1, 5).astype(np.float32)
    nodes.append(helper.make_node("Gemm", ["f", "fc.weight", "fc.bias"], ["logits"], name="fc", transB=1))
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", 1, ["N", 3, 16, 16])],
        [helper.make_tensor_value_info("logits", 1, ["N", 5])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = folder / "float.onnx"
    onnx.save(model, str(path))
    return path


def _images(count: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (count, 16, 16, 3), np.uint8)


class _Reader:
    """Calibration data for onnxruntime.quantization."""

    def __init__(self) -> None:
        images = Preprocess((16, 16), MEAN, STD).normalized(_images(12)).numpy()
        self._left = [{"x": image[None]} for image in images]

    def get_next(self) -> dict[str, np.ndarray] | None:
        return self._left.pop() if self._left else None


def _quantized_by_onnx_runtime(folder: Path, **options: Any) -> Path:
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    path = folder / "static.onnx"
    values: dict[str, Any] = {
        "quant_format": QuantFormat.QDQ,
        "activation_type": QuantType.QUInt8,
        "weight_type": QuantType.QInt8,
        "per_channel": True,
        "extra_options": {"ActivationSymmetric": False, "WeightSymmetric": True},
        **options,
    }
    quantize_static(str(_float_model(folder)), str(path), _Reader(), **values)
    return path


def _parameters_of_file(path: Path) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(str(path)).graph.initializer}


def _static_options() -> list[Any]:
    from onnxruntime.quantization import QuantFormat, QuantType

    return [
        pytest.param(
            {"quant_format": form, "activation_type": kind, "per_channel": per_channel},
            id=f"{form.name}-{kind.name}-{'channel' if per_channel else 'tensor'}",
        )
        for form in (QuantFormat.QDQ, QuantFormat.QOperator)
        for kind in (QuantType.QUInt8, QuantType.QInt8)
        for per_channel in (True, False)
    ]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("options", _static_options())
def test_integers_of_onnx_runtime_are_carried(tmp_path: Path, options: dict[str, Any]) -> None:
    path = _quantized_by_onnx_runtime(tmp_path, **options)
    graph = _graph(path)
    assert graph.is_quantized
    stored = _parameters_of_file(path)
    weighted = [node for node in graph.nodes if isinstance(node, g.Conv | g.Linear)]
    assert len(weighted) == 4
    for node, name in zip(weighted, ("stem", "one", "two", "fc"), strict=True):
        assert isinstance(node.weights, g.IntWeights)
        weight = stored[f"{name}.weight_quantized"]
        shape = node.weights.weight.shape
        if weight.shape != shape:  # QOperator turns the classifier's
            weight = weight.T
        assert np.array_equal(node.weights.weight, weight)
        assert np.array_equal(node.weights.scale, np.broadcast_to(stored[f"{name}.weight_scale"], shape[:1]))
        assert np.array_equal(node.weights.bias, stored[f"{name}.bias_quantized"].reshape(-1))
    # Every scale and zero point of an activation in the graph is one of the file's, and the other way round.
    shift = 128 if options["activation_type"].name == "QUInt8" else 0
    in_file = {
        (float(scale), int(stored[name.replace("_scale", "_zero_point")]) - shift)
        for name, scale in stored.items()
        if name.endswith("_scale") and ".weight" not in name and ".bias" not in name
    }
    in_graph = {(node.quant.scale, node.quant.zero_point) for node in graph.nodes if node.quant is not None}
    assert in_graph - {(1.0, -128)} <= in_file
    assert len(in_file - in_graph) <= 1  # a tensor in front of a ReLU, which the graph fuses
    _agrees_within_a_step(path, graph)


def _agrees_within_a_step(path: Path, graph: Graph) -> None:
    source, preprocess = _open(path)
    runner = source.runner(preprocess)
    pixels = _images(16)
    assert graph.output.quant is not None
    steps = np.abs(_answers(graph, pixels) - runner.logits(pixels)) / graph.output.quant.scale
    assert steps.max() <= 1.001
    check_import("m", graph, runner, pixels)


@pytest.mark.filterwarnings("ignore")
def test_requantize_reads_floats(tmp_path: Path) -> None:
    path = _quantized_by_onnx_runtime(tmp_path)
    graph = _graph(path, keep_integers=False)
    assert not any(node.quant for node in graph.nodes)
    assert not any(isinstance(getattr(node, "weights", None), g.IntWeights) for node in graph.nodes)
    source, preprocess = _open(path)
    pixels = _images(8)
    expected = source.runner(preprocess).logits(pixels)
    np.testing.assert_allclose(FloatExecutor(graph).run(pixels), expected, atol=0.1 * np.ptp(expected))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", ["asymmetric", "activations16"])
def test_integers_that_cannot_be_carried(tmp_path: Path, case: str) -> None:
    from onnxruntime.quantization import QuantType

    options: dict[str, Any] = {
        "weight_type": QuantType.QUInt8,
        "per_channel": False,
        "extra_options": {"WeightSymmetric": False},
    }
    if case == "activations16":
        options = {
            "activation_type": QuantType.QUInt16,
            "extra_options": {"UseQDQContribOps": True, "WeightSymmetric": True},
        }
    path = _quantized_by_onnx_runtime(tmp_path, **options)
    with pytest.raises(InputError, match="--requantize") as error:
        _graph(path)
    assert "\n" not in str(error.value)
    assert ("asymmetric weights" if case == "asymmetric" else "8 bit can be carried") in str(error.value)
    graph = _graph(path, keep_integers=False)
    source, preprocess = _open(path, keep_integers=False)
    check_import("m", graph, source.runner(preprocess), _images(4), rounded=True)


@pytest.mark.filterwarnings("ignore")
def test_dynamic_quantization(tmp_path: Path) -> None:
    from onnxruntime.quantization import quantize_dynamic

    path = tmp_path / "dynamic.onnx"
    quantize_dynamic(str(_float_model(tmp_path)), str(path))
    with pytest.raises(InputError, match=r"dynamic quantization.*export the float model") as error:
        _graph(path)
    assert "\n" not in str(error.value)


# Our own .tflite files.


@pytest.mark.parametrize("io", list(IoType))
@given(seed=SEEDS, blocks=st.integers(0, 4))
@settings(max_examples=12)
def test_our_tflite_files_come_back_and_leave_again(
    tmp_path_factory: pytest.TempPathFactory, io: IoType, seed: int, blocks: int
) -> None:
    """The same integers on LiteRT to the bit, and in the twins for other runtimes."""
    folder = tmp_path_factory.mktemp("tflite")
    first = quantized(random_graph(seed, blocks), seed)
    path, again = folder / "first.tflite", folder / "again.tflite"
    path.write_bytes(tflite_bytes(first, io))
    graph = _graph(path, **(RAW if io is IoType.FLOAT32 else {}))
    assert graph.is_quantized
    assert compare_ranges(graph, read_tflite(path)).checked > 0
    again.write_bytes(tflite_bytes(graph, io))
    check = compare_ranges(graph, read_tflite(again))
    assert check.mismatches == ()
    assert check.checked > 5
    _same_weights(first, graph)
    pixels = random_pixels(graph, 4, seed)
    expected = LiteRTRunner(path).logits(pixels)
    assert np.array_equal(LiteRTRunner(again).logits(pixels), expected)
    assert np.array_equal(_answers(graph, pixels), expected)
    twin = folder / "twin.onnx"
    twin.write_bytes(onnx_bytes(graph))
    assert compare_ranges(graph, read_onnx(twin)).mismatches == ()


def test_float_ends_of_a_model_that_normalizes_itself(tmp_path: Path) -> None:
    """Its image then is no tensor of integers, which is no difference."""
    first = quantized(random_graph(3, 1), 3)
    path, again = tmp_path / "first.tflite", tmp_path / "again.tflite"
    path.write_bytes(tflite_bytes(first, IoType.FLOAT32))
    graph = _graph(path)  # it takes numbers that are normalized otherwise than its own integers
    assert any(isinstance(node, g.Normalize) for node in graph.nodes)
    for io in (IoType.FLOAT32, IoType.UINT8):
        again.write_bytes(tflite_bytes(graph, io))
        assert compare_ranges(graph, read_tflite(again)).mismatches == ()


def _same_weights(first: Graph, second: Graph) -> None:
    pairs = [[n for n in graph.nodes if isinstance(n, g.Conv | g.Linear)] for graph in (first, second)]
    for before, after in zip(*pairs, strict=True):
        assert before.quant == after.quant
        assert isinstance(before.weights, g.IntWeights)
        assert isinstance(after.weights, g.IntWeights)
        for field in ("weight", "scale", "bias"):
            assert np.array_equal(getattr(before.weights, field), getattr(after.weights, field)), before.name


@given(seed=SEEDS)
@settings(max_examples=3)
def test_the_core_ml_twin_of_a_tflite_file(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    folder = tmp_path_factory.mktemp("twin")
    path = folder / "first.tflite"
    path.write_bytes(tflite_bytes(quantized(random_graph(seed, 2), seed)))
    graph = _graph(path)
    write_coreml(graph, folder / "twin.mlpackage", precision="float32", labels=())
    assert compare_ranges(graph, read_coreml(folder / "twin.mlpackage")).mismatches == ()


@given(seed=SEEDS)
@settings(max_examples=8)
def test_float_tflite_files(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    from edge_resnet.graph.passes import simplify

    first = simplify(random_graph(seed, 3))
    path = tmp_path_factory.mktemp("float") / "g.tflite"
    path.write_bytes(tflite_bytes(first))
    source, preprocess = _open(path)
    graph = source.graph(preprocess)
    check_import("m", graph, source.runner(preprocess), random_images(graph))


@given(seed=SEEDS)
@settings(max_examples=8)
def test_our_int8_tflite_as_floats(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    """--requantize: no integers are left, and the function is about the same."""
    path = tmp_path_factory.mktemp("floats") / "g.tflite"
    path.write_bytes(tflite_bytes(quantized(random_graph(seed, 2), seed)))
    graph = _graph(path, keep_integers=False)
    assert not any(node.quant for node in graph.nodes)
    source, preprocess = _open(path)
    pixels = random_pixels(graph, 4, seed)
    check_import("m", graph, source.runner(preprocess), pixels, rounded=True)


@pytest.mark.parametrize("content", [b"", b"rubbish" * 100, b"\x1c\0\0\0TFL3" + b"\0" * 40, b"\1\0\0\0TFL3"])
def test_files_that_are_no_tflite(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.tflite"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"m\.tflite: ") as error:
        _open(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_a_float_tflite_with_weights_that_are_no_numbers(tmp_path: Path, wrong: float) -> None:
    from edge_resnet.graph.passes import simplify

    first = simplify(random_graph(1, 0))
    last = first.output
    assert isinstance(last, g.Linear)
    assert isinstance(last.weights, g.FloatWeights)
    last.weights.weight[0, 0] = wrong
    path = tmp_path / "g.tflite"
    path.write_bytes(tflite_bytes(first))
    with pytest.raises((InputError, GraphError), match="NaN or infinite"):
        _graph(path)


# Through the command line.


def test_a_tflite_file_of_a_run_goes_through_another(edge_resnet: Command, tmp_path: Path) -> None:
    images = tmp_path / "images"
    write_image_folder(images, ("blue", "green", "red"))
    quick = [
        *("--set", "calibration.images=16", "--set", "benchmark.runs=0", "--set", "evaluate.images=12"),
        *("--data", images),
    ]
    first = tmp_path / "first"
    code, _, err = edge_resnet("compress", "resnet20", "--target", "tflite-int8", *quick, "--out", first)
    assert code == 0, err
    second = tmp_path / "second"
    source = first / "resnet20-tflite-int8.tflite"
    code, _, err = edge_resnet(
        "compress", source, "--target", "tflite-int8", "--target", "onnx-int8", *quick, "--out", second
    )
    assert code == 0, err
    report = json.loads((second / "report.json").read_text())
    check = report["model"]["import_check"]
    assert check["images"] > 0
    assert "LiteRT" in check["runtime"]
    assert check["max_abs"] == 0
    assert {artifact["target"] for artifact in report["artifacts"]} == {"tflite-int8", "onnx-int8"}
    for artifact in report["artifacts"]:
        assert artifact["ranges"]["checked"] == artifact["ranges"]["equal"] > 40
        assert artifact["parity"]["identical"] == 1.0


@pytest.mark.parametrize("index", [-2, -(2**31), 2**31 - 1])
@pytest.mark.parametrize("where", ["inputs", "outputs"])
def test_tensors_that_do_not_exist(tmp_path: Path, index: int, where: str) -> None:
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(bytes(tflite_bytes(quantized(random_graph(3, 1)))), 0)
    operator = model.subgraphs[0].operators[3]
    setattr(operator, where, [index, *getattr(operator, where)[1:]])
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    path = tmp_path / "m.tflite"
    path.write_bytes(bytes(builder.Output()))
    with pytest.raises(InputError, match="damaged TFLite file") as error:
        _graph(path)
    assert "\n" not in str(error.value)
