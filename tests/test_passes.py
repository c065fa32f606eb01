"""Passes do not change the function: checked on random residual graphs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_resnet.errors import GraphError
from edge_resnet.graph import nodes as g
from edge_resnet.graph.float_executor import FloatExecutor
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.passes import (
    fold_batch_norm,
    fold_normalization_into_input,
    fold_normalization_std,
    fuse_activations,
    fuse_pads,
    lower_average_pools,
    simplify,
)
from tests.random_graphs import random_graph, random_pixels

PASSES = [fold_batch_norm, fuse_activations, fuse_pads, lower_average_pools, fold_normalization_std, simplify]


def _same_function(before: Graph, after: Graph) -> None:
    pixels = random_pixels(before, 3, seed=1)
    expected, got = FloatExecutor(before).run(pixels), FloatExecutor(after).run(pixels)
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("apply", PASSES, ids=lambda p: p.__name__)
@given(seed=st.integers(0, 100_000), blocks=st.integers(0, 4))
@settings(max_examples=20, deadline=None)
def test_a_pass_leaves_the_function(apply: Callable[[Graph], Graph], seed: int, blocks: int) -> None:
    graph = random_graph(seed, blocks)
    _same_function(graph, apply(graph))


@given(seed=st.integers(0, 100_000))
@settings(max_examples=20, deadline=None)
def test_simplify_leaves_nothing_to_fold(seed: int) -> None:
    graph = simplify(random_graph(seed, 3))
    assert not [node for node in graph.nodes if isinstance(node, g.BatchNorm)]
    again = simplify(graph)
    assert [node.name for node in again.nodes] == [node.name for node in graph.nodes]


def test_folded_convolutions_keep_their_names() -> None:
    graph = random_graph(5, 2)
    convolutions = {node.name for node in graph.nodes if isinstance(node, g.Conv)}
    assert convolutions <= {node.name for node in simplify(graph).nodes}


def _stem(padding: g.Padding) -> Graph:
    rng = np.random.default_rng(0)
    weights = g.FloatWeights(rng.normal(0, 0.3, (4, 3, 3, 3)).astype(np.float32), np.zeros(4, np.float32))
    mean, std = np.float32([120, 110, 100]), np.float32([60, 55, 50])
    return Graph(
        "stem",
        (
            g.Input(name="image", shape=(3, 8, 8)),
            g.Normalize(name="normalize", inputs=("image",), mean=mean, std=std),
            g.Conv(name="conv", inputs=("normalize",), weights=weights, padding=padding),
        ),
    )


def test_raw_bytes_are_the_same_function_without_padding() -> None:
    graph = _stem(g.Padding())
    _same_function(graph, fold_normalization_into_input(graph))


def test_raw_bytes_differ_at_the_border_only() -> None:
    graph = _stem(g.Padding.symmetric(1, 1))
    pixels = random_pixels(graph, 2)
    before = FloatExecutor(graph).run(pixels)
    after = FloatExecutor(fold_normalization_into_input(graph)).run(pixels)
    np.testing.assert_allclose(after[:, :, 1:-1, 1:-1], before[:, :, 1:-1, 1:-1], rtol=1e-3, atol=1e-3)
    # The pad is the average grey, at most 10 of 255 from each channel's mean: well below one std.
    assert 0 < np.abs(after - before).max() < 0.2 * np.abs(before).max()


def test_normalization_that_nothing_can_take_is_an_error() -> None:
    graph = Graph(
        "flat",
        (
            g.Input(name="image", shape=(3, 4, 4)),
            g.Normalize(name="n", inputs=("image",), mean=np.ones(3, np.float32), std=np.ones(3, np.float32)),
            g.Flatten(name="flat", inputs=("n",)),
        ),
    )
    with pytest.raises(GraphError, match="no input normalization that one convolution reads"):
        fold_normalization_into_input(graph)


def test_batch_norm_behind_a_shared_convolution_stays_apart() -> None:
    weights = g.FloatWeights(np.ones((2, 3, 1, 1), np.float32), np.zeros(2, np.float32))
    graph = Graph(
        "shared",
        (
            g.Input(name="x", shape=(3, 4, 4)),
            g.Conv(name="c", inputs=("x",), weights=weights),
            g.BatchNorm(name="b", inputs=("c",), scale=np.float32([2, 3]), shift=np.float32([1, 1])),
            g.Add(name="a", inputs=("b", "c")),
        ),
    )
    folded = fold_batch_norm(graph)
    assert isinstance(folded.by_name["b"], g.Conv)
    _same_function(graph, folded)
