"""Compare a float artifact's weights with the graph: to the bit, or each the nearest entry of its palette."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from edge_resnet.export.half import LARGEST_HALF
from edge_resnet.graph.float_executor import FloatExecutor
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.nodes import Conv, FloatWeights, Linear, Node
from edge_resnet.verify.contents import StoredFloats
from edge_resnet.verify.ranges import RangeCheck

__all__ = ["compare_floats", "flushed_weights", "overflowing_activation", "with_stored_weights"]


def compare_floats(
    graph: Graph, stored: Mapping[str, StoredFloats], float_type: str, palette_bits: int | None
) -> RangeCheck:
    """Compare a float graph with what was read back: each weight and each bias is one tensor.

    A weight must be the graph's, rounded to `float_type`, to the bit. Where the file has palettes (of
    2 ** `palette_bits` entries; None: it may have none), it must be the entry nearest to the graph's.
    """
    checks: list[str] = []
    for node in graph.nodes:
        if isinstance(node, Conv | Linear):
            assert isinstance(node.weights, FloatWeights)
            found = stored.get(node.name)
            if found is None:
                checks += [f"{node.name}/weight: missing", f"{node.name}/bias: missing"]
                continue
            weight, bias = node.weights.weight, node.weights.bias
            if found.palettes is None:
                problem = _difference(found.weight, weight, float_type)
            else:
                problem = _palette_problem(found.weight, found.palettes, weight, palette_bits)
            checks.append(problem and f"{node.name}/weight: {problem}")
            problem = _difference(found.bias, bias, float_type)
            checks.append(problem and f"{node.name}/bias: {problem}")
    checks += [f"{name}: not in the graph" for name in sorted(set(stored) - set(graph.by_name))]
    return RangeCheck(len(checks), tuple(problem for problem in checks if problem))


def _difference(found: NDArray[np.floating], graph: NDArray[np.float32], float_type: str) -> str:
    if found.dtype != np.dtype(float_type) or found.shape != graph.shape:
        return f"{found.dtype} {found.shape}, graph {float_type} {graph.shape}"
    with np.errstate(over="ignore"):
        expected = graph.astype(found.dtype)
    bits = f"u{found.dtype.itemsize}"
    unequal = np.ascontiguousarray(found).view(bits) != np.ascontiguousarray(expected).view(bits)
    return _first(unequal, found, expected)


def _palette_problem(
    found: NDArray[np.floating], palettes: NDArray[np.floating], graph: NDArray[np.float32], bits: int | None
) -> str:
    if bits is None or palettes.shape[1] != 2**bits or palettes.dtype != np.float16:
        return f"it has a palette of {palettes.shape[1]} {palettes.dtype} entries"
    if found.shape != graph.shape or len(graph) % len(palettes):
        return f"shape {found.shape}, graph {graph.shape}"
    weight = graph.astype(np.float64).reshape(len(palettes), -1)  # [O, ...] -> [groups, numbers]
    nearest = np.stack([_nearest(*pair) for pair in zip(weight, palettes, strict=True)]).reshape(graph.shape)
    farther = np.abs(found - graph.astype(np.float64)) != np.abs(nearest - graph.astype(np.float64))
    return _first(farther, found, nearest)


def _nearest(values: NDArray[np.float64], palette: NDArray[np.floating]) -> NDArray[np.float64]:
    entries = np.sort(palette.astype(np.float64))
    above = np.searchsorted(entries, values).clip(1, len(entries) - 1)
    low, high = entries[above - 1], entries[above]
    nearest: NDArray[np.float64] = np.where(values - low <= high - values, low, high)
    return nearest


def _first(unequal: NDArray[np.bool_], found: NDArray[np.floating], expected: NDArray[np.floating]) -> str:
    places = np.argwhere(unequal)
    if not len(places):
        return ""
    at = tuple(places[0].tolist())
    count = f"{len(places)} numbers differ, first" if len(places) > 1 else "1 number differs,"
    return f"{count} at {list(at)}: {found[at]!s}, should be {expected[at]!s}"


def flushed_weights(graph: Graph) -> list[str]:
    """Nodes that lose weights to float16, whose least number is 6e-8, and how many.

    Only where that changes more than the rounding of the node's largest weight (2 ** -11 of it) does.
    """
    found = []
    for node in graph.nodes:
        if isinstance(node, Conv | Linear) and isinstance(node.weights, FloatWeights):
            weight = np.abs(node.weights.weight)
            lost = weight[(weight > 0) & (weight.astype(np.float16) == 0)]
            if len(lost) and lost.max() > weight.max() * 2.0**-11:
                found.append(f"node {node.name!r}: {len(lost)} of {weight.size} weights become 0 in float16")
    return found


def overflowing_activation(graph: Graph, pixels: NDArray[np.uint8]) -> str:
    """The first node whose values on these images float16 cannot hold; empty where there is none."""
    largest: dict[str, float] = {}

    def observe(name: str, value: torch.Tensor) -> None:
        largest[name] = float(value.abs().max())

    FloatExecutor(graph).run(pixels, observe)
    for name, value in largest.items():
        if not value <= LARGEST_HALF:
            return (
                f"node {name!r}: values reach {value:.3g}, float16 ends at {LARGEST_HALF:.0f}: hardware that "
                "computes in float16 overflows there"
            )
    return ""


def with_stored_weights(graph: Graph, stored: Mapping[str, StoredFloats]) -> Graph:
    """The graph with the weights that the file has."""

    def restored(node: Node) -> Node:
        if not isinstance(node, Conv | Linear):
            return node
        found = stored[node.name]
        weights = FloatWeights(found.weight.astype(np.float32), found.bias.astype(np.float32))
        return replace(node, weights=weights)

    return graph.with_nodes(restored(node) for node in graph.nodes)
