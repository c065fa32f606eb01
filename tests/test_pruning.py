"""Criteria against gradients and losses computed otherwise; selection against the graphs that it leads to."""

from __future__ import annotations

import gc
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from edge_resnet.errors import InputError
from edge_resnet.graph import nodes as g
from edge_resnet.graph.channels import ChannelGroup, channel_groups
from edge_resnet.graph.float_executor import FloatExecutor
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.passes import simplify
from edge_resnet.graph.passes.remove_blocks import identity_blocks, remove_blocks
from edge_resnet.pruning.changes import as_ranges
from edge_resnet.pruning.costs import COSTS, total_cost
from edge_resnet.pruning.criteria import CRITERIA, channel_ladders
from edge_resnet.pruning.evidence import (
    Sample,
    answers,
    block_costs,
    divergence,
    gate_gradients,
    output_spreads,
    producers,
)
from edge_resnet.pruning.prune import image_passes, prune
from edge_resnet.pruning.selection import Candidates, select
from edge_resnet.recipe import Prune, load_recipe
from tests.random_graphs import random_graph, random_pixels


def residual_graph(seed: int = 0, blocks: int = 3, width: int = 8) -> Graph:
    """A stem, basic identity blocks, a block that doubles the width, and more identity blocks."""
    rng = np.random.default_rng(seed)

    def conv(name: str, source: str, out: int, inner: int, relu: bool, stride: int = 1, k: int = 3) -> g.Conv:
        weight = rng.normal(0, 1 / np.sqrt(inner * k * k), (out, inner, k, k)).astype(np.float32)
        return g.Conv(
            name=name,
            inputs=(source,),
            weights=g.FloatWeights(weight, rng.normal(0, 0.1, out).astype(np.float32)),
            stride=(stride, stride),
            padding=g.Padding.symmetric(k // 2, k // 2),
            activation=g.Activation.RELU if relu else g.Activation.NONE,
        )

    mean, std = np.full(3, 127, np.float32), np.full(3, 60, np.float32)
    nodes: list[g.Node] = [
        g.Input(name="image", shape=(3, 10, 10)),
        g.Normalize(name="normalize", inputs=("image",), mean=mean, std=std),
        conv("stem", "normalize", width, 3, True),
    ]
    last, channels = "stem", width
    for stage in (1, 2):
        for index in range(blocks):
            name, out = f"layer{stage}.{index}", width * stage
            stride = 2 if stage == 2 and index == 0 else 1
            nodes.append(conv(f"{name}.conv1", last, out, channels, True, stride))
            nodes.append(conv(f"{name}.conv2", f"{name}.conv1", out, out, False))
            shortcut = last
            if stride == 2:
                nodes.append(conv(f"{name}.down", last, out, channels, False, stride, 1))
                shortcut = f"{name}.down"
            total = g.Add(
                name=f"{name}.add", inputs=(f"{name}.conv2", shortcut), activation=g.Activation.RELU
            )
            nodes.append(total)
            last, channels = total.name, out
    weight = rng.normal(0, 0.3, (5, channels)).astype(np.float32)
    nodes += [
        g.GlobalAvgPool(name="pool", inputs=(last,)),
        g.Flatten(name="flat", inputs=("pool",)),
        g.Linear(name="fc", inputs=("flat",), weights=g.FloatWeights(weight, np.zeros(5, np.float32))),
    ]
    return Graph("residual", tuple(nodes))


def sample_of(graph: Graph, count: int = 12) -> Sample:
    pixels = random_pixels(graph, count, 3)
    labels = np.random.default_rng(1).integers(0, graph.output_shape[0], count)
    sample = Sample(pixels, labels, np.zeros((0, 0), np.float32))
    return sample.with_answers(answers(graph, sample))


def gated(graph: Graph, group: ChannelGroup, unit: int, gate: float) -> Graph:
    """What the unit's producers write, times the gate (positive, so that a ReLU lets it through)."""
    nodes = []
    for node in graph.nodes:
        if node.name in producers(graph, group) and isinstance(node, g.Conv | g.Linear):
            weight, bias = node.weights.weight.copy(), node.weights.bias.copy()
            channels = group.channels[node.name][unit]
            weight[channels] *= gate
            bias[channels] *= gate
            nodes.append(replace(node, weights=g.FloatWeights(weight, bias)))
        else:
            nodes.append(node)
    return graph.with_nodes(nodes)


def losses(graph: Graph, sample: Sample, labels: np.ndarray) -> np.ndarray:
    logits = torch.from_numpy(FloatExecutor(graph).run(sample.pixels)).double()
    return F.cross_entropy(logits, torch.from_numpy(labels), reduction="none").numpy()


def test_gate_gradients_are_the_derivatives_of_the_loss() -> None:
    graph = residual_graph()
    groups, sample = channel_groups(graph), sample_of(residual_graph())
    gradients = gate_gradients(graph, groups, sample, sample.labels)
    step = 1e-3
    for index in (0, 1, len(groups) - 1):
        for unit in (0, groups[index].units - 1):
            up, down = (
                losses(gated(graph, groups[index], unit, gate), sample, sample.labels)
                for gate in (1 + step, 1 - step)
            )
            # Some ReLU of some image has its kink within the step.
            difference = gradients[index][:, unit] - (up - down) / (2 * step)
            assert np.linalg.norm(difference) < 0.03 * np.linalg.norm(gradients[index][:, unit])


def test_gate_gradients_leave_no_tensors_behind() -> None:
    """Those of a batch are freed with it, and not when Python next looks for circles: gigabytes of images."""

    def tensors() -> int:
        return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())

    graph = residual_graph()
    sample, groups = sample_of(graph), channel_groups(graph)
    gate_gradients(graph, groups, sample, sample.labels)
    gc.collect()
    gc.disable()
    try:
        before = tensors()
        gate_gradients(graph, groups, sample, sample.labels)
        assert tensors() == before
    finally:
        gc.enable()


def test_taylor_and_norms_follow_their_formulas() -> None:
    graph = residual_graph()
    groups, sample = channel_groups(graph), sample_of(graph)
    gradients = gate_gradients(graph, groups, sample, sample.labels)
    for scores, gates in zip(CRITERIA["taylor"].score(graph, groups, sample, 0), gradients, strict=True):
        np.testing.assert_allclose(scores, np.abs(gates).mean(0), rtol=1e-5)
    for name, order in (("l1", 1), ("l2", 2)):
        for group, scores in zip(groups, CRITERIA[name].score(graph, groups, None, 0), strict=True):
            expected = np.zeros(group.units)
            for layer in producers(graph, group):
                weight = torch.from_numpy(graph.by_name[layer].weights.weight)
                norms = torch.linalg.vector_norm(weight, order, dim=(1, 2, 3)).numpy()
                expected += norms / norms.mean()
            np.testing.assert_allclose(scores, expected, rtol=1e-5)


def test_ladders_compare_groups() -> None:
    graph = residual_graph()
    groups, sample = channel_groups(graph), sample_of(graph)
    for criterion in CRITERIA:
        scored = CRITERIA[criterion].score(graph, groups, sample, 0)
        for group, ladder, scores in zip(
            groups, channel_ladders(criterion, graph, groups, sample, 0), scored, strict=True
        ):
            assert (np.diff(scores[ladder.order]) >= 0).all()
            assert (np.diff(ladder.losses) >= 0).all()
            half = group.units // 2
            if CRITERIA[criterion].in_nats:
                assert ladder.losses[half] == pytest.approx(np.sort(scores)[:half].sum())
            else:
                left = np.sort(scores)[half:].sum() / scores.sum()
                assert np.exp(-ladder.losses[half] / len(producers(graph, group))) == pytest.approx(left)


def test_batch_norm_shows_again_in_what_a_layer_computes() -> None:
    """A normalization that was trained on these images had as scale what the folded layer's output varies."""
    graph = residual_graph()
    sample = sample_of(graph, 40)
    groups = channel_groups(graph)
    stem = next(group for group in groups if group.name == "layer1.0.conv1")
    plain = torch.from_numpy(FloatExecutor(_linear(graph.until("layer1.0.conv1"))).run(sample.pixels))
    spreads = output_spreads(graph, [stem], sample)[0]
    np.testing.assert_allclose(spreads, plain.std((0, 2, 3), unbiased=False).numpy(), rtol=1e-3)


def _linear(graph: Graph) -> Graph:
    last = replace(graph.output, activation=g.Activation.NONE)
    return graph.with_nodes([*graph.nodes[:-1], last])


def test_the_distillation_criterion_predicts_the_divergence() -> None:
    """To second order: for a gate that is a little below 1, a share of the score."""
    graph = residual_graph()
    groups, sample = channel_groups(graph), sample_of(graph, 400)
    scores = CRITERIA["distillation"].score(graph, groups, sample, 0)
    real, predicted, away = [], [], 0.25
    for group, values in zip(groups, scores, strict=True):
        for unit in range(0, group.units, 3):
            changed = gated(graph, group, unit, 1 - away)
            real.append(divergence(sample, FloatExecutor(changed).run(sample.pixels)))
            predicted.append(values[unit] * away**2)
    assert np.corrcoef(real, predicted)[0, 1] > 0.8
    assert 0.5 < np.sum(predicted) / np.sum(real) < 2


def test_block_costs_are_what_a_removal_does() -> None:
    graph = residual_graph()
    sample = sample_of(graph)
    costs = block_costs(graph, sample)
    assert list(costs) == [block.total for block in identity_blocks(graph)]
    expected = torch.from_numpy(sample.logits).double().log_softmax(1)
    for name, cost in costs.items():
        logits = torch.from_numpy(FloatExecutor(remove_blocks(graph, [name])).run(sample.pixels)).double()
        real = F.kl_div(logits.log_softmax(1), expected, reduction="batchmean", log_target=True)
        assert cost == pytest.approx(float(real), rel=1e-3, abs=1e-6)


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(list(COSTS)),
    st.sampled_from(list(CRITERIA)),
    st.floats(0.45, 0.95),
    st.sampled_from([1, 2, 4]),
    st.booleans(),
    st.integers(1, 3),
)
def test_the_budget_holds_in_the_graph(
    budget: str, criterion: str, part: float, multiple: int, blocks: bool, steps: int
) -> None:
    graph = residual_graph(blocks=2)
    chosen = Prune(
        **{budget: part},
        criterion=criterion,
        blocks=blocks,
        multiple=multiple,
        steps=steps,
        schedule="cubic" if steps > 1 else "one-shot",
    )
    sample = sample_of(graph, 6) if image_passes(graph, chosen) else None
    pruned = prune(graph, chosen, COSTS[budget], sample)
    costs = COSTS[budget]
    reached = total_cost(costs(pruned.graph), pruned.graph) / total_cost(costs(graph), graph)
    assert reached <= part + 1e-9
    assert pruned.reached == pytest.approx(reached)
    if budget == "macs":
        assert pruned.reached == pytest.approx(pruned.graph.macs / graph.macs)
    if budget == "params":
        assert pruned.reached == pytest.approx(pruned.graph.params / graph.params)
    for layer in pruned.layers:
        shapes = pruned.graph.shapes
        assert layer.after == (shapes[layer.name][0] if layer.name in shapes else 0)
        assert layer.after % multiple == 0 or layer.after == layer.before
    removed = {block.name for block in pruned.blocks if block.removed}
    assert blocks or not removed
    FloatExecutor(pruned.graph).run(random_pixels(graph, 1))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4), st.floats(0.3, 0.99))
def test_any_model_is_pruned_or_told_how_far(seed: int, blocks: int, part: float) -> None:
    graph = simplify(random_graph(seed, blocks))
    assume(graph.macs)
    sample = sample_of(graph, 4)
    try:
        pruned = prune(graph, Prune(macs=part, multiple=2), COSTS["macs"], sample)
    except InputError as error:
        least = float(str(error).split("met: ")[1].split()[0])
        assert part < least + 5e-4
        return
    assert pruned.graph.macs <= part * graph.macs * (1 + 1e-9)
    assert pruned.graph.output_shape == graph.output_shape


def test_a_large_last_block_gives_smaller_ones_back() -> None:
    graph = residual_graph(blocks=3)
    blocks = {block.total: block for block in identity_blocks(graph)}
    costs = COSTS["params"](graph)
    whole = total_cost(costs, graph)

    def left(removed: set[str]) -> float:
        return total_cost(costs, remove_blocks(graph, removed))

    # Of the second stage a block has four times as many weights. By what a weight is worth, a small one goes
    # first, and then only a large one suffices, which would have sufficed alone.
    losses = {total: 1.0 if total.startswith("layer1") else 5.0 for total in blocks}
    large = next(total for total in blocks if total.startswith("layer2"))
    candidates = Candidates([], [], list(blocks.values()), losses, 8)
    chosen = select(graph, costs, candidates, left({large}))
    assert [total[:6] for total in chosen.blocks] == ["layer2"]
    assert chosen.cost == pytest.approx(left(set(chosen.blocks)))
    # Nothing is given back that there is no room for.
    small = next(total for total in blocks if total.startswith("layer1"))
    assert set(select(graph, costs, candidates, left({large, small})).blocks) >= {chosen.blocks[0]}
    assert select(graph, costs, candidates, whole).blocks == ()


def test_kept_layers_stay_and_patterns_must_name_one() -> None:
    graph = residual_graph()
    sample = sample_of(graph)
    pruned = prune(graph, Prune(macs=0.6, keep=("layer1.*", "stem")), COSTS["macs"], sample)
    kept = [layer for layer in pruned.layers if layer.name.startswith(("layer1.", "stem"))]
    assert all(layer.after == layer.before for layer in kept)
    with pytest.raises(InputError, match=r"'layer1.9.conv1' names no layer; did you mean 'layer1.\d.conv1'"):
        prune(graph, Prune(macs=0.6, keep=("layer1.9.conv1",)), COSTS["macs"], sample)


def test_a_budget_that_cannot_be_met_says_what_can() -> None:
    graph = residual_graph()
    with pytest.raises(
        InputError, match=r"prune.macs=0.01 cannot be met: 0.\d+ of the original .* is the least"
    ):
        prune(graph, Prune(macs=0.01), COSTS["macs"], sample_of(graph))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"macs": 1.5}, "prune.macs"),
        ({"macs": 0}, "prune.macs"),
        ({"macs": 0.5, "latency": 0.5}, "is the budget already"),
        ({"macs": 0.5, "channels": False, "blocks": False}, "nothing can be pruned"),
        ({"macs": 0.5, "steps": 3}, "one-shot has one step"),
        ({"macs": 0.5, "criterion": "l3"}, "prune.criterion"),
        ({"macs": 0.5, "reconstruct_candidates": True}, "set that to true as well"),
        (
            {"macs": 0.5, "reconstruct": True, "reconstruct_candidates": True, "blocks": False},
            "prune.blocks is false",
        ),
        (
            {"macs": 0.5, "reconstruct": True, "reconstruct_candidates": True, "criterion": "random"},
            "random does not",
        ),
        ({"macs": 0.5, "device": "phone"}, "budget of latency"),
    ],
)
def test_settings_that_mean_nothing_are_refused(given: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_recipe({"prune": given})


def test_what_a_criterion_keeps_is_better_than_chance() -> None:
    """Half of the channels of a network of which half does nothing: they are found."""
    graph = residual_graph(seed=4)
    nodes = []
    for node in graph.nodes:
        if isinstance(node, g.Conv) and node.name.endswith("conv1"):
            weight = node.weights.weight.copy()
            weight[::2] *= 0.01
            node = replace(node, weights=g.FloatWeights(weight, node.weights.bias * 0))  # noqa: PLW2901
        nodes.append(node)
    graph = graph.with_nodes(nodes)
    sample = sample_of(graph, 64)
    distance = {}
    for criterion in CRITERIA:
        chosen = Prune(macs=0.62, criterion=criterion, blocks=False, multiple=1)
        pruned = prune(graph, chosen, COSTS["macs"], sample)
        distance[criterion] = divergence(sample, FloatExecutor(pruned.graph).run(sample.pixels))
    for criterion in ("l1", "l2", "batch-norm", "taylor", "distillation"):
        assert distance[criterion] < 0.5 * distance["random"], distance


def test_ranges_of_channels() -> None:
    assert as_ranges(np.array([0, 1, 2, 5, 7, 8])) == "0-2,5,7-8"
    assert as_ranges(np.array([3])) == "3"
