"""Which layers stay in float when int8 loses too much.

A layer that is kept has its float weights. A tensor stays float only if all that write it and all that read
it are kept, together with the tensors that share its parameters (pooling, slicing, concatenation); otherwise
it is quantized as before, and a kept layer next to it dequantizes what it reads and quantizes what it writes.
So no other layer's integers change, whatever is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from edge_resnet.errors import GraphError
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.mixed_executor import MixedExecutor, float_layers
from edge_resnet.graph.nodes import Input, Node
from edge_resnet.graph.streams import moves_integers, parameter_groups
from edge_resnet.quantization_record import LayerCost, SensitivityRecord

__all__ = ["choose_float_layers", "keep_in_float"]

_BATCH = 50


def keep_in_float(quantized: Graph, floating: Graph, names: Iterable[str]) -> Graph:
    """The quantized graph with these layers in float; `floating` has the same nodes in float.

    Raises GraphError for a name that is no layer: the image, or a node that only moves integers.
    """
    kept = set(names)
    for name in sorted(kept):
        node = quantized.by_name.get(name)
        if node is None or isinstance(node, Input) or moves_integers(node):
            raise GraphError(f"node {name!r} is no layer that could be kept in float")
        if name not in floating.by_name:
            raise GraphError(f"node {name!r} is not in the float graph")
    real = _float_tensors(quantized, kept)
    nodes: list[Node] = []
    for node in quantized.nodes:
        quant = None if node.name in real else node.quant
        chosen = floating.by_name[node.name] if node.name in kept else node
        nodes.append(replace(chosen, inputs=node.inputs, quant=quant))
    return quantized.with_nodes(nodes)


def choose_float_layers(
    floating: Graph,
    quantized: Graph,
    pixels: NDArray[np.uint8],
    labels: NDArray[np.int64],
    max_drop: float,
    sensitivity: SensitivityRecord,
    advance: Callable[[int], None] = lambda images: None,
) -> tuple[Graph, SensitivityRecord]:
    """The fewest layers in float with which top-1 on these images is at most `max_drop` points below float.

    `pixels` uint8 [N, H, W, C] and `labels` [N] are those of `sensitivity`. Layers are taken in the order of
    their cost until the whole mixed graph meets the limit (a binary search), then every one without which it
    still does goes back to int8. That is a heuristic: a smaller set may exist. The graph comes back unchanged
    where int8 meets the limit already, and where not even all layers in float would; the record's notes say
    which. `advance` is called with the number of images after each trial; how many there are is not known.
    """
    allowed = int(np.floor(max_drop / 100 * sensitivity.n + 1e-9))
    least = round(sensitivity.float_top1 * sensitivity.n) - allowed
    record = replace(sensitivity, max_drop=max_drop)
    if round(sensitivity.int8_top1 * sensitivity.n) >= least:
        return quantized, _noted(record, f"int8 loses at most {max_drop:g} points: no layer is kept in float")
    trial = _Trial(floating, quantized, pixels, labels, least, advance)
    ranking = sorted(sensitivity.layers, key=lambda layer: layer.sqnr_db)
    units = [_unit(layer, quantized) for layer in ranking]
    if not trial.meets(_union(units)):
        return quantized, _noted(
            record,
            f"not even with all layers in float is top-1 within {max_drop:g} points of the float model: "
            "all stay int8",
        )
    kept = _pruned(_shortest(units, trial), trial)
    mixed = keep_in_float(quantized, floating, kept)
    in_float = float_layers(mixed)
    layers = tuple(replace(layer, kept_float=layer.name in in_float) for layer in record.layers)
    record = replace(record, layers=layers, mixed_top1=trial.top1(kept))
    return mixed, _noted(record, f"kept in float: {', '.join(in_float)}")


class _Trial:
    """Top-1 of the whole graph with a set of layers in float; each set is tried once."""

    def __init__(
        self,
        floating: Graph,
        quantized: Graph,
        pixels: NDArray[np.uint8],
        labels: NDArray[np.int64],
        least: int,
        advance: Callable[[int], None],
    ) -> None:
        self._graphs = quantized, floating
        self._pixels, self._labels = pixels, labels
        self._least = least
        self._advance = advance
        self._hits: dict[frozenset[str], int] = {}

    def meets(self, names: Iterable[str]) -> bool:
        return self._count(frozenset(names)) >= self._least

    def top1(self, names: Iterable[str]) -> float:
        """Of a set that meets the limit: the count of others may have ended early."""
        return self._count(frozenset(names)) / len(self._pixels)

    def _count(self, names: frozenset[str]) -> int:
        if names not in self._hits:
            executor = MixedExecutor(keep_in_float(*self._graphs, names))
            hits, n = 0, len(self._pixels)
            for start in range(0, n, _BATCH):
                stop = min(start + _BATCH, n)
                answers = executor.logits(self._pixels[start:stop]).argmax(1)
                hits += int((answers == self._labels[start:stop]).sum())
                if hits + n - stop < self._least:  # all others right would not be enough
                    break
            self._hits[names] = hits
            self._advance(n)
        return self._hits[names]


def _shortest(units: Sequence[tuple[str, ...]], trial: _Trial) -> list[str]:
    """The layers of the fewest first units that meet the limit; all units together do."""
    low, high = 0, len(units)  # `low` units miss it, `high` meet it
    while high - low > 1:
        middle = (low + high) // 2
        if trial.meets(_union(units[:middle])):
            high = middle
        else:
            low = middle
    return _union(units[:high])


def _pruned(names: list[str], trial: _Trial) -> list[str]:
    """What is left when every layer that is not needed is taken out, the cheapest first, many at once."""
    kept = list(names)

    def drop(part: list[str]) -> None:
        rest = [name for name in kept if name not in part]
        if trial.meets(rest):
            kept[:] = rest
        elif len(part) > 1:
            half = len(part) // 2
            drop(part[half:])
            drop(part[:half])

    half = len(names) // 2  # without any of them it is the int8 graph, which misses the limit
    drop(names[half:])
    drop(names[:half])
    return kept


def _union(units: Iterable[tuple[str, ...]]) -> list[str]:
    return list(dict.fromkeys(name for unit in units for name in unit))


def _unit(layer: LayerCost, graph: Graph) -> tuple[str, ...]:
    """The layer, and all that must be float with it to undo most of its cost.

    If its weights make most of the noise, it alone. If the rounding of its output does, whoever reads or
    writes that tensor as well, or the tensor would be rounded all the same.
    """
    if layer.from_weights >= 0.5:
        return (layer.name,)
    group = next(names for names in parameter_groups(graph) if layer.name in names)
    if graph.input.name in group:
        return (layer.name,)
    return (layer.name, *_neighbours(group, graph))


def _neighbours(group: Sequence[str], graph: Graph) -> list[str]:
    """Layers that write or read one of these tensors."""
    nodes = [graph.by_name[name] for name in group]
    nodes += [reader for name in group for reader in graph.consumers[name]]
    return [node.name for node in nodes if not (moves_integers(node) or isinstance(node, Input))]


def _float_tensors(graph: Graph, kept: set[str]) -> set[str]:
    """Tensors that nobody reads or writes as integers."""
    real: set[str] = set()
    for group in parameter_groups(graph):
        if graph.input.name not in group and kept.issuperset(_neighbours(group, graph)):
            real.update(group)
    return real


def _noted(record: SensitivityRecord, note: str) -> SensitivityRecord:
    return replace(record, notes=(*record.notes, note))
