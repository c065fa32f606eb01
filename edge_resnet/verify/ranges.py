"""Compare what an artifact says with the graph: every scale, zero point and weight."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edge_resnet.graph.graph import Graph
from edge_resnet.graph.nodes import Conv, Flatten, Input, IntWeights, Linear, Node, Normalize
from edge_resnet.verify.contents import ArtifactContents, StoredWeights

__all__ = ["RangeCheck", "compare_ranges"]


@dataclass(frozen=True)
class RangeCheck:
    """`checked` counts tensors (an activation, a weight with its scales, a bias).

    `mismatches` says for each unequal one what differs.
    """

    checked: int
    mismatches: tuple[str, ...]

    @property
    def equal(self) -> int:
        return self.checked - len(self.mismatches)


def compare_ranges(graph: Graph, contents: ArtifactContents) -> RangeCheck:
    """Compare a quantized or a mixed graph with what was read back. Equality is to the bit.

    What is float in a mixed graph must be float in the file; its weights are compared in the file's type.
    """
    checked = 0
    mismatches: list[str] = []

    def check(problem: str) -> None:
        nonlocal checked
        checked += 1
        if problem:
            mismatches.append(problem)

    for node in graph.nodes:
        if node.name in contents.activations or not _may_lack_integers(node, graph):
            check(_activation_problem(node, contents))
        if isinstance(node, Conv | Linear):
            for problem in _layer_problems(node, graph, contents):
                check(problem)
    named = {*contents.activations, *contents.weights, *contents.floats}
    for name in sorted(named - set(graph.by_name)):
        check(f"{name}: not in the graph")
    return RangeCheck(checked, tuple(mismatches))


def _may_lack_integers(node: Node, graph: Graph) -> bool:
    """A Flatten needs no tensor of its own; an image that is normalized in float may be floats already.

    A tensor that is float in the graph must lack them.
    """
    readers = graph.consumers[node.name]
    normalized = isinstance(node, Input) and all(isinstance(reader, Normalize) for reader in readers)
    return isinstance(node, Flatten) or normalized or node.quant is None


def _activation_problem(node: Node, contents: ArtifactContents) -> str:
    if node.name in contents.conflicts:
        return f"{node.name}: quantized in two places with different parameters"
    found = contents.activations.get(node.name)
    if found is None:
        return f"{node.name}: no quantized tensor of this name"
    if node.quant is None:
        return f"{node.name}: quantized in the file, float in the graph"
    if found.scale != node.quant.scale:
        return f"{node.name}: scale {found.scale!r}, graph {node.quant.scale!r}"
    if found.zero_point != node.quant.zero_point:
        return f"{node.name}: zero point {found.zero_point}, graph {node.quant.zero_point}"
    return ""


def _layer_problems(node: Conv | Linear, graph: Graph, contents: ArtifactContents) -> tuple[str, str]:
    """What is wrong with the weight, and with the bias; empty strings where nothing is."""
    weights = node.weights
    if isinstance(weights, IntWeights):
        return _weight_problems(node, graph, contents.weights.get(node.name))
    found = contents.floats.get(node.name)
    if found is None:
        missing = "integers in the file, float in the graph" if node.name in contents.weights else "missing"
        return f"{node.name}/weight: {missing}", f"{node.name}/bias: {missing}"
    same = (
        np.array_equal(weights.weight.astype(found.weight.dtype), found.weight),
        np.array_equal(weights.bias.astype(found.bias.dtype), found.bias),
    )
    return (
        "" if same[0] else f"{node.name}/weight: differs from the graph's",
        "" if same[1] else f"{node.name}/bias: differs from the graph's",
    )


def _weight_problems(node: Conv | Linear, graph: Graph, found: StoredWeights | None) -> tuple[str, str]:
    """What is wrong with the weight (or its scale), and with the bias; empty strings where nothing is."""
    weights = node.weights
    assert isinstance(weights, IntWeights)
    if found is None:
        return f"{node.name}/weight: missing", f"{node.name}/bias: missing"
    weight_problem = ""
    if found.weight.shape != weights.weight.shape:
        weight_problem = f"{node.name}/weight: shape {found.weight.shape}, graph {weights.weight.shape}"
    elif different := np.argwhere(found.weight != weights.weight).tolist():
        at = tuple(different[0])
        count = f"{len(different)} integers differ, first" if len(different) > 1 else "1 integer differs,"
        weight_problem = (
            f"{node.name}/weight: {count} at {list(at)}: {found.weight[at]}, graph {weights.weight[at]}"
        )
    elif not np.array_equal(found.scale, weights.scale):
        weight_problem = f"{node.name}/weight: scale differs from the graph's"
    elif np.any(found.zero_point):
        weight_problem = f"{node.name}/weight: zero point is not 0"
    return weight_problem, _bias_problem(node, graph, weights, found)


def _bias_problem(node: Node, graph: Graph, weights: IntWeights, found: StoredWeights) -> str:
    source = graph.by_name[node.inputs[0]].quant
    assert source is not None
    unit = np.float32(source.scale) * weights.scale
    expected: np.ndarray = weights.bias
    if found.bias_scale is not None and not np.array_equal(found.bias_scale, unit):
        return f"{node.name}/bias: scale differs from the graph's"
    if found.bias.dtype.kind == "f":  # a format without integer biases holds their real values
        expected = (weights.bias.astype(np.float64) * unit).astype(found.bias.dtype)
    if found.bias.shape != expected.shape or not np.array_equal(found.bias, expected):
        return f"{node.name}/bias: differs from the graph's"
    return ""
