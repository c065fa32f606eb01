"""Damaged and hostile model files: each imports, or is refused with an error for the user; nothing else.

Small real files are mutated (bytes, lengths, single fields of protobuf, flatbuffer and JSON) by fixed seeds.
Each batch runs in a child process with a memory limit; a file that takes longer than its alarm kills the
child. The child says which file it is at, so that a crash has a name.
"""

from __future__ import annotations

import io
import json
import resource
import signal
import subprocess
import sys
import traceback
import warnings
import zipfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
MEMORY = 8 * 2**30
SECONDS_A_FILE = 20
BATCH = 125

# Kind of file -> how many mutants. The Keras formats have theirs in test_keras_archive.py.
COUNTS = {
    "onnx-float": 600,
    "onnx-int8": 500,
    "onnx-qoperator": 300,
    "onnx-shapes": 500,
    "tflite-float": 800,
    "tflite-int8": 1000,
    "pt2": 250,
}
BATCHES = [(kind, start) for kind, count in COUNTS.items() for start in range(0, count, BATCH)]


@pytest.mark.parametrize(("kind", "start"), BATCHES)
def test_damaged_files_import_or_are_refused(tmp_path: Path, kind: str, start: int) -> None:
    stop = min(start + BATCH, COUNTS[kind])
    problems, position = [], start
    while position < stop:
        command = [
            sys.executable,
            "-m",
            "tests.test_fuzz_models",
            kind,
            str(position),
            str(stop),
            str(tmp_path),
        ]
        done = subprocess.run(
            command,
            cwd=ROOT,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=600,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY)),
        )
        lines = done.stdout.splitlines()
        problems += [line for line in lines if line.startswith("PROBLEM")]
        if done.returncode == 0:
            break
        at = [int(line.split()[1]) for line in lines if line.startswith("AT ")]
        assert at, done.stderr[-2000:]
        what = "hangs" if done.returncode == -signal.SIGALRM else f"ends with {done.returncode}"
        problems.append(f"PROBLEM {kind} {at[-1]}: the process {what}: {done.stderr[-300:]}")
        position = at[-1] + 1
    assert not problems, "\n".join(problems)


# In the child.


def _child(kind: str, start: int, stop: int, folder: Path) -> None:
    import torch

    from edge_resnet.errors import EdgeResnetError

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    path = folder / f"mutant{Path(_SUFFIX[kind.partition('-')[0]])}"
    for number in range(start, stop):
        print("AT", number, flush=True)
        path.write_bytes(mutant(kind, number))
        signal.alarm(SECONDS_A_FILE)
        try:
            _import(path)
        except EdgeResnetError as error:
            if len(str(error)) > 2000:
                print(f"PROBLEM {kind} {number}: a message of {len(str(error))} characters", flush=True)
        except BaseException as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            ours = [e for e in traceback.extract_tb(error.__traceback__) if "edge_resnet" in e.filename]
            where = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else place.filename
            text = " ".join(str(error).split())[:150]
            print(f"PROBLEM {kind} {number}: {type(error).__name__}: {text} at {where}", flush=True)
        finally:
            signal.alarm(0)


_SUFFIX = {"onnx": ".onnx", "tflite": ".tflite", "pt2": ".pt2"}


def _import(path: Path) -> None:
    """As a run imports: open, say the preprocessing, read the graph, simplify it."""
    from edge_resnet.frontends.sources import open_model, resolve_preprocess
    from edge_resnet.graph.passes import simplify

    source = open_model(str(path), None, None, 0)
    defaults = {"size": (16, 16), "mean": (0.5,) * 3, "std": (0.25,) * 3, **source.preprocess_defaults}
    simplify(source.graph(resolve_preprocess(defaults, {})))


def mutant(kind: str, number: int) -> bytes:
    """The same bytes for the same number, in any process."""
    rng = np.random.default_rng([*kind.encode(), number])
    seed = _seed_file(kind, number % 3)
    if rng.random() < 0.5:
        return _FIELDS[kind.partition("-")[0]](seed, rng)
    return _damaged(seed, rng)


def _damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """Bytes changed, cut off, put in, taken out, doubled."""
    changed = bytearray(data)
    for _ in range(int(rng.integers(1, 6))):
        at, length = int(rng.integers(0, max(1, len(changed)))), int(rng.integers(1, 9))
        how = rng.integers(0, 7)
        if how == 0 and rng.random() < 0.3:
            del changed[at:]
        elif how == 1:
            changed[at:at] = rng.bytes(length)
        elif how == 2:
            del changed[at : at + length]
        elif how == 3:
            changed[at : at + 4] = int(rng.choice([0, 2**31 - 1, 2**31, 2**32 - 1])).to_bytes(4, "little")
        elif how == 4:
            changed[at:at] = changed[max(0, at - 64) : at]
        elif changed:
            changed[min(at, len(changed) - 1)] = int(rng.integers(0, 256))
    return bytes(changed)


# Seeds: three small models of each kind.


@cache
def _seed_file(kind: str, number: int) -> bytes:
    from edge_resnet.export.onnx import onnx_bytes
    from edge_resnet.export.tflite import IoType, tflite_bytes
    from edge_resnet.graph.passes import simplify
    from tests.conftest import quantized
    from tests.random_graphs import random_graph

    graph = random_graph((54, 7, 21)[number], 2)
    if kind == "onnx-float":
        return onnx_bytes(simplify(graph))
    if kind == "onnx-int8":
        return onnx_bytes(quantized(graph))
    if kind == "onnx-qoperator":
        return _qoperator(onnx_bytes(quantized(graph)))
    if kind == "onnx-shapes":
        return _with_shapes(number)
    if kind == "tflite-float":
        return bytes(tflite_bytes(simplify(graph)))
    if kind == "tflite-int8":
        return bytes(tflite_bytes(quantized(graph), list(IoType)[number]))
    return _program(number)


def _qoperator(data: bytes) -> bytes:
    """Our QDQ file as ONNX Runtime runs it: QLinearConv and the like."""
    import tempfile

    import onnx

    from edge_resnet.runners.onnxruntime import OnnxRuntimeRunner

    with tempfile.TemporaryDirectory() as folder:
        source, optimized = Path(folder) / "a.onnx", Path(folder) / "b.onnx"
        source.write_bytes(data)
        OnnxRuntimeRunner(source, optimized=optimized)
        return onnx.load(str(optimized)).SerializeToString()


def _with_shapes(number: int) -> bytes:
    """What exporters leave in front of a Reshape, and constants that nodes make."""
    import onnx
    from onnx import helper, numpy_helper

    rng = np.random.default_rng(number)
    constants = {
        "w": rng.normal(0, 0.3, (4, 3, 3, 3)).astype(np.float32),
        "zero": np.array(0, np.int64),
        "axes": np.array([0], np.int64),
        "rest": np.array([-1], np.int64),
        "fc": rng.normal(0, 0.1, (4 * 49, 5)).astype(np.float32),
        "size": np.array([4, 1, 1], np.int64),
        "reps": np.array([1, 1, 1], np.int64),
        "starts": np.array([0, 0], np.int64),
        "ends": np.array([7, 99], np.int64),
        "where": np.array([2, 3], np.int64),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("ConstantOfShape", ["size"], ["ones"], value=helper.make_tensor("v", 1, [1], [1.5])),
        helper.make_node("Tile", ["ones", "reps"], ["tiled"]),
        helper.make_node("Mul", ["c", "tiled"], ["scaled"]),
        helper.make_node("Slice", ["scaled", "starts", "ends", "where"], ["cut"]),
        helper.make_node("Clip", ["cut"], ["clipped"])
        if number
        else helper.make_node("Relu", ["cut"], ["clipped"]),
        helper.make_node("Shape", ["clipped"], ["shape"]),
        helper.make_node("Gather", ["shape", "zero"], ["batch"]),
        helper.make_node("Unsqueeze", ["batch", "axes"], ["batches"]),
        helper.make_node("Concat", ["batches", "rest"], ["target"], axis=0),
        helper.make_node("Reshape", ["clipped", "target"], ["flat"]),
        helper.make_node("MatMul", ["flat", "fc"], ["logits"]),
    ]
    if number:
        constants |= {"low": np.array(0, np.float32), "high": np.array(6, np.float32)}
        nodes[5].input.extend(["low", "high"])
    size = (14, 14) if number < 2 else (14, 15)
    graph = helper.make_graph(
        nodes,
        "shapes",
        [helper.make_tensor_value_info("x", 1, ["N", 3, *size])],
        [helper.make_tensor_value_info("logits", 1, ["N", 5])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def _program(number: int) -> bytes:
    import torch
    from torch import nn

    torch.manual_seed(number)
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(4, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
    ).eval()  # fmt: skip
    dynamic = ({0: torch.export.Dim.DYNAMIC},) if number == 1 else None
    example = torch.zeros(2 if number == 1 else 1, 3, 16, 16)
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(module, (example,), dynamic_shapes=dynamic), buffer)
    return buffer.getvalue()


# Mutations of single fields.

_NUMBERS = [
    0,
    1,
    -1,
    2,
    3,
    7,
    127,
    -128,
    255,
    1000,
    2**15,
    2**24,
    2**31 - 1,
    -(2**31),
    2**40,
    2**63 - 1,
    -(2**63),
]
_REALS = [0.0, -1.0, 1e-45, 1e38, -1e38, float("inf"), float("nan"), 6.0, 0.5]


def _onnx_fields(data: bytes, rng: np.random.Generator) -> bytes:
    import onnx

    model = onnx.load_model_from_string(data)
    for _ in range(int(rng.integers(1, 3))):
        fields = list(_protobuf_fields(model))
        message, field = fields[int(rng.integers(len(fields)))]
        try:
            _mutate_field(message, field, rng, model)
        except (ValueError, TypeError):  # a number that the field's type cannot hold
            continue
    return model.SerializeToString()


def _protobuf_fields(message: Any) -> Iterator[tuple[Any, Any]]:
    for field, value in message.ListFields():
        yield message, field
        if field.message_type is not None:
            for item in value if field.is_repeated else [value]:
                yield from _protobuf_fields(item)


def _mutate_field(message: Any, field: Any, rng: np.random.Generator, model: Any) -> None:
    value = getattr(message, field.name)
    if field.is_repeated:
        count = len(value)
        how = int(rng.integers(0, 4))
        at, other = (int(n) for n in rng.integers(0, count, 2))
        if how == 0:
            del value[at]
        elif how == 1:
            value.extend([value[at]])
        elif field.message_type is None:
            value[at] = _other(value[at], rng, model)
        else:
            first, second = type(value[at])(), type(value[at])()
            first.CopyFrom(value[at])
            second.CopyFrom(value[other])
            value[at].CopyFrom(second)
            value[other].CopyFrom(first)
    elif field.message_type is not None or rng.random() < 0.2:
        message.ClearField(field.name)
    else:
        setattr(message, field.name, _other(value, rng, model))


def _other(value: Any, rng: np.random.Generator, model: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return int(rng.choice(np.array(_NUMBERS, object)))
    if isinstance(value, float):
        return _REALS[int(rng.integers(len(_REALS)))]
    if isinstance(value, bytes):
        return _damaged(value, rng)
    names = [*_OPERATORS, *(name for node in model.graph.node for name in (*node.input, *node.output))]
    return names[int(rng.integers(len(names)))]


_OPERATORS = (
    *("Relu", "Tile", "Expand", "Range", "ConstantOfShape", "Reshape", "Transpose", "Squeeze", "Unsqueeze"),
    *(
        "Flatten",
        "Split",
        "Slice",
        "Pad",
        "Clip",
        "Gather",
        "Loop",
        "If",
        "MatMul",
        "Gemm",
        "Add",
        "Sub",
        "Mul",
    ),
    *("Div", "Softmax", "ReduceMean", "AveragePool", "GlobalAveragePool", "Concat", "Cast", "HardSigmoid"),
    *("BatchNormalization", "QuantizeLinear", "DequantizeLinear", "", "x" * 5000, "\u20ac", "a/b", "ai.onnx"),
)


def _tflite_fields(data: bytes, rng: np.random.Generator) -> bytes:
    """Fields of the unpacked model; where what results cannot be packed, bytes are damaged instead."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(data, 0)
    for _ in range(int(rng.integers(1, 3))):
        places = list(_object_fields(model))
        holder, name = places[int(rng.integers(len(places)))]
        value = getattr(holder, name)
        setattr(holder, name, _other_object(value, rng))
    try:
        builder = flatbuffers.Builder(1024)
        builder.Finish(model.Pack(builder), b"TFL3")
        return bytes(builder.Output())
    except Exception:
        return _damaged(data, rng)


def _object_fields(value: Any) -> Iterator[tuple[Any, str]]:
    for name, item in vars(value).items():
        if item is not None and not isinstance(item, type):
            yield value, name
        for part in item if isinstance(item, list) else [item]:
            if hasattr(part, "Pack"):
                yield from _object_fields(part)


def _other_object(value: Any, rng: np.random.Generator) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return _NUMBERS[int(rng.integers(len(_NUMBERS)))]
    if isinstance(value, float):
        return _REALS[int(rng.integers(len(_REALS)))]
    if isinstance(value, bytes):
        return _damaged(value, rng)
    if isinstance(value, list | np.ndarray) and len(value):
        how, at, other = int(rng.integers(0, 4)), *(int(n) for n in rng.integers(0, len(value), 2))
        if how == 0:
            return None
        if how == 1:
            return value[:at] if isinstance(value, list) else value[:at].copy()
        changed = list(value)
        if how == 2 and not hasattr(changed[at], "Pack"):
            changed[at] = _other_object(changed[at], rng)
        changed[at], changed[other] = changed[other], changed[at]
        if not isinstance(value, np.ndarray):
            return changed
        try:
            return np.array(changed, value.dtype)
        except (OverflowError, ValueError):
            return value[:at].copy()
    if isinstance(value, np.integer):
        return _NUMBERS[int(rng.integers(len(_NUMBERS)))]
    if isinstance(value, np.floating):
        return _REALS[int(rng.integers(len(_REALS)))]
    return None


def _pt2_fields(data: bytes, rng: np.random.Generator) -> bytes:
    """One or two values of the archive's JSON files, or an entry's bytes."""
    entries = {}
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for name in archive.namelist():
            entries[name] = archive.read(name)
    documents = [name for name in entries if name.endswith(".json")]
    name = (
        documents[int(rng.integers(len(documents)))]
        if rng.random() < 0.5
        else next(name for name in documents if name.endswith("models/model.json"))
    )
    if rng.random() < 0.15:
        name = list(entries)[int(rng.integers(len(entries)))]
        entries[name] = _damaged(entries[name], rng)
    else:
        document = json.loads(entries[name])
        for _ in range(int(rng.integers(1, 3))):
            places = list(_json_places(document))
            if not places:
                break
            holder, key = places[int(rng.integers(len(places)))]
            if rng.random() < 0.2 and isinstance(holder, dict):
                del holder[key]
            else:
                holder[key] = _other_json(holder[key], rng, places)
        entries[name] = json.dumps(document).encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in entries.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return buffer.getvalue()


def _json_places(value: Any) -> Iterator[tuple[Any, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield value, key
        yield from _json_places(item)


def _other_json(value: Any, rng: np.random.Generator, places: list[tuple[Any, Any]]) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int) and rng.random() < 0.7:
        return _NUMBERS[int(rng.integers(len(_NUMBERS)))]
    if isinstance(value, float) and rng.random() < 0.7:
        return _REALS[int(rng.integers(len(_REALS)))]
    if isinstance(value, str) and rng.random() < 0.3:
        return ["", "x", "torch.ops.aten.relu.default", "torch.ops.aten.full.default", "../a", "1 + 1"][
            int(rng.integers(6))
        ]
    if rng.random() < 0.2:
        return [None, [], {}, "", 0, [[]], "a"][int(rng.integers(7))]
    holder, key = places[int(rng.integers(len(places)))]  # something from elsewhere in the document
    return json.loads(json.dumps(holder[key]))


_FIELDS: dict[str, Callable[[bytes, np.random.Generator], bytes]] = {
    "onnx": _onnx_fields,
    "tflite": _tflite_fields,
    "pt2": _pt2_fields,
}


if __name__ == "__main__":
    _child(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
