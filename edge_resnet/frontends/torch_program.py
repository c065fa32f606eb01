"""A .pt2 archive (torch.export.save), opened without trust.

torch.export.load unpickles whatever the archive holds: example inputs, constants, tensor subclasses. It also
evaluates expressions of sizes and compiles guards. So it is never given the user's file, but a copy of it in
which only plain tensors and the graph are left, after the graph was checked: aten operators alone, and sizes
that are numbers or names.
"""

from __future__ import annotations

import io
import json
import re
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edge_resnet.errors import InputError, first_line
from edge_resnet.files import check_regular_file

__all__ = ["TorchProgram", "load_program"]

_LARGEST = 2**33  # bytes, unpacked
_MOST_ENTRIES = 20_000
_LARGEST_JSON = 2**28
_OPERATOR = re.compile(r"torch\.ops\.aten\.\w+\.\w+|_operator\.getitem")
# Of a batch that was left open: Symbol('s31', positive=True, integer=True).
_SIZE = re.compile(r"-?\w{1,40}|Symbol\('\w{1,40}'(, (positive|integer|nonnegative)=True)*\)")
# What could hold an object, or a program of its own.
_REFUSED_KEYS = ("as_custom_obj", "as_operator", "as_graph", "as_opaque", "as_string_to_argument")
_TENSORS = re.compile(r"[^/]+/data/(weights/weight_\d+|constants/tensor_\d+)")
_CONFIG = re.compile(r"[^/]+/data/(weights|constants)/model_(weights|constants)_config\.json")
_PLAIN = re.compile(r"[^/]+/(archive_format|archive_version|byteorder|\.data/(version|serialization_id))")
_MODEL = re.compile(r"[^/]+/models/model\.json")
_EXAMPLES = re.compile(r"[^/]+/data/sample_inputs/model\.pt")


@dataclass(frozen=True, eq=False)
class TorchProgram:
    """The program, as a module too, and the shape [N, 3, H, W] that it was exported for."""

    program: torch.export.ExportedProgram
    module: nn.Module
    input_shape: tuple[int, ...]

    def classifier(self, output: str | None) -> nn.Module:
        """An ordinary module for any number of images; `output` is the name or number of one of several."""
        names = [str(name) for name in self.program.graph_signature.user_outputs]
        number = names.index(output) if output in names else int(output) if output and output.isdigit() else 0
        return _Classifier(self.module, self.input_shape[0], number)


class _Classifier(nn.Module):
    """The exported module refuses eval(), and one of a fixed batch takes that many images alone."""

    def __init__(self, program: nn.Module, batch: int, output: int) -> None:
        super().__init__()
        self._call, self._batch, self._output = program.forward, batch, output  # no submodule, so no eval()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        images, count = images.contiguous(), len(images)
        missing = -count % self._batch
        images = torch.cat([images, images[:1].expand(missing, *images.shape[1:])]) if missing else images
        answers = []
        for start in range(0, len(images), self._batch):
            answer = self._call(images[start : start + self._batch])
            answers.append(answer[self._output] if isinstance(answer, list | tuple) else answer)
        return torch.cat(answers)[:count]


def load_program(path: Path) -> TorchProgram:
    """Load the archive. Raises InputError: damaged, of an older format, with objects or code in it."""
    check_regular_file(path, "model file")
    try:
        with zipfile.ZipFile(path) as archive, tempfile.TemporaryDirectory() as folder:
            clean = Path(folder) / "clean.pt2"
            shape = _write_clean(path, archive, clean)
            program = torch.export.load(clean)
            module = program.module(check_guards=False)
    except InputError:
        raise
    except Exception as error:  # a damaged archive surfaces as any type
        reason = first_line(error)[:200]
        raise InputError(
            f"{path}: not a readable .pt2 archive of torch.export.save: {type(error).__name__}: {reason}"
        ) from error
    return TorchProgram(program, module, shape)


def _write_clean(path: Path, archive: zipfile.ZipFile, clean: Path) -> tuple[int, ...]:
    """The archive without pickles and guards. Returns the shape of the program's image."""
    entries = archive.infolist()
    if len(entries) > _MOST_ENTRIES or sum(entry.file_size for entry in entries) > _LARGEST:
        raise InputError(f"{path}: the archive unpacks to more than a model can be")
    models = [entry for entry in entries if _MODEL.fullmatch(entry.filename)]
    if len(models) != 1:
        raise InputError(
            f"{path}: no program of torch.export.save in it (of torch 2.8 or newer); save it again: "
            "torch.export.save(torch.export.export(model.eval(), (example,)), 'model.pt2')"
        )
    document = _json(path, archive, models[0])
    document["guards_code"] = []
    shape = _checked_program(path, document)
    with zipfile.ZipFile(clean, "w", zipfile.ZIP_STORED) as copy:
        for entry in entries:
            name = entry.filename
            if entry is models[0]:
                content = json.dumps(document).encode()
            elif _CONFIG.fullmatch(name):
                content = json.dumps(_checked_config(path, _json(path, archive, entry))).encode()
            elif _EXAMPLES.fullmatch(name):
                content = _example(shape)
            elif _TENSORS.fullmatch(name) or _PLAIN.fullmatch(name):
                content = archive.read(entry)
            else:
                raise InputError(
                    f"{path}: holds {name!r}, which is no tensor; only programs of torch.export.save"
                )
            copy.writestr(zipfile.ZipInfo(name), content)
    return shape


def _json(path: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> dict[str, Any]:
    if entry.file_size > _LARGEST_JSON:
        raise InputError(f"{path}: {entry.filename} is {entry.file_size:,} bytes")
    document = json.loads(archive.read(entry))
    if not isinstance(document, dict):
        raise InputError(f"{path}: {entry.filename} is not what torch.export.save writes")
    return document


def _checked_config(path: Path, config: dict[str, Any]) -> dict[str, Any]:
    for name, entry in config["config"].items():
        if entry["use_pickle"]:
            raise InputError(
                f"{path}: {name!r} is a Python object, not a tensor; it is not loaded (it could run code)"
            )
    return config


def _checked_program(path: Path, document: dict[str, Any]) -> tuple[int, ...]:
    """Raises InputError for what is not plain arithmetic on tensors. Returns the image's shape."""
    for key, value in _walk(document, 0):
        if key == "target" and isinstance(value, str) and "." in value and not _OPERATOR.fullmatch(value):
            raise InputError(f"{path}: operator {value} is not supported")
        if key == "expr_str" and not (isinstance(value, str) and _SIZE.fullmatch(value)):
            raise InputError(
                f"{path}: a size that is computed ({str(value)[:60]!r}); export with fixed sizes"
            )
        if key in _REFUSED_KEYS:
            raise InputError(f"{path}: holds an object or a program inside the program ({key})")
    module = document["graph_module"]
    for node in module["graph"]["nodes"]:
        if not _OPERATOR.fullmatch(str(node["target"])):
            raise InputError(f"{path}: operator {str(node['target'])[:80]} is not supported")
    inputs = [
        spec["user_input"]["arg"] for spec in module["signature"]["input_specs"] if "user_input" in spec
    ]
    if len(inputs) != 1 or "as_tensor" not in inputs[0]:
        raise InputError(f"{path}: an image classifier has one input, this program has {len(inputs)}")
    sizes = module["graph"]["tensor_values"][inputs[0]["as_tensor"]["name"]]["sizes"]
    shape = tuple(int(size["as_int"]) if "as_int" in size else 1 for size in sizes)
    if len(shape) != 4 or not all(0 < size < 2**14 for size in shape):
        raise InputError(f"{path}: the input is {list(shape)}, not an image [N, 3, H, W]")
    return shape


def _walk(value: Any, depth: int) -> Iterator[tuple[str, Any]]:
    """All keys and values of a JSON document."""
    if depth > 64:
        raise ValueError("nested too deeply")
    if isinstance(value, dict):
        for key, item in value.items():
            yield key, item
            yield from _walk(item, depth + 1)
    elif isinstance(value, list):
        for item in value:
            yield from _walk(item, depth + 1)


def _example(shape: tuple[int, ...]) -> bytes:
    buffer = io.BytesIO()
    torch.save(((torch.zeros(shape),), {}), buffer)
    return buffer.getvalue()
