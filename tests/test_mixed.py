"""Graphs that are partly in float: what they mean, on every runtime, and which layers are chosen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from edge_resnet.compression.mixed import float_layers, keep_in_float
from edge_resnet.compression.sensitivity import rounding_nodes
from edge_resnet.graph import nodes as g
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.mixed_executor import MixedExecutor
from edge_resnet.graph.passes import lower_for_integers, simplify
from edge_resnet.recipe import Export
from edge_resnet.targets import TARGETS
from edge_resnet.verify.ranges import compare_ranges
from tests.conftest import quantized
from tests.random_graphs import random_graph, random_pixels


def pair(seed: int) -> tuple[Graph, Graph]:
    graph = random_graph(seed)
    return lower_for_integers(simplify(graph)), quantized(graph)


def some_layers(graph: Graph, rng: np.random.Generator) -> list[str]:
    """Runs of neighbouring layers, so that some tensors between them stay float."""
    names = [node.name for node in rounding_nodes(graph)]
    share = rng.choice([0.15, 0.5, 0.9])
    chosen: list[str] = []
    for name in names:
        if rng.random() < share:
            chosen.append(name)
    return chosen or names[:1]


@hypothesis_settings(max_examples=15)
@given(seed=st.integers(0, 10_000))
def test_every_runtime_answers_as_the_mixed_executor(
    seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    floating, integers = pair(seed)
    mixed = keep_in_float(integers, floating, some_layers(integers, np.random.default_rng(seed)))
    pixels = random_pixels(mixed, 6, seed)
    expected = MixedExecutor(mixed).logits(pixels)
    step = integers.output.quant.scale  # type: ignore[union-attr]
    folder = tmp_path_factory.mktemp("mixed")
    for name in ("tflite-int8", "onnx-int8", "coreml-int8"):
        target = TARGETS[name]
        path = target.path(folder, "mixed")
        target.write(mixed, path, Export())
        got = target.open(path).logits(pixels)
        assert np.abs(got - expected).max() <= 2.01 * step, (name, float_layers(mixed))
        ranges = compare_ranges(mixed, target.read_back(path))
        assert not ranges.mismatches
        assert ranges.checked >= 2 * sum(isinstance(node, g.Conv | g.Linear) for node in mixed.nodes)
