"""Write a hard sigmoid as a depthwise convolution.

Rule: HardSigmoid becomes a 1x1 depthwise Conv with weight 1/6 and bias 1/2 that clips to [0, 1] (a vector [C]
is seen as an image [C, 1, 1] on the way). TFLite has no integer hard sigmoid; all runtimes round convolutions
in the same way.
"""

from __future__ import annotations

import numpy as np

from edge_resnet.graph.graph import Graph
from edge_resnet.graph.nodes import Activation, Conv, FloatWeights, HardSigmoid, Node, Reshape

__all__ = ["lower_hard_sigmoids"]


def lower_hard_sigmoids(graph: Graph) -> Graph:
    """The same function without HardSigmoid nodes."""
    nodes: list[Node] = []
    for node in graph.nodes:
        if not isinstance(node, HardSigmoid):
            nodes.append(node)
            continue
        shape = graph.shapes[node.name]
        if len(shape) == 3:
            nodes.append(_depthwise(node.name, node.inputs[0], shape[0]))
            continue
        image, clipped = f"{node.name}/image", f"{node.name}/clipped"
        nodes.append(Reshape(name=image, inputs=node.inputs, shape=(shape[0], 1, 1)))
        nodes.append(_depthwise(clipped, image, shape[0]))
        nodes.append(Reshape(name=node.name, inputs=(clipped,), shape=shape))
    return graph.with_nodes(nodes)


def _depthwise(name: str, source: str, channels: int) -> Conv:
    weight = np.full((channels, 1, 1, 1), 1 / 6, np.float32)
    bias = np.full(channels, 0.5, np.float32)
    return Conv(
        name=name,
        inputs=(source,),
        weights=FloatWeights(weight, bias),
        groups=channels,
        activation=Activation.UNIT,
    )
