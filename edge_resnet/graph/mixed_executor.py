"""What a graph means that is partly in integers and partly in float.

Which node computes in what says `Graph.computes_in_integers`. Nodes in integers follow reference.py exactly.
The others follow float_executor.py on the real values of what they read; an output with parameters becomes
q = clip(round(y / s) + z), half to even, in float32.

Runtimes sum floats in different orders, so a value near a tie may become another integer, a step away. From
there on their integers are the same only for the same inputs: artifacts are compared with this executor, not
held to the bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edge_resnet.errors import GraphError
from edge_resnet.graph.execution import NodeFunction, run_exactly
from edge_resnet.graph.float_executor import float_function
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.nodes import Conv, IntWeights, Linear, Node, QuantParams
from edge_resnet.graph.reference import dequantize, integer_function
from edge_resnet.graph.streams import moves_integers

__all__ = ["MixedExecutor", "centred_integers", "float_layers"]


class MixedExecutor:
    """Runs a graph of integers, of floats or of both; of integers alone as ReferenceExecutor does.

    Raises GraphError for a node that has no meaning where it stands: integer weights between floats.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._functions = [(node, _function(node, graph)) for node in graph.nodes[1:]]

    @torch.no_grad()
    def run(self, pixels: NDArray[np.uint8]) -> NDArray[Any]:
        """uint8 [N, H, W, C] -> the output [N, ...], channels first: int8 where it has parameters."""
        quant = self.graph.output.quant
        # A tensor is held centred (q - z) where it has parameters, as its real values where it has none.
        result = run_exactly(self.graph, self._functions, pixels)
        if quant is not None:
            result = (result + quant.zero_point).to(torch.int8)
        array: NDArray[Any] = result.contiguous().numpy()
        return array

    def logits(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 [N, H, W, C] -> the output's real values, float32 [N, ...]."""
        result, quant = self.run(pixels), self.graph.output.quant
        return result if quant is None else dequantize(result, quant)


def float_layers(graph: Graph) -> list[str]:
    """The nodes that compute in float, in graph order, without those that only move values."""
    computing = [node for node in graph.nodes[1:] if not moves_integers(node)]
    return [node.name for node in computing if not graph.computes_in_integers(node)]


def _function(node: Node, graph: Graph) -> NodeFunction:
    if graph.computes_in_integers(node):
        return integer_function(node, graph)
    if isinstance(node, Conv | Linear) and isinstance(node.weights, IntWeights):
        raise GraphError(f"node {node.name!r} has integer weights but reads or writes floats")
    compute = float_function(node)
    sources = [graph.by_name[name].quant for name in node.inputs]

    def run(*inputs: Tensor) -> Tensor:
        real = (_real(value, quant) for value, quant in zip(inputs, sources, strict=True))
        output = compute(*real)
        return output if node.quant is None else centred_integers(output, node.quant)

    return run


def _real(value: Tensor, quant: QuantParams | None) -> Tensor:
    return value if quant is None else value * quant.scale


def centred_integers(value: Tensor, quant: QuantParams) -> Tensor:
    """Real values -> q - z of the nearest integers, held in floats."""
    return (value / quant.scale).round_().clamp_(-128 - quant.zero_point, 127 - quant.zero_point)
