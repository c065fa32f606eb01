"""This project's way from the same torch module to its files, in the same phases."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.peers.exports import EXPORTS, Exporter
from benchmarks.peers.phases import Phases
from benchmarks.peers.torch_model import load

__all__ = ["EXPORTERS", "OWN"]


def _own(target: str) -> Callable[[Path, Phases, Path], None]:
    def export(folder: Path, phases: Phases, path: Path) -> None:
        with phases("libraries"):
            from edge_resnet.compression.calibrate import calibrate
            from edge_resnet.compression.quantize import quantize
            from edge_resnet.frontends.torch_export import graph_from_module
            from edge_resnet.graph.passes import lower_for_integers, simplify
            from edge_resnet.recipe import Export
            from edge_resnet.targets import TARGETS
        with phases("load"):
            module, pixels = load(folder), np.load(folder / "calibration_pixels.npy")
            about = json.loads((folder / "model.json").read_text())
        with phases("convert"):
            size = (int(about["size"][0]), int(about["size"][1]))
            graph = simplify(graph_from_module(module, "model", size, about["mean"], about["std"]))
            graph = lower_for_integers(graph)
        with phases("quantize"):
            batches = np.array_split(pixels, -(-len(pixels) // 32))
            quantized = quantize(graph, calibrate(graph, batches, "mse"))
        with phases("write"):
            TARGETS[target].write(quantized, path, Export())

    return export


OWN = {
    f"edge-resnet {format}": Exporter(
        format,
        f"the default recipe's PTQ, {target}",
        ("torch", *packages),
        f"edge-resnet{suffix}",
        _own(target),
    )
    for format, target, suffix, packages in (
        ("tflite", "tflite-int8", ".tflite", ("ai-edge-litert",)),
        ("onnx", "onnx-int8", ".onnx", ("onnx",)),
        ("coreml", "coreml-int8", ".mlpackage", ("coremltools",)),
    )
}

EXPORTERS = OWN | EXPORTS
"""Ours and the peers', by name."""
