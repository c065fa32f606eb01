"""What a removal costs once the rest has made up for it: it is tried, on a few images.

The layers behind what goes can compute much of what it had added, and the fewer there are, the less. What a
removal breaks (evidence.block_costs, the criteria) knows nothing of that.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from edge_resnet.graph.channels import ChannelGroup, kept_channels
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.passes.remove_blocks import remove_blocks
from edge_resnet.graph.passes.remove_channels import remove_channels
from edge_resnet.pruning.criteria import Ladder
from edge_resnet.pruning.evidence import Sample, answers, divergence, downstream, producers
from edge_resnet.pruning.reconstruct import reconstructed

__all__ = ["Trials", "compared", "least_piece"]

# So many groups of channels tell what the ladders of all are worth.
_COMPARED = 8
# The rest is fitted to so many images, and asked about so many others.
_FITTED, _ASKED = 128, 256
_LEAST_FACTOR = 0.1


class Trials:
    """Removals from `pruned`, of whose tensors `channels` says which of the original's channels they have."""

    def __init__(
        self,
        original: Graph,
        pruned: Graph,
        channels: Mapping[str, NDArray[np.int64]],
        sample: Sample,
        seed: int = 0,
    ) -> None:
        self._original, self._pruned, self._channels, self._seed = original, pruned, channels, seed
        shown = min(_FITTED, max(1, len(sample.pixels) // 2))
        self._shown = sample.part(slice(0, shown))
        self._judges = sample.part(slice(shown, shown + _ASKED)) if len(sample.pixels) > shown else sample
        self._present = divergence(self._judges, answers(pruned, self._judges))

    @staticmethod
    def passes(count: int, images: int) -> float:
        """How often so many trials look at the sample's images, at most."""
        return (1 + count) * min(1.0, (_FITTED + _ASKED) / images)

    def block_costs(self, blocks: Collection[str]) -> dict[str, float]:
        """As evidence.block_costs, of the blocks with these sums."""
        graph = self._pruned
        return {
            block: self._cost(remove_blocks(graph, [block]), self._channels, downstream(graph, block))
            for block in blocks
        }

    def ladders(
        self, groups: Sequence[ChannelGroup], ladders: Sequence[Ladder], multiple: int
    ) -> list[Ladder]:
        """The ladders times what the next piece of a few groups costs in trials, over what they say of it.

        Each takes the factor of the nearest of these, since it depends on how much follows.
        """
        factors: dict[int, float] = {}
        for index in compared(len(groups)):
            piece = least_piece(groups[index], ladders[index], multiple)
            if piece is not None:
                loss = float(ladders[index].losses[(~piece).sum()])
                factors[index] = max(self._piece_cost(groups[index], piece), 0.0) / max(loss, 1e-30)
        positive = [factor for factor in factors.values() if factor > 0]
        if not positive:
            return list(ladders)
        # One piece may cost nothing; that all of the layer would, does not follow.
        least = _LEAST_FACTOR * float(np.median(positive))
        nearest = [min(factors, key=lambda known: abs(known - index)) for index in range(len(ladders))]
        return [
            ladder.times(max(factors[known], least)) for ladder, known in zip(ladders, nearest, strict=True)
        ]

    def _piece_cost(self, group: ChannelGroup, stays: NDArray[np.bool_]) -> float:
        graph = self._pruned
        masks = kept_channels(graph, [group], [stays])
        left = {name: self._channels[name][mask] for name, mask in masks.items()}
        behind = set().union(*(downstream(graph, name) for name in producers(graph, group)))
        return self._cost(remove_channels(graph, masks), left, behind)

    def _cost(
        self, smaller: Graph, channels: Mapping[str, NDArray[np.int64]], behind: Collection[str]
    ) -> float:
        sample = self._shown
        fitted = reconstructed(
            self._original, smaller, channels, sample.pixels, self._seed, sample.advance, behind
        )
        return divergence(self._judges, answers(fitted, self._judges)) - self._present


def compared(count: int) -> list[int]:
    """At most _COMPARED numbers below `count`, evenly."""
    return list(dict.fromkeys(int(i) for i in np.linspace(0, count - 1, min(count, _COMPARED))))


def least_piece(group: ChannelGroup, ladder: Ladder, multiple: int) -> NDArray[np.bool_] | None:
    """Which units stay when the least ones of one piece go; None where none may go."""
    count = min(max(1, multiple // group.per_unit), group.units - 1)
    if count < 1:
        return None
    stays = np.ones(group.units, bool)
    stays[ladder.order[:count]] = False
    return stays
