"""The latency predictor: how wrong it is about models left out, and that what ships is what is fitted."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from benchmarks.ai_hub import Figure, from_table
from benchmarks.prediction import MODELS, graphs_of, table_of
from benchmarks.prediction_fit import (
    Error,
    fit_curves,
    fit_spread,
    judge,
    leave_out_devices,
    leave_out_models,
    outer_slope,
    prototype,
    widened,
    within,
)
from edge_resnet.devices.prediction import Curve, Series, Spread, WorkUnit, distance, load_fitted
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.nodes import Conv, FloatWeights, Input
from tests.random_graphs import random_graph

Table = dict[tuple[str, str, str], dict[str, float]]


@pytest.fixture(scope="module")
def published(shared_data: Path) -> list[Figure]:
    path = shared_data / "phone_latency.csv"
    if not path.exists():
        pytest.skip(f"{path}: the published figures are not here")
    return from_table(path)


@pytest.fixture(scope="module")
def table(published: list[Figure]) -> Table:
    return table_of(published, MODELS)


@pytest.fixture(scope="module")
def works() -> dict[str, float]:
    """Of the fitted models; that the importer's graphs have this work is a slow test."""
    return dict(load_fitted().works)


def relative(errors: list[Error]) -> list[float]:
    return [error.relative for error in errors]


def test_models_left_out_are_predicted_well_and_their_intervals_hold(
    table: Table, works: dict[str, float]
) -> None:
    judged = judge(table, works, MODELS, load_fitted().spread.per_e_fold)
    assert len(judged.errors) == 252
    wrong = relative(judged.errors)
    assert np.median(wrong) <= 0.09
    assert np.quantile(wrong, 0.9) <= 0.22
    assert 0.7 <= np.mean(judged.covered) <= 0.9
    said = load_fitted().left_out
    assert said["median_error"] == pytest.approx(np.median(wrong), abs=1e-4)
    assert said["p90_error"] == pytest.approx(np.quantile(wrong, 0.9), abs=1e-4)
    assert said["covered80"] == pytest.approx(np.mean(judged.covered), abs=1e-4)


def test_an_unknown_device_cannot_be_predicted_but_one_figure_of_it_would_do(
    table: Table, works: dict[str, float]
) -> None:
    nothing, one = leave_out_devices(table, works, MODELS, "resnet50")
    assert (len(nothing), len(one)) == (252, 189)
    assert np.median(relative(nothing)) > 0.3
    assert np.median(relative(one)) < 0.09


def test_what_ships_is_what_the_table_gives(
    published: list[Figure], table: Table, works: dict[str, float]
) -> None:
    fitted = load_fitted()
    curves = fit_curves(table, works, MODELS)
    units = {(one.device, one.runtime, one.precision): one.unit for one in published}
    newest = [one for one in fitted.series if one.release == published[0].release]
    assert {(one.device, one.runtime, one.precision) for one in newest} == set(table)
    for one in newest:
        name = (one.device, one.runtime, one.precision)
        assert one.curve.overhead_ms == pytest.approx(curves[name].overhead_ms, abs=1e-4)
        assert one.curve.slope_ms == pytest.approx(curves[name].slope_ms, abs=1e-4)
        assert one.unit == units[name]
    spread = widened(fit_spread(leave_out_models(table, works, MODELS)), fitted.spread.per_e_fold)
    assert fitted.spread.near == pytest.approx(spread.near, abs=1e-4)


@pytest.mark.slow
def test_the_importers_graphs_have_that_work_and_macs_alone_predict_worse(
    table: Table, works: dict[str, float]
) -> None:
    pytest.importorskip("torchvision", reason="pip install torchvision")
    graphs = graphs_of(MODELS)
    assert {m: load_fitted().unit.of(graph) for m, graph in graphs.items()} == pytest.approx(works)
    macs = {model: float(graph.macs) for model, graph in graphs.items()}
    first = [e for m in MODELS for e in prototype(table, macs, [o for o in MODELS if o != m], m)]
    ours = leave_out_models(table, works, MODELS)
    assert np.median(relative(ours)) < 0.5 * np.median(relative(first))


def test_work_is_macs_and_elements_moved() -> None:
    weights = FloatWeights(np.zeros((16, 3, 3, 3), np.float32), np.zeros(16, np.float32))
    graph = Graph(
        "one", (Input(name="image", shape=(3, 10, 10)), Conv(name="c", inputs=("image",), weights=weights))
    )
    assert WorkUnit(0).of(graph) == 16 * 3 * 9 * 64 == graph.macs
    assert WorkUnit(100).of(graph) == graph.macs + 100 * (3 * 100 + 16 * 64)


def synthetic(overhead: float, slope: float, works: Mapping[str, float]) -> dict[str, float]:
    return {model: overhead + slope * work / 1e9 for model, work in works.items()}


def test_curves_are_found_again_though_one_figure_is_four_times_too_long() -> None:
    works = {"a": 2e9, "b": 5e9, "c": 7e9, "d": 11e9}
    table = {(f"phone {n}", "tflite", "w8a8"): synthetic(0.1 * n, 0.05 * n, works) for n in range(1, 8)}
    table["phone 3", "tflite", "w8a8"]["b"] *= 4
    curves = fit_curves(table, works, list(works))
    for number in range(1, 8):
        curve = curves[f"phone {number}", "tflite", "w8a8"]
        for model, work in works.items():
            expected = synthetic(0.1 * number, 0.05 * number, works)[model]
            assert curve.milliseconds(work) == pytest.approx(expected, rel=0.03)


def test_a_model_left_out_has_no_say() -> None:
    works = {"a": 2e9, "b": 5e9, "c": 7e9, "d": 11e9}
    table = {("phone", "onnx", "float"): synthetic(0.2, 0.1, works)}
    honest = leave_out_models(table, works, list(works))
    table["phone", "onnx", "float"]["d"] *= 1.5
    spoiled = leave_out_models(table, works, list(works))
    ratios = {error.model: error.ratio for error in spoiled}
    before = {error.model: error.ratio for error in honest}
    assert ratios["d"] == pytest.approx(before["d"] / 1.5)


def test_the_interval_covers_the_share_of_errors_that_it_says() -> None:
    rng = np.random.default_rng(0)
    away = rng.choice([0.0, 0.5, 1.0], 3000)
    sizes = np.abs(rng.normal(0, 0.1 + 0.2 * away))
    errors = [
        Error(("x", "y", "z"), "m", math.exp(size), float(far)) for size, far in zip(sizes, away, strict=True)
    ]
    spread = fit_spread(errors)
    for far in (0.0, 0.5, 1.0):
        held = [within(error, spread) for error in errors if error.away == far]
        assert np.mean(held) == pytest.approx(0.8, abs=0.05)
    slope = outer_slope(errors, 0.05)
    outside = [error for error in errors if error.away]
    assert np.mean([within(error, Spread(0.05, slope)) for error in outside]) == pytest.approx(0.8, abs=0.01)


def test_far_outside_the_fitted_models_the_interval_is_wider() -> None:
    assert distance(5.0, [2.0, 8.0]) == 0
    assert distance(16.0, [2.0, 8.0]) == pytest.approx(math.log(2))
    assert distance(1.0, [2.0, 8.0]) == pytest.approx(math.log(2))
    fitted = load_fitted()
    series = Series("x", "1", "tflite", "w8a8", "NPU", tuple(fitted.works), 0.05, Curve(0.1, 0.1))
    small = fitted.predict(series, random_graph(seed=54, blocks=3))
    assert small.away > 2
    low, high = small.interval
    assert low < small.milliseconds < high
    assert high / small.milliseconds == pytest.approx(fitted.spread.factor(small.away))
    assert fitted.spread.factor(small.away) > fitted.spread.factor(0.0) > 1


def test_every_coefficient_is_one_of_a_rising_line() -> None:
    fitted = load_fitted()
    assert len(fitted.series) >= 75
    assert all(one.curve.overhead_ms > 0 and one.curve.slope_ms > 0 for one in fitted.series)
    assert all(set(one.models) <= set(fitted.works) for one in fitted.series)
    names = [(one.device, one.release, one.runtime, one.precision) for one in fitted.series]
    assert len(set(names)) == len(names)
