"""Take channels out of a float graph: what is left is a smaller dense graph, not the same one with masks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from edge_resnet.errors import GraphError
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.nodes import (
    BatchNorm,
    Conv,
    FloatWeights,
    Linear,
    Node,
    PadChannels,
    Reshape,
    SliceChannels,
)

__all__ = ["remove_channels"]

Mask = NDArray[np.bool_]


def remove_channels(graph: Graph, kept: Mapping[str, Mask]) -> Graph:
    """The graph with those channels of each tensor that `kept`, bool [C], holds.

    The masks are those of `channels.kept_channels`: what depends on each other agrees. The function stays the
    same where what is removed was multiplied by zero. Raises GraphError: a tensor without channels, masks
    that do not fit each other, a graph that holds integers.
    """
    for name, mask in kept.items():
        if not mask.any():
            raise GraphError(f"no channel of {name!r} would be left")
    return graph.with_nodes(_without(node, kept) for node in graph.nodes)


def _without(node: Node, kept: Mapping[str, Mask]) -> Node:
    own = kept[node.name]
    read = kept[node.inputs[0]] if node.inputs else own
    result = node
    if isinstance(node, Conv):
        result = _conv(node, read, own)
    elif isinstance(node, Linear):
        result = replace(node, weights=_weights(node, own, read))
    elif isinstance(node, BatchNorm):
        result = replace(node, scale=node.scale[own], shift=node.shift[own])
    elif isinstance(node, SliceChannels):
        start = int(read[: node.start].sum())
        result = replace(node, start=start, stop=start + int(own.sum()))
    elif isinstance(node, PadChannels):
        behind = len(own) - node.after
        result = replace(node, before=int(own[: node.before].sum()), after=int(own[behind:].sum()))
    elif isinstance(node, Reshape) and len(own) == len(read):
        result = replace(node, shape=(int(own.sum()), *node.shape[1:]))
    return result


def _conv(node: Conv, read: Mask, own: Mask) -> Conv:
    if node.groups == 1:
        return replace(node, weights=_weights(node, own, read))
    written, needed = own.reshape(node.groups, -1), read.reshape(node.groups, -1)
    left: Mask = np.asarray(written.all(1))
    if not (np.array_equal(written.any(1), left) and (needed == left[:, None]).all()):
        raise GraphError(f"{node.name!r}: part of one of its {node.groups} groups would be removed")
    every = np.ones(node.weights.weight.shape[1], bool)
    return replace(node, weights=_weights(node, own, every), groups=int(left.sum()))


def _weights(node: Conv | Linear, own: Mask, read: Mask) -> FloatWeights:
    if not isinstance(node.weights, FloatWeights):
        raise GraphError(f"{node.name!r} holds integers: channels are taken out before quantization")
    weight = np.ascontiguousarray(node.weights.weight[own][:, read])
    return FloatWeights(weight, np.ascontiguousarray(node.weights.bias[own]))
