"""Training in integers: the module against the reference, gradients against torch's own, what it gains."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_resnet.compression.calibrate import calibrate
from edge_resnet.compression.integer_layer import Geometry, integer_layer
from edge_resnet.compression.qat import QatTask, trained_graph
from edge_resnet.compression.qat_layer import snapped
from edge_resnet.compression.qat_module import QatModule
from edge_resnet.compression.quantize import quantize
from edge_resnet.compression.scales import snap_scale
from edge_resnet.data.images import open_images
from edge_resnet.data.preprocess import Preprocess
from edge_resnet.distillation import Distiller
from edge_resnet.export.tflite import IoType, tflite_bytes
from edge_resnet.frontends.sources import import_graph, open_model, resolve_preprocess
from edge_resnet.graph import nodes as g
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.passes import lower_for_integers, simplify
from edge_resnet.graph.reference import ReferenceExecutor, dequantize
from edge_resnet.recipe import Qat
from edge_resnet.runners.litert import LiteRTRunner
from edge_resnet.training import fit
from tests.random_graphs import random_graph, random_pixels

EXACT = Qat(epochs=1, precision="float32")


def pair(seed: int) -> tuple[Graph, Graph]:
    floating = lower_for_integers(simplify(random_graph(seed)))
    return floating, quantize(floating, calibrate(floating, [random_pixels(floating, 8, seed)]))


@given(st.integers(0, 10_000))
@settings(max_examples=25)
def test_training_computes_the_integers(seed: int) -> None:
    """In float32 what is trained is what the reference says, up to ties of the one rounding that differs."""
    floating, integers = pair(seed)
    module = QatModule(floating, integers, EXACT).train()
    pixels = random_pixels(floating, 6, seed + 1)
    steps = module(module.inputs(pixels)).detach().numpy() / integers.output.quant.scale
    zero = integers.output.quant.zero_point
    expected = ReferenceExecutor(integers).run(pixels).astype(int)
    got = np.clip(np.rint(steps) + zero, -128, 127)
    assert np.abs(got - expected).max() <= 2
    assert np.mean(got != expected) <= 0.05


@given(st.integers(0, 10_000))
@settings(max_examples=25)
def test_evaluation_is_the_reference_and_nothing_is_lost(seed: int) -> None:
    """Untrained, the module gives back the integers that it was made from."""
    floating, integers = pair(seed)
    module = QatModule(floating, integers, EXACT).eval()
    pixels = random_pixels(floating, 4, seed + 1)
    expected = dequantize(ReferenceExecutor(integers).run(pixels), integers.output.quant)
    assert np.array_equal(module(module.inputs(pixels)).detach().numpy(), expected)
    again = module.finish()
    for node in integers.nodes:
        assert again.by_name[node.name].quant == node.quant
        if isinstance(node, g.Conv | g.Linear):
            assert np.array_equal(again.by_name[node.name].weights.weight, node.weights.weight)
            assert np.array_equal(again.by_name[node.name].weights.bias, node.weights.bias)
            assert np.array_equal(again.by_name[node.name].weights.scale, node.weights.scale)


@pytest.mark.parametrize("border", [(1, 1, 1, 1), (0, 1, 1, 0)])
@pytest.mark.parametrize("groups", [1, 2])
def test_gradients_are_those_of_fake_quantization(border: tuple[int, ...], groups: int) -> None:
    """torch's own fake quantization, in real numbers, with the same rounding left out of the derivative."""
    torch.manual_seed(0)
    node = g.Conv(
        name="conv",
        inputs=("x",),
        weights=g.FloatWeights(
            np.random.default_rng(0).normal(0, 0.2, (6, 4 // groups, 3, 3)).astype(np.float32),
            np.zeros(6, np.float32),
        ),
        stride=(2, 1),
        padding=g.Padding(*border),
        groups=groups,
    )
    geometry, s_x, s_y, zero = Geometry.of(node), 0.03125, 0.09, 7
    x_int = torch.randint(-100, 100, (2, 4, 9, 8)).float().requires_grad_()
    weight = torch.tensor(node.weights.weight, requires_grad=True)
    bias = torch.randn(6, requires_grad=True)
    scale = weight.detach().abs().flatten(1).amax(1) / 127
    ours = integer_layer(
        geometry.bordered(x_int), weight, bias, scale, s_x, s_y, -128 - zero, 127 - zero, 127, geometry
    )
    upstream = torch.randn_like(ours)
    (ours * s_y * upstream).sum().backward()

    x = (x_int.detach() * s_x).requires_grad_()
    other, shift = weight.detach().clone().requires_grad_(), bias.detach().clone().requires_grad_()
    rounded = torch.fake_quantize_per_channel_affine(
        other, scale, torch.zeros(6, dtype=torch.int), 0, -127, 127
    )
    top, left, bottom, right = border
    sums = F.conv2d(F.pad(x, (left, right, top, bottom)), rounded, shift, (2, 1), groups=groups)
    real = torch.fake_quantize_per_tensor_affine(sums, s_y, zero, -128, 127)
    (real * upstream).sum().backward()

    assert torch.allclose(ours * s_y, real, atol=s_y * 1.01)  # a tie, at the most
    assert (
        float((real < s_y * (127 - zero)).float().mean()) == 1
    )  # what rounds to the ends is clipped here only
    for mine, theirs in ((weight.grad, other.grad), (bias.grad, shift.grad), (x_int.grad / s_x, x.grad)):
        assert torch.allclose(mine, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max()))


@given(st.lists(st.floats(0, 60_000), min_size=1, max_size=8))
def test_scales_of_training_are_those_of_quantization(scales: list[float]) -> None:
    exact = torch.tensor(scales, dtype=torch.float64)
    assert np.array_equal(snapped(exact).numpy(), snap_scale(exact.numpy()))


def test_logits_keep_their_gradient_beyond_the_range() -> None:
    floating, integers = pair(4)
    output = replace(integers.output, quant=g.QuantParams(2.0**-14, 0))  # everything is clipped
    module = QatModule(floating, integers.with_nodes([*integers.nodes[:-1], output]), EXACT).train()
    logits = module(module.inputs(random_pixels(floating, 4)))
    F.cross_entropy(logits, torch.arange(4)).backward()
    assert all(float(p.grad.abs().sum()) > 0 for n, p in module.named_parameters() if "classifier" in n)


@pytest.mark.parametrize("scales", ["moving-average", "learned"])
def test_scales_move_until_they_are_frozen(scales: str) -> None:
    floating, integers = pair(11)
    module = QatModule(floating, integers, replace_settings(scales=scales)).train()
    optimizer = torch.optim.SGD(module.parameters(), 0.05)
    pixels = random_pixels(floating, 16, 3) // 3  # darker images than those of calibration
    before = module.scale.clone()
    for step in range(60):
        module.before_step(step, 60)
        loss = F.cross_entropy(module(module.inputs(pixels)), torch.arange(16) % 5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step == 35:
            frozen = module.scale.clone()
    assert not torch.equal(module.scale, before)
    assert torch.equal(module.scale, frozen)
    graph = module.eval().finish()
    expected = dequantize(ReferenceExecutor(graph).run(pixels), graph.output.quant)
    assert np.array_equal(module(module.inputs(pixels)).detach().numpy(), expected)


def test_batch_norm_is_put_back_without_a_change_and_trains() -> None:
    floating, integers = pair(21)
    module = QatModule(floating, integers, replace_settings(batch_norm="trained")).train()
    pixels = random_pixels(floating, 32, 5)
    before = ReferenceExecutor(integers).run(pixels).astype(int)
    module.calibrate_batch_norm([module.inputs(pixels)])
    after = ReferenceExecutor(module.eval().finish()).run(pixels).astype(int)
    assert np.abs(before - after).max() <= 3
    module.train()
    with torch.no_grad():
        by_batch = module(module.inputs(pixels)).numpy() / integers.output.quant.scale
    # The batch is the one of the statistics: normalized with its own, the answers are the same.
    centred = before - integers.output.quant.zero_point
    assert np.mean(np.abs(by_batch - centred)[np.abs(before) < 120]) < 1.5
    layer = module._layers()[0]
    running = layer.mean.clone()
    module(module.inputs(pixels // 2))
    assert not torch.equal(layer.mean, running)
    module.before_step(60, 100)
    running = layer.mean.clone()
    module(module.inputs(pixels))
    assert torch.equal(layer.mean, running)


def replace_settings(**values: object) -> Qat:
    return EXACT.model_copy(update=values)


def trained(
    graph: Graph, data: str, preprocess: Preprocess, limit: int, settings: Qat, images: int
) -> tuple[Graph, Graph, np.ndarray, np.ndarray]:
    """(after PTQ, after QAT, test images, their labels)."""
    splits = open_images(data)
    train, val = splits.split("train"), splits.split("val")
    chosen = train.order(0)[:images]
    part = replace(train, paths=[train.paths[i] for i in chosen], labels=train.labels[chosen])
    batches = [b.pixels for b in part.batches(np.arange(256), preprocess, 64)]
    test = list(val.batches(val.order(0)[:2000], preprocess, 200))
    floating = lower_for_integers(graph)
    integers = quantize(floating, calibrate(floating, batches), limit)
    module = QatModule(floating, integers, settings, limit)
    fit(QatTask(module, Distiller(settings)), part, preprocess, settings, 0)
    result = trained_graph(module, lambda: batches)
    return (
        integers,
        result,
        np.concatenate([b.pixels for b in test]),
        np.concatenate([b.labels for b in test]),
    )


def top1(graph: Graph, pixels: np.ndarray, labels: np.ndarray) -> float:
    return float((ReferenceExecutor(graph).run(pixels).argmax(1) == labels).mean())


def test_training_repairs_what_rounding_broke(tmp_path: Path) -> None:
    """Weights of three bits, so that there is something to repair; the file is the module, bit for bit."""
    model = open_model("demo", None, 10, 0)
    preprocess = resolve_preprocess(model.preprocess_defaults, {})
    options = Qat(epochs=1, learning_rate=5e-4, flip=False, crop_padding=1, batch=32, average=0.2)
    before, after, pixels, labels = trained(
        import_graph(model, preprocess), "demo", preprocess, 3, options, 1000
    )
    assert top1(before, pixels, labels) < 0.6
    assert top1(after, pixels, labels) > 0.9
    path = tmp_path / "after.tflite"
    path.write_bytes(tflite_bytes(after, IoType.UINT8))
    expected = dequantize(ReferenceExecutor(after).run(pixels), after.output.quant)
    assert np.array_equal(LiteRTRunner(path).logits(pixels), expected)


@pytest.mark.slow
def test_training_improves_on_rounding_on_real_images(shared_data: Path) -> None:
    """ResNet-20 with weights of three bits, on 4,000 real images: most of what PTQ loses comes back."""
    model = open_model("resnet20", shared_data / "resnet20-cifar10.pt", 10, 0)
    preprocess = resolve_preprocess(model.preprocess_defaults, {})
    options = Qat(epochs=1, learning_rate=5e-4, average=0.2)
    before, after, pixels, labels = trained(
        import_graph(model, preprocess), str(shared_data / "cifar10-jpeg.zip"), preprocess, 3, options, 4000
    )
    assert top1(before, pixels, labels) < 0.85
    assert top1(after, pixels, labels) > max(0.84, top1(before, pixels, labels) + 0.02)
