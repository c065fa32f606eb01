"""Portable weights: small enough after every step, and what they are for, on an emulated CPU without VNNI."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.emulation import logits_on
from edge_resnet.compression.calibrate import calibrate
from edge_resnet.compression.learned_rounding import learn_rounding
from edge_resnet.compression.qat_module import QatModule
from edge_resnet.compression.quantize import PORTABLE_LIMIT, quantize
from edge_resnet.devices.qemu import open_qemu
from edge_resnet.errors import InputError
from edge_resnet.export.onnx import onnx_bytes
from edge_resnet.graph import nodes as g
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.passes import lower_for_integers, simplify
from edge_resnet.graph.reference import ReferenceExecutor, dequantize
from edge_resnet.pipeline import compress
from edge_resnet.recipe import Qat, Rounding
from edge_resnet.verify.exactness import can_saturate
from tests.random_graphs import random_graph, random_pixels


def largest_weight(graph: Graph) -> int:
    layers = [node.weights for node in graph.nodes if isinstance(node, g.Conv | g.Linear)]
    assert all(isinstance(weights, g.IntWeights) for weights in layers)
    return max(int(np.abs(weights.weight.astype(int)).max()) for weights in layers)


def trained(floating: Graph, integers: Graph, pixels: np.ndarray, qat: Qat, limit: int) -> Graph:
    """Three steps of training, whatever they are good for."""
    torch.manual_seed(0)
    module = QatModule(floating, integers, qat, weight_limit=limit).train()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    for step in range(3):
        module.before_step(step, 3)
        loss = module(module.inputs(pixels)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
    return module.eval().finish()


@given(
    seed=st.integers(0, 10_000),
    limit=st.sampled_from([PORTABLE_LIMIT, 127]),
    scales=st.sampled_from(["fixed", "learned", "moving-average"]),
)
@settings(max_examples=12)
def test_weights_stay_within_the_limit(seed: int, limit: int, scales: str) -> None:
    """After PTQ, learned rounding and training; and the whole range is used."""
    floating = lower_for_integers(simplify(random_graph(seed)))
    pixels = random_pixels(floating, 6, seed)
    integers = quantize(floating, calibrate(floating, [pixels]), limit)
    rounded = learn_rounding(
        integers, floating, pixels, Rounding(steps=4, batch=4, learning_rate=0.3), seed, limit
    )
    qat = Qat(epochs=1, precision="float32", scales=scales)
    after = trained(floating, integers, pixels, qat, limit)
    before, now = (
        np.concatenate([n.weights.bias for n in graph.nodes if isinstance(n, g.Conv | g.Linear)])
        for graph in (integers, after)
    )
    assert not np.array_equal(before, now)  # biases have finer steps: weights may all stay
    for graph in (integers, rounded, after):
        assert largest_weight(graph) == limit
        assert can_saturate(graph) is (limit > PORTABLE_LIMIT)


def saturating_graph() -> Graph:
    """Weights of one sign: on bright images two products of the first layer are far over 16 bits."""
    rng = np.random.default_rng(0)

    def weights(*shape: int) -> g.FloatWeights:
        return g.FloatWeights(
            rng.uniform(0.05, 0.1, shape).astype(np.float32), np.zeros(shape[0], np.float32)
        )

    nodes = (
        g.Input(name="image", shape=(3, 12, 12)),
        g.Normalize(
            name="normalize",
            inputs=("image",),
            mean=np.full(3, 120, np.float32),
            std=np.full(3, 60, np.float32),
        ),
        g.Conv(
            name="first",
            inputs=("normalize",),
            weights=weights(16, 3, 3, 3),
            padding=g.Padding.symmetric(1, 1),
        ),
        g.Relu(name="relu", inputs=("first",)),
        g.Conv(name="second", inputs=("relu",), weights=weights(16, 16, 3, 3)),
        g.GlobalAvgPool(name="pool", inputs=("second",)),
        g.Flatten(name="flatten", inputs=("pool",)),
        g.Linear(name="classifier", inputs=("flatten",), weights=weights(5, 16)),
    )
    return Graph("saturating", nodes, ("a", "b", "c", "d", "e"))


@pytest.mark.slow
def test_portable_weights_are_exact_without_vnni() -> None:
    """On an emulated Haswell: without the limit ONNX Runtime's sums saturate, with it they are exact."""
    if shutil.which("qemu-x86_64-static") is None and shutil.which("qemu-x86_64") is None:
        pytest.skip("qemu-x86_64 is not installed: apt-get install qemu-user-static")
    haswell = open_qemu("qemu://x86-haswell")
    floats = {"saturating": saturating_graph()} | {f"random {n}": random_graph(n, 3) for n in (3, 54)}
    for name, graph in floats.items():
        floating = lower_for_integers(simplify(graph))
        pixels = random_pixels(floating, 20, 1)
        pixels[::2] |= 0xC0  # half of them bright
        ranges = calibrate(floating, [pixels])
        graphs = {
            "portable.onnx": quantize(floating, ranges, PORTABLE_LIMIT),
            "8 bits.onnx": quantize(floating, ranges, 127),
        }
        files = {name: onnx_bytes(integers) for name, integers in graphs.items()}
        answers = logits_on(haswell, files, pixels)
        identical = {
            weights: np.array_equal(
                answers[weights], dequantize(ReferenceExecutor(integers).run(pixels), integers.output.quant)
            )
            for weights, integers in graphs.items()
        }
        assert identical["portable.onnx"], name
        if name == "saturating":
            assert not identical["8 bits.onnx"]


def test_weights_that_are_there_already_do_not_pass_for_portable(tmp_path: Path) -> None:
    """Neither what the folder's checkpoint holds, trained for 8 bits, nor a file's integers."""
    recipe = {
        "calibration": {"images": 16},
        "qat": {"epochs": 1, "batch": 512},
        "evaluate": {"images": 20, "step_images": 0},
        "benchmark": {"runs": 0},
    }
    compress("demo", recipe=recipe, out=tmp_path)
    with pytest.raises(InputError, match="the checkpoint of another model, recipe or data set"):
        compress("demo", recipe=recipe, settings=["portable_x86=true"], out=tmp_path)
    finished = str(tmp_path / "demo-tflite-int8.tflite")
    with pytest.raises(InputError, match=r"came quantized.*portable_x86 does nothing.*--requantize"):
        compress(finished, data="demo", settings=["portable_x86=true"], out=tmp_path / "again")
