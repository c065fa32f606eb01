"""Graph -> TFLite, as a flatbuffer written directly.

Tensors are NHWC; weights OHWI (depthwise 1HWO). A tensor has its node's name; weights are NAME/weight and
NAME/bias. Where a node computes in float among integers (see Graph.computes_in_integers), NAME/dequantized
are the real values of what it reads, and NAME/real its output before it is quantized.
Nothing is transposed at run time: the classifier behind a Flatten gets its columns reordered here.
In a float16 file weights and biases are float16, a DEQUANTIZE behind each, as TFLite's own float16
quantization has it: GPU and NPU delegates take them so, the CPU computes in float32.
"""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from edge_resnet.errors import GraphError
from edge_resnet.export.half import stored_floats
from edge_resnet.export.tflite_builder import TfliteBuilder
from edge_resnet.export.tflite_operators import WRITERS, nhwc, padding_amounts
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.nodes import (
    Conv,
    Input,
    IntWeights,
    Linear,
    Node,
    Normalize,
    Padding,
    QuantParams,
    Shape,
)

__all__ = ["IoType", "tflite_bytes"]


class IoType(StrEnum):
    """What an app hands over and gets back.

    uint8 takes the image's raw bytes, float32 takes the same values as floats (0..255); both answer float32
    logits. int8 takes bytes minus 128 and answers int8 logits, for NPUs and microcontrollers
    (float32 logits where the last layer was kept in float).
    """

    UINT8 = "uint8"
    INT8 = "int8"
    FLOAT32 = "float32"


def tflite_bytes(graph: Graph, io: IoType = IoType.UINT8, *, half: bool = False) -> bytearray:
    """The .tflite file of a quantized or a float graph, batch 1 (resizable).

    `half`: float weights and biases are stored in float16.
    Raises GraphError for a node that should have been lowered, for int8 ends on a float graph, and for a
    weight that float16 cannot hold.
    """
    return TfliteWriter(graph, half).write(io)


class TfliteWriter:
    """Adds each node's operators; `made` maps a node to the number of its output tensor."""

    def __init__(self, graph: Graph, half: bool = False) -> None:
        self.graph = graph
        self.half = half
        self.builder = TfliteBuilder()
        self.made: dict[str, int] = {}
        self._real: dict[str, int] = {}  # of integers that a float node reads

    def write(self, io: IoType) -> bytearray:
        first = self._input(io)
        for node in self.graph.nodes[1:]:
            if type(node) not in WRITERS:
                raise GraphError(f"node {node.name!r} ({type(node).__name__}) must be lowered before export")
            WRITERS[type(node)](self, node)
        last = self._output(io)
        return self.builder.finish(self.graph.name, {"image": first}, {"logits": last})

    # The ends.

    def _input(self, io: IoType) -> int:
        node = self.graph.input
        if node.quant is None:
            if io is IoType.INT8:
                raise GraphError("a float model has no int8 ends; use --io uint8 or float32")
            return self._float_input(node, io)
        if any(isinstance(reader, Normalize) for reader in self.graph.consumers[node.name]):
            return self._byte_input(node, io)
        shape, scale = nhwc(node.shape), np.array([node.quant.scale], np.float32)
        if io is IoType.INT8:
            self.made[node.name] = self.activation(node)
            return self.made[node.name]
        inner = self.activation(node, f"{node.name}/int8")
        self.made[node.name] = inner
        if io is IoType.UINT8:
            first = self.builder.tensor(node.name, shape, "uint8", scale, node.quant.zero_point + 128)
            self.builder.operator("QUANTIZE", [first], inner, schema.QuantizeOptionsT())
            return first
        # (x - grey) * scale gives the input's real values; scale is a power of two, so it is exact.
        first = self.builder.tensor(node.name, shape, "float32")
        grey = self.builder.constant(f"{node.name}/grey", np.array([node.quant.zero_point + 128], np.float32))
        centred = self.builder.tensor(f"{node.name}/centred", shape, "float32")
        self.builder.operator("SUB", [first, grey], centred, schema.SubOptionsT())
        factor = self.builder.constant(f"{node.name}/scale", scale)
        real = self.builder.tensor(f"{node.name}/real", shape, "float32")
        self.builder.operator("MUL", [centred, factor], real, schema.MulOptionsT())
        self.builder.operator("QUANTIZE", [real], inner, schema.QuantizeOptionsT())
        return first

    def _byte_input(self, node: Input, io: IoType) -> int:
        """Bytes that a Normalize node of a model that came quantized reads, as floats 0..255."""
        if io is IoType.INT8:
            raise GraphError("a model that normalizes its image in float has no int8 ends; use --io uint8")
        if io is IoType.FLOAT32:
            first = self._float_input(node, io)
            self._real[node.name] = self.made[node.name]
            return first
        shape = nhwc(node.shape)
        first = self.builder.tensor(node.name, shape, "uint8", np.ones(1, np.float32), 0)
        self.made[node.name] = self.builder.tensor(f"{node.name}/float32", shape, "float32")
        self._real[node.name] = self.made[node.name]
        options = schema.CastOptionsT()
        options.inDataType, options.outDataType = schema.TensorType.UINT8, schema.TensorType.FLOAT32
        self.builder.operator("CAST", [first], self.made[node.name], options)
        return first

    def _float_input(self, node: Node, io: IoType) -> int:
        shape = nhwc(self.graph.shapes[node.name])
        if io is IoType.FLOAT32:
            self.made[node.name] = self.builder.tensor(node.name, shape, "float32")
            return self.made[node.name]
        first = self.builder.tensor(node.name, shape, "uint8")
        self.made[node.name] = self.builder.tensor(f"{node.name}/float32", shape, "float32")
        options = schema.CastOptionsT()
        options.inDataType, options.outDataType = schema.TensorType.UINT8, schema.TensorType.FLOAT32
        self.builder.operator("CAST", [first], self.made[node.name], options)
        return first

    def _output(self, io: IoType) -> int:
        node = self.graph.output
        inner = self.made[node.name]
        if node.quant is None or io is IoType.INT8:
            return inner
        shape = nhwc(self.graph.output_shape)
        last = self.builder.tensor(f"{node.name}/float32", shape, "float32")
        self.builder.operator("DEQUANTIZE", [inner], last, schema.DequantizeOptionsT())
        return last

    # What the node writers use.

    def activation(self, node: Node, name: str | None = None, shape: Shape | None = None) -> int:
        """The tensor of a node's output, with its integers if it has them."""
        shape = nhwc(self.graph.shapes[node.name]) if shape is None else shape
        if node.quant is None:
            return self.builder.tensor(name or node.name, shape, "float32")
        scale = np.array([node.quant.scale], np.float32)
        return self.builder.tensor(name or node.name, shape, "int8", scale, node.quant.zero_point)

    def emit(self, kind: str, node: Node, inputs: list[int], options: Any = None) -> None:
        """The operator, and QUANTIZE behind it where a node that computes in float has integers."""
        self.made[node.name] = self.activation(node)
        if node.quant is None or self.graph.computes_in_integers(node):
            self.builder.operator(kind, inputs, self.made[node.name], options)
            return
        real = self.builder.tensor(f"{node.name}/real", nhwc(self.graph.shapes[node.name]), "float32")
        self.builder.operator(kind, inputs, real, options)
        self.builder.operator("QUANTIZE", [real], self.made[node.name], schema.QuantizeOptionsT())

    def source(self, node: Node, index: int = 0) -> int:
        """The tensor that the node reads: integers, or their real values where it computes in float."""
        source = self.graph.by_name[node.inputs[index]]
        if source.quant is None or self.graph.computes_in_integers(node):
            return self.made[source.name]
        if source.name not in self._real:
            shape = nhwc(self.graph.shapes[source.name])
            self._real[source.name] = self.builder.tensor(f"{source.name}/dequantized", shape, "float32")
            self.builder.operator(
                "DEQUANTIZE", [self.made[source.name]], self._real[source.name], schema.DequantizeOptionsT()
            )
        return self._real[source.name]

    def source_shape(self, node: Node) -> Shape:
        return self.graph.shapes[node.inputs[0]]

    def quant_of(self, name: str) -> QuantParams:
        quant = self.graph.by_name[name].quant
        assert quant is not None
        return quant

    def weights(self, node: Conv | Linear, arranged: NDArray[Any], axis: int) -> list[int]:
        """The tensors of weight (already in the file's axis order) and bias."""
        names = (f"{node.name}/weight", f"{node.name}/bias")
        if not isinstance(node.weights, IntWeights):
            values = (arranged, node.weights.bias)
            if self.half:
                halves = [stored_floats(node.name, value, np.float16) for value in values]
                return [self.builder.half_constant(*pair) for pair in zip(names, halves, strict=True)]
            return [self.builder.constant(*pair) for pair in zip(names, values, strict=True)]
        scale = node.weights.scale
        bias_scale = np.float32(self.quant_of(node.inputs[0]).scale) * scale
        return [
            self.builder.constant(names[0], arranged, scale=scale, axis=axis),
            self.builder.constant(names[1], node.weights.bias, scale=bias_scale),
        ]

    def padded(self, node: Node, padding: Padding, fill: float | None = None) -> int:
        """The node's input with rows and columns added: zeros, or `fill` where given."""
        source = self.graph.by_name[node.inputs[0]]
        channels, height, width = self.graph.shapes[source.name]
        shape = (
            1,
            height + padding.top + padding.bottom,
            width + padding.left + padding.right,
            channels,
        )
        if not self.graph.computes_in_integers(node):
            source = replace(source, quant=None)
        output = self.activation(source, f"{node.name}/padded", shape)
        inputs = [self.source(node), self.builder.constant(f"{node.name}/padding", padding_amounts(padding))]
        if fill is None:
            self.builder.operator("PAD", inputs, output, schema.PadOptionsT())
        else:
            inputs.append(self._fill(node, source, fill))
            self.builder.operator("PADV2", inputs, output, schema.PadV2OptionsT())
        return output

    def _fill(self, node: Node, source: Node, fill: float) -> int:
        quant = source.quant
        if quant is None:
            return self.builder.constant(f"{node.name}/fill", np.array([fill], np.float32))
        return self.builder.constant(
            f"{node.name}/fill",
            np.array([-128], np.int8),
            scale=np.array([quant.scale], np.float32),
            zero_point=quant.zero_point,
        )
