"""How the integers came about, in report.json and in what people read."""

from __future__ import annotations

import dataclasses
import json
import math
import xml.etree.ElementTree as ET
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from edge_resnet.quantization_record import QuantizationRecord, StepRecord
from edge_resnet.report import curves
from edge_resnet.report.assemble import quantization_part
from edge_resnet.report.figures import Reasons
from edge_resnet.report.markdown import to_markdown
from edge_resnet.report.present import present
from edge_resnet.report.present_quantization import present_quantization
from edge_resnet.report.save import save_report
from edge_resnet.report.schema import Report, load_report
from edge_resnet.report.schema_quantization import Quantization
from edge_resnet.report.wording import seconds_words
from tests.quantization_records import NOTE, filled_record
from tests.test_report import GOOD, _page, _tables_are_whole, _terminal


def _with(record: QuantizationRecord) -> Report:
    return GOOD.model_copy(update={"quantization": quantization_part(record)})


FILLED = _with(filled_record())


def test_the_record_survives_report_json(tmp_path: Path) -> None:
    save_report(FILLED, tmp_path)
    record, loaded = filled_record(), load_report(tmp_path / "report.json").quantization
    assert loaded is not None
    # Tuples are lists in JSON; nothing else may change.
    assert loaded.model_dump(mode="json") == json.loads(json.dumps(dataclasses.asdict(record)))


def test_reports_without_a_record_load_and_render(tmp_path: Path) -> None:
    assert quantization_part(QuantizationRecord()) is None
    save_report(GOOD, tmp_path)
    values = json.loads((tmp_path / "report.json").read_text())
    del values["quantization"]  # as earlier versions wrote it
    (tmp_path / "report.json").write_text(json.dumps(values))
    loaded = load_report(tmp_path / "report.json")
    assert present(loaded).quantization is None
    assert "how the integers came about" not in _page(loaded)
    assert "## Quantization" not in to_markdown(loaded)


def test_noise_that_is_none_can_be_written_and_is_said(tmp_path: Path) -> None:
    record = filled_record()
    assert record.sensitivity is not None
    first, *others = record.sensitivity.layers
    quiet = dataclasses.replace(first, sqnr_db=math.inf)
    record.sensitivity = dataclasses.replace(record.sensitivity, layers=(quiet, *others))
    record.steps[0] = dataclasses.replace(record.steps[0], sqnr_db=math.inf)
    save_report(_with(record), tmp_path)
    text = (tmp_path / "report.json").read_text()
    json.loads(text, parse_constant=pytest.fail)  # neither NaN nor Infinity
    assert "no noise" in _page(load_report(tmp_path / "report.json"))


def test_the_page_says_how_the_integers_came_about() -> None:
    page = _page(FILLED)
    low, high = binomtest(871, 1000).proportion_ci(method="wilson")
    assert f"87.10% {low:.2%} to {high:.2%}, 1,000 images measured" in page
    assert "+0.45 measured" in page
    assert "+1.25 measured" in page
    assert "21.4 dB measured" in page
    assert "least squared error (mse)" in page
    assert "without VNNI cannot saturate" in page
    assert "teacher: resnet56; interrupted, and continued from a checkpoint after step 600." in page
    assert "so layer1.0.conv1 and layer4.0.conv2 were kept in float: 88.40%, 0.20 points lost." in page
    assert NOTE in page
    assert "The other 7 layers" in page


@pytest.mark.parametrize(("int8", "said"), [(0.881, "int8 loses no more than that"), (0.8809, "loses more")])
def test_no_layer_in_float_is_explained(int8: float, said: str) -> None:
    """The limit is met without one, or by none."""
    record = filled_record()
    assert record.sensitivity is not None
    layers = tuple(dataclasses.replace(layer, kept_float=False) for layer in record.sensitivity.layers)
    record.sensitivity = dataclasses.replace(
        record.sensitivity, n=10_000, layers=layers, int8_top1=int8, mixed_top1=None
    )
    assert said in _page(_with(record))


def test_nncf_is_not_said_to_use_our_estimator() -> None:
    page = _page(_with(dataclasses.replace(filled_record(), quantizer="nncf")))
    assert "chosen by NNCF" in page
    assert "least squared error" not in page


def test_the_views_agree() -> None:
    markdown, terminal = to_markdown(FILLED), " ".join(_terminal(FILLED).split())
    _tables_are_whole(markdown)
    for text in ("calibrate 87.10%", "teacher: resnet56", "kept in float: 88.40%", NOTE):
        assert text in terminal
    for text in ("| +1.25, measured |", "teacher: resnet56", "kept in float: 88.40%", NOTE):
        assert text in markdown
    assert all(len(line) <= 80 for line in _terminal(FILLED).splitlines())
    assert "The last 12; all are in report.json" in to_markdown(_with(filled_record(epochs=60)))


def test_names_stay_text() -> None:
    record = filled_record()
    record.steps[0] = StepRecord("<b>calibrate|</b>", 1.0, 0.5, 10, 3.0, "</td><script>")
    assert record.sensitivity is not None
    layer = dataclasses.replace(record.sensitivity.layers[0], name='"/><script>x')
    record.sensitivity = dataclasses.replace(record.sensitivity, layers=(layer,), notes=("<img src=x>",))
    report = _with(record)
    assert "<b>calibrate|</b>" in _page(report)  # the parser refuses a script and gives text back as text
    _tables_are_whole(to_markdown(report))


@given(drops=st.lists(st.floats(-0.5, 0.5), min_size=1, max_size=40), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_layers_stand_with_the_worst_first(drops: list[float], seed: int) -> None:
    record = filled_record(layers=len(drops))
    assert record.sensitivity is not None
    noise = np.random.default_rng(seed).uniform(0, 40, len(drops))
    layers = tuple(
        dataclasses.replace(layer, drop=drop, sqnr_db=float(decibels))
        for layer, drop, decibels in zip(record.sensitivity.layers, drops, noise, strict=True)
    )
    record.sensitivity = dataclasses.replace(record.sensitivity, layers=layers)
    part = present_quantization(
        Quantization.model_validate(dataclasses.asdict(record)), Reasons()
    ).sensitivity
    assert part is not None
    assert sorted(row.position for row in part.layers) == list(range(1, len(drops) + 1))
    shown = [layers[row.position - 1] for row in part.layers]
    assert [layer.name for layer in shown] == [row.name for row in part.layers]
    for worse, better in pairwise(shown):
        assert worse.drop >= better.drop - 1e-6
        if round(worse.drop, 6) == round(better.drop, 6):
            assert worse.sqnr_db <= better.sqnr_db


def test_a_step_without_accuracy_has_its_reason_and_gains_go_on_from_the_last_counted() -> None:
    record = QuantizationRecord(
        steps=[StepRecord("a", 1, 0.5, 100), StepRecord("b", 1), StepRecord("c", 1, 0.52, 100)]
    )
    reasons = Reasons()
    page = present_quantization(Quantization.model_validate(dataclasses.asdict(record)), reasons)
    assert [row.gain.text for row in page.steps] == ["—", "—", "+2.00"]
    number = page.steps[1].top1.reason
    assert number is not None
    assert "evaluate.step_images" in reasons.texts[number - 1]


_FLOATS = st.floats(-1e6, 1e6)


@given(values=st.lists(_FLOATS, min_size=1, max_size=200), window=st.integers(1, 9))
@settings(max_examples=50, deadline=None)
def test_pictures_stay_in_their_frame(values: list[float], window: int) -> None:
    points = [(float(10 * step), value) for step, value in enumerate(values)]
    smooth = curves.smoothed(points, window)
    assert [step for step, _ in smooth] == [step for step, _ in points]
    assert all(min(values) - 1e-6 <= mean <= max(values) + 1e-6 for _, mean in smooth)
    pictures = [
        curves.curve_chart([curves.Curve("a", points, dots=True)], "step", "loss", marks=(5,), x_from=0),
        curves.column_chart([curves.Column("<n>", value, "w") for value in values], "x", "y"),
    ]
    for picture in pictures:
        assert picture is not None
        svg = ET.fromstring(picture)  # well-formed
        _, _, width, height = map(float, svg.attrib["viewBox"].split())
        for element in svg.iter():
            for name in ("x", "x1", "x2", "cx"):
                assert 0 <= float(element.get(name, 0)) <= width
            for name in ("y", "y1", "y2", "cy"):
                assert 0 <= float(element.get(name, 0)) <= height
            for pair in element.get("points", "").split():
                x, y = map(float, pair.split(","))
                assert 0 <= x <= width
                assert 0 <= y <= height


def test_a_chart_marks_what_was_kept_and_draws_nothing_for_no_noise() -> None:
    columns = [curves.Column("a", 1.0, "w", hollow=True), curves.Column("b", None, "no noise")]
    picture = curves.column_chart(columns, "x", "y")
    assert picture is not None
    assert picture.count("<rect") == picture.count("hollow") == 1
    assert curves.column_chart(columns[1:], "x", "y") is None
    assert curves.curve_chart([], "x", "y") is None


def test_one_epoch_and_no_loss_make_no_empty_pictures() -> None:
    record = filled_record(epochs=1)
    assert record.sensitivity is not None
    layers = tuple(dataclasses.replace(layer, drop=0.0) for layer in record.sensitivity.layers)
    record.sensitivity = dataclasses.replace(record.sensitivity, layers=layers)
    page = _page(_with(record))
    assert "Accuracy in training" in _page(FILLED)
    assert "Accuracy in training" not in page
    assert "Top-1 lost" not in page
    assert "No layer alone costs or wins one of these images." in page


def test_seconds_are_worded() -> None:
    shown = {0.0: "0.00 s", 3.2: "3.20 s", 17.34: "17.3 s", 99.99: "1 min 40 s", 412: "6 min 52 s"}
    shown[3725] = "1 h 02 min"
    assert {value: seconds_words(value) for value in shown} == shown
