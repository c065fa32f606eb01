"""Sensitivity: the efficient measurement against a slow one that is written independently."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from edge_resnet.compression.sensitivity import measure_sensitivity, rounding_nodes, sqnr_db
from edge_resnet.errors import GraphError, InputError
from edge_resnet.graph import nodes as g
from edge_resnet.graph.float_executor import FloatExecutor
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.passes import lower_for_integers, simplify
from edge_resnet.graph.reference import ReferenceExecutor
from tests.conftest import quantized
from tests.random_graphs import random_graph, random_pixels


def slow_logits(floating: Graph, integers: Graph, name: str, pixels: np.ndarray) -> np.ndarray:
    """The whole float graph with one node's integers, by torch's own fake quantization."""
    node, quant = floating.by_name[name], integers.by_name[name].quant
    assert quant is not None
    weights = getattr(integers.by_name[name], "weights", None)
    if weights is not None:
        source = integers.by_name[node.inputs[0]].quant
        axes = (-1, *[1] * (weights.weight.ndim - 1))
        real = weights.weight.astype(np.float64) * weights.scale.astype(np.float64).reshape(axes)
        bias = weights.bias * (source.scale * weights.scale.astype(np.float64))
        node = replace(node, weights=g.FloatWeights(real.astype(np.float32), bias.astype(np.float32)))
    changed = floating.with_nodes(node if n.name == name else n for n in floating.nodes)

    def observe(seen: str, value: torch.Tensor) -> None:
        if seen == name:
            rounded = torch.fake_quantize_per_tensor_affine(value, quant.scale, quant.zero_point, -128, 127)
            value.copy_(rounded)

    return FloatExecutor(changed).run(pixels, observe)


@pytest.mark.parametrize("seed", [3, 8, 54])
def test_cost_of_each_layer_is_that_of_a_slow_computation(seed: int) -> None:
    floating = lower_for_integers(simplify(random_graph(seed)))
    integers = quantized(random_graph(seed))
    pixels = random_pixels(floating, 40, seed=1)
    exact = FloatExecutor(floating).run(pixels)
    labels = exact.argmax(1)
    labels[::3] = 0

    done: list[int] = []
    record = measure_sensitivity(floating, integers, pixels, labels, done.append)

    assert sum(done) == record.n == 40
    assert record.float_top1 == np.mean(exact.argmax(1) == labels)
    assert record.int8_top1 == np.mean(ReferenceExecutor(integers).run(pixels).argmax(1) == labels)
    assert [layer.name for layer in record.layers] == [node.name for node in rounding_nodes(integers)]
    for layer in record.layers:
        logits = slow_logits(floating, integers, layer.name, pixels)
        noise = float(np.square(logits.astype(np.float64) - exact).sum())
        expected = sqnr_db(float(np.square(exact.astype(np.float64)).sum()), noise)
        assert layer.sqnr_db == pytest.approx(expected, abs=0.2), layer.name
        assert layer.top1 == pytest.approx(np.mean(logits.argmax(1) == labels), abs=0.026), layer.name
        assert layer.drop == pytest.approx(record.float_top1 - layer.top1)


def with_wrong_scale(graph: Graph, name: str, factor: float) -> Graph:
    """The node's output in steps that are `factor` times as coarse."""
    node = graph.by_name[name]
    assert node.quant is not None
    coarse = replace(node, quant=g.QuantParams(float(np.float32(node.quant.scale * factor)), 0))
    return graph.with_nodes(coarse if n.name == name else n for n in graph.nodes)


def test_the_layer_that_rounds_coarsely_costs_most_and_says_that_it_is_the_output() -> None:
    floating = lower_for_integers(simplify(random_graph(3)))
    integers = quantized(random_graph(3))
    pixels = random_pixels(floating, 16)
    worst = next(n.name for n in integers.nodes[3:] if isinstance(n, g.Conv))
    record = measure_sensitivity(
        floating, with_wrong_scale(integers, worst, 40), pixels, np.zeros(16, np.int64)
    )
    assert min(record.layers, key=lambda layer: layer.sqnr_db).name == worst
    share = {layer.name: layer.from_weights for layer in record.layers}
    assert share[worst] < 0.1
    assert all(0 <= part <= 1 for part in share.values())


def test_costs_without_images_or_with_another_graph_are_refused() -> None:
    floating = lower_for_integers(simplify(random_graph(3)))
    integers = quantized(random_graph(3))
    none = np.zeros((0, *floating.input.shape[1:], 3), np.uint8)
    with pytest.raises(InputError, match=r"sensitivity\.images"):
        measure_sensitivity(floating, integers, none, np.zeros(0, np.int64))
    other = lower_for_integers(simplify(random_graph(8)))
    with pytest.raises(GraphError, match="not the same"):
        measure_sensitivity(other, integers, random_pixels(other, 2), np.zeros(2, np.int64))


def test_decibels() -> None:
    assert sqnr_db(1.0, 0.0) == np.inf
    assert sqnr_db(100.0, 1.0) == pytest.approx(20.0)
    assert np.isfinite(sqnr_db(0.0, 1.0))
