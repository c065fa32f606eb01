"""Which layers are measured for a graph: each family of its layers at some of the widths that it may get."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from edge_resnet.graph.graph import Graph
from edge_resnet.graph.nodes import Activation, Add
from edge_resnet.graph.passes.fuse_activations import is_non_negative
from edge_resnet.graph.passes.remove_blocks import identity_blocks
from edge_resnet.latency.layers import LayerShape, layer_shapes, lowered_layers, with_channels
from edge_resnet.latency.probe import is_serial

__all__ = ["graph_layers", "overhead_of", "wanted_layers"]

# Up to so many multiples each is measured; of more, so many.
_ALL, _SOME = 8, 4


def overhead_of(graph: Graph) -> LayerShape:
    """Stands for what an invocation costs beside its layers: the image's bytes, the call."""
    return LayerShape("overhead", (graph.input.shape,), graph.input.shape)


def graph_layers(graph: Graph) -> dict[LayerShape, str]:
    """The layers of the graph in integers, and what removing blocks may put in, with the name of a node."""
    found: dict[LayerShape, str] = {}
    for name, layer in layer_shapes(graph).items():
        for part in lowered_layers(layer):
            found.setdefault(part, name)
    for block in identity_blocks(graph):
        total, shortcut = graph.by_name[block.total], graph.by_name[block.shortcut]
        assert isinstance(total, Add)
        if total.activation is not Activation.NONE and not is_non_negative(shortcut, graph.by_name):
            shape = graph.shapes[total.name]
            found.setdefault(LayerShape("Relu", (shape,), shape), total.name)
    return found


def wanted_layers(graph: Graph, multiple: int) -> dict[LayerShape, str]:
    """What is to be measured, each with the name of a node that it is for. What others need comes first."""
    wanted = {overhead_of(graph): graph.input.name}
    for layer, name in graph_layers(graph).items():
        for variant in _variants(layer, multiple):
            if not is_serial(variant):  # their copies are joined by sums, which are taken off again
                total = LayerShape("Add", (variant.output, variant.output), variant.output)
                wanted.setdefault(total, name)
            wanted.setdefault(variant, name)
    return dict(sorted(wanted.items(), key=lambda item: item[0].kind != "Add"))


def _variants(layer: LayerShape, multiple: int) -> Iterator[LayerShape]:
    reads, writes = (shape[0] for shape in (layer.inputs[0], layer.output))
    if layer.groups > 1:
        per_group = reads // layer.groups, writes // layer.groups
        step = max(1, multiple // per_group[1])
        for groups in sorted({1, *_counts(layer.groups, step)}):
            yield with_channels(layer, (groups * per_group[0],), groups * per_group[1])
    elif layer.kind in ("Conv", "Linear"):
        for pair in product(_counts(reads, multiple), _counts(writes, multiple)):
            yield with_channels(layer, pair[:1], pair[1])
    else:
        for count in _counts(writes, multiple):
            inputs = tuple(max(1, shape[0] * count // writes) for shape in layer.inputs)
            if layer.kind == "Concat":
                inputs = (*inputs[:-1], count - sum(inputs[:-1]))
            yield with_channels(layer, inputs, count)


def _counts(full: int, multiple: int) -> list[int]:
    """Numbers of channels up to `full`, which is among them.

    >>> _counts(32, 8), _counts(512, 8), _counts(10, 8), _counts(3, 8)
    ([8, 16, 24, 32], [8, 128, 256, 384, 512], [8, 10], [3])
    """
    every = range(multiple, full + 1, multiple)
    if len(every) <= _ALL:
        return sorted({*every, full})
    some = {round(full * part / (_SOME * multiple)) * multiple for part in range(1, _SOME)}
    return sorted({multiple, *some, full})
