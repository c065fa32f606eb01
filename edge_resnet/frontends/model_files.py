"""Models that come as one file (or folder) of their own: .onnx, .tflite, .keras, .h5, SavedModel, .pt2."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_resnet.data.preprocess import Preprocess
from edge_resnet.files import sha256_of
from edge_resnet.graph.graph import Graph
from edge_resnet.runners.base import Runner
from edge_resnet.targets import TARGETS

if TYPE_CHECKING:
    from edge_resnet.frontends.sources import SourceModel

__all__ = ["FORMATS", "FileModel", "is_model_file", "open_model_file"]


@dataclass(frozen=True, eq=False)
class FileModel:
    """A model that a file holds, weights included; see SourceModel."""

    name: str
    source: str
    weights_sha256: str | None
    preprocess_defaults: Mapping[str, Any]
    notes: tuple[str, ...]
    read: Callable[[Preprocess], Graph]
    run: Callable[[Preprocess], Runner]
    params: int | None = None
    check: Callable[[Preprocess], Runner] | None = None

    def graph(self, preprocess: Preprocess) -> Graph:
        return self.read(preprocess)

    def runner(self, preprocess: Preprocess) -> Runner:
        return self.run(preprocess)

    def checker(self, preprocess: Preprocess) -> Runner:
        return (self.check or self.run)(preprocess)


def is_model_file(model: str) -> bool:
    """Whether MODEL names a file of a known kind, by its suffix, or a SavedModel folder."""
    from edge_resnet.frontends.keras import is_keras_model

    path = Path(model)
    return path.suffix.lower() in FORMATS or is_keras_model(path)


def open_model_file(path: Path, output: str | None = None, *, keep_integers: bool = True) -> SourceModel:
    """Open the file. Raises InputError where it is damaged, of another kind, or has several ends.

    `keep_integers=False` reads a model that is quantized already as the floats that it stands for.
    """
    opener = FORMATS.get(path.suffix.lower(), _keras)
    return opener(path, output, keep_integers)


def _name_of(path: Path) -> str:
    """The file's name without what a run of ours put behind it (resnet20-tflite-int8 is resnet20)."""
    stem = next((path.stem.removesuffix(f"-{t}") for t in TARGETS if path.stem.endswith(f"-{t}")), path.stem)
    return re.sub(r"[^\w.-]", "_", stem) or "model"


def _onnx(path: Path, output: str | None, keep_integers: bool) -> FileModel:
    from edge_resnet.frontends.onnx import open_onnx
    from edge_resnet.runners.source_onnx import SourceOnnxRunner

    source, name = open_onnx(path, output), _name_of(path)
    declared: dict[str, Any] = {} if source.size is None else {"size": source.size}
    if source.raw_bytes:  # it takes the image's bytes as they are, so it normalizes them itself
        declared |= {"mean": (0.0, 0.0, 0.0), "std": (1 / 255, 1 / 255, 1 / 255)}
    return FileModel(
        name=name,
        source=str(path),
        weights_sha256=sha256_of(path),
        preprocess_defaults=declared,
        notes=(),
        read=lambda p: source.graph(name, p.size, p.mean, p.std, keep_integers=keep_integers),
        run=lambda p: SourceOnnxRunner(source, p),
    )


def _tflite(path: Path, output: str | None, keep_integers: bool) -> FileModel:
    from edge_resnet.frontends.tflite import open_tflite
    from edge_resnet.runners.source_tflite import SourceTfliteRunner

    source, name = open_tflite(path, output), _name_of(path)
    declared = source.declared
    if source.takes_bytes:
        declared |= {"mean": (0.0, 0.0, 0.0), "std": (1 / 255, 1 / 255, 1 / 255)}
    return FileModel(
        name=name,
        source=str(path),
        weights_sha256=sha256_of(path),
        preprocess_defaults=declared,
        notes=(),
        read=lambda p: source.graph(name, p.size, p.mean, p.std, keep_integers=keep_integers),
        run=lambda p: SourceTfliteRunner(source, p),
    )


def _keras(path: Path, output: str | None, keep_integers: bool) -> FileModel:
    from edge_resnet.frontends.keras import declared_size, read_keras
    from edge_resnet.frontends.keras_archive import check_keras_archive
    from edge_resnet.frontends.sources import import_graph
    from edge_resnet.runners.source_keras import GraphRunner, SourceKerasRunner

    check_keras_archive(path)  # before anything else is said of it
    name, size = _name_of(path), declared_size(path)
    read: dict[Preprocess, Graph] = {}  # TensorFlow takes seconds to start: once is enough

    def graph(p: Preprocess) -> Graph:
        if p not in read:
            read[p] = read_keras(path, name, p.size, p.mean, p.std, output).graph
        return read[p]

    model = FileModel(
        name=name,
        source=str(path),
        weights_sha256=sha256_of(path),
        preprocess_defaults={} if size is None else {"size": size},
        notes=(),
        read=graph,
        run=lambda p: GraphRunner(lambda: import_graph(model, p)),
        check=lambda p: SourceKerasRunner(path, p, output),
    )
    return model


def _pt2(path: Path, output: str | None, keep_integers: bool) -> FileModel:
    from edge_resnet.frontends.torch_export import graph_from_program
    from edge_resnet.frontends.torch_program import load_program
    from edge_resnet.runners.torch_module import TorchModuleRunner

    program, name = load_program(path), _name_of(path)
    return FileModel(
        name=name,
        source=str(path),
        weights_sha256=sha256_of(path),
        preprocess_defaults={"size": program.input_shape[2:]},
        notes=(),
        read=lambda p: graph_from_program(program.program, name, p.mean, p.std, output=output),
        run=lambda p: TorchModuleRunner(program.classifier(output), p),
    )


FORMATS: dict[str, Callable[[Path, str | None, bool], FileModel]] = {
    ".onnx": _onnx,
    ".tflite": _tflite,
    ".pt2": _pt2,
    ".keras": _keras,
    ".h5": _keras,
    ".hdf5": _keras,
}
