"""What in a float graph will lose most when it becomes int8, as far as its weights alone tell."""

from __future__ import annotations

import numpy as np

from edge_resnet.compression.quantize import quantize_weights
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.nodes import Conv, FloatWeights, Linear, Mul

__all__ = ["quantization_risks"]

# Eight bits with one scale a channel keep about 40 dB of a bell-shaped weight; below this, a few outliers
# have taken the bits of all others.
_LOW_DB = 32.0
_DEAD = 1e-7
_MOST_SHOWN = 5


def quantization_risks(graph: Graph) -> list[str]:
    """Lines for people: layers whose weights lose most, dead channels, gates."""
    lines: list[str] = []
    low: list[tuple[float, str]] = []
    dead: list[str] = []
    for node in graph.nodes:
        if not (isinstance(node, Conv | Linear) and isinstance(node.weights, FloatWeights)):
            continue
        decibels = _kept(node.weights)
        if decibels < _LOW_DB:
            low.append((decibels, node.name))
        count = int((np.abs(node.weights.weight).reshape(len(node.weights.weight), -1).max(1) < _DEAD).sum())
        if count:
            dead.append(f"{node.name} ({count})")
    if low:
        names = ", ".join(f"{name} ({value:.0f} dB)" for value, name in sorted(low)[:_MOST_SHOWN])
        lines.append(f"weights with outliers in {len(low)} layers, worst first: {names}")
    if dead:
        more = f" and {len(dead) - _MOST_SHOWN} more" if len(dead) > _MOST_SHOWN else ""
        lines.append(f"dead output channels in {', '.join(dead[:_MOST_SHOWN])}{more}: prune them")
    gates = sum(isinstance(node, Mul) for node in graph.nodes)
    if gates:
        lines.append(f"{gates} products with gates: each costs up to a bit of range, so that runtimes agree")
    return lines


def _kept(weights: FloatWeights) -> float:
    """Signal to quantization noise of the weights, in decibels."""
    exact = weights.weight.astype(np.float64)
    integers = quantize_weights(weights, 1.0)
    scale = integers.scale.astype(np.float64).reshape(-1, *[1] * (exact.ndim - 1))
    noise = float(np.sum((integers.weight * scale - exact) ** 2))
    signal = float(np.sum(exact**2))
    return 100.0 if noise == 0 or signal == 0 else 10 * np.log10(signal / noise)
