"""Fuse a ReLU into the node that computes its input.

Rules:
  Conv -> Relu and Add -> Relu, where nothing else reads the sum, become one node with the activation.
  A Relu after a value that cannot be negative disappears.
  Any other Relu stays (as in pre-activation networks, where the sum is read twice).
"""

from __future__ import annotations

from dataclasses import replace

from edge_resnet.graph.graph import Graph
from edge_resnet.graph.nodes import (
    Activation,
    Add,
    AvgPool,
    Conv,
    Flatten,
    GlobalAvgPool,
    MaxPool,
    Node,
    Pad,
    PadChannels,
    Relu,
    Subsample,
)

__all__ = ["fuse_activations", "is_non_negative"]


def is_non_negative(node: Node, nodes: dict[str, Node]) -> bool:
    """Whether the node's output is a ReLU's, moved or averaged at most."""
    while isinstance(node, MaxPool | AvgPool | GlobalAvgPool | Subsample | PadChannels | Pad | Flatten):
        node = nodes[node.inputs[0]]
    return isinstance(node, Relu) or (isinstance(node, Conv | Add) and node.activation is Activation.RELU)


def fuse_activations(graph: Graph) -> Graph:
    """The same function with as few Relu nodes as possible; the fused node keeps its own name."""
    nodes: dict[str, Node] = {}
    renamed: dict[str, str] = {}
    for original in graph.nodes:
        node = replace(original, inputs=tuple(renamed.get(name, name) for name in original.inputs))
        if not isinstance(node, Relu):
            nodes[node.name] = node
            continue
        source = nodes[node.inputs[0]]
        if is_non_negative(source, nodes):
            renamed[node.name] = source.name
        elif isinstance(source, Conv | Add) and len(graph.consumers[original.inputs[0]]) == 1:
            nodes[source.name] = replace(source, activation=Activation.RELU)
            renamed[node.name] = source.name
        else:
            nodes[node.name] = node
    return graph.with_nodes(nodes.values())
