"""What each layer costs when it alone is quantized and all others stay in float.

A row is a node that rounds: a convolution or classifier with its integer weights and bias and the rounding of
its output, or a sum, an average, a product or a gate with the rounding of its output alone. What only moves
integers (pooling, slicing, reshaping) costs nothing and has no row. The image costs nothing either: its bytes
are its integers.

The cost is measured where it matters, at the logits: the ratio of their energy to that of their error, in
decibels (signal to quantization noise, SQNR), and the top-1 that is lost. It is what a layer costs alone;
costs of several layers add up only roughly. Measured layer by layer as in Krishnamoorthi, 2018 (1806.08342)
and Wu et al., 2020 (2004.09602, section 5.2).

Batch by batch, the float graph runs once and keeps every tensor; for each layer only what depends on its
output runs again. That is about half of the graph for each layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edge_resnet.errors import GraphError, InputError
from edge_resnet.graph.float_executor import FloatExecutor, float_function
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.mixed_executor import MixedExecutor, centred_integers
from edge_resnet.graph.nodes import Conv, Input, IntWeights, Linear, Node, QuantParams
from edge_resnet.graph.passes.dequantize import real_weights
from edge_resnet.graph.streams import moves_integers
from edge_resnet.quantization_record import LayerCost, SensitivityRecord

__all__ = ["measure_sensitivity", "rounding_nodes", "sqnr_db"]

# So many float32 values of activations are kept at once: 256 MiB.
_MOST_VALUES = 2**26


def measure_sensitivity(
    floating: Graph,
    quantized: Graph,
    pixels: NDArray[np.uint8],
    labels: NDArray[np.int64],
    advance: Callable[[int], None] = lambda images: None,
) -> SensitivityRecord:
    """Every layer's cost on these images, uint8 [N, H, W, C], with their labels [N].

    `floating` is the lowered float graph that `quantized` was made from, after whatever changed its weights
    (equalization, training): nodes have the same names. `advance` is called with the number of images done.
    Raises InputError without images and GraphError for graphs that do not belong together.
    """
    if not len(pixels):
        raise InputError("sensitivity needs at least one image (sensitivity.images)")
    tallies = [_Tally(node, _Alone(node, floating, quantized)) for node in rounding_nodes(quantized)]
    executor, integers = FloatExecutor(floating), MixedExecutor(quantized)
    suffixes = _Suffixes(floating)
    float_hits = integer_hits = 0
    signal = 0.0
    for start, stop in _batches(floating, len(pixels)):
        images, classes = pixels[start:stop], labels[start:stop]
        values: dict[str, Tensor] = {}
        executor.run(images, values.__setitem__)
        logits = values[floating.output.name]
        signal += _energy(logits)
        float_hits += _hits(logits.numpy(), classes)
        integer_hits += _hits(integers.logits(images), classes)
        for tally in tallies:
            tally.update(suffixes, values, classes)
        advance(stop - start)
    n = len(pixels)
    float_top1 = float_hits / n
    layers = tuple(tally.cost(quantized, signal, float_top1, n) for tally in tallies)
    return SensitivityRecord(n, float_top1, integer_hits / n, layers)


def rounding_nodes(graph: Graph) -> list[Node]:
    """The nodes whose output is rounded to integers, which makes them a layer here, in graph order."""
    return [node for node in graph.nodes if not (isinstance(node, Input) or moves_integers(node))]


def sqnr_db(signal: float, noise: float) -> float:
    """Ratio of two energies in decibels; infinite where there is no noise."""
    least = float(np.finfo(np.float32).tiny)
    return math.inf if noise <= 0 else 10 * math.log10(max(signal, least) / noise)


class _Alone:
    """One node with its integers, between float neighbours."""

    def __init__(self, node: Node, floating: Graph, quantized: Graph) -> None:
        self.node = floating.by_name.get(node.name, node)
        if type(self.node) is not type(node) or node.name not in floating.by_name or node.quant is None:
            raise GraphError(f"node {node.name!r} is not the same in the float and the quantized graph")
        self._quant = node.quant
        self._exact = float_function(self.node)
        self._rounded = self._exact
        if isinstance(node, Conv | Linear) and isinstance(self.node, Conv | Linear):
            source = quantized.by_name[node.inputs[0]].quant
            if source is None or not isinstance(node.weights, IntWeights):
                raise GraphError(f"node {node.name!r} is not quantized")
            self._rounded = float_function(
                replace(self.node, weights=real_weights(node.weights, source.scale))
            )

    def output(self, values: dict[str, Tensor]) -> tuple[Tensor, float, float]:
        """The node's real output with its own integers, and the energy that weights and output add to it."""
        exact = values[self.node.name]
        from_weights = exact
        if self._rounded is not self._exact:
            from_weights = self._rounded(*(values[name] for name in self.node.inputs))
        return (
            _rounded(from_weights, self._quant),
            _energy(from_weights - exact) if from_weights is not exact else 0.0,
            _energy(_rounded(exact, self._quant) - exact),
        )


class _Suffixes:
    """Runs what depends on one node's output again."""

    def __init__(self, graph: Graph) -> None:
        self.output = graph.output.name
        self._functions = {node.name: float_function(node) for node in graph.nodes[1:]}
        self._followers: dict[str, list[Node]] = {}
        for node in graph.nodes:
            reached = {node.name}
            following = self._followers[node.name] = []
            for later in graph.nodes:
                if reached.intersection(later.inputs):
                    reached.add(later.name)
                    following.append(later)

    def logits(self, name: str, value: Tensor, values: dict[str, Tensor]) -> Tensor:
        """The logits where node `name` has the output `value` and all others their own function."""
        changed = {name: value}
        for node in self._followers[name]:
            inputs = (changed.get(source, values[source]) for source in node.inputs)
            changed[node.name] = self._functions[node.name](*inputs)
        return changed[self.output]


@dataclass
class _Tally:
    node: Node
    alone: _Alone
    noise: float = 0.0
    hits: int = 0
    from_weights: float = 0.0
    from_output: float = 0.0

    @torch.no_grad()
    def update(self, suffixes: _Suffixes, values: dict[str, Tensor], labels: NDArray[np.int64]) -> None:
        value, from_weights, from_output = self.alone.output(values)
        logits = suffixes.logits(self.node.name, value, values)
        self.noise += _energy(logits - values[suffixes.output])
        self.hits += _hits(logits.numpy(), labels)
        self.from_weights += from_weights
        self.from_output += from_output

    def cost(self, graph: Graph, signal: float, float_top1: float, n: int) -> LayerCost:
        own = self.from_weights + self.from_output
        weights = self.node.weights if isinstance(self.node, Conv | Linear) else None
        return LayerCost(
            name=self.node.name,
            kind=type(self.node).__name__,
            macs=graph.node_macs(self.node),
            params=weights.weight.size + weights.bias.size if weights else 0,
            sqnr_db=sqnr_db(signal, self.noise),
            top1=self.hits / n,
            drop=float_top1 - self.hits / n,
            from_weights=self.from_weights / own if own else 0.0,
        )


def _rounded(value: Tensor, quant: QuantParams) -> Tensor:
    """The real values of the nearest integers."""
    return centred_integers(value, quant).mul_(quant.scale)


def _batches(graph: Graph, count: int) -> Iterator[tuple[int, int]]:
    values = sum(int(np.prod(shape)) for shape in graph.shapes.values())
    size = max(1, min(64, _MOST_VALUES // values))
    return ((start, min(start + size, count)) for start in range(0, count, size))


def _energy(value: Tensor) -> float:
    return float(value.double().square().sum())


def _hits(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> int:
    return int((logits.argmax(1) == labels).sum())
