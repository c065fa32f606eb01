"""Can the runtimes answer with the same integers? Graphs of this project's own quantization always can.

A graph that is partly in float cannot: runtimes sum floats in different orders. A model that came quantized
has its own scales; where they leave a rounding to the runtime (see docs/architecture.md), its answers differ,
too. Both are compared, but not held to the bit. An average may have sums on a tie as well; on real images
they hardly come up, so it is held to the bit.
"""

from __future__ import annotations

import numpy as np

from edge_resnet.compression.quantize import PORTABLE_LIMIT
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.nodes import (
    Add,
    Conv,
    IntWeights,
    Linear,
    Mul,
    Node,
    Normalize,
    QuantParams,
    Sigmoid,
)

__all__ = ["can_saturate", "first_inexact"]


def first_inexact(graph: Graph) -> str | None:
    """The first node that runtimes may round differently, and why; None where there is none."""
    if not graph.is_quantized:
        kept = next(node for node in graph.nodes[1:] if not graph.computes_in_integers(node))
        return f"node {kept.name!r} is kept in float"
    for node in graph.nodes:
        reason = _reason(node, graph)
        if reason:
            return f"node {node.name!r}: {reason}, as the source has it"
    return None


def can_saturate(graph: Graph) -> bool:
    """Whether any integer weight is so large that two of its products may exceed 16 bits (see cpu.py)."""
    return any(
        isinstance(node, Conv | Linear)
        and isinstance(node.weights, IntWeights)
        and bool((np.abs(node.weights.weight.astype(np.int16)) > PORTABLE_LIMIT).any())
        for node in graph.nodes
    )


def _reason(node: Node, graph: Graph) -> str:
    sources = [graph.by_name[name].quant for name in node.inputs]
    quant = node.quant
    assert quant is not None
    if isinstance(node, Add) and any(source is None or source.scale != quant.scale for source in sources):
        return "a sum of tensors whose scales differ"
    if isinstance(node, Mul) and not _is_exact_product(sources, quant):
        return "a product whose multiplier is no power of two"
    if isinstance(node, Sigmoid) and (quant.scale, quant.zero_point) != (2.0**-8, -128):
        return "a sigmoid whose scale is not 1/256"
    if isinstance(node, Normalize):
        return "the image is normalized in float"
    return ""


def _is_exact_product(sources: list[QuantParams | None], quant: QuantParams) -> bool:
    first, second = sources
    assert first is not None
    assert second is not None
    mantissa, _ = np.frexp(first.scale * second.scale / quant.scale)
    return bool(mantissa == 0.5) and quant.zero_point % 2 == 0
