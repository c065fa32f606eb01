"""A whole model: named nodes in the order in which they run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from edge_resnet.errors import GraphError
from edge_resnet.graph.nodes import Conv, Input, IntWeights, Linear, Node, Shape

__all__ = ["Graph", "needed_nodes"]


@dataclass(frozen=True, eq=False)
class Graph:
    """Nodes in topological order; the first is the Input, the last is the output.

    A graph that exists is valid: names are unique, inputs come before their users, and shapes fit.
    Otherwise the constructor raises GraphError and names the node.

    >>> import numpy as np
    >>> from edge_resnet.graph.nodes import Flatten, GlobalAvgPool
    >>> graph = Graph("tiny", (Input(name="image", shape=(3, 8, 8)),
    ...                        GlobalAvgPool(name="pool", inputs=("image",)),
    ...                        Flatten(name="flat", inputs=("pool",))))
    >>> graph.output_shape
    (3,)
    """

    name: str
    nodes: tuple[Node, ...]
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.nodes or not isinstance(self.nodes[0], Input):
            raise GraphError(f"graph {self.name!r}: the first node must be the Input")
        seen: set[str] = set()
        for node in self.nodes:
            if node.name in seen:
                raise GraphError(f"node {node.name!r} appears twice")
            if len(node.inputs) != node.arity and not (node.arity is None and node.inputs):
                needed = "at least 1" if node.arity is None else node.arity
                raise GraphError(f"node {node.name!r} has {len(node.inputs)} inputs, needs {needed}")
            for source in node.inputs:
                if source not in seen:
                    raise GraphError(f"node {node.name!r} reads {source!r}, which no earlier node writes")
            seen.add(node.name)
        if sum(isinstance(node, Input) for node in self.nodes) > 1:
            raise GraphError(f"graph {self.name!r} has more than one Input")
        unread = [n.name for n in self.nodes[:-1] if not self.consumers[n.name]]
        if unread:
            raise GraphError(f"node {unread[0]!r} is read by nothing and is not the output")
        if self.labels and self.shapes[self.output.name] != (len(self.labels),):
            raise GraphError(f"{len(self.labels)} labels for an output of shape {self.output_shape}")
        _ = self.shapes

    @cached_property
    def shapes(self) -> dict[str, Shape]:
        """Output shape of every node, without the batch axis."""
        shapes: dict[str, Shape] = {}
        for node in self.nodes:
            try:
                shapes[node.name] = node.output_shape(*(shapes[source] for source in node.inputs))
            except GraphError as error:
                raise GraphError(f"node {node.name!r} ({type(node).__name__}): {error}") from None
        return shapes

    @cached_property
    def by_name(self) -> dict[str, Node]:
        return {node.name: node for node in self.nodes}

    @cached_property
    def consumers(self) -> dict[str, tuple[Node, ...]]:
        """Who reads each node's output (twice, where a node reads it twice)."""
        readers: dict[str, list[Node]] = {node.name: [] for node in self.nodes}
        for node in self.nodes:
            for source in node.inputs:
                readers[source].append(node)
        return {name: tuple(nodes) for name, nodes in readers.items()}

    @property
    def input(self) -> Input:
        first = self.nodes[0]
        assert isinstance(first, Input)
        return first

    @property
    def output(self) -> Node:
        return self.nodes[-1]

    @property
    def output_shape(self) -> Shape:
        return self.shapes[self.output.name]

    @property
    def is_quantized(self) -> bool:
        """Every tensor has its integers."""
        return all(node.quant is not None for node in self.nodes) and all(
            isinstance(node.weights, IntWeights) for node in self.nodes if isinstance(node, Conv | Linear)
        )

    def computes_in_integers(self, node: Node) -> bool:
        """Whether the node's output, all its inputs and its weights, if it has any, are integers.

        In a mixed graph every other node computes in float: what it reads is dequantized, and its output is
        quantized if it has `quant`.
        """
        tensors = (node, *(self.by_name[name] for name in node.inputs))
        weights_are_integers = not isinstance(node, Conv | Linear) or isinstance(node.weights, IntWeights)
        return weights_are_integers and all(tensor.quant is not None for tensor in tensors)

    @property
    def is_mixed(self) -> bool:
        """Some nodes compute in integers, and some in float."""
        computing = self.nodes[1:]
        return not self.is_quantized and any(self.computes_in_integers(node) for node in computing)

    @property
    def params(self) -> int:
        """Weights and biases of convolutions and the classifier."""
        return sum(
            node.weights.weight.size + node.weights.bias.size
            for node in self.nodes
            if isinstance(node, Conv | Linear)
        )

    @property
    def macs(self) -> int:
        """Multiply-accumulates of convolutions and the classifier for one image."""
        return sum(self.node_macs(node) for node in self.nodes)

    def node_macs(self, node: Node) -> int:
        """Multiply-accumulates of one node for one image; 0 for all but convolutions and the classifier."""
        if not isinstance(node, Conv | Linear):
            return 0
        positions = int(np.prod(self.shapes[node.name][1:]))
        return node.weights.weight.size * positions

    def with_nodes(self, nodes: Iterable[Node]) -> Graph:
        return replace(self, nodes=tuple(nodes))

    def until(self, name: str) -> Graph:
        """The part of the graph that computes node `name`, which becomes the output."""
        return replace(self, nodes=needed_nodes(self.nodes, name), labels=())


def needed_nodes(nodes: Sequence[Node], name: str) -> tuple[Node, ...]:
    """Those of the nodes, in order, that compute node `name`, and itself."""
    wanted = {name}
    for node in reversed(nodes):
        if node.name in wanted:
            wanted.update(node.inputs)
    return tuple(node for node in nodes if node.name in wanted)
