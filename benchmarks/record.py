"""What every benchmark writes down beside its figures, and where the real data is."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from edge_resnet.cpu import this_cpu
from edge_resnet.files import atomic_write

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).with_name("results")
PACKAGES = ("torch", "torchvision", "numpy", "onnx", "onnxruntime", "ai-edge-litert", "coremltools")


def real_data() -> Path:
    """The folder with cifar10-jpeg.zip and the checkpoints (EDGE_RESNET_DATA, else ../shared/data)."""
    folder = Path(os.environ.get("EDGE_RESNET_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "cifar10-jpeg.zip").exists():
        sys.exit(f"{folder}: no real data; set EDGE_RESNET_DATA to the folder with cifar10-jpeg.zip")
    return folder


def save(name: str, figures: Mapping[str, Any]) -> None:
    """Write results/NAME.json and print it."""
    document = {
        "command": shlex.join(["python", "-m", f"benchmarks.{name}", *sys.argv[1:]]),
        "machine": {"cpu": this_cpu().name, "cores": this_cpu().cores, "os": platform.system()},
        "versions": {"python": platform.python_version()}
        | {package: version(package) for package in PACKAGES},
        **figures,
    }
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps(document, indent=1)
    atomic_write(RESULTS / f"{name}.json", text + "\n")
    print(text)


def interleaved(functions: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, dict[str, float]]:
    """Seconds that each function returns, taken in turn A B A B; median, least and most of `rounds`.

    One round before the counted ones warms everything up.
    """
    samples: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(rounds + 1):
        for name, function in functions.items():
            seconds = function()
            if turn:
                samples[name].append(seconds)
    return {name: spread(values) for name, values in samples.items()}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and most."""
    return {
        "median": round(float(np.median(values)), 5),
        "min": round(min(values), 5),
        "max": round(max(values), 5),
        "rounds": len(values),
    }
