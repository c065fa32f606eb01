"""Let a model that takes B, G, R take R, G, B.

Rule: the Normalize at the input has its means and deviations in reverse order, and every convolution that
reads it (or the input itself) has its weights' input channels in reverse order. Nothing is added.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from edge_resnet.errors import GraphError
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.nodes import Conv, FloatWeights, IntWeights, Node, Normalize

__all__ = ["reverse_channels"]


def reverse_channels(graph: Graph) -> Graph:
    """The function of the image with its channels reversed. GraphError where another node reads it."""
    image = {graph.input.name}
    nodes: list[Node] = []
    for node in graph.nodes:
        if not image.intersection(node.inputs):
            nodes.append(node)
        elif isinstance(node, Normalize):
            image.add(node.name)
            nodes.append(replace(node, mean=_reversed(node.mean), std=_reversed(node.std)))
        elif isinstance(node, Conv) and node.groups == 1:
            nodes.append(replace(node, weights=_weights(node.weights)))
        else:
            raise GraphError(f"node {node.name!r} reads the image; only a convolution takes it in B, G, R")
    return graph.with_nodes(nodes)


def _weights(weights: FloatWeights | IntWeights) -> FloatWeights | IntWeights:
    reverse: Any = np.ascontiguousarray(weights.weight[:, ::-1])
    return replace(weights, weight=reverse)


def _reversed(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values[::-1])
