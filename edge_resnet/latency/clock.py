"""How long layers take: differences between models that hold them once and several times, timed in turns.

The overhead of an invocation cancels in a difference, and a machine that slows down slows both alike. Of a
few runs in a row the shortest counts, what another program did in between does not; the entry is the median
of many such rounds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edge_resnet.graph.graph import Graph
from edge_resnet.latency.layers import LayerShape
from edge_resnet.latency.probe import empty_model, is_serial, probe

__all__ = ["LATENCY_RUNTIMES", "Entry", "measure", "runtime_version"]

_ROUNDS, _RUNS = 9, 5
_COPIES, _FEW_COPIES = 9, 3
# Multiply-accumulates (or elements moved) from which few copies take long enough to be told apart.
_LARGE = 4_000_000
# Milliseconds that an entry's rounds may take together; at least three rounds are timed.
_MOST_MS = 120.0
_LEAST_ROUNDS = 3


@dataclass(frozen=True)
class Entry:
    """Milliseconds of one layer, and how far the middle half of the rounds lies apart (same unit)."""

    milliseconds: float
    spread: float


def measure(
    layers: Sequence[LayerShape], runtime: str, threads: int, known: Mapping[LayerShape, Entry]
) -> list[Entry]:
    """One entry a layer, all timed in turns. `known` holds the sums that join copies (see probe.py)."""
    open_model = LATENCY_RUNTIMES[runtime]
    pairs = []
    for layer in layers:
        graphs = _graphs(layer)
        pairs.append([open_model(graph, threads, layer.kind == "overhead") for graph in graphs])
    rounds: list[list[float]] = [[] for _ in layers]
    spent = [0.0] * len(layers)
    for turn in range(_ROUNDS + 1):  # the first one warms up
        for index, pair in enumerate(pairs):
            if turn > _LEAST_ROUNDS and spent[index] > _MOST_MS:
                continue
            times = [_shortest(run, _RUNS) for run in pair]
            spent[index] += sum(times) * _RUNS
            if turn:
                rounds[index].append(times[-1] - (times[0] if len(times) > 1 else 0.0))
    return [_entry(layer, values, known) for layer, values in zip(layers, rounds, strict=True)]


def runtime_version(runtime: str) -> str:
    """Of the installed package. `runtime` is one of LATENCY_RUNTIMES."""
    from importlib.metadata import version

    return version({"litert": "ai-edge-litert"}[runtime])


def _graphs(layer: LayerShape) -> list[Graph]:
    if layer.kind == "overhead":
        return [empty_model(layer.output)]
    return [probe(layer, 1), probe(layer, _copies(layer))]


def _copies(layer: LayerShape) -> int:
    work = int(np.prod(layer.output)) * int(np.prod(layer.kernel))
    if layer.kind in ("Conv", "Linear"):
        work *= layer.inputs[0][0] // layer.groups
    return _FEW_COPIES if work > _LARGE else _COPIES


def _entry(layer: LayerShape, differences: Sequence[float], known: Mapping[LayerShape, Entry]) -> Entry:
    low, middle, high = np.percentile(differences, (25, 50, 75))
    if layer.kind == "overhead":
        return Entry(float(middle), float(high - low))
    more = _copies(layer) - 1
    joining = 0.0
    if not is_serial(layer):
        joining = known[LayerShape("Add", (layer.output, layer.output), layer.output)].milliseconds
    return Entry(max(0.0, float(middle) / more - joining), float(high - low) / more)


def _shortest(run: Callable[[], object], count: int) -> float:
    """Milliseconds of the fastest of `count` runs, after one that brings the model back into the cache."""
    run()
    times = []
    for _ in range(count):
        begun = time.perf_counter_ns()
        run()
        times.append(time.perf_counter_ns() - begun)
    return min(times) / 1e6


def _litert(graph: Graph, threads: int, with_ends: bool) -> Callable[[], object]:
    """An invocation; `with_ends`: with the image copied in and the logits copied out, as apps do."""
    from ai_edge_litert.interpreter import Interpreter

    from edge_resnet.export.tflite import IoType, tflite_bytes
    from edge_resnet.runners.litert import quiet_standard_error

    content = bytes(tflite_bytes(graph, IoType.UINT8 if with_ends else IoType.INT8))
    with quiet_standard_error():
        interpreter = Interpreter(model_content=content, num_threads=threads)
        interpreter.allocate_tensors()
    source, output = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    image = np.random.default_rng(0).integers(0, 128, source["shape"]).astype(source["dtype"])
    interpreter.set_tensor(source["index"], image)

    def whole() -> None:
        interpreter.set_tensor(source["index"], image)
        interpreter.invoke()
        interpreter.get_tensor(output["index"])

    return whole if with_ends else interpreter.invoke


LATENCY_RUNTIMES: dict[str, Callable[[Graph, int, bool], Callable[[], Any]]] = {"litert": _litert}
