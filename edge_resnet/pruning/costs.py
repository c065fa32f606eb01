"""What a budget limits: multiply-accumulates, parameters, bytes of the int8 file, or milliseconds.

Each is a sum over nodes, of the numbers of channels that a node reads and writes, so that it can be told for
any width without a graph being built.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import numpy as np

from edge_resnet.graph.graph import Graph
from edge_resnet.graph.nodes import Conv, Linear, Node

if TYPE_CHECKING:
    from edge_resnet.latency.table import LatencyTable

__all__ = ["COSTS", "ByteCosts", "Costs", "LatencyCosts", "MacCosts", "ParameterCosts", "total_cost"]

# Bytes of an int8 .tflite beside its integers: a float32 scale, an int64 zero point and an int32 bias for
# each output channel, and what describes a node and its tensors (measured on ResNets: 300 to 420 a node).
_BYTES_PER_CHANNEL = 4 + 8 + 4
_BYTES_PER_NODE = 360.0


class Costs(Protocol):
    """The cost of a graph's nodes, by name, at given numbers of channels; `fixed` comes on top, once."""

    @property
    def fixed(self) -> float: ...

    def node(self, name: str, reads: tuple[int, ...], writes: int) -> float:
        """`reads`: channels of each input; a grouped convolution's groups have one size, whatever is left."""
        ...


def total_cost(costs: Costs, graph: Graph) -> float:
    """Of the graph as it is."""
    shapes = graph.shapes
    return costs.fixed + sum(
        costs.node(node.name, tuple(shapes[source][0] for source in node.inputs), shapes[node.name][0])
        for node in graph.nodes
    )


class _LayerCosts:
    """What only layers with weights cost: a function of the layer, its weights' number and its outputs."""

    fixed = 0.0

    def __init__(self, graph: Graph) -> None:
        self._nodes = graph.by_name
        self._positions = {name: int(np.prod(shape[1:])) for name, shape in graph.shapes.items()}

    def _weights(self, node: Node, reads: tuple[int, ...], writes: int) -> int:
        if isinstance(node, Conv):
            _, per_group, *kernel = node.weights.weight.shape
            return writes * (per_group if node.groups > 1 else reads[0]) * int(np.prod(kernel))
        return writes * reads[0] if isinstance(node, Linear) else 0


class MacCosts(_LayerCosts):
    """Multiply-accumulates of one image."""

    def node(self, name: str, reads: tuple[int, ...], writes: int) -> float:
        return self._weights(self._nodes[name], reads, writes) * self._positions[name]


class ParameterCosts(_LayerCosts):
    """Weights and biases."""

    def node(self, name: str, reads: tuple[int, ...], writes: int) -> float:
        node = self._nodes[name]
        return self._weights(node, reads, writes) + writes if isinstance(node, Conv | Linear) else 0


class ByteCosts(_LayerCosts):
    """Bytes of the int8 .tflite, estimated."""

    def node(self, name: str, reads: tuple[int, ...], writes: int) -> float:
        weights = self._weights(self._nodes[name], reads, writes)
        return _BYTES_PER_NODE + (weights + writes * _BYTES_PER_CHANNEL if weights else 0)


class LatencyCosts:
    """Milliseconds of one image, from a table of measured layers."""

    def __init__(self, graph: Graph, table: LatencyTable) -> None:
        from edge_resnet.latency.layers import layer_shapes, with_channels

        self.fixed, self._with_channels = table.overhead, with_channels
        self._table, self._layers = table, layer_shapes(graph)
        self._known: dict[tuple[str, tuple[int, ...], int], float] = {}

    def node(self, name: str, reads: tuple[int, ...], writes: int) -> float:
        layer = self._layers.get(name)
        if layer is None:
            return 0.0
        key = name, reads, writes
        if key not in self._known:
            self._known[key] = self._table.milliseconds(self._with_channels(layer, reads, writes))
        return self._known[key]


COSTS: dict[str, Callable[[Graph], Costs]] = {
    "macs": MacCosts,
    "params": ParameterCosts,
    "bytes": ByteCosts,
}
