"""Graph -> TFLite, as a flatbuffer written directly.

Tensors are NHWC; weights OHWI (depthwise 1HWO). A tensor has its node's name; weights are NAME/weight and
NAME/bias. Nothing is transposed at run time: the classifier behind a Flatten gets its columns reordered here.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from edge_resnet.errors import GraphError
from edge_resnet.export.tflite_builder import TfliteBuilder
from edge_resnet.graph.clipping import integer_bounds
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.nodes import (
    Activation,
    Add,
    AvgPool,
    Concat,
    Conv,
    Flatten,
    GlobalAvgPool,
    HardSigmoid,
    Input,
    IntWeights,
    Linear,
    MaxPool,
    Mul,
    Node,
    Normalize,
    Pad,
    PadChannels,
    Padding,
    PadMode,
    QuantParams,
    Relu,
    Reshape,
    Shape,
    Sigmoid,
    SliceChannels,
    Subsample,
)
from edge_resnet.graph.passes.fuse_activations import is_non_negative

__all__ = ["IoType", "tflite_bytes"]

_VALID, _SAME = schema.Padding.VALID, schema.Padding.SAME


class IoType(StrEnum):
    """What an app hands over and gets back.

    uint8 takes the image's raw bytes, float32 takes the same values as floats (0..255); both answer float32
    logits. int8 takes bytes minus 128 and answers int8 logits, for NPUs and microcontrollers.
    """

    UINT8 = "uint8"
    INT8 = "int8"
    FLOAT32 = "float32"


def tflite_bytes(graph: Graph, io: IoType = IoType.UINT8) -> bytearray:
    """The .tflite file of a quantized or a float graph, batch 1 (resizable).

    Raises GraphError for a node that should have been lowered, and for int8 ends on a float graph.
    """
    return _Writer(graph).write(io)


class _Writer:
    """Adds each node's operators; `made` maps a node to the number of its output tensor."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.quantized = graph.is_quantized
        self.builder = TfliteBuilder()
        self.made: dict[str, int] = {}

    def write(self, io: IoType) -> bytearray:
        first = self._input(io)
        for node in self.graph.nodes[1:]:
            if type(node) not in _WRITERS:
                raise GraphError(f"node {node.name!r} ({type(node).__name__}) must be lowered before export")
            _WRITERS[type(node)](self, node)
        last = self._output(io)
        return self.builder.finish(self.graph.name, {"image": first}, {"logits": last})

    # The ends.

    def _input(self, io: IoType) -> int:
        node = self.graph.input
        if not self.quantized:
            if io is IoType.INT8:
                raise GraphError("a float model has no int8 ends; use --io uint8 or float32")
            return self._float_input(node, io)
        assert node.quant is not None
        if any(isinstance(reader, Normalize) for reader in self.graph.consumers[node.name]):
            return self._byte_input(node, io)
        shape, scale = _nhwc(node.shape), np.array([node.quant.scale], np.float32)
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
            return self._float_input(node, io)
        shape = _nhwc(node.shape)
        first = self.builder.tensor(node.name, shape, "uint8", np.ones(1, np.float32), 0)
        self.made[node.name] = self.builder.tensor(f"{node.name}/float32", shape, "float32")
        options = schema.CastOptionsT()
        options.inDataType, options.outDataType = schema.TensorType.UINT8, schema.TensorType.FLOAT32
        self.builder.operator("CAST", [first], self.made[node.name], options)
        return first

    def _float_input(self, node: Node, io: IoType) -> int:
        shape = _nhwc(self.graph.shapes[node.name])
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
        if not self.quantized or io is IoType.INT8:
            return inner
        shape = _nhwc(self.graph.output_shape)
        last = self.builder.tensor(f"{node.name}/float32", shape, "float32")
        self.builder.operator("DEQUANTIZE", [inner], last, schema.DequantizeOptionsT())
        return last

    # What the node writers use.

    def activation(self, node: Node, name: str | None = None, shape: Shape | None = None) -> int:
        """The tensor of a node's output, with its integers if the graph has them."""
        shape = _nhwc(self.graph.shapes[node.name]) if shape is None else shape
        if not self.quantized:
            return self.builder.tensor(name or node.name, shape, "float32")
        assert node.quant is not None
        scale = np.array([node.quant.scale], np.float32)
        return self.builder.tensor(name or node.name, shape, "int8", scale, node.quant.zero_point)

    def emit(self, kind: str, node: Node, inputs: list[int], options: Any = None) -> None:
        self.made[node.name] = self.activation(node)
        self.builder.operator(kind, inputs, self.made[node.name], options)

    def source(self, node: Node, index: int = 0) -> int:
        return self.made[node.inputs[index]]

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
            return [
                self.builder.constant(names[0], arranged),
                self.builder.constant(names[1], node.weights.bias),
            ]
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
        output = self.activation(source, f"{node.name}/padded", shape)
        inputs = [self.source(node), self.builder.constant(f"{node.name}/padding", _amounts(padding))]
        if fill is None:
            self.builder.operator("PAD", inputs, output, schema.PadOptionsT())
        else:
            inputs.append(self._fill(node, source, fill))
            self.builder.operator("PADV2", inputs, output, schema.PadV2OptionsT())
        return output

    def _fill(self, node: Node, source: Node, fill: float) -> int:
        if not self.quantized:
            return self.builder.constant(f"{node.name}/fill", np.array([fill], np.float32))
        quant = self.quant_of(source.name)
        return self.builder.constant(
            f"{node.name}/fill",
            np.array([-128], np.int8),
            scale=np.array([quant.scale], np.float32),
            zero_point=quant.zero_point,
        )


def _nhwc(shape: Shape) -> Shape:
    """[C, H, W] -> [1, H, W, C]; [C] -> [1, C]."""
    return (1, *shape[1:], shape[0])


def _amounts(padding: Padding) -> NDArray[np.int32]:
    """What PAD wants: before and after, for each of N, H, W, C."""
    return np.array([[0, 0], [padding.top, padding.bottom], [padding.left, padding.right], [0, 0]], np.int32)


def _same_padding(shape: Shape, reach: tuple[int, int], stride: tuple[int, int]) -> Padding:
    """The rows and columns that TensorFlow's SAME adds: the odd one at the end."""
    totals = [
        max(0, (-(-size // step) - 1) * step + window - size)
        for size, window, step in zip(shape[1:], reach, stride, strict=True)
    ]
    top, left = totals[0] // 2, totals[1] // 2
    return Padding(top, left, totals[0] - top, totals[1] - left)


_FUSED = {
    Activation.NONE: schema.ActivationFunctionType.NONE,
    Activation.RELU: schema.ActivationFunctionType.RELU,
    Activation.RELU6: schema.ActivationFunctionType.RELU6,
}


def _fused(node: Conv | Linear | Add) -> int:
    """The activation's code. TFLite has no fused clip to [0, 1]; integers that end there need none."""
    if node.activation in _FUSED:
        return int(_FUSED[node.activation])
    if node.quant is None or integer_bounds(node) != (-128, 127):
        raise GraphError(f"node {node.name!r}: TFLite has no fused activation {str(node.activation)!r}")
    return int(schema.ActivationFunctionType.NONE)


def _conv(writer: _Writer, node: Conv) -> None:
    weight = node.weights.weight
    channels = writer.source_shape(node)[0]
    reach = tuple((k - 1) * d + 1 for k, d in zip(weight.shape[2:], node.dilation, strict=True))
    source, padding = writer.source(node), _VALID
    if node.padding:
        if node.padding == _same_padding(writer.source_shape(node), reach, node.stride):
            padding = _SAME
        else:
            source = writer.padded(node, node.padding)
    options: Any
    if node.groups == channels and channels > 1:
        options = schema.DepthwiseConv2DOptionsT()
        options.depthMultiplier = len(weight) // channels
        arranged, axis, kind = weight.transpose(1, 2, 3, 0), 3, "DEPTHWISE_CONV_2D"  # O1HW -> 1HWO
    else:
        options = schema.Conv2DOptionsT()
        arranged, axis, kind = weight.transpose(0, 2, 3, 1), 0, "CONV_2D"  # OIHW -> OHWI
    options.padding = padding
    options.strideH, options.strideW = node.stride
    options.dilationHFactor, options.dilationWFactor = node.dilation
    options.fusedActivationFunction = _fused(node)
    writer.emit(kind, node, [source, *writer.weights(node, arranged, axis)], options)


def _linear(writer: _Writer, node: Linear) -> None:
    weight = node.weights.weight
    flatten = writer.graph.by_name[node.inputs[0]]
    if isinstance(flatten, Flatten):  # columns in [C, H, W] order -> [H, W, C], as the tensor lies in memory
        channels, height, width = writer.source_shape(flatten)
        weight = weight.reshape(-1, channels, height * width).transpose(0, 2, 1).reshape(weight.shape)
    options = schema.FullyConnectedOptionsT()
    options.fusedActivationFunction = _fused(node)
    writer.emit("FULLY_CONNECTED", node, [writer.source(node), *writer.weights(node, weight, 0)], options)


def _add(writer: _Writer, node: Add) -> None:
    options = schema.AddOptionsT()
    options.fusedActivationFunction = _fused(node)
    writer.emit("ADD", node, [writer.source(node, 0), writer.source(node, 1)], options)


def _pool(
    writer: _Writer,
    kind: str,
    node: Node,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    source: int | None = None,
    padding: int = _VALID,
) -> None:
    options = schema.Pool2DOptionsT()
    options.padding = padding
    options.filterHeight, options.filterWidth = kernel
    options.strideH, options.strideW = stride
    writer.emit(kind, node, [writer.source(node) if source is None else source], options)


def _max_pool(writer: _Writer, node: MaxPool) -> None:
    source, padding = None, _VALID
    if node.padding:
        if node.padding == _same_padding(writer.source_shape(node), node.kernel, node.stride):
            padding = _SAME
        else:
            # Zeros do not win against a ReLU's output; against anything else the lowest value does not.
            nodes = writer.graph.by_name
            lowest = (
                None if is_non_negative(nodes[node.inputs[0]], nodes) else float(np.finfo(np.float32).min)
            )
            source = writer.padded(node, node.padding, lowest)
    _pool(writer, "MAX_POOL_2D", node, node.kernel, node.stride, source, padding)


def _global_avg_pool(writer: _Writer, node: GlobalAvgPool) -> None:
    axes = writer.builder.constant(f"{node.name}/axes", np.array([1, 2], np.int32))
    options = schema.ReducerOptionsT()
    options.keepDims = True
    writer.emit("MEAN", node, [writer.source(node), axes], options)


def _reshape(writer: _Writer, node: Flatten | Reshape) -> None:
    shape = np.array([-1, *_nhwc(writer.graph.shapes[node.name])[1:]], np.int32)
    options = schema.ReshapeOptionsT()
    options.newShape = shape
    inputs = [writer.source(node), writer.builder.constant(f"{node.name}/shape", shape)]
    writer.emit("RESHAPE", node, inputs, options)


def _pad_channels(writer: _Writer, node: PadChannels) -> None:
    amounts = np.array([[0, 0], [0, 0], [0, 0], [node.before, node.after]], np.int32)
    inputs = [writer.source(node), writer.builder.constant(f"{node.name}/padding", amounts)]
    writer.emit("PAD", node, inputs, schema.PadOptionsT())


def _pad(writer: _Writer, node: Pad) -> None:
    inputs = [writer.source(node), writer.builder.constant(f"{node.name}/padding", _amounts(node.padding))]
    if node.mode is PadMode.ZERO:
        writer.emit("PAD", node, inputs, schema.PadOptionsT())
        return
    options = schema.MirrorPadOptionsT()
    options.mode = schema.MirrorPadMode.REFLECT
    writer.emit("MIRROR_PAD", node, inputs, options)


def _mul(writer: _Writer, node: Mul) -> None:
    writer.emit("MUL", node, [writer.source(node, 0), writer.source(node, 1)], schema.MulOptionsT())


def _concat(writer: _Writer, node: Concat) -> None:
    options = schema.ConcatenationOptionsT()
    options.axis = 3
    writer.emit("CONCATENATION", node, [writer.made[name] for name in node.inputs], options)


def _slice(writer: _Writer, node: SliceChannels) -> None:
    begin = writer.builder.constant(f"{node.name}/begin", np.array([0, 0, 0, node.start], np.int32))
    size = writer.builder.constant(
        f"{node.name}/size", np.array([-1, -1, -1, node.stop - node.start], np.int32)
    )
    writer.emit("SLICE", node, [writer.source(node), begin, size], schema.SliceOptionsT())


def _hard_sigmoid(writer: _Writer, node: HardSigmoid) -> None:
    """relu6(x + 3) / 6."""
    options = schema.AddOptionsT()
    options.fusedActivationFunction = _FUSED[Activation.RELU6]
    shifted = writer.activation(node, f"{node.name}/shifted")
    three = writer.builder.constant(f"{node.name}/three", np.array([3], np.float32))
    writer.builder.operator("ADD", [writer.source(node), three], shifted, options)
    sixth = writer.builder.constant(f"{node.name}/sixth", np.array([1 / 6], np.float32))
    writer.emit("MUL", node, [shifted, sixth], schema.MulOptionsT())


_RELUS = {Activation.RELU: "RELU", Activation.RELU6: "RELU6", Activation.UNIT: "RELU_0_TO_1"}


def _normalize(writer: _Writer, node: Normalize) -> None:
    mean = writer.builder.constant(f"{node.name}/mean", node.mean)
    if node.quant is not None:
        shape = _nhwc(writer.graph.shapes[node.name])
        centred = writer.builder.tensor(f"{node.name}/centred", shape, "float32")
        writer.builder.operator("SUB", [writer.source(node), mean], centred, schema.SubOptionsT())
        std = writer.builder.constant(f"{node.name}/std", node.std)
        real = writer.builder.tensor(f"{node.name}/real", shape, "float32")
        writer.builder.operator("DIV", [centred, std], real, schema.DivOptionsT())
        writer.emit("QUANTIZE", node, [real], schema.QuantizeOptionsT())
        return
    if np.all(node.std == 1):
        writer.emit("SUB", node, [writer.source(node), mean], schema.SubOptionsT())
        return
    centred = writer.activation(node, f"{node.name}/centred")
    writer.builder.operator("SUB", [writer.source(node), mean], centred, schema.SubOptionsT())
    factor = writer.builder.constant(f"{node.name}/factor", (1 / node.std).astype(np.float32))
    writer.emit("MUL", node, [centred, factor], schema.MulOptionsT())


_WRITERS: dict[type[Node], Callable[..., None]] = {
    Normalize: _normalize,
    Conv: _conv,
    Linear: _linear,
    Relu: lambda writer, node: writer.emit(_RELUS[node.activation], node, [writer.source(node)]),
    Sigmoid: lambda writer, node: writer.emit("LOGISTIC", node, [writer.source(node)]),
    HardSigmoid: _hard_sigmoid,
    Add: _add,
    Mul: _mul,
    Concat: _concat,
    SliceChannels: _slice,
    MaxPool: _max_pool,
    AvgPool: lambda writer, node: _pool(writer, "AVERAGE_POOL_2D", node, node.kernel, node.stride),
    GlobalAvgPool: _global_avg_pool,
    # Every second pixel is a maximum over one pixel: it shares parameters, and NPUs have it.
    Subsample: lambda writer, node: _pool(writer, "MAX_POOL_2D", node, (1, 1), node.stride),
    PadChannels: _pad_channels,
    Pad: _pad,
    Flatten: _reshape,
    Reshape: _reshape,
}
