"""Watch a float graph run on calibration images and record the range of every tensor."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edge_resnet.errors import InputError
from edge_resnet.graph.float_executor import FloatExecutor
from edge_resnet.graph.graph import Graph

__all__ = ["Ranges", "calibrate"]

Ranges = dict[str, tuple[float, float]]
"""For each node, the least and the largest value of its output; both include 0."""


def calibrate(graph: Graph, batches: Iterable[NDArray[np.uint8]]) -> Ranges:
    """Min-max ranges of all tensors over batches of images, uint8 [N, H, W, C].

    Raises InputError when there is no image, or when a tensor is not finite (the message names the node).
    """
    ranges: Ranges = {node.name: (0.0, 0.0) for node in graph.nodes}

    def observe(name: str, value: Tensor) -> None:
        low, high = torch.aminmax(value)
        least, largest = ranges[name]
        # numpy's minimum keeps a NaN; Python's min would lose it.
        ranges[name] = (float(np.minimum(least, float(low))), float(np.maximum(largest, float(high))))

    executor = FloatExecutor(graph)
    count = 0
    for batch in batches:
        executor.run(batch, observe)
        count += len(batch)
    if not count:
        raise InputError(
            "calibration needs at least one image (calibration.images is 0 or the data is empty)"
        )
    for name, bounds in ranges.items():
        if not np.isfinite(bounds).all():
            raise InputError(
                f"node {name!r} computes {bounds} on the calibration images: the model overflows"
            )
    return ranges
