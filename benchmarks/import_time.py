"""Seconds to import ResNet-50 at 224x224: an .onnx file, torchvision's module, a .keras file.

The libraries are imported before the clock starts, but for Keras, where TensorFlow's start is part of the
import. Targets: ONNX under 2 s, torch under 10 s, Keras under 20 s. Random weights; each in turns.

    python -m benchmarks.import_time
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch

from benchmarks import record
from edge_resnet.benchmark.timing import spread
from edge_resnet.frontends.sources import open_model, resolve_preprocess
from edge_resnet.models.torchvision_models import import_torchvision
from edge_resnet.verify.import_check import check_import, random_images

ROUNDS = 5
SETTINGS = {"size": 224, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
_KERAS = (
    "import keras, sys; keras.utils.set_random_seed(0);"
    "keras.applications.ResNet50(weights=None).save(sys.argv[1])"
)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        sources = {"onnx": _onnx(Path(folder)), "torch": "torchvision:resnet50"}
        if importlib.util.find_spec("tensorflow"):
            sources["keras"] = _keras(Path(folder))
        for source in sources.values():  # imports libraries, and fills the disk's cache
            _import(source)
        seconds: dict[str, list[float]] = {name: [] for name in sources}
        for _ in range(ROUNDS):
            for name, source in sources.items():
                started = time.perf_counter()
                _import(source)
                seconds[name].append(time.perf_counter() - started)
        checks = {name: _check(source) for name, source in sources.items()}
    record.save(
        "import_time",
        {
            "seconds": {
                name: {key: round(value, 3) for key, value in spread(values).items()}
                for name, values in seconds.items()
            },
            "largest difference, of the logits' range": checks,
        },
    )


def _import(source: str) -> None:
    opened = open_model(source, None, None, 0)
    opened.graph(resolve_preprocess(opened.preprocess_defaults, SETTINGS))


def _check(source: str) -> float:
    opened = open_model(source, None, None, 0)
    preprocess = resolve_preprocess(opened.preprocess_defaults, SETTINGS)
    graph = opened.graph(preprocess)
    return check_import(source, graph, opened.checker(preprocess), random_images(graph)).relative


def _onnx(folder: Path) -> str:
    torch.manual_seed(0)
    module = import_torchvision().models.resnet50().eval()
    path = folder / "resnet50.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, (torch.zeros(1, 3, 224, 224),), str(path), dynamo=False)
    return str(path)


def _keras(folder: Path) -> str:
    path = folder / "resnet50.keras"
    subprocess.run([sys.executable, "-c", _KERAS, str(path)], check=True, capture_output=True)
    return str(path)


if __name__ == "__main__":
    main()
