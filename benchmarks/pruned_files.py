"""Figures of benchmarks.pruning that need no training: latencies in turns, predictions, ResNet-50."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import record
from benchmarks.models import SEED, blurred_noise, cifar, floating, integers, pixels_of
from edge_resnet.benchmark.result import BenchmarkSettings
from edge_resnet.benchmark.timing import spread
from edge_resnet.devices.local import benchmark_local
from edge_resnet.export.tflite import tflite_bytes
from edge_resnet.graph.channels import channel_groups, kept_channels
from edge_resnet.graph.float_executor import FloatExecutor
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.mixed_executor import MixedExecutor
from edge_resnet.graph.nodes import Conv, FloatWeights, Linear
from edge_resnet.graph.passes import lower_for_integers
from edge_resnet.graph.storage import graph_from_files
from edge_resnet.latency.table import latency_table
from edge_resnet.pruning.costs import COSTS, LatencyCosts
from edge_resnet.pruning.evidence import Sample, answers
from edge_resnet.pruning.prune import Pruned, prune
from edge_resnet.recipe import Prune
from edge_resnet.report.channel_ranges import kept_spans
from edge_resnet.runners.litert import LiteRTRunner

__all__ = ["latencies", "predictions", "resnet50"]

# Each round has processes of its own: where memory lies differs between them, and moves a latency.
ROUNDS, RUNS = 7, 100
PARTS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
MODELS = ("resnet20", "resnet56")
IMAGES = 64


def latencies(runs: Path, cases: Mapping[str, Any]) -> dict[str, Any]:
    """Milliseconds for one image of each case's file; how many times faster it is than the unpruned one."""
    files = _files(runs, cases)
    samples = _measured(files)
    rows = {}
    for name, values in samples.items():
        rows[name] = {"ms": _rounded(spread(values))}
        whole = f"unpruned {_model(cases[name])}"
        if whole in samples and name != whole:
            ratios = [before / after for before, after in zip(samples[whole], values, strict=True)]
            rows[name]["times_faster"] = _rounded(spread(ratios))
    return {"threads": 1, "runs_a_round": RUNS, "files": rows}


def predictions(runs: Path, cases: Mapping[str, Any]) -> dict[str, Any]:
    """Predicted and measured latency of the finished files and of untrained prunings to parts of it."""
    predicted: dict[str, float] = {}
    files: dict[str, Path] = {}
    data = record.real_data()
    for model in MODELS:
        graph, preprocess = floating(model, data / f"{model}-cifar10.pt")
        pixels, labels = pixels_of(cifar(data)[0], preprocess, IMAGES)
        sample = Sample(pixels, labels, np.zeros((0, 0), np.float32))
        sample = sample.with_answers(answers(graph, sample))
        table = latency_table(lower_for_integers(graph), "local", "litert", 1, 8)
        for part in (1.0, *PARTS):
            name, left = f"{model} at {part:g}", graph
            if part < 1:
                settings = Prune(latency=part, criterion="l1", images=IMAGES)

                def costs(smaller: Graph) -> LatencyCosts:
                    return LatencyCosts(smaller, table)  # noqa: B023

                left = prune(graph, settings, costs, sample, SEED).graph
            predicted[name] = table.predict(lower_for_integers(left))
            files[name] = _written(integers(left, pixels), runs / "untrained" / f"{model}-{part:g}.tflite")
        for name, path in _files(runs, cases).items():
            if _model(cases[name]) == model and cases[name].get("pruning"):
                final = graph_from_files(path.parent / "graph", "float")
                predicted[name], files[name] = table.predict(lower_for_integers(final)), path
    rows = {}
    for name, values in _measured(files).items():
        measured = spread(values)
        error = 100 * (predicted[name] / measured["median"] - 1)
        rows[name] = {
            "predicted_ms": round(predicted[name], 4),
            "measured_ms": _rounded(measured),
            "error_percent": round(error, 1),
        }
    errors = [abs(row["error_percent"]) for row in rows.values()]
    return {
        "table": table.description,
        "table_spread": round(table.spread, 4),
        "largest_error_percent": max(errors),
        "median_error_percent": round(float(np.median(errors)), 1),
        "files": rows,
    }


def resnet50() -> dict[str, Any]:
    """torchvision's, random weights, to half its MACs by l1, channels only."""
    graph, _ = floating("torchvision:resnet50")
    settings = Prune(macs=0.5, criterion="l1", blocks=False)
    seconds, pruned = [], None
    for _ in range(5):
        started = time.perf_counter()
        pruned = prune(graph, settings, COSTS["macs"])
        seconds.append(time.perf_counter() - started)
    assert pruned is not None
    pixels = blurred_noise(4, graph.input.shape[1])
    masked = _multiplied_by_zero(graph, pruned)
    expected, answer = FloatExecutor(masked).run(pixels), FloatExecutor(pruned.graph).run(pixels)
    difference = float(np.abs(answer - expected).max() / np.ptp(expected))
    quantized = integers(pruned.graph, pixels)
    path = _written(quantized, record.ROOT / "runs" / "pruning" / "resnet50.tflite")
    identical = bool(
        np.array_equal(LiteRTRunner(path).logits(pixels), MixedExecutor(quantized).logits(pixels))
    )
    widths = [layer.after for layer in pruned.layers[:-1]]
    return {
        "seconds": {key: round(value, 3) for key, value in spread(seconds).items()},
        "macs": round(pruned.graph.macs / graph.macs, 4),
        "all_widths_multiples_of_8": not any(width % 8 for width in widths),
        "narrowest": min(widths),
        "layers_narrower": sum(layer.after < layer.before for layer in pruned.layers),
        "difference_from_masked_original_of_logit_range": difference,
        "litert_equals_reference": identical,
    }


def _multiplied_by_zero(graph: Graph, pruned: Pruned) -> Graph:
    """The original, whose layers multiply what was removed by zero; all shapes stay."""
    masks = {}
    for layer in pruned.layers:
        mask = np.zeros(layer.before, bool)
        for first, stop in kept_spans(layer.kept, layer.before, layer.after):
            mask[first:stop] = True
        masks[layer.name] = mask
    groups = channel_groups(graph)
    stays = [masks[group.name][group.channels[group.name]].all(axis=1) for group in groups]
    kept = kept_channels(graph, groups, stays)
    nodes = []
    for node in graph.nodes:
        if isinstance(node, Conv | Linear):
            weight = node.weights.weight.copy()
            weight[:, ~kept[node.inputs[0]]] = 0
            nodes.append(replace(node, weights=FloatWeights(weight, node.weights.bias)))
        else:
            nodes.append(node)
    return graph.with_nodes(nodes)


def _files(runs: Path, cases: Mapping[str, Any]) -> dict[str, Path]:
    """The finished cases' files that are here."""
    found = {name: runs / row["file"] for name, row in cases.items()}
    return {name: path for name, path in found.items() if path.exists()}


def _model(row: Mapping[str, Any]) -> str:
    return str(row["command"].split()[2])


def _written(graph: Graph, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tflite_bytes(graph))
    return path


def _measured(files: Mapping[str, Path]) -> dict[str, list[float]]:
    """The median of each round, all files in turns (A B A B), ms."""
    samples: dict[str, list[float]] = {name: [] for name in files}
    for _ in range(ROUNDS):
        results = benchmark_local(list(files.items()), 1, BenchmarkSettings(runs=RUNS))
        for name, result in results.items():
            if result.latency_ms is None:
                raise RuntimeError(f"{name}: {'; '.join(result.notes)}")
            samples[name].append(result.latency_ms["p50"])
    return samples


def _rounded(values: Mapping[str, float]) -> dict[str, float]:
    return {key: round(value, 4) for key, value in values.items()}
