"""The ONNX operators of each node kind: what `onnx.py` writes between the ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from edge_resnet.graph.nodes import (
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
    QuantParams,
    Relu,
    Reshape,
    Sigmoid,
    SliceChannels,
    Subsample,
)

if TYPE_CHECKING:
    from edge_resnet.export.onnx import OnnxWriter

__all__ = ["WRITERS"]


def _pads(padding: Padding) -> list[int]:
    return [padding.top, padding.left, padding.bottom, padding.right]


def _conv(writer: OnnxWriter, node: Conv) -> None:
    writer.emit(
        "Conv",
        node,
        [writer.source(node), *writer.weights(node)],
        kernel_shape=node.weights.weight.shape[2:],
        strides=node.stride,
        pads=_pads(node.padding),
        dilations=node.dilation,
        group=node.groups,
    )


def _linear(writer: OnnxWriter, node: Linear) -> None:
    writer.emit("Gemm", node, [writer.source(node), *writer.weights(node)], transB=1)


def _max_pool(writer: OnnxWriter, node: MaxPool) -> None:
    writer.emit(
        "MaxPool",
        node,
        [writer.source(node)],
        kernel_shape=node.kernel,
        strides=node.stride,
        pads=_pads(node.padding),
    )


def _border(
    writer: OnnxWriter, node: Node, before: list[int], after: list[int], mode: str = "constant"
) -> None:
    amounts = writer.constant(f"{node.name}/pads", np.array([*before, *after], np.int64))
    writer.emit("Pad", node, [writer.source(node), amounts], mode=mode)


def _pad(writer: OnnxWriter, node: Pad) -> None:
    p = node.padding
    mode = "reflect" if node.mode is PadMode.REFLECT else "constant"
    _border(writer, node, [0, 0, p.top, p.left], [0, 0, p.bottom, p.right], mode)


def _pad_channels(writer: OnnxWriter, node: PadChannels) -> None:
    _border(writer, node, [0, node.before, 0, 0], [0, node.after, 0, 0])


def _relu(writer: OnnxWriter, node: Relu) -> None:
    if node.quant is not None:
        # Not a Clip where a Relu says the same: behind an Add, Qualcomm's QNN (2.7.0) takes a Clip whose
        # upper end is not below the tensor's largest value for no operation, and lets negative sums through.
        if _is_plain(node, node.quant):
            writer.emit("Relu", node, [writer.source(node)])
        else:
            writer.emit("Clip", node, [writer.source(node), *_clip_ends(writer, node)])
    else:
        writer.made[node.name] = writer.clip(writer.source(node), node, node.activation)


def _is_plain(node: Relu, quant: QuantParams) -> bool:
    """Whether the integers end before the activation does."""
    limit = node.activation.limit
    return limit is None or limit >= (127 - quant.zero_point) * quant.scale


def _clip_ends(writer: OnnxWriter, node: Relu) -> list[str]:
    """0 and, for a clipped ReLU, its upper end; quantizing rounds it as integer_bounds does."""
    ends = [writer.constant(f"{node.name}/low", np.array(0, np.float32))]
    if node.activation.limit is not None:
        ends.append(writer.constant(f"{node.name}/high", np.array(node.activation.limit, np.float32)))
    return ends


def _concat(writer: OnnxWriter, node: Concat) -> None:
    writer.emit("Concat", node, [writer.made[name] for name in node.inputs], axis=1)


def _slice(writer: OnnxWriter, node: SliceChannels) -> None:
    parts = (("start", node.start), ("stop", node.stop), ("axis", 1))
    ends = [writer.constant(f"{node.name}/{name}", np.array([value], np.int64)) for name, value in parts]
    writer.emit("Slice", node, [writer.source(node), *ends])


def _reshape(writer: OnnxWriter, node: Reshape) -> None:
    shape = writer.constant(f"{node.name}/shape", np.array([0, *node.shape], np.int64))
    writer.emit("Reshape", node, [writer.source(node), shape])


def _normalize(writer: OnnxWriter, node: Normalize) -> None:
    mean = writer.real(node, f"{node.name}/mean", node.mean[:, None, None])
    if np.all(node.std == 1):
        writer.emit("Sub", node, [writer.source(node), mean])
        return
    centred = writer.operator("Sub", [writer.source(node), mean], f"{node.name}/centred")
    writer.emit("Div", node, [centred, writer.real(node, f"{node.name}/std", node.std[:, None, None])])


WRITERS: dict[type[Node], Callable[..., None]] = {
    Normalize: _normalize,
    Conv: _conv,
    Linear: _linear,
    Relu: _relu,
    Sigmoid: lambda writer, node: writer.emit("Sigmoid", node, [writer.source(node)]),
    HardSigmoid: lambda writer, node: writer.emit(
        "HardSigmoid", node, [writer.source(node)], alpha=1 / 6, beta=0.5
    ),
    Add: lambda writer, node: writer.emit("Add", node, [writer.source(node, 0), writer.source(node, 1)]),
    Mul: lambda writer, node: writer.emit("Mul", node, [writer.source(node, 0), writer.source(node, 1)]),
    Concat: _concat,
    SliceChannels: _slice,
    MaxPool: _max_pool,
    AvgPool: lambda writer, node: writer.emit(
        "AveragePool", node, [writer.source(node)], kernel_shape=node.kernel, strides=node.stride
    ),
    GlobalAvgPool: lambda writer, node: writer.emit("GlobalAveragePool", node, [writer.source(node)]),
    Subsample: lambda writer, node: writer.emit(
        "MaxPool", node, [writer.source(node)], kernel_shape=(1, 1), strides=node.stride
    ),
    PadChannels: _pad_channels,
    Pad: _pad,
    Flatten: lambda writer, node: writer.emit("Flatten", node, [writer.source(node)], axis=1),
    Reshape: _reshape,
}
