"""Weights fitted to what the original computed: against numpy's least squares, and where that is exact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_resnet.graph import nodes as g
from edge_resnet.graph.channels import ChannelGroup, channel_groups, kept_channels
from edge_resnet.graph.float_executor import FloatExecutor
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.passes import simplify
from edge_resnet.graph.passes.remove_blocks import identity_blocks, remove_blocks
from edge_resnet.graph.passes.remove_channels import remove_channels
from edge_resnet.pruning.costs import COSTS
from edge_resnet.pruning.criteria import channel_ladders
from edge_resnet.pruning.evidence import Sample, answers, block_costs, divergence
from edge_resnet.pruning.prune import prune
from edge_resnet.pruning.reconstruct import reconstructed
from edge_resnet.pruning.trials import Trials
from edge_resnet.recipe import Prune
from tests.random_graphs import random_graph, random_pixels
from tests.test_pruning import residual_graph


def narrowed(
    graph: Graph, groups: Sequence[ChannelGroup], stays: list[np.ndarray]
) -> tuple[Graph, dict[str, np.ndarray]]:
    """The graph with those units of the groups, and what is left of each tensor."""
    masks = kept_channels(graph, list(groups), stays)
    return remove_channels(graph, masks), {name: np.flatnonzero(mask) for name, mask in masks.items()}


def without(graph: Graph, channel: int, layer: str) -> tuple[Graph, dict[str, np.ndarray]]:
    """The graph without a channel of a layer, and what is left of each tensor."""
    group = next(group for group in channel_groups(graph) if layer in group.layers)
    stays = np.ones(group.units, bool)
    stays[channel] = False
    return narrowed(graph, [group], [stays])


def all_channels(graph: Graph) -> dict[str, np.ndarray]:
    return {name: np.arange(shape[0]) for name, shape in graph.shapes.items()}


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4))
def test_where_nothing_went_nothing_changes(seed: int, blocks: int) -> None:
    graph = simplify(random_graph(seed, blocks))
    same = reconstructed(graph, graph, all_channels(graph), random_pixels(graph, 33))
    pixels = random_pixels(graph, 5, 1)
    assert np.array_equal(FloatExecutor(graph).run(pixels), FloatExecutor(same).run(pixels))


@pytest.mark.parametrize("layer", ["layer1.0.conv1", "stem"])
def test_a_channel_that_repeats_another_is_not_missed(layer: str) -> None:
    graph = residual_graph(seed=3)
    writers = next(group.layers for group in channel_groups(graph) if layer in group.layers)
    nodes: list[g.Node] = []
    for node in graph.nodes:
        if isinstance(node, g.Conv) and node.name in writers:
            weight, bias = node.weights.weight.copy(), node.weights.bias.copy()
            weight[3], bias[3] = weight[5], bias[5]
            node = replace(node, weights=g.FloatWeights(weight, bias))  # noqa: PLW2901
        nodes.append(node)
    graph = graph.with_nodes(nodes)
    smaller, left = without(graph, 3, layer)
    pixels, fresh = random_pixels(graph, 256), random_pixels(graph, 16, 1)
    expected = FloatExecutor(graph).run(fresh)
    wrong = np.abs(FloatExecutor(smaller).run(fresh) - expected).max()
    fitted = reconstructed(graph, smaller, left, pixels)
    assert np.abs(FloatExecutor(fitted).run(fresh) - expected).max() < 0.02 * wrong


def test_a_layer_is_fitted_as_numpy_does() -> None:
    """Strides, unequal padding and dilation: the rows are those of torch's unfold, the solution numpy's."""
    rng = np.random.default_rng(0)
    first, second = (rng.normal(0, 0.3, shape).astype(np.float32) for shape in ((6, 3, 1, 1), (4, 6, 3, 2)))
    graph = Graph(
        "pair",
        (
            g.Input(name="image", shape=(3, 9, 8)),
            g.Normalize(
                name="normalize",
                inputs=("image",),
                mean=np.full(3, 127, np.float32),
                std=np.full(3, 60, np.float32),
            ),
            g.Conv(
                name="first",
                inputs=("normalize",),
                weights=g.FloatWeights(first, np.zeros(6, np.float32)),
                activation=g.Activation.RELU,
            ),
            g.Conv(
                name="second",
                inputs=("first",),
                weights=g.FloatWeights(second, np.zeros(4, np.float32)),
                stride=(2, 1),
                padding=g.Padding(1, 0, 2, 1),
                dilation=(2, 1),
            ),
            g.GlobalAvgPool(name="pool", inputs=("second",)),
            g.Flatten(name="flat", inputs=("pool",)),
        ),
    )
    smaller, left = without(graph, 2, "first")
    pixels = random_pixels(graph, 64)
    fitted = reconstructed(graph, smaller, left, pixels)

    def seen(of: Graph, name: str) -> torch.Tensor:
        found: dict[str, torch.Tensor] = {}
        FloatExecutor(of).run(pixels, found.__setitem__)
        return found[name]

    reads = F.pad(seen(smaller, "first"), graph.by_name["second"].padding.sides)  # type: ignore[attr-defined]
    rows = F.unfold(reads, (3, 2), dilation=(2, 1), stride=(2, 1)).transpose(1, 2).flatten(0, 1).numpy()
    rows = np.concatenate([rows, np.ones((len(rows), 1), np.float32)], 1).astype(np.float64)
    wanted = seen(graph, "second").flatten(2).transpose(1, 2).flatten(0, 1).numpy()
    best = np.square(rows @ np.linalg.lstsq(rows, wanted, rcond=None)[0] - wanted).mean()
    ours, before = (
        np.square(seen(of, "second").flatten(2).transpose(1, 2).flatten(0, 1).numpy() - wanted).mean()
        for of in (fitted, smaller)
    )
    assert best <= ours * (1 + 1e-6)
    assert ours < best + 0.05 * (before - best)  # not all positions are drawn


def test_the_next_block_adds_what_a_block_that_went_had_added() -> None:
    graph = residual_graph(seed=1, blocks=4)
    block = next(block for block in identity_blocks(graph))
    smaller = remove_blocks(graph, (block.total,))
    pixels, fresh = random_pixels(graph, 256), random_pixels(graph, 32, 1)
    fitted = reconstructed(graph, smaller, all_channels(smaller), pixels)
    expected = FloatExecutor(graph).run(fresh)
    errors = [np.square(FloatExecutor(g).run(fresh) - expected).mean() for g in (smaller, fitted)]
    assert errors[1] < 0.5 * errors[0]


def test_a_block_costs_what_is_lost_once_the_rest_makes_up_for_it() -> None:
    graph = residual_graph(seed=2, blocks=4)
    pixels = random_pixels(graph, 384)
    sample = Sample(pixels, np.zeros(384, np.int64), np.zeros((0, 0), np.float32))
    sample = sample.with_answers(answers(graph, sample))
    blocks = [block.total for block in identity_blocks(graph)]
    fitted = Trials(graph, graph, all_channels(graph), sample).block_costs(blocks)
    judges = sample.part(slice(128, 384))
    for block in blocks:
        smaller = remove_blocks(graph, [block])
        # Layers before the block have nothing to make up for: they are what they were.
        whole = reconstructed(graph, smaller, all_channels(graph), pixels[:128])
        cost = divergence(judges, FloatExecutor(whole).run(judges.pixels))
        assert fitted[block] == pytest.approx(cost, rel=0.02)
    plain = block_costs(graph, judges)
    assert all(fitted[block] < 0.8 * plain[block] for block in blocks)


def test_ladders_of_channels_are_brought_to_what_trials_cost() -> None:
    graph = residual_graph(seed=3, blocks=2)
    pixels = random_pixels(graph, 384)
    sample = Sample(pixels, np.zeros(384, np.int64), np.zeros((0, 0), np.float32))
    sample = sample.with_answers(answers(graph, sample))
    groups = channel_groups(graph)
    assert len(groups) <= 8  # each of them is tried
    ladders = channel_ladders("l1", graph, groups, sample, 0)
    found = Trials(graph, graph, all_channels(graph), sample).ladders(groups, ladders, 4)
    judges = sample.part(slice(128, 384))
    factors = []
    for group, before, after in zip(groups, ladders, found, strict=True):
        stays = np.ones(group.units, bool)
        stays[before.order[:4]] = False
        smaller, left = narrowed(graph, [group], [stays])
        fitted = reconstructed(graph, smaller, left, pixels[:128])
        cost = divergence(judges, FloatExecutor(fitted).run(judges.pixels))
        assert after.losses[4] == pytest.approx(cost, rel=0.05)
        factors.append(after.losses[4] / before.losses[4])
    assert max(factors) > 1.5 * min(factors)  # they are not one factor


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4))
def test_any_model_is_fitted(seed: int, blocks: int) -> None:
    """Groups, gates, unequal padding and branches that end anywhere: shapes stay, values are finite."""
    graph = simplify(random_graph(seed, blocks))
    groups = channel_groups(graph)
    rng = np.random.default_rng(seed)
    stays = [rng.random(group.units) < 0.6 for group in groups]
    for mask in stays:
        mask[0] = True
    smaller, left = narrowed(graph, groups, stays)
    fitted = reconstructed(graph, smaller, left, random_pixels(graph, 40))
    assert fitted.shapes == smaller.shapes
    assert np.isfinite(FloatExecutor(fitted).run(random_pixels(graph, 4, 1))).all()


def test_pruning_with_it_comes_nearer_to_the_original() -> None:
    graph = residual_graph(seed=5)
    pixels, labels = random_pixels(graph, 128), np.zeros(128, np.int64)
    sample = Sample(pixels, labels, np.zeros((0, 0), np.float32))
    sample = sample.with_answers(answers(graph, sample))
    distance = []
    for fitted, candidates in ((False, False), (True, False), (True, True)):
        chosen = Prune(
            macs=0.5,
            multiple=2,
            criterion="l1",
            steps=2,
            reconstruct=fitted,
            reconstruct_candidates=candidates,
        )
        pruned = prune(graph, chosen, COSTS["macs"], sample)
        distance.append(divergence(sample, FloatExecutor(pruned.graph).run(pixels)))
    assert max(distance[1:]) < 0.5 * distance[0], distance
