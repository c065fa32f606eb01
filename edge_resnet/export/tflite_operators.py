"""The TFLite operators of each node kind: what `tflite.py` writes between the ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from edge_resnet.errors import GraphError
from edge_resnet.graph.clipping import integer_bounds
from edge_resnet.graph.nodes import (
    Activation,
    Add,
    AvgPool,
    Concat,
    Conv,
    Flatten,
    GlobalAvgPool,
    HardSigmoid,
    Linear,
    MaxPool,
    Mul,
    Node,
    Normalize,
    Pad,
    PadChannels,
    Padding,
    PadMode,
    Relu,
    Reshape,
    Shape,
    Sigmoid,
    SliceChannels,
    Subsample,
)
from edge_resnet.graph.passes.fuse_activations import is_non_negative

if TYPE_CHECKING:
    from edge_resnet.export.tflite import TfliteWriter

__all__ = ["WRITERS", "nhwc", "padding_amounts"]

_VALID, _SAME = schema.Padding.VALID, schema.Padding.SAME


def nhwc(shape: Shape) -> Shape:
    """[C, H, W] -> [1, H, W, C]; [C] -> [1, C]."""
    return (1, *shape[1:], shape[0])


def padding_amounts(padding: Padding) -> NDArray[np.int32]:
    """What PAD wants: before and after, for each of N, H, W, C."""
    return np.array([[0, 0], [padding.top, padding.bottom], [padding.left, padding.right], [0, 0]], np.int32)


_FUSED = {
    Activation.NONE: schema.ActivationFunctionType.NONE,
    Activation.RELU: schema.ActivationFunctionType.RELU,
    Activation.RELU6: schema.ActivationFunctionType.RELU6,
}


def _fused(node: Conv | Linear | Add) -> int:
    """The activation's code. TFLite has none that clips to [0, 1]; integers that end there need none."""
    if node.activation in _FUSED:
        return int(_FUSED[node.activation])
    if node.quant is not None and integer_bounds(node) != (-128, 127):
        raise GraphError(f"node {node.name!r}: TFLite has no fused activation {str(node.activation)!r}")
    return int(schema.ActivationFunctionType.NONE)


def _layer(
    writer: TfliteWriter, kind: str, node: Conv | Linear | Add, inputs: list[int], options: Any
) -> None:
    """The operator with its fused activation, or with one behind it where TFLite cannot fuse it."""
    options.fusedActivationFunction = _fused(node)
    if node.quant is not None or node.activation in _FUSED:
        writer.emit(kind, node, inputs, options)
        return
    total = writer.activation(node, f"{node.name}/sum")
    writer.builder.operator(kind, inputs, total, options)
    writer.emit(_RELUS[node.activation], node, [total])


def _conv(writer: TfliteWriter, node: Conv) -> None:
    weight = node.weights.weight
    channels = writer.source_shape(node)[0]
    reach = tuple((k - 1) * d + 1 for k, d in zip(weight.shape[2:], node.dilation, strict=True))
    source, padding = writer.source(node), _VALID
    if node.padding:
        if node.padding == Padding.same(writer.source_shape(node)[1:], reach, node.stride):
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
    _layer(writer, kind, node, [source, *writer.weights(node, arranged, axis)], options)


def _linear(writer: TfliteWriter, node: Linear) -> None:
    weight = node.weights.weight
    flatten = writer.graph.by_name[node.inputs[0]]
    if isinstance(flatten, Flatten):  # columns in [C, H, W] order -> [H, W, C], as the tensor lies in memory
        channels, height, width = writer.source_shape(flatten)
        weight = weight.reshape(-1, channels, height * width).transpose(0, 2, 1).reshape(weight.shape)
    inputs = [writer.source(node), *writer.weights(node, weight, 0)]
    _layer(writer, "FULLY_CONNECTED", node, inputs, schema.FullyConnectedOptionsT())


def _add(writer: TfliteWriter, node: Add) -> None:
    _layer(writer, "ADD", node, [writer.source(node, 0), writer.source(node, 1)], schema.AddOptionsT())


def _pool(
    writer: TfliteWriter,
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


def _max_pool(writer: TfliteWriter, node: MaxPool) -> None:
    source, padding = None, _VALID
    if node.padding:
        if node.padding == Padding.same(writer.source_shape(node)[1:], node.kernel, node.stride):
            padding = _SAME
        else:
            # Zeros do not win against a ReLU's output; against anything else the lowest value does not.
            nodes = writer.graph.by_name
            lowest = (
                None if is_non_negative(nodes[node.inputs[0]], nodes) else float(np.finfo(np.float32).min)
            )
            source = writer.padded(node, node.padding, lowest)
    _pool(writer, "MAX_POOL_2D", node, node.kernel, node.stride, source, padding)


def _global_avg_pool(writer: TfliteWriter, node: GlobalAvgPool) -> None:
    axes = writer.builder.constant(f"{node.name}/axes", np.array([1, 2], np.int32))
    options = schema.ReducerOptionsT()
    options.keepDims = True
    writer.emit("MEAN", node, [writer.source(node), axes], options)


def _reshape(writer: TfliteWriter, node: Flatten | Reshape) -> None:
    shape = np.array([-1, *nhwc(writer.graph.shapes[node.name])[1:]], np.int32)
    options = schema.ReshapeOptionsT()
    options.newShape = shape
    inputs = [writer.source(node), writer.builder.constant(f"{node.name}/shape", shape)]
    writer.emit("RESHAPE", node, inputs, options)


def _pad_channels(writer: TfliteWriter, node: PadChannels) -> None:
    amounts = np.array([[0, 0], [0, 0], [0, 0], [node.before, node.after]], np.int32)
    inputs = [writer.source(node), writer.builder.constant(f"{node.name}/padding", amounts)]
    writer.emit("PAD", node, inputs, schema.PadOptionsT())


def _pad(writer: TfliteWriter, node: Pad) -> None:
    inputs = [
        writer.source(node),
        writer.builder.constant(f"{node.name}/padding", padding_amounts(node.padding)),
    ]
    if node.mode is PadMode.ZERO:
        writer.emit("PAD", node, inputs, schema.PadOptionsT())
        return
    options = schema.MirrorPadOptionsT()
    options.mode = schema.MirrorPadMode.REFLECT
    writer.emit("MIRROR_PAD", node, inputs, options)


def _mul(writer: TfliteWriter, node: Mul) -> None:
    writer.emit("MUL", node, [writer.source(node, 0), writer.source(node, 1)], schema.MulOptionsT())


def _concat(writer: TfliteWriter, node: Concat) -> None:
    options = schema.ConcatenationOptionsT()
    options.axis = 3
    sources = [writer.source(node, index) for index in range(len(node.inputs))]
    writer.emit("CONCATENATION", node, sources, options)


def _slice(writer: TfliteWriter, node: SliceChannels) -> None:
    begin = writer.builder.constant(f"{node.name}/begin", np.array([0, 0, 0, node.start], np.int32))
    size = writer.builder.constant(
        f"{node.name}/size", np.array([-1, -1, -1, node.stop - node.start], np.int32)
    )
    writer.emit("SLICE", node, [writer.source(node), begin, size], schema.SliceOptionsT())


def _hard_sigmoid(writer: TfliteWriter, node: HardSigmoid) -> None:
    """relu6(x + 3) / 6."""
    options = schema.AddOptionsT()
    options.fusedActivationFunction = _FUSED[Activation.RELU6]
    shifted = writer.activation(node, f"{node.name}/shifted")
    three = writer.builder.constant(f"{node.name}/three", np.array([3], np.float32))
    writer.builder.operator("ADD", [writer.source(node), three], shifted, options)
    sixth = writer.builder.constant(f"{node.name}/sixth", np.array([1 / 6], np.float32))
    writer.emit("MUL", node, [shifted, sixth], schema.MulOptionsT())


_RELUS = {Activation.RELU: "RELU", Activation.RELU6: "RELU6", Activation.UNIT: "RELU_0_TO_1"}


def _normalize(writer: TfliteWriter, node: Normalize) -> None:
    mean = writer.builder.constant(f"{node.name}/mean", node.mean)
    if node.quant is not None:
        shape = nhwc(writer.graph.shapes[node.name])
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


WRITERS: dict[type[Node], Callable[..., None]] = {
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
