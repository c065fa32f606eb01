"""Models whose quantizer left something in float that integers can still be made of."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edge_resnet.compression.output_range import lacks_output_range, with_output_range
from edge_resnet.compression.quantize import quantize_weights
from edge_resnet.graph import nodes as g
from edge_resnet.graph.float_executor import FloatExecutor
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.passes import dequantized, fold_batch_norm
from edge_resnet.graph.reference import ReferenceExecutor, dequantize
from tests.random_graphs import random_pixels


def _open_ended(graph: Graph) -> Graph:
    return graph.with_nodes([*graph.nodes[:-1], replace(graph.output, quant=None)])


def test_the_logits_get_the_range_that_they_have(small_quantized: Graph) -> None:
    open_ended = _open_ended(small_quantized)
    assert lacks_output_range(open_ended)
    assert not lacks_output_range(small_quantized)
    assert not lacks_output_range(dequantized(small_quantized))
    pixels = random_pixels(small_quantized, 64, seed=5)
    completed = with_output_range(open_ended, np.array_split(pixels, 4))
    assert completed.is_quantized
    assert small_quantized.output.quant is not None
    assert completed.output.quant is not None
    q = ReferenceExecutor(small_quantized).run(pixels)
    before = dequantize(q, small_quantized.output.quant)
    after = dequantize(ReferenceExecutor(completed).run(pixels), completed.output.quant)
    steps = small_quantized.output.quant.scale + completed.output.quant.scale
    inside = (q > -128) & (q < 127)  # the first graph may have clipped its ends
    assert np.abs(before - after)[inside].max() <= 0.51 * steps


@pytest.mark.parametrize("seed", range(5))
def test_a_factor_behind_integers_goes_into_their_scale(seed: int) -> None:
    """Convolution in integers, then batch normalization, as NNCF leaves it: the integers stay."""
    rng = np.random.default_rng(seed)
    weight, bias = rng.normal(0, 0.3, (6, 3, 3, 3)), rng.normal(0, 0.2, 6)
    integers = quantize_weights(g.FloatWeights(weight.astype(np.float32), bias.astype(np.float32)), 0.5)
    norm = g.BatchNorm(
        name="norm",
        inputs=("conv",),
        scale=(rng.uniform(0.5, 1.5, 6) * rng.choice([-1, 1], 6)).astype(np.float32),
        shift=rng.normal(0, 2, 6).astype(np.float32),
        quant=g.QuantParams(0.25, 3),
    )
    graph = Graph(
        "g",
        (
            g.Input(name="image", shape=(3, 8, 8), quant=g.QuantParams(0.5, 0)),
            g.Conv(name="conv", inputs=("image",), weights=integers),
            norm,
        ),
    )
    folded = fold_batch_norm(graph)
    (conv,) = (node for node in folded.nodes if isinstance(node, g.Conv))
    assert isinstance(conv.weights, g.IntWeights)
    assert conv.quant == norm.quant
    assert np.array_equal(np.abs(conv.weights.weight), np.abs(integers.weight))
    pixels = random_pixels(graph, 4)
    expected = FloatExecutor(dequantized(graph)).run(pixels)
    got = FloatExecutor(dequantized(folded)).run(pixels)
    unit = (0.5 * conv.weights.scale).reshape(-1, 1, 1)  # the bias is rounded once more
    assert np.all(np.abs(got - expected) <= 0.51 * unit + 1e-4)
