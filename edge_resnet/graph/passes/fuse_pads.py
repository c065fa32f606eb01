"""Move zero padding into the convolution that reads it.

Rule: Pad -> Conv becomes a Conv with that much more padding. A Pad that something else reads too, or that
mirrors the image, stays.
"""

from __future__ import annotations

from dataclasses import replace

from edge_resnet.graph.graph import Graph
from edge_resnet.graph.nodes import Conv, Node, Pad, PadMode

__all__ = ["fuse_pads"]


def fuse_pads(graph: Graph) -> Graph:
    """The same function without the Pad nodes that only convolutions read."""
    nodes: list[Node] = []
    fused = {
        node.name: node
        for node in graph.nodes
        if isinstance(node, Pad)
        and node.mode is PadMode.ZERO
        and graph.consumers[node.name]
        and all(isinstance(reader, Conv) for reader in graph.consumers[node.name])
    }
    for node in graph.nodes:
        if node.name in fused:
            continue
        current = node
        while isinstance(current, Conv) and current.inputs[0] in fused:
            pad = fused[current.inputs[0]]
            current = replace(current, inputs=pad.inputs, padding=current.padding + pad.padding)
        nodes.append(current)
    return graph.with_nodes(nodes)
