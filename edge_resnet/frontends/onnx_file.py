"""An .onnx file, opened without trust: size, structure and external data are checked before use."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import onnx
from google.protobuf.message import DecodeError
from onnx import external_data_helper, inliner

from edge_resnet.errors import InputError
from edge_resnet.files import check_regular_file

__all__ = ["load_onnx"]

# A protobuf ends here; what is larger keeps its weights in external data.
_LARGEST = 2**31 - 1
# So much external data a ResNet never has; the largest known one has 2.6 GB of weights.
_LARGEST_EXTERNAL = 2**33


def load_onnx(path: Path) -> onnx.ModelProto:
    """The model, its external data loaded, its local functions inlined, and checked by the onnx package.

    Raises InputError: no ONNX file, damaged, larger than 2 GB, external data that is missing or outside the
    file's folder, nodes out of order (a cycle) or inputs that nothing writes.
    """
    size = check_regular_file(path, "model file")
    if size > _LARGEST:
        raise InputError(
            f"{path}: {size / 1e9:.1f} GB, more than a protobuf can hold (2 GB); save the weights as "
            'external data: onnx.save(model, "model.onnx", save_as_external_data=True)'
        )
    try:
        model = onnx.load_model_from_string(path.read_bytes())
    except (DecodeError, ValueError) as error:
        raise InputError(f"{path}: not a readable ONNX file: {_reason(error)}") from error
    if not model.graph.node:
        raise InputError(f"{path}: not an ONNX file, or one without any operator")
    _load_external(model, path)
    try:
        onnx.checker.check_model(model)
        if model.functions:
            model = inliner.inline_local_functions(model)
    except Exception as error:  # the checker, and what C++ raises through it
        raise InputError(f"{path}: not a valid ONNX model: {_reason(error)}") from error
    return model


def _load_external(model: onnx.ModelProto, path: Path) -> None:
    total = 0
    for tensor in _tensors(model.graph):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        source = _inside(path, location, tensor.name)
        total += _length(entries.get("length"), source)
        if total > _LARGEST_EXTERNAL:
            raise InputError(f"{path}: more than {_LARGEST_EXTERNAL / 1e9:.0f} GB of external data")
        try:
            external_data_helper.load_external_data_for_tensor(tensor, str(path.parent))
        except Exception as error:  # offsets and lengths that do not fit the file
            raise InputError(f"{path}: external data of {tensor.name!r}: {_reason(error)}") from error
        tensor.data_location = onnx.TensorProto.DEFAULT
        del tensor.external_data[:]


def _inside(path: Path, location: str, name: str) -> Path:
    """The data file, which must be a plain file in the model's own folder or below."""
    parts = PurePosixPath(location)
    windows = PureWindowsPath(location)
    outside = parts.is_absolute() or windows.is_absolute() or windows.drive or ".." in windows.parts
    source = path.parent / location
    if outside or not location or not source.resolve().is_relative_to(path.parent.resolve()):
        raise InputError(f"{path}: tensor {name!r} points outside the model's folder: {location!r}")
    check_regular_file(source, f"external data of {path.name}")
    return source


def _length(length: str | None, source: Path) -> int:
    size = source.stat().st_size
    return min(int(length), size) if length is not None and length.isdigit() else size


def _tensors(graph: onnx.GraphProto) -> Iterable[onnx.TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    useful: Any = lines[0] if lines else type(error).__name__
    return str(useful)[:300]
