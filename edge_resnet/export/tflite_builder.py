"""The flatbuffer side of a TFLite file: tensors, buffers, operators, and the bytes in the end.

Uses the schema's Python classes, which ship inside ai-edge-litert
(https://github.com/google-ai-edge/LiteRT, schema.fbs).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

__all__ = ["OPERATOR_VERSIONS", "TfliteBuilder"]

_TYPES = {
    "float16": schema.TensorType.FLOAT16,
    "float32": schema.TensorType.FLOAT32,
    "int32": schema.TensorType.INT32,
    "int8": schema.TensorType.INT8,
    "uint8": schema.TensorType.UINT8,
}

# The operator versions that LiteRT expects for these types (int8 where an operator has it).
OPERATOR_VERSIONS = {
    "ADD": 2,
    "AVERAGE_POOL_2D": 2,
    "CAST": 1,
    "CONCATENATION": 2,
    "CONV_2D": 3,
    "DEPTHWISE_CONV_2D": 3,
    "DEQUANTIZE": 2,
    "DIV": 1,
    "FULLY_CONNECTED": 12,
    "LOGISTIC": 2,
    "MAX_POOL_2D": 2,
    "MEAN": 2,
    "MIRROR_PAD": 2,
    "MUL": 2,
    "PAD": 2,
    "PADV2": 2,
    "QUANTIZE": 2,
    "RELU": 2,
    "RELU6": 2,
    "RELU_0_TO_1": 1,
    "RESHAPE": 1,
    "SLICE": 2,
    "SUB": 1,
}


class TfliteBuilder:
    """Collects one subgraph. Tensors are numbered in the order in which they are made."""

    def __init__(self) -> None:
        self._tensors: list[Any] = []
        self._buffers: list[Any] = [_AlignedBuffer(None)]  # buffer 0 is "no data"
        self._operators: list[Any] = []
        self._codes: dict[str, int] = {}
        self._versions = dict(OPERATOR_VERSIONS)

    def tensor(
        self,
        name: str,
        shape: Sequence[int],
        dtype: str,
        scale: NDArray[np.float32] | None = None,
        zero_point: int = 0,
        axis: int = 0,
        data: NDArray[Any] | None = None,
        batched: bool = True,
    ) -> int:
        """A tensor's number. `scale` has one element, or one for each channel along `axis`.

        `batched`: the first axis is the batch, which may be resized. Constants are not, nor what is computed
        from constants alone.
        """
        tensor = schema.TensorT()
        tensor.name = name
        tensor.shape = np.asarray(shape, np.int32)
        if data is None and batched:
            tensor.shapeSignature = np.asarray([-1, *shape[1:]], np.int32)
        tensor.type = _TYPES[dtype]
        if scale is not None:
            tensor.quantization = schema.QuantizationParametersT()
            tensor.quantization.scale = scale
            tensor.quantization.zeroPoint = np.full(len(scale), zero_point, np.int64)
            tensor.quantization.quantizedDimension = axis
        if data is not None:
            tensor.buffer = len(self._buffers)
            self._buffers.append(_AlignedBuffer(data))
        self._tensors.append(tensor)
        return len(self._tensors) - 1

    def constant(self, name: str, data: NDArray[Any], **quantization: Any) -> int:
        """A tensor with its data in the file."""
        return self.tensor(name, data.shape, data.dtype.name, data=data, **quantization)

    def half_constant(self, name: str, data: NDArray[np.float16]) -> int:
        """The float32 tensor of a constant stored in float16, behind a DEQUANTIZE that runtimes fold away."""
        self._versions["DEQUANTIZE"] = 3  # the version that takes float16
        half = self.constant(name, data)
        whole = self.tensor(f"{name}/float32", data.shape, "float32", batched=False)
        self.operator("DEQUANTIZE", [half], whole, schema.DequantizeOptionsT())
        return whole

    def operator(self, kind: str, inputs: Sequence[int], output: int, options: Any = None) -> None:
        operator = schema.OperatorT()
        operator.opcodeIndex = self._codes.setdefault(kind, len(self._codes))
        operator.inputs = np.asarray(inputs, np.int32)
        operator.outputs = np.asarray([output], np.int32)
        if options is not None:
            operator.builtinOptions = options
            type_name = type(options).__name__.removesuffix("T")
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, type_name)
        self._operators.append(operator)

    def finish(self, name: str, inputs: dict[str, int], outputs: dict[str, int]) -> bytearray:
        """The file's bytes. `inputs` and `outputs` name the ends for apps (signature `serving_default`)."""
        subgraph = schema.SubGraphT()
        subgraph.name = name
        subgraph.tensors = self._tensors
        subgraph.operators = self._operators
        subgraph.inputs = np.asarray(list(inputs.values()), np.int32)
        subgraph.outputs = np.asarray(list(outputs.values()), np.int32)
        model = schema.ModelT()
        model.version = 3
        model.description = "edge-resnet"
        model.subgraphs = [subgraph]
        model.buffers = self._buffers
        model.operatorCodes = [_operator_code(kind, self._versions[kind]) for kind in self._codes]
        model.signatureDefs = [_signature(inputs, outputs)]
        size = sum(buffer.reserve for buffer in self._buffers)
        builder = flatbuffers.Builder(size + 65536 + 1024 * len(self._tensors))
        builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
        return builder.Output()  # type: ignore[no-any-return]


class _AlignedBuffer(schema.BufferT):  # type: ignore[misc]
    """A data buffer that starts at a multiple of 16 bytes, as the schema demands (force_align: 16).

    The generated Python code ignores that attribute.
    """

    def __init__(self, data: NDArray[Any] | None) -> None:
        super().__init__()
        self.content: memoryview | None = None
        if data is not None:
            self.content = np.ascontiguousarray(data).reshape(-1).view(np.uint8).data

    @property
    def reserve(self) -> int:
        """Bytes to set aside in the file, alignment and table included."""
        return 0 if self.content is None else len(self.content) + 32

    def Pack(self, builder: Any) -> Any:  # noqa: N802 (the generated classes' name)
        if self.content is None:
            schema.BufferStart(builder)
            return schema.BufferEnd(builder)
        size = len(self.content)
        builder.StartVector(1, size, 16)
        head = builder.Head() - size
        builder.head = head
        builder.Bytes[head : head + size] = self.content
        builder.vectorNumElems = size
        data = builder.EndVector()
        schema.BufferStart(builder)
        schema.BufferAddData(builder, data)
        return schema.BufferEnd(builder)


def _operator_code(kind: str, version: int) -> Any:
    code = schema.OperatorCodeT()
    code.builtinCode = getattr(schema.BuiltinOperator, kind)
    code.deprecatedBuiltinCode = min(code.builtinCode, 127)  # what readers before 2020 look at
    code.version = version
    return code


def _signature(inputs: dict[str, int], outputs: dict[str, int]) -> Any:
    def maps(ends: dict[str, int]) -> list[Any]:
        result = []
        for name, index in ends.items():
            entry = schema.TensorMapT()
            entry.name, entry.tensorIndex = name, index
            result.append(entry)
        return result

    signature = schema.SignatureDefT()
    signature.signatureKey = "serving_default"
    signature.subgraphIndex = 0
    signature.inputs, signature.outputs = maps(inputs), maps(outputs)
    return signature
