"""What a QDQ .onnx file says: parameters of every tensor and the integer weights of every layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import numpy_helper

from edge_resnet.errors import GraphError, VerificationError, first_line
from edge_resnet.graph.nodes import QuantParams
from edge_resnet.verify.contents import ArtifactContents, StoredFloats, StoredWeights

__all__ = ["read_onnx", "read_onnx_floats"]

_WEIGHTED = ("Conv", "Gemm")

T = TypeVar("T")


def read_onnx(path: Path) -> ArtifactContents:
    """Read an int8 file back. Raises VerificationError when it is not a readable, valid ONNX file."""
    return _read(path, lambda reader: reader.contents())


def read_onnx_floats(path: Path) -> dict[str, StoredFloats]:
    """The weights of a float file, by node. Raises VerificationError as above."""
    return _read(path, lambda reader: reader.floats())


def _read(path: Path, what: Callable[[_Reader], T]) -> T:
    try:
        model = onnx.load(str(path), load_external_data=False)
        onnx.checker.check_model(model)
        return what(_Reader(model))
    except (DecodeError, onnx.checker.ValidationError, OSError) as error:
        raise VerificationError(f"{path}: damaged ONNX file: {first_line(error)}") from error
    except GraphError as error:  # a scale or a zero point that cannot be
        raise VerificationError(f"{path}: {error}") from error
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise VerificationError(f"{path}: damaged ONNX file: {type(error).__name__}: {error}") from error


class _Reader:
    def __init__(self, model: onnx.ModelProto) -> None:
        self.nodes = list(model.graph.node)
        self.arrays = {entry.name: numpy_helper.to_array(entry) for entry in model.graph.initializer}
        self.image = model.graph.input[0].name
        self.producer = {name: node for node in self.nodes for name in node.output}

    def contents(self) -> ArtifactContents:
        activations: dict[str, QuantParams] = {}
        conflicts: list[str] = []
        for node in self.nodes:
            if node.op_type not in ("QuantizeLinear", "DequantizeLinear") or node.input[0] in self.arrays:
                continue
            name = self._graph_name(node)
            quant = self._parameters(node)
            if activations.setdefault(name, quant) != quant:
                conflicts.append(name)
        layers = [node for node in self.nodes if node.op_type in _WEIGHTED]
        real = [node for node in layers if node.input[1] in self.arrays]
        weights = dict(self._weights(node) for node in layers if node.input[1] not in self.arrays)
        return ArtifactContents(activations, weights, tuple(dict.fromkeys(conflicts)), self._floats(real))

    def floats(self) -> dict[str, StoredFloats]:
        return self._floats(node for node in self.nodes if node.op_type in _WEIGHTED)

    def _floats(self, layers: Iterable[onnx.NodeProto]) -> dict[str, StoredFloats]:
        return {
            str(node.input[1]).removesuffix("/weight"): StoredFloats(
                self.arrays[node.input[1]], self.arrays[node.input[2]]
            )
            for node in layers
        }

    def _graph_name(self, node: onnx.NodeProto) -> str:
        """x/quantized, x/clipped and x/dequantized belong to x; the last dequantize writes `logits`."""
        if node.op_type == "QuantizeLinear":
            return str(node.output[0]).removesuffix("/quantized")
        if node.input[0] == self.image:
            return str(node.output[0]).removesuffix("/dequantized")
        return str(node.input[0]).removesuffix("/clipped").removesuffix("/quantized")

    def _parameters(self, node: onnx.NodeProto) -> QuantParams:
        scale, zero = self.arrays[node.input[1]], self.arrays[node.input[2]]
        if scale.dtype != np.float32 or zero.dtype != np.uint8 or scale.shape or zero.shape:
            raise VerificationError(f"tensor {node.input[1]!r}: not a float32 scale with a uint8 zero point")
        return QuantParams(float(scale), int(zero) - 128)

    def _weights(self, node: onnx.NodeProto) -> tuple[str, StoredWeights]:
        weight, scale, zero = self._constant(node.input[1])
        bias, bias_scale, bias_zero = self._constant(node.input[2])
        if np.any(bias_zero):
            raise VerificationError(f"tensor {node.input[2]!r}: zero point is not 0")
        name = str(node.input[1]).removesuffix("/weight/dequantized")
        return name, StoredWeights(weight, scale, zero.astype(np.int64), bias, bias_scale)

    def _constant(self, name: str) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Integers, scale and zero point behind a DequantizeLinear."""
        node = self.producer[name]
        integers, scale, zero = (self.arrays[key] for key in node.input)
        return integers, scale, zero
