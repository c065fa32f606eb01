"""Proofs: what is called a failure, what a warning, and where runtimes part."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edge_resnet.compression.calibrate import calibrate
from edge_resnet.compression.quantize import PORTABLE_LIMIT, quantize
from edge_resnet.cpu import Cpu, onnx_runtime_saturates, read_cpu, this_cpu
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.nodes import Conv, IntWeights
from edge_resnet.graph.passes import lower_for_integers, simplify
from edge_resnet.recipe import Export
from edge_resnet.targets import TARGETS
from edge_resnet.verify import prove as proving
from edge_resnet.verify.locate import first_difference
from edge_resnet.verify.parity import ParityTally
from edge_resnet.verify.prove import Proofs, prove
from tests.random_graphs import random_pixels


def _quantized(graph: Graph, limit: int) -> Graph:
    ready = lower_for_integers(simplify(graph))
    return quantize(ready, calibrate(ready, [random_pixels(ready, 8, 0)]), limit)


def _with_other_bias(graph: Graph, name: str) -> Graph:
    node = graph.by_name[name]
    assert isinstance(node, Conv)
    assert isinstance(node.weights, IntWeights)
    weights = IntWeights(node.weights.weight, node.weights.scale, node.weights.bias + np.int32(3000))
    other = replace(node, weights=weights)
    return graph.with_nodes(other if n is node else n for n in graph.nodes)


def _convolution(graph: Graph) -> str:
    return [node.name for node in graph.nodes if isinstance(node, Conv)][1]


def _prove(graph: Graph, written: Graph, target: str, folder: Path) -> Proofs:
    path = folder / f"x-{target}{TARGETS[target].suffix}"
    TARGETS[target].write(written, path, Export())
    pixels = random_pixels(graph, 6)
    return prove({TARGETS[target]: path}, graph, None, "none", [(pixels, np.zeros(6, np.int64))], 6, 6)


@pytest.mark.parametrize("target", ["tflite-int8", "onnx-int8"])
def test_the_same_graph_has_no_failure(tmp_path: Path, small_quantized: Graph, target: str) -> None:
    proof = _prove(small_quantized, small_quantized, target, tmp_path).artifacts[0]
    assert proof.failures == proof.warnings == []
    assert proof.parity is not None
    assert (proof.parity.n, proof.parity.identical) == (6, 1.0)


@pytest.mark.parametrize("target", ["tflite-int8", "onnx-int8"])
def test_another_bias_is_found_in_the_file(tmp_path: Path, small_quantized: Graph, target: str) -> None:
    name = _convolution(small_quantized)
    proof = _prove(small_quantized, _with_other_bias(small_quantized, name), target, tmp_path).artifacts[0]
    assert proof.failures == [f"x-{target}{TARGETS[target].suffix}: {name}/bias: differs from the graph's"]
    assert proof.runner is None


@pytest.mark.parametrize("target", ["tflite-int8", "onnx-int8"])
def test_the_node_where_runtimes_part_is_named(
    small_quantized: Graph, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, pixels = _convolution(small_quantized), random_pixels(small_quantized, 3)
    assert first_difference(small_quantized, TARGETS[target], pixels) is None

    def wrong(graph: Graph, path: Path, export: Export) -> None:
        TARGETS[target].write(_with_other_bias(graph, name) if name in graph.by_name else graph, path, export)

    assert first_difference(small_quantized, replace(TARGETS[target], write=wrong), pixels) == name


@pytest.mark.parametrize("limit", [127, PORTABLE_LIMIT])
def test_saturation_is_a_warning_unless_the_weights_are_portable(
    tmp_path: Path, small_graph: Graph, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    """As on an x86 CPU without VNNI: the file is right, the runtime answers something else.

    Weights of 7 bits cannot saturate: there, what differs is a defect.
    """
    quantized = _quantized(small_graph, limit)
    haswell = Cpu("Haswell", "x86_64", 2, frozenset({"avx2"}))
    monkeypatch.setattr(proving, "this_cpu", lambda: haswell)
    target = TARGETS["onnx-int8"]

    class Saturating:
        runtime, version, emulated = "ONNX Runtime/CPU", "1", False

        def logits(self, pixels: np.ndarray) -> np.ndarray:
            return np.full((len(pixels), 5), 0.0, np.float32)

    target = replace(target, open=lambda path: Saturating())
    path = tmp_path / "x.onnx"
    target.write(quantized, path, Export())
    pixels = random_pixels(quantized, 6)
    proofs = prove({target: path}, quantized, None, "none", [(pixels, np.zeros(6, np.int64))], 6, 6)
    proof = proofs.artifacts[0]
    if limit == PORTABLE_LIMIT:
        assert "logits differ from the reference executor's on 6 of 6 images" in proof.failures[0]
        assert proof.warnings == []
        return
    assert proof.failures == []
    assert "AVX2 without VNNI" in proof.warnings[0]
    assert "portable_x86: true" in proof.warnings[0]
    assert "Measured: top-1 differs on" in proof.warnings[0]


@pytest.mark.parametrize(
    ("architecture", "line", "saturates"),
    [
        ("x86_64", "flags : sse4_2 avx2", True),
        ("x86_64", "flags : avx2 avx512f", True),
        ("x86_64", "flags : avx2 avx512f avx512_vnni", False),
        ("x86_64", "flags : avx2 avx_vnni", False),
        ("x86_64", "flags : sse4_2", False),
        ("aarch64", "Features : asimddp i8mm", False),
    ],
)
def test_which_cpus_saturate(tmp_path: Path, architecture: str, line: str, saturates: bool) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text(f"model name : A CPU\n{line}\n")
    cpu = read_cpu(info, architecture)
    assert onnx_runtime_saturates(cpu) is saturates
    assert cpu.name == "A CPU"
    assert this_cpu().cores >= 1


def test_parity_counts() -> None:
    expected = np.float32([[0.0, 1.0, 2.0], [3.0, 1.0, 0.0]])
    got = np.float32([[0.0, 1.0, 2.0], [1.0, 1.5, 0.0]])
    tally = ParityTally("x", 0.5)
    tally.update(expected, got)
    assert (tally.n, tally.identical, tally.top1_agreement) == (2, 0.5, 0.5)
    assert dict(tally.histogram) == {0: 4, 4: 1, 1: 1}
    assert (tally.max_lsb, tally.mean_lsb, tally.max_abs) == (4, 5 / 6, 2.0)
    broken = ParityTally("x", 0.5, to_the_bit=False)
    broken.update(expected, np.full_like(expected, np.nan))
    assert broken.identical == 0
    assert broken.max_lsb == 255
    floats = ParityTally("x", None)
    floats.update(np.float32([[1.0, 1.0 + 1e-6, 0.0]]), np.float32([[1.0 + 1e-6, 1.0, 0.0]]))
    assert floats.top1_agreement == 1  # a tie within float rounding
    assert floats.max_lsb is None
