"""NNCF quantizes and trains; its ranges become the graph's and reach every format."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from edge_resnet.compression.graph_module import GraphModule, module_key
from edge_resnet.compression.nncf_quantizer import (
    NncfResult,
    calibrate_with_nncf,
    check_nncf,
    import_nncf,
)
from edge_resnet.compression.nncf_scheme import read_scheme
from edge_resnet.compression.nncf_task import NncfTask
from edge_resnet.distillation import Distiller
from edge_resnet.errors import InputError, MissingToolError
from edge_resnet.graph.float_executor import FloatExecutor, input_values
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.nodes import Conv, IntWeights, Linear, QuantParams, Relu, Sigmoid
from edge_resnet.graph.passes import lower_for_integers, simplify
from edge_resnet.graph.reference import ReferenceExecutor
from edge_resnet.recipe import Export, Qat
from edge_resnet.targets import parse_targets
from edge_resnet.training import Portion
from edge_resnet.verify.ranges import compare_ranges
from tests.random_graphs import random_graph, random_pixels

needs_nncf = pytest.mark.skipif(
    importlib.util.find_spec("nncf") is None, reason="no NNCF: pip install 'edge-resnet[nncf]'"
)
# Of random_graph: residual sums and a depthwise convolution; an option A shortcut and squeeze-and-excitation
# with convolutions; the same with fully connected layers; a split and a concatenation.
SEEDS = (54, 3, 38, 33)
PRE_ACTIVATION = 45


def _lowered(seed: int) -> Graph:
    return lower_for_integers(simplify(random_graph(seed, blocks=3)))


def quantize_with_nncf(
    floating: Graph, batches: list[np.ndarray], trainer: Callable[[torch.nn.Module], None] | None = None
) -> NncfResult:
    """NNCF's integers after its calibration and, where there is a trainer, its training."""
    model = calibrate_with_nncf(floating, batches)
    if trainer is not None:
        model.module.train()
        trainer(model.module)
        model.module.eval()
    return model.quantized()


def _answers(graph: Graph, pixels: np.ndarray) -> np.ndarray:
    """The graph's logits in real numbers, computed in integers."""
    quant = graph.output.quant
    assert quant is not None
    return (ReferenceExecutor(graph).run(pixels).astype(np.float64) - quant.zero_point) * quant.scale


def _sqnr(expected: np.ndarray, got: np.ndarray) -> float:
    """Signal to quantization noise, dB."""
    return float(10 * np.log10((expected**2).sum() / ((expected - got) ** 2).sum()))


class _Trainer:
    """Keeps NNCF's module, and trains it for some steps."""

    def __init__(self, graph: Graph, pixels: np.ndarray, steps: int) -> None:
        self.graph, self.pixels, self.steps = graph, pixels, steps
        self.losses: list[float] = []

    def __call__(self, module: torch.nn.Module) -> None:
        self.module = module
        settings = Qat(epochs=1, learning_rate=0.05, weight_decay=0.0)
        task = NncfTask(module, self.graph.input, Distiller(settings))
        optimizer = torch.optim.SGD(task.parameter_groups(settings), settings.learning_rate, momentum=0.9)
        labels = torch.arange(len(self.pixels)) % 5
        inputs, count = task.inputs(self.pixels), len(labels)
        portion = Portion(0, self.pixels, labels.numpy(), count, np.arange(count), np.zeros(count, np.bool_))
        for _ in range(self.steps):
            loss, _ = task.loss(module, inputs, labels, portion)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            self.losses.append(float(loss.detach()))


@needs_nncf
@pytest.mark.parametrize("seed", SEEDS)
def test_the_graph_answers_as_nncf_does(seed: int) -> None:
    """Against NNCF's own module, which simulates the same integers in floats."""
    graph = _lowered(seed)
    pixels = random_pixels(graph, 16, seed)
    keep = _Trainer(graph, pixels, steps=0)
    result = quantize_with_nncf(graph, [pixels[:8], pixels[8:]], keep)
    assert result.graph.is_quantized
    assert result.graph.input.quant == graph.input.quant  # the image's bytes
    with torch.no_grad():
        simulated = keep.module(input_values(graph.input, pixels)).numpy()
    answers = _answers(result.graph, pixels)
    assert _sqnr(simulated, answers) > 35, "as near as 8 bit logits can be"
    assert _sqnr(FloatExecutor(graph).run(pixels), answers) > 15


@needs_nncf
def test_every_parameter_is_nncfs() -> None:
    """Scales, zero points and weights, one by one, read off the module in another way."""
    graph = _lowered(54)
    pixels = random_pixels(graph, 16, 0)
    keep = _Trainer(graph, pixels, steps=0)
    result = quantize_with_nncf(graph, [pixels], keep)
    hooks = dict(keep.module.named_modules())
    for node in result.graph.nodes:
        if not isinstance(node, Conv | Linear):
            continue
        assert isinstance(node.weights, IntWeights)
        kind = "conv2d" if isinstance(node, Conv) else "linear"
        key = module_key(node.name)
        weights = hooks[f"__nncf_hooks.pre_hooks.{key}/layer/{kind}/0__1.0"]
        layer = hooks[f"{key}.layer"]
        with torch.no_grad():
            expected = weights(layer.weight).numpy()
        shape = (-1, *[1] * (expected.ndim - 1))
        np.testing.assert_allclose(
            node.weights.weight * node.weights.scale.reshape(shape), expected, rtol=1e-5, atol=1e-7
        )
        if node.quant is not None and node is not result.graph.output:
            place = [name for name in hooks if name.startswith(f"__nncf_hooks.post_hooks.{key}/")]
            quantizers = [hooks[name] for name in place if name.endswith(".0")]
            assert len(quantizers) == 1
            low = float(quantizers[0].input_low.detach())
            step = float(quantizers[0].input_range.detach()) / 255
            assert node.quant.scale == pytest.approx(step, rel=0.01)
            assert (-128 - node.quant.zero_point) * node.quant.scale == pytest.approx(low, abs=step)


@needs_nncf
@pytest.mark.parametrize("seed", SEEDS)
def test_all_formats_hold_the_same_ranges(seed: int, tmp_path: Path) -> None:
    graph = quantize_with_nncf(_lowered(seed), [random_pixels(_lowered(seed), 16, seed)]).graph
    for target in parse_targets(["tflite-int8", "onnx-int8", "coreml-int8"]):
        path = target.path(tmp_path, "model")
        target.write(graph, path, Export())
        check = compare_ranges(graph, target.read_back(path))
        assert check.mismatches == ()
        assert check.checked > len(graph.nodes)


@needs_nncf
def test_what_nncf_trained_is_what_the_graph_holds() -> None:
    graph = _lowered(54)
    pixels = random_pixels(graph, 20, 1)
    train = _Trainer(graph, pixels, steps=30)
    before = quantize_with_nncf(graph, [pixels]).graph
    after = quantize_with_nncf(graph, [pixels], train).graph
    assert train.losses[-1] < 0.8 * train.losses[0]
    with torch.no_grad():
        simulated = train.module(input_values(graph.input, pixels))
    answers = _answers(after, pixels)
    assert _sqnr(simulated.numpy(), answers) > 35
    labels = torch.arange(20) % 5
    loss = float(F.cross_entropy(torch.from_numpy(answers).float(), labels))
    assert loss < 0.9 * train.losses[0]
    scales = [(a.quant, b.quant) for a, b in zip(before.nodes, after.nodes, strict=True)]
    assert sum(a != b for a, b in scales) > len(scales) / 2, "NNCF trains ranges, too"
    assert after.input.quant == graph.input.quant


@needs_nncf
def test_the_same_images_give_the_same_integers() -> None:
    graph = _lowered(38)
    first, second = (quantize_with_nncf(graph, [random_pixels(graph, 8, 0)]).graph for _ in range(2))
    for a, b in zip(first.nodes, second.nodes, strict=True):
        assert a.quant == b.quant
        if isinstance(a, Conv | Linear):
            assert np.array_equal(a.weights.weight, b.weights.weight)  # type: ignore[attr-defined]
            assert np.array_equal(a.weights.bias, b.weights.bias)  # type: ignore[attr-defined]


@needs_nncf
def test_a_checkpoint_brings_back_what_was_trained() -> None:
    """The training loop keeps the module's state dict, and resumes with a module calibrated anew."""
    graph = _lowered(54)
    pixels = random_pixels(graph, 10, 1)
    first, second = (calibrate_with_nncf(graph, [pixels]) for _ in range(2))
    first.module.train()
    _Trainer(graph, pixels, steps=5)(first.module)
    second.module.load_state_dict(first.module.state_dict())
    images = input_values(graph.input, pixels)
    with torch.no_grad():
        assert torch.equal(first.module.eval()(images), second.module.eval()(images))
    a, b = first.quantized().graph, second.quantized().graph
    assert [node.quant for node in a.nodes] == [node.quant for node in b.nodes]
    assert np.array_equal(_answers(a, pixels), _answers(b, pixels))


@needs_nncf
def test_what_nncf_leaves_in_float_is_said() -> None:
    graph = _lowered(3)
    result = quantize_with_nncf(graph, [random_pixels(graph, 8, 0)])
    assert "conv18" in result.notes[-1], "the squeeze-and-excitation layer"
    sigmoids = [node for node in result.graph.nodes if isinstance(node, Sigmoid)]
    assert [node.quant for node in sigmoids] == [QuantParams(2.0**-8, -128)]


@needs_nncf
def test_a_sum_and_its_relu_with_two_ranges_are_refused_at_once() -> None:
    graph = _lowered(PRE_ACTIVATION)
    assert any(isinstance(node, Relu) for node in graph.nodes)
    with pytest.raises(InputError, match=r"cannot be carried: node 'relu21': .* same integers as 'add18'"):
        check_nncf(graph)


@needs_nncf
@pytest.mark.parametrize("seed", SEEDS)
def test_the_check_passes_what_can_be_carried(seed: int) -> None:
    check_nncf(_lowered(seed))


def _scheme_of(graph: Graph, **settings: Any) -> None:
    """Reads what NNCF makes of the graph with other settings than ours."""
    nncf = import_nncf()
    from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters
    from nncf.torch.function_hook import get_hook_storage

    module = nncf.quantize(
        GraphModule(graph).eval(),
        nncf.Dataset([random_pixels(graph, 2, 0)], lambda pixels: input_values(graph.input, pixels)),
        advanced_parameters=AdvancedQuantizationParameters(disable_bias_correction=True, **settings),
    )
    read_scheme(graph, get_hook_storage(module).named_hooks())


def _quantizer(bits: int, mode: str, shape: tuple[int, ...]) -> Any:
    """One of NNCF's quantizers, as it puts them in front of weights."""
    from nncf.torch.quantization import layers

    kind = {"symmetric": layers.SymmetricQuantizer, "asymmetric": layers.AsymmetricQuantizer}[mode]
    quantizer = kind(layers.PTQuantizerSpec(bits, mode, None, False, False, shape, False))
    if mode == "asymmetric":
        quantizer.input_low.data.fill_(-0.3)
    else:
        quantizer.signed = True
    quantizer.set_levels()
    return quantizer


@needs_nncf
def test_schemes_that_cannot_be_carried() -> None:
    """The first is what NNCF would do by itself in front of depthwise convolutions."""
    nncf = import_nncf()
    from nncf.torch.function_hook import get_hook_storage

    graph = _lowered(54)
    data = nncf.Dataset([random_pixels(graph, 2, 0)], lambda pixels: input_values(graph.input, pixels))
    module = nncf.quantize(GraphModule(graph).eval(), data)
    with pytest.raises(InputError, match=r"node 'conv14': .* scale for each of 8 channels"):
        read_scheme(graph, get_hook_storage(module).named_hooks())
    weight, output = (
        "pre_hooks.node_conv2/layer/conv2d/0__1.0",
        "post_hooks.node_conv2/activation/relu/0__0.0",
    )
    before = "post_hooks.node_conv2/layer/conv2d/0__0.0"
    for name, quantizer, message in (
        (weight, _quantizer(4, "symmetric", (4, 1, 1, 1)), "node 'conv2': weights of 16 levels; int8"),
        (weight, _quantizer(8, "asymmetric", (4, 1, 1, 1)), "node 'conv2': asymmetric weights"),
        (output, _quantizer(4, "symmetric", (1,)), "node 'conv2': an activation of 16 levels; 8 bit"),
        (before, _quantizer(8, "symmetric", (1,)), "node 'conv2': the sum in front of its activation"),
    ):
        with pytest.raises(InputError, match=f"scheme cannot be carried: {message}"):
            read_scheme(graph, [(name, quantizer)])


@needs_nncf
def test_no_image() -> None:
    with pytest.raises(InputError, match="at least one image"):
        quantize_with_nncf(_lowered(54), [])


@needs_nncf
def test_it_is_silent_and_sends_nothing() -> None:
    """In a process of its own: telemetry is chosen, and the log opened, when NNCF is imported."""
    script = (
        "import sys\n"
        "from tests.test_nncf import _lowered, quantize_with_nncf, random_pixels\n"
        "del sys.modules['pytest']\n"  # NNCF sends nothing where it sees pytest
        "graph = _lowered(54)\n"
        "quantize_with_nncf(graph, [random_pixels(graph, 4, 0)])\n"
        "import nncf.telemetry.wrapper as wrapper\n"
        "assert 'openvino_telemetry' not in sys.modules\n"
        "assert isinstance(wrapper.telemetry, wrapper.NNCFTelemetryStub), wrapper.telemetry\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=300
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_without_nncf(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "nncf" else found(name))
    with pytest.raises(MissingToolError, match=r"pip install 'edge-resnet\[nncf\]'") as raised:
        import_nncf()
    assert raised.value.exit_code == 3


def test_without_nncf_the_command_says_what_installs_it(
    monkeypatch: pytest.MonkeyPatch, edge_resnet: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "nncf" else found(name))
    code, out, err = edge_resnet("compress", "demo", "--quantizer", "nncf", "--out", tmp_path / "run")
    assert (code, out) == (3, "")
    assert "pip install 'edge-resnet[nncf]'" in err
    assert not (tmp_path / "run").exists()


@needs_nncf
@pytest.mark.slow
@pytest.mark.parametrize("epochs", [0, 1])
def test_the_command_ends_with_equal_ranges(
    edge_resnet: Callable[..., tuple[int, str, str]], tmp_path: Path, epochs: int
) -> None:
    """PTQ and QAT: one set of NNCF's integers in all three formats, run on their runtimes."""
    targets = ("tflite-int8", "onnx-int8", "coreml-int8")
    code, out, err = edge_resnet(
        *("compress", "demo", "--quantizer", "nncf", "--out", tmp_path / "run", "--json"),
        *(word for target in targets for word in ("--target", target)),
        *("--set", "benchmark.runs=0", "--set", f"qat.epochs={epochs}"),
    )
    assert code == 0, err
    report = json.loads(out)
    assert [artifact["target"] for artifact in report["artifacts"]] == list(targets)
    for artifact in report["artifacts"]:
        assert artifact["ranges"]["checked"] == artifact["ranges"]["equal"] > 20
        assert artifact["accuracy"]["top1"] > 0.95
