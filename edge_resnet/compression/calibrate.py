"""Watch a float graph run on calibration images and choose the range of every tensor."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from edge_resnet.compression.estimators import ESTIMATORS, Ranges, estimate
from edge_resnet.compression.statistics import Statistics, collect
from edge_resnet.graph.graph import Graph

__all__ = ["ESTIMATORS", "Ranges", "Statistics", "calibrate", "collect", "estimate"]


def calibrate(
    graph: Graph,
    batches: Iterable[NDArray[np.uint8]],
    estimator: str = "minmax",
    percentile: float = 99.99,
) -> Ranges:
    """The ranges of all tensors, by an estimator, over batches of images, uint8 [N, H, W, C].

    A recipe's default is mse, which clips; here it is minmax, which does not.

    Raises InputError when there is no image, or when a tensor is not finite (the message names the node).
    """
    return estimate(collect(graph, batches), graph, estimator, percentile)
