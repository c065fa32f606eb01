"""The table of layer latencies that a graph needs, and the latency of graphs predicted from it.

Layers are measured alone, at some numbers of channels, on the runtime that will run the file; a graph's
latency is the sum of its layers' and of what an invocation costs. Integer kernels compute channels in tiles
(16 on a CPU with AVX-512), so latency over width is a staircase, which multiply-accumulates do not show.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from edge_resnet.errors import InputError
from edge_resnet.graph.graph import Graph
from edge_resnet.latency.clock import LATENCY_RUNTIMES, Entry, measure
from edge_resnet.latency.grid import graph_layers, overhead_of, wanted_layers
from edge_resnet.latency.layers import LayerShape, coordinates, family, layer_shapes, lowered_layers
from edge_resnet.latency.store import Machine, Store, local_store, read_store

__all__ = ["LatencyTable", "latency_table", "missing_entries"]

# So many layers are timed in turns; what was measured is kept after each such group.
_GROUP = 8
_Widths = dict[tuple[int, ...], Entry]


class LatencyTable:
    """Latencies of layers on one machine, in milliseconds for one image.

    `overhead`: of an invocation beside its layers. `spread`: the median over all entries of the interquartile
    range of the rounds over their median. `digest`: of the numbers. `description`: where and when.
    """

    def __init__(self, machine: Machine, date: str, families: dict[str, _Widths], overhead: Entry) -> None:
        self.machine, self.runtime, self.threads = machine, machine.runtime, machine.threads
        self.overhead = overhead.milliseconds
        self._families = families
        threads = f"{machine.threads} thread{'' if machine.threads == 1 else 's'}"
        self.description = f"{machine.cpu}, {machine.runtime} {machine.version}, {threads}, {date}"
        entries = [entry for widths in families.values() for entry in widths.values()]
        shares = [entry.spread / entry.milliseconds for entry in entries if entry.milliseconds > 0]
        self.spread = float(np.median(shares)) if shares else 0.0
        numbers = sorted((name, *widths.items()) for name, widths in families.items())
        self.digest = hashlib.sha256(repr((machine, self.overhead, numbers)).encode()).hexdigest()

    def milliseconds(self, layer: LayerShape) -> float:
        """Of one layer: measured, or interpolated between the numbers of channels that were.

        Below the least measured number the last line goes on, not below half of what was measured there.
        Raises LookupError for a family of layers that was not measured, or not up to so many channels.
        """
        return sum(self._alone(part) for part in lowered_layers(layer))

    def predict(self, graph: Graph) -> float:
        """Of one image through the graph in integers. Raises LookupError, as `milliseconds` does."""
        return self.overhead + sum(self.milliseconds(layer) for layer in layer_shapes(graph).values())

    def _alone(self, layer: LayerShape) -> float:
        name, at = family(layer), coordinates(layer)
        widths = self._families.get(name, {})
        if at in widths:
            return widths[at].milliseconds
        value = _line(widths, at[0]) if len(at) == 1 else _surface(widths, at[0], at[1])
        if value is None:
            raise LookupError(f"no latency was measured for: {name}, {'->'.join(map(str, at))} channels")
        return value


def latency_table(
    graph: Graph,
    device: str = "local",
    runtime: str = "litert",
    threads: int = 1,
    multiple: int = 8,
    advance: Callable[[int], None] = lambda steps: None,
) -> LatencyTable:
    """What all layers of the graph take at the widths that they can be given.

    `device`: local measures here what no earlier call has (kept under EDGE_RESNET_CACHE, else
    XDG_CACHE_HOME/edge-resnet, else ~/.cache/edge-resnet), or the path of a table measured elsewhere, which
    is only read. `multiple`: of how many channels a width is. `advance(steps)` follows the
    `missing_entries`.
    Raises InputError for another device or runtime, and where a table from elsewhere lacks a layer.
    """
    store = _store(device, runtime, threads)
    if device != "local":
        return _from_elsewhere(store, graph)
    wanted = wanted_layers(graph, multiple)
    missing = _missing(store, wanted)
    # Sums first, and in groups of their own: what they take is taken off the others.
    parts = [[layer for layer in missing if (layer.kind == "Add") is sums] for sums in (True, False)]
    groups = [part[start : start + _GROUP] for part in parts for start in range(0, len(part), _GROUP)]
    for group in groups:
        sums = {
            layer: store.entries[_key(layer)]
            for layer in wanted
            if layer.kind == "Add" and _key(layer) in store.entries
        }
        entries = measure(group, runtime, threads, sums)
        store.add({_key(layer): entry for layer, entry in zip(group, entries, strict=True)})
        advance(len(group))
    # Only what this graph wants: the same table whatever else was measured on this machine before.
    return _table(store, [_key(layer) for layer in wanted], graph)


def missing_entries(
    graph: Graph, device: str = "local", runtime: str = "litert", threads: int = 1, multiple: int = 8
) -> int:
    """How many layers `latency_table` would measure now."""
    store = _store(device, runtime, threads)
    return len(_missing(store, wanted_layers(graph, multiple))) if device == "local" else 0


def _store(device: str, runtime: str, threads: int) -> Store:
    if runtime not in LATENCY_RUNTIMES:
        raise InputError(
            f"latencies of layers are measured with {', '.join(LATENCY_RUNTIMES)}, not {runtime}"
        )
    if device == "local":
        return local_store(runtime, threads)
    if "://" in device or not Path(device).exists():
        raise InputError(
            f"device {device!r}: now there are `local`, which measures on this machine, and the path of a "
            "latency table that `python -m edge_resnet.latency MODEL TABLE.json` wrote on another"
        )
    store = read_store(Path(device))
    if (store.machine.runtime, store.machine.threads) != (runtime, threads):
        raise InputError(
            f"{device}: measured with {store.machine.runtime} and {store.machine.threads} threads, "
            f"not {runtime} and {threads}"
        )
    return store


def _missing(store: Store, wanted: Iterable[LayerShape]) -> list[LayerShape]:
    return [layer for layer in wanted if _key(layer) not in store.entries]


def _key(layer: LayerShape) -> tuple[str, tuple[int, ...]]:
    return family(layer), coordinates(layer)


def _table(store: Store, keys: Iterable[tuple[str, tuple[int, ...]]], graph: Graph) -> LatencyTable:
    families: dict[str, _Widths] = {}
    for name, channels in keys:
        families.setdefault(name, {})[channels] = store.entries[name, channels]
    overhead = store.entries[_key(overhead_of(graph))]
    return LatencyTable(store.machine, store.date, families, overhead)


def _from_elsewhere(store: Store, graph: Graph) -> LatencyTable:
    """All that the file holds. Raises InputError where the graph needs more."""
    advice = "measure this model there: `python -m edge_resnet.latency MODEL TABLE.json`"
    if _key(overhead_of(graph)) not in store.entries:
        size = "x".join(map(str, graph.input.shape))
        raise InputError(f"{store.path}: nothing was measured for images of {size}; {advice}")
    table = _table(store, store.entries, graph)
    for layer, node in graph_layers(graph).items():
        try:
            table.milliseconds(layer)
        except LookupError as error:
            raise InputError(f"{store.path}: layer {node!r}: {error.args[0]}; {advice}") from error
    return table


def _line(widths: _Widths, at: int) -> float | None:
    points = sorted((channels[0], entry.milliseconds) for channels, entry in widths.items())
    return _between(points, at)


def _surface(widths: _Widths, reads: int, writes: int) -> float | None:
    """Along the channels that are written first, then between the numbers that are read."""
    rows: dict[int, list[tuple[int, float]]] = {}
    for (row, column), entry in sorted(widths.items()):
        rows.setdefault(row, []).append((column, entry.milliseconds))
    across = [(row, value) for row, points in rows.items() if (value := _between(points, writes)) is not None]
    return _between(across, reads)


def _between(points: list[tuple[int, float]], at: int) -> float | None:
    """Linear between sorted points; None beyond the last."""
    if not points or at > points[-1][0]:
        return None
    positions, values = zip(*points, strict=True)
    if at >= positions[0] or len(points) == 1:
        return float(np.interp(at, positions, values))
    slope = (values[1] - values[0]) / (positions[1] - positions[0])
    return float(max(values[0] / 2, values[0] - max(0.0, slope) * (positions[0] - at)))
