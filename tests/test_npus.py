"""Hexagon and TFLite Micro: the real compiler, the real emulators."""

from __future__ import annotations

import os
import tempfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest

from edge_resnet.benchmark.process import WorkerProcess
from edge_resnet.benchmark.result import BenchmarkSettings
from edge_resnet.devices import emulated
from edge_resnet.devices.device import Job, Request
from edge_resnet.devices.measure import measure_all
from edge_resnet.devices.qnn import ARCHITECTURES, compile_for_hexagon
from edge_resnet.devices.registry import open_device
from edge_resnet.errors import InputError, MissingToolError
from edge_resnet.export.tflite import IoType
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.mixed_executor import MixedExecutor
from edge_resnet.progress import SilentProgress
from tests.npu_files import INSTALL, as_floats, measure, onnx_file, onnx_file_with_cpu_nodes, tflite_file
from tests.random_graphs import random_pixels

needs_qnn = pytest.mark.skipif(find_spec("onnxruntime_qnn") is None, reason=f"no onnxruntime-qnn: {INSTALL}")
needs_tflm = pytest.mark.skipif(find_spec("tflite_micro") is None, reason=f"no tflite-micro: {INSTALL}")


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files go: a test can see that nothing is left there."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def _lsb(graph: Graph, logits: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    assert graph.output.quant is not None
    return np.rint(np.abs(logits - MixedExecutor(graph).logits(pixels)) / graph.output.quant.scale)


@needs_tflm
@pytest.mark.parametrize("io", [IoType.INT8, IoType.UINT8])
def test_tflite_micro_answers_within_a_few_lsb(tmp_path: Path, small_quantized: Graph, io: IoType) -> None:
    pixels = random_pixels(small_quantized, 10, seed=2)
    found = measure("tflm://host", tflite_file(tmp_path, small_quantized, io), pixels)
    (benchmark,), answers = found.benchmarks, found.answers
    assert (benchmark.kind, benchmark.runtime, benchmark.latency_ms) == ("emulated", "TFLite Micro", None)
    # The largest tensors alone take 2 KB; all, each in a place of its own, ten times more.
    assert 2_000 < benchmark.figures["arena_bytes"] < 20_000
    parts = benchmark.figures["arena_scratch_bytes"], benchmark.figures["arena_persistent_bytes"]
    assert benchmark.figures["arena_bytes"] == sum(parts)
    assert answers is not None
    assert answers.logits.shape == (10, 5)
    assert answers.kind == "emulated"
    assert _lsb(small_quantized, answers.logits, pixels).max() <= 3


@needs_qnn
def test_hexagon_answers_within_a_few_lsb(tmp_path: Path, small_quantized: Graph) -> None:
    pixels = random_pixels(small_quantized, 10, seed=2)
    found = measure("qnn-htp://73", onnx_file(tmp_path, small_quantized), pixels)
    (benchmark,), answers = found.benchmarks, found.answers
    assert (benchmark.kind, benchmark.latency_ms, benchmark.figures["cpu_nodes"]) == ("emulated", None, 0)
    assert benchmark.figures["npu_nodes"] > len(small_quantized.nodes)
    assert benchmark.figures["context_bytes"] > 10_000
    assert benchmark.figures["compile_seconds"] > 0
    assert answers is not None
    assert _lsb(small_quantized, answers.logits, pixels).max() <= 3
    assert not (tmp_path / "model-context.onnx").exists()


@needs_qnn
def test_nodes_that_the_npu_lacks_are_named(tmp_path: Path, small_quantized: Graph) -> None:
    pixels = random_pixels(small_quantized, 2)
    found = measure("qnn-htp://73", onnx_file_with_cpu_nodes(tmp_path, small_quantized), pixels)
    (benchmark,) = found.benchmarks
    assert benchmark.figures["cpu_nodes"] == 2
    assert benchmark.notes[-1] == "2 nodes would run on the CPU beside the NPU: Erf 'erf', Asinh 'asinh'"
    assert found.answers is not None
    assert np.isfinite(found.answers.logits).all()


@needs_qnn
def test_a_context_binary_answers_as_the_model_and_knows_its_architecture(
    tmp_path: Path, small_quantized: Graph
) -> None:
    source = onnx_file(tmp_path, small_quantized)
    compiled = compile_for_hexagon(source.read_bytes(), "75", "model")
    assert compiled == compile_for_hexagon(source.read_bytes(), "75", "model")
    path = tmp_path / "compiled.onnx"
    path.write_bytes(compiled)
    assert [node.op_type for node in onnx.load(path).graph.node] == ["EPContext"]
    pixels = random_pixels(small_quantized, 3)
    answers = [measure("qnn-htp://75", file, pixels).answers for file in (source, path)]
    assert answers[0] is not None
    assert answers[1] is not None
    np.testing.assert_array_equal(answers[0].logits, answers[1].logits)
    note = measure("qnn-htp://73", path).benchmarks[0].notes[0]
    assert note.endswith("compiled for architecture 75, not 73")


@needs_qnn
def test_every_architecture_compiles(tmp_path: Path, small_quantized: Graph) -> None:
    path = onnx_file(tmp_path, small_quantized)
    sizes = [
        measure(f"qnn-htp://{name}", path).benchmarks[0].figures["context_bytes"] for name in ARCHITECTURES
    ]
    assert min(sizes) > 10_000


@pytest.mark.parametrize("name", ["999", "", "v73", "7", "73/x", "73?a=b"])
def test_an_unknown_architecture_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=r"no such Hexagon architecture; .* 73 \(Snapdragon 8 Gen 2\)"):
        open_device(f"qnn-htp://{name}")


@pytest.mark.parametrize("uri", ["tflm://", "tflm", "tflm://board", "tflm://host/"])
def test_tflite_micro_is_on_this_machine_only(uri: str) -> None:
    with pytest.raises(InputError, match="tflm://host"):
        open_device(uri)


@pytest.mark.parametrize(
    ("uri", "name", "words"),
    [
        pytest.param("tflm://host", "x.tflite", "x.tflite: ", marks=needs_tflm),
        pytest.param("qnn-htp://73", "x.onnx", "x.onnx: ", marks=needs_qnn),
        ("tflm://host", "x.onnx", "takes .tflite files, not .onnx"),
        ("qnn-htp://73", "x.tflite", "takes .onnx files, not .tflite"),
    ],
)
def test_rubbish_is_a_note_of_one_line(tmp_path: Path, uri: str, name: str, words: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"rubbish")
    found = measure(uri, path, np.zeros((2, 8, 8, 3), np.uint8))
    (benchmark,) = found.benchmarks
    assert words in benchmark.notes[0]
    assert "\n" not in benchmark.notes[0]
    assert (benchmark.figures, found.answers) == ({}, None)


@needs_tflm
def test_operators_that_tflite_micro_lacks_are_named(tmp_path: Path, small_graph: Graph) -> None:
    found = measure("tflm://host", tflite_file(tmp_path, as_floats(small_graph), IoType.UINT8))
    assert "Node CAST (number 0) failed" in found.benchmarks[0].notes[0]


@needs_qnn
def test_a_float_model_is_called_one(tmp_path: Path, small_graph: Graph) -> None:
    (benchmark,) = measure("qnn-htp://73", onnx_file(tmp_path, as_floats(small_graph))).benchmarks
    assert "a float model, which the compiler refuses" in benchmark.notes[0]
    assert benchmark.figures == {}


@needs_tflm
def test_images_of_another_size_are_a_note(tmp_path: Path, small_quantized: Graph) -> None:
    found = measure("tflm://host", tflite_file(tmp_path, small_quantized), np.zeros((3, 5, 5, 3), np.uint8))
    assert "only 0 images were answered" in found.benchmarks[0].notes[-1]
    assert found.benchmarks[0].figures["arena_bytes"] > 0
    assert found.answers is None


@needs_tflm
def test_what_was_answered_is_kept_when_the_emulator_dies(
    tmp_path: Path, small_quantized: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = WorkerProcess.logits

    def dying(self: WorkerProcess, images: str, first: int, count: int) -> np.ndarray:
        if first:
            os.kill(self.pid, 11)
        return logits(self, images, first, count)

    monkeypatch.setattr(WorkerProcess, "logits", dying)
    found = measure("tflm://host", tflite_file(tmp_path, small_quantized), random_pixels(small_quantized, 9))
    assert "only 4 images were answered" in found.benchmarks[0].notes[-1]
    assert "SIGSEGV" in found.benchmarks[0].notes[-1]
    assert found.answers is not None
    assert len(found.answers.logits) == 4


@needs_tflm
def test_an_emulator_that_hangs_is_given_up(tmp_path: Path, small_quantized: Graph, temporary: Path) -> None:
    path = tflite_file(tmp_path, small_quantized)
    found = measure("tflm://host", path, settings=BenchmarkSettings(timeout=0.01))
    assert "gave no answer within 0.01 s; stopped" in found.benchmarks[0].notes[0]
    assert not list(temporary.iterdir())


@needs_tflm
def test_an_interruption_leaves_nothing(
    tmp_path: Path, small_quantized: Graph, monkeypatch: pytest.MonkeyPatch, temporary: Path
) -> None:
    pids: list[int] = []

    def interrupted(self: WorkerProcess, images: str, first: int, count: int) -> np.ndarray:
        pids.append(self.pid)
        raise KeyboardInterrupt

    monkeypatch.setattr(WorkerProcess, "logits", interrupted)
    with pytest.raises(KeyboardInterrupt):
        measure("tflm://host", tflite_file(tmp_path, small_quantized), random_pixels(small_quantized, 9))
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)
    assert not list(temporary.iterdir())


@pytest.mark.parametrize(("uri", "name"), [("tflm://host", "x.tflite"), ("qnn-htp://73", "x.onnx")])
def test_a_missing_package_is_said_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str, name: str
) -> None:
    monkeypatch.setattr(emulated, "find_spec", lambda module: None)
    monkeypatch.setattr(emulated.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(emulated.sys, "platform", "linux")
    job, request = Job("it", tmp_path / name), Request(BenchmarkSettings())
    with pytest.raises(MissingToolError, match=r'pip install "edge-resnet\[npu\]"') as raised:
        open_device(uri).measure([job], request, lambda steps: None)
    assert uri in str(raised.value)
    other = "qnn-htp://68" if uri == "tflm://host" else "tflm://host"
    found = measure_all([open_device(uri), open_device(other)], [job], request, SilentProgress())
    assert len(found.lost) == 1
    assert list(found.measurements) == [other]


def test_another_machine_is_told_to_use_linux(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emulated.platform, "machine", lambda: "arm64")
    with pytest.raises(MissingToolError, match="Linux x86-64 only"):
        measure("qnn-htp://73", tmp_path / "x.onnx")
    with pytest.raises(MissingToolError, match=r"--target qnn-context: onnxruntime-qnn .* Linux x86-64 only"):
        compile_for_hexagon(b"", "73", "x")
