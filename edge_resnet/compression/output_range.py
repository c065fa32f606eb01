"""The one range that a model which came quantized may lack: that of its logits.

Quantizers for accelerators (NNCF, Model Optimizer) leave the classifier's output in float. Its integers are
computed from the others' all the same; only the scale of the answer has to be chosen.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from edge_resnet.compression.scales import snap_scale
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.nodes import IntWeights, Linear, QuantParams
from edge_resnet.graph.reference import ReferenceExecutor

__all__ = ["lacks_output_range", "with_output_range"]


def lacks_output_range(graph: Graph) -> bool:
    """Whether all of the graph is in integers but the classifier's output."""
    output = graph.output
    return (
        isinstance(output, Linear)
        and isinstance(output.weights, IntWeights)
        and output.quant is None
        and all(node.quant is not None for node in graph.nodes[:-1])
    )


def with_output_range(graph: Graph, batches: Iterable[NDArray[np.uint8]]) -> Graph:
    """The graph with the least and largest logit on these images as its output's range."""
    output = graph.output
    assert isinstance(output, Linear)
    weights = output.weights
    assert isinstance(weights, IntWeights)
    part = graph.until(output.inputs[0])
    source = part.output.quant
    assert source is not None
    executor = ReferenceExecutor(part)
    unit = np.float64(source.scale) * weights.scale
    low = high = 0.0
    for pixels in batches:
        centred = executor.run(pixels).astype(np.int64) - source.zero_point
        logits = (centred @ weights.weight.T.astype(np.int64) + weights.bias) * unit
        low, high = min(low, float(logits.min())), max(high, float(logits.max()))
    scale = float(snap_scale((high - low) / 255))
    zero = int(np.clip(round(-128 - low / scale), -128, 127))
    return graph.with_nodes([*graph.nodes[:-1], replace(output, quant=QuantParams(scale, zero))])
