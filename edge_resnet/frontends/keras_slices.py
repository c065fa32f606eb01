"""Slices, splits and reversals of TensorFlow tensors, said to the GraphBuilder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from edge_resnet.errors import GraphError
from edge_resnet.frontends.builder import GraphBuilder
from edge_resnet.frontends.values import Value, squeezed, unsqueezed
from edge_resnet.graph import nodes as g

__all__ = ["reversed_channels", "split", "split_by_sizes", "stacked", "strided_slice"]


def reversed_channels(builder: GraphBuilder, name: str, x: Value) -> Value:
    """RGB to BGR: a 1x1 convolution with a permutation, which later passes fold like any other."""
    x.check_not_flat()
    count = x.size[1]
    weight = np.eye(count, dtype=np.float32)[::-1].reshape(count, count, 1, 1)
    if len(x.axes) != 4:
        raise GraphError("a reversal of what is no image")
    return replace(
        x, node=builder.add(g.Conv, name, x.node, weights=g.FloatWeights(weight.copy(), _zeros(count))).node
    )


def _zeros(count: int) -> g.FloatArray:
    return np.zeros(count, np.float32)


def split(builder: GraphBuilder, name: str, x: Value, number: int, count: int) -> list[Value]:
    """Equal parts along one axis."""
    total = x.shape[number]
    if count < 1 or total % count:
        raise GraphError(f"a split of {total} into {count}")
    return split_by_sizes(builder, name, x, number, [total // count] * count)


def split_by_sizes(
    builder: GraphBuilder, name: str, x: Value, number: int, sizes: Sequence[int]
) -> list[Value]:
    total = x.shape[number]
    if list(sizes).count(-1) == 1:
        sizes = [total - sum(sizes) - 1 if size == -1 else size for size in sizes]
    if sum(sizes) != total:
        raise GraphError(f"a split of {total} into {list(sizes)}")
    parts, start = [], 0
    for index, size in enumerate(sizes):
        parts.append(builder.slice(f"{name}/{index}", x, number, start, start + size))
        start += size
    return parts


def strided_slice(
    builder: GraphBuilder,
    name: str,
    x: Value,
    bounds: tuple[Sequence[int], Sequence[int], Sequence[int]],
    masks: Mapping[str, int],
) -> Value:
    """x[begin:end:step, ...]; a bit of `masks` (begin, end, ellipsis) stands for what was left out."""
    begins, ends, steps = (list(numbers) for numbers in bounds)
    skipped = len(x.shape) - len(begins)
    axis, dropped = 0, []
    for index, (begin, end, step) in enumerate(zip(begins, ends, steps, strict=True)):
        bit = 1 << index
        if masks.get("ellipsis", 0) & bit:
            axis += skipped + 1
            continue
        if axis >= len(x.shape):
            raise GraphError("more indices than axes")
        open_start, open_end = bool(masks.get("begin", 0) & bit), bool(masks.get("end", 0) & bit)
        if masks.get("shrink_axis", 0) & bit:
            index_of = begin % x.shape[axis]
            x = builder.slice(name, x, axis, index_of, index_of + 1)
            dropped.append(axis)
        elif step == -1 and open_start and open_end and x.axis(axis) == 1:
            x = reversed_channels(builder, name, x)
        elif step < 1:
            raise GraphError(f"a slice with step {step}")
        else:
            x = builder.slice(name, x, axis, 0 if open_start else begin, None if open_end else end, step)
        axis += 1
    return squeezed(x, dropped) if dropped else x


def stacked(builder: GraphBuilder, name: str, parts: Sequence[Value], number: int) -> Value:
    """Tensors along a new axis, the channels.

    Keras' preprocess_input takes the channels apart and stacks them in another order: that is one node.
    """
    parts = [unsqueezed(part, [number]) for part in parts]
    nodes = {node.name: node for node in builder.nodes}
    scales, shifts, starts, sources = [], [], [], set()
    for part in parts:
        node, scale, shift = nodes[part.node], 1.0, 0.0
        if isinstance(node, g.BatchNorm):
            scale, shift, node = float(node.scale[0]), float(node.shift[0]), nodes[node.inputs[0]]
        if not isinstance(node, g.SliceChannels):
            return builder.concat(name, parts, number)
        scales.append(scale)
        shifts.append(shift)
        starts.append(node.start)
        sources.add(node.inputs[0])
    whole = builder.concat(name, parts, number)
    source = sources.pop()
    count = len(parts)
    if sources or sorted(starts) != list(range(count)):
        return whole
    factors, offsets = np.asarray(scales, np.float32), np.asarray(shifts, np.float32)
    try:
        if starts == sorted(starts):
            merged = builder.add(g.BatchNorm, name, source, scale=factors, shift=offsets)
        else:
            weight = (np.eye(count, dtype=np.float32)[starts] * factors[:, None]).reshape(count, count, 1, 1)
            merged = builder.add(g.Conv, name, source, weights=g.FloatWeights(weight, offsets))
    except GraphError:  # the source has more channels than were taken
        return whole
    return replace(whole, node=merged.node)
