"""Passes that came with files of other frameworks, and the scales that products, gates and clips need."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_resnet.compression.scales import GATE_SCALE
from edge_resnet.graph import nodes as g
from edge_resnet.graph.clipping import integer_bounds
from edge_resnet.graph.float_executor import FloatExecutor
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.passes import (
    dequantized,
    fuse_pads,
    lower_average_pools,
    lower_for_integers,
    lower_hard_sigmoids,
    merge_normalization,
    simplify,
    split_large_averages,
)
from edge_resnet.graph.reference import ReferenceExecutor, dequantize
from edge_resnet.graph.streams import moves_integers
from edge_resnet.verify.exactness import first_inexact
from tests.conftest import quantized
from tests.random_graphs import random_graph, random_pixels

SEEDS = st.integers(0, 1_000_000)
PASSES = [merge_normalization, split_large_averages, lower_hard_sigmoids, fuse_pads]


def _close(before: Graph, after: Graph, part: float = 1e-5) -> None:
    pixels = random_pixels(before, 3, seed=1)
    expected, got = FloatExecutor(before).run(pixels), FloatExecutor(after).run(pixels)
    np.testing.assert_allclose(got, expected, rtol=0, atol=part * np.abs(expected).max())


@pytest.mark.parametrize("apply", PASSES, ids=lambda p: p.__name__)
@given(seed=SEEDS, blocks=st.integers(0, 4))
@settings(max_examples=20)
def test_a_pass_leaves_the_function(apply: Callable[[Graph], Graph], seed: int, blocks: int) -> None:
    graph = random_graph(seed, blocks)
    _close(graph, apply(graph))


def _normalized(*rest: g.Node, size: tuple[int, int] = (8, 8)) -> Graph:
    mean, std = np.array([120, 110, 100], np.float32), np.array([60, 50, 40], np.float32)
    return Graph(
        "m",
        (
            g.Input(name="image", shape=(3, *size)),
            g.Normalize(name="normalize", inputs=("image",), mean=mean, std=std),
            *rest,
        ),
    )


def _conv(name: str, source: str, inputs: int, outputs: int, kernel: int = 3, **fields: object) -> g.Conv:
    rng = np.random.default_rng(0)
    weight = rng.normal(0, (inputs * kernel**2) ** -0.5, (outputs, inputs, kernel, kernel)).astype(np.float32)
    weights = g.FloatWeights(weight, rng.normal(0, 0.1, outputs).astype(np.float32))
    return g.Conv(name=name, inputs=(source,), weights=weights, **fields)  # type: ignore[arg-type]


def _norm(name: str, source: str, scale: list[float], shift: list[float]) -> g.BatchNorm:
    return g.BatchNorm(
        name=name, inputs=(source,), scale=np.array(scale, np.float32), shift=np.array(shift, np.float32)
    )


# merge_normalization


def test_a_chain_of_normalizations_becomes_one() -> None:
    graph = _normalized(
        _norm("first", "normalize", [2, 3, -4], [0.5, 0, 1]),
        _norm("second", "first", [0.5] * 3, [1, 2, 3]),
        _conv("conv", "second", 3, 4),
    )
    merged = merge_normalization(graph)
    assert [node.name for node in merged.nodes] == ["image", "normalize", "conv"]
    assert merged.nodes[2].inputs == ("normalize",)
    _close(graph, merged)


def test_a_normalization_that_is_read_twice_stays() -> None:
    graph = _normalized(
        _norm("scaled", "normalize", [2, 3, 4], [0.5, 0, 1]),
        g.Add(name="sum", inputs=("normalize", "scaled")),
    )
    assert [node.name for node in merge_normalization(graph).nodes] == [node.name for node in graph.nodes]


def test_a_channel_that_is_multiplied_by_zero_is_not_merged() -> None:
    graph = _normalized(_norm("scaled", "normalize", [2, 0, 4], [0.5, 0, 1]), _conv("conv", "scaled", 3, 4))
    merged = merge_normalization(graph)
    assert len(merged.nodes) == 4
    _close(graph, simplify(graph))


def test_a_batch_norm_elsewhere_is_left() -> None:
    graph = _normalized(_conv("conv", "normalize", 3, 3), _norm("norm", "conv", [1, 2, 3], [0, 1, 2]))
    assert merge_normalization(graph).by_name["norm"].inputs == ("conv",)


# split_large_averages


@pytest.mark.parametrize(
    "size", [(13, 13), (14, 14), (16, 11), (20, 9), (17, 17), (32, 8), (64, 48), (1, 400)]
)
def test_large_averages_are_split(size: tuple[int, int]) -> None:
    graph = _normalized(g.GlobalAvgPool(name="pool", inputs=("normalize",)), size=size)
    split = split_large_averages(graph)
    first, last = split.nodes[-2:]
    assert isinstance(first, g.AvgPool)
    assert isinstance(last, g.GlobalAvgPool)
    assert (last.name, last.inputs) == ("pool", (first.name,))
    _, rows, columns = split.shapes[first.name]
    assert rows * columns <= 160
    assert first.kernel == first.stride
    assert (rows * first.kernel[0], columns * first.kernel[1]) == size  # every pixel counts once
    _close(graph, split)
    _close(graph, lower_average_pools(split))


@pytest.mark.parametrize("size", [(1, 1), (7, 7), (12, 12), (16, 10)])
def test_small_averages_stay(size: tuple[int, int]) -> None:
    graph = _normalized(g.GlobalAvgPool(name="pool", inputs=("normalize",)), size=size)
    assert split_large_averages(graph).nodes == graph.nodes


def test_a_second_run_changes_nothing() -> None:
    graph = split_large_averages(
        _normalized(g.GlobalAvgPool(name="pool", inputs=("normalize",)), size=(40, 40))
    )
    assert [n.name for n in split_large_averages(graph).nodes] == [n.name for n in graph.nodes]


# lower_hard_sigmoids


@given(seed=SEEDS)
@settings(max_examples=20)
def test_no_hard_sigmoid_is_left(seed: int) -> None:
    graph = random_graph(seed, 4)
    gates = [node for node in graph.nodes if isinstance(node, g.HardSigmoid)]
    lowered = lower_hard_sigmoids(graph)
    assert not [node for node in lowered.nodes if isinstance(node, g.HardSigmoid)]
    units = [n for n in lowered.nodes if isinstance(n, g.Conv) and n.activation is g.Activation.UNIT]
    assert len(units) == len(gates)
    for gate in gates:
        assert lowered.shapes[gate.name] == graph.shapes[gate.name]
    for unit in units:
        assert unit.groups == lowered.shapes[unit.name][0]
        assert unit.weights.weight.shape == (unit.groups, 1, 1, 1)


def test_a_hard_sigmoid_of_a_vector() -> None:
    graph = _normalized(
        g.GlobalAvgPool(name="pool", inputs=("normalize",)),
        g.Flatten(name="flat", inputs=("pool",)),
        g.HardSigmoid(name="gate", inputs=("flat",)),
    )
    lowered = lower_hard_sigmoids(graph)
    assert lowered.output_shape == (3,)
    assert [type(node) for node in lowered.nodes[-3:]] == [g.Reshape, g.Conv, g.Reshape]
    _close(graph, lowered)


# fuse_pads


def _padded_maximum(
    amount: int = 1, positive: bool = True, mode: g.PadMode = g.PadMode.ZERO, kernel: int = 3
) -> Graph:
    activation = g.Activation.RELU if positive else g.Activation.NONE
    conv = _conv("conv", "normalize", 3, 4, activation=activation)
    if not positive:  # lower than any padding
        weights = conv.weights
        assert isinstance(weights, g.FloatWeights)
        conv = replace(conv, weights=g.FloatWeights(weights.weight, weights.bias - np.float32(50)))
    return _normalized(
        conv,
        g.Pad(name="pad", inputs=("conv",), padding=g.Padding(0, amount, amount, amount), mode=mode),
        g.MaxPool(name="pool", inputs=("pad",), kernel=(kernel, kernel), stride=(2, 2)),
    )


def test_zeros_in_front_of_a_maximum_of_positive_values_are_its_padding() -> None:
    graph = _padded_maximum()
    fused = fuse_pads(graph)
    pool = fused.output
    assert isinstance(pool, g.MaxPool)
    assert (pool.inputs, pool.padding) == (("conv",), g.Padding(0, 1, 1, 1))
    _close(graph, fused)


@pytest.mark.parametrize(
    "graph",
    [
        _padded_maximum(positive=False),
        _padded_maximum(mode=g.PadMode.REFLECT),
        _padded_maximum(amount=3),  # a window would lie in the padding alone
        _padded_maximum(amount=2, kernel=2),
    ],
    ids=["negative values", "mirrored", "wider than the window", "as wide as the window"],
)
def test_other_pads_in_front_of_a_maximum_stay(graph: Graph) -> None:
    fused = fuse_pads(graph)
    assert "pad" in fused.by_name
    _close(graph, fused)


def test_a_pad_that_a_maximum_and_a_convolution_read() -> None:
    graph = _normalized(
        _conv("conv", "normalize", 3, 4, activation=g.Activation.RELU),
        g.Pad(name="pad", inputs=("conv",), padding=g.Padding.symmetric(1, 1)),
        g.MaxPool(name="pool", inputs=("pad",), kernel=(3, 3), stride=(1, 1)),
        _conv("other", "pad", 4, 4),
        g.Add(name="sum", inputs=("pool", "other")),
    )
    fused = fuse_pads(graph)
    assert "pad" not in fused.by_name
    _close(graph, fused)


# dequantized


@given(seed=SEEDS, blocks=st.integers(0, 4))
@settings(max_examples=15)
def test_integers_as_floats_are_about_the_same(seed: int, blocks: int) -> None:
    graph = quantized(random_graph(seed, blocks), seed)
    real = dequantized(graph)
    assert not any(node.quant for node in real.nodes)
    assert not [n for n in real.nodes if isinstance(getattr(n, "weights", None), g.IntWeights)]
    assert sum(isinstance(node, g.Normalize) for node in real.nodes) == 1
    pixels = random_pixels(graph, 4, seed)
    assert graph.output.quant is not None
    expected = dequantize(ReferenceExecutor(graph).run(pixels), graph.output.quant)
    difference = np.abs(FloatExecutor(real).run(pixels) - expected)
    assert difference.max() <= 0.15 * np.ptp(expected) + 4 * graph.output.quant.scale


@given(seed=SEEDS)
@settings(max_examples=10)
def test_weights_as_floats_are_what_the_integers_stand_for(seed: int) -> None:
    graph = quantized(random_graph(seed, 2), seed)
    real = dequantized(graph)
    for node in graph.nodes:
        if not isinstance(node, g.Conv | g.Linear):
            continue
        after = real.by_name[node.name]
        assert isinstance(after, g.Conv | g.Linear)
        assert isinstance(node.weights, g.IntWeights)
        source = graph.by_name[node.inputs[0]].quant
        assert source is not None
        shape = (-1, *[1] * (node.weights.weight.ndim - 1))
        expected = node.weights.weight * node.weights.scale.reshape(shape)
        np.testing.assert_allclose(after.weights.weight, expected, rtol=1e-6)
        bias = node.weights.bias * node.weights.scale.astype(np.float64) * source.scale
        np.testing.assert_allclose(after.weights.bias, bias, rtol=1e-6)


# Scales.


@given(seed=SEEDS, blocks=st.integers(1, 6))
@settings(max_examples=60)
def test_scales_of_products_gates_and_clips(seed: int, blocks: int) -> None:
    graph = quantized(random_graph(seed, blocks), seed)
    for node in graph.nodes:
        quant = node.quant
        assert quant is not None
        assert float(np.float16(quant.scale)) == quant.scale
        if isinstance(node, g.Mul):
            first, second = (graph.by_name[name].quant for name in node.inputs)
            assert first is not None
            assert second is not None
            mantissa, _ = np.frexp(first.scale * second.scale / quant.scale)
            assert mantissa == 0.5, node.name  # a power of two
            assert quant.zero_point % 2 == 0
        if isinstance(node, g.GlobalAvgPool):
            assert quant.zero_point % 2 == 0
        if isinstance(node, g.Sigmoid):
            assert (quant.scale, quant.zero_point) == (GATE_SCALE, -128) == (2.0**-8, -128)
        if isinstance(node, g.Add):
            assert {graph.by_name[name].quant.scale for name in node.inputs} == {quant.scale}  # type: ignore[union-attr]
        if moves_integers(node):
            assert all(graph.by_name[name].quant == quant for name in node.inputs)
    assert first_inexact(graph) is None


def _alone(node: g.Node, graph: Graph) -> bool:
    """Whether no other tensor has a say in the node's scale."""
    readers = graph.consumers[node.name]
    return all(isinstance(reader, g.Conv | g.Linear | g.GlobalAvgPool) for reader in readers)


@given(seed=SEEDS)
@settings(max_examples=40)
def test_a_clip_at_six_ends_where_the_integers_end(seed: int) -> None:
    graph = quantized(random_graph(seed, 5), seed)
    for node in graph.nodes:
        if getattr(node, "activation", None) is g.Activation.RELU6 and not isinstance(node, g.Relu):
            assert node.quant is not None
            assert node.quant.zero_point == -128
            if _alone(node, graph):
                assert node.quant.scale * 255 <= 6


@pytest.mark.parametrize(
    ("activation", "scale", "zero", "expected"),
    [
        (g.Activation.NONE, 0.1, 3, (-128, 127)),
        (g.Activation.RELU, 0.1, 3, (3, 127)),
        (g.Activation.RELU6, 0.125, -128, (-128, -80)),
        (g.Activation.RELU6, 0.125, 10, (10, 58)),
        (g.Activation.RELU6, 0.0234375, -128, (-128, 127)),
        (g.Activation.RELU6, 0.01, -128, (-128, 127)),
        (g.Activation.UNIT, 2.0**-8, -128, (-128, 127)),
        (g.Activation.UNIT, 0.5, 0, (0, 2)),
        (g.Activation.RELU6, 4.0, 0, (0, 2)),  # 1.5 steps: ties to even
    ],
)
def test_bounds_of_clipped_integers(
    activation: g.Activation, scale: float, zero: int, expected: tuple[int, int]
) -> None:
    quant = g.QuantParams(float(np.float32(scale)), zero)
    assert integer_bounds(g.Add(name="a", inputs=("x", "y"), activation=activation, quant=quant)) == expected


# first_inexact


@pytest.mark.parametrize("kind", [g.Add, g.Mul, g.Sigmoid])
def test_scales_of_others_are_called_inexact(kind: type[g.Node]) -> None:
    """One node with another scale, in a graph that has been exact."""
    for seed in range(40):
        graph = quantized(random_graph(seed, 4), seed)
        found = [node for node in graph.nodes if isinstance(node, kind)]
        if found:
            break
    assert first_inexact(graph) is None
    node = found[0]
    assert node.quant is not None
    other = replace(
        node, quant=g.QuantParams(float(np.float32(node.quant.scale * 1.1)), node.quant.zero_point)
    )
    changed = graph.with_nodes(other if entry is node else entry for entry in graph.nodes)
    assert repr(node.name) in str(first_inexact(changed))


def test_a_product_with_an_odd_zero_point_is_called_inexact() -> None:
    for seed in range(40):
        graph = quantized(random_graph(seed, 4), seed)
        found = [node for node in graph.nodes if isinstance(node, g.Mul)]
        if found:
            break
    node = found[0]
    assert node.quant is not None
    other = replace(node, quant=g.QuantParams(node.quant.scale, node.quant.zero_point + 1))
    changed = graph.with_nodes(other if entry is node else entry for entry in graph.nodes)
    assert repr(node.name) in str(first_inexact(changed))


@given(seed=SEEDS)
@settings(max_examples=15)
def test_lowering_for_integers_leaves_only_what_runtimes_round_alike(seed: int) -> None:
    graph = simplify(random_graph(seed, 4))
    lowered = lower_for_integers(graph)
    assert not [n for n in lowered.nodes if isinstance(n, g.AvgPool | g.HardSigmoid | g.Normalize)]
    for node in lowered.nodes:
        if isinstance(node, g.GlobalAvgPool):
            assert np.prod(lowered.shapes[node.inputs[0]][1:]) <= 160
