"""The MIL operations of each node kind: what `coreml.py` writes between the ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edge_resnet.graph.nodes import (
    Add,
    AvgPool,
    BatchNorm,
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
    Sigmoid,
    SliceChannels,
    Subsample,
)

if TYPE_CHECKING:
    from edge_resnet.export.coreml import MilWriter

__all__ = ["WRITERS"]


def _pads(padding: Padding) -> list[int]:
    return [padding.top, padding.bottom, padding.left, padding.right]


def _conv(writer: MilWriter, node: Conv) -> None:
    writer.emit(
        node,
        writer.mb.conv,
        x=writer.source(node),
        strides=list(node.stride),
        pad_type="custom",
        pad=_pads(node.padding),
        dilations=list(node.dilation),
        groups=node.groups,
        **writer.weights(node),
    )


def _max_pool(writer: MilWriter, node: MaxPool | Subsample) -> None:
    kernel, padding = (node.kernel, node.padding) if isinstance(node, MaxPool) else ((1, 1), Padding())
    writer.emit(
        node,
        writer.mb.max_pool,
        x=writer.source(node),
        kernel_sizes=list(kernel),
        strides=list(node.stride),
        pad_type="custom",
        pad=_pads(padding),
    )


def _avg_pool(writer: MilWriter, node: AvgPool) -> None:
    writer.emit(
        node,
        writer.mb.avg_pool,
        x=writer.source(node),
        kernel_sizes=list(node.kernel),
        strides=list(node.stride),
        pad_type="valid",
    )


def _border(writer: MilWriter, node: Node, amounts: list[int], mode: str = "constant") -> None:
    zero = writer.dtype(0)
    writer.emit(node, writer.mb.pad, x=writer.source(node), pad=amounts, mode=mode, constant_val=zero)


def _pad(writer: MilWriter, node: Pad) -> None:
    if node.mode is PadMode.ZERO:
        _border(writer, node, [0, 0, 0, 0, *_pads(node.padding)])
    else:  # MIL mirrors the last two axes only, and takes amounts for just those
        _border(writer, node, _pads(node.padding), "reflect")


def _relu(writer: MilWriter, node: Relu) -> None:
    writer.emit(node, lambda **v: writer.clip(v["x"], node.activation, v["name"]), x=writer.source(node))


def _concat(writer: MilWriter, node: Concat) -> None:
    writer.emit(node, writer.mb.concat, values=[writer.made[name] for name in node.inputs], axis=1)


def _slice(writer: MilWriter, node: SliceChannels) -> None:
    _, height, width = writer.graph.shapes[node.name]
    writer.emit(
        node,
        writer.mb.slice_by_size,
        x=writer.source(node),
        begin=[0, node.start, 0, 0],
        size=[1, node.stop - node.start, height, width],
    )


def _normalize(writer: MilWriter, node: Normalize) -> None:
    mb = writer.mb
    if writer.graph.input.quant is not None:  # of a model that came quantized: real values of the bytes
        mean, std = (writer.stored(node, _per_channel(values)) for values in (node.mean, node.std))
        value = mb.sub(x=writer.source(node), y=mean, name=writer.name(node, "centred"))
        writer.emit(node, mb.real_div, x=value, y=std)
        return
    value = mb.sub(x=writer.source(node), y=_per_channel(node.mean), name=writer.name(node, "centred"))
    if not np.all(node.std == 1):
        value = mb.real_div(x=value, y=_per_channel(node.std), name=writer.name(node, "op"))
    writer.made[node.name] = writer.cast(node, value, "value")


def _batch_norm(writer: MilWriter, node: BatchNorm) -> None:
    scale, shift = (writer.stored(node, _per_channel(values)) for values in (node.scale, node.shift))
    value = writer.mb.mul(x=writer.source(node), y=scale, name=writer.name(node, "real"))
    writer.emit(node, writer.mb.add, x=value, y=shift)


def _per_channel(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return values[None, :, None, None]


WRITERS: dict[type[Node], Callable[..., None]] = {
    Normalize: _normalize,
    BatchNorm: _batch_norm,
    Conv: _conv,
    Linear: lambda w, node: w.emit(node, w.mb.linear, x=w.source(node), **w.weights(node)),
    Relu: _relu,
    Sigmoid: lambda w, node: w.emit(node, w.mb.sigmoid, x=w.source(node)),
    HardSigmoid: lambda w, node: w.emit(
        node, w.mb.sigmoid_hard, x=w.source(node), alpha=w.dtype(1 / 6), beta=w.dtype(0.5)
    ),
    Add: lambda w, node: w.emit(node, w.mb.add, x=w.source(node, 0), y=w.source(node, 1)),
    Mul: lambda w, node: w.emit(node, w.mb.mul, x=w.source(node, 0), y=w.source(node, 1)),
    Concat: _concat,
    SliceChannels: _slice,
    MaxPool: _max_pool,
    Subsample: _max_pool,
    AvgPool: _avg_pool,
    GlobalAvgPool: lambda w, node: w.emit(
        node, w.mb.reduce_mean, x=w.source(node), axes=[2, 3], keep_dims=True
    ),
    PadChannels: lambda w, node: _border(w, node, [0, 0, node.before, node.after, 0, 0, 0, 0]),
    Pad: _pad,
    Flatten: lambda w, node: w.emit(node, w.mb.flatten2d, x=w.source(node), axis=1),
    Reshape: lambda w, node: w.emit(node, w.mb.reshape, x=w.source(node), shape=[1, *node.shape]),
}
