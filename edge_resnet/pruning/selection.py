"""Which channels and blocks go: greedily what is worth least for what it saves, until the budget is met."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_resnet.graph.channels import ChannelGroup
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.passes.remove_blocks import IdentityBlock
from edge_resnet.pruning.costs import Costs
from edge_resnet.pruning.criteria import Ladder

__all__ = ["Candidates", "Selection", "select"]

# A group is narrowed in at most about so many pieces: more would only take longer.
_PIECES = 16


@dataclass(frozen=True, eq=False)
class Candidates:
    """What may go, and the loss that it should add: `ladders` of the groups, and `losses` of the blocks, by
    their sums. `multiple`: of how many channels a width is.
    """

    groups: Sequence[ChannelGroup]
    ladders: Sequence[Ladder]
    blocks: Sequence[IdentityBlock]
    losses: Mapping[str, float]
    multiple: int


@dataclass(frozen=True, eq=False)
class Selection:
    """`kept`: for each group which units stay, bool [units]. `blocks`: the sums of the blocks that go.

    `cost`: what is left. It is above what was asked for where everything that may go is gone.
    """

    kept: list[NDArray[np.bool_]]
    blocks: tuple[str, ...]
    cost: float


def select(graph: Graph, costs: Costs, candidates: Candidates, most: float) -> Selection:
    """Reduce the graph's cost to `most`, or as far as it goes.

    A group's width stays what it was or becomes a multiple, and never none. Blocks are large pieces:
    where the last ones saved too much, others stay after all.
    """
    state = _State(graph, costs, candidates)
    while state.cost > most and (options := list(state.options())):
        gap = state.cost - most
        best = min(options, key=lambda option: option.loss / option.saving)
        if best.saving >= gap:  # it would be the last: the one that suffices and is worth least
            best = min((o for o in options if o.saving >= gap), key=lambda option: option.loss)
        state.take(best)
    if state.cost <= most:
        state.give_back_blocks(most)
    return state.selection()


@dataclass(frozen=True)
class _Option:
    """A block, or the `units` of a group that are worth least."""

    loss: float
    saving: float
    block: IdentityBlock | None = None
    group: int = 0
    units: int = 0


class _State:
    """How many units of each group are left, which blocks went, and what every node costs now."""

    def __init__(self, graph: Graph, costs: Costs, candidates: Candidates) -> None:
        self._graph, self._costs, self._candidates = graph, costs, candidates
        self._width = {name: shape[0] for name, shape in graph.shapes.items()}
        self._left = [group.units for group in candidates.groups]
        self._gone: set[str] = set()  # nodes
        self._taken: list[IdentityBlock] = []
        self._node_cost = {node.name: self._cost_of(node.name, {}) for node in graph.nodes}
        self.cost = costs.fixed + sum(self._node_cost.values())
        self._touched = [self._around(group.channels) for group in candidates.groups]
        self._narrowings: dict[int, _Option | None] = {}

    def options(self) -> Iterator[_Option]:
        """All that can go next and saves something."""
        for index in range(len(self._left)):
            if index not in self._narrowings:
                self._narrowings[index] = self._narrowing(index)
            option = self._narrowings[index]
            if option is not None:
                yield option
        for block in self._candidates.blocks:
            if block.total not in self._gone:
                saving = sum(self._node_cost[name] for name in self._only_of(block))
                if saving > 0:
                    yield _Option(max(self._candidates.losses[block.total], 0.0), saving, block)

    def take(self, option: _Option) -> None:
        if option.block is not None:
            gone = self._only_of(option.block)
            self._taken.append(option.block)
            self._gone |= gone
            touched = gone
        else:
            group = self._candidates.groups[option.group]
            for tensor, channels in group.channels.items():
                self._width[tensor] -= option.units * channels.shape[1]
            self._left[option.group] -= option.units
            touched = self._touched[option.group]
        self._count(touched)

    def give_back_blocks(self, most: float) -> None:
        """Blocks that there is room for after all, the most valuable first."""
        for block in sorted(self._taken, key=lambda block: -self._candidates.losses[block.total]):
            taken, gone = self._taken, self._gone
            self._taken, self._gone = [other for other in taken if other is not block], set()
            for other in self._taken:  # anew: a node that two branches share went with the second
                self._gone |= self._only_of(other)
            self._count(gone ^ self._gone)
            if self.cost > most:
                changed = gone ^ self._gone
                self._taken, self._gone = taken, gone
                self._count(changed)

    def _count(self, touched: Collection[str]) -> None:
        """Costs anew, after what changed at these nodes."""
        for name in touched:
            self._node_cost[name] = 0.0 if name in self._gone else self._cost_of(name, {})
        self.cost = self._costs.fixed + sum(self._node_cost.values())
        # What a group saves depends on its nodes' costs alone: those of others stay.
        for index, around in enumerate(self._touched):
            if not around.isdisjoint(touched):
                self._narrowings.pop(index, None)

    def selection(self) -> Selection:
        kept = []
        for ladder, left in zip(self._candidates.ladders, self._left, strict=True):
            stays = np.ones(len(ladder.order), bool)
            stays[ladder.order[: len(stays) - left]] = False
            kept.append(stays)
        return Selection(kept, tuple(block.total for block in self._taken), self.cost)

    def _narrowing(self, index: int) -> _Option | None:
        """The group's next piece; None where nothing of it may go, or nothing would be saved."""
        group, left = self._candidates.groups[index], self._left[index]
        step = self._candidates.multiple // math.gcd(group.per_unit, self._candidates.multiple)
        piece = step * max(1, round(group.units / (_PIECES * step)))
        units = left % step or min(piece, left - step)  # the first piece makes a multiple of it
        if left - units < step or not units:
            return None
        change = {tensor: -units * channels.shape[1] for tensor, channels in group.channels.items()}
        nodes = self._touched[index] - self._gone
        saving = sum(self._node_cost[name] - self._cost_of(name, change) for name in nodes)
        if saving <= 0:
            return None
        removed = group.units - left
        losses = self._candidates.ladders[index].losses
        loss = float(losses[removed + units] - losses[removed])
        return _Option(loss, saving, group=index, units=units)

    def _cost_of(self, name: str, change: Mapping[str, int]) -> float:
        node = self._graph.by_name[name]
        reads = tuple(self._width[source] + change.get(source, 0) for source in node.inputs)
        return self._costs.node(name, reads, self._width[name] + change.get(name, 0))

    def _around(self, tensors: Collection[str]) -> set[str]:
        """The nodes that write or read one of the tensors."""
        readers = (node.name for tensor in tensors for node in self._graph.consumers[tensor])
        return {*tensors, *readers}

    def _only_of(self, block: IdentityBlock) -> set[str]:
        """The sum, and the nodes of the branch that only the sum needs, as far as they are there."""
        gone = {block.total}
        for name in reversed(block.branch):
            if all(
                reader.name in gone or reader.name in self._gone for reader in self._graph.consumers[name]
            ):
                gone.add(name)
        return gone - self._gone
