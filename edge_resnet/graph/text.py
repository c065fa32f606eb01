"""A graph as text: one line a node."""

from __future__ import annotations

from edge_resnet.graph.graph import Graph
from edge_resnet.graph.nodes import (
    Activation,
    AvgPool,
    Conv,
    Linear,
    MaxPool,
    Node,
    PadMode,
    SliceChannels,
    Subsample,
)

__all__ = ["graph_to_text", "node_details"]


def graph_to_text(graph: Graph) -> str:
    """For people and for diffs: name, kind, inputs, shape, what it does, and its integers.

    Of a graph that is partly in float, each node that computes in float is marked.
    """
    lines = [f"graph {graph.name}: {graph.params:,} parameters, {graph.macs:,} MACs"]
    mixed = graph.is_mixed
    for node in graph.nodes:
        shape = "x".join(map(str, graph.shapes[node.name]))
        parts = [
            f"{node.name}: {type(node).__name__}({', '.join(node.inputs)}) -> {shape}",
            node_details(node),
        ]
        if mixed and not graph.computes_in_integers(node):
            parts.append("in float")
        if node.quant is not None:
            parts.append(f"scale {node.quant.scale:.6g} zero_point {node.quant.zero_point}")
        lines.append("  " + "  ".join(part for part in parts if part))
    return "\n".join(lines)


def node_details(node: Node) -> str:
    """Kernel, stride, groups and fused activation, as far as the node has them."""
    parts: list[str] = []
    if isinstance(node, Conv | Linear):
        parts.append("x".join(map(str, node.weights.weight.shape)))
    if isinstance(node, MaxPool | AvgPool):
        parts.append("x".join(map(str, node.kernel)))
    if isinstance(node, Conv | MaxPool | AvgPool | Subsample) and node.stride != (1, 1):
        parts.append("stride " + "x".join(map(str, node.stride)))
    if isinstance(node, Conv) and node.groups > 1:
        parts.append(f"groups {node.groups}")
    if isinstance(node, SliceChannels):
        parts.append(f"{node.start}:{node.stop}")
    if getattr(node, "mode", PadMode.ZERO) is PadMode.REFLECT:
        parts.append("mirrored")
    if getattr(node, "activation", Activation.NONE) is not Activation.NONE:
        parts.append(f"+{node.activation}")  # type: ignore[attr-defined]
    return " ".join(parts)
