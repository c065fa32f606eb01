"""Fuse a ReLU (or a clipped one) into the node that computes its input.

Rules:
  Conv -> Relu, Linear -> Relu and Add -> Relu, where nothing else reads the sum, become one node with the
  activation.
  In a graph of integers only where the sum has no parameters of its own, or the ReLU's.
  A Relu after a value that cannot be negative disappears, unless it also clips above.
  Any other Relu stays (as in pre-activation networks, where the sum is read twice).
"""

from __future__ import annotations

from dataclasses import replace

from edge_resnet.graph.graph import Graph
from edge_resnet.graph.nodes import (
    Activation,
    Add,
    AvgPool,
    Concat,
    Conv,
    Flatten,
    GlobalAvgPool,
    HardSigmoid,
    Linear,
    MaxPool,
    Mul,
    Node,
    Pad,
    PadChannels,
    Relu,
    Reshape,
    Sigmoid,
    SliceChannels,
    Subsample,
)

__all__ = ["fuse_activations", "is_non_negative"]

_KEEPS_SIGN = (
    MaxPool
    | AvgPool
    | GlobalAvgPool
    | Subsample
    | PadChannels
    | Pad
    | Flatten
    | Reshape
    | SliceChannels
    | Concat
    | Mul
)


def is_non_negative(node: Node, nodes: dict[str, Node]) -> bool:
    """Whether the node's output is a ReLU's or a sigmoid's, moved, averaged or multiplied at most."""
    seen: set[str] = set()
    waiting = [node]
    while waiting:
        current = waiting.pop()
        if isinstance(current, _KEEPS_SIGN):
            waiting += [nodes[name] for name in current.inputs if name not in seen]
            seen.update(current.inputs)
        elif not (
            isinstance(current, Relu | Sigmoid | HardSigmoid)
            or (isinstance(current, Conv | Linear | Add) and current.activation is not Activation.NONE)
        ):
            return False
    return True


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
        same = source.quant is None or source.quant == node.quant
        if node.activation is Activation.RELU and same and is_non_negative(source, nodes):
            nodes[source.name] = replace(source, quant=node.quant)
            renamed[node.name] = source.name
        elif (
            isinstance(source, Conv | Linear | Add)
            and source.activation is Activation.NONE
            and same
            and len(graph.consumers[original.inputs[0]]) == 1
        ):
            nodes[source.name] = replace(source, activation=node.activation, quant=node.quant)
            renamed[node.name] = source.name
        else:
            nodes[node.name] = node
    return graph.with_nodes(nodes.values())
