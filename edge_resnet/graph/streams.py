"""Which tensors must share quantization parameters, and why.

same parameters   pooling (maximum), subsampling, padding and flattening move integers, so their output has
                  their input's scale and zero point.
same scale        both inputs of a residual sum, and the sum: then the sum is exact integer arithmetic on
                  every runtime. What identity shortcuts connect becomes one stream.
"""

from __future__ import annotations

from edge_resnet.graph.graph import Graph
from edge_resnet.graph.nodes import Add, Flatten, MaxPool, Node, Pad, PadChannels, Subsample

__all__ = ["moves_integers", "scale_groups"]


def moves_integers(node: Node) -> bool:
    """Whether the node's output holds only its input's values (and zeros)."""
    return isinstance(node, MaxPool | Subsample | PadChannels | Pad | Flatten)


def scale_groups(graph: Graph) -> list[tuple[str, ...]]:
    """Partition of the tensors into groups of one scale, in graph order."""
    leader = {node.name: node.name for node in graph.nodes}

    def find(name: str) -> str:
        while leader[name] != name:
            leader[name] = leader[leader[name]]
            name = leader[name]
        return name

    for node in graph.nodes:
        if isinstance(node, Add) or moves_integers(node):
            for source in node.inputs:
                leader[find(node.name)] = find(source)
    groups: dict[str, list[str]] = {}
    for node in graph.nodes:
        groups.setdefault(find(node.name), []).append(node.name)
    return [tuple(names) for names in groups.values()]
