"""Is a Keras file safe to load? Nothing of it is run, and TensorFlow is not needed to tell.

Whatever the bytes are, the answer is silence or an InputError that says what, where and what to do.
"""

from __future__ import annotations

import json
import stat
import tempfile
import zipfile
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from edge_resnet.errors import EdgeResnetError, InputError
from edge_resnet.files import check_regular_file
from edge_resnet.frontends.keras_hdf5 import check_hdf5
from edge_resnet.frontends.keras_names import ACTIVATIONS, CLASSES, MODULES, OPERATIONS, RUNS_CODE
from edge_resnet.frontends.keras_saved_model import check_saved_model

__all__ = ["check_keras_archive"]

_LARGEST = 2**33  # bytes unpacked; a ResNet-152 has a quarter of a GB
_MOST_ENTRIES = 1000
_STEEPEST = 200  # unpacked : packed; weights hardly shrink, config.json about twenty times
_LARGEST_CONFIG = 2**26
_SAVE_AGAIN = "save it again with model.save('model.keras')"


def check_keras_archive(path: Path) -> None:
    """Raises InputError unless `path` is a .keras or .h5 file or a SavedModel folder that only computes."""
    try:
        folder = path.is_dir()
    except OSError as error:  # a name that is too long, a folder that may not be entered
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    if folder:
        check_saved_model(path)
        return
    suffix = path.suffix.lower()
    if suffix not in (".keras", ".h5", ".hdf5"):
        raise InputError(f"{path}: a Keras model is a .keras or .h5 file, or a SavedModel folder")
    check_regular_file(path, "Keras model")
    if suffix == ".keras":
        _check_zip(path)
        return
    config = check_hdf5(path, str(path), whole_model=True)
    if config is None:
        raise InputError(
            f"{path}: holds weights only, without the model; save both: model.save('model.keras')"
        )
    _check_config(str(path), _parsed(str(path), config))


def _check_zip(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            _check_entries(path, entries)
            names = [entry.filename for entry in entries]
            for wanted in ("config.json", "model.weights.h5"):
                if names.count(wanted) != 1:
                    raise InputError(f"{path}: no Keras model: {wanted} is missing or doubled; {_SAVE_AGAIN}")
            with archive.open("config.json") as file:
                config = file.read(_LARGEST_CONFIG + 1)
            if len(config) > _LARGEST_CONFIG:
                raise InputError(f"{path}: config.json is larger than {_LARGEST_CONFIG / 1e6:.0f} MB")
            _check_config(f"{path}: config.json", _parsed(f"{path}: config.json", config))
            _check_weights(path, archive)
    except EdgeResnetError:
        raise
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or _first(error)}") from error
    except Exception as error:  # zipfile raises BadZipFile, struct.error, zlib.error, EOFError and more
        raise InputError(
            f"{path}: not a .keras file, or a damaged one: {_first(error)}; {_SAVE_AGAIN}"
        ) from error


def _check_entries(path: Path, entries: list[zipfile.ZipInfo]) -> None:
    """Names, kinds and declared sizes; zipfile itself stops reading an entry at its declared size."""
    if len(entries) > _MOST_ENTRIES:
        raise InputError(f"{path}: {len(entries)} entries; a .keras file has three")
    total = 0
    for entry in entries:
        name = entry.filename
        parts = PureWindowsPath(name)
        if (
            PurePosixPath(name).is_absolute()
            or parts.drive
            or parts.root
            or ".." in parts.parts
            or "\0" in name
        ):
            raise InputError(f"{path}: entry {name!r} points outside the archive")
        if stat.S_ISLNK(entry.external_attr >> 16):
            raise InputError(f"{path}: entry {name!r} is a symbolic link")
        if entry.flag_bits & 1:
            raise InputError(f"{path}: entry {name!r} is encrypted; {_SAVE_AGAIN}")
        if entry.file_size > 2**20 and entry.file_size > _STEEPEST * max(1, entry.compress_size):
            raise InputError(f"{path}: entry {name!r} would unpack to {entry.file_size:,} bytes (a zip bomb)")
        total += entry.file_size
    if total > _LARGEST:
        raise InputError(f"{path}: would unpack to {total / 1e9:.1f} GB, more than {_LARGEST / 1e9:.1f}")


def _check_weights(path: Path, archive: zipfile.ZipFile) -> None:
    """model.weights.h5 may not point at other files; HDF5's library reads from a plain file."""
    with tempfile.NamedTemporaryFile(prefix="edge-resnet-", suffix=".h5") as copy:
        with archive.open("model.weights.h5") as source:
            while block := source.read(2**22):
                copy.write(block)
        copy.flush()
        check_hdf5(Path(copy.name), f"{path}: model.weights.h5", whole_model=False)


def _parsed(where: str, text: str | bytes) -> Any:
    try:
        return json.loads(text)
    except RecursionError:
        raise InputError(f"{where} is nested too deeply") from None
    except ValueError as error:
        raise InputError(f"{where} is not valid JSON ({_first(error)}); {_SAVE_AGAIN}") from error


def _check_config(where: str, config: Any) -> None:
    """Walks all of it: an object may hide in any list or dictionary."""
    if not isinstance(config, dict) or not isinstance(config.get("config"), dict | list):
        raise InputError(f"{where}: describes no model; {_SAVE_AGAIN}")
    if config.get("class_name") not in ("Functional", "Sequential", "Model"):
        raise InputError(
            f"{where}: a {config.get('class_name')!r}, whose code is not in the file; export it instead: "
            "model.export('FOLDER'), and give the folder"
        )
    # The optimizer and the losses are not loaded (compile=False), so they may be anybody's.
    stack: list[tuple[Any, str]] = [({k: v for k, v in config.items() if k != "compile_config"}, "the model")]
    while stack:
        value, owner = stack.pop()
        if isinstance(value, dict):
            if "class_name" in value:
                owner = _owner(value, owner)
                _check_object(where, value, owner)
            stack.extend((part, owner) for part in value.values())
        elif isinstance(value, list):
            stack.extend((part, owner) for part in value)


def _owner(value: dict[Any, Any], owner: str) -> str:
    """How to call an object: a layer by its name, its initializers and so on by the layer's."""
    inner = value.get("config")
    name = value.get("name") or (inner.get("name") if isinstance(inner, dict) else None)
    return f"layer {str(name)[:80]!r}" if name and value["class_name"] != "DTypePolicy" else owner


def _check_object(where: str, value: dict[Any, Any], owner: str) -> None:
    kind, module, registered = value["class_name"], value.get("module"), value.get("registered_name")
    if (
        not isinstance(kind, str)
        or not isinstance(module, str | None)
        or not isinstance(registered, str | None)
    ):
        raise InputError(f"{where}: {owner}: an object without a proper class_name or module")
    if kind in RUNS_CODE:
        raise InputError(
            f"{where}: {kind} {owner} {RUNS_CODE[kind]}, which is not done here; "
            "replace it by a standard layer"
        )
    if kind == "function":
        if value.get("config") not in ACTIVATIONS:
            raise InputError(
                f"{where}: {owner} uses the function {value.get('config')!r:.80}, which Keras lacks"
            )
        return
    operation = bool(module and ".ops" in f".{module}" and kind in OPERATIONS)
    if module is None and kind in OPERATIONS - CLASSES:
        raise InputError(
            f"{where}: {owner} is an operation on tensors ({kind}), which Keras cannot load from .h5; "
            "save the model as .keras"
        )
    if not operation and kind not in CLASSES | ACTIVATIONS:
        raise InputError(
            f"{where}: {owner} is of class {kind[:80]!r}, which is not one of Keras' layers for images; "
            "replace it by standard layers, or export the model: model.export('FOLDER'), and give the folder"
        )
    if module is not None and not MODULES.fullmatch(module):
        raise InputError(
            f"{where}: {owner} is a {kind} of module {module[:80]!r}, not of Keras; "
            "its code would have to be run"
        )
    if registered is not None and registered.rpartition(">")[2] != kind:
        raise InputError(f"{where}: {owner} is a {kind} registered as {registered[:80]!r}; not Keras' own")


def _first(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[
        :200
    ]
