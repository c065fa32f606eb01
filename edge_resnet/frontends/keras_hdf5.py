"""An HDF5 file that nobody vouches for: what does it hold, and does it point at other files?

HDF5's library has crashed on damaged files before, so it runs in a process of its own:
`python -m edge_resnet.frontends.keras_hdf5 FILE`, which prints one JSON object.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

from edge_resnet.errors import InputError, MissingToolError
from edge_resnet.frontends.keras_child import run_child

__all__ = ["check_hdf5", "main"]

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_TIME_LIMIT = 60.0
_MOST_OBJECTS = 100_000
_LARGEST = 2**33  # bytes of all tensors
_STEEPEST = 1000  # bytes of tensors : bytes of the file


def check_hdf5(path: Path, name: str, *, whole_model: bool) -> str | None:
    """The text of `model_config`, or None. Raises InputError, with `name` in front, for an unsafe file.

    `whole_model`: the file is a model of its own, not the weights inside of another file.
    """
    try:
        with path.open("rb") as file:
            start = file.read(len(_SIGNATURE))
    except OSError as error:
        raise InputError(f"{name}: cannot be read: {error.strerror or error}") from error
    if start != _SIGNATURE:
        again = "; save the model again with model.save('model.keras')"
        raise InputError(f"{name}: not an HDF5 file, or a damaged one{again}")
    if importlib.util.find_spec("h5py") is None:
        raise MissingToolError(f"{name}: reading Keras models needs h5py: pip install 'edge-resnet[keras]'")
    environment = {**os.environ, "HDF5_PLUGIN_PRELOAD": "::"}  # no filter is loaded from a folder
    text = run_child(
        "edge_resnet.frontends.keras_hdf5",
        [str(path.absolute())],
        name=f"{name}: damaged HDF5 file",
        timeout=_TIME_LIMIT,
        environment=environment,
    )
    try:
        answer = json.loads(text)
    except ValueError as error:
        raise InputError(f"{name}: the HDF5 file cannot be read") from error
    if "error" in answer:
        raise InputError(f"{name}: {answer['error']}")
    config = answer["model_config"]
    return str(config) if whole_model and config is not None else None


def main(path: Path) -> None:
    import h5py

    try:
        with h5py.File(path, "r") as file:
            _check_objects(h5py, file, path.stat().st_size)
            answer = {"model_config": _text(file.attrs.get("model_config"))}
    except InputError as error:
        answer = {"error": str(error)}
    except Exception as error:  # h5py raises OSError, KeyError, RuntimeError, ValueError and more
        reason = next(
            (line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__
        )
        answer = {"error": f"not a readable HDF5 file: {reason[:200]}"}
    sys.stdout.write(json.dumps(answer))


def _check_objects(h5py: Any, file: Any, size: int) -> None:
    """Every group and dataset once, though links may lead in circles."""
    seen: set[int] = set()
    total = 0
    stack: list[Any] = [file]
    while stack:
        group = stack.pop()
        for name in group:
            link = group.get(name, getlink=True)
            if isinstance(link, h5py.ExternalLink):
                raise InputError(f"{group.name}/{name} points into another file ({link.filename!r:.100})")
            if isinstance(link, h5py.SoftLink):
                raise InputError(f"{group.name}/{name} is a soft link, which Keras never writes")
            member = group[name]
            address = h5py.h5o.get_info(member.id).addr
            if address in seen:
                continue
            seen.add(address)
            if len(seen) > _MOST_OBJECTS:
                raise InputError(f"more than {_MOST_OBJECTS:,} groups and tensors")
            if isinstance(member, h5py.Group):
                stack.append(member)
            elif isinstance(member, h5py.Dataset):
                total += _bytes(member)
                if total > min(_LARGEST, _STEEPEST * max(size, 2**16)):
                    raise InputError(f"tensors of {total / 1e9:.1f} GB in a file of {size / 1e9:.3f} GB")


def _bytes(tensor: Any) -> int:
    if tensor.external:
        raise InputError(f"tensor {tensor.name} lies in another file ({tensor.external[0][0]!r:.100})")
    if tensor.is_virtual:
        raise InputError(f"tensor {tensor.name} is put together from other files")
    count = 1
    for number in tensor.shape or ():
        count *= int(number)
    return count * int(tensor.dtype.itemsize)


def _text(value: Any) -> str | None:
    if value is None:
        return None
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
