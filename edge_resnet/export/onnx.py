"""Graph -> ONNX, in the QDQ form that ONNX Runtime fuses completely.

A tensor x of the graph is x (float), x/quantized (uint8) and x/dequantized (float) in the file; weights are
NAME/weight (int8), NAME/bias (int32). What the fusion needs, found by trying:

  activations uint8, weights int8           int8 activations leave most CPU kernels in float
  scale and zero point of activations 0-d   with shape [1] Conv fuses, Add and GlobalAveragePool do not
  quantized outputs everywhere              also behind GlobalAveragePool, Flatten and the last Gemm
  bias int32 behind a DequantizeLinear      or the last Gemm stays in float

A ReLU is not written where its output's zero point is the lowest integer, since quantizing clips there
already. Elsewhere the integers are clipped (x/clipped in the file): between the sum and its integers a Relu
or Clip would keep the convolution from being fused.
A node that computes in float among integers (see Graph.computes_in_integers) has float weights and stands
between a DequantizeLinear with a Clip (x/real) and a QuantizeLinear, or beside another float node.
The image comes as raw bytes, uint8 [N, 3, H, W]. A float graph is written in float32, or in float16 from the
bytes to the last node, whose logits become float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from edge_resnet.errors import GraphError
from edge_resnet.export.half import stored_floats
from edge_resnet.export.onnx_operators import WRITERS
from edge_resnet.graph.clipping import integer_bounds
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.nodes import (
    Activation,
    Conv,
    FloatWeights,
    IntWeights,
    Linear,
    Node,
    QuantParams,
    Relu,
    Shape,
)

__all__ = ["OPSET", "onnx_bytes"]

OPSET = 17
_IR_VERSION = 8  # what runtimes of opset 17's time read


def onnx_bytes(graph: Graph, *, half: bool = False) -> bytes:
    """The .onnx file of a quantized or a float graph, with a symbolic batch axis `N`.

    `half`: a float graph's tensors are float16.
    Raises GraphError for a node that should have been lowered, and for a number that float16 cannot hold.
    """
    return OnnxWriter(graph, half).model().SerializeToString(deterministic=True)  # type: ignore[no-any-return]


class OnnxWriter:
    """Adds each node's operators; `made` maps a node to the float tensor that its readers take."""

    def __init__(self, graph: Graph, half: bool = False) -> None:
        self.graph = graph
        self.dtype = np.dtype(np.float16 if half else np.float32)  # of a float graph's tensors
        self.proto = onnx.ModelProto(ir_version=_IR_VERSION, producer_name="edge-resnet")
        self.made: dict[str, str] = {}
        self._kept: set[str] = set()

    def model(self) -> onnx.ModelProto:
        self._input()
        for node in self.graph.nodes[1:]:
            if type(node) not in WRITERS:
                raise GraphError(f"node {node.name!r} ({type(node).__name__}) must be lowered before export")
            WRITERS[type(node)](self, node)
        if self.dtype == np.float16:
            self.operator("Cast", [self.made[self.graph.output.name]], "logits", to=TensorProto.FLOAT)
        self.proto.graph.node[-1].output[0] = "logits"
        self.proto.graph.name = self.graph.name
        self.proto.graph.input.append(_value("image", TensorProto.UINT8, self.graph.input.shape))
        self.proto.graph.output.append(_value("logits", TensorProto.FLOAT, self.graph.output_shape))
        self.proto.opset_import.append(helper.make_opsetid("", OPSET))
        if self.graph.labels:
            helper.set_model_props(self.proto, {"labels": "\n".join(self.graph.labels)})
        return self.proto

    def _input(self) -> None:
        node = self.graph.input
        if node.quant is not None:
            self.made[node.name] = self._dequantized("image", node.quant, node.name)
        else:
            self.made[node.name] = self.operator(
                "Cast",
                ["image"],
                f"{node.name}/{self.dtype.name}",
                to=helper.np_dtype_to_tensor_dtype(self.dtype),
            )

    # What the node writers use.

    def constant(self, name: str, value: NDArray[Any]) -> str:
        # In place: each of the library's helpers would copy the weights once more.
        self.proto.graph.initializer.add(
            name=name,
            dims=value.shape,
            data_type=helper.np_dtype_to_tensor_dtype(value.dtype),
            raw_data=value.tobytes(),
        )
        return name

    def real(self, node: Node, name: str, value: Any) -> str:
        """A constant of real values in the file's float type."""
        return self.constant(name, stored_floats(node.name, value, self.dtype))

    def operator(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        node = helper.make_node(kind, inputs, [output], name=f"{output}:{kind}", **attributes)
        self.proto.graph.node.append(node)
        return output

    def emit(self, kind: str, node: Node, inputs: list[str], **attributes: Any) -> None:
        """The operator, then its activation (float) or its integers (quantized)."""
        activation = Activation.NONE if isinstance(node, Relu) else _activation(node)
        if node.quant is None:
            clips = activation is not Activation.NONE
            output = self.operator(kind, inputs, f"{node.name}/sum" if clips else node.name, **attributes)
            self.made[node.name] = self.clip(output, node, activation) if clips else output
            return
        output = self.operator(kind, inputs, node.name, **attributes)
        scale, zero = self._parameters(node.name, node.quant)
        quantized = self.operator("QuantizeLinear", [output, scale, zero], f"{node.name}/quantized")
        if integer_bounds(node) != (-128, 127) and not isinstance(node, Relu):
            quantized = self._clipped_integers(node, quantized)
        self.made[node.name] = self.operator(
            "DequantizeLinear", [quantized, scale, zero], f"{node.name}/dequantized"
        )

    def clip(self, source: str, node: Node, activation: Activation) -> str:
        """A float activation behind `source`, as the node's output."""
        if activation.limit is None:
            return self.operator("Relu", [source], node.name)
        ends = [
            self.real(node, f"{node.name}/{end}", value)
            for end, value in (("low", 0), ("high", activation.limit))
        ]
        return self.operator("Clip", [source, *ends], node.name)

    def _clipped_integers(self, node: Node, quantized: str) -> str:
        ends = [
            self.constant(f"{node.name}/{end}", np.array(value + 128, np.uint8))
            for end, value in zip(("low", "high"), integer_bounds(node), strict=True)
        ]
        return self.operator("Clip", [quantized, *ends], f"{node.name}/clipped")

    def source(self, node: Node, index: int = 0) -> str:
        source = self.graph.by_name[node.inputs[index]]
        if source.quant is None or not isinstance(getattr(node, "weights", None), FloatWeights):
            return self.made[source.name]
        return self._kept_real(source.name, source.quant)

    def _kept_real(self, name: str, quant: QuantParams) -> str:
        """The real values of integers behind a Clip that changes none of them.

        ONNX Runtime gives float weights right behind a DequantizeLinear integers of its own, one scale for
        all channels (onnxruntime/core/optimizer/qdq_transformer/weight_bias_quantization.cc).
        """
        output = f"{name}/real"
        if output not in self._kept:
            self._kept.add(output)
            ends = np.array([-128, 127]) - quant.zero_point
            constants = [
                self.constant(f"{output}_{end}", np.array(np.float32(quant.scale) * value, np.float32))
                for end, value in zip(("least", "largest"), ends.astype(np.float32), strict=True)
            ]
            self.operator("Clip", [self.made[name], *constants], output)
        return output

    def weights(self, node: Conv | Linear) -> list[str]:
        """Weight and bias as float tensors: constants, or integers behind a DequantizeLinear."""
        weight, bias = f"{node.name}/weight", f"{node.name}/bias"
        if isinstance(node.weights, FloatWeights):
            values = ((weight, node.weights.weight), (bias, node.weights.bias))
            return [self.real(node, name, value) for name, value in values]
        assert isinstance(node.weights, IntWeights)
        source = self.graph.by_name[node.inputs[0]].quant
        assert source is not None
        scale = node.weights.scale
        return [
            self._dequantized_constant(weight, node.weights.weight, scale),
            self._dequantized_constant(bias, node.weights.bias, np.float32(source.scale) * scale),
        ]

    def _dequantized_constant(self, name: str, q: NDArray[Any], scale: NDArray[np.float32]) -> str:
        inputs = [
            self.constant(name, q),
            self.constant(f"{name}_scale", scale),
            self.constant(f"{name}_zero_point", np.zeros(len(scale), q.dtype)),
        ]
        return self.operator("DequantizeLinear", inputs, f"{name}/dequantized", axis=0)

    def _parameters(self, name: str, quant: QuantParams | None) -> tuple[str, str]:
        assert quant is not None
        return (
            self.constant(f"{name}/scale", np.array(quant.scale, np.float32)),
            self.constant(f"{name}/zero_point", np.array(quant.zero_point + 128, np.uint8)),
        )

    def _dequantized(self, source: str, quant: QuantParams | None, name: str) -> str:
        scale, zero = self._parameters(name, quant)
        return self.operator("DequantizeLinear", [source, scale, zero], f"{name}/dequantized")


def _activation(node: Node) -> Activation:
    activation: Activation = getattr(node, "activation", Activation.NONE)
    return activation


def _value(name: str, kind: int, shape: Shape) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, ["N", *shape])
