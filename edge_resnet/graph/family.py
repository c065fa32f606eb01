"""Which member of the ResNet family a graph is, in words, by what it is made of."""

from __future__ import annotations

from collections import Counter

from edge_resnet.graph.graph import Graph
from edge_resnet.graph.nodes import (
    Add,
    AvgPool,
    Concat,
    Conv,
    Input,
    Mul,
    Node,
    Normalize,
    Pad,
    PadChannels,
    PadMode,
    Relu,
    Subsample,
)

__all__ = ["family"]

_BOTTLENECK = 3  # convolutions of a branch


def family(graph: Graph) -> str:
    """For example `residual CNN, 53 convolutions in 16 blocks: bottleneck, grouped (ResNeXt)`."""
    convs = [node for node in graph.nodes if isinstance(node, Conv)]
    sums = [node for node in graph.nodes if isinstance(node, Add)]
    if not sums:
        return f"CNN without residual sums, {len(convs)} convolutions"
    traits = [name for name, holds in _traits(graph, convs, sums) if holds]
    return f"residual CNN, {len(convs)} convolutions in {len(sums)} blocks: {', '.join(traits)}"


def _traits(graph: Graph, convs: list[Conv], sums: list[Add]) -> list[tuple[str, bool]]:
    depthwise = [conv for conv in convs if _is_depthwise(conv, graph) and conv.weights.weight.shape[2] > 1]
    grouped = [conv for conv in convs if conv.groups > 1 and not _is_depthwise(conv, graph)]
    # The most common one: the first block's way back leads through the stem as well.
    ((depth, _),) = Counter(_branch_depth(node, graph) for node in sums).most_common(1)
    gates = [node for node in graph.nodes if isinstance(node, Mul)]
    vectors = [node for node in gates if graph.shapes[node.inputs[1]][1:] == (1, 1)]
    return [
        ("depthwise-separable (mobile)", bool(depthwise)),
        ("bottleneck", depth >= _BOTTLENECK and not depthwise),
        ("basic blocks", depth < _BOTTLENECK and not depthwise),
        ("grouped (ResNeXt, RegNet)", bool(grouped)),
        ("channel attention (SE, ECA)", bool(vectors)),
        ("SiLU or hard swish", len(gates) > len(vectors)),
        ("pre-activation", any(_is_pre_activation(node, graph) for node in sums)),
        ("concatenated parts (Res2Net, CSP)", any(isinstance(n, Concat) for n in graph.nodes)),
        ("average-pool shortcuts (-D)", any(isinstance(n, AvgPool) for n in graph.nodes)),
        ("anti-aliased", any(isinstance(n, Pad) and n.mode is PadMode.REFLECT for n in graph.nodes)),
        ("option A shortcuts", any(isinstance(n, PadChannels | Subsample) for n in graph.nodes)),
    ]


def _is_depthwise(conv: Conv, graph: Graph) -> bool:
    return conv.groups > 1 and conv.groups == graph.shapes[conv.inputs[0]][0]


def _is_pre_activation(node: Add, graph: Graph) -> bool:
    """The sum is not activated itself: what reads it begins with normalization or a ReLU."""
    readers = graph.consumers[node.name]
    return any(
        isinstance(reader, Relu)
        or (isinstance(reader, Conv) and _is_depthwise(reader, graph) and reader.weights.weight.shape[2] == 1)
        for reader in readers
    )


def _branch_depth(node: Add, graph: Graph) -> int:
    """Convolutions on the longer of the two ways back to where they meet (the next sum, or the stem)."""
    return max(_convs_back(graph.by_name[name], graph) for name in node.inputs)


def _convs_back(node: Node, graph: Graph) -> int:
    count = 0
    while not isinstance(node, Add | Input | Normalize):
        count += isinstance(node, Conv) and node.weights.weight.shape[1] * node.groups > 1
        node = graph.by_name[node.inputs[0]]
    return count
