"""Phones and boards by name: their descriptions, the command that lists them, and predictions for files."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from edge_resnet.benchmark.result import BenchmarkResult, BenchmarkSettings
from edge_resnet.devices.descriptions import (
    described_folder,
    described_names,
    find_description,
    read_description,
    read_descriptions,
)
from edge_resnet.devices.device import Job, Request
from edge_resnet.devices.predicted import PredictedDevice, open_described
from edge_resnet.devices.prediction import load_fitted
from edge_resnet.devices.registry import SCHEMES, open_device
from edge_resnet.errors import InputError
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.passes import fold_normalization_std, simplify
from edge_resnet.recipe import Export
from edge_resnet.report.schema import load_report
from edge_resnet.targets import TARGETS

Command = Callable[..., tuple[int, str, str]]

GOOD = """name: phone
title: A Phone
chipset: A Chip
form: phone
figures:
  source: somebody
  release: "1"
  device: Phone
  models: [resnet18]
  runtimes:
    tflite: [w8a8]
"""


def predicted(device: str, path: Path, graph: Graph | None = None) -> BenchmarkResult:
    done: list[int] = []
    jobs = [Job("it", path, graph)]
    opened = open_device(device)
    found = opened.measure(jobs, Request(BenchmarkSettings()), done.append)
    assert sum(done) == opened.steps(jobs, Request(BenchmarkSettings())) == 1
    assert found["it"].answers is None
    assert len(found["it"].benchmarks) == 1
    return found["it"].benchmarks[0]


@pytest.fixture(scope="module")
def files(
    tmp_path_factory: pytest.TempPathFactory, small_graph: Graph, small_quantized: Graph
) -> dict[str, tuple[Path, Graph]]:
    folder = tmp_path_factory.mktemp("files")
    written = {}
    for name in ("tflite-int8", "tflite-fp32", "tflite-fp16", "onnx-int8", "onnx-fp32"):
        target = TARGETS[name]
        graph = small_quantized if target.quantized else fold_normalization_std(simplify(small_graph))
        target.write(graph, target.path(folder, "small"), Export())
        written[name] = target.path(folder, "small"), graph
    return written


def test_every_description_has_coefficients_and_every_coefficient_a_description() -> None:
    described = read_descriptions()
    assert len(described) >= 20
    offered = {
        (figures.device, figures.release, runtime, precision)
        for _, figures in described.values()
        for runtime, precisions in figures.runtimes.items()
        for precision in precisions
    }
    series = load_fitted().series
    assert offered == {(one.device, one.release, one.runtime, one.precision) for one in series}
    for description, figures in described.values():
        assert set(figures.models) <= set(load_fitted().works), description.name
    assert sum(figures is description.figures for description, figures in described.values()) >= 20


def test_every_device_of_the_published_table_is_described(shared_data: Path) -> None:
    with (shared_data / "phone_latency.csv").open(encoding="utf-8", newline="") as file:
        published = {row["device"] for row in csv.DictReader(file)}
    assert published <= {figures.device for _, figures in read_descriptions().values()}


@pytest.mark.parametrize(
    ("change", "line", "words"),
    [
        (("form: phone", "form: fridge"), 4, "form: expected"),
        (("form: phone", "colour: red"), 4, "unknown key 'colour'"),
        (("title: A Phone\n", ""), None, "title is missing"),
        (("models: [resnet18]", "models: []"), 9, "figures.models"),
        (("tflite: [w8a8]", "tflite: [w4]"), 11, "w4"),
        (("tflite: [w8a8]", "snpe: [w8a8]"), 11, "unknown key 'figures.runtimes.snpe'"),
        (("name: phone", "name: other"), 1, "in a file phone.yaml"),
        (("name: phone", "name: [phone"), 2, "not YAML"),
        (("form: phone", "form: phone\nform: phone"), 5, "a second time"),
        (("form: phone", "form: phone\nsame_chip_as: x"), None, "not both"),
        ((GOOD, "just words"), None, "a mapping of keys"),
        ((GOOD, ""), None, "a mapping of keys"),
    ],
)
def test_a_wrong_description_is_refused_in_a_line_with_its_place(
    tmp_path: Path, change: tuple[str, str], line: int | None, words: str
) -> None:
    path = tmp_path / "phone.yaml"
    path.write_text(GOOD)
    assert read_description(path).title == "A Phone"
    path.write_text(GOOD.replace(*change))
    with pytest.raises(InputError) as caught:
        read_description(path)
    message = str(caught.value)
    assert message.startswith(f"{path}:{line}: " if line else f"{path}:"), message
    assert words in message
    assert "\n" not in message


def test_the_same_chip_must_be_the_same_chip(tmp_path: Path) -> None:
    (tmp_path / "phone.yaml").write_text(GOOD)
    other = tmp_path / "other.yaml"
    text = "name: other\ntitle: Other\nchipset: A Chip\nform: phone\nsame_chip_as: phone\n"
    other.write_text(text)
    description, figures = find_description("other", tmp_path)
    assert (description.title, figures.device) == ("Other", "Phone")
    for wrong, words in (
        (text.replace("A Chip", "Another Chip"), "no figures of a Another Chip"),
        (text.replace("as: phone", "as: none"), "there is no none.yaml"),
        (text.replace("as: phone", "as: other"), "has no figures"),
    ):
        other.write_text(wrong)
        with pytest.raises(InputError, match=f"other.yaml:5: .*{words}"):
            find_description("other", tmp_path)


def test_a_name_opens_the_description_and_a_wrong_one_is_answered_with_the_nearest() -> None:
    device = open_device("galaxy-s24")
    assert isinstance(device, PredictedDevice)
    assert device.uri == "galaxy-s24"
    with pytest.raises(InputError, match=r"did you mean galaxy-s\d"):
        open_device("galaxy-s2")
    for name in ("../galaxy-s24", "galaxy-s24.yaml", "galaxy-s24://x"):
        with pytest.raises(InputError, match="no such device"):
            open_device(name)
    with pytest.raises(InputError, match="no such device in"):
        open_described("nothing")
    assert not set(described_names()) & set(SCHEMES)


@pytest.mark.parametrize("target", ["tflite-int8", "tflite-fp32", "tflite-fp16", "onnx-int8", "onnx-fp32"])
def test_a_file_alone_is_predicted_as_with_its_graph(
    files: dict[str, tuple[Path, Graph]], target: str
) -> None:
    path, graph = files[target]
    known, read = predicted("galaxy-s24", path, graph), predicted("galaxy-s24", path)
    assert known.kind == "predicted"
    assert known.latency_ms is not None
    assert read.latency_ms is not None
    assert list(known.latency_ms) == ["p50"]
    # Lowering pools and shortcuts for integers, and raising them again, may change their work a little.
    assert read.latency_ms["p50"] == pytest.approx(known.latency_ms["p50"], rel=0.01)
    precision = "int8" if target.endswith("int8") else "float"
    runtime = "TFLite" if target.startswith("tflite") else "ONNX Runtime"
    assert known.runtime == read.runtime == f"{runtime}/NPU {precision}"
    assert known.latency_interval_ms is not None
    low, high = known.latency_interval_ms
    assert low < known.latency_ms["p50"] < high
    assert known.throughput_per_s is None
    assert known.peak_memory_bytes is None


def test_notes_say_where_a_prediction_comes_from(files: dict[str, tuple[Path, Graph]]) -> None:
    notes = predicted("galaxy-s24-ultra", *files["tflite-int8"]).notes
    said = " ".join(notes)
    assert "not measured: fitted on resnet18, resnet50, resnet101, resnext50" in said
    assert "Qualcomm AI Hub Models 0.46.1" in said
    assert f"{load_fitted().left_out['median_error']:.1%}" in said
    assert "of the Samsung Galaxy S24, which has the same chip" in said
    assert "extrapolated: this has 1/" in said
    cpu = predicted("rb3-gen2", *files["onnx-int8"])
    assert cpu.runtime == "ONNX Runtime/CPU int8"
    assert any("ran on the CPU" in note for note in cpu.notes)
    assert any("Proxy" in note for note in predicted("qcs8550", *files["onnx-int8"]).notes)


def test_what_has_no_figures_is_not_predicted(files: dict[str, tuple[Path, Graph]], tmp_path: Path) -> None:
    path, graph = files["tflite-fp32"]
    board = predicted("rb3-gen2", path, graph)
    assert board.latency_ms is None
    assert "no figures of TFLite float on Dragonwing RB3" in board.notes[0]
    package = predicted("galaxy-s24", tmp_path / "small-coreml-int8.mlpackage", graph)
    assert package.latency_ms is None
    assert "no published figures of .mlpackage" in package.notes[0]
    for target in ("vela", "qnn-context"):
        compiled = predicted("galaxy-s24", TARGETS[target].path(tmp_path, "small"), graph)
        assert compiled.latency_ms is None
        assert "compiled for one NPU" in compiled.notes[0]
    damaged = tmp_path / "x-tflite-int8.tflite"
    damaged.write_bytes(b"nothing")
    broken = predicted("galaxy-s24", damaged)
    assert broken.latency_ms is None
    assert "no prediction" in broken.notes[0]
    assert str(damaged) in broken.notes[0]


def test_a_mixed_file_is_not_predicted(files: dict[str, tuple[Path, Graph]], small_quantized: Graph) -> None:
    from dataclasses import replace

    first = small_quantized.nodes[-1]
    mixed = small_quantized.with_nodes([*small_quantized.nodes[:-1], replace(first, quant=None)])
    assert mixed.is_mixed
    found = predicted("galaxy-s24", files["tflite-int8"][0], mixed)
    assert found.latency_ms is None
    assert "part int8, part float" in found.notes[0]


def test_the_command_lists_kinds_and_devices_with_their_sources(edge_resnet: Command) -> None:
    code, out, err = edge_resnet("devices")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    for scheme in SCHEMES.values():
        assert any(scheme.example in line and scheme.what in line for line in lines)
    ultra = next(line for line in lines if line.split()[:1] == ["galaxy-s24-ultra"])
    for words in (
        "Samsung Galaxy S24 Ultra",
        "SM8650",
        "tflite float+w8a8",
        "AI Hub Models 0.46.1",
        "same chip",
    ):
        assert words in ultra
    assert str(described_folder()) in lines[-1]
    code, out, _ = edge_resnet("devices", "--json")
    values = json.loads(out)
    assert code == 0
    assert [scheme["name"] for scheme in values["schemes"]] == list(SCHEMES)
    assert len(values["described"]) >= 20
    assert all(row["figures"]["source"] and row["figures"]["runtimes"] for row in values["described"])


def test_a_prediction_goes_into_the_report_with_its_kind_and_interval(
    edge_resnet: Command, demo_run: Path
) -> None:
    code, out, _ = edge_resnet("benchmark", demo_run, "--device", "galaxy-s24", "--json")
    assert code == 0
    printed = json.loads(out)
    assert printed
    report = load_report(demo_run / "report.json")
    for artifact in report.artifacts:
        entry = next(one for one in artifact.benchmarks if one.device == "galaxy-s24")
        assert entry.kind == "predicted"
        if artifact.target.startswith("coreml"):
            assert entry.latency_ms is None
            continue
        assert entry.latency_ms is not None
        assert entry.latency_interval_ms is not None
        assert (entry.latency_ms.mean, entry.latency_ms.p95, entry.latency_ms.p99) == (None, None, None)
    page = (demo_run / "report.html").read_text()
    assert "galaxy-s24" in page
    assert "predicted" in page
    assert "80 %:" in page
    code, out, err = edge_resnet("benchmark", demo_run, "--device", "galaxy-s24")
    assert code == 0
    assert "predicted" in err
