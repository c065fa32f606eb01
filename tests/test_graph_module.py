"""A float graph as a torch module, and back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from edge_resnet.compression.graph_module import GraphModule, module_key, with_trained_weights
from edge_resnet.errors import GraphError
from edge_resnet.graph.float_executor import FloatExecutor, input_values
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.nodes import BatchNorm, Conv, Linear
from edge_resnet.graph.passes import lower_for_integers, simplify
from tests.random_graphs import random_graph, random_pixels


def _answers(module: torch.nn.Module, graph: Graph, pixels: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return module(input_values(graph.input, pixels)).numpy()


@given(seed=st.integers(0, 10_000), lowered=st.booleans())
def test_the_module_computes_what_the_graph_computes(seed: int, lowered: bool) -> None:
    graph = random_graph(seed, blocks=3)
    graph = lower_for_integers(simplify(graph)) if lowered else graph
    pixels = random_pixels(graph, 2, seed)
    expected = FloatExecutor(graph).run(pixels)
    got = _answers(GraphModule(graph).eval(), graph, pixels)
    assert np.abs(got - expected).max() <= 1e-5 * max(1.0, np.abs(expected).max())


@given(seed=st.integers(0, 10_000))
def test_trained_weights_come_back(seed: int) -> None:
    """Every parameter takes part in training, and the graph then computes what the module does."""
    graph = random_graph(seed, blocks=2)
    pixels = random_pixels(graph, 4, seed)
    module = GraphModule(graph)
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-3)
    loss = F.cross_entropy(module(input_values(graph.input, pixels)), torch.tensor([0, 1, 2, 3]))
    loss.backward()
    assert all(parameter.grad is not None for parameter in module.parameters())
    optimizer.step()
    trained = with_trained_weights(graph, module)
    expected = _answers(module.eval(), graph, pixels)
    got = FloatExecutor(trained).run(pixels)
    assert np.abs(got - expected).max() <= 1e-5 * max(1.0, np.abs(expected).max())
    assert not np.array_equal(got, FloatExecutor(graph).run(pixels))


def test_the_graph_keeps_its_own_weights() -> None:
    """Training the module must not write into the graph's arrays."""
    graph = random_graph(54, blocks=3)
    before = [node.weights.weight.copy() for node in graph.nodes if isinstance(node, Conv | Linear)]
    module = GraphModule(graph)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1.0)
    after = [node.weights.weight for node in graph.nodes if isinstance(node, Conv | Linear)]
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    assert any(isinstance(node, BatchNorm) for node in graph.nodes)


@pytest.mark.parametrize("seed", [3, 54, 7])
def test_tools_can_look_into_it(seed: int) -> None:
    graph = random_graph(seed, blocks=3)
    pixels = random_pixels(graph, 2, seed)
    module = GraphModule(graph).eval()
    expected = _answers(module, graph, pixels)
    exported = torch.export.export(module, (input_values(graph.input, pixels),)).module()
    for other in (torch.fx.symbolic_trace(module), exported):
        np.testing.assert_allclose(_answers(other, graph, pixels), expected, rtol=1e-5, atol=1e-6)


def test_weights_and_image_lie_in_channels_last() -> None:
    graph = random_graph(54, blocks=3)
    weights = [p for p in GraphModule(graph).parameters() if p.dim() == 4 and min(p.shape[1:]) > 1]
    assert weights
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in weights)


def test_names_stay_apart() -> None:
    names = ["a.b", "a/b", "a_b", "a:b", "a_db", "a__b", "a"]
    assert len({module_key(name) for name in names}) == len(names)


def test_integers_are_refused(small_quantized: Graph) -> None:
    with pytest.raises(GraphError, match=r"node .* holds integers"):
        GraphModule(small_quantized)
