"""What a run leaves behind, and how it is read again: DIR/graph/ holds all that `verify` needs.

graph/quantized.json, .safetensors     the graph in integers
graph/float.json, .safetensors         the graph that float artifacts were written from
graph/evaluation.json                  data, preprocessing, seed and number of images
graph/probe.safetensors                a few images and the reference executor's int8 logits on them
graph/baseline.safetensors             for each image, whether the float baseline's first class was right
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from edge_resnet.errors import GraphError, InputError
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.storage import graph_from_files, graph_to_files

__all__ = [
    "EvaluationRecord",
    "Probe",
    "read_baseline",
    "read_graphs",
    "read_probe",
    "read_record",
    "write_graph_directory",
]


@dataclass(frozen=True)
class EvaluationRecord:
    """How the artifacts were evaluated, so that it can be done again."""

    data: str
    fingerprint: str
    preprocess: dict[str, Any]
    seed: int
    images: int
    parity_images: int
    emulated_images: int
    batch: int
    skip_corrupt: bool


@dataclass(frozen=True, eq=False)
class Probe:
    """Images uint8 [n, H, W, 3] and the logits [n, classes] that the graph means: int8, or float32 where its
    last layer was kept in float.
    """

    pixels: NDArray[np.uint8]
    logits: NDArray[Any]


def write_graph_directory(
    directory: Path,
    quantized: Graph,
    floating: Graph,
    record: EvaluationRecord,
    probe: Probe,
    baseline: NDArray[np.bool_],
) -> None:
    """Write all of graph/. `directory` is new; the caller moves it into place.

    `baseline` [images]: what the float baseline answered rightly, in the order of evaluation.
    """
    directory.mkdir(parents=True)
    files = graph_to_files(quantized, "quantized") | graph_to_files(floating, "float")
    files["evaluation.json"] = (json.dumps(asdict(record), indent=1) + "\n").encode()
    files["probe.safetensors"] = save(
        {"pixels": np.ascontiguousarray(probe.pixels), "logits": np.ascontiguousarray(probe.logits)}
    )
    files["baseline.safetensors"] = save({"top1_correct": baseline})
    for name, content in files.items():
        (directory / name).write_bytes(content)


def read_graphs(run: Path) -> tuple[Graph, Graph]:
    """The quantized and the float graph. Raises InputError when `run` is not a run's directory."""
    directory = _graph_directory(run)
    try:
        return graph_from_files(directory, "quantized"), graph_from_files(directory, "float")
    except GraphError as error:
        raise InputError(str(error)) from error


def read_record(run: Path) -> EvaluationRecord:
    path = _graph_directory(run) / "evaluation.json"
    try:
        return EvaluationRecord(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path}: cannot read it: {error}") from error


def read_probe(run: Path) -> Probe:
    path = _graph_directory(run) / "probe.safetensors"
    try:
        arrays = load(path.read_bytes())
        return Probe(arrays["pixels"], arrays["logits"])
    except (OSError, KeyError, SafetensorError) as error:
        raise InputError(f"{path}: cannot read it: {error}") from error


def read_baseline(run: Path) -> NDArray[np.bool_] | None:
    """What the float baseline answered rightly; None where an older version wrote the run."""
    path = _graph_directory(run) / "baseline.safetensors"
    if not path.exists():
        return None
    try:
        return load(path.read_bytes())["top1_correct"].astype(np.bool_)
    except (OSError, KeyError, SafetensorError) as error:
        raise InputError(f"{path}: cannot read it: {error}") from error


def _graph_directory(run: Path) -> Path:
    directory = run / "graph"
    if not directory.is_dir():
        raise InputError(
            f"{run}: not the output of a run (it has no graph/ folder); give the --out of `compress`"
        )
    return directory
