"""Empirical bias correction: what quantization shifts a channel by on average, its bias takes back.

Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", 2019 (1906.04721),
section 4.2 and appendix D: layer by layer, each against the float model, with the layers before it corrected
already. The error includes what came from the layers before, so that a shift does not add up with depth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edge_resnet.compression.quantize import MAX_BIAS
from edge_resnet.errors import GraphError, InputError
from edge_resnet.graph.execution import centred_image
from edge_resnet.graph.float_executor import float_function
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.nodes import Activation, Conv, FloatWeights, IntWeights, Linear, Node
from edge_resnet.graph.reference import integer_function
from edge_resnet.progress import Advance

__all__ = ["correct_biases"]

# float32 values of both executions that are kept at once (1 GiB); fewer images where a model is large.
_MOST_VALUES = 2**28
_AT_ONCE = 64  # images


@torch.no_grad()
def correct_biases(
    quantized: Graph,
    floating: Graph,
    batches: Callable[[], Iterable[NDArray[np.uint8]]],
    advance: Advance = lambda layers: None,
) -> Graph:
    """`quantized` with corrected biases. `floating` is the lowered float graph that it was made from.

    Both run side by side, once, node by node, on as many images as fit into memory: uint8 [N, H, W, C] of
    `batches()`. `advance` is called with 1 for each node.
    Raises InputError without images, GraphError when the graphs do not belong together.
    """
    if [node.name for node in quantized.nodes] != [node.name for node in floating.nodes]:
        raise GraphError("bias correction needs the float graph that the integers were made from")
    pixels = _pixels(quantized, batches())
    exact, integers = _inputs(floating, quantized, pixels)
    readers = {name: len(nodes) for name, nodes in quantized.consumers.items()}
    nodes: list[Node] = [quantized.nodes[0]]
    # NNPACK's Winograd convolutions are not exact (graph/reference.py).
    with torch.backends.nnpack.flags(enabled=False):
        for node, ideal in zip(quantized.nodes[1:], floating.nodes[1:], strict=True):
            reals = [exact[name] for name in node.inputs]
            centred = [integers[name] for name in node.inputs]
            exact[node.name] = _run(float_function(ideal), reals)
            corrected = node
            if isinstance(node, Conv | Linear):
                corrected = _corrected(node, ideal, quantized, reals[0], centred[0])
            integers[node.name] = _run(integer_function(corrected, quantized), centred)
            nodes.append(corrected)
            for name in node.inputs:
                readers[name] -= 1
                if not readers[name]:
                    exact.pop(name, None)
                    integers.pop(name, None)
            advance(1)
    return quantized.with_nodes(nodes)


def _pixels(graph: Graph, batches: Iterable[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """As many images as leave room for what is alive at once."""
    most = max(1, _MOST_VALUES // _alive(graph))
    taken: list[NDArray[np.uint8]] = []
    for batch in batches:
        taken.append(batch[: most - sum(map(len, taken))])
        if sum(map(len, taken)) == most:
            break
    if not sum(map(len, taken)):
        raise InputError("bias correction needs at least one image (calibration.images)")
    return np.concatenate(taken)


def _alive(graph: Graph) -> int:
    """The most values of an image that are in memory at once, of both executions."""
    sizes = {name: int(np.prod(shape)) for name, shape in graph.shapes.items()}
    readers = {name: len(nodes) for name, nodes in graph.consumers.items()}
    alive = most = 0
    for node in graph.nodes:
        alive += sizes[node.name]
        most = max(most, alive)
        for name in node.inputs:
            readers[name] -= 1
            if not readers[name]:
                alive -= sizes[name]
    return 2 * most


def _inputs(
    floating: Graph, quantized: Graph, pixels: NDArray[np.uint8]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The image as real numbers and as centred integers."""
    quant = quantized.input.quant
    assert quant is not None
    centred = centred_image(quantized.input, pixels)
    return {floating.input.name: centred * quant.scale}, {quantized.input.name: centred}


def _run(function: Callable[..., Tensor], inputs: list[Tensor]) -> Tensor:
    """In chunks, so that what a node needs inside stays small."""
    chunks = zip(*(_chunks(value) for value in inputs), strict=True)
    return torch.cat([function(*chunk) for chunk in chunks])


def _chunks(value: Tensor) -> tuple[Tensor, ...]:
    return tuple(torch.split(value, _AT_ONCE))


def _corrected(node: Conv | Linear, ideal: Node, graph: Graph, real: Tensor, centred: Tensor) -> Node:
    """The layer with the mean difference of its sums, before activation and rounding, in its bias."""
    source = graph.by_name[node.inputs[0]].quant
    weights = node.weights
    if not (isinstance(ideal, Conv | Linear) and isinstance(ideal.weights, FloatWeights)):
        raise GraphError(f"node {node.name!r} holds no float weights in the float graph")
    assert source is not None
    assert isinstance(weights, IntWeights)
    plain = replace(ideal, activation=Activation.NONE)
    unit = np.float64(source.scale) * weights.scale  # real value of 1 in the bias
    held = FloatWeights(weights.weight.astype(np.float32), weights.bias.astype(np.float32))
    wanted = _channel_means(plain, real)
    got = _channel_means(replace(plain, weights=held), centred) * unit
    bias = np.rint(weights.bias + (wanted - got) / unit)
    bias = np.clip(bias, -MAX_BIAS, MAX_BIAS).astype(np.int32)
    return replace(node, weights=replace(weights, bias=bias))


def _channel_means(node: Conv | Linear, value: Tensor) -> NDArray[np.float64]:
    """[O]: of the layer's output over images and positions."""
    function = float_function(node)
    total = np.zeros(len(node.weights.bias))
    count = 0
    for chunk in _chunks(value):
        out = function(chunk)
        sums = out.double().sum([axis for axis in range(out.dim()) if axis != 1])
        total += sums.numpy()
        count += out.numel() // len(total)
    means: NDArray[np.float64] = total / count
    return means
