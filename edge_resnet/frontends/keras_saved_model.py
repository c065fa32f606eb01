"""Which operators does a SavedModel folder hold? Read from saved_model.pb itself, without TensorFlow.

A TensorFlow graph can read and write files and call Python, so each operator must be on a list. Those that
save and restore variables may only stand in the two functions that TensorFlow writes for that, and these may
be called from nowhere else. The main graph of a TensorFlow 2 model is not run when it is loaded.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from edge_resnet.errors import InputError
from edge_resnet.files import check_regular_file
from edge_resnet.frontends.keras_names import PURE_OPERATORS, SAVING_OPERATORS

__all__ = ["check_saved_model"]

_LARGEST = 2**31 - 1  # a protobuf ends here
_SAVING_FUNCTIONS = ("__inference__traced_save_", "__inference__traced_restore_")
# Field numbers of saved_model.proto, meta_graph.proto, graph.proto, function.proto, node_def.proto,
# attr_value.proto and saved_object_graph.proto.
_META_GRAPHS, _GRAPH_DEF, _OBJECT_GRAPH = 2, 2, 7
_NODES, _LIBRARY, _FUNCTIONS = 1, 2, 1
_SIGNATURE, _BODY, _NODE_NAME, _NODE_OP, _NODE_ATTRIBUTES = 1, 3, 1, 2, 5
_OBJECTS, _RESOURCE, _ASSET = 1, 10, 5
_EXPORT = "export the model again with model.export('FOLDER')"


def check_saved_model(path: Path) -> None:
    """Raises InputError for a folder that is no SavedModel, or does more than compute."""
    file = path / "saved_model.pb"
    try:
        _check_folder(path)
        content = memoryview(file.read_bytes())
        graphs = list(_messages(content, _META_GRAPHS))
        if not graphs:
            raise InputError(f"{file}: not a SavedModel, or an empty one; {_EXPORT}")
        for graph in graphs:
            _check_meta_graph(path, graph)
    except _DamagedError as error:
        raise InputError(f"{file}: damaged: {error}; {_EXPORT}") from None
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror or error}") from error


def _check_folder(path: Path) -> None:
    """The files are there, and are files: TensorFlow would wait for ever on a named pipe."""
    if not (path / "saved_model.pb").exists():
        if (path / "saved_model.pbtxt").exists():
            raise InputError(f"{path}: a SavedModel in text form; {_EXPORT}")
        raise InputError(f"{path}: a folder without saved_model.pb, no SavedModel")
    if check_regular_file(path / "saved_model.pb", "SavedModel") > _LARGEST:
        raise InputError(f"{path / 'saved_model.pb'}: larger than a protobuf can be (2 GB)")
    variables = path / "variables"
    check_regular_file(variables / "variables.index", "index of the SavedModel's variables")
    for part in variables.iterdir():
        if not part.is_file():
            raise InputError(f"{part}: a folder, a device or a pipe, not variables of a SavedModel")


def _check_meta_graph(path: Path, graph: memoryview) -> None:
    objects = list(_messages(graph, _OBJECT_GRAPH))
    if not objects:
        raise InputError(
            f"{path}: a SavedModel of TensorFlow 1, which runs its graph when it is loaded; {_EXPORT}"
        )
    for part in objects:
        for entry in _messages(part, _OBJECTS):
            kinds = {number for number, _ in _fields(entry)}
            if kinds & {_RESOURCE, _ASSET}:
                raise InputError(
                    f"{path}: holds a lookup table or another file, which an image classifier lacks"
                )
    for definition in _messages(graph, _GRAPH_DEF):
        for node in _messages(definition, _NODES):
            _check_node(path, node, "the main graph", saving=True)
        for library in _messages(definition, _LIBRARY):
            for function in _messages(library, _FUNCTIONS):
                _check_function(path, function)


def _check_function(path: Path, function: memoryview) -> None:
    names = [_text(name) for signature in _messages(function, _SIGNATURE) for name in _messages(signature, 1)]
    name = names[0] if names else ""
    saving = len(names) == 1 and name.startswith(_SAVING_FUNCTIONS)
    for node in _messages(function, _BODY):
        _check_node(path, node, f"function {name[:80]!r}", saving=saving)


def _check_node(path: Path, node: memoryview, where: str, *, saving: bool) -> None:
    name = next((_text(value) for value in _messages(node, _NODE_NAME)), "")
    for value in _messages(node, _NODE_OP):
        operator = _text(value)
        if operator not in PURE_OPERATORS and not (saving and operator in SAVING_OPERATORS):
            raise InputError(
                f"{path}: operator {operator[:80]} (node {name[:80]!r} in {where}) is not one that an image "
                "classifier needs, and it might reach outside of the model; it is not loaded"
            )
    # Functions are named in attributes. Only the main graph, which is not run, calls those that save.
    if where != "the main graph" and any(
        prefix.encode() in bytes(part)
        for part in _messages(node, _NODE_ATTRIBUTES)
        for prefix in _SAVING_FUNCTIONS
    ):
        raise InputError(f"{path}: node {name[:80]!r} in {where} calls the function that saves the model")


class _DamagedError(Exception):
    """Bytes that are no protobuf."""


def _messages(data: memoryview, wanted: int) -> Iterator[memoryview]:
    """Every occurrence of a length-delimited field."""
    for number, value in _fields(data):
        if number == wanted:
            if value is None:
                raise _DamagedError(f"field {number} is a number")
            yield value


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview | None]]:
    """Field numbers and contents of one message; None for a field that is a number."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, kind = key >> 3, key & 7
        value: memoryview | None = None
        if kind == 0:
            _, at = _varint(data, at)
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        elif kind == 2:
            length, at = _varint(data, at)
            value = data[at : at + length]
            at += length
        else:
            raise _DamagedError(f"wire type {kind}")
        if at > len(data) or not number:
            raise _DamagedError("it ends in the middle")
        yield number, value


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    result = shift = 0
    while at < len(data) and shift < 70:
        byte = data[at]
        result |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return result, at
        shift += 7
    raise _DamagedError("a number without an end")


def _text(value: memoryview) -> str:
    return bytes(value).decode("utf-8", "replace")
