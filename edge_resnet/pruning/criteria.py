"""What a channel is worth: one function a criterion, in a table.

Each gives a score for every unit of every group; what scores least goes first. A ladder says what the removal
of the 0, 1, 2, ... least ones comes to, so that groups can be compared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_resnet.graph.channels import ChannelGroup
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.nodes import Conv, FloatWeights, Linear
from edge_resnet.pruning.evidence import Sample, gate_gradients, output_spreads, producers

__all__ = ["CRITERIA", "Criterion", "Ladder", "Scores", "channel_ladders"]

Scores = list[NDArray[np.float64]]
"""For each group [units]."""
_Score = Callable[[Graph, Sequence[ChannelGroup], "Sample | None", int], Scores]


@dataclass(frozen=True)
class Criterion:
    """`passes`: how often it looks at the sample. `in_nats`: scores are losses that removals should add."""

    score: _Score
    passes: int = 0
    in_nats: bool = False


@dataclass(frozen=True, eq=False)
class Ladder:
    """`order`: the units, least first. `losses` [units + 1]: of the removal of so many of them; the last,
    that of all, may be infinite."""

    order: NDArray[np.int64]
    losses: NDArray[np.float64]

    def times(self, factor: float) -> Ladder:
        return Ladder(self.order, self.losses * factor)


def channel_ladders(
    criterion: str, graph: Graph, groups: Sequence[ChannelGroup], sample: Sample | None, seed: int
) -> list[Ladder]:
    """For each group what the removal of its least units comes to.

    Scores in units of the loss add up. Of others only a part of their sum means something: a group of which
    the share r is left has lost -log(r) for each of its producers. So a layer of large weights is not worth
    more for that, and no layer is emptied because it saves much.
    """
    chosen, ladders = CRITERIA[criterion], []
    for group, values in zip(groups, chosen.score(graph, groups, sample, seed), strict=True):
        order = np.argsort(values, kind="stable")
        removed = np.concatenate([[0.0], np.cumsum(values[order])])
        if not chosen.in_nats:
            left = np.maximum(1 - removed / max(float(removed[-1]), 1e-30), 0)
            with np.errstate(divide="ignore"):
                removed = -len(producers(graph, group)) * np.log(left)
        ladders.append(Ladder(order, removed))
    return ladders


def _norm(order: int) -> _Score:
    """Sum of the filters' norms, each in units of its layer's mean.

    Li et al., "Pruning Filters for Efficient ConvNets", 2016, 1608.08710.
    """

    def score(graph: Graph, groups: Sequence[ChannelGroup], sample: Sample | None, seed: int) -> Scores:
        return [_filter_norms(graph, group, order) for group in groups]

    return score


def _filter_norms(graph: Graph, group: ChannelGroup, order: int) -> NDArray[np.float64]:
    total = np.zeros(group.units)
    for name in producers(graph, group):
        node = graph.by_name[name]
        assert isinstance(node, Conv | Linear)
        assert isinstance(node.weights, FloatWeights)
        filters = node.weights.weight.reshape(len(node.weights.weight), -1).astype(np.float64)
        norms = np.abs(filters).sum(1) if order == 1 else np.sqrt(np.square(filters).sum(1))
        total += norms[group.channels[name]].sum(1) / max(float(norms.mean()), 1e-30)
    return total


def _batch_norm(graph: Graph, groups: Sequence[ChannelGroup], sample: Sample | None, seed: int) -> Scores:
    """The scale of batch normalization (Liu et al., "Network Slimming", 2017, 1708.06519).

    Graphs have it folded into the weights; it shows again as the deviation of what the layer computes.
    """
    assert sample is not None
    return [values.astype(np.float64) for values in output_spreads(graph, groups, sample)]


def _taylor(graph: Graph, groups: Sequence[ChannelGroup], sample: Sample | None, seed: int) -> Scores:
    """First order: how much the loss on labels changes, mean of absolute values (Molchanov et al., 2016,
    1611.06440, section 2.2)."""
    assert sample is not None
    gates = gate_gradients(graph, groups, sample, sample.labels)
    return [np.abs(values).mean(0, dtype=np.float64) for values in gates]


def _distillation(graph: Graph, groups: Sequence[ChannelGroup], sample: Sample | None, seed: int) -> Scores:
    """What the removal adds to KL(original || graph), to second order, in nats.

    The first derivative is that of the cross entropy with the original's answers, and 0 while the graph is
    the original. With classes drawn from those answers the mean square is the second derivative (the Fisher
    information; Theis et al., "Faster gaze prediction with dense networks and Fisher pruning", 2018,
    1801.05787).
    """
    assert sample is not None
    slopes = gate_gradients(graph, groups, sample, _probabilities(sample.logits))
    drawn = gate_gradients(graph, groups, sample, _drawn(sample.logits, seed))
    return [
        np.maximum(0.5 * np.square(gates, dtype=np.float64).mean(0) - slope.mean(0, dtype=np.float64), 0)
        for gates, slope in zip(drawn, slopes, strict=True)
    ]


def _probabilities(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    shares: NDArray[np.float32] = powers / powers.sum(1, keepdims=True)
    return shares


def _drawn(logits: NDArray[np.float32], seed: int) -> NDArray[np.int64]:
    """For each image a class, with the probabilities that the logits stand for."""
    noise = np.random.default_rng(seed).gumbel(size=logits.shape)
    classes: NDArray[np.int64] = (logits + noise).argmax(1)
    return classes


def _random(graph: Graph, groups: Sequence[ChannelGroup], sample: Sample | None, seed: int) -> Scores:
    """The honest baseline."""
    rng = np.random.default_rng(seed)
    return [rng.random(group.units) for group in groups]


CRITERIA: dict[str, Criterion] = {
    "l1": Criterion(_norm(1)),
    "l2": Criterion(_norm(2)),
    "batch-norm": Criterion(_batch_norm, passes=1),
    "taylor": Criterion(_taylor, passes=1),
    "distillation": Criterion(_distillation, passes=2, in_nats=True),
    "random": Criterion(_random),
}
