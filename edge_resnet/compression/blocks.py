"""A graph in pieces that can be treated one after the other: residual blocks, and single layers between them.

Where a graph is only one tensor wide, it can be cut: behind the stem, behind every residual sum (what skips
the block has joined it there), behind the pooling, the classifier. What lies between two cuts is a block, so
residual blocks are found without names or model families, whatever is inside them: groups, gates, branches.
A plain chain of layers is cut behind each of them. A graph that stays wide for long (dense connections) is
cut behind each layer there.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from edge_resnet.graph.graph import Graph
from edge_resnet.graph.nodes import Conv, Linear, Node

__all__ = ["Block", "find_blocks"]

# A bottleneck of Res2Net with gates has 11 layers; what is larger is no block but a whole stage.
_MOST_LAYERS = 12


@dataclass(frozen=True, eq=False)
class Block:
    """Some successive nodes of a graph.

    `inputs`: the tensors of earlier nodes that these read. `outputs`: those of theirs that later nodes read,
    and the graph's output. `passing`: the tensors of earlier nodes that later nodes read.
    """

    nodes: tuple[Node, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    passing: tuple[str, ...]

    @property
    def layers(self) -> list[Conv | Linear]:
        """The nodes that have weights."""
        return [node for node in self.nodes if isinstance(node, Conv | Linear)]


def find_blocks(graph: Graph) -> list[Block]:
    """The nodes behind the input, in their order, as blocks."""
    last_read = _last_reads(graph)
    cuts = _narrow_places(graph, last_read)
    blocks: list[Block] = []
    start = 1
    for stop in cuts:
        block = _block(graph, start, stop, last_read)
        if len(block.layers) > _MOST_LAYERS:
            blocks += _by_layer(graph, start, stop, last_read)
        else:
            blocks.append(block)
        start = stop
    return blocks


def _last_reads(graph: Graph) -> dict[str, int]:
    """For each tensor the position behind the last node that needs it; the output is needed longest."""
    last = {source: position for position, node in enumerate(graph.nodes) for source in node.inputs}
    last[graph.output.name] = len(graph.nodes)
    return last


def _narrow_places(graph: Graph, last_read: dict[str, int]) -> list[int]:
    """The positions p at which nodes[p:] read one tensor of nodes[:p] at most, and the end."""
    return [
        position
        for position in range(2, len(graph.nodes) + 1)
        if position == len(graph.nodes)
        or sum(last_read[node.name] >= position for node in graph.nodes[:position]) == 1
    ]


def _by_layer(graph: Graph, start: int, stop: int, last_read: dict[str, int]) -> list[Block]:
    """Each layer with what follows it, up to the next one."""
    layers = [p for p in range(start, stop) if isinstance(graph.nodes[p], Conv | Linear)]
    borders = [start, *layers[1:], stop]
    return [_block(graph, *pair, last_read) for pair in pairwise(borders)]


def _block(graph: Graph, start: int, stop: int, last_read: dict[str, int]) -> Block:
    nodes, own = graph.nodes[start:stop], {node.name for node in graph.nodes[start:stop]}
    inputs = dict.fromkeys(source for node in nodes for source in node.inputs if source not in own)
    outputs = tuple(node.name for node in nodes if last_read[node.name] >= stop)
    passing = tuple(node.name for node in graph.nodes[:start] if last_read[node.name] >= stop)
    return Block(nodes, tuple(inputs), outputs, passing)
