"""Graphs that are partly in float: what they mean, on every runtime, and which layers are chosen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from edge_resnet.cli.compress import _limited_drop
from edge_resnet.compression.calibrate import calibrate
from edge_resnet.compression.mixed import choose_float_layers, keep_in_float
from edge_resnet.compression.quantize import quantize, quantize_weights
from edge_resnet.compression.sensitivity import measure_sensitivity, rounding_nodes
from edge_resnet.errors import GraphError, InputError
from edge_resnet.graph import nodes as g
from edge_resnet.graph.float_executor import FloatExecutor
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.mixed_executor import MixedExecutor, float_layers
from edge_resnet.graph.passes import lower_for_integers, simplify
from edge_resnet.graph.reference import ReferenceExecutor
from edge_resnet.graph.storage import graph_from_files, graph_to_files
from edge_resnet.graph.text import graph_to_text
from edge_resnet.quantization_record import SensitivityRecord
from edge_resnet.recipe import Export
from edge_resnet.run_directory import Probe
from edge_resnet.targets import TARGETS
from edge_resnet.verify.exactness import first_inexact
from edge_resnet.verify.npu import integer_segments, npu_notes
from edge_resnet.verify.prove import prove
from edge_resnet.verify.ranges import compare_ranges
from edge_resnet.verify.verify_run import _check_probe
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


@hypothesis_settings(max_examples=5)
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


def mixed_example() -> Graph:
    """A graph with a convolution, a sum and the classifier in float."""
    floating, integers = pair(3)
    layers = rounding_nodes(integers)
    return keep_in_float(integers, floating, [layers[1].name, layers[2].name, layers[-1].name])


def test_integers_alone_mean_what_the_reference_says() -> None:
    for seed in (3, 8, 54):
        _, integers = pair(seed)
        pixels = random_pixels(integers, 4)
        assert np.array_equal(MixedExecutor(integers).run(pixels), ReferenceExecutor(integers).run(pixels))


def test_all_layers_in_float_are_the_float_graph() -> None:
    floating, integers = pair(8)
    every = keep_in_float(integers, floating, [node.name for node in rounding_nodes(integers)])
    pixels = random_pixels(integers, 4)
    assert [node.name for node in every.nodes if node.quant is not None] == [integers.input.name]
    assert np.allclose(MixedExecutor(every).logits(pixels), FloatExecutor(floating).run(pixels), atol=1e-5)


def test_no_other_layer_changes_and_float_tensors_touch_only_float_layers() -> None:
    floating, integers = pair(54)
    kept = some_layers(integers, np.random.default_rng(1))
    mixed = keep_in_float(integers, floating, kept)
    assert mixed.is_mixed
    assert not mixed.is_quantized
    for node in mixed.nodes:
        before = integers.by_name[node.name]
        assert node.quant in (before.quant, None)
        if isinstance(node, g.Conv | g.Linear):
            assert isinstance(node.weights, g.FloatWeights) == (node.name in kept)
        if node.quant is None and not isinstance(node, g.Input):
            around = (node, *mixed.consumers[node.name])
            assert not any(mixed.computes_in_integers(other) for other in around)


@pytest.mark.parametrize("name", ["nothing", "image", "flatten13"])
def test_what_is_no_layer_cannot_be_kept(name: str) -> None:
    floating, integers = pair(417)
    with pytest.raises(GraphError, match=f"node {name!r} is no layer"):
        keep_in_float(integers, floating, [name])


def test_a_mixed_graph_is_stored_and_shown(tmp_path: Path) -> None:
    mixed = mixed_example()
    for name, content in graph_to_files(mixed, "mixed").items():
        (tmp_path / name).write_bytes(content)
    again = graph_from_files(tmp_path, "mixed")
    pixels = random_pixels(mixed, 4)
    assert np.array_equal(MixedExecutor(again).run(pixels), MixedExecutor(mixed).run(pixels))
    marked = [line.split(":")[0].strip() for line in graph_to_text(again).splitlines() if "in float" in line]
    assert set(float_layers(mixed)) <= set(marked)
    assert len(marked) < len(mixed.nodes) - 1


def test_inspect_shows_the_float_layers_of_an_artifact(
    edge_resnet: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    mixed, target = mixed_example(), TARGETS["tflite-int8"]
    path = target.path(tmp_path, "mixed")
    target.write(mixed, path, Export())
    code, out, _ = edge_resnet("inspect", path)
    assert code == 0
    layers = [name for name in float_layers(mixed) if isinstance(mixed.by_name[name], g.Conv | g.Linear)]
    shown = [line.split("/weight")[0].strip() for line in out.splitlines() if "kept in float" in line]
    assert shown == layers


def test_integer_weights_between_floats_have_no_meaning() -> None:
    _, integers = pair(3)
    last = replace(integers.output, quant=None)
    with pytest.raises(GraphError, match="integer weights but reads or writes floats"):
        MixedExecutor(integers.with_nodes((*integers.nodes[:-1], last)))


def test_mixed_artifacts_are_proven_but_not_held_to_the_bit(tmp_path: Path) -> None:
    mixed = mixed_example()
    pixels = random_pixels(mixed, 8)
    paths = {TARGETS[name]: TARGETS[name].path(tmp_path, "m") for name in ("tflite-int8", "onnx-int8")}
    for target, path in paths.items():
        target.write(mixed, path, Export())
    proofs = prove(paths, mixed, None, "", [(pixels, np.zeros(8, np.int64))], 8, 8)
    for proof in proofs.artifacts:
        assert not proof.failures
        assert not proof.exact
        assert "kept in float" in proof.warnings[0]
        assert proof.ranges is not None
        assert proof.ranges.equal == proof.ranges.checked > 0
        assert proof.parity is not None
        assert proof.parity.top1_agreement == 1
    assert first_inexact(mixed) == f"node {float_layers(mixed)[0]!r} is kept in float"


@pytest.mark.parametrize("name", ["tflite-int8", "onnx-int8", "coreml-int8"])
def test_a_wrong_number_of_a_float_layer_is_named(name: str, tmp_path: Path) -> None:
    mixed, target = mixed_example(), TARGETS[name]
    layer = next(mixed.by_name[n] for n in float_layers(mixed) if hasattr(mixed.by_name[n], "weights"))
    assert isinstance(layer, g.Conv | g.Linear)
    assert isinstance(layer.weights, g.FloatWeights)
    wrong = layer.weights.weight.copy()
    wrong.flat[-1] += 1
    other = replace(layer, weights=replace(layer.weights, weight=wrong))
    path = target.path(tmp_path, "m")
    target.write(mixed.with_nodes(other if n is layer else n for n in mixed.nodes), path, Export())
    problems = compare_ranges(mixed, target.read_back(path)).mismatches
    assert problems == (f"{layer.name}/weight: differs from the graph's",)


def test_a_layer_that_is_float_in_the_file_only_is_named_and_the_other_way_round(tmp_path: Path) -> None:
    (_, integers), mixed, target = pair(3), mixed_example(), TARGETS["onnx-int8"]
    layer = next(n for n in float_layers(mixed) if isinstance(mixed.by_name[n], g.Conv | g.Linear))
    path = target.path(tmp_path, "m")
    target.write(mixed, path, Export())
    problems = compare_ranges(integers, target.read_back(path)).mismatches
    assert f"{layer}/weight: missing" in problems
    target.write(integers, path, Export())
    problems = compare_ranges(mixed, target.read_back(path)).mismatches
    assert f"{layer}/weight: integers in the file, float in the graph" in problems
    assert f"{mixed.output.name}: quantized in the file, float in the graph" in problems


def test_onnx_runtime_leaves_float_weights_alone(tmp_path: Path) -> None:
    """It would quantize them, with one scale, right behind a DequantizeLinear."""
    floating, integers = pair(3)
    convolutions = [node.name for node in integers.nodes if isinstance(node, g.Conv)]
    mixed = keep_in_float(integers, floating, convolutions[1:2])
    path = tmp_path / "mixed.onnx"
    TARGETS["onnx-int8"].write(mixed, path, Export())
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    optimized = onnx.load(options.optimized_model_filepath)
    kinds = Counter(node.op_type for node in optimized.graph.node)
    assert kinds["QLinearConv"] == len(convolutions) - 1
    assert kinds["Conv"] + kinds["FusedConv"] == 1


def coarse_weights(graph: Graph, name: str, factor: float) -> Graph:
    """The layer's weights in steps that are `factor` times as large."""
    node = graph.by_name[name]
    assert isinstance(node, g.Conv | g.Linear)
    assert isinstance(node.weights, g.IntWeights)
    weights = node.weights
    coarse = g.IntWeights(
        np.rint(weights.weight / factor).astype(np.int8),
        (weights.scale * np.float32(factor)).astype(np.float32),
        np.rint(weights.bias / factor).astype(np.int32),
    )
    return graph.with_nodes(replace(node, weights=coarse) if n is node else n for n in graph.nodes)


def coarse_output(floating: Graph, integers: Graph, name: str, factor: float) -> Graph:
    """The layer's output in steps that are `factor` times as large; its reader's bias is in these steps."""
    quant = integers.by_name[name].quant
    assert quant is not None
    coarse = g.QuantParams(float(np.float32(quant.scale * factor)), quant.zero_point)
    (reader,) = integers.consumers[name]
    weights = floating.by_name[reader.name].weights  # type: ignore[attr-defined]
    changed = {
        name: replace(integers.by_name[name], quant=coarse),
        reader.name: replace(reader, weights=quantize_weights(weights, coarse.scale)),  # type: ignore[call-arg]
    }
    return integers.with_nodes(changed.get(n.name, n) for n in integers.nodes)


def coloured_images(graph: Graph, count: int) -> np.ndarray:
    """Each of its own colour, with noise: a network tells them apart."""
    rng = np.random.default_rng(0)
    _, height, width = graph.input.shape
    colours = rng.integers(0, 256, (count, 1, 1, 3)) + rng.integers(-60, 60, (count, height, width, 3))
    return colours.clip(0, 255).astype(np.uint8)


def undecided_pair(seed: int) -> tuple[Graph, Graph]:
    """Float and integers of a graph that is about as likely to choose one class as another."""
    graph = simplify(random_graph(seed))
    pixels = coloured_images(graph, 100)
    last = graph.output
    assert isinstance(last, g.Linear)
    assert isinstance(last.weights, g.FloatWeights)
    logits = FloatExecutor(graph).run(pixels)
    weight = last.weights.weight / logits.std(0)[:, None]
    centred = g.FloatWeights(weight, (last.weights.bias - logits.mean(0)) / logits.std(0))
    graph = graph.with_nodes((*graph.nodes[:-1], replace(last, weights=centred)))
    ready = lower_for_integers(graph)
    return ready, quantize(ready, calibrate(ready, [pixels]))


def chosen(floating: Graph, integers: Graph, max_drop: float) -> tuple[Graph, SensitivityRecord]:
    """With the float graph's own answers as labels, so that float is always right."""
    pixels = coloured_images(floating, 200)
    labels = FloatExecutor(floating).run(pixels).argmax(1)
    assert np.bincount(labels, minlength=5).max() < 140
    record = measure_sensitivity(floating, integers, pixels, labels)
    return choose_float_layers(floating, integers, pixels, labels, max_drop, record)


@pytest.mark.parametrize("seed", [3, 17, 54])
def test_the_one_bad_layer_is_found_and_nothing_else_kept(seed: int) -> None:
    floating, integers = undecided_pair(seed)
    bad = next(node.name for node in integers.nodes if isinstance(node, g.Conv))
    spoiled = coarse_weights(integers, bad, 60)
    good, _ = chosen(floating, integers, max_drop=10)
    assert good is integers
    mixed, record = chosen(floating, spoiled, max_drop=10)
    assert float_layers(mixed) == [bad]
    assert [layer.name for layer in record.layers if layer.kept_float] == [bad]
    assert record.int8_top1 < 0.9 <= record.mixed_top1  # type: ignore[operator]
    assert record.notes == (f"kept in float: {bad}",)


def test_a_tensor_that_rounds_too_coarsely_becomes_float_with_all_that_touch_it() -> None:
    floating, integers = undecided_pair(8)
    bad = next(node for node in integers.nodes if isinstance(node, g.Conv))
    reader = integers.consumers[bad.name][0].name
    mixed, record = chosen(floating, coarse_output(floating, integers, bad.name, 200), max_drop=10)
    assert float_layers(mixed) == [bad.name, reader]
    assert mixed.by_name[bad.name].quant is None
    assert record.mixed_top1 is not None
    assert record.mixed_top1 >= 0.9


def test_a_limit_that_not_even_float_meets_is_told() -> None:
    floating, integers = undecided_pair(3)
    pixels, labels = random_pixels(floating, 50), np.zeros(50, np.int64)
    record = replace(measure_sensitivity(floating, integers, pixels, labels), float_top1=2.0)
    mixed, told = choose_float_layers(floating, integers, pixels, labels, 1.0, record)
    assert mixed is integers
    assert told.mixed_top1 is None
    assert "not even with all layers in float" in told.notes[0]


def segments_of_chain(kept: list[int]) -> int:
    """Of six convolutions behind one another, some in float."""
    rng = np.random.default_rng(0)
    nodes: list[g.Node] = [g.Input(name="image", shape=(3, 4, 4), quant=g.QuantParams(2.0**-6, 0))]
    for index in range(6):
        weight = rng.normal(0, 1, (3, 3, 1, 1)).astype(np.float32)
        weights = g.FloatWeights(weight, np.zeros(3, np.float32))
        nodes.append(g.Conv(name=f"conv{index}", inputs=(nodes[-1].name,), weights=weights))
    floating = Graph("chain", tuple(nodes))
    integers = quantize(floating, calibrate(floating, [random_pixels(floating, 4)]))
    return integer_segments(keep_in_float(integers, floating, [f"conv{index}" for index in kept]))


@pytest.mark.parametrize(
    ("kept", "segments"),
    [([], 1), ([0], 1), ([5], 1), ([2], 2), ([2, 3], 2), ([1, 3], 3), ([0, 2, 5], 2), (list(range(6)), 0)],
)
def test_integer_parts_between_float_layers_are_counted(kept: list[int], segments: int) -> None:
    assert segments_of_chain(kept) == segments


def test_a_float_branch_beside_an_integer_one_does_not_split_more_than_it_must() -> None:
    floating, integers = pair(54)
    total = next(node for node in integers.nodes if isinstance(node, g.Add))
    branch = integers.by_name[total.inputs[0]]
    assert integer_segments(keep_in_float(integers, floating, [branch.name])) == 2


def test_npu_notes_name_what_is_lost_for_each_target() -> None:
    mixed, (_, integers) = mixed_example(), pair(3)
    assert npu_notes(integers, list(TARGETS)) == []
    tflite, onnx_note, coreml = npu_notes(mixed, ["tflite-int8", "tflite-fp32", "onnx-int8", "coreml-int8"])
    assert "Ethos-U" in tflite
    assert "QNN" in onnx_note
    assert "Neural Engine" in coreml
    assert f"{len(float_layers(mixed))} layers in float" in tflite
    assert npu_notes(mixed, ["onnx-fp32"]) == []


def test_verify_tells_a_changed_mixed_graph_from_one_that_rounds_differently() -> None:
    floating, integers = undecided_pair(54)
    first = rounding_nodes(integers)[0].name
    mixed = keep_in_float(integers, floating, [first])
    pixels = coloured_images(mixed, 32)
    logits = MixedExecutor(mixed).run(pixels)
    assert np.ptp(logits.astype(int)) > 127  # more than int8 can hold
    _check_probe(mixed, Probe(pixels, logits + np.int8(1) * (logits < 0)))
    other = coarse_weights(mixed, integers.output.name, 30)
    with pytest.raises(InputError, match="graph/ was changed"):
        _check_probe(other, Probe(pixels, logits))
    with pytest.raises(InputError, match="graph/ was changed"):
        _check_probe(integers, Probe(pixels, ReferenceExecutor(integers).run(pixels) ^ np.int8(1)))


def test_max_drop_is_two_settings() -> None:
    assert _limited_drop(None, [], 0.5) == ["sensitivity.images=1000", "sensitivity.max_drop=0.5"]
    given = ["sensitivity.images=50"]
    assert _limited_drop(None, given, 0.5) == [*given, "sensitivity.images=50", "sensitivity.max_drop=0.5"]


def test_a_negative_max_drop_is_refused(edge_resnet: Callable[..., tuple[int, str, str]]) -> None:
    code, _, err = edge_resnet("compress", "demo", "--max-drop", "-1")
    assert code == 2
    assert "--max-drop" in err


@pytest.mark.parametrize("io", ["uint8", "int8", "float32"])
@pytest.mark.parametrize("kept", [0, -1])
def test_tflite_ends_around_a_float_layer(io: str, kept: int, tmp_path: Path) -> None:
    floating, integers = pair(3)
    mixed = keep_in_float(integers, floating, [rounding_nodes(integers)[kept].name])
    target = TARGETS["tflite-int8"]
    path = target.path(tmp_path, "m")
    target.write(mixed, path, Export(tflite_io=io))  # type: ignore[arg-type]
    pixels = random_pixels(mixed, 4)
    got = target.open(path).logits(pixels)
    step = integers.output.quant.scale  # type: ignore[union-attr]
    assert np.abs(got - MixedExecutor(mixed).logits(pixels)).max() <= 1.01 * step
