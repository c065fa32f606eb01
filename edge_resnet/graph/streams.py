"""Which tensors must share quantization parameters, and why.

same parameters   pooling (maximum), subsampling, padding, slicing, reshaping, concatenating and a ReLU that
                  stands alone move integers, so their output has their input's scale and zero point.
same scale        both inputs of a residual sum, and the sum: then the sum is exact integer arithmetic on
                  every runtime. What identity shortcuts connect becomes one stream.
"""

from __future__ import annotations

from collections.abc import Callable

from edge_resnet.graph.disjoint_sets import DisjointSets
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.nodes import (
    Add,
    Concat,
    Flatten,
    MaxPool,
    Node,
    Pad,
    PadChannels,
    Relu,
    Reshape,
    SliceChannels,
    Subsample,
)

__all__ = ["moves_integers", "parameter_groups", "scale_groups"]


def moves_integers(node: Node) -> bool:
    """Whether the node's output holds only its inputs' values (and zeros)."""
    return isinstance(
        node,
        MaxPool | Subsample | PadChannels | Pad | Flatten | Reshape | SliceChannels | Concat | Relu,
    )


def parameter_groups(graph: Graph) -> list[tuple[str, ...]]:
    """Partition of the tensors into groups of one scale and one zero point, in graph order."""
    return _groups(graph, moves_integers)


def scale_groups(graph: Graph) -> list[tuple[str, ...]]:
    """Partition of the tensors into groups of one scale, in graph order."""
    return _groups(graph, lambda node: isinstance(node, Add) or moves_integers(node))


def _groups(graph: Graph, joins: Callable[[Node], bool]) -> list[tuple[str, ...]]:
    """Tensors that nodes for which `joins` holds connect, input to output."""
    number = {node.name: index for index, node in enumerate(graph.nodes)}
    sets = DisjointSets(len(number))
    for node in graph.nodes:
        if joins(node):
            for source in node.inputs:
                sets.join(number[node.name], number[source])
    groups: dict[int, list[str]] = {}
    for name, index in number.items():
        groups.setdefault(sets.find(index), []).append(name)
    return [tuple(names) for names in groups.values()]
