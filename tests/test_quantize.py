"""Quantization: scales, streams, dead channels, calibration."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_resnet.compression.calibrate import calibrate
from edge_resnet.compression.quantize import quantize, quantize_weights
from edge_resnet.compression.scales import MIN_SCALE, snap_scale
from edge_resnet.errors import GraphError, InputError
from edge_resnet.graph import nodes as g
from edge_resnet.graph.float_executor import FloatExecutor
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.passes import fold_normalization_into_input, lower_average_pools, simplify
from edge_resnet.graph.reference import ReferenceExecutor, dequantize
from edge_resnet.graph.streams import moves_integers, parameter_groups
from tests.conftest import quantized
from tests.random_graphs import random_graph, random_pixels


@given(st.floats(1e-8, 60_000))
def test_snapped_scales_are_float16_and_not_smaller(scale: float) -> None:
    snapped = float(snap_scale(scale))
    assert float(np.float16(snapped)) == snapped
    assert snapped >= max(scale, MIN_SCALE)
    assert snapped <= max(scale, MIN_SCALE) * (1 + 2**-9)


def test_a_range_beyond_float16_is_an_error() -> None:
    with pytest.raises(GraphError, match="too large"):
        snap_scale(70_000.0)


@given(seed=st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_weights_are_within_half_a_step(seed: int) -> None:
    rng = np.random.default_rng(seed)
    weight = (rng.normal(0, 1, (4, 3, 3, 3)) * 10 ** rng.uniform(-3, 1, (4, 1, 1, 1))).astype(np.float32)
    bias = rng.normal(0, 1, 4).astype(np.float32)
    made = quantize_weights(g.FloatWeights(weight, bias), 0.02)
    steps = np.abs(weight - made.weight * made.scale[:, None, None, None]) / made.scale[:, None, None, None]
    assert steps.max() <= 0.5 + 1e-3
    np.testing.assert_allclose(made.bias * 0.02 * made.scale, bias, atol=float((0.02 * made.scale).max()))


def test_a_dead_channel_keeps_its_bias() -> None:
    weight = np.zeros((2, 3, 1, 1), np.float32)
    weight[1] = 0.5
    made = quantize_weights(g.FloatWeights(weight, np.float32([1000.0, 0.0])), MIN_SCALE)
    assert not made.weight[0].any()
    assert made.bias[0] * np.float64(MIN_SCALE) * made.scale[0] == pytest.approx(1000.0, rel=1e-6)


@given(seed=st.integers(0, 100_000), blocks=st.integers(1, 5))
@settings(max_examples=20, deadline=None)
def test_the_scheme_holds_on_random_graphs(seed: int, blocks: int) -> None:
    graph = quantized(random_graph(seed, blocks))
    for node in graph.nodes:
        assert node.quant is not None
        assert float(np.float16(node.quant.scale)) == node.quant.scale
        inputs = [graph.by_name[name].quant for name in node.inputs]
        if isinstance(node, g.Add):
            assert {quant.scale for quant in inputs if quant} == {node.quant.scale}
        if moves_integers(node):
            assert inputs[0] == node.quant
        if getattr(node, "activation", None) is g.Activation.RELU:
            alone = len(next(group for group in parameter_groups(graph) if node.name in group)) == 1
            assert node.quant.zero_point == -128 or not alone
        if isinstance(node, g.Conv | g.Linear):
            assert isinstance(node.weights, g.IntWeights)
            assert np.abs(node.weights.weight.astype(int)).max() <= 127


@given(seed=st.integers(0, 100_000))
@settings(max_examples=10, deadline=None)
def test_integers_stay_close_to_the_floats(seed: int) -> None:
    graph = lower_average_pools(simplify(random_graph(seed, 2)))
    integers = quantized(graph)
    pixels = random_pixels(graph, 8)
    expected = FloatExecutor(fold_normalization_into_input(graph)).run(pixels)
    got = dequantize(ReferenceExecutor(integers).run(pixels), integers.output.quant)  # type: ignore[arg-type]
    noise = np.linalg.norm(got - expected) / np.linalg.norm(expected - expected.mean())
    assert noise < 0.35


def test_a_model_with_a_dead_channel_runs(small_graph: Graph) -> None:
    def dead(node: g.Node) -> g.Node:
        if not isinstance(node, g.Conv) or not isinstance(node.weights, g.FloatWeights):
            return node
        weight = node.weights.weight.copy()
        weight[0] = 0
        return replace(node, weights=g.FloatWeights(weight, node.weights.bias))

    graph = quantized(small_graph.with_nodes(map(dead, small_graph.nodes)))
    assert ReferenceExecutor(graph).run(random_pixels(graph, 2)).dtype == np.int8


def test_calibration_needs_images(small_graph: Graph) -> None:
    with pytest.raises(InputError, match="at least one image"):
        calibrate(small_graph, [])


def test_calibration_names_the_node_that_overflows(small_graph: Graph) -> None:
    def huge(node: g.Node) -> g.Node:
        if not isinstance(node, g.Conv) or not isinstance(node.weights, g.FloatWeights):
            return node
        weights = g.FloatWeights(node.weights.weight * np.float32(1e30), node.weights.bias)
        return replace(node, weights=weights)

    graph = small_graph.with_nodes(map(huge, small_graph.nodes))
    with pytest.raises(InputError, match=r"node '.*' computes"):
        calibrate(graph, [random_pixels(graph, 1)])


def test_quantize_wants_raw_bytes(small_graph: Graph) -> None:
    with pytest.raises(GraphError, match="the input has no quantization parameters"):
        quantize(small_graph, {})


def test_a_sum_of_different_scales_is_rounded_once(small_quantized: Graph) -> None:
    """As in models that came quantized: round(a * s_a / s_y + b * s_b / s_y)."""
    add = next(n for n in small_quantized.nodes if isinstance(n, g.Add))
    assert add.quant is not None
    part = small_quantized.until(add.name)
    other = replace(add, quant=g.QuantParams(add.quant.scale * 4, add.quant.zero_point))
    coarse = part.with_nodes(other if n is add else n for n in part.nodes)
    pixels = random_pixels(part, 4)
    fine = ReferenceExecutor(part).run(pixels).astype(int) - add.quant.zero_point
    got = ReferenceExecutor(coarse).run(pixels).astype(int) - add.quant.zero_point
    unclipped = np.abs(fine) < 127 - abs(add.quant.zero_point)
    assert np.array_equal(got[unclipped], np.rint(fine / 4)[unclipped])


def test_the_reference_refuses_floats(small_graph: Graph) -> None:
    with pytest.raises(GraphError, match="not quantized"):
        ReferenceExecutor(small_graph)


def test_large_sums_are_exact() -> None:
    """A convolution whose sums pass 2**24: the reference must switch to float64."""
    rng = np.random.default_rng(0)
    channels = 600
    weights = g.IntWeights(
        rng.choice(np.int8([-127, 126, 127]), (2, channels, 1, 1)),
        np.float32([0.01, 0.01]),
        np.int32([12345, -54321]),
    )
    stem = g.IntWeights(
        rng.integers(-127, 128, (channels, 3, 1, 1)).astype(np.int8),
        np.full(channels, 0.01, np.float32),
        np.zeros(channels, np.int32),
    )
    q = g.QuantParams
    graph = Graph(
        "large",
        (
            g.Input(name="x", shape=(3, 2, 2), quant=q(1.0, -14)),
            g.Conv(name="a", inputs=("x",), weights=stem, quant=q(1.0, 3)),
            g.Conv(name="b", inputs=("a",), weights=weights, quant=q(2.0, 5)),
        ),
    )
    pixels = random_pixels(graph, 3)
    x = pixels.astype(np.int64).transpose(0, 3, 1, 2) - (128 - 14)

    def conv(values: np.ndarray, w: g.IntWeights, s_x: float, out: g.QuantParams) -> np.ndarray:
        acc = np.einsum("nchw,oc->nohw", values, w.weight[:, :, 0, 0].astype(np.int64))
        acc += w.bias.astype(np.int64)[:, None, None]
        multiplier = (np.float32(s_x) * w.scale / np.float32(out.scale))[:, None, None]
        scaled = np.rint(acc.astype(np.float32) * multiplier)
        return np.clip(scaled + out.zero_point, -128, 127).astype(np.int64)

    a = conv(x, stem, 1.0, q(1.0, 3))
    b = conv(a - 3, weights, 1.0, q(2.0, 5))
    assert np.array_equal(ReferenceExecutor(graph).run(pixels), b)
