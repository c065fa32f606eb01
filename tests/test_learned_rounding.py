"""Learned rounding of weights: what it may change, what it must gain, and what stays bit-identical."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import edge_resnet.compression.blocks as blocks_module
from edge_resnet.compression import learned_rounding
from edge_resnet.compression.block_streams import BlockStreams, affordable_images
from edge_resnet.compression.blocks import find_blocks
from edge_resnet.compression.calibrate import calibrate
from edge_resnet.compression.learned_rounding import learn_rounding, rounding_steps
from edge_resnet.compression.quantize import quantize
from edge_resnet.data.images import open_images
from edge_resnet.errors import GraphError, InputError
from edge_resnet.export.onnx import onnx_bytes
from edge_resnet.export.tflite import tflite_bytes
from edge_resnet.frontends.sources import import_graph, open_model, resolve_preprocess
from edge_resnet.graph import nodes as g
from edge_resnet.graph.float_executor import FloatExecutor
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.passes import lower_for_integers, simplify
from edge_resnet.graph.reference import ReferenceExecutor, dequantize
from edge_resnet.recipe import Rounding
from edge_resnet.runners.litert import LiteRTRunner
from edge_resnet.runners.onnxruntime import OnnxRuntimeRunner
from tests.random_graphs import random_graph, random_pixels

FEW = Rounding(steps=6, batch=4, learning_rate=0.3)


def lowered(seed: int, blocks: int = 2) -> Graph:
    return lower_for_integers(simplify(random_graph(seed, blocks)))


def integers_of(graph: Graph, pixels: np.ndarray, limit: int = 127) -> Graph:
    return quantize(graph, calibrate(graph, [pixels]), limit)


def layers(graph: Graph) -> dict[str, g.IntWeights | g.FloatWeights]:
    return {node.name: node.weights for node in graph.nodes if isinstance(node, g.Conv | g.Linear)}


def weights_equal(a: Graph, b: Graph) -> bool:
    one, other = layers(a), layers(b)
    return all(np.array_equal(one[name].weight, other[name].weight) for name in one)


@given(seed=st.integers(0, 10_000), limit=st.sampled_from([3, 63, 127]))
@settings(max_examples=10)
def test_only_the_way_of_rounding_changes(seed: int, limit: int) -> None:
    floating = lowered(seed)
    pixels = random_pixels(floating, 6, seed)
    before = integers_of(floating, pixels, limit)
    done: list[int] = []

    after = learn_rounding(before, floating, pixels, FEW, seed, limit, done.append)

    assert sum(done) == rounding_steps(before, FEW)
    real, integers = layers(floating), layers(after)
    for name, weights in layers(before).items():
        assert isinstance(weights, g.IntWeights)
        new = integers[name]
        assert isinstance(new, g.IntWeights)
        axes = (-1, *[1] * (new.weight.ndim - 1))
        exact = real[name].weight.astype(np.float64) / weights.scale.astype(np.float64).reshape(axes)
        assert np.abs(new.weight - exact).max() < 1
        assert np.abs(new.weight.astype(int)).max() <= limit
        assert np.array_equal(new.scale, weights.scale)
        assert np.array_equal(new.bias, weights.bias)
    for old, new_node in zip(before.nodes, after.nodes, strict=True):
        same = replace(new_node, weights=old.weights) if isinstance(old, g.Conv | g.Linear) else new_node
        assert vars(same) == vars(old)


@pytest.mark.parametrize("seed", [3, 8, 54])
def test_logits_stay_identical_on_runtimes(tmp_path: Path, seed: int) -> None:
    floating = lowered(seed, blocks=3)
    pixels = random_pixels(floating, 6, seed)
    before = integers_of(floating, pixels, 63)
    after = learn_rounding(before, floating, pixels, FEW, 0, 63)
    assert not weights_equal(before, after)
    expected = dequantize(ReferenceExecutor(after).run(pixels), after.output.quant)
    for suffix, content, runner in (
        ("tflite", tflite_bytes(after), LiteRTRunner),
        ("onnx", onnx_bytes(after), OnnxRuntimeRunner),
    ):
        file = tmp_path / f"model.{suffix}"
        file.write_bytes(content)
        assert np.array_equal(runner(file).logits(pixels), expected)


@pytest.fixture(scope="module")
def demo() -> tuple[Graph, np.ndarray, np.ndarray, np.ndarray]:
    """The trained demo model; images to learn on, others to measure on, and their labels."""
    data = open_images("demo")
    model = open_model("demo", None, len(data.classes), 0, None, keep_integers=False)
    preprocess = resolve_preprocess(model.preprocess_defaults, {})
    graph = lower_for_integers(simplify(import_graph(model, preprocess)))
    train, val = data.split("train"), data.split("val")
    learned = [b.pixels for b in train.batches(train.order(0)[:96], preprocess, 32, False)]
    batches = list(val.batches(val.order(0), preprocess, 50, False))
    return (
        graph,
        np.concatenate(learned),
        np.concatenate([b.pixels for b in batches]),
        np.concatenate([b.labels for b in batches]),
    )


def test_weights_of_three_bits_are_saved(demo: tuple[Graph, np.ndarray, np.ndarray, np.ndarray]) -> None:
    """On images that were not learned from."""
    floating, pixels, others, labels = demo
    exact = FloatExecutor(floating).run(others)

    def measured(graph: Graph) -> tuple[float, float]:
        output = graph.output.quant
        assert output is not None
        logits = dequantize(ReferenceExecutor(graph).run(others), output)
        return float(np.square(logits - exact).mean()), float((logits.argmax(1) == labels).mean())

    nearest = integers_of(floating, pixels, 3)
    learned = learn_rounding(
        nearest, floating, pixels, Rounding(steps=40, batch=16, learning_rate=3e-2), 0, 3
    )
    (error, top1), (error_after, top1_after) = measured(nearest), measured(learned)
    assert error_after < error / 2
    assert top1_after > top1


def test_same_seed_same_integers() -> None:
    floating = lowered(54)
    pixels = random_pixels(floating, 8)
    before = integers_of(floating, pixels, 7)
    first, second, other = (learn_rounding(before, floating, pixels, FEW, seed, 7) for seed in (0, 0, 1))
    assert weights_equal(first, second)
    assert not weights_equal(first, other)


def test_no_steps_change_nothing() -> None:
    floating = lowered(3)
    before = integers_of(floating, random_pixels(floating, 2))
    assert learn_rounding(before, floating, random_pixels(floating, 2), Rounding(), 0) is before


def test_a_block_that_gets_worse_keeps_its_integers() -> None:
    """One step at a rate that sends every weight to a far end makes all blocks worse."""
    floating = lowered(8)
    pixels = random_pixels(floating, 8)
    before = integers_of(floating, pixels, 7)
    wild = Rounding(steps=1, batch=1, learning_rate=1000.0)
    assert weights_equal(learn_rounding(before, floating, pixels, wild, 0, 7), before)


@pytest.mark.parametrize("seed", range(6))
def test_decided_weights_compute_what_the_reference_does(seed: int) -> None:
    """What is trained is the integers' own arithmetic, as soon as every weight has gone to its integer."""
    floating = lowered(seed, blocks=3)
    pixels = random_pixels(floating, 4, seed)
    quantized = integers_of(floating, pixels)
    streams = BlockStreams(quantized, floating, pixels)
    for block in find_blocks(quantized):
        soft = learned_rounding._SoftBlock(block, quantized, floating, 127)
        for layer in soft._layers:
            with torch.no_grad():
                layer.choice.copy_(torch.where(layer.choice >= 0, 50.0, -50.0))
        outputs = soft({name: streams.centred(name, slice(0, 4)) for name in block.inputs})
        integers = streams.run(block, block.nodes)
        for name, value in outputs.items():
            quant = quantized.by_name[name].quant
            assert quant is not None
            difference = (value + quant.zero_point - integers[name].float()).abs()
            assert difference.max() <= 1  # ties, and weights halfway between two integers
            assert (difference > 0).float().mean() < 0.02
        streams.move(block, integers, streams.float_outputs(block))


@given(seed=st.integers(0, 10_000), most=st.sampled_from([0, 12]))
@settings(max_examples=25)
def test_blocks_in_turn_compute_the_graph(seed: int, most: int) -> None:
    floating = lowered(seed, blocks=3)
    pixels = random_pixels(floating, 3, seed)
    quantized = integers_of(floating, pixels)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks_module, "_MOST_LAYERS", most)
        blocks = find_blocks(quantized)
    assert [node.name for block in blocks for node in block.nodes] == [n.name for n in quantized.nodes[1:]]
    if not most:
        assert all(len(block.layers) <= 1 for block in blocks)
    streams = BlockStreams(quantized, floating, pixels)
    for block in blocks:
        assert set(streams.integers) == {*block.inputs, *block.passing}
        streams.move(block, streams.run(block, block.nodes), streams.float_outputs(block))
    output = quantized.output.name
    assert np.array_equal(streams.integers[output].numpy(), ReferenceExecutor(quantized).run(pixels))
    assert np.allclose(streams.floats[output].numpy(), FloatExecutor(floating).run(pixels), atol=1e-4)


def test_residual_blocks_are_found_whole(demo: tuple[Graph, np.ndarray, np.ndarray, np.ndarray]) -> None:
    blocks = [block for block in find_blocks(demo[0]) if block.layers]
    adds = [[node for node in block.nodes if isinstance(node, g.Add)] for block in blocks]
    assert [len(nodes) for nodes in adds] == [0, 1, 1, 1, 0]  # stem, three residual blocks, classifier
    assert all(block.outputs == (block.nodes[-1].name,) and not block.passing for block in blocks)


def test_memory_bounds_the_images() -> None:
    graph = lowered(54)
    blocks = find_blocks(graph)
    widest = affordable_images(graph, blocks)
    assert affordable_images(graph, blocks, 2**21) == pytest.approx(widest / 2**10, rel=0.5)
    assert affordable_images(graph, blocks, 1) == 1


def test_wrong_inputs() -> None:
    floating = lowered(3)
    pixels = random_pixels(floating, 2)
    with pytest.raises(InputError, match="at least one calibration image"):
        learn_rounding(integers_of(floating, pixels), floating, pixels[:0], FEW, 0)
    with pytest.raises(GraphError, match="is not quantized"):
        learn_rounding(floating, floating, pixels, FEW, 0)
    with pytest.raises(GraphError, match="different nodes"):
        learn_rounding(integers_of(floating, pixels), lowered(54), pixels, FEW, 0)
    with pytest.raises(GraphError, match="holds integers"):
        learn_rounding(integers_of(floating, pixels), integers_of(floating, pixels), pixels, FEW, 0)
