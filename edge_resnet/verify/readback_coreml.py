"""What an .mlpackage says: parameters of every tensor and the weights of every layer.

The program's values are called NODE_ROLE, and the package's metadata maps NODE to the graph's name. A layer
is known by its own operation, not by what its weight is called; each operation must be where its name says.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from edge_resnet.errors import VerificationError
from edge_resnet.graph.nodes import QuantParams
from edge_resnet.runners.mil_program import MilProgram, palettes, read_package
from edge_resnet.verify.contents import ArtifactContents, StoredFloats, StoredWeights

__all__ = ["read_coreml", "read_coreml_floats"]

# Metadata of the package: a JSON object from names in the program to names of the graph's nodes.
_NAMES_KEY = "edge_resnet.names"

T = TypeVar("T")


def read_coreml(path: Path) -> ArtifactContents:
    """Read an int8 package back. Raises VerificationError when it is not a readable one of this kind."""
    return _read(path, _contents)


def read_coreml_floats(path: Path) -> dict[str, StoredFloats]:
    """The weights of a float package, by node. Raises VerificationError as above."""
    return _read(path, _floats)


def _read(path: Path, what: Callable[[MilProgram], T]) -> T:
    program = read_package(path)
    try:
        _check_manifest(path)
        return what(program)
    except Exception as error:  # damaged bytes may show as any type: a missing input, no number, a wrong size
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if not isinstance(error, VerificationError):
            reason = f"{type(error).__name__}: {reason}"
        raise VerificationError(f"{path}: damaged Core ML package: {reason}") from error


def _check_manifest(path: Path) -> None:
    """Core ML finds the model and its weights through the manifest alone."""
    manifest = json.loads((path / "Manifest.json").read_text())
    items = manifest["itemInfoEntries"]
    found = {key: path / "Data" / item["path"] for key, item in items.items()}
    if not all(target.exists() for target in found.values()):
        raise VerificationError("Manifest.json names a file that is not there")
    names = {target.name for target in found.values()}
    if (
        names != {"model.mlmodel", "weights"}
        or found[manifest["rootModelIdentifier"]].name != "model.mlmodel"
    ):
        raise VerificationError("Manifest.json does not name the model and its weights")


def _contents(program: MilProgram) -> ArtifactContents:
    nodes = json.loads(program.metadata[_NAMES_KEY])
    activations: dict[str, QuantParams] = {}
    conflicts: list[str] = []
    weights: dict[str, StoredWeights] = {}
    floats: dict[str, StoredFloats] = {}
    for op in program.operations:
        if op.op_type in ("quantize", "dequantize"):
            name = nodes[_node(op, "quantized" if op.op_type == "quantize" else "value")]
            _check_source(op)
            quant = QuantParams(float(np.float32(op.scale.val)), int(op.zero_point.val))
            if activations.setdefault(name, quant) != quant:
                conflicts.append(name)
        elif op.op_type in ("conv", "linear") and op.weight.op.op_type == "const":
            base = str(op.outputs[0].name).rpartition("_")[0]
            floats[nodes[base]] = _stored_floats(op.weight, np.array(op.bias.val))
        elif op.op_type in ("conv", "linear"):
            base = _node(op, "op")
            if str(op.weight.name) != f"{base}_weight" or str(op.bias.name) != f"{base}_bias":
                raise VerificationError(f"layer {nodes[base]} has another layer's weight or bias")
            weights[nodes[base]] = _stored(op.weight.op, op.bias)
    _check_image(program.operations)
    return ArtifactContents(activations, weights, tuple(dict.fromkeys(conflicts)), floats)


def _floats(program: MilProgram) -> dict[str, StoredFloats]:
    nodes = json.loads(program.metadata[_NAMES_KEY])
    weights: dict[str, StoredFloats] = {}
    for op in program.operations:
        if op.op_type in ("conv", "linear"):
            base = str(op.outputs[0].name).rpartition("_")[0]
            weights[nodes[base]] = _stored_floats(op.weight, np.array(op.bias.val))
    return weights


def _stored_floats(weight: Any, bias: NDArray[Any]) -> StoredFloats:
    kind = weight.op.op_type
    if kind == "const":
        return StoredFloats(np.array(weight.val), bias)
    if kind != "constexpr_lut_to_dense":
        raise VerificationError(f"weight {weight.name} is a {kind}")
    numbers, entries = palettes(weight.op)
    grouped = numbers.reshape(len(entries), -1)  # [O, ...] -> [groups, numbers]
    return StoredFloats(np.take_along_axis(entries, grouped, 1).reshape(numbers.shape), bias, entries)


def _node(op: Any, role: str) -> str:
    """The node's part of the name of the operation's result."""
    base, _, found = str(op.outputs[0].name).rpartition("_")
    if found != role:
        raise VerificationError(f"the result of a {op.op_type} is called {op.outputs[0].name}")
    return base


def _check_source(op: Any) -> None:
    """`quantize` reads its own node's result, `dequantize` the integers of its own node."""
    base, _, role = str(op.input.name).rpartition("_")
    roles = ("quantized",) if op.op_type == "dequantize" else ("op", "relu", "real")
    if base != str(op.outputs[0].name).rpartition("_")[0] or role not in roles:
        raise VerificationError(f"{op.outputs[0].name} reads {op.input.name}")


def _check_image(operations: list[Any]) -> None:
    """The bytes become the input's real values by its parameters: (byte - (128 + zero)) * scale."""
    first = next((op for op in operations if op.op_type == "quantize"), None)
    if first is None:
        raise VerificationError("it holds no quantized tensor")
    scaled = first.input.op
    centred = scaled.x.op
    expected = (float(first.scale.val), 128 + int(first.zero_point.val))
    if (scaled.op_type, centred.op_type) != ("mul", "sub"):
        raise VerificationError("the image's bytes do not become numbers by a subtraction and a product")
    if (float(scaled.y.val), float(centred.y.val)) != expected:
        raise VerificationError("the image's bytes are not scaled by the input's parameters")


def _stored(op: Any, bias: Any) -> StoredWeights:
    if op is None or op.op_type != "constexpr_affine_dequantize" or int(op.axis.val) != 0:
        raise VerificationError("a weight is not int8 along the output channels")
    weight = np.array(op.quantized_data.val)
    scale = np.array(op.scale.val, np.float32)
    if weight.dtype != np.int8 or scale.shape != weight.shape[:1]:
        raise VerificationError(f"operation {op.name}: {weight.dtype} weights with scales {scale.shape}")
    zero = np.broadcast_to(np.array(op.zero_point.val, np.int64), scale.shape)
    return StoredWeights(weight, scale, zero, np.array(bias.val))
