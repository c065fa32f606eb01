"""Where two runtimes part: the first node whose integers are not the reference's."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_resnet.graph.graph import Graph
from edge_resnet.graph.reference import ReferenceExecutor, dequantize
from edge_resnet.recipe import Export
from edge_resnet.targets import Target

__all__ = ["first_difference"]


def first_difference(graph: Graph, target: Target, pixels: NDArray[np.uint8]) -> str | None:
    """Name of the first node, in graph order, at which `target`'s runtime leaves the reference.

    The graph is cut behind each node in turn, written, and run on `pixels` [N, H, W, 3]. None: nowhere.
    """
    assert target.open is not None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"part{target.suffix}"
        for node in graph.nodes[1:]:
            part = graph.until(node.name)
            assert part.output.quant is not None
            expected = dequantize(ReferenceExecutor(part).run(pixels), part.output.quant)
            target.write(part, path, Export())
            got = target.open(path).logits(pixels)
            if got.ndim == 4 and target.suffix == ".tflite":
                got = got.transpose(0, 3, 1, 2)  # [N, H, W, C] -> [N, C, H, W]
            if not np.array_equal(got, expected):
                return node.name
    return None
