"""Artifacts for the tests of NPUs and microcontrollers, and one question to one device."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx

from edge_resnet.benchmark.result import BenchmarkSettings
from edge_resnet.devices.device import Job, Measurement, Request
from edge_resnet.devices.registry import open_device
from edge_resnet.export.onnx import onnx_bytes
from edge_resnet.export.tflite import IoType, tflite_bytes
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.passes import fold_normalization_std, simplify

SETTINGS = BenchmarkSettings()
INSTALL = 'pip install "edge-resnet[npu]"'


def measure(
    uri: str, path: Path, pixels: np.ndarray | None = None, settings: BenchmarkSettings = SETTINGS
) -> Measurement:
    """What the device says of one artifact; its steps are counted to the end."""
    device, jobs, request = open_device(uri), [Job("it", path)], Request(settings, (1,), pixels)
    steps: list[int] = []
    found = device.measure(jobs, request, steps.append)
    assert sum(steps) == device.steps(jobs, request)
    assert list(found) == ["it"]
    return found["it"]


def as_floats(graph: Graph) -> Graph:
    """Ready to be written."""
    return fold_normalization_std(simplify(graph))


def tflite_file(folder: Path, graph: Graph, io: IoType = IoType.INT8) -> Path:
    path = folder / "model.tflite"
    path.write_bytes(tflite_bytes(graph, io))
    return path


def onnx_file(folder: Path, graph: Graph) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(onnx_bytes(graph))
    return path


def onnx_file_with_cpu_nodes(folder: Path, graph: Graph) -> Path:
    """The logits go through two operators that the NPU does not have, and keep their order."""
    model = onnx.load_from_string(onnx_bytes(graph))
    last = model.graph.output[0]
    model.graph.node.extend(
        [
            onnx.helper.make_node("Erf", [last.name], ["bent"], name="erf"),
            onnx.helper.make_node("Asinh", ["bent"], ["bent twice"], name="asinh"),
        ]
    )
    last.name = "bent twice"
    path = folder / "model.onnx"
    onnx.save(model, path)
    return path
