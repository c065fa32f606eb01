"""Ethos-U: the real compiler, and what is made of its tables."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest
from ai_edge_litert import schema_py_generated as schema

from edge_resnet.benchmark.result import BenchmarkSettings
from edge_resnet.devices import emulated, vela_compiler
from edge_resnet.devices.device import Job, Request
from edge_resnet.devices.registry import open_device
from edge_resnet.devices.vela_compiler import Board, accelerators, board_names, compile_with_vela
from edge_resnet.errors import InputError, MissingToolError, VerificationError
from edge_resnet.export.compiled import check_compiler
from edge_resnet.export.tflite import IoType
from edge_resnet.graph.graph import Graph
from edge_resnet.recipe import Export
from tests.npu_files import INSTALL, as_floats, measure, tflite_file

needs_vela = pytest.mark.skipif(find_spec("ethosu") is None, reason=f"no ethos-u-vela: {INSTALL}")
BOARDS = ("ethos-u55-128", "ethos-u55-256", "ethos-u65-256", "ethos-u85-512")


@needs_vela
@pytest.mark.parametrize("name", BOARDS)
def test_an_estimate_is_cycles_at_the_boards_clock(tmp_path: Path, small_quantized: Graph, name: str) -> None:
    found = measure(f"vela://{name}", tflite_file(tmp_path, small_quantized))
    (benchmark,) = found.benchmarks
    assert (benchmark.kind, benchmark.runtime, found.answers) == ("estimated", "Vela", None)
    figures, latency = benchmark.figures, benchmark.latency_ms
    assert latency is not None
    assert figures["cpu_operators"] == 0
    assert figures["npu_operators"] > 10
    assert figures["sram_bytes"] > 0
    megahertz = 500 if "u55" in name else 1000
    assert f"at {megahertz} MHz" in benchmark.notes[-1]
    assert list(latency) == ["p50"]
    assert latency["p50"] == pytest.approx(figures["total_cycles"] / megahertz / 1000, rel=1e-6)
    layers = benchmark.layers
    assert {layer["runs_on"] for layer in layers} == {"NPU"}
    assert layers[-1]["name"] == "classifier"
    assert sum(layer["macs"] for layer in layers) == figures["npu_macs"]
    assert sum(layer["cycles"] for layer in layers) == pytest.approx(figures["total_cycles"], rel=0.2)


@needs_vela
def test_a_larger_npu_takes_fewer_cycles(tmp_path: Path, small_quantized: Graph) -> None:
    path = tflite_file(tmp_path, small_quantized)
    cycles = [
        measure(f"vela://ethos-u55-{macs}", path).benchmarks[0].figures["npu_cycles"] for macs in (32, 256)
    ]
    assert cycles[1] < cycles[0]


@needs_vela
def test_what_stays_on_the_cpu_is_named(tmp_path: Path, small_quantized: Graph) -> None:
    """A float output is converted there; it is a few numbers, and the latency is said without it."""
    (benchmark,) = measure(
        "vela://ethos-u55-128", tflite_file(tmp_path, small_quantized, IoType.UINT8)
    ).benchmarks
    assert benchmark.figures["cpu_operators"] == 1
    assert benchmark.notes[0] == "on the CPU, not in the time: Dequantize 'classifier/float32'"
    assert benchmark.latency_ms is not None
    assert [layer["operator"] for layer in benchmark.layers if layer["runs_on"] == "CPU"] == ["Dequantize"]


@needs_vela
def test_no_latency_is_claimed_for_work_on_the_cpu(tmp_path: Path, small_quantized: Graph) -> None:
    path = _with_float_tail(tmp_path, small_quantized)
    (benchmark,) = measure("vela://ethos-u55-128", path).benchmarks
    assert benchmark.latency_ms is None
    assert benchmark.throughput_per_s is None
    assert benchmark.notes[0].startswith("no latency: 2 of ")
    assert "Elu 'bent'" in benchmark.notes[0]


def _with_float_tail(folder: Path, graph: Graph) -> Path:
    """The model's float output goes through one more operator, in floats."""
    path = tflite_file(folder, graph, IoType.UINT8)
    model = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    (subgraph,) = model.subgraphs
    last = subgraph.outputs[0]
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.ELU
    code.version = 1
    model.operatorCodes.append(code)
    tensor = schema.TensorT()
    tensor.name, tensor.type, tensor.buffer = b"bent", schema.TensorType.FLOAT32, 0
    tensor.shape, tensor.shapeSignature = subgraph.tensors[last].shape, None
    subgraph.tensors.append(tensor)
    operator = schema.OperatorT()
    operator.opcodeIndex = len(model.operatorCodes) - 1
    operator.inputs, operator.outputs = [last], [len(subgraph.tensors) - 1]
    subgraph.operators.append(operator)
    subgraph.outputs = [len(subgraph.tensors) - 1]
    model.signatureDefs = None
    import flatbuffers

    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(builder.Output())
    return path


@needs_vela
def test_a_float_model_stays_on_the_cpu(tmp_path: Path, small_graph: Graph) -> None:
    (benchmark,) = measure(
        "vela://ethos-u55-128", tflite_file(tmp_path, as_floats(small_graph), IoType.UINT8)
    ).benchmarks
    assert benchmark.latency_ms is None
    assert benchmark.figures["npu_operators"] == 0
    assert benchmark.notes[0].startswith("no operator runs on the NPU, all ")


@needs_vela
def test_a_model_too_large_for_the_boards_sram(tmp_path: Path, small_quantized: Graph) -> None:
    path = tflite_file(tmp_path, small_quantized)
    (small,) = measure("vela://ethos-u55-128?sram=1K", path).benchmarks
    assert "does not fit: it takes" in small.notes[0]
    assert "the board has 1.0 KiB" in small.notes[0]
    (large,) = measure("vela://ethos-u55-128?sram=2M", path).benchmarks
    assert not any("does not fit" in note for note in large.notes)


@needs_vela
def test_the_board_is_the_users(tmp_path: Path, small_quantized: Graph) -> None:
    uri = "vela://ethos-u55-128?system=Ethos_U55_Deep_Embedded&memory=Sram_Only"
    (slow,) = measure(uri, tflite_file(tmp_path, small_quantized)).benchmarks
    assert "Ethos_U55_Deep_Embedded at 200 MHz, memory mode Sram_Only" in slow.notes[-1]


@needs_vela
@pytest.mark.parametrize(
    ("rest", "words"),
    [
        ("ethos-u55-512", "no such accelerator; Vela has ethos-u55-32, "),
        ("u55-128", "no such accelerator"),
        ("", "no such accelerator"),
        ("ethos-u55-128?sram=lots", "sram=lots is no size"),
        ("ethos-u55-128?sram=0", "sram=0 is no size"),
        ("ethos-u55-128?clock=5", "unknown option 'clock'"),
        ("ethos-u55-128?system=Ethos_U55_Deep_Embedded", "together, or neither"),
        ("ethos-u55-128?system=Mine&memory=Sram_Only", "no such system; Vela has Ethos_U55_Deep_Embedded"),
        ("ethos-u55-128?system=Ethos_U65_High_End&memory=Sram_Only", "is a board with an Ethos-U65"),
        ("ethos-u55-128?system=Ethos_U55_Deep_Embedded&memory=Mine", "no such memory; Vela has Sram_Only"),
    ],
)
def test_unknown_boards_are_refused(rest: str, words: str) -> None:
    with pytest.raises(InputError, match=words.replace("?", r"\?")):
        open_device(f"vela://{rest}")


@needs_vela
def test_a_board_that_vela_refuses_is_a_note(tmp_path: Path, small_quantized: Graph) -> None:
    uri = "vela://ethos-u55-128?system=Ethos_U55_High_End_Embedded&memory=Dedicated_Sram"
    (benchmark,) = measure(uri, tflite_file(tmp_path, small_quantized)).benchmarks
    assert benchmark.figures == {}
    assert "vela on model.tflite: the process ended with code 1" in benchmark.notes[0]
    assert "\n" not in benchmark.notes[0]


@needs_vela
def test_rubbish_and_other_files_are_notes(tmp_path: Path) -> None:
    rubbish = tmp_path / "x.tflite"
    rubbish.write_bytes(b"rubbish")
    note = measure("vela://ethos-u55-128", rubbish).benchmarks[0].notes[0]
    assert "vela on x.tflite: the process ended with code 1: RuntimeError: Compilation failed" in note
    note = measure("vela://ethos-u55-128", tmp_path / "x.onnx").benchmarks[0].notes[0]
    assert note == "Vela compiles .tflite files, not .onnx"


@needs_vela
def test_a_compiler_that_hangs_is_stopped(
    tmp_path: Path, small_quantized: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    path = tflite_file(tmp_path, small_quantized)
    (benchmark,) = measure("vela://ethos-u55-128", path, settings=BenchmarkSettings(timeout=0.05)).benchmarks
    assert benchmark.notes[0] == "vela on model.tflite took more than 0.05 s; stopped"
    assert not list(folder.iterdir())


@needs_vela
def test_tables_of_another_version_are_not_guessed_at(
    tmp_path: Path, small_quantized: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tflite_file(tmp_path, small_quantized)
    monkeypatch.setitem(vela_compiler._LAYER_COLUMNS, "Colour", "colour")
    with pytest.raises(VerificationError, match="its tables are not as expected: KeyError"):
        compile_with_vela(path, Board("ethos-u55-128"), tmp_path / "out", 60)


@needs_vela
def test_names_come_from_vela_itself() -> None:
    assert set(BOARDS) < set(accelerators())
    assert "Ethos_U85_SYS_DRAM_Mid" in board_names()["system"]
    assert "Shared_Sram" in board_names()["memory"]


@needs_vela
def test_a_broken_compiler_spoils_its_own_part_only(
    tmp_path: Path, small_quantized: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(module: str, arguments: Sequence[str], *, name: str, timeout: float) -> str:
        raise InputError(f"{name}: the process ended with code 1: ImportError: no libstdc++")

    accelerators.cache_clear()
    monkeypatch.setattr(vela_compiler, "run_child", broken)
    path = tflite_file(tmp_path, small_quantized)
    note = measure("vela://ethos-u55-128", path).benchmarks[0].notes[0]
    assert note == "vela on model.tflite: the process ended with code 1: ImportError: no libstdc++"
    with pytest.raises(MissingToolError, match="pip install --force-reinstall ethos-u-vela"):
        check_compiler("vela", Export())


def test_a_missing_compiler_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emulated, "find_spec", lambda module: None)
    with pytest.raises(InputError, match="no such accelerator; write vela://ethos-u55-128"):
        open_device("vela://u55")
    device = open_device("vela://ethos-u55-128")
    with pytest.raises(MissingToolError, match=r'vela is not installed: pip install "edge-resnet\[npu\]"'):
        device.measure([Job("it", tmp_path / "x.tflite")], Request(BenchmarkSettings()), lambda steps: None)
