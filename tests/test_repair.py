"""Equalization and bias correction: the function stays, and the integers come closer to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from edge_resnet.compression.bias_correction import correct_biases
from edge_resnet.compression.calibrate import calibrate
from edge_resnet.compression.equalize import equalizable_pairs, equalize
from edge_resnet.compression.quantize import quantize
from edge_resnet.errors import GraphError, InputError
from edge_resnet.graph import nodes as g
from edge_resnet.graph.float_executor import FloatExecutor
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.passes import lower_for_integers, simplify
from edge_resnet.graph.reference import ReferenceExecutor, dequantize
from tests.random_graphs import random_graph, random_pixels


def ready(seed: int, blocks: int = 3) -> Graph:
    return lower_for_integers(simplify(random_graph(seed, blocks)))


def rescaled(graph: Graph, seed: int = 0, largest: float = 64.0) -> Graph:
    """Each channel between two layers divided by a random factor and multiplied again; torch's own view."""
    rng = np.random.default_rng(seed)
    weights = {
        node.name: torch.tensor(node.weights.weight)
        for node in graph.nodes
        if isinstance(node, g.Conv | g.Linear)
    }
    biases = {
        node.name: torch.tensor(node.weights.bias)
        for node in graph.nodes
        if isinstance(node, g.Conv | g.Linear)
    }
    for first, second in equalizable_pairs(graph):
        count = len(biases[first.name])
        factor = torch.tensor(largest ** rng.uniform(-1, 1, count), dtype=torch.float32)
        weight = weights[first.name]
        weights[first.name] = weight * factor.view(-1, *[1] * (weight.dim() - 1))
        biases[first.name] = biases[first.name] * factor
        weight = weights[second.name]
        groups = second.groups if isinstance(second, g.Conv) else 1
        per_group = weight.shape[1]
        # Row o reads the channels of its own group.
        group_of = torch.arange(len(weight)) // (len(weight) // groups)
        columns = group_of[:, None] * per_group + torch.arange(per_group)
        weights[second.name] = weight / factor[columns].view(*columns.shape, *[1] * (weight.dim() - 2))
    return graph.with_nodes(
        replace(node, weights=g.FloatWeights(weights[node.name].numpy(), biases[node.name].numpy()))
        if isinstance(node, g.Conv | g.Linear)
        else node
        for node in graph.nodes
    )


def distance(graph: Graph, other: Graph, pixels: np.ndarray) -> float:
    expected, got = FloatExecutor(graph).run(pixels), FloatExecutor(other).run(pixels)
    return float(np.abs(got - expected).max() / np.abs(expected).max())


def noise(floating: Graph, integers: Graph, pixels: np.ndarray) -> float:
    """Energy of the error of the logits, as a part of theirs."""
    quant = integers.output.quant
    assert quant is not None
    expected = FloatExecutor(floating).run(pixels)
    got = dequantize(ReferenceExecutor(integers).run(pixels), quant)
    return float(((got - expected) ** 2).sum() / (expected**2).sum())


@hypothesis_settings(max_examples=60)
@given(st.integers(0, 10**6), st.booleans())
def test_equalization_leaves_the_function(seed: int, spoilt: bool) -> None:
    graph = ready(seed)
    start = rescaled(graph, seed) if spoilt else graph
    assert distance(graph, equalize(start), random_pixels(graph, 3, seed)) < 1e-4


@hypothesis_settings(max_examples=20)
@given(st.integers(0, 10**6))
def test_equalized_pairs_have_equal_ranges(seed: int) -> None:
    """Nagel et al., section 4.1: r1 = r2 for every channel of every pair."""
    for first, second in equalizable_pairs(equalize(rescaled(ready(seed), seed))):
        r1 = np.abs(first.weights.weight).reshape(len(first.weights.weight), -1).max(1)
        weight = second.weights.weight.reshape(*second.weights.weight.shape[:2], -1)
        groups = second.groups if isinstance(second, g.Conv) else 1
        r2 = np.concatenate([np.abs(part).max((0, 2)) for part in np.split(weight, groups)])
        np.testing.assert_allclose(r1, r2, rtol=0.02)


def test_rescaled_channels_come_back() -> None:
    """Whatever factors went in, the same equalized weights come out."""
    graph = ready(54)
    assert list(equalizable_pairs(graph))
    for a, b in zip(equalize(graph).nodes, equalize(rescaled(graph)).nodes, strict=True):
        if isinstance(a, g.Conv | g.Linear) and isinstance(b, g.Conv | g.Linear):
            np.testing.assert_allclose(a.weights.weight, b.weights.weight, rtol=0.05, atol=1e-6)


def chain(activation: g.Activation, dead: bool = False) -> Graph:
    rng = np.random.default_rng(0)

    def weights(*shape: int) -> g.FloatWeights:
        return g.FloatWeights(rng.normal(size=shape).astype(np.float32), np.ones(shape[0], np.float32))

    first = weights(4, 3, 3, 3)
    if dead:
        first.weight[1] = 0
    nodes = (
        g.Input(name="image", shape=(3, 9, 9), quant=g.QuantParams(1 / 64, 0)),
        g.Conv(name="a", inputs=("image",), weights=first, activation=activation),
        g.MaxPool(name="pool", inputs=("a",), kernel=(2, 2), stride=(1, 1)),
        g.Conv(name="dw", inputs=("pool",), weights=weights(4, 1, 3, 3), groups=4, activation=activation),
        g.Conv(name="b", inputs=("dw",), weights=weights(4, 2, 1, 1), groups=2),
        g.GlobalAvgPool(name="mean", inputs=("b",)),
        g.Flatten(name="flat", inputs=("mean",)),
        g.Linear(name="fc", inputs=("flat",), weights=weights(2, 4)),
    )
    return Graph("chain", nodes)


def names(graph: Graph) -> list[tuple[str, str]]:
    return [(first.name, second.name) for first, second in equalizable_pairs(graph)]


def test_pairs_reach_through_pools_and_depthwise_convolutions() -> None:
    assert names(chain(g.Activation.RELU)) == [("a", "dw"), ("dw", "b"), ("b", "fc")]


def test_no_factor_passes_a_clip() -> None:
    assert names(chain(g.Activation.RELU6)) == [("b", "fc")]


def test_what_is_read_twice_stays() -> None:
    graph = chain(g.Activation.RELU)
    *rest, flat, classifier = graph.nodes
    twice = g.Add(name="twice", inputs=("b", "b"))
    rest[-1] = replace(rest[-1], inputs=("twice",))
    rest.insert(-1, twice)
    assert names(graph.with_nodes([*rest, flat, classifier])) == [("a", "dw"), ("dw", "b")]


def test_a_dead_channel_is_left() -> None:
    graph = chain(g.Activation.RELU, dead=True)
    after = equalize(graph)
    assert all(np.isfinite(n.weights.weight).all() for n in after.nodes if isinstance(n, g.Conv))
    assert distance(graph, after, random_pixels(graph, 3)) < 1e-5


@pytest.fixture
def shifted() -> tuple[Graph, Graph, Callable[[], Iterator[np.ndarray]]]:
    """A float graph, its integers with biases that are off, and images."""
    graph = ready(54)
    pixels = random_pixels(graph, 48)

    def batches() -> Iterator[np.ndarray]:
        yield from np.array_split(pixels, 3)

    integers = quantize(graph, calibrate(graph, batches()))
    rng = np.random.default_rng(0)

    def spoil(node: g.Node) -> g.Node:
        if not isinstance(node, g.Conv) or not isinstance(node.weights, g.IntWeights):
            return node
        bias = node.weights.bias + rng.integers(-3000, 3000, node.weights.bias.shape).astype(np.int32)
        return replace(node, weights=replace(node.weights, bias=bias))

    return graph, integers.with_nodes(map(spoil, integers.nodes)), batches


def test_bias_correction_undoes_a_shift(
    shifted: tuple[Graph, Graph, Callable[[], Iterator[np.ndarray]]],
) -> None:
    graph, integers, batches = shifted
    unseen = random_pixels(graph, 16, seed=1)
    corrected = correct_biases(integers, graph, batches)
    assert noise(graph, corrected, unseen) < noise(graph, integers, unseen) / 4


@hypothesis_settings(max_examples=15)
@given(st.integers(0, 10**6))
def test_bias_correction_changes_biases_only(seed: int) -> None:
    graph = ready(seed)
    pixels = random_pixels(graph, 4, seed)
    integers = quantize(graph, calibrate(graph, [pixels]))
    corrected = correct_biases(integers, graph, lambda: [pixels])
    assert ReferenceExecutor(corrected).run(pixels).dtype == np.int8
    for before, after in zip(integers.nodes, corrected.nodes, strict=True):
        assert before.quant == after.quant
        if isinstance(before, g.Conv | g.Linear) and isinstance(after, g.Conv | g.Linear):
            np.testing.assert_array_equal(before.weights.weight, after.weights.weight)


def test_bias_correction_centres_the_classifier(
    shifted: tuple[Graph, Graph, Callable[[], Iterator[np.ndarray]]],
) -> None:
    """On the images that it saw, the mean logit of every class is float's, up to half a step."""
    graph, integers, batches = shifted
    corrected = correct_biases(integers, graph, batches)
    quant = corrected.output.quant
    assert quant is not None
    pixels = np.concatenate(list(batches()))
    got = dequantize(ReferenceExecutor(corrected).run(pixels), quant).mean(0)
    assert np.abs(got - FloatExecutor(graph).run(pixels).mean(0)).max() < quant.scale / 2


def test_bias_correction_needs_images_and_its_own_float_graph(
    shifted: tuple[Graph, Graph, Callable[[], Iterator[np.ndarray]]],
) -> None:
    graph, integers, batches = shifted
    with pytest.raises(InputError, match="at least one image"):
        correct_biases(integers, graph, lambda: [])
    with pytest.raises(GraphError, match="the float graph"):
        correct_biases(integers, ready(55), batches)
