"""A Keras model (.keras, .h5, a SavedModel folder) -> Graph.

The file is checked before anything loads it (keras_archive.py). TensorFlow then runs in a process of its own
(keras_process.py), which may take long or die; this one never imports it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import tempfile
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_resnet.errors import GraphError, InputError, MissingToolError, UnsupportedOperatorError
from edge_resnet.frontends.keras_archive import check_keras_archive
from edge_resnet.frontends.keras_child import run_child
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.storage import graph_from_files

__all__ = ["KerasImport", "declared_size", "is_keras_model", "keras_outputs", "read_keras"]

_TIME_LIMIT = 600.0  # seconds; a ResNet-152 needs less than one
_SUFFIXES = (".keras", ".h5", ".hdf5")
_LARGEST_CONFIG = 2**28
_INPUT_SHAPE = re.compile(rb'"batch_(?:input_)?shape": \[null, (\d{1,5}), (\d{1,5}), 3\]')


@dataclass(frozen=True, eq=False)
class KerasImport:
    """The float graph, and what the source itself answers to some images, to compare it with.

    `check_inputs` are uint8 [N, H, W, C]; `check_outputs` float32, a softmax at the end left out, in the
    source's own layout.
    """

    graph: Graph
    notes: tuple[str, ...]
    input_size: tuple[int, int]
    check_inputs: NDArray[np.uint8]
    check_outputs: NDArray[np.float32]


def is_keras_model(path: Path) -> bool:
    """Whether the path looks like something that read_keras reads."""
    if path.suffix.lower() in _SUFFIXES:
        return True
    try:
        return any((path / f"saved_model.{kind}").exists() for kind in ("pb", "pbtxt"))
    except OSError:
        return False


def declared_size(path: Path) -> tuple[int, int] | None:
    """Rows and columns of the first input, as the configuration says; None where it does not say it plainly.

    Only a hint that spares the user a setting: the model itself is asked when it is loaded.
    """
    try:
        if path.suffix.lower() == ".keras":
            with zipfile.ZipFile(path) as archive, archive.open("config.json") as file:
                text = file.read(_LARGEST_CONFIG)
        elif path.is_file():
            with path.open("rb") as file:
                text = file.read(_LARGEST_CONFIG)
        else:
            return None
    except (OSError, KeyError, ValueError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error):
        return None
    found = _INPUT_SHAPE.search(text)
    return None if found is None else (int(found[1]), int(found[2]))


def read_keras(
    path: Path,
    name: str,
    input_size: tuple[int, int] | None,
    mean: Sequence[float],
    std: Sequence[float],
    output: str | None = None,
) -> KerasImport:
    """The model as a graph that takes raw RGB images, with (RGB / 255 - mean) / std in front.

    `input_size` is needed where the model takes any, `output` where it has several. Raises InputError for a
    file that is damaged, unsafe or no image classifier, UnsupportedOperatorError for an operator that the
    graph lacks, MissingToolError where TensorFlow is not installed.
    """
    request = {"name": name, "size": input_size, "mean": list(mean), "std": list(std), "output": output}
    with tempfile.TemporaryDirectory(prefix="edge-resnet-") as temporary:
        folder = Path(temporary)
        result = _ask(path, folder, {**request, "pixels": False})
        try:
            graph = graph_from_files(folder, "graph")
        except GraphError as error:
            raise InputError(f"{path}: {error}") from error
        rows, columns = result["input_size"]
        return KerasImport(
            graph=graph,
            notes=tuple(result["notes"]),
            input_size=(rows, columns),
            check_inputs=np.load(folder / "pixels.npy"),
            check_outputs=np.load(folder / "outputs.npy"),
        )


def keras_outputs(
    path: Path,
    pixels: NDArray[np.uint8],
    mean: Sequence[float],
    std: Sequence[float],
    output: str | None = None,
) -> NDArray[np.float32]:
    """What the model itself answers to uint8 images [N, H, W, C], a softmax at its end left out."""
    size = (pixels.shape[1], pixels.shape[2])
    request = {"name": path.stem, "size": size, "mean": list(mean), "std": list(std), "output": output}
    with tempfile.TemporaryDirectory(prefix="edge-resnet-") as temporary:
        folder = Path(temporary)
        np.save(folder / "pixels.npy", pixels)
        _ask(path, folder, {**request, "pixels": True})
        answers: NDArray[np.float32] = np.load(folder / "outputs.npy")
        return answers


def _ask(path: Path, folder: Path, request: dict[str, Any]) -> dict[str, Any]:
    """One run of keras_process; its result.json. The file is checked each time: it may have changed."""
    check_keras_archive(path)
    if importlib.util.find_spec("tensorflow") is None or importlib.util.find_spec("keras") is None:
        raise MissingToolError(
            f"{path}: reading Keras models needs TensorFlow: pip install 'edge-resnet[keras]'"
        )
    document = json.dumps({**request, "path": str(path.absolute())})
    (folder / "request.json").write_text(document, encoding="utf-8")
    run_child(
        "edge_resnet.frontends.keras_process",
        [str(folder)],
        name=f"{path}: loading it with Keras",
        timeout=_TIME_LIMIT,
        environment=_environment(folder),
    )
    try:
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: the Keras process ended without a result") from error
    if "error" in result:
        kind = UnsupportedOperatorError if result["kind"] == "UnsupportedOperatorError" else InputError
        raise kind(f"{path}: {result['error']}")
    answer: dict[str, Any] = result
    return answer


def _environment(folder: Path) -> dict[str, str]:
    """Nothing on the terminal, no GPU, and none of the user's own Keras settings (keras.json)."""
    return {
        **os.environ,
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "CUDA_VISIBLE_DEVICES": "-1",
        "KERAS_BACKEND": "tensorflow",
        "KERAS_HOME": str(folder),
        "TF_USE_LEGACY_KERAS": "0",
    }
