"""What an int8 .mlpackage says: parameters of every tensor and the integer weights of every layer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from edge_resnet.errors import GraphError, VerificationError
from edge_resnet.graph.nodes import QuantParams
from edge_resnet.runners.mil_program import MilProgram, read_package
from edge_resnet.verify.contents import ArtifactContents, StoredWeights

__all__ = ["read_coreml"]

# Metadata of the package: a JSON object from names in the program to names of the graph's nodes.
_NAMES_KEY = "edge_resnet.names"


def read_coreml(path: Path) -> ArtifactContents:
    """Read the package back. Raises VerificationError when it is not a readable one of this kind."""
    program = read_package(path)
    try:
        return _contents(program)
    except (GraphError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise VerificationError(
            f"{path}: damaged Core ML package: {type(error).__name__}: {error}"
        ) from error


def _contents(program: MilProgram) -> ArtifactContents:
    names = json.loads(program.metadata[_NAMES_KEY])
    activations: dict[str, QuantParams] = {}
    conflicts: list[str] = []
    weights: dict[str, StoredWeights] = {}
    for op in program.operations:
        if op.op_type in ("quantize", "dequantize"):
            integers = op.outputs[0] if op.op_type == "quantize" else op.input
            name = names[str(integers.name).removesuffix("_quantized")]
            quant = QuantParams(float(np.float32(op.scale.val)), int(op.zero_point.val))
            if activations.setdefault(name, quant) != quant:
                conflicts.append(name)
        elif op.op_type in ("conv", "linear"):
            stored = op.weight.op
            weights[names[str(op.weight.name).removesuffix("_weight")]] = _stored(stored, op.bias)
    return ArtifactContents(activations, weights, tuple(dict.fromkeys(conflicts)))


def _stored(op: Any, bias: Any) -> StoredWeights:
    if op.op_type != "constexpr_affine_dequantize" or int(op.axis.val) != 0:
        raise VerificationError(f"operation {op.name}: its weight is not int8 along the output channels")
    weight = np.array(op.quantized_data.val, np.int8)
    scale = np.array(op.scale.val, np.float32)
    zero = np.broadcast_to(np.array(op.zero_point.val, np.int64), scale.shape)
    return StoredWeights(weight, scale, zero, np.array(bias.val))
