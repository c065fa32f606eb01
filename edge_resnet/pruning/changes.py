"""What went, in the words of the original graph, through all steps of pruning."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from edge_resnet.graph.graph import Graph
from edge_resnet.graph.nodes import Conv, Linear
from edge_resnet.graph.passes.remove_blocks import identity_blocks
from edge_resnet.pruning_record import BlockChange, LayerChange

__all__ = ["Origins", "as_ranges"]


class Origins:
    """Which channels of the original each tensor still has: `channels`."""

    def __init__(self, graph: Graph) -> None:
        self._original = graph
        self.channels = {name: np.arange(shape[0]) for name, shape in graph.shapes.items()}

    def keep(self, masks: Mapping[str, NDArray[np.bool_]]) -> None:
        """Follow a removal of channels; tensors that are not named are gone."""
        self.channels = {name: self.channels[name][mask] for name, mask in masks.items()}

    def layers(self, pruned: Graph) -> tuple[LayerChange, ...]:
        """All layers of the original."""
        changes = []
        for node in self._original.nodes:
            if not isinstance(node, Conv | Linear):
                continue
            left = pruned.by_name.get(node.name)
            shape = self._original.shapes[node.name]
            channels = np.arange(0) if left is None else self.channels[node.name]
            changes.append(
                LayerChange(
                    node.name,
                    shape[0],
                    len(channels),
                    "" if len(channels) in (0, shape[0]) else as_ranges(channels),
                    (shape[1], shape[2]) if len(shape) == 3 else (1, 1),
                    self._original.node_macs(node),
                    0 if left is None else pruned.node_macs(left),
                )
            )
        return tuple(changes)

    def blocks(self, pruned: Graph, costs: Mapping[str, float]) -> tuple[BlockChange, ...]:
        """All identity blocks of the original, and what the removal of each from it would cost."""
        layers = {n.name for n in self._original.nodes if isinstance(n, Conv | Linear)}
        return tuple(
            BlockChange(
                block.total,
                tuple(name for name in block.branch if name in layers),
                all(name not in pruned.by_name for name in block.branch),
                costs.get(block.total),
            )
            for block in identity_blocks(self._original)
        )


def as_ranges(channels: NDArray[np.int64]) -> str:
    """Ascending numbers as ranges: 0-7,12."""
    breaks = np.flatnonzero(np.diff(channels) != 1) + 1
    runs = np.split(channels, breaks)
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
