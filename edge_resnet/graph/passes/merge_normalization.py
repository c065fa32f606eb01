"""Join what a model does to its image first with the normalization in front of it.

Rule: Normalize -> BatchNorm, where nothing else reads the Normalize, becomes one Normalize:
((x - mean) / std) * scale + shift = (x - (mean - shift * std / scale)) / (std / scale). A model file may
subtract and divide by itself (Keras' Rescaling, an exporter's Sub and Div); the passes that fold
normalization then see one node.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from edge_resnet.graph.graph import Graph
from edge_resnet.graph.nodes import BatchNorm, Node, Normalize

__all__ = ["merge_normalization"]


def merge_normalization(graph: Graph) -> Graph:
    """The same function with one Normalize at the input instead of a chain."""
    nodes: dict[str, Node] = {}
    renamed: dict[str, str] = {}
    for original in graph.nodes:
        node = replace(original, inputs=tuple(renamed.get(name, name) for name in original.inputs))
        source = nodes.get(node.inputs[0]) if node.inputs else None
        if (
            isinstance(node, BatchNorm)
            and isinstance(source, Normalize)
            and len(graph.consumers[original.inputs[0]]) == 1
            and np.all(node.scale != 0)
            and source.quant is None
        ):
            nodes[source.name] = _merged(source, node)
            renamed[node.name] = source.name
        else:
            nodes[node.name] = node
    return graph.with_nodes(nodes.values())


def _merged(first: Normalize, second: BatchNorm) -> Normalize:
    mean, std = first.mean.astype(np.float64), first.std.astype(np.float64)
    scale, shift = second.scale.astype(np.float64), second.shift.astype(np.float64)
    merged_mean, merged_std = mean - shift * std / scale, std / scale
    return replace(
        first, mean=merged_mean.astype(np.float32), std=merged_std.astype(np.float32), quant=second.quant
    )
