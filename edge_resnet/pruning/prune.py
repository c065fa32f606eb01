"""Prune a float graph to a budget, in one step or several."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np

from edge_resnet.errors import InputError
from edge_resnet.graph.channels import ChannelGroup, channel_groups, kept_channels
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.nodes import Conv, Linear
from edge_resnet.graph.passes.remove_blocks import IdentityBlock, identity_blocks, remove_blocks
from edge_resnet.graph.passes.remove_channels import remove_channels
from edge_resnet.pruning.changes import Origins
from edge_resnet.pruning.costs import Costs, total_cost
from edge_resnet.pruning.criteria import CRITERIA, Ladder, channel_ladders
from edge_resnet.pruning.evidence import Sample, answers, block_costs, divergence
from edge_resnet.pruning.reconstruct import reconstructed
from edge_resnet.pruning.selection import Candidates, Selection, select
from edge_resnet.pruning.trials import Trials, compared, least_piece
from edge_resnet.pruning_record import BlockChange, LayerChange
from edge_resnet.recipe import Prune

__all__ = ["Pruned", "Retrain", "check_kept_layers", "image_passes", "prune"]

Retrain = Callable[[Graph, int], Graph]
"""The graph after some training, behind step number 1, 2, ..."""


@dataclass(frozen=True, eq=False)
class Pruned:
    """`reached`: the part of the original's cost that is left."""

    graph: Graph
    reached: float
    layers: tuple[LayerChange, ...]
    blocks: tuple[BlockChange, ...]


def prune(
    graph: Graph,
    settings: Prune,
    costs_of: Callable[[Graph], Costs],
    sample: Sample | None = None,
    seed: int = 0,
    retrain: Retrain = lambda graph, step: graph,
) -> Pruned:
    """Take channels and blocks out of a float graph until its costs are the settings' part of what they were.

    `costs_of` makes the costs of a graph; `sample` is needed where image_passes is not 0. `retrain` is called
    between the steps. Raises InputError: a budget that cannot be met, or layers to keep that do not exist.
    """
    budget = settings.budget
    assert budget is not None
    name, part = budget
    check_kept_layers(graph, settings.keep)
    original, origins = graph, Origins(graph)
    first = total_cost(costs_of(graph), graph)
    known: Mapping[str, float] = {}
    for step in range(1, settings.steps + 1):
        most = _allowed(settings, part, step) * first
        candidates = _candidates(original, graph, origins, settings, sample, seed + step - 1)
        chosen = select(graph, costs_of(graph), candidates, most)
        if chosen.cost > most:
            raise _impossible(name, part, chosen, first, settings)
        if step == 1 and settings.criterion != "random":
            known = candidates.losses
        masks = kept_channels(graph, list(candidates.groups), chosen.kept)
        graph = remove_blocks(remove_channels(graph, masks), chosen.blocks)
        origins.keep({node.name: masks[node.name] for node in graph.nodes})
        if settings.reconstruct:
            assert sample is not None
            graph = reconstructed(original, graph, origins.channels, sample.pixels, seed, sample.advance)
        if step < settings.steps:
            graph = retrain(graph, step)
    reached = total_cost(costs_of(graph), graph) / first
    return Pruned(graph, reached, origins.layers(graph), origins.blocks(graph, known))


def image_passes(graph: Graph, settings: Prune) -> int:
    """How often, at most, the sample's images go through the graph to decide what goes; 0: none is needed."""
    criterion = CRITERIA[settings.criterion]
    blocks = settings.blocks and settings.criterion != "random" and bool(identity_blocks(graph))
    passes = criterion.passes * settings.channels
    groups = len(compared(len(channel_groups(graph)))) if settings.channels else 0
    if blocks and settings.reconstruct_candidates:
        passes += math.ceil(Trials.passes(len(identity_blocks(graph)) + groups, settings.images))
    elif blocks:
        passes += 1 if criterion.in_nats or not settings.channels else 2 + groups
    passes += int(settings.reconstruct)
    return passes and 1 + settings.steps * passes


def check_kept_layers(graph: Graph, patterns: Sequence[str]) -> None:
    """Raises InputError for the first pattern that names no layer."""
    layers = [node.name for node in graph.nodes if isinstance(node, Conv | Linear)]
    for pattern in patterns:
        if not any(fnmatchcase(layer, pattern) for layer in layers):
            near = difflib.get_close_matches(pattern, layers, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"layers are {', '.join(layers[:3])}, ..."
            raise InputError(f"prune.keep: {pattern!r} names no layer; {hint}")


def _allowed(settings: Prune, part: float, step: int) -> float:
    """Which part of the original may be left after the step."""
    done = step / settings.steps
    if settings.schedule == "cubic":  # Zhu and Gupta, 2017, 1710.01878, equation 1
        return part + (1 - part) * (1 - done) ** 3
    return 1 - (1 - part) * done


def _candidates(
    original: Graph, graph: Graph, origins: Origins, settings: Prune, sample: Sample | None, seed: int
) -> Candidates:
    """All that may go, and what it is worth, now."""

    def free(layers: Sequence[str]) -> bool:
        return not any(fnmatchcase(layer, pattern) for layer in layers for pattern in settings.keep)

    groups = [g for g in channel_groups(graph) if free(g.layers)] if settings.channels else []
    blocks = [b for b in identity_blocks(graph) if free(b.branch)] if settings.blocks else []
    ladders = channel_ladders(settings.criterion, graph, groups, sample, seed)
    losses: Mapping[str, float] = {}
    if blocks and settings.criterion == "random":
        losses = _random_losses(blocks, groups, seed)
    elif blocks:
        assert sample is not None
        if settings.reconstruct_candidates:
            trials = Trials(original, graph, origins.channels, sample, seed)
            losses = trials.block_costs([block.total for block in blocks])
            ladders = trials.ladders(groups, ladders, settings.multiple)
        else:
            losses = block_costs(graph, sample)
            if groups and not CRITERIA[settings.criterion].in_nats:
                ladders = _in_nats(graph, groups, ladders, sample, settings.multiple)
    return Candidates(groups, ladders, blocks, losses, settings.multiple)


def _random_losses(
    blocks: Sequence[IdentityBlock], groups: Sequence[ChannelGroup], seed: int
) -> dict[str, float]:
    """A chance of its own for each, of the size of what the ladders of the layers inside come to."""
    rng = np.random.default_rng([seed, len(blocks)])
    return {
        block.total: float(
            2 * rng.random() * max(1, sum(set(group.layers) <= set(block.branch) for group in groups))
        )
        for block in blocks
    }


def _in_nats(
    graph: Graph, groups: Sequence[ChannelGroup], ladders: list[Ladder], sample: Sample, multiple: int
) -> list[Ladder]:
    """The ladders times one factor, which makes them comparable with what blocks cost.

    It is the median of what the removal of a few groups' least channels really costs, over their losses.
    """
    present = divergence(sample, answers(graph, sample))
    ratios = []
    for index in compared(len(groups)):
        group, ladder = groups[index], ladders[index]
        piece = least_piece(group, ladder, multiple)
        if piece is not None:
            smaller = remove_channels(graph, kept_channels(graph, [group], [piece]))
            real = divergence(sample, answers(smaller, sample)) - present
            ratios.append(max(real, 0.0) / max(float(ladder.losses[(~piece).sum()]), 1e-30))
    factor = float(np.median(ratios)) if ratios else 1.0
    return [ladder.times(factor or 1.0) for ladder in ladders]


def _impossible(name: str, part: float, chosen: Selection, first: float, settings: Prune) -> InputError:
    unit, factor = {
        "latency": ("ms", 1.0),
        "macs": ("million multiply-accumulates", 1e-6),
        "params": ("parameters", 1.0),
        "bytes": ("bytes", 1.0),
    }[name]
    reasons = [f"each layer keeps at least {settings.multiple} channels (prune.multiple)"]
    reasons.append("blocks that change the size stay" if settings.blocks else "prune.blocks is false")
    if not settings.channels:
        reasons[0] = "prune.channels is false"
    if settings.keep:
        reasons.append("prune.keep")
    return InputError(
        f"prune.{name}={part:g} cannot be met: {chosen.cost / first:.3f} of the original "
        f"({chosen.cost * factor:,.4g} {unit}) is the least that can be had, since {', '.join(reasons)}"
    )
