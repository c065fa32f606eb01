"""A float graph in integers, with nothing done for its accuracy."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from edge_resnet.compression.calibrate import calibrate
from edge_resnet.compression.quantize import quantize
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.passes import lower_for_integers

__all__ = ["RANGE_IMAGES", "in_integers"]

# The size and the speed of a file do not depend on its ranges: few images will do for these.
RANGE_IMAGES = 8


def in_integers(graph: Graph, batches: Iterable[NDArray[np.uint8]]) -> Graph:
    """The simplified float graph, quantized at the extremes over `batches`, uint8 [N, H, W, C]."""
    lowered = lower_for_integers(graph)
    return quantize(lowered, calibrate(lowered, batches))
