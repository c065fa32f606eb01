"""Which targets a graph can be written for, found by writing it."""

from __future__ import annotations

import tempfile
from pathlib import Path

from edge_resnet.compression.plain import in_integers
from edge_resnet.errors import EdgeResnetError
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.passes import dequantized, fold_normalization_std
from edge_resnet.recipe import Export
from edge_resnet.targets import TARGETS
from edge_resnet.verify.import_check import random_images

__all__ = ["refusals"]


def refusals(graph: Graph) -> dict[str, str]:
    """Target -> why it cannot be written (empty where it can). Ranges are those of random images."""
    try:
        integers, problem = _integers(graph), ""
    except EdgeResnetError as error:
        integers, problem = None, str(error)
    floating = fold_normalization_std(dequantized(graph) if graph.is_quantized else graph)
    found: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, target in TARGETS.items():
            if target.compiled_from is not None:  # its compiler has more to say, and takes longer
                found[name] = found[target.compiled_from]
                continue
            if target.palette_bits is not None:  # the same program as that of coreml-fp16, and slow to write
                found[name] = found["coreml-fp16"]
                continue
            written = integers if target.quantized else floating
            if written is None:
                found[name] = problem
                continue
            try:
                target.write(written, target.path(Path(folder), "trial"), Export())
                found[name] = ""
            except EdgeResnetError as error:
                found[name] = str(error)
    return found


def _integers(graph: Graph) -> Graph:
    if graph.is_quantized:
        return graph
    return in_integers(graph, [random_images(graph)])
