"""A .tflite file, opened without trust: sizes are checked before the flatbuffer is unpacked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from edge_resnet.errors import GraphError, InputError
from edge_resnet.files import check_regular_file
from edge_resnet.frontends.integers import IntegerConstant
from edge_resnet.graph.nodes import QuantParams

__all__ = ["TfliteFile", "load_tflite"]

_LARGEST = 2**31 - 1
# ResNet-152 has 2,000 tensors. A hostile file may list billions, in few bytes.
_MOST = 100_000
_DTYPES: dict[int, str] = {
    schema.TensorType.FLOAT32: "float32",
    schema.TensorType.FLOAT16: "float16",
    schema.TensorType.INT32: "int32",
    schema.TensorType.INT64: "int64",
    schema.TensorType.INT16: "int16",
    schema.TensorType.INT8: "int8",
    schema.TensorType.UINT8: "uint8",
}
_OPERATORS = {
    code: name
    for name, code in vars(schema.BuiltinOperator).items()
    if isinstance(code, int) and name[0] != "_"
}


class TfliteFile:
    """The first subgraph: tensors by number, operators in their order."""

    def __init__(self, path: Path, model: Any) -> None:
        self.path = path
        self.model = model
        self.subgraph = model.subgraphs[0]
        self.tensors: list[Any] = self.subgraph.tensors
        self.operators: list[Any] = self.subgraph.operators or []

    def kind(self, operator: Any) -> str:
        code = self.model.operatorCodes[operator.opcodeIndex]
        number = max(int(code.builtinCode), int(code.deprecatedBuiltinCode))
        name = _OPERATORS.get(number, f"operator {number}")
        return f"custom operator {_text(code.customCode)}" if name == "CUSTOM" else name

    def tensor(self, index: int) -> Any:
        """Raises IndexError for a negative number too, which a damaged file may hold."""
        if not 0 <= index < len(self.tensors):
            raise IndexError(f"tensor {index} of {len(self.tensors)}")
        return self.tensors[index]

    def name(self, index: int) -> str:
        return _text(self.tensor(index).name) or f"tensor {index}"

    def shape(self, index: int) -> tuple[int, ...]:
        shape = self.tensor(index).shape
        return () if shape is None else tuple(int(size) for size in shape)

    def dtype(self, index: int) -> str:
        found = _DTYPES.get(self.tensor(index).type)
        if found is None:
            raise GraphError(f"tensor {self.name(index)!r} has a type that is not known here")
        return found

    def quant(self, index: int) -> QuantParams | None:
        """Parameters of an activation; None for one in floats."""
        quantization, dtype = self.tensor(index).quantization, self.dtype(index)
        if dtype not in ("int8", "uint8", "int16") or quantization is None or quantization.scale is None:
            return None
        if dtype == "int16":
            raise GraphError("activations of 16 bit; 8 bit can be carried")
        if len(quantization.scale) != 1:
            raise GraphError("per-channel parameters of an activation")
        zero = 0 if quantization.zeroPoint is None else int(quantization.zeroPoint[0])
        return QuantParams(float(np.float32(quantization.scale[0])), zero - (128 if dtype == "uint8" else 0))

    def constant(self, index: int) -> NDArray[Any] | IntegerConstant | None:
        """The tensor's data, or None where it has none."""
        tensor = self.tensor(index)
        data = self.model.buffers[tensor.buffer].data
        if data is None or len(data) == 0:
            return None
        raw = np.asarray(data, np.uint8)
        values = raw.view(self.dtype(index)).reshape(self.shape(index))
        quantization = tensor.quantization
        if quantization is None or quantization.scale is None or values.dtype.kind == "f":
            return values.astype(np.float32) if values.dtype.kind == "f" else values
        scale = np.asarray(quantization.scale, np.float32)
        zero = quantization.zeroPoint
        return IntegerConstant(
            values,
            scale if scale.size > 1 else scale.reshape(()),
            np.zeros(scale.size, np.int64) if zero is None else np.asarray(zero, np.int64),
            int(quantization.quantizedDimension),
        )


def load_tflite(path: Path) -> TfliteFile:
    """Raises InputError: no TFLite file, damaged, or with several models in it."""
    size = check_regular_file(path, "model file")
    if size > _LARGEST:
        raise InputError(f"{path}: {size / 1e9:.1f} GB, more than a flatbuffer can hold (2 GB)")
    data = path.read_bytes()
    if data[4:8] != b"TFL3":
        raise InputError(f"{path}: not a TFLite file")
    try:
        _check_lengths(schema.Model.GetRootAsModel(data, 0))
        model = schema.ModelT.InitFromPackedBuf(data, 0)
        if not model.subgraphs or not model.subgraphs[0].tensors or not model.buffers:
            raise InputError(f"{path}: holds no model")
        if len(model.subgraphs) > 1:
            raise InputError(f"{path}: holds {len(model.subgraphs)} subgraphs; a classifier is one")
        return TfliteFile(path, model)
    except InputError:
        raise
    except (
        Exception,
        MemoryError,
    ) as error:  # damaged offsets surface as struct, index and type errors alike
        raise InputError(f"{path}: damaged TFLite file: {type(error).__name__}: {error}") from error


def _check_lengths(model: Any) -> None:
    """Every list that unpacking would walk through, before it does."""
    lists: list[Callable[[], int]] = [
        model.SubgraphsLength,
        model.BuffersLength,
        model.OperatorCodesLength,
        model.MetadataLength,
        model.MetadataBufferLength,
        model.SignatureDefsLength,
    ]
    _limit(lists, 1)
    for number in range(model.SubgraphsLength()):
        graph = model.Subgraphs(number)
        _limit([graph.TensorsLength, graph.OperatorsLength, graph.InputsLength, graph.OutputsLength], 1)
        for index in range(graph.OperatorsLength()):
            operator = graph.Operators(index)
            _limit([operator.InputsLength, operator.OutputsLength, operator.IntermediatesLength], 100)
        for index in range(graph.TensorsLength()):
            tensor = graph.Tensors(index)
            _limit([tensor.ShapeLength, tensor.ShapeSignatureLength, tensor.VariantTensorsLength], 100)
    for number in range(model.SignatureDefsLength()):
        signature = model.SignatureDefs(number)
        _limit([signature.InputsLength, signature.OutputsLength], 100)


def _limit(lists: list[Callable[[], int]], part: int) -> None:
    if any(length() > _MOST // part for length in lists):
        raise ValueError("a list longer than any model's")


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value or "")
