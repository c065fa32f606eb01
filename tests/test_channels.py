"""Channels and blocks go: the function stays where what went did nothing, on random residual graphs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_resnet.errors import GraphError
from edge_resnet.graph import nodes as g
from edge_resnet.graph.channels import ChannelGroup, channel_groups, kept_channels
from edge_resnet.graph.float_executor import FloatExecutor
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.passes import fold_batch_norm, simplify
from edge_resnet.graph.passes.remove_blocks import identity_blocks, remove_blocks
from edge_resnet.graph.passes.remove_channels import remove_channels
from tests.random_graphs import random_graph, random_pixels


def drawn(groups: list[ChannelGroup], seed: int) -> list[np.ndarray]:
    """Of each group some units that stay, at least one."""
    rng = np.random.default_rng(seed)
    kept = []
    for group in groups:
        stays = rng.random(group.units) < rng.uniform(0.2, 1)
        stays[rng.integers(group.units)] = True
        kept.append(stays)
    return kept


def without_readers(graph: Graph, kept: dict[str, np.ndarray]) -> Graph:
    """Every layer multiplies what will be removed by zero; all shapes stay."""
    nodes = []
    for node in graph.nodes:
        if isinstance(node, g.Conv | g.Linear) and getattr(node, "groups", 1) == 1:
            weight = node.weights.weight.copy()
            weight[:, ~kept[node.inputs[0]]] = 0
            nodes.append(replace(node, weights=g.FloatWeights(weight, node.weights.bias)))
        else:
            nodes.append(node)
    return graph.with_nodes(nodes)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4), st.booleans())
def test_what_is_multiplied_by_zero_can_be_removed(seed: int, blocks: int, simplified: bool) -> None:
    graph = random_graph(seed, blocks)
    graph = simplify(graph) if simplified else graph
    groups = channel_groups(graph)
    kept = kept_channels(graph, groups, drawn(groups, seed))
    masked, smaller = without_readers(graph, kept), remove_channels(graph, kept)
    pixels = random_pixels(graph, 2)
    expected, answer = FloatExecutor(masked).run(pixels), FloatExecutor(smaller).run(pixels)
    # Sums of fewer terms are summed in another order.
    np.testing.assert_allclose(answer, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    for name, mask in kept.items():
        assert smaller.shapes[name][0] == mask.sum()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4))
def test_units_are_whole_and_lie_in_one_group(seed: int, blocks: int) -> None:
    graph = random_graph(seed, blocks)
    groups = channel_groups(graph)
    seen: set[tuple[str, int]] = set()
    for group in groups:
        assert group.units >= 1
        for tensor, channels in group.channels.items():
            here = {(tensor, int(c)) for c in channels.ravel()}
            assert len(here) == channels.size
            assert not here & seen
            seen |= here
    locked = {(graph.input.name, c) for c in range(3)} | {(graph.output.name, c) for c in range(5)}
    assert not seen & locked


def test_part_of_a_group_of_a_grouped_convolution_cannot_go() -> None:
    graph = _grouped()
    groups = channel_groups(graph)
    (inner,) = [group for group in groups if "grouped" in group.channels]
    assert inner.units == 4
    assert inner.channels["first"].shape == (4, 2)
    masks = {name: np.ones(shape[0], bool) for name, shape in graph.shapes.items()}
    masks["grouped"] = np.array([True] * 7 + [False])
    with pytest.raises(GraphError, match="groups would be removed"):
        remove_channels(graph, masks)
    masks["grouped"] = np.zeros(8, bool)
    with pytest.raises(GraphError, match="no channel of 'grouped'"):
        remove_channels(graph, masks)


def test_option_a_ties_the_streams_of_all_stages() -> None:
    from tests.random_graphs import _Builder

    builder = _Builder(1)
    builder._add(g.Input(name="image", shape=(3, 12, 12)))
    builder._conv(4)
    builder._option_a()
    builder._follow(g.GlobalAvgPool)
    builder._follow(g.Flatten)
    builder._add(g.Linear(name="classifier", inputs=(builder._last,), weights=builder._weights((5, 8), 8)))
    graph = fold_batch_norm(Graph("a", tuple(builder.nodes)))
    streams = channel_groups(graph)
    assert sorted(group.units for group in streams) == [4, 4]  # those that are padded, and those that are not
    shared = max(streams, key=lambda group: len(group.channels))
    padded = next(node for node in graph.nodes if isinstance(node, g.PadChannels))
    np.testing.assert_array_equal(np.sort(shared.channels[padded.name].ravel()), padded.before + np.arange(4))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5))
def test_a_block_that_adds_zero_can_be_removed(seed: int, blocks: int) -> None:
    graph = simplify(random_graph(seed, blocks))
    found = identity_blocks(graph)
    gone = [block.total for block in found if np.random.default_rng(seed).random() < 0.7]
    last = {block.branch[-1]: block.total for block in found if block.total in gone}
    nodes: list[g.Node] = []
    for node in graph.nodes:
        if node.name in last and isinstance(node, g.Conv):
            zero = g.FloatWeights(np.zeros_like(node.weights.weight), np.zeros_like(node.weights.bias))
            nodes.append(replace(node, weights=zero))
            continue
        if node.name in last:  # a gate, for one: what it gives is not made zero so simply
            gone.remove(last[node.name])
        nodes.append(node)
    expected = FloatExecutor(graph.with_nodes(nodes)).run(random_pixels(graph, 2))
    answer = FloatExecutor(remove_blocks(graph, gone)).run(random_pixels(graph, 2))
    np.testing.assert_array_equal(answer, expected)


def test_only_identity_blocks_can_be_removed() -> None:
    graph = _grouped()
    assert identity_blocks(graph) == []
    with pytest.raises(GraphError, match="'grouped' ends no residual block"):
        remove_blocks(graph, ["grouped"])


def _grouped() -> Graph:
    rng = np.random.default_rng(0)

    def weights(*shape: int) -> g.FloatWeights:
        return g.FloatWeights(rng.normal(size=shape).astype(np.float32), np.zeros(shape[0], np.float32))

    return Graph(
        "grouped",
        (
            g.Input(name="image", shape=(3, 6, 6)),
            g.Conv(name="first", inputs=("image",), weights=weights(8, 3, 1, 1)),
            g.Conv(name="grouped", inputs=("first",), weights=weights(8, 2, 3, 3), groups=4),
            g.GlobalAvgPool(name="pool", inputs=("grouped",)),
            g.Flatten(name="flat", inputs=("pool",)),
            g.Linear(name="classifier", inputs=("flat",), weights=weights(2, 8)),
        ),
    )
