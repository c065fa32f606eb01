"""Which range estimator is best, and what equalization and bias correction repair, on the real models.

python -m benchmarks.calibration [--images 10000] [--models resnet20 resnet56]

Accuracy is the integer reference's on the first images of the shuffled test split, SQNR that of its logits
against the float graph's. `rescaled` is ResNet-20 with every channel between two layers of a block divided
by a random factor from 1/64 to 64 and multiplied again: the same function, but weights that 8 bits serve
badly. Rows are written as they come.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks import record
from benchmarks.models import SEED, cifar, floating, pixels_of
from edge_resnet.compression.bias_correction import correct_biases
from edge_resnet.compression.calibrate import ESTIMATORS, collect, estimate
from edge_resnet.compression.equalize import equalizable_pairs, equalize
from edge_resnet.compression.quantize import quantize
from edge_resnet.graph.float_executor import FloatExecutor
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.nodes import Conv, FloatWeights, Linear
from edge_resnet.graph.passes import lower_for_integers
from edge_resnet.graph.reference import ReferenceExecutor, dequantize

CALIBRATION_IMAGES = 512
BATCH = 32
AT_ONCE = 250


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=10000)
    parser.add_argument("--models", nargs="+", default=["resnet20", "resnet56"])
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []

    def add(row: dict[str, Any]) -> None:
        rows.append(row)
        print(row, flush=True)
        record.save("calibration", {"seed": SEED, "images": arguments.images, "rows": rows}, quiet=True)

    for model in arguments.models:
        for row in _rows(model, arguments.images):
            add(row)


def _rows(model: str, count: int) -> Iterator[dict[str, Any]]:
    data = record.real_data()
    source, preprocess = floating(model, data / f"{model}-cifar10.pt")
    graph = lower_for_integers(source)
    train, test = cifar(data)
    calibration, _ = pixels_of(train, preprocess, CALIBRATION_IMAGES)
    batches = np.array_split(calibration, len(calibration) // BATCH)
    tested = list(test.batches(test.order(SEED)[:count], preprocess, AT_ONCE))
    labels = np.concatenate([batch.labels for batch in tested])
    pixels = [batch.pixels for batch in tested]
    executor = FloatExecutor(graph)
    exact = np.concatenate([executor.run(part) for part in pixels])
    top1 = float((exact.argmax(1) == labels).mean())
    yield {"model": model, "what": "float", "top1": round(top1, 4)}

    def row(name: str, integers: Graph, **more: Any) -> dict[str, Any]:
        quant = integers.output.quant
        assert quant is not None
        reference = ReferenceExecutor(integers)
        logits = np.concatenate([dequantize(reference.run(part), quant) for part in pixels])
        noise = float(((logits - exact) ** 2).sum())
        return {
            "model": name,
            **more,
            "top1": round(float((logits.argmax(1) == labels).mean()), 4),
            "sqnr_db": round(float(10 * np.log10(float((exact**2).sum()) / noise)), 2),
        }

    started = time.process_time()
    statistics = collect(graph, batches)
    yield {"model": model, "what": "collect", "cpu_seconds": round(time.process_time() - started, 2)}
    for estimator in ESTIMATORS:
        plain = quantize(graph, estimate(statistics, graph, estimator))
        yield row(model, plain, what=estimator)
    plain = quantize(graph, estimate(statistics, graph))
    yield row(model, correct_biases(plain, graph, lambda: batches), what="minmax + bias correction")
    equal = equalize(graph)
    fixed = quantize(equal, estimate(collect(equal, batches), equal))
    yield row(model, fixed, what="minmax + equalization")
    if model != "resnet20":
        return
    spoilt = rescaled(graph)
    plain = quantize(spoilt, estimate(collect(spoilt, batches), spoilt))
    yield row(f"{model} rescaled", plain, what="minmax")
    equal = equalize(spoilt)
    fixed = quantize(equal, estimate(collect(equal, batches), equal))
    yield row(f"{model} rescaled", fixed, what="minmax + equalization")
    fixed = correct_biases(fixed, equal, lambda: batches)
    yield row(f"{model} rescaled", fixed, what="minmax + equalization + bias correction")


def rescaled(graph: Graph, largest: float = 64.0) -> Graph:
    """The same function with channels between layers times random factors, log-uniform to `largest`.

    For models whose pairs of layers are not grouped.
    """
    rng = np.random.default_rng(SEED)
    weights = {
        node.name: node.weights
        for node in graph.nodes
        if isinstance(node, Conv | Linear) and isinstance(node.weights, FloatWeights)
    }
    for first, second in equalizable_pairs(graph):
        before, behind = weights[first.name], weights[second.name]
        factors = (largest ** rng.uniform(-1, 1, len(before.bias))).astype(np.float32)
        out = factors.reshape(-1, *[1] * (before.weight.ndim - 1))
        into = factors.reshape(-1, *[1] * (behind.weight.ndim - 2))
        weights[first.name] = FloatWeights(before.weight * out, before.bias * factors)
        weights[second.name] = FloatWeights(behind.weight / into, behind.bias)
    return graph.with_nodes(
        replace(node, weights=weights[node.name]) if isinstance(node, Conv | Linear) else node
        for node in graph.nodes
    )


if __name__ == "__main__":
    main()
