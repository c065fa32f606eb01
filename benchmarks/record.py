"""What every benchmark writes down beside its figures, and where the real data is."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from edge_resnet.benchmark.timing import interleaved, spread
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


def save(name: str, figures: Mapping[str, Any], quiet: bool = False) -> None:
    """Write results/NAME.json and, unless `quiet`, print it."""
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
    if not quiet:
        print(text)


def in_turns(functions: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, dict[str, float]]:
    """Seconds of each function, taken in turns A B A B after one round of warm-up: median, p10 and p90."""
    samples = interleaved(functions, rounds)
    return {
        name: {key: round(value, 5) for key, value in spread(values).items()}
        for name, values in samples.items()
    }
