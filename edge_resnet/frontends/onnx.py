"""An ONNX file of the family -> Graph.

The nodes are walked in their order. What depends on the image goes through onnx_operators.py, what is
computed from constants alone is evaluated (onnx_constants.py). Transposes around NHWC parts, and what
exporters write in front of a Reshape, leave nothing behind.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edge_resnet.errors import GraphError, InputError, UnsupportedOperatorError
from edge_resnet.frontends.builder import GraphBuilder
from edge_resnet.frontends.ends import check_size, chosen_output
from edge_resnet.frontends.integers import IntegerConstant, finish_integers
from edge_resnet.frontends.node_builder import check_finite
from edge_resnet.frontends.onnx_constants import FOLDED, evaluate
from edge_resnet.frontends.onnx_file import load_onnx
from edge_resnet.frontends.onnx_integers import INTEGER_OPERATORS, dequantized_constant
from edge_resnet.frontends.onnx_operators import OPERATORS, OnnxCall
from edge_resnet.frontends.values import Value
from edge_resnet.graph.graph import Graph

__all__ = ["OnnxSource", "open_onnx"]

Array = NDArray[Any]
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16)
_DOMAINS = ("", "ai.onnx", "com.microsoft")
# What may read an image of bytes in a model that is quantized.
_OF_INTEGERS = ("DequantizeLinear", "QLinearConv")


@dataclass(frozen=True, eq=False)
class OnnxSource:
    """An opened file: what it wants as image, and what it answers.

    `size` is (rows, columns), None where the file leaves them open; `raw_bytes`: it takes uint8, so it
    normalizes the image itself.
    """

    path: Path
    model: onnx.ModelProto
    input: str
    output: str
    channels_last: bool
    size: tuple[int, int] | None
    raw_bytes: bool

    def graph(
        self,
        name: str,
        size: tuple[int, int],
        mean: Sequence[float],
        std: Sequence[float],
        *,
        keep_integers: bool = True,
    ) -> Graph:
        """The graph for images of `size`. Raises UnsupportedOperatorError that names the node."""
        check_size(str(self.path), self.size, size)
        return _Importer(self, name, keep_integers).graph(size, mean, std)


def open_onnx(path: Path, output: str | None = None) -> OnnxSource:
    """Open it and look at its ends. Raises InputError: damaged, several inputs or outputs."""
    model = load_onnx(path)
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    if len(inputs) != 1:
        names = ", ".join(value.name for value in inputs) or "none"
        raise InputError(f"{path}: an image classifier has one input, this model has {len(inputs)}: {names}")
    source = inputs[0]
    kind = source.type.tensor_type.elem_type
    sizes = [d.dim_value if d.HasField("dim_value") else 0 for d in source.type.tensor_type.shape.dim]
    if len(sizes) != 4 or kind not in (*_FLOATS, TensorProto.UINT8):
        known = {number: name.lower() for name, number in TensorProto.DataType.items()}
        what = known.get(kind, f"type {kind}") if kind else "no tensor"
        raise InputError(f"{path}: input {source.name!r} is {what} {sizes}, not an image [N, 3, H, W]")
    last = sizes[1] != 3 and sizes[3] == 3
    if not last and sizes[1] not in (0, 3):
        raise InputError(f"{path}: input {source.name!r} has {sizes[1]} channels, not 3")
    rows, columns = (sizes[1], sizes[2]) if last else (sizes[2], sizes[3])
    return OnnxSource(
        path=path,
        model=model,
        input=source.name,
        output=chosen_output(str(path), [value.name for value in model.graph.output], output),
        channels_last=last,
        size=(rows, columns) if rows > 0 and columns > 0 else None,
        raw_bytes=kind == TensorProto.UINT8,
    )


class _Importer:
    """Walks the file. `made` maps a tensor's name to what it became: a Value or a constant."""

    def __init__(self, source: OnnxSource, name: str, keep_integers: bool) -> None:
        self.source = source
        self.builder = GraphBuilder(name, channels_last=False, keep_integers=keep_integers)
        self.opset = max(
            (o.version for o in source.model.opset_import if o.domain in ("", "ai.onnx")), default=1
        )
        self.made: dict[str, Value | Array | IntegerConstant] = {}

    def graph(self, size: tuple[int, int], mean: Sequence[float], std: Sequence[float]) -> Graph:
        proto = self.source.model.graph
        if proto.sparse_initializer:
            raise InputError(f"{self.source.path}: sparse weights; save them as dense tensors")
        for tensor in proto.initializer:
            self.made[tensor.name] = self._array(tensor)
        image = self._image((3, *size), mean, std)
        self.made[self.source.input] = (
            replace(image, axes=(0, 2, 3, 1)) if self.source.channels_last else image
        )
        for node in proto.node:
            self._import(node)
            if self.source.output in node.output:
                break
        output = self.made.get(self.source.output)
        if not isinstance(output, Value):
            raise InputError(f"{self.source.path}: the output does not depend on the image")
        try:
            graph = self.builder.graph(output)
            check_finite(graph)
        except GraphError as error:
            raise InputError(f"{self.source.path}: {error}") from None
        return finish_integers(graph, str(self.source.path)) if self.builder.quants else graph

    def _image(self, shape: tuple[int, int, int], mean: Sequence[float], std: Sequence[float]) -> Value:
        """Bytes that the file dequantizes itself are the integers; all else is normalized."""
        readers = [node for node in self.source.model.graph.node if self.source.input in node.input]
        while len(readers) == 1 and readers[0].op_type == "Transpose":
            readers = [n for n in self.source.model.graph.node if readers[0].output[0] in n.input]
        if self.source.raw_bytes and readers and all(n.op_type in _OF_INTEGERS for n in readers):
            return self.builder.raw_image(shape)
        return self.builder.image(shape, mean, std)

    def _array(self, tensor: onnx.TensorProto) -> Array:
        try:
            array = numpy_helper.to_array(tensor)
        except Exception as error:  # sizes and data that do not fit raise whatever numpy does
            raise InputError(f"{self.source.path}: tensor {tensor.name!r} is damaged: {error}") from error
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise InputError(
                f"{self.source.path}: tensor {tensor.name!r} holds NaN or infinite values; training diverged"
            )
        return array

    def _import(self, node: onnx.NodeProto) -> None:
        try:
            inputs = [self.made[name] if name else None for name in node.input]
        except KeyError as error:
            raise self._unsupported(node, f"input {error.args[0]!r} was not computed") from None
        attributes = {entry.name: _attribute(entry) for entry in node.attribute}
        try:
            if not any(isinstance(value, Value) for value in inputs):
                results: Sequence[Any] = self._constants(node, inputs, attributes)
            elif node.op_type in ("Shape", "Size"):
                results = [_shape_of(node.op_type, inputs[0], attributes)]
            else:
                results = self._compute(node, inputs, attributes)
        except GraphError as error:
            raise self._unsupported(node, str(error)) from None
        except (IndexError, TypeError, ValueError, AttributeError, KeyError, OverflowError) as error:
            raise self._unsupported(node, f"damaged: {type(error).__name__}: {str(error)[:200]}") from error
        self.made.update(zip(node.output, results, strict=False))

    def _constants(
        self, node: onnx.NodeProto, inputs: Sequence[Any], attributes: Mapping[str, Any]
    ) -> Sequence[Any]:
        if node.op_type == "DequantizeLinear":
            return [dequantized_constant(inputs, int(attributes.get("axis", 1)))]
        if node.op_type == "Transpose" and isinstance(inputs[0], IntegerConstant):
            rank = inputs[0].values.ndim
            return [inputs[0].transposed(list(attributes.get("perm") or reversed(range(rank))))]
        inputs = [value.real if isinstance(value, IntegerConstant) else value for value in inputs]
        if node.op_type not in FOLDED or node.domain not in ("", "ai.onnx"):
            raise GraphError("of constants")
        return evaluate(node, inputs, self.opset)

    def _compute(
        self, node: onnx.NodeProto, inputs: Sequence[Any], attributes: Mapping[str, Any]
    ) -> Sequence[Value]:
        function = OPERATORS.get(node.op_type) or INTEGER_OPERATORS.get(node.op_type)
        if function is None or node.domain not in _DOMAINS:
            raise GraphError("")
        outputs = sum(bool(name) for name in node.output)
        call = OnnxCall(self.builder, self._name(node), tuple(inputs), dict(attributes), outputs, self.opset)
        with np.errstate(all="ignore"):  # what is not finite is refused
            result = function(call)
        return result if isinstance(result, list) else [result]

    def _name(self, node: onnx.NodeProto) -> str:
        """The layer's name where its weight carries it (`layer1.0.conv1.weight`), else the node's own."""
        for name in node.input[1:2]:
            layer, dot, kind = name.rpartition(".")
            if dot and kind in ("weight", "gamma", "kernel") and layer:
                return str(layer)
        name = str(node.name or node.output[0]).removesuffix(f":{node.op_type}")  # as our own files say it
        parts = [part for part in name.split("/") if part]
        if len(parts) > 1 and parts[-1].startswith(node.op_type):
            parts.pop()
        return "/".join(parts) or node.op_type

    def _unsupported(self, node: onnx.NodeProto, why: str) -> UnsupportedOperatorError:
        kind = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        name = node.name or (node.output[0] if node.output else "")
        quantizes = node.op_type == "QuantizeLinear" and self.builder.keep_integers
        if why and (self.builder.quants or quantizes):
            why += "; --requantize chooses new integers"
        return UnsupportedOperatorError(
            f"{self.source.path}: operator {kind} of node {name!r} is not supported{': ' if why else ''}{why}"
        )


def _shape_of(kind: str, value: Any, attributes: Mapping[str, Any]) -> Array:
    shape = np.asarray(value.shape, np.int64)
    if kind == "Size":
        return np.asarray(shape.prod(), np.int64)
    return shape[attributes.get("start", 0) : attributes.get("end", len(shape))]


def _attribute(entry: onnx.AttributeProto) -> Any:
    if entry.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS):
        return None
    try:
        value = helper.get_attribute_value(entry)
    except ValueError:
        return None
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
