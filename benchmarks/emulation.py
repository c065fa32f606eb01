"""What artifacts answer on a device that runs Python, an emulated CPU for one."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_resnet.benchmark.result import BenchmarkSettings
from edge_resnet.devices.device import Job, Request
from edge_resnet.devices.host import Host, measure_on_host
from edge_resnet.errors import MissingToolError

__all__ = ["logits_on"]

_TIMEOUT_S = 3600.0


def logits_on(
    host: Host, files: Mapping[str, bytes], pixels: NDArray[np.uint8]
) -> dict[str, NDArray[np.float32]]:
    """The logits for uint8 [N, H, W, 3] of each file, by the keys of `files`, which end in .onnx or .tflite.

    Raises MissingToolError where an emulator, its root or an answer is missing.
    """
    with tempfile.TemporaryDirectory() as name:
        jobs = []
        for index, (key, content) in enumerate(files.items()):
            path = Path(name, f"file{index}{Path(key).suffix}")
            path.write_bytes(content)
            jobs.append(Job(key, path))
        request = Request(BenchmarkSettings(runs=1, timeout=_TIMEOUT_S), (), pixels)
        found = measure_on_host(host, jobs, request)
    logits = {}
    for key, measurement in found.items():
        if measurement.answers is None:
            raise MissingToolError(f"{host.uri}: {key}: {measurement.benchmarks[0].notes[0]}")
        logits[key] = measurement.answers.logits
    return logits
