"""The scale of every tensor, from the ranges that were seen.

What decides, in this order:

  the input          its scale is given: the image's raw bytes are its integers.
  sigmoid            2**-8 with zero point -128, which is what LiteRT's LOGISTIC demands. The other gates that
                     a product takes get a power of two as well.
  product            the image before and behind a gate share their mantissa, so that s_x * s_gate / s_y is a
                     power of two and the product has no rounding but the last, on every runtime.
  stream             tensors that a residual sum connects have one scale: the largest that any of them needs.
  clipped            behind a RELU6 the largest scale at which 127 still means at most 6.
  rounding ties      the scales of global averages and of what sigmoids read are enlarged a little until no
                     value comes near one (rounding_ties.py).

All scales are exact in float16, at least MIN_SCALE.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edge_resnet.compression.calibrate import Ranges
from edge_resnet.compression.rounding_ties import is_sigmoid_tie_free, tie_free_scale
from edge_resnet.errors import GraphError
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.nodes import Activation, GlobalAvgPool, Mul, Node, Sigmoid
from edge_resnet.graph.streams import moves_integers, parameter_groups, scale_groups

__all__ = ["GATE_SCALE", "MIN_SCALE", "snap_scale", "tensor_scales"]

# The smallest scale: float16's least normal number, which Core ML's fp16 programs can still store. It also
# keeps the bias of a dead channel (all weights about 0) within int32.
MIN_SCALE = 2.0**-14
GATE_SCALE = 2.0**-8

# About one scale in twenty has a table with such an entry, so this many are never needed.
_MOST_STEPS = 256
_Groups = list[tuple[str, ...]]


def snap_scale(scale: NDArray[np.float64] | float) -> NDArray[np.float32]:
    """The next float16 number at or above each scale, at least MIN_SCALE, as float32."""
    scale = np.maximum(np.asarray(scale, np.float64), MIN_SCALE)
    if scale.max() > np.finfo(np.float16).max:
        raise GraphError("a tensor's range is too large for a float16 scale (over 65504)")
    half = scale.astype(np.float16)
    half = np.where(half.astype(np.float64) < scale, np.nextafter(half, np.float16(np.inf)), half)
    return np.asarray(half, np.float32)


def tensor_scales(graph: Graph, ranges: Ranges) -> dict[str, float]:
    """One scale for each tensor; see the module's rules."""
    groups = scale_groups(graph)
    needed = _needed(graph, ranges)
    scales: dict[str, float] = {}
    averages: _Groups = []
    for cluster in _clusters(graph, groups):
        for group, scale in zip(cluster, _cluster_scales(graph, cluster, needed), strict=True):
            scales.update(dict.fromkeys(group, scale))
            if len(cluster) == 1 and _is_average(graph, group):
                averages.append(group)
    for group in averages:
        source = graph.by_name[group[0]].inputs[0]
        count = int(np.prod(graph.shapes[source][1:]))
        scale = tie_free_scale(scales[group[0]], scales[source], count)
        scales.update(dict.fromkeys(group, scale))
    return scales


def _needed(graph: Graph, ranges: Ranges) -> dict[str, float]:
    """The scale that covers each tensor's range; tensors of one zero point must fit it together."""
    needed: dict[str, float] = {}
    for group in parameter_groups(graph):
        low, high = min(ranges[name][0] for name in group), max(ranges[name][1] for name in group)
        needed.update(dict.fromkeys(group, (high - low) / 255))
    return needed


def _is_average(graph: Graph, group: tuple[str, ...]) -> bool:
    first, *others = (graph.by_name[name] for name in group)
    return isinstance(first, GlobalAvgPool) and all(moves_integers(node) for node in others)


def _clusters(graph: Graph, groups: _Groups) -> list[_Groups]:
    """Groups whose scales share a mantissa: what a product connects, image to output."""
    number = {name: index for index, group in enumerate(groups) for name in group}
    leader = list(range(len(groups)))

    def find(index: int) -> int:
        while leader[index] != index:
            index = leader[index]
        return index

    for node in graph.nodes:
        if isinstance(node, Mul):
            leader[find(number[node.name])] = find(number[node.inputs[0]])
    clusters: dict[int, _Groups] = {}
    for index, group in enumerate(groups):
        clusters.setdefault(find(index), []).append(group)
    return list(clusters.values())


def _cluster_scales(graph: Graph, cluster: _Groups, needed: dict[str, float]) -> list[float]:
    wanted = [max(needed[name] for name in group) for group in cluster]
    fixed = [_fixed(graph, group) for group in cluster]
    if len(cluster) == 1 and fixed[0] is None:
        clip = _clip_scale(graph, cluster[0], wanted[0])
        if clip is not None:
            return [clip]
    mantissa = 1.0
    if not any(fixed) and not any(_is_gate(graph, group) for group in cluster):
        mantissa = _best_mantissa(wanted)
        before_sigmoids = [
            scale for group, scale in zip(cluster, wanted, strict=True) if _feeds_sigmoid(graph, group)
        ]
        mantissa = _tie_free_mantissa(mantissa, before_sigmoids)
    return [
        given if given is not None else _at_mantissa(scale, mantissa)
        for given, scale in zip(fixed, wanted, strict=True)
    ]


def _feeds_sigmoid(graph: Graph, group: tuple[str, ...]) -> bool:
    return any(isinstance(reader, Sigmoid) for name in group for reader in graph.consumers[name])


def _tie_free_mantissa(mantissa: float, wanted: Sequence[float]) -> float:
    """The next mantissa at which no sigmoid's table has an entry near a tie."""
    candidate = np.float16(mantissa)
    for _ in range(_MOST_STEPS):
        if all(is_sigmoid_tie_free(_at_mantissa(scale, float(candidate))) for scale in wanted):
            return float(candidate)
        candidate = np.nextafter(candidate, np.float16(np.inf))
    return mantissa


def _fixed(graph: Graph, group: tuple[str, ...]) -> float | None:
    """The input's own scale, or a gate's."""
    if graph.input.name in group:
        assert graph.input.quant is not None
        return graph.input.quant.scale
    nodes = [graph.by_name[name] for name in group]
    if any(isinstance(node, Sigmoid) for node in nodes):
        others = [n for n in nodes if not (isinstance(n, Sigmoid) or moves_integers(n))]
        if others:
            raise GraphError(f"node {others[0].name!r} must share the scale of a sigmoid, which is fixed")
        return GATE_SCALE
    if all(_clips_to_unit(node) or moves_integers(node) for node in nodes):
        return GATE_SCALE
    return None


def _clips_to_unit(node: Node) -> bool:
    return getattr(node, "activation", None) is Activation.UNIT


def _is_gate(graph: Graph, group: tuple[str, ...]) -> bool:
    return any(
        isinstance(reader, Mul) and reader.inputs[1] == name
        for name in group
        for reader in graph.consumers[name]
    )


def _clip_scale(graph: Graph, group: tuple[str, ...], wanted: float) -> float | None:
    """The largest scale that ends where all of a group is clipped, if the group reaches that value."""
    activations = {getattr(node, "activation", Activation.NONE) for node in _sources(graph, group)}
    upper = activations.pop().limit if len(activations) == 1 else None
    if upper is None:
        return None
    largest = np.float16(upper / 255)
    scale = float(largest if float(largest) <= wanted else np.nextafter(largest, np.float16(0)))
    return scale if wanted > scale else None


def _sources(graph: Graph, group: tuple[str, ...]) -> list[Node]:
    return [graph.by_name[name] for name in group if not moves_integers(graph.by_name[name])]


def _at_mantissa(scale: float, mantissa: float) -> float:
    """The least mantissa * 2**k at or above `scale` (and MIN_SCALE)."""
    return float(mantissa * 2.0 ** np.ceil(np.log2(max(scale, MIN_SCALE) / mantissa)))


def _best_mantissa(wanted: Sequence[float]) -> float:
    """The mantissa at which the scales together exceed what is needed least (in the sum of logarithms)."""
    snapped = [float(snap_scale(scale)) for scale in wanted]
    mantissas = [float(2 * np.frexp(scale)[0]) for scale in snapped]
    return min(
        mantissas,
        key=lambda m: sum(float(np.log2(_at_mantissa(scale, m) / scale)) for scale in snapped),
    )
