"""Cross-layer equalization: channels of consecutive layers are rescaled so that 8 bits serve them all.

Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", 2019 (1906.04721),
section 4.1. What a layer divides a channel by, the layer behind it multiplies by: a ReLU lets a positive
factor through, and the function stays the same. The factor that gives both layers' weights of that channel
one range is s = sqrt(r1 * r2) / r2, with r the largest magnitude.

A pair is two layers (convolution or fully connected) where the second alone reads the first, with nothing
between them but what lets each channel's factor through: a ReLU, maxima, padding, subsampling, a global
average, flattening a vector. In a residual network that is the inside of a block: the stream itself is read
by every block, and stays. RELU6, clips to [0, 1] and gates stop a factor. A depthwise convolution is both
the second of a pair and the first of the next, so that a factor passes from pair to pair.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from edge_resnet.graph.graph import Graph
from edge_resnet.graph.nodes import (
    Activation,
    Conv,
    Flatten,
    FloatWeights,
    GlobalAvgPool,
    Linear,
    MaxPool,
    Node,
    Pad,
    Relu,
    Subsample,
)

__all__ = ["equalizable_pairs", "equalize"]

_PASSING = (Activation.NONE, Activation.RELU)
# Pairs overlap in chains of depthwise convolutions only; a handful of rounds settles those.
_MOST_ROUNDS = 40
_SETTLED = 1e-3  # the largest logarithm of a factor in the last round
# A channel whose weights are smaller than this part of the layer's largest is dead: nothing to equalize.
_DEAD = 1e-9


@dataclass
class _Layer:
    weight: NDArray[np.float64]
    bias: NDArray[np.float64]
    groups: int

    @classmethod
    def of(cls, node: Conv | Linear) -> _Layer:
        weights = node.weights
        assert isinstance(weights, FloatWeights)
        groups = node.groups if isinstance(node, Conv) else 1
        return cls(weights.weight.astype(np.float64), weights.bias.astype(np.float64), groups)

    def by_input(self) -> NDArray[np.float64]:
        """[I, ...]: the weights that read each input channel (a view that writes through)."""
        out, per_group = self.weight.shape[:2]
        grouped = self.weight.reshape(self.groups, out // self.groups, per_group, -1)
        return grouped.transpose(0, 2, 1, 3)  # [groups, I / groups, O / groups, kernel]

    def input_range(self) -> NDArray[np.float64]:
        largest: NDArray[np.float64] = np.abs(self.by_input()).max((2, 3)).reshape(-1)
        return largest

    def output_range(self) -> NDArray[np.float64]:
        largest: NDArray[np.float64] = np.abs(self.weight.reshape(len(self.weight), -1)).max(1)
        return largest

    def scale_output(self, factors: NDArray[np.float64]) -> None:
        self.weight *= factors.reshape(-1, *[1] * (self.weight.ndim - 1))
        self.bias *= factors

    def scale_input(self, factors: NDArray[np.float64]) -> None:
        view = self.by_input()
        view *= factors.reshape(self.groups, -1, 1, 1)

    def weights(self) -> FloatWeights:
        return FloatWeights(self.weight.astype(np.float32), self.bias.astype(np.float32))


def equalize(graph: Graph) -> Graph:
    """The same function, up to rounding in float32, with equalized weights.

    `graph` is a float graph after `simplify` and `lower_for_integers`. All pairs are equalized in turn until
    no factor moves by more than a thousandth.
    """
    pairs = list(equalizable_pairs(graph))
    layers = {node.name: _Layer.of(node) for pair in pairs for node in pair}
    for _ in range(_MOST_ROUNDS):
        moves = [_equalize(layers[first.name], layers[second.name]) for first, second in pairs]
        if max(moves, default=0.0) < _SETTLED:
            break
    return graph.with_nodes(
        replace(node, weights=layers[node.name].weights())
        if isinstance(node, Conv | Linear) and node.name in layers
        else node
        for node in graph.nodes
    )


def equalizable_pairs(graph: Graph) -> Iterator[tuple[Conv | Linear, Conv | Linear]]:
    """Pairs of layers between which a positive factor for each channel changes nothing, in graph order."""
    for node in graph.nodes:
        if isinstance(node, Conv | Linear) and isinstance(node.weights, FloatWeights):
            reader = _reader(graph, node)
            if reader is not None:
                yield node, reader


def _reader(graph: Graph, first: Conv | Linear) -> Conv | Linear | None:
    """The layer that alone reads what `first` computes, channel by channel."""
    node: Node = first
    while getattr(node, "activation", Activation.NONE) in _PASSING:
        readers = graph.consumers[node.name]
        if len(readers) != 1:
            return None
        (reader,) = readers
        if isinstance(reader, Conv | Linear):
            return reader if isinstance(reader.weights, FloatWeights) else None
        # A flattened image of several pixels has several columns a channel.
        if isinstance(reader, Flatten) and graph.shapes[node.name][1:] != (1, 1):
            return None
        if not isinstance(reader, Relu | MaxPool | Pad | Subsample | GlobalAvgPool | Flatten):
            return None
        node = reader
    return None


def _equalize(first: _Layer, second: _Layer) -> float:
    """Equalize one pair in place; the largest absolute logarithm of a factor."""
    r1, r2 = first.output_range(), second.input_range()
    alive = (r1 > _DEAD * r1.max()) & (r2 > _DEAD * r2.max())
    factors = np.ones_like(r1)
    factors[alive] = np.sqrt(r1[alive] / r2[alive])
    first.scale_output(1 / factors)
    second.scale_input(factors)
    return float(np.abs(np.log(factors)).max())
