"""What decides how long a node takes: its kind, its shapes and its window; weights and scales do not.

An activation costs nothing: integer kernels clip in any case.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from edge_resnet.graph.graph import Graph
from edge_resnet.graph.nodes import (
    AvgPool,
    Conv,
    Flatten,
    GlobalAvgPool,
    HardSigmoid,
    Input,
    MaxPool,
    Node,
    Normalize,
    Pad,
    Padding,
    PadMode,
    Reshape,
    Shape,
    Subsample,
)
from edge_resnet.graph.passes import lower_average_pools, lower_hard_sigmoids, split_large_averages

__all__ = ["LayerShape", "coordinates", "family", "layer_shapes", "lowered_layers", "with_channels"]

# What is gone once the graph is in integers, or moves nothing.
_FREE = (Input, Normalize, Flatten, Reshape)
_MIXES_CHANNELS = ("Conv", "Linear")


@dataclass(frozen=True)
class LayerShape:
    """One node, as far as its latency depends on it. `kind`: the name of the node's kind.

    A kind without a window has a 1x1 kernel and stride 1. `overhead` is no node: what an invocation of a
    model with this image costs beside its layers.
    """

    kind: str
    inputs: tuple[Shape, ...]
    output: Shape
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: Padding = Padding()  # noqa: RUF009 (frozen)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    pad_mode: PadMode = PadMode.ZERO


def layer_shapes(graph: Graph) -> dict[str, LayerShape]:
    """The layers of a graph, lowered for integers or not, by node name; without what costs nothing.

    AvgPool and HardSigmoid come as the depthwise convolutions that they are in integers.
    """
    shapes = graph.shapes
    return {
        node.name: _layer(node, tuple(shapes[name] for name in node.inputs), shapes[node.name])
        for node in graph.nodes
        if not isinstance(node, _FREE)
    }


def with_channels(layer: LayerShape, inputs: tuple[int, ...], output: int) -> LayerShape:
    """The same layer that reads and writes so many channels (features, of a vector).

    A grouped convolution keeps its channels per group and has another number of groups.
    """
    groups = layer.groups
    if groups > 1:
        groups = max(1, inputs[0] * layer.groups // layer.inputs[0][0])
    return replace(
        layer,
        inputs=tuple((count, *shape[1:]) for count, shape in zip(inputs, layer.inputs, strict=True)),
        output=(output, *layer.output[1:]),
        groups=groups,
    )


def family(layer: LayerShape) -> str:
    """A name for all that decides the latency but the numbers of channels, for people and as a key."""
    size = "x".join(map(str, layer.inputs[0][1:])) if layer.inputs else ""
    words = [layer.kind, size or "vector"]
    if layer.kernel != (1, 1) or layer.kind == "Conv":
        words.append(f"kernel {layer.kernel[0]}x{layer.kernel[1]}")
    if layer.stride != (1, 1):
        words.append(f"stride {layer.stride[0]}x{layer.stride[1]}")
    if layer.padding:
        words.append("padding " + ",".join(map(str, layer.padding.sides)))
    if layer.dilation != (1, 1):
        words.append(f"dilation {layer.dilation[0]}x{layer.dilation[1]}")
    if layer.pad_mode is not PadMode.ZERO:
        words.append(str(layer.pad_mode))
    if _is_grouped(layer):
        reads, writes = layer.inputs[0][0] // layer.groups, layer.output[0] // layer.groups
        words.append(f"groups of {reads}->{writes}")
    if layer.kind == "Mul":
        words.append("by an image" if layer.inputs[1][1:] != (1, 1) else "by a vector")
    if layer.kind == "Concat":
        words.append(f"of {len(layer.inputs)}")
    return " ".join(words)


def coordinates(layer: LayerShape) -> tuple[int, ...]:
    """What varies within a family: (read, written) channels of what mixes channels, else those written."""
    if layer.kind in _MIXES_CHANNELS and not _is_grouped(layer):
        return layer.inputs[0][0], layer.output[0]
    return (layer.output[0],)


@cache
def lowered_layers(layer: LayerShape) -> tuple[LayerShape, ...]:
    """What the layer is in a graph of integers: an average over many positions is two layers."""
    if layer.kind != "GlobalAvgPool":
        return (layer,)
    image = Input(name="image", shape=layer.inputs[0])
    graph = Graph("layer", (image, GlobalAvgPool(name="pool", inputs=("image",))))
    return tuple(layer_shapes(lower_average_pools(split_large_averages(graph))).values())


def _layer(node: Node, inputs: tuple[Shape, ...], output: Shape) -> LayerShape:
    if isinstance(node, AvgPool | HardSigmoid):
        image = Input(name="image", shape=inputs[0]) if len(inputs[0]) == 3 else None
        first = image or Input(name="image", shape=(*inputs[0], 1, 1))
        flat = () if image else (Flatten(name="flat", inputs=("image",)),)
        alone = replace(node, inputs=("flat" if flat else "image",), quant=None)
        graph = lower_hard_sigmoids(lower_average_pools(Graph("layer", (first, *flat, alone))))
        (layer,) = layer_shapes(graph).values()
        return layer
    values: dict[str, Any] = {}
    if isinstance(node, Conv):
        rows, columns = node.weights.weight.shape[2:]
        values = {"kernel": (rows, columns), "stride": node.stride, "padding": node.padding}
        values |= {"dilation": node.dilation, "groups": node.groups}
    elif isinstance(node, MaxPool):
        values = {"kernel": node.kernel, "stride": node.stride, "padding": node.padding}
    elif isinstance(node, Subsample):
        values = {"stride": node.stride}
    elif isinstance(node, Pad):
        values = {"padding": node.padding, "pad_mode": node.mode}
    return LayerShape(type(node).__name__, inputs, output, **values)


def _is_grouped(layer: LayerShape) -> bool:
    return layer.groups > 1
