"""What a model that is quantized already brings: integer constants, and what of them cannot be carried."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_resnet.errors import GraphError, InputError
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.nodes import (
    AvgPool,
    BatchNorm,
    Conv,
    HardSigmoid,
    IntWeights,
    Linear,
    Node,
    Normalize,
    QuantParams,
)
from edge_resnet.graph.passes import simplify
from edge_resnet.graph.streams import moves_integers

__all__ = ["IntegerConstant", "are_bytes", "finish_integers", "integer_weights"]

Array = NDArray[Any]
# How far a bias' own scale may be from input scale * weight scale, which float32 products differ by.
_SAME_SCALE = 1e-5
_HALF_STEP = 0.51


@dataclass(frozen=True, eq=False)
class IntegerConstant:
    """real = scale * (values - zero), with one scale, or one for each index along `axis`."""

    values: Array
    scale: NDArray[np.float32]
    zero: Array
    axis: int = 0

    def __post_init__(self) -> None:
        if self.values.dtype.name not in ("int8", "uint8", "int32", "int16"):
            raise GraphError(f"constants of type {self.values.dtype.name}; int8 can be carried")

    @property
    def real(self) -> NDArray[np.float32]:
        scale, zero = (self._along(np.asarray(part)) for part in (self.scale, self.zero))
        difference = self.values.astype(np.int64) - zero.astype(np.int64)
        return (difference * scale.astype(np.float64)).astype(np.float32)

    def _along(self, part: Array) -> Array:
        if part.size == 1:
            return part.reshape(())
        shape = [1] * self.values.ndim
        shape[self.axis] = part.size
        return part.reshape(shape)

    def transposed(self, order: list[int]) -> IntegerConstant:
        axis = order.index(self.axis % self.values.ndim) if self.values.ndim else 0
        return replace(self, values=self.values.transpose(order), axis=axis)


def integer_weights(
    weight: IntegerConstant, bias: IntegerConstant | Array | None, source: QuantParams | None
) -> IntWeights:
    """The graph's weights, integer for integer. Raises GraphError that names what cannot be carried."""
    if source is None:
        raise GraphError(
            "integer weights on an input in floats (dynamic-range quantization); --requantize reads floats"
        )
    q, zero = weight.values.astype(np.int16), np.asarray(weight.zero).astype(np.int16)
    if weight.values.dtype == np.uint8:  # the same numbers, 128 higher
        q, zero = q - 128, zero - 128
    if np.any(zero):
        raise GraphError("asymmetric weights (their zero point is not 0)")
    if weight.values.dtype not in (np.int8, np.uint8):
        raise GraphError(f"{weight.values.dtype.name} weights")
    if q.size and int(q.min()) < -127:
        raise GraphError("a weight of -128, outside the symmetric [-127, 127]")
    channels = len(q)
    scale = np.asarray(weight.scale, np.float32).reshape(-1)
    if scale.size != 1 and (weight.axis % max(1, q.ndim) != 0 or scale.size != channels):
        raise GraphError("weights with a scale along another axis than the output channels")
    scale = np.array(np.broadcast_to(scale, channels), np.float32)
    return IntWeights(
        np.array(q, np.int8, order="C"), scale, _integer_bias(bias, np.float32(source.scale) * scale)
    )


def _integer_bias(bias: IntegerConstant | Array | None, unit: NDArray[np.float32]) -> NDArray[np.int32]:
    if bias is None:
        return np.zeros(len(unit), np.int32)
    if isinstance(bias, IntegerConstant):
        scale = np.broadcast_to(np.asarray(bias.scale, np.float32).reshape(-1), unit.shape)
        if bias.values.dtype == np.int32 and np.allclose(scale, unit, rtol=_SAME_SCALE, atol=0):
            if np.any(bias.zero):
                raise GraphError("a bias whose zero point is not 0")
            return np.array(bias.values, np.int32).reshape(-1)
        bias = bias.real
    real = np.broadcast_to(np.asarray(bias, np.float64).reshape(-1), unit.shape)
    q = np.rint(real / unit)
    if np.abs(q).max(initial=0) >= 2**31:
        raise GraphError("a bias that does not fit int32")
    return q.astype(np.int32)


def finish_integers(graph: Graph, origin: str) -> Graph:
    """A graph in which some tensors have parameters -> one in which all have. Raises InputError: why not."""
    graph = simplify(graph.with_nodes(_spread(graph)))
    graph = _bytes_as_integers(graph.with_nodes(_spread(graph)))
    for node in graph.nodes:
        problem = _problem(node, graph)
        if problem:
            raise InputError(
                f"{origin}: node {node.name!r} ({type(node).__name__}): {problem}; its integers cannot be "
                "carried; --requantize chooses new ones"
            )
    return graph


def _bytes_as_integers(graph: Graph) -> Graph:
    """Without the Normalize, where its integers are the image's bytes in all channels: q = byte - 128."""
    for node in graph.nodes:
        if isinstance(node, Normalize) and node.quant is not None and node.inputs == (graph.input.name,):
            ends = np.array([[0.0], [255.0]])
            wanted = (ends - node.mean) / node.std / node.quant.scale
            if are_bytes(wanted, ends, node.quant):
                return _without_normalize(graph, node)
    return graph


def are_bytes(steps: Array, ends: Array, quant: QuantParams) -> bool:
    """Whether the steps from zero to which the image's darkest and brightest byte go are the bytes' own.

    Within half a step: 127.5, the middle of a byte, is a zero point of its own in many a training script.
    """
    return bool(np.abs(steps + quant.zero_point + 128 - ends).max() <= _HALF_STEP)


def _without_normalize(graph: Graph, normalize: Node) -> Graph:
    image = graph.input.name
    nodes: list[Node] = []
    for node in graph.nodes:
        if node is graph.input:
            nodes.append(replace(node, quant=normalize.quant))
        elif node is not normalize:
            inputs = tuple(image if name == normalize.name else name for name in node.inputs)
            nodes.append(replace(node, inputs=inputs))
    return graph.with_nodes(nodes)


def _spread(graph: Graph) -> list[Node]:
    """What moves integers has its input's parameters; where only its output has any, the input gets them."""
    quants = {node.name: node.quant for node in graph.nodes}
    for node in graph.nodes:
        if quants[node.name] is None and moves_integers(node):
            quants[node.name] = quants[node.inputs[0]]
    for node in reversed(graph.nodes):
        quant = quants[node.name]
        if quant is None or not moves_integers(node):
            continue
        for source in node.inputs:
            if quants[source] is None and len(graph.consumers[source]) == 1:
                quants[source] = quant
    if quants[graph.input.name] is None:
        quants[graph.input.name] = QuantParams(1.0, -128)  # the bytes themselves; a Normalize follows
    return [replace(node, quant=quants[node.name]) for node in graph.nodes]


def _problem(node: Node, graph: Graph) -> str:
    """Why a node has no meaning in integers, or nothing."""
    if node.quant is None and node is graph.output and isinstance(node, Linear):
        return "" if isinstance(node.weights, IntWeights) else "it stays in float"  # see output_range.py
    if node.quant is None:
        return "it stays in float"
    if isinstance(node, BatchNorm):
        return "a sum or product with constants"
    if isinstance(node, AvgPool | HardSigmoid):
        return "runtimes round it differently, so the graph has no integer form of it"
    sources = [graph.by_name[name] for name in node.inputs]
    problems = (
        (
            moves_integers(node) and any(source.quant != node.quant for source in sources),
            "its parameters are not its input's",
        ),
        (
            isinstance(node, Conv | Linear) and not isinstance(node.weights, IntWeights),
            "its weights are floats",
        ),
        (
            isinstance(node, Normalize) and graph.input.quant != QuantParams(1.0, -128),
            "the image has parameters of its own",
        ),
    )
    return next((text for holds, text in problems if holds), "")
