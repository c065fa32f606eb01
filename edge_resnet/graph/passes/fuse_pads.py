"""Move zero padding into the window that reads it.

Rules:
  Pad -> Conv becomes a Conv with that much more padding.
  Pad -> MaxPool, where the padded values cannot be negative, becomes a MaxPool with that much more padding: a
  zero then never wins against them, as its padding never does.
A Pad that something else reads too, or that mirrors the image, stays.
"""

from __future__ import annotations

from dataclasses import replace

from edge_resnet.graph.graph import Graph
from edge_resnet.graph.nodes import Conv, MaxPool, Node, Pad, PadMode
from edge_resnet.graph.passes.fuse_activations import is_non_negative

__all__ = ["fuse_pads"]


def fuse_pads(graph: Graph) -> Graph:
    """The same function without the Pad nodes that only such windows read."""
    fused = {node.name: node for node in graph.nodes if isinstance(node, Pad) and _fuses(node, graph)}
    nodes: list[Node] = []
    for node in graph.nodes:
        if node.name in fused:
            continue
        current = node
        while isinstance(current, Conv | MaxPool) and current.inputs[0] in fused:
            pad = fused[current.inputs[0]]
            current = replace(current, inputs=pad.inputs, padding=current.padding + pad.padding)
        nodes.append(current)
    return graph.with_nodes(nodes)


def _fuses(pad: Pad, graph: Graph) -> bool:
    readers = graph.consumers[pad.name]
    if pad.mode is not PadMode.ZERO or not readers:
        return False
    positive = is_non_negative(pad, graph.by_name)
    return all(isinstance(reader, Conv) or (positive and _wins(reader, pad)) for reader in readers)


def _wins(reader: Node, pad: Pad) -> bool:
    """A maximum over a window that always holds a pixel of the image, however large the padding."""
    if not isinstance(reader, MaxPool):
        return False
    total = reader.padding + pad.padding
    rows, columns = reader.kernel
    return max(total.top, total.bottom) < rows and max(total.left, total.right) < columns
