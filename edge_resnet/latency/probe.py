"""Small models that hold one layer several times: what one of them takes longer than another is the layer.

    image -> layer, layer, ... layer -> joined by residual sums

Every copy has weights of its own, as the layers of a real model have. All read what lies in the cache, as a
layer reads what the one before it wrote.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from edge_resnet.compression.quantize import tensor_parameters
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.nodes import (
    NODE_KINDS,
    Add,
    Conv,
    Flatten,
    FloatArray,
    FloatWeights,
    Input,
    IntWeights,
    Linear,
    Node,
    QuantParams,
    Relu,
    Shape,
    Sigmoid,
    SliceChannels,
    Subsample,
)
from edge_resnet.latency.layers import LayerShape

__all__ = ["empty_model", "is_serial", "probe"]

_IMAGE = QuantParams(2.0**-6, 0)
_RANGE = (-1.0, 1.0)


def is_serial(layer: LayerShape) -> bool:
    """Whether the copies read one another, so that no sums join them.

    Sums by nature; and gates, whose scale no sum could have.
    """
    return layer.kind in ("Add", "Sigmoid")


def probe(layer: LayerShape, copies: int) -> Graph:
    """The model in integers, with so many copies of the layer."""
    nodes = _sources(layer)
    read = tuple(node.name for node in nodes[-len(layer.inputs) :])
    if is_serial(layer):
        for index in range(copies):
            nodes.append(_node(layer, f"layer{index}", (nodes[-1].name, *read[1:])))
        return _in_integers(nodes)
    total = ""
    for index in range(copies):
        name = f"layer{index}"
        nodes.append(_node(layer, name, read))
        if total:
            nodes.append(Add(name=f"sum{index}", inputs=(total, name)))
        total = nodes[-1].name
    return _in_integers(nodes)


def empty_model(image: Shape) -> Graph:
    """A model in integers that looks at one pixel: what remains is what every invocation costs."""
    weight = np.zeros((8, image[0], 1, 1), np.float32)
    first = Conv(
        name="pixel",
        inputs=("image",),
        weights=FloatWeights(weight, np.zeros(8, np.float32)),
        stride=(image[1], image[2]),
    )
    return _in_integers([_image(image), first, Flatten(name="logits", inputs=("pixel",))])


def _image(shape: Shape) -> Input:
    return Input(name="image", shape=shape, quant=_IMAGE)


def _sources(layer: LayerShape) -> list[Node]:
    """Nodes of which the last ones are what the layer reads, in its order."""
    first = layer.inputs[0]
    nodes: list[Node] = [_image(first)] if len(first) == 3 else _vector(first)
    if layer.kind == "Add":
        # Not the image twice: a runtime may know a simpler way to add a tensor to itself.
        nodes.append(Relu(name="other", inputs=(nodes[-1].name,)))
    elif layer.kind == "Mul":
        nodes += _image_and_gate(layer)
    elif layer.kind == "Concat":
        nodes = _parts(layer)
    return nodes


def _vector(shape: Shape) -> list[Node]:
    return [_image((*shape, 1, 1)), Flatten(name="vector", inputs=("image",))]


def _image_and_gate(layer: LayerShape) -> list[Node]:
    """Behind the image: its ReLU, and a gate of the image's size or of one number a channel."""
    image, gate = Relu(name="positive", inputs=("image",)), Sigmoid(name="gate", inputs=("image",))
    if layer.inputs[1][1:] == layer.inputs[0][1:]:
        return [image, gate]
    size = layer.inputs[0][1], layer.inputs[0][2]
    pooled = Subsample(name="pooled", inputs=("image",), stride=size)
    return [pooled, image, replace(gate, inputs=("pooled",))]


def _parts(layer: LayerShape) -> list[Node]:
    nodes: list[Node] = [_image((layer.output[0], *layer.output[1:]))]
    start = 0
    for index, shape in enumerate(layer.inputs):
        stop = start + shape[0]
        nodes.append(SliceChannels(name=f"part{index}", inputs=("image",), start=start, stop=stop))
        start = stop
    return nodes


def _node(layer: LayerShape, name: str, inputs: tuple[str, ...]) -> Node:
    """One copy of the layer."""
    reads, writes = layer.inputs[0][0], layer.output[0]
    window: dict[str, Any] = {"stride": layer.stride, "padding": layer.padding}
    attributes: dict[str, dict[str, Any]] = {
        "Conv": {**window, "dilation": layer.dilation, "groups": layer.groups},
        "MaxPool": {**window, "kernel": layer.kernel},
        "Subsample": {"stride": layer.stride},
        "Pad": {"padding": layer.padding, "mode": layer.pad_mode},
        "PadChannels": {"before": (writes - reads) // 2, "after": (writes - reads + 1) // 2},
        "SliceChannels": {"start": 0, "stop": writes},
    }
    values = attributes.get(layer.kind, {})
    if layer.kind == "Conv":
        values["weights"] = _weights((writes, reads // layer.groups, *layer.kernel))
    elif layer.kind == "Linear":
        values["weights"] = _weights((writes, reads))
    return NODE_KINDS[layer.kind](name=name, inputs=inputs, **values)


def _weights(shape: Shape) -> FloatWeights:
    """Place holders: a view of one zero, of the right shape."""
    zero: FloatArray = np.zeros(1, np.float32)
    return FloatWeights(np.broadcast_to(zero, shape), np.broadcast_to(zero, shape[:1]))


def _in_integers(nodes: list[Node]) -> Graph:
    """The graph with parameters as quantization chooses them for some ranges, and random weights."""
    graph = Graph("probe", tuple(nodes))
    parameters = tensor_parameters(graph, dict.fromkeys(graph.by_name, _RANGE))
    rng = np.random.default_rng(0)
    done: list[Node] = []
    for node in graph.nodes:
        quant = parameters[node.name]
        if isinstance(node, Conv | Linear):
            shape = node.weights.weight.shape
            integers = rng.integers(-127, 128, shape, np.int8)
            scale = np.full(shape[:1], 2.0**-10, np.float32)
            weights = IntWeights(integers, scale, np.zeros(shape[:1], np.int32))
            done.append(replace(node, quant=quant, weights=weights))
        else:
            done.append(replace(node, quant=quant))
    return graph.with_nodes(done)
