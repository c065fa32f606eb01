"""Where an integer output is cut off: int8's own ends, or those of the activation that is fused into it."""

from __future__ import annotations

import numpy as np

from edge_resnet.graph.nodes import Activation, Node

__all__ = ["integer_bounds"]


def integer_bounds(node: Node) -> tuple[int, int]:
    """Least and largest int8 value of the node's output, from its activation and its parameters.

    A ReLU cuts at the zero point; a clip at u also at round(u / scale) + zero point, which is what LiteRT,
    ONNX Runtime and Core ML compute. Where the parameters end there anyway, nothing is left to cut.
    """
    quant = node.quant
    assert quant is not None
    activation = getattr(node, "activation", Activation.NONE)
    if activation is Activation.NONE:
        return -128, 127
    if activation.limit is None:
        return quant.zero_point, 127
    steps = int(np.rint(np.float32(activation.limit) / np.float32(quant.scale)))
    return quant.zero_point, min(127, steps + quant.zero_point)
