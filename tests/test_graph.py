"""Nodes and graphs: what cannot exist, files, text."""

from __future__ import annotations

import doctest
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import edge_resnet.compression.rounding_ties
import edge_resnet.graph.graph
from edge_resnet.errors import GraphError
from edge_resnet.graph import nodes as g
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.reference import ReferenceExecutor
from edge_resnet.graph.storage import graph_from_files, graph_to_files
from edge_resnet.graph.text import graph_to_text
from tests.conftest import quantized
from tests.random_graphs import random_graph, random_pixels


def _write(files: dict[str, bytes], folder: Path) -> None:
    for name, content in files.items():
        (folder / name).write_bytes(content)


def test_docstring_examples() -> None:
    for module in (edge_resnet.graph.graph, edge_resnet.compression.rounding_ties):
        results = doctest.testmod(module)
        assert results.attempted > 0
        assert results.failed == 0


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ((), "first node must be the Input"),
        ((g.Flatten(name="f", inputs=("x",)),), "first node must be the Input"),
        ((g.Input(name="x", shape=(3, 4, 4)), g.Relu(name="r", inputs=("y",))), "node 'r' reads 'y'"),
        ((g.Input(name="x", shape=(3, 4, 4)), g.Relu(name="x", inputs=("x",))), "'x' appears twice"),
        ((g.Input(name="x", shape=(3, 4, 4)), g.Add(name="a", inputs=("x",))), "node 'a' has 1 inputs"),
        (
            (
                g.Input(name="x", shape=(3, 4, 4)),
                g.Relu(name="r", inputs=("x",)),
                g.Relu(name="s", inputs=("x",)),
            ),
            "node 'r' is read by nothing",
        ),
        (
            (
                g.Input(name="x", shape=(3, 4, 4)),
                g.MaxPool(name="p", inputs=("x",), kernel=(5, 5), stride=(1, 1)),
            ),
            r"node 'p' \(MaxPool\): a 5x5 window does not fit",
        ),
    ],
)
def test_a_graph_that_means_nothing_names_the_node(nodes: tuple[g.Node, ...], message: str) -> None:
    with pytest.raises(GraphError, match=message):
        Graph("bad", nodes)


def test_weights_that_do_not_fit_name_the_node() -> None:
    weights = g.FloatWeights(np.zeros((4, 2, 3, 3), np.float32), np.zeros(4, np.float32))
    nodes = (g.Input(name="x", shape=(3, 8, 8)), g.Conv(name="c", inputs=("x",), weights=weights))
    with pytest.raises(GraphError, match=r"node 'c' .Conv.: weight"):
        Graph("bad", nodes)


def test_integers_that_cannot_be() -> None:
    with pytest.raises(GraphError, match="not a positive float32"):
        g.QuantParams(0.0, 0)
    with pytest.raises(GraphError, match="outside int8"):
        g.QuantParams(1.0, 128)
    with pytest.raises(GraphError, match="-128"):
        g.IntWeights(np.full((1, 1), -128, np.int8), np.ones(1, np.float32), np.zeros(1, np.int32))


@given(seed=st.integers(0, 10_000), integers=st.booleans())
@settings(max_examples=15, deadline=None)
def test_files_hold_the_whole_graph(
    tmp_path_factory: pytest.TempPathFactory, seed: int, integers: bool
) -> None:
    graph = random_graph(seed)
    graph = quantized(graph) if integers else graph
    folder = tmp_path_factory.mktemp("graph")
    _write(graph_to_files(graph, "g"), folder)
    again = graph_from_files(folder, "g")
    assert graph_to_files(again, "g") == graph_to_files(graph, "g")
    if integers:
        pixels = random_pixels(graph, 2)
        assert np.array_equal(ReferenceExecutor(again).run(pixels), ReferenceExecutor(graph).run(pixels))


def test_a_damaged_file_is_a_graph_error(tmp_path: Path, small_quantized: Graph) -> None:
    files = graph_to_files(small_quantized, "g")
    _write(files, tmp_path)
    document = json.loads(files["g.json"])
    document["nodes"][3]["kind"] = "Rubbish"
    (tmp_path / "g.json").write_text(json.dumps(document))
    with pytest.raises(GraphError, match="unknown kind 'Rubbish'"):
        graph_from_files(tmp_path, "g")
    (tmp_path / "g.json").write_bytes(files["g.json"])
    (tmp_path / "g.safetensors").write_bytes(files["g.safetensors"][:-10])
    with pytest.raises(GraphError, match="cannot read graph"):
        graph_from_files(tmp_path, "g")


def test_text_names_every_node(small_quantized: Graph) -> None:
    text = graph_to_text(small_quantized)
    assert all(f"  {node.name}: {type(node).__name__}(" in text for node in small_quantized.nodes)
    assert f"{small_quantized.params:,} parameters" in text


def test_until_computes_the_inner_node(small_quantized: Graph) -> None:
    inner = small_quantized.nodes[len(small_quantized.nodes) // 2]
    part = small_quantized.until(inner.name)
    assert part.output is inner
    assert part.output_shape == small_quantized.shapes[inner.name]
