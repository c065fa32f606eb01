"""ONNX files become graphs that compute what ONNX Runtime computes, or are refused with one line."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from edge_resnet.data.preprocess import Preprocess
from edge_resnet.errors import InputError, UnsupportedOperatorError
from edge_resnet.export.onnx import onnx_bytes
from edge_resnet.frontends.sources import SourceModel, open_model, resolve_preprocess
from edge_resnet.graph import nodes as g
from edge_resnet.graph.float_executor import FloatExecutor
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.passes import simplify
from edge_resnet.graph.reference import ReferenceExecutor, dequantize
from edge_resnet.models.cifar_resnet import CifarResNet
from edge_resnet.runners.onnxruntime import OnnxRuntimeRunner
from edge_resnet.verify.import_check import check_import, random_images
from tests.conftest import quantized
from tests.random_graphs import random_graph, random_pixels

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RNG = np.random.default_rng(0)
OPSETS = [9, 11, 13, 17, 21]


def _open(
    path: Path, size: tuple[int, int] | None = None, **overrides: Any
) -> tuple[SourceModel, Preprocess]:
    source = open_model(str(path), None, None, 0, output=overrides.pop("output", None))
    values: dict[str, Any] = {"mean": MEAN, "std": STD, **overrides}
    if size is not None:
        values["size"] = size
    return source, resolve_preprocess({**values, **source.preprocess_defaults}, {})


def _imported(path: Path, size: tuple[int, int] | None = None, **overrides: Any) -> Graph:
    """The graph, as read and simplified, both compared with ONNX Runtime on the file."""
    source, preprocess = _open(path, size, **overrides)
    graph = source.graph(preprocess)
    for version in (graph, simplify(graph)):
        check_import(source.name, version, source.runner(preprocess), random_images(version))
    return graph


def _f32(*shape: int, spread: float = 0.3) -> np.ndarray:
    return RNG.normal(0, spread, shape).astype(np.float32)


class _Model:
    """A model by hand: nodes in their order, each answers the name of its output."""

    def __init__(self, opset: int = 17, size: Sequence[int | str] = (1, 3, 8, 10), kind: int = 1) -> None:
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.input = helper.make_tensor_value_info("x", kind, size)
        self.outputs: list[str] = []

    def add(self, kind: str, *inputs: str | np.ndarray | None, outputs: int = 1, **attributes: Any) -> str:
        names = [self.constant(i) if isinstance(i, np.ndarray) else i or "" for i in inputs]
        made = [f"{kind.lower()}{len(self.nodes)}_{number}" for number in range(outputs)]
        self.nodes.append(helper.make_node(kind, names, made, name=f"the_{made[0]}", **attributes))
        return made[0]

    def constant(self, value: np.ndarray) -> str:
        name = f"constant{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(value, name))
        return name

    def made(self, *outputs: str, kind: int = TensorProto.FLOAT) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "hand-made",
            [self.input],
            [helper.make_tensor_value_info(name, kind, ["n", "m"]) for name in outputs],
            self.constants,
        )
        versions = {9: 4, 11: 6, 13: 7, 17: 8, 21: 10}
        return helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=versions[self.opset]
        )

    def saved(self, folder: Path, *outputs: str, kind: int = TensorProto.FLOAT) -> Path:
        path = folder / "model.onnx"
        path.write_bytes(self.made(*outputs, kind=kind).SerializeToString())
        return path

    # What moved from attributes to inputs.

    def axes(self, kind: str, x: str, axes: list[int], **attributes: Any) -> str:
        """Squeeze, Unsqueeze (inputs since 13), ReduceMean (since 18)."""
        since = 18 if kind == "ReduceMean" else 13
        if self.opset < since:
            return self.add(kind, x, axes=axes, **attributes)
        return self.add(kind, x, np.array(axes, np.int64), **attributes)

    def clip(self, x: str, low: float, high: float) -> str:
        if self.opset < 11:
            return self.add("Clip", x, min=float(low), max=float(high))
        return self.add("Clip", x, np.array(low, np.float32), np.array(high, np.float32))

    def pad(self, x: str, pads: list[int], mode: str = "constant") -> str:
        if self.opset < 11:
            return self.add("Pad", x, pads=pads, mode=mode)
        return self.add("Pad", x, np.array(pads, np.int64), mode=mode)

    def split(self, x: str, sizes: list[int], axis: int = 1) -> list[str]:
        if self.opset < 13:
            first = self.add("Split", x, outputs=len(sizes), axis=axis, split=sizes)
        else:
            first = self.add("Split", x, np.array(sizes, np.int64), outputs=len(sizes), axis=axis)
        return [f"{first[:-1]}{number}" for number in range(len(sizes))]

    def slice(self, x: str, starts: list[int], ends: list[int], axes: list[int], steps: list[int]) -> str:
        if self.opset < 10:
            return self.add("Slice", x, starts=starts, ends=ends, axes=axes)
        return self.add("Slice", x, *(np.array(v, np.int64) for v in (starts, ends, axes, steps)))

    # Parts.

    def conv(self, x: str, inputs: int, outputs: int, kernel: int = 3, **attributes: Any) -> str:
        weight = _f32(outputs, inputs // attributes.get("group", 1), kernel, kernel)
        return self.add("Conv", x, weight, _f32(outputs), **attributes)

    def head(self, x: str, channels: int) -> str:
        x = self.add("GlobalAveragePool", x)
        return self.add("Gemm", self.add("Flatten", x), _f32(channels, 5), _f32(5))


# Our own files come back.


@given(seed=st.integers(0, 1_000_000), blocks=st.integers(0, 4))
@settings(max_examples=15)
def test_our_float_files_come_back(tmp_path_factory: pytest.TempPathFactory, seed: int, blocks: int) -> None:
    graph = simplify(random_graph(seed, blocks))
    path = tmp_path_factory.mktemp("onnx") / "g.onnx"
    path.write_bytes(onnx_bytes(graph))
    again = simplify(_imported(path))
    pixels = random_pixels(graph, 3, seed)
    expected = FloatExecutor(graph).run(pixels)
    got = FloatExecutor(again).run(pixels)
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


@given(seed=st.integers(0, 1_000_000), blocks=st.integers(0, 4))
@settings(max_examples=15)
def test_our_integer_files_come_back(
    tmp_path_factory: pytest.TempPathFactory, seed: int, blocks: int
) -> None:
    """Every scale, zero point and integer weight, and the answers to the bit."""
    graph = quantized(random_graph(seed, blocks), seed)
    path = tmp_path_factory.mktemp("onnx") / "g.onnx"
    path.write_bytes(onnx_bytes(graph))
    again = _open(path)[0].graph(_open(path)[1])
    assert again.is_quantized
    assert again.input.quant == graph.input.quant
    assert again.output.quant == graph.output.quant
    compared = 0
    for node in again.nodes:
        if node.name not in graph.by_name:
            continue
        source = graph.by_name[node.name]
        assert node.quant == source.quant, node.name
        if isinstance(node, g.Conv | g.Linear):
            assert type(source) is type(node)
            assert isinstance(node.weights, g.IntWeights)
            for field in ("weight", "scale", "bias"):
                assert np.array_equal(getattr(node.weights, field), getattr(source.weights, field)), node.name
            compared += 1
    assert compared == sum(isinstance(node, g.Conv | g.Linear) for node in graph.nodes)
    pixels = random_pixels(graph, 4, seed)
    assert again.output.quant is not None
    got = dequantize(ReferenceExecutor(again).run(pixels), again.output.quant)
    assert np.array_equal(got, OnnxRuntimeRunner(path).logits(pixels))


# Models by hand.


def _same_upper(m: _Model) -> str:
    x = m.conv("x", 3, 4, strides=[2, 2], auto_pad="SAME_UPPER")
    x = m.add("MaxPool", m.add("Relu", x), kernel_shape=[2, 2], strides=[2, 2], auto_pad="SAME_UPPER")
    return m.head(m.conv(x, 4, 4, kernel=2, auto_pad="SAME_UPPER"), 4)


def _same_lower(m: _Model) -> str:
    x = m.conv("x", 3, 4, strides=[2, 2], auto_pad="SAME_LOWER")
    x = m.add("MaxPool", m.add("Relu", x), kernel_shape=[2, 2], strides=[2, 2], auto_pad="SAME_LOWER")
    return m.head(m.conv(x, 4, 4, kernel=2, auto_pad="SAME_LOWER"), 4)


def _valid(m: _Model) -> str:
    return m.head(m.add("Relu", m.conv("x", 3, 4, auto_pad="VALID", dilations=[2, 2])), 4)


def _constant_nodes(m: _Model) -> str:
    weight = m.add("Constant", value=numpy_helper.from_array(_f32(4, 3, 3, 3)))
    turned = m.add("Transpose", m.add("Identity", weight), perm=[0, 1, 3, 2])
    return m.head(m.add("Conv", "x", turned, pads=[1, 1, 1, 1]), 4)


def _batch_norm(m: _Model) -> str:
    x = m.add("Conv", "x", _f32(4, 3, 3, 3))
    parts = [RNG.uniform(0.5, 1.5, 4).astype(np.float32) for _ in range(4)]
    return m.head(m.add("Relu", m.add("BatchNormalization", x, *parts, epsilon=0.01)), 4)


def _reshape_chain(m: _Model) -> str:
    """What torch writes for x.view(x.size(0), -1), on an image of several rows and columns."""
    x = m.conv("x", 3, 4, strides=[2, 2])
    first = m.add("Gather", m.add("Shape", x), np.array(0, np.int64), axis=0)
    target = m.add("Concat", m.axes("Unsqueeze", first, [0]), np.array([-1], np.int64), axis=0)
    return m.add("Gemm", m.add("Reshape", x, target), _f32(5, 4 * 3 * 4), _f32(5), transB=1)


def _squeeze(m: _Model) -> str:
    x = m.add("GlobalAveragePool", m.conv("x", 3, 4))
    return m.add("MatMul", m.axes("Squeeze", x, [2, 3]), _f32(4, 5))


def _squeeze_negative(m: _Model) -> str:
    x = m.axes("ReduceMean", m.conv("x", 3, 4), [2, 3], keepdims=1)
    return m.add("Add", m.add("MatMul", m.axes("Squeeze", x, [2, 3]), _f32(4, 5)), _f32(5))


def _reduce_mean_without_axes_kept(m: _Model) -> str:
    return m.add("MatMul", m.axes("ReduceMean", m.conv("x", 3, 4), [-2, -1], keepdims=0), _f32(4, 5))


def _pad(m: _Model) -> str:
    x = m.pad("x", [0, 0, 1, 2, 0, 0, 2, 1])
    x = m.add("Relu", m.add("Conv", x, _f32(4, 3, 3, 3), strides=[2, 2]))
    return m.head(
        m.add("MaxPool", m.pad(x, [0, 0, 1, 1, 0, 0, 1, 1]), kernel_shape=[3, 3], strides=[2, 2]), 4
    )


def _pad_reflect(m: _Model) -> str:
    x = m.pad(m.conv("x", 3, 4), [0, 0, 1, 1, 0, 0, 1, 1], mode="reflect")
    return m.head(m.conv(x, 4, 4, group=4), 4)


def _pad_channels(m: _Model) -> str:
    x = m.conv("x", 3, 4)
    return m.head(m.add("Add", m.pad(x, [0, 1, 0, 0, 0, 3, 0, 0]), m.conv("x", 3, 8)), 8)


def _relu6(m: _Model) -> str:
    return m.head(m.clip(m.add("Conv", "x", _f32(4, 3, 3, 3, spread=2.0)), 0, 6), 4)


def _dropout(m: _Model) -> str:
    if m.opset < 12:
        return m.add("Dropout", m.head(m.add("Dropout", m.conv("x", 3, 4)), 4), ratio=0.4)
    return m.add("Dropout", m.head(m.conv("x", 3, 4), 4), np.array(0.4, np.float32))


def _channel_attention(m: _Model) -> str:
    """ECA: a one-dimensional convolution along the channels."""
    x = m.conv("x", 3, 6)
    gate = m.axes("Squeeze", m.add("GlobalAveragePool", x), [-1])
    gate = m.add("Transpose", gate, perm=[0, 2, 1])
    gate = m.add("Conv", gate, _f32(1, 1, 3), pads=[1, 1])
    gate = m.axes("Unsqueeze", m.add("Transpose", gate, perm=[0, 2, 1]), [3])
    return m.head(m.add("Mul", x, m.add("Sigmoid", gate)), 6)


def _squeeze_excite(m: _Model) -> str:
    x = m.conv("x", 3, 6)
    gate = m.add("Relu", m.conv(m.add("GlobalAveragePool", x), 6, 2, kernel=1))
    return m.head(m.add("Mul", m.add("Sigmoid", m.conv(gate, 2, 6, kernel=1)), x), 6)


def _squeeze_excite_by_gemm(m: _Model) -> str:
    x = m.conv("x", 3, 6)
    gate = m.add("Flatten", m.add("GlobalAveragePool", x))
    gate = m.add("Gemm", m.add("Relu", m.add("Gemm", gate, _f32(6, 2), _f32(2))), _f32(2, 6), _f32(6))
    gate = m.add("Reshape", m.add("Sigmoid", gate), np.array([0, 6, 1, 1], np.int64))
    return m.head(m.add("Mul", x, gate), 6)


def _silu(m: _Model) -> str:
    x = m.conv("x", 3, 4)
    return m.head(m.add("Mul", x, m.add("Sigmoid", x)), 4)


def _hard_sigmoid(m: _Model) -> str:
    x = m.conv("x", 3, 4)
    return m.head(m.add("Mul", x, m.add("HardSigmoid", x, alpha=0.2, beta=0.5)), 4)


def _hard_sigmoid_of_a_sixth(m: _Model) -> str:
    x = m.conv("x", 3, 4)
    return m.head(m.add("Mul", x, m.add("HardSigmoid", x, alpha=1 / 6, beta=0.5)), 4)


def _split_and_concat(m: _Model) -> str:
    first, second = m.split(m.conv("x", 3, 6), [2, 4])
    return m.head(m.add("Concat", m.conv(second, 4, 4, kernel=1), first, axis=1), 6)


def _split_of_equal_parts(m: _Model) -> str:
    x, options = m.conv("x", 3, 6), {"num_outputs": 2} if m.opset >= 18 else {}
    first = m.add("Split", x, outputs=2, axis=1, **options)
    return m.head(m.add("Add", first, f"{first[:-1]}1"), 3)


def _slice_of_channels(m: _Model) -> str:
    return m.head(m.slice(m.conv("x", 3, 6), [1], [5], [1], [1]), 4)


def _slice_of_channels_from_the_end(m: _Model) -> str:
    return m.head(m.slice(m.conv("x", 3, 6), [-4], [2**31 - 1], [1], [1]), 4)


def _sum(m: _Model) -> str:
    a, b, c = (m.conv("x", 3, 4) for _ in range(3))
    return m.head(m.add("Sum", a, b, c), 4)


def _softmax(m: _Model) -> str:
    return m.add("Softmax", m.head(m.conv("x", 3, 4), 4), axis=1)


def _average_pool(m: _Model) -> str:
    x = m.add("AveragePool", m.conv("x", 3, 4), kernel_shape=[2, 2], strides=[2, 2])
    return m.head(x, 4)


def _average_pool_with_zeros(m: _Model) -> str:
    x = m.conv("x", 3, 4)
    x = m.add("AveragePool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4, count_include_pad=1)
    return m.head(x, 4)


def _flatten_of_an_image(m: _Model) -> str:
    return m.add("Gemm", m.add("Flatten", m.conv("x", 3, 2)), _f32(2 * 6 * 8, 5), _f32(5))


def _gemm_with_a_single_bias(m: _Model) -> str:
    return m.add("Gemm", m.add("Flatten", m.conv("x", 3, 2)), _f32(2 * 6 * 8, 5), _f32(1))


def _residual(m: _Model) -> str:
    x = m.add("Relu", m.conv("x", 3, 4))
    return m.head(m.add("Relu", m.add("Add", m.conv(x, 4, 4, pads=[1] * 4), x)), 4)


def _float64_constants(m: _Model) -> str:
    weight = m.add("Cast", RNG.normal(0, 0.3, (4, 3, 3, 3)), to=1)
    return m.head(m.add("Conv", "x", weight), 4)


def _standardized_weight(m: _Model) -> str:
    """Arithmetic on constants alone."""
    weight = _f32(4, 3, 3, 3)
    centred = m.add("Sub", weight, m.add("Mul", weight, np.array(0.25, np.float32)))
    return m.head(m.add("Conv", "x", m.add("Div", centred, m.add("Sqrt", np.array(2.0, np.float32)))), 4)


BUILDS = [
    _same_upper, _same_lower, _valid, _constant_nodes, _batch_norm, _reshape_chain, _squeeze,
    _squeeze_negative, _reduce_mean_without_axes_kept, _pad, _pad_reflect, _pad_channels, _relu6, _dropout,
    _channel_attention, _squeeze_excite, _squeeze_excite_by_gemm, _silu, _hard_sigmoid,
    _hard_sigmoid_of_a_sixth, _split_and_concat, _split_of_equal_parts, _slice_of_channels,
    _slice_of_channels_from_the_end, _sum, _softmax, _average_pool, _average_pool_with_zeros,
    _flatten_of_an_image, _gemm_with_a_single_bias, _residual, _float64_constants, _standardized_weight,
]  # fmt: skip


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("build", BUILDS, ids=lambda b: b.__name__.strip("_"))
def test_models_by_hand(tmp_path: Path, build: Callable[[_Model], str], opset: int) -> None:
    m = _Model(opset)
    graph = _imported(m.saved(tmp_path, build(m)))
    assert graph.output_shape == (5,)


@pytest.mark.parametrize("opset", OPSETS)
def test_a_softmax_at_the_end_is_left_out(tmp_path: Path, opset: int) -> None:
    m = _Model(opset)
    x = m.head(m.conv("x", 3, 4), 4)
    source, preprocess = _open(m.saved(tmp_path, m.add("Softmax", x, axis=1)))
    graph = source.graph(preprocess)
    logits = FloatExecutor(graph).run(random_images(graph))
    assert np.abs(logits.sum(1) - 1).min() > 1e-3
    np.testing.assert_allclose(source.runner(preprocess).logits(random_images(graph)), logits, atol=1e-4)


@pytest.mark.parametrize("opset", OPSETS)
def test_channels_last_input_flattened_as_it_lies(tmp_path: Path, opset: int) -> None:
    """TensorFlow's way: NHWC in, NCHW within, NHWC again before the Flatten: the columns are reordered."""
    m = _Model(opset, size=("N", 8, 10, 3))
    x = m.add("Transpose", "x", perm=[0, 3, 1, 2])
    x = m.add("Relu", m.conv(x, 3, 4, strides=[2, 2], auto_pad="SAME_UPPER"))
    x = m.add("Transpose", x, perm=[0, 2, 3, 1])
    x = m.add("Reshape", x, np.array([-1, 4 * 5 * 4], np.int64))
    graph = _imported(m.saved(tmp_path, m.add("MatMul", x, _f32(80, 5))))
    assert graph.input.shape == (3, 8, 10)


def test_pairs_of_transposes_leave_nothing(tmp_path: Path) -> None:
    m = _Model()
    x = m.conv("x", 3, 4)
    for _ in range(2):
        x = m.add("Transpose", m.add("Relu", m.add("Transpose", x, perm=[0, 2, 3, 1])), perm=[0, 3, 1, 2])
    graph = _imported(m.saved(tmp_path, m.head(x, 4)))
    kinds = [type(node) for node in simplify(graph).nodes]
    assert kinds == [g.Input, g.Normalize, g.Conv, g.GlobalAvgPool, g.Flatten, g.Linear]


@pytest.mark.parametrize("opset", OPSETS)
def test_normalization_in_the_file_is_merged(tmp_path: Path, opset: int) -> None:
    m = _Model(opset)
    x = m.add("Sub", "x", np.array([0.4, 0.5, 0.6], np.float32).reshape(1, 3, 1, 1))
    x = m.add("Div", x, np.array([0.2, 0.25, 0.3], np.float32).reshape(3, 1, 1))
    x = m.add("Mul", x, np.array(1.5, np.float32))
    path = m.saved(tmp_path, m.head(m.conv(x, 3, 4, pads=[1] * 4), 4))
    graph = simplify(_imported(path, mean=(0.0,) * 3, std=(1.0,) * 3))
    assert [type(node) for node in graph.nodes[:3]] == [g.Input, g.Normalize, g.Conv]
    normalize = graph.nodes[1]
    assert isinstance(normalize, g.Normalize)
    np.testing.assert_allclose(normalize.mean, np.array([0.4, 0.5, 0.6]) * 255, rtol=1e-5)
    np.testing.assert_allclose(normalize.std, np.array([0.2, 0.25, 0.3]) * 255 / 1.5, rtol=1e-5)


def test_bytes_as_input_declare_their_normalization(tmp_path: Path) -> None:
    m = _Model(size=("N", 3, 8, 8), kind=TensorProto.UINT8)
    x = m.add("Sub", m.add("Cast", "x", to=1), np.array(110, np.float32))
    path = m.saved(tmp_path, m.head(m.conv(m.add("Div", x, np.array(60, np.float32)), 3, 4), 4))
    source = open_model(str(path), None, None, 0)
    preprocess = resolve_preprocess(source.preprocess_defaults, {})
    assert (preprocess.mean, preprocess.std) == ((0.0,) * 3, (1 / 255,) * 3)
    graph = source.graph(preprocess)
    check_import("m", graph, source.runner(preprocess), random_images(graph))


@pytest.mark.parametrize("batch", ["N", 1, 4])
def test_batches(tmp_path: Path, batch: int | str) -> None:
    m = _Model(size=(batch, 3, 8, 8))
    _imported(m.saved(tmp_path, m.head(m.conv("x", 3, 4), 4)))


def test_open_rows_and_columns_take_the_size_asked_for(tmp_path: Path) -> None:
    m = _Model(size=("N", 3, "H", "W"))
    path = m.saved(tmp_path, m.head(m.conv("x", 3, 4), 4))
    assert "size" not in open_model(str(path), None, None, 0).preprocess_defaults
    assert _imported(path, size=(12, 9)).input.shape == (3, 12, 9)


def test_float16(tmp_path: Path) -> None:
    m = _Model(kind=TensorProto.FLOAT16)
    x = m.add("Relu", m.add("Conv", "x", _f32(4, 3, 3, 3).astype(np.float16)))
    x = m.add("Flatten", m.add("GlobalAveragePool", x))
    x = m.add("Gemm", x, _f32(4, 5).astype(np.float16))
    path = m.saved(tmp_path, x, kind=TensorProto.FLOAT16)
    source, preprocess = _open(path)
    graph = source.graph(preprocess)
    pixels = random_images(graph)
    expected = source.runner(preprocess).logits(pixels)
    np.testing.assert_allclose(FloatExecutor(graph).run(pixels), expected, atol=0.01)


def test_float16_weights_behind_casts(tmp_path: Path) -> None:
    m = _Model()
    weight = m.add("Cast", _f32(4, 3, 3, 3).astype(np.float16), to=1)
    _imported(m.saved(tmp_path, m.head(m.add("Conv", "x", weight), 4)))


def test_subsampling_by_a_slice(tmp_path: Path) -> None:
    m = _Model(11)
    x = m.slice(m.conv("x", 3, 4), [0, 0], [99, 99], [2, 3], [2, 2])
    graph = _imported(m.saved(tmp_path, m.head(x, 4)))
    assert [n.stride for n in graph.nodes if isinstance(n, g.Subsample)] == [(2, 2)]


def test_local_functions_are_inlined(tmp_path: Path) -> None:
    m = _Model()
    x = m.conv("x", 3, 4)
    m.nodes.append(helper.make_node("Twice", [x], ["twice"], domain="mine"))
    model = m.made(m.head("twice", 4))
    body = [helper.make_node("Relu", ["a"], ["b"]), helper.make_node("Add", ["b", "a"], ["c"])]
    opset = helper.make_opsetid("", 17)
    model.functions.append(helper.make_function("mine", "Twice", ["a"], ["c"], body, [opset]))
    model.opset_import.append(helper.make_opsetid("mine", 1))
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    assert any(isinstance(node, g.Add) for node in _imported(path).nodes)


def test_names_of_layers_are_those_of_their_weights(tmp_path: Path) -> None:
    m = _Model()
    m.constants.append(numpy_helper.from_array(_f32(4, 3, 3, 3), "layer1.0.conv1.weight"))
    graph = _imported(m.saved(tmp_path, m.head(m.add("Conv", "x", "layer1.0.conv1.weight"), 4)))
    assert "layer1.0.conv1" in graph.by_name


# Files of torch's exporters.


def _resnet() -> nn.Module:
    torch.manual_seed(0)
    module = CifarResNet(8)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.running_var, 0.5, 1.5)
            nn.init.normal_(layer.running_mean, std=0.1)
    return module.eval()


@pytest.mark.parametrize("dynamo", [False, True])
@pytest.mark.filterwarnings("ignore")
def test_files_of_torch(tmp_path: Path, dynamo: bool) -> None:
    if dynamo:
        pytest.importorskip("onnxscript")
    module, path = _resnet(), tmp_path / "resnet8.onnx"
    options: dict[str, Any] = {} if dynamo else {"opset_version": 13, "dynamic_axes": {"x": {0: "N"}}}
    torch.onnx.export(
        module, (torch.zeros(1, 3, 32, 32),), str(path), dynamo=dynamo, input_names=["x"], **options
    )
    graph = _imported(path)
    pixels = random_images(graph)
    with torch.no_grad():
        expected = module(Preprocess((32, 32), MEAN, STD).normalized(pixels)).numpy()
    np.testing.assert_allclose(FloatExecutor(graph).run(pixels), expected, atol=1e-4 * np.abs(expected).max())


# Weights in files beside the model.


def _external(folder: Path, location: str, offset: int = 0, length: int | None = None) -> Path:
    m = _Model()
    model = m.made(m.head(m.add("Conv", "x", _f32(4, 3, 3, 3)), 4))
    tensor = model.graph.initializer[0]
    data = tensor.raw_data
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entries = {
        "location": location,
        "offset": str(offset),
        "length": str(len(data) if length is None else length),
    }
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    (folder / "weights.bin").write_bytes(data)
    return path


def _read(path: Path, **options: Any) -> Graph:
    source, preprocess = _open(path, **options)
    return source.graph(preprocess)


def _refused(path: Path, message: str, kind: type[Exception] = InputError, **options: Any) -> str:
    """One line that says so, at the opening or at the import."""
    with pytest.raises(kind, match=message) as error:
        _read(path, **options)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600
    return str(error.value)


def test_weights_in_a_file_beside_the_model(tmp_path: Path) -> None:
    source, preprocess = _open(_external(tmp_path, "weights.bin"))
    graph = source.graph(preprocess)
    check_import("m", graph, source.runner(preprocess), random_images(graph))


def test_weights_in_a_folder_below(tmp_path: Path) -> None:
    path = _external(tmp_path, "below/weights.bin")
    (tmp_path / "below").mkdir()
    (tmp_path / "weights.bin").rename(tmp_path / "below" / "weights.bin")
    source, preprocess = _open(path)
    source.graph(preprocess)


@pytest.mark.parametrize(
    "location",
    ["../weights.bin", "/etc/passwd", "a/../../weights.bin", "C:\\weights.bin", "..\\weights.bin", ""],
)
def test_weights_outside_the_folder_are_refused(tmp_path: Path, location: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "weights.bin").write_bytes(b"0" * 432)
    _refused(_external(folder, location), "outside the model's folder")


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    path = _external(folder, "link.bin")
    (folder / "weights.bin").rename(tmp_path / "weights.bin")
    (folder / "link.bin").symlink_to(tmp_path / "weights.bin")
    _refused(path, "outside the model's folder")


def test_a_pipe_as_weights_is_refused(tmp_path: Path) -> None:
    path = _external(tmp_path, "pipe")
    os.mkfifo(tmp_path / "pipe")
    _refused(path, "pipe")


@pytest.mark.parametrize(
    ("location", "offset", "length"),
    [
        ("missing.bin", 0, None),
        ("weights.bin", 100, None),
        ("weights.bin", 10**15, None),
        ("weights.bin", -4, None),
        ("weights.bin", 0, 400),
        ("weights.bin", 0, 10**15),
        ("weights.bin", 0, -1),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    tmp_path: Path, location: str, offset: int, length: int | None
) -> None:
    _refused(_external(tmp_path, location, offset, length), "no such external|external data of|raw_data size")


# What is refused.


def test_two_inputs(tmp_path: Path) -> None:
    m = _Model()
    model = m.made(m.head(m.add("Add", "x", "y"), 3))
    model.graph.input.append(helper.make_tensor_value_info("y", 1, [1, 3, 8, 10]))
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    _refused(path, "one input, this model has 2: x, y")


def test_several_outputs(tmp_path: Path) -> None:
    m = _Model()
    x = m.conv("x", 3, 4)
    first, second = m.head(x, 4), m.head(m.add("Relu", x), 4)
    path = m.saved(tmp_path, first, second)
    assert f"--output {first} | {second}" in _refused(path, "2 outputs")
    assert f"--output {first} | {second}" in _refused(path, "no output 'other'", output="other")
    answers = []
    for name in (first, second):
        source, preprocess = _open(path, output=name)
        graph = source.graph(preprocess)
        check_import("m", graph, source.runner(preprocess), random_images(graph))
        answers.append(FloatExecutor(graph).run(random_images(graph)))
    assert np.abs(answers[0] - answers[1]).max() > 1e-3


def test_an_unknown_operator_is_named_with_its_node(tmp_path: Path) -> None:
    m = _Model()
    x = m.add("Erf", m.conv("x", 3, 4))
    text = _refused(m.saved(tmp_path, m.head(x, 4)), "operator Erf", UnsupportedOperatorError)
    assert "'the_erf1_0'" in text


def test_an_operator_of_another_domain_is_named(tmp_path: Path) -> None:
    m = _Model()
    x = m.conv("x", 3, 4)
    m.nodes.append(helper.make_node("Relu", [x], ["strange"], name="odd", domain="evil"))
    model = m.made(m.head("strange", 4))
    model.opset_import.append(helper.make_opsetid("evil", 1))
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    assert "'odd'" in _refused(path, "evil.Relu", UnsupportedOperatorError)


def test_a_cycle(tmp_path: Path) -> None:
    m = _Model()
    x = m.add("Relu", m.conv("x", 3, 4))
    path = m.saved(tmp_path, m.head(x, 4))
    model = onnx.load(str(path))
    model.graph.node[0].input[0] = x
    path.write_bytes(model.SerializeToString())
    _refused(path, "not a valid ONNX model")


def test_an_input_that_nothing_writes(tmp_path: Path) -> None:
    m = _Model()
    _refused(m.saved(tmp_path, m.head(m.add("Relu", "nowhere"), 4)), "nowhere|not a valid ONNX model")


def test_another_size_than_the_files(tmp_path: Path) -> None:
    m = _Model()
    path = m.saved(tmp_path, m.head(m.conv("x", 3, 4), 4))
    source = open_model(str(path), None, None, 0)
    with pytest.raises(InputError, match=r"takes 8x10 images, not 9x10; --set preprocess.size=\[8,10\]"):
        source.graph(Preprocess((9, 10), MEAN, STD))


@pytest.mark.parametrize(
    ("shape", "kind"),
    [
        ((1, 10), 1),
        ((1, 4, 8, 8), 1),
        ((1, 3, 8), 1),
        ((1, 3, 8, 8), 7),
        ((1, 3, 8, 8, 8), 1),
        ((1, 3, 8, 8), 8),
    ],
)
def test_inputs_that_are_no_images(tmp_path: Path, shape: tuple[int, ...], kind: int) -> None:
    m = _Model(size=shape, kind=kind)
    _refused(m.saved(tmp_path, m.add("Identity", "x"), kind=kind), "input 'x'")


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_weights_that_are_no_numbers(tmp_path: Path, wrong: float) -> None:
    m = _Model()
    weight = _f32(4, 3, 3, 3)
    weight[1, 1, 1, 1] = wrong
    _refused(m.saved(tmp_path, m.head(m.add("Conv", "x", weight), 4)), "holds NaN or infinite values")


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_constant_nodes_that_are_no_numbers(tmp_path: Path, wrong: float) -> None:
    """As in initializers, so in nodes, and in what is computed of them."""
    m = _Model()
    weight = _f32(4, 3, 3, 3)
    weight[1, 1, 1, 1] = wrong
    constant = m.add("Constant", value=numpy_helper.from_array(weight))
    _refused(m.saved(tmp_path, m.head(m.add("Conv", "x", constant), 4)), "NaN or infinite")


def test_a_variance_of_minus_one(tmp_path: Path) -> None:
    m = _Model()
    ones = np.ones(4, np.float32)
    x = m.add("BatchNormalization", m.conv("x", 3, 4), ones, ones, ones, -ones)
    _refused(m.saved(tmp_path, m.head(x, 4)), "NaN or infinite")


def test_a_division_by_zero(tmp_path: Path) -> None:
    m = _Model()
    x = m.add("Div", m.conv("x", 3, 4), np.array(0, np.float32))
    _refused(m.saved(tmp_path, m.head(x, 4)), "NaN or infinite|a division by zero")


@pytest.mark.parametrize("part", [0.2, 0.5, 0.9, 0.999])
def test_truncated_files(tmp_path: Path, part: float) -> None:
    m = _Model()
    path = m.saved(tmp_path, m.head(m.conv("x", 3, 4), 4))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    _refused(path, "not a readable ONNX file")


def test_files_that_are_no_models(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    _refused(path, "there is no such model file")
    path.write_bytes(b"")
    _refused(path, "the model file is empty")
    path.write_bytes(np.random.default_rng(0).bytes(5000))
    _refused(path, "ONNX")
    path.write_bytes(b"\x08\x08")
    _refused(path, "ONNX")
    path.unlink()
    path.mkdir()
    _refused(path, "a folder, not a model file")
    path.rmdir()
    os.mkfifo(path)
    _refused(path, "pipe")


def _int64(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


@pytest.mark.parametrize(
    "build",
    [
        lambda m: m.add("ConstantOfShape", _int64(2**20, 2**20)),
        lambda m: m.add("Expand", np.ones(1, np.float32), _int64(2**20, 2**20)),
        lambda m: m.add("Tile", np.ones((1, 1), np.float32), _int64(2**20, 2**20)),
        lambda m: m.add("Range", np.array(0.0), np.array(1e13), np.array(1.0)),
        lambda m: m.add("Add", np.ones((2**15, 1), np.float32), np.ones((1, 2**15), np.float32)),
        lambda m: m.add("Gather", np.ones((1, 2**14), np.float32), np.zeros(2**15, np.int64)),
        lambda m: m.add("Concat", *[m.add("ConstantOfShape", _int64(2**26))] * 60, axis=0),
    ],
    ids=["ConstantOfShape", "Expand", "Tile", "Range", "Add", "Gather", "Concat"],
)
def test_constants_of_terabytes_are_refused(tmp_path: Path, build: Callable[[_Model], str]) -> None:
    m = _Model()
    huge = build(m)
    x = m.add("Mul", m.conv("x", 3, 4), huge)
    _refused(m.saved(tmp_path, m.head(x, 4)), "a constant of [0-9,]+ elements", UnsupportedOperatorError)


@pytest.mark.parametrize("axis", [4, -5, 99])
@pytest.mark.parametrize("kind", ["Concat", "Split", "Softmax", "Flatten"])
def test_axes_that_do_not_exist(tmp_path: Path, kind: str, axis: int) -> None:
    m = _Model()
    x = m.conv("x", 3, 4)
    made = m.add(kind, *([x, x] if kind == "Concat" else [x]), axis=axis)
    _refused(m.saved(tmp_path, m.head(made, 4)), f"axis {axis}")
