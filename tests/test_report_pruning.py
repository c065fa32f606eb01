"""What pruning did, in report.json and in what people read."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from edge_resnet.errors import InputError
from edge_resnet.graph.graph import Graph
from edge_resnet.progress import SilentProgress
from edge_resnet.pruning_record import LatencyRecord, LayerChange, PruningRecord
from edge_resnet.recipe import load_recipe
from edge_resnet.report.assemble import pruning_part
from edge_resnet.report.channel_chart import channel_charts
from edge_resnet.report.channel_ranges import gone_spans, kept_spans, spans_words
from edge_resnet.report.html import to_html
from edge_resnet.report.markdown import to_markdown
from edge_resnet.report.present import present
from edge_resnet.report.save import save_report
from edge_resnet.report.schema import Report, load_report
from edge_resnet.report.verdict import verdict
from edge_resnet.run import Run
from edge_resnet.runners.base import Runner
from edge_resnet.stages.pruned_speed import record_speed, unpruned_files
from edge_resnet.targets import TARGETS
from tests.pruning_records import basic_record, bottleneck_record, ranges
from tests.test_report import FAILED, GOOD, _page, _tables_are_whole, _terminal

DEEP = ("layer1.3", "layer1.4", "layer2.7", "layer3.5")


def _with(record: PruningRecord, report: Report = GOOD) -> Report:
    return report.model_copy(update={"pruning": pruning_part(record)})


def _untimed(record: PruningRecord) -> PruningRecord:
    assert record.latency is not None
    latency = dataclasses.replace(record.latency, measured_ms=None, measured_unpruned_ms=None)
    return dataclasses.replace(record, latency=latency)


FILLED = _with(basic_record())
RECORDS = {"20": basic_record(), "56": basic_record(56, DEEP), "50": bottleneck_record()}


@pytest.mark.parametrize("name", RECORDS)
def test_the_record_survives_report_json(tmp_path: Path, name: str) -> None:
    save_report(_with(RECORDS[name]), tmp_path)
    loaded = load_report(tmp_path / "report.json").pruning
    assert loaded is not None
    # Tuples are lists in JSON; nothing else may change.
    expected = json.loads(json.dumps(dataclasses.asdict(RECORDS[name])))
    assert loaded.model_dump(mode="json") == expected


def test_reports_without_pruning_load_and_render(tmp_path: Path) -> None:
    save_report(GOOD, tmp_path)
    values = json.loads((tmp_path / "report.json").read_text())
    del values["pruning"]  # as earlier versions wrote it
    (tmp_path / "report.json").write_text(json.dumps(values))
    loaded = load_report(tmp_path / "report.json")
    assert present(loaded).pruning is None
    assert "Pruning" not in _page(loaded)
    assert "## Pruning" not in to_markdown(loaded)
    assert "Pruned" not in _terminal(loaded)


def test_the_page_has_every_figure() -> None:
    page, record = _page(FILLED), basic_record()
    for stage in record.stages:
        assert stage.top1 is not None
        low, high = binomtest(round(stage.top1 * stage.n), stage.n).proportion_ci(method="wilson")
        assert f"{stage.top1:.2%} {low:.2%} to {high:.2%} measured" in page
        numbers = "in integers" if stage.integers else "in float"
        assert f"{stage.name} {numbers}, {stage.n:,} images{stage.detail and '; '}{stage.detail}" in page
    for figure in (
        "reference 40,813,184 269,722 301 KB measured 0.463 ms predicted 0.470 ms measured",
        "-45.53 other images measured", "-0.55 measured", "-0.70 measured", "-0.22 measured",
        "20,100,000 49.2% 131,402 48.7% 158 KB 52.6% measured 0.241 ms predicted",
        "unpruned int8 file 0.463 ms predicted 0.470 ms measured -1.5% measured",
        "final int8 file 0.241 ms predicted 0.250 ms measured -3.6% measured",
        "times as fast 1.92 x predicted 1.88 x measured +2.2% measured",
        "52% of the original's int8 latency, as predicted; 52.05% is left", "(distillation)",
        "2 of the 7 that could go went: layer1.1 and layer3.2", "local, A CPU, 2026-01-01",
        "median spread of its entries 2.1%", "of all stages only the unpruned and the final int8 file",
    ):  # fmt: skip
        assert figure in page
    before = sum(layer.before for layer in record.layers)
    gone = sum(layer.before - layer.after for layer in record.layers)
    assert f"{gone} of {before} output channels went (160 of them with their blocks)" in page
    for block in record.blocks:
        result = "removed" if block.removed else "stayed"
        assert f"{block.name} {block.cost:.3g} measured {result} {', '.join(block.layers)}" in page


def test_the_views_agree() -> None:
    markdown, terminal = to_markdown(FILLED), " ".join(_terminal(FILLED).split())
    _tables_are_whole(markdown)
    gain = "Pruned: 47% smaller and 1.88 times as fast as the unpruned int8 file."
    for text in (_page(FILLED), markdown, terminal):
        assert gain in text
    for text in (
        "MACs 40,813,184 -> 20,100,000 (49.2%), parameters 269,722 -> 131,402 (48.7%), int8 file 301 KB ->",
        "240 channels and 2 blocks went", "measured 0.470 ms -> 0.250 ms, predicted 0.463 ms -> 0.241 ms",
        "the final prediction is off by -3.6%",
    ):  # fmt: skip
        assert text in terminal
    assert all(len(line) <= 80 for line in _terminal(FILLED).splitlines())
    assert "| final int8 file | 0.241 ms, predicted | 0.250 ms, measured | -3.6%, measured |" in markdown
    assert "* layer1.1: the whole block (layer1.1.conv1, layer1.1.conv2); divergence" in markdown
    for layer in basic_record().layers:
        line = f"* {layer.name}: {layer.before} → {layer.after}; gone: "
        assert (line in markdown) == (0 < layer.after < layer.before)
    assert "…; all are in report.json" in to_markdown(_with(bottleneck_record()))


def test_only_a_verified_model_is_praised() -> None:
    assert "Pruned" not in verdict(_with(basic_record(), FAILED)).headline
    slower = basic_record()
    slower.stages[-1] = dataclasses.replace(slower.stages[-1], bytes=400_000)
    assert slower.latency is not None
    slower.latency = dataclasses.replace(slower.latency, measured_ms=0.94)
    assert "33% larger and 0.50 times as fast as the unpruned int8 file" in verdict(_with(slower)).headline


def test_what_was_not_timed_is_predicted_and_says_so() -> None:
    report = _with(_untimed(basic_record()))
    assert "1.92 times as fast (predicted) as the unpruned int8 file" in verdict(report).headline
    page = _page(report)
    assert "the int8 files were not timed beside each other" in page
    assert "final int8 file 0.241 ms predicted — " in page
    assert "measured 0.470" not in _terminal(report)


def test_without_a_table_what_was_measured_is_shown() -> None:
    record = basic_record()
    record.budget, record.reached = "macs", 0.4925
    record.latency = LatencyRecord("LiteRT/XNNPACK 2.3", 1, None, None, None, None, 0.25, 0.47)
    record.stages = [dataclasses.replace(stage, predicted_ms=None) for stage in record.stages]
    report = _with(record)
    page = _page(report)
    assert "52% of the original's multiply-accumulates; 49.25% is left" in page
    assert "there was no table of measured layers" in page
    assert "Latency table" not in page
    assert "1.88 times as fast as the unpruned int8 file" in verdict(report).headline
    assert "predict" not in _terminal(report)


def test_a_record_with_nothing_in_it_renders() -> None:
    bare = PruningRecord("macs", 0.5, 1.0, "l1", 1)
    report = _with(bare)
    assert "output channels went" not in _page(report)
    assert "Pruned" not in verdict(report).headline
    _tables_are_whole(to_markdown(report))
    assert "Pruned" not in _terminal(report)
    same = basic_record(removed=())
    same.layers = tuple(
        dataclasses.replace(layer, after=layer.before, kept="", macs_after=layer.macs_before)
        for layer in same.layers
    )
    same.blocks = tuple(dataclasses.replace(block, cost=None) for block in same.blocks)
    page = _page(_with(same))
    assert "Channels none went" in page
    assert "none of the 7 that could go went" in page
    assert "What removing each block costs" not in page
    assert "what this block is worth was not measured" in page
    assert "### What went" not in to_markdown(_with(same))


def test_figures_that_json_cannot_hold_are_null(tmp_path: Path) -> None:
    record = basic_record()
    record.blocks = (dataclasses.replace(record.blocks[0], cost=math.inf), *record.blocks[1:])
    save_report(_with(record), tmp_path)
    json.loads((tmp_path / "report.json").read_text(), parse_constant=pytest.fail)


def test_names_stay_text() -> None:
    evil = '"/><script>x</script>|`a`[b](c)'
    record = basic_record()
    record.layers = (dataclasses.replace(record.layers[0], name=evil), *record.layers[1:])
    block = dataclasses.replace(record.blocks[0], name=evil, layers=(evil,), removed=True)
    record.blocks = (block, *record.blocks[1:])
    record.stages[1] = dataclasses.replace(record.stages[1], name=evil, detail=evil)
    assert record.latency is not None
    record.latency = dataclasses.replace(record.latency, table=evil, runtime=evil)
    report = _with(record)
    assert evil in _page(report)  # the parser refuses a script and gives text back as text
    assert "<script>" not in to_html(report)
    markdown = to_markdown(report)
    assert "<script>" not in markdown
    _tables_are_whole(markdown)
    for chart in channel_charts(pruning_part(record)):
        ET.fromstring(chart.picture)


@pytest.mark.parametrize("name", RECORDS)
def test_the_picture_holds_each_channel(name: str) -> None:
    record = RECORDS[name]
    charts = channel_charts(pruning_part(record))
    assert len(charts) == (1 if name == "20" else 2)
    spans = [chart.last - chart.first + 1 for chart in charts]
    assert sum(spans) == len(record.layers)
    assert max(spans) <= 30
    rows: list[ET.Element] = []
    for chart in charts:
        root = ET.fromstring(chart.picture)
        _, _, width, height = map(float, root.attrib["viewBox"].split())
        assert root.get("aria-label")
        said = root.find("desc")
        assert said is not None
        assert (said.text or "").count(";") == chart.last - chart.first
        for element in root.iter("rect"):
            assert 0 <= float(element.attrib["x"]) + float(element.attrib["width"]) <= width
            assert 0 <= float(element.attrib["y"]) + float(element.attrib["height"]) <= height
        rows += root.findall("g")
    lengths = []
    for layer, row in zip(record.layers, rows, strict=True):
        assert (row.findtext("title") or "").startswith(f"{layer.name}: ")
        arrow = f"{layer.before} → {layer.after}" if layer.after != layer.before else f"{layer.before}"
        assert [text.text for text in row.findall("text")][1] == arrow
        outline = next(rect for rect in row.findall("rect") if "outline" in rect.attrib["class"])
        lengths.append((layer.before, float(outline.attrib["width"])))
        if not layer.after:
            assert outline.attrib["class"] == "outline lost"
            assert row.find("path") is None
            assert len(row.findall("rect")) == 1
            continue
        _strokes_are_what_went(layer, row, outline)
    assert len({length for _, length in lengths}) == len({before for before, _ in lengths})
    assert sorted(lengths) == sorted(lengths, key=lambda pair: pair[1])  # the wider, the longer


def _strokes_are_what_went(layer: LayerChange, row: ET.Element, outline: ET.Element) -> None:
    """The strokes, back in channels, are those that the record does not keep."""
    path = row.find("path")
    strokes = [] if path is None else re.findall(r"M([\d.]+) [\d.]+h([\d.]+)", path.attrib["d"])
    left, each = float(outline.attrib["x"]), float(outline.attrib["width"]) / layer.before
    gone: set[int] = set()
    for start, length in strokes:
        first = (float(start) - left) / each
        last = first + float(length) / each
        assert first == pytest.approx(round(first), abs=0.25)
        assert last == pytest.approx(round(last), abs=0.35)
        gone |= set(range(round(first), round(last)))
    everything = set(range(layer.before))
    assert gone == everything - _members(layer.kept) if layer.kept else not gone


def _members(kept: str) -> set[int]:
    edges = [[int(edge) for edge in part.split("-")] for part in kept.split(",")]
    return {channel for edge in edges for channel in range(edge[0], edge[-1] + 1)}


@pytest.mark.parametrize("name", RECORDS)
def test_removed_blocks_are_named_in_the_picture(name: str) -> None:
    record = RECORDS[name]
    texts = []
    brackets: list[str] = []
    for chart in channel_charts(pruning_part(record)):
        root = ET.fromstring(chart.picture)
        texts += [text.text for text in root.findall("text")]
        brackets += [line.attrib["class"] for line in root.findall("line")]
    assert texts == [f"{block.name} removed" for block in record.blocks if block.removed]
    assert len(brackets) == len(record.blocks)
    assert brackets.count("bracket lost") == len(texts)


def test_a_wide_picture_is_no_heavier_than_what_it_shows() -> None:
    """Every second of 2,048 channels is the worst case; a whole layer of them is one stroke."""
    scattered = LayerChange("a", 2048, 1024, ranges(range(0, 2048, 2)), (7, 7), 1, 1)
    halved = LayerChange("a", 2048, 1024, "0-1023", (7, 7), 1, 1)
    for layer, strokes, most in ((scattered, 1024, 60_000), (halved, 1, 1000)):
        record = PruningRecord("macs", 0.5, 0.5, "l1", 8, (layer,))
        (chart,) = channel_charts(pruning_part(record))
        assert chart.picture.count("M") == strokes
        assert len(chart.picture) < most


@given(before=st.integers(1, 300), seed=st.integers(0, 1000), share=st.floats(0, 1), apart=st.booleans())
@settings(max_examples=80, deadline=None)
def test_ranges_are_read_as_they_were_meant(before: int, seed: int, share: float, apart: bool) -> None:
    """Also where neighbouring ranges were not joined."""
    chosen = np.flatnonzero(np.random.default_rng(seed).random(before) < share).tolist()
    text = ",".join(map(str, chosen)) if apart else ranges(chosen)
    spans = kept_spans(text, before, len(chosen)) if chosen else kept_spans("", before, 0)
    assert [channel for first, stop in spans for channel in range(first, stop)] == chosen
    gone = gone_spans(spans, before)
    assert sorted(spans + gone) == sorted(spans + gone, key=lambda span: span[1])
    expected = sorted(set(range(before)) - set(chosen))
    assert [channel for first, stop in gone for channel in range(first, stop)] == expected
    assert spans_words(spans).replace(" ", "") == ranges(chosen)


@given(st.text(alphabet="0123456789-, x", max_size=12), st.integers(1, 20), st.integers(0, 20))
@settings(max_examples=200, deadline=None)
def test_any_text_is_ranges_or_an_error(text: str, before: int, after: int) -> None:
    try:
        spans = kept_spans(text, before, after)
    except ValueError:
        return
    assert sum(stop - first for first, stop in spans) == after
    assert all(0 <= first < stop <= before for first, stop in spans)


@pytest.mark.parametrize(
    ("kept", "words"), [("", "not a list"), ("0-16", "not among 16"), ("0-6", "names 7 channels, not 8"),
    ("8-15,0-7", "out of order"), ("7-0", "out of order"), ("0-4,3-5", "out of order"), ("a", "not a list")],
)  # fmt: skip
def test_a_damaged_report_is_refused(tmp_path: Path, kept: str, words: str) -> None:
    save_report(FILLED, tmp_path)
    path = tmp_path / "report.json"
    values = json.loads(path.read_text())
    values["pruning"]["layers"][1]["kept"] = kept
    path.write_text(json.dumps(values))
    with pytest.raises(InputError, match=rf"not a report: pruning.layers.1: .*{words}"):
        load_report(path)


@pytest.mark.parametrize("table", [True, False])
@pytest.mark.parametrize("target", ["tflite-int8", "onnx-int8"])
def test_the_unpruned_file_is_timed_in_turn(
    tmp_path: Path, small_quantized: Graph, target: str, table: bool
) -> None:
    """It is no artifact, and a pruned model without a .tflite of its own is timed as one all the same."""
    from edge_resnet.pipeline import _benchmark

    path = tmp_path / "m"
    recipe = load_recipe(None, ["benchmark.runs=6"])
    TARGETS[target].write(small_quantized, path.with_suffix(TARGETS[target].suffix), recipe.export)
    record = basic_record()
    record.latency = _untimed(record).latency if table else None
    run = Run(
        recipe=recipe, targets=(TARGETS[target],), progress=SilentProgress(), out=tmp_path,
        model=cast(Any, None), images=cast(Any, None), preprocess=cast(Any, SimpleNamespace(size=(8, 8))),
        quantized=small_quantized, unpruned=small_quantized, pruning=record,
        baseline=cast(Runner, SimpleNamespace(logits=lambda pixels: np.zeros((1, 2)))),
    )  # fmt: skip
    paths = {TARGETS[target]: path.with_suffix(TARGETS[target].suffix)}
    _, results = _benchmark(run, paths)
    latency = record.latency
    assert latency is not None
    measured = results["tflite-int8"].latency_ms
    unpruned = results["unpruned tflite-int8"].latency_ms
    assert measured is not None
    assert unpruned is not None
    assert (latency.measured_ms, latency.measured_unpruned_ms) == (measured["p50"], unpruned["p50"])
    assert latency.predicted_ms == (0.241 if table else None)
    assert [entry.name for entry in tmp_path.iterdir()] == [paths[TARGETS[target]].name]


def test_a_run_that_pruned_nothing_times_its_artifacts_only(tmp_path: Path) -> None:
    run = cast(Run, SimpleNamespace(pruning=None, unpruned=None))
    assert unpruned_files(run, tmp_path) == []
    record_speed(run, {})
    assert run.pruning is None
