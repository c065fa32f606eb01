"""What a .tflite file says: parameters of every tensor and the integer weights of every layer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from edge_resnet.errors import GraphError, VerificationError
from edge_resnet.graph.nodes import QuantParams
from edge_resnet.verify.contents import ArtifactContents, StoredFloats, StoredWeights

__all__ = ["read_tflite", "read_tflite_floats"]

_INT8, _UINT8, _INT32 = schema.TensorType.INT8, schema.TensorType.UINT8, schema.TensorType.INT32
_DTYPES: dict[int, Any] = {_INT8: np.int8, _INT32: np.int32}
_FLOATS: dict[int, Any] = {schema.TensorType.FLOAT16: np.float16, schema.TensorType.FLOAT32: np.float32}
_WEIGHTED = {
    schema.BuiltinOperator.CONV_2D,
    schema.BuiltinOperator.DEPTHWISE_CONV_2D,
    schema.BuiltinOperator.FULLY_CONNECTED,
}


T = TypeVar("T")


def read_tflite(path: Path) -> ArtifactContents:
    """Read an int8 file back. Raises VerificationError when it is not a readable TFLite file."""
    return _read(path, lambda reader: reader.contents())


def read_tflite_floats(path: Path) -> dict[str, StoredFloats]:
    """The weights of a float file, by node. Raises VerificationError as above."""
    return _read(path, lambda reader: reader.floats())


def _read(path: Path, what: Callable[[_Reader], T]) -> T:
    try:
        data = path.read_bytes()
        if data[4:8] != b"TFL3":
            raise VerificationError(f"{path}: not a TFLite file")
        model = schema.ModelT.InitFromPackedBuf(data, 0)
        return what(_Reader(model))
    except VerificationError:
        raise
    except GraphError as error:  # a scale or a zero point that cannot be
        raise VerificationError(f"{path}: {error}") from error
    except Exception as error:  # damaged offsets surface as struct, index, type and memory errors alike
        raise VerificationError(f"{path}: damaged TFLite file: {type(error).__name__}: {error}") from error


class _Reader:
    def __init__(self, model: Any) -> None:
        self.model = model
        self.subgraph = model.subgraphs[0]
        self.tensors = self.subgraph.tensors
        self.producer = {int(op.outputs[0]): op for op in self.subgraph.operators}

    def contents(self) -> ArtifactContents:
        activations: dict[str, QuantParams] = {}
        conflicts: list[str] = []
        for tensor in self.tensors:
            name = self._name(tensor).removesuffix("/int8")
            if tensor.type not in (_INT8, _UINT8) or self.model.buffers[tensor.buffer].data is not None:
                continue
            if name.endswith("/padded"):
                continue  # has its own check below
            quant = _parameters(tensor)
            if activations.setdefault(name, quant) != quant:
                conflicts.append(name)
        conflicts += self._padding_conflicts()
        layers = [op for op in self.subgraph.operators if self._kind(op) in _WEIGHTED]
        real = [op for op in layers if self.tensors[op.inputs[1]].type in _FLOATS]
        weights = dict(self._weights(op) for op in layers if op not in real)
        return ArtifactContents(activations, weights, tuple(conflicts), dict(map(self._floats, real)))

    def _padding_conflicts(self) -> list[str]:
        """A padded tensor, and the value it is padded with, must have its source's parameters."""
        names = []
        for op in self.subgraph.operators:
            if self._kind(op) not in (schema.BuiltinOperator.PAD, schema.BuiltinOperator.PADV2):
                continue
            source, output = self.tensors[op.inputs[0]], self.tensors[op.outputs[0]]
            if source.type == _INT8 and _parameters(source) != _parameters(output):
                names.append(self._name(output))
            if len(op.inputs) > 2 and source.type == _INT8:
                fill = self.tensors[op.inputs[2]]
                if _parameters(fill) != _parameters(source) or self._data(fill).tolist() != [-128]:
                    names.append(self._name(fill))
        return names

    def _weights(self, op: Any) -> tuple[str, StoredWeights]:
        weight, bias = self.tensors[op.inputs[1]], self.tensors[op.inputs[2]]
        arranged = self._arranged(op, self._data(weight))
        name = self._name(weight).removesuffix("/weight")
        scale = np.asarray(weight.quantization.scale, np.float32)
        if np.any(np.asarray(bias.quantization.zeroPoint)):
            raise VerificationError(f"tensor {self._name(bias)!r}: zero point is not 0")
        zero = np.asarray(weight.quantization.zeroPoint, np.int64)
        bias_scale = np.asarray(bias.quantization.scale, np.float32)
        return name, StoredWeights(arranged, scale, zero, self._data(bias), bias_scale)

    def floats(self) -> dict[str, StoredFloats]:
        layers = [op for op in self.subgraph.operators if self._kind(op) in _WEIGHTED]
        return dict(self._floats(op) for op in layers)

    def _floats(self, op: Any) -> tuple[str, StoredFloats]:
        weight, bias = (self._stored(int(index)) for index in op.inputs[1:3])
        arranged = self._arranged(op, self._data(weight, _FLOATS))
        return self._name(weight).removesuffix("/weight"), StoredFloats(arranged, self._data(bias, _FLOATS))

    def _stored(self, index: int) -> Any:
        """The tensor itself, or the float16 one that a DEQUANTIZE makes it from."""
        producer = self.producer.get(index)
        return self.tensors[index if producer is None else producer.inputs[0]]

    def _arranged(self, op: Any, values: NDArray[Any]) -> NDArray[Any]:
        """A weight in the graph's axis order."""
        kind = self._kind(op)
        if kind == schema.BuiltinOperator.DEPTHWISE_CONV_2D:
            return values.transpose(3, 0, 1, 2)  # 1HWO -> O1HW
        if kind == schema.BuiltinOperator.CONV_2D:
            return values.transpose(0, 3, 1, 2)  # OHWI -> OIHW
        return self._columns_in_graph_order(values, int(op.inputs[0]))

    def _columns_in_graph_order(self, q: NDArray[Any], source: int) -> NDArray[Any]:
        """Behind a reshape of an image, columns are in [H, W, C] order; the graph's are in [C, H, W]."""
        producer = self.producer.get(source)
        if producer is not None and self._kind(producer) == schema.BuiltinOperator.DEQUANTIZE:
            producer = self.producer.get(int(producer.inputs[0]))
        if producer is None or self._kind(producer) != schema.BuiltinOperator.RESHAPE:
            return q
        _, height, width, channels = (int(n) for n in self.tensors[producer.inputs[0]].shape)
        return q.reshape(-1, height * width, channels).transpose(0, 2, 1).reshape(q.shape)

    def _data(self, tensor: Any, dtypes: dict[int, Any] = _DTYPES) -> NDArray[Any]:
        dtype = dtypes.get(tensor.type)
        if dtype is None:
            kind = "an integer" if dtypes is _DTYPES else "a float"
            raise VerificationError(f"tensor {self._name(tensor)!r} is not {kind} tensor")
        raw: NDArray[Any] = np.asarray(self.model.buffers[tensor.buffer].data, np.uint8).view(dtype)
        return raw.reshape([int(n) for n in tensor.shape])

    def _kind(self, op: Any) -> int:
        return int(self.model.operatorCodes[op.opcodeIndex].builtinCode)

    @staticmethod
    def _name(tensor: Any) -> str:
        return str(tensor.name.decode("utf-8", "replace"))


def _parameters(tensor: Any) -> QuantParams:
    quantization = tensor.quantization
    if quantization is None or quantization.scale is None or len(quantization.scale) != 1:
        raise VerificationError(f"tensor {_Reader._name(tensor)!r} has no per-tensor parameters")
    zero = int(quantization.zeroPoint[0]) if quantization.zeroPoint is not None else 0
    if tensor.type == _UINT8:  # the same number, 128 higher
        zero -= 128
    return QuantParams(float(np.float32(quantization.scale[0])), zero)
