"""Which channels of a graph must go together, from the graph alone.

A channel that is taken out of one tensor is taken out of all that hold it as it is, scaled, added to or
multiplied with another: residual sums tie the channels of all blocks of a stage (and, with option A's padded
shortcuts, those of several stages), a gate ties its vector to the image, a grouped convolution ties all
channels of one of its groups, since groups have one size. Only convolutions and fully connected layers,
which mix channels, separate what they read from what they write. Such a set of channels is a unit.

Units that lie in the same tensors are alike, and form a group: one number, its width, says how many are left.
The idea of dependency groups apart from how they are scored is that of DepGraph (Fang et al., 2023,
2301.12900).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_resnet.graph.disjoint_sets import DisjointSets
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.nodes import (
    Add,
    Concat,
    Conv,
    Flatten,
    Input,
    Linear,
    Mul,
    Node,
    PadChannels,
    Reshape,
    SliceChannels,
)

__all__ = ["ChannelGroup", "channel_groups", "kept_channels"]

Kept = Mapping[str, NDArray[np.bool_]]


@dataclass(frozen=True, eq=False)
class ChannelGroup:
    """Units of channels that are alike. `channels`: for each tensor, those of each unit, int [units, n].

    n may differ between tensors. `layers`: the convolutions and fully connected layers that write such
    tensors, in the graph's order; the first gives the group its name.
    """

    layers: tuple[str, ...]
    channels: Mapping[str, NDArray[np.int64]]

    @property
    def name(self) -> str:
        return self.layers[0]

    @property
    def units(self) -> int:
        return len(next(iter(self.channels.values())))

    @property
    def per_unit(self) -> int:
        """The most channels that one unit has in a tensor which a layer writes."""
        return max(int(self.channels[layer].shape[1]) for layer in self.layers)


def channel_groups(graph: Graph) -> list[ChannelGroup]:
    """The groups whose units can be removed, in the graph's order.

    Not the image's channels, not the logits, and not those that a convolution mixes as rows of an image
    (efficient channel attention): their neighbours would change.
    """
    ties = _Ties(graph)
    for node in graph.nodes:
        ties.add(node)
    ties.lock(graph.input.name)
    ties.lock(graph.output.name)
    return ties.groups()


def kept_channels(graph: Graph, groups: list[ChannelGroup], kept: list[NDArray[np.bool_]]) -> Kept:
    """For each tensor which of its channels stay, bool [C], when these units of each group stay."""
    masks = {name: np.ones(shape[0], bool) for name, shape in graph.shapes.items()}
    for group, stays in zip(groups, kept, strict=True):
        for tensor, channels in group.channels.items():
            masks[tensor][channels[~stays].ravel()] = False
    return masks


class _Ties:
    """Sets of channels that are one unit, among all channels of all tensors."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._start: dict[str, int] = {}
        total = 0
        for name, shape in graph.shapes.items():
            self._start[name] = total
            total += shape[0]
        self._total, self._sets = total, DisjointSets(total)
        self._locked: set[int] = set()

    def add(self, node: Node) -> None:
        """Tie what the node's channels must share with its inputs'."""
        if isinstance(node, Input | Linear):
            return
        own = self._of(node.name)
        if isinstance(node, Conv):
            self._conv(node)
        elif isinstance(node, Add | Mul):
            for name in node.inputs:
                self._tie(own, self._of(name))
        elif isinstance(node, Concat):
            self._tie(own, np.concatenate([self._of(name) for name in node.inputs]))
        elif isinstance(node, SliceChannels):
            self._tie(own, self._of(node.inputs[0])[node.start : node.stop])
        elif isinstance(node, PadChannels):
            source = self._of(node.inputs[0])
            self._tie(own[node.before : node.before + len(source)], source)
        elif isinstance(node, Flatten):
            source = self._of(node.inputs[0])
            self._tie(own, np.repeat(source, len(own) // len(source)))
        elif isinstance(node, Reshape) and len(own) != len(self._of(node.inputs[0])):
            self.lock(node.inputs[0])  # channels become rows, or rows channels
            self.lock(node.name)
        else:
            self._tie(own, self._of(node.inputs[0]))

    def lock(self, name: str) -> None:
        """These channels cannot go."""
        self._locked.update(self._of(name).tolist())

    def groups(self) -> list[ChannelGroup]:
        roots = np.array([self._sets.find(atom) for atom in range(self._total)])
        fixed = {int(roots[atom]) for atom in self._locked}
        names = list(self._start)  # in the graph's order
        tensor_of = np.repeat(np.arange(len(names)), [self._graph.shapes[n][0] for n in names])
        units: dict[int, list[int]] = {}
        for atom, root in enumerate(roots.tolist()):
            if root not in fixed:
                units.setdefault(root, []).append(atom)
        alike: dict[tuple[int, ...], list[list[int]]] = {}
        for atoms in units.values():
            alike.setdefault(tuple(tensor_of[atoms].tolist()), []).append(atoms)
        groups = [self._group(names, tensors, members) for tensors, members in alike.items()]
        return [group for group in groups if group is not None]

    def _group(
        self, names: list[str], tensors: tuple[int, ...], members: list[list[int]]
    ) -> ChannelGroup | None:
        table = np.array(members)
        holds = np.array(tensors)
        channels = {
            names[tensor]: table[:, holds == tensor] - self._start[names[tensor]]
            for tensor in dict.fromkeys(tensors)
        }
        written = tuple(n for n in channels if isinstance(self._graph.by_name[n], Conv | Linear))
        return ChannelGroup(written, channels) if written else None

    def _conv(self, node: Conv) -> None:
        """All that one group of a grouped convolution reads and writes is one unit."""
        if node.groups == 1:
            return
        source, own = self._of(node.inputs[0]), self._of(node.name)
        for read, written in zip(np.split(source, node.groups), np.split(own, node.groups), strict=True):
            together = np.concatenate([read, written])
            self._tie(together[1:], together[:-1])

    def _of(self, name: str) -> NDArray[np.int64]:
        start = self._start[name]
        return np.arange(start, start + self._graph.shapes[name][0])

    def _tie(self, first: NDArray[np.int64], second: NDArray[np.int64]) -> None:
        for a, b in zip(first.tolist(), second.tolist(), strict=True):
            self._sets.join(a, b)
