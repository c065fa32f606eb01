"""Range estimators, against numpy on all the values, and against a search by brute force."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from edge_resnet.compression.calibrate import calibrate
from edge_resnet.compression.estimators import ESTIMATORS, estimate
from edge_resnet.compression.quantize import quantize
from edge_resnet.compression.statistics import Statistics, TensorStatistics, collect
from edge_resnet.graph import nodes as g
from edge_resnet.graph.float_executor import FloatExecutor
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.passes import lower_for_integers, simplify
from edge_resnet.graph.reference import ReferenceExecutor
from edge_resnet.graph.streams import scale_groups
from edge_resnet.recipe.sections import Calibration
from tests.random_graphs import random_graph, random_pixels


def seen(*batches: np.ndarray) -> TensorStatistics:
    tensor = TensorStatistics()
    for values in batches:
        value = torch.tensor(values, dtype=torch.float32)
        tensor.update(value, float(value.min()), float(value.max()), with_histogram=True)
    return tensor


def ready(seed: int) -> Graph:
    return lower_for_integers(simplify(random_graph(seed, 3)))


def one(estimator: str, tensor: TensorStatistics, percentile: float = 99.0) -> tuple[float, float]:
    (bounds,) = ESTIMATORS[estimator]([[tensor]], percentile)
    return bounds


def squared_error(values: np.ndarray, low: float, high: float) -> float:
    """Of 8 bits with an exact zero, written independently: torch's own fake quantization."""
    scale = (high - low) / 255
    zero = int(np.clip(round(-low / scale), 0, 255))
    value = torch.tensor(values, dtype=torch.float32)
    return float((torch.fake_quantize_per_tensor_affine(value, scale, zero, 0, 255) - value).square().sum())


def outliers(negative: bool) -> np.ndarray:
    values = np.random.default_rng(0).standard_normal(20000)
    values[:4] = (20, 25, -15 if negative else 18, 30)
    return values if negative else np.maximum(values, 0)


def test_the_table_has_what_recipes_name() -> None:
    assert set(ESTIMATORS) == set(get_args(Calibration.model_fields["estimator"].annotation))


@hypothesis_settings(max_examples=30)
@given(st.lists(st.floats(0.001, 1000), min_size=1, max_size=5), st.integers(0, 1000))
def test_the_histogram_does_not_depend_on_the_order(sizes: list[float], seed: int) -> None:
    rng = np.random.default_rng(seed)
    batches = [size * rng.standard_normal(50) for size in sizes]
    there, back = seen(*batches), seen(*batches[::-1])
    np.testing.assert_array_equal(there.counts, back.counts)
    assert there.counts.sum() == 50 * len(sizes)


def test_zeros_are_counted_apart() -> None:
    tensor = seen(np.array([0.0, 0.0, 1.0, 0.0]), np.zeros(3))
    assert (tensor.zeros, tensor.counts.sum()) == (6, 1)


@pytest.mark.parametrize("negative", [True, False])
def test_percentile_is_numpys(negative: bool) -> None:
    values = outliers(negative)
    low, high = one("percentile", seen(values))
    outside = (50 - 99 / 2) if negative else 1
    assert high == pytest.approx(np.percentile(values, 100 - outside), abs=0.03)
    assert low == pytest.approx(np.percentile(values, outside) if negative else 0, abs=0.03)


@pytest.mark.parametrize("negative", [True, False])
def test_mse_is_as_good_as_a_search(negative: bool) -> None:
    values = outliers(negative)
    best = min(
        squared_error(values, -low if negative else 0, high)
        for low in (np.linspace(2, 20, 40) if negative else [0])
        for high in np.linspace(2, 31, 60)
    )
    assert squared_error(values, *one("mse", seen(values))) < 1.02 * best


def test_moving_average_forgets() -> None:
    """Three batches, by hand, with a tenth of each new one."""
    low, high = one("moving-average", seen(*(np.array([-top, top]) for top in (1.0, 2.0, 4.0))))
    assert high == pytest.approx(0.9 * (0.9 * 1 + 0.1 * 2) + 0.1 * 4)
    assert low == -high


@pytest.mark.parametrize("negative", [True, False])
def test_entropy_cuts_outliers_and_keeps_what_fills_the_range(negative: bool) -> None:
    low, high = one("entropy", seen(outliers(negative)))
    assert 2 < high < 29
    assert (low < -2) == negative
    uniform = np.random.default_rng(0).uniform(-1 if negative else 0, 1, 20000)
    assert one("entropy", seen(uniform))[1] > 0.95


def test_one_scale_is_best_for_all_its_tensors() -> None:
    """A wide tensor with a rare outlier, and many values of half the width."""
    rng = np.random.default_rng(0)
    first, second = rng.uniform(0, 1, 20000), rng.uniform(0, 2, 20000)
    first[0] = 8
    (a, b) = ESTIMATORS["mse"]([[seen(first)], [seen(second)]], 99.0)
    assert a == b
    error = squared_error(first, *a) + squared_error(second, *b)
    assert error < 1.02 * min(
        squared_error(first, 0, top) + squared_error(second, 0, top) for top in np.linspace(0.5, 8, 80)
    )


@hypothesis_settings(max_examples=15)
@given(st.integers(0, 10**6), st.sampled_from(sorted(ESTIMATORS)))
def test_every_estimate_quantizes(seed: int, estimator: str) -> None:
    graph = ready(seed)
    pixels = random_pixels(graph, 4, seed)
    statistics = collect(graph, [pixels])
    everything = estimate(statistics, graph)
    ranges = estimate(statistics, graph, estimator)
    for name, (low, high) in ranges.items():
        assert everything[name][0] - 1e-9 <= low <= 0 <= high <= everything[name][1] + 1e-9
    assert ranges[graph.output.name] == everything[graph.output.name]
    assert ReferenceExecutor(quantize(graph, ranges)).run(pixels).dtype == np.int8


def test_a_narrow_tensor_of_a_wide_scale_is_not_cut() -> None:
    """What shares a residual stream's scale has its width: nothing that fits in is clipped."""
    graph = ready(54)
    statistics = collect(graph, [random_pixels(graph, 8)])
    everything, ranges = estimate(statistics, graph), estimate(statistics, graph, "percentile", 90)
    for group in scale_groups(graph):
        width = max(ranges[name][1] - ranges[name][0] for name in group)
        for name in group:
            (low, high), (least, largest) = ranges[name], everything[name]
            moved = isinstance(graph.by_name[name], g.Relu | g.MaxPool | g.Concat | g.SliceChannels)
            assert moved or high - low >= min(width, largest - least) - 1e-9


def test_calibration_by_default_is_that_of_all_values() -> None:
    """Least and largest value of every tensor, by numpy, over all batches."""
    graph = ready(54)
    pixels = random_pixels(graph, 8)
    values: dict[str, np.ndarray] = {}
    FloatExecutor(graph).run(pixels, lambda name, value: values.update({name: value.numpy().copy()}))
    ranges = calibrate(graph, np.array_split(pixels, 3), "minmax")
    for name, value in values.items():
        assert ranges[name] == pytest.approx((min(0, value.min()), max(0, value.max())), rel=1e-4, abs=1e-5)


def images(graph: Graph, colours: list[tuple[int, int, int]]) -> Iterator[np.ndarray]:
    height, width = graph.input.shape[1:]
    for colour in colours:
        yield np.full((2, height, width, 3), colour, np.uint8)


def warned(colours: list[tuple[int, int, int]]) -> str:
    graph = ready(54)
    statistics: Statistics = collect(graph, images(graph, colours))
    for estimator in ESTIMATORS:
        assert quantize(graph, estimate(statistics, graph, estimator)).is_quantized
    return " ".join(statistics.warnings)


def test_one_colour_is_named() -> None:
    assert "all 4 calibration images are one constant colour (7, 8, 9)" in warned([(7, 8, 9)] * 2)


def test_plain_images_are_named() -> None:
    assert "each of the 4 calibration images is one constant colour" in warned([(7, 8, 9), (9, 0, 3)])


def test_tensors_that_never_varied_are_named() -> None:
    assert "image" in warned([(5, 5, 5)])


def test_real_images_warn_of_nothing() -> None:
    graph = ready(54)
    pixels = random_pixels(graph, 8)
    assert not [text for text in collect(graph, [pixels]).warnings if "images are" in text]
    same = np.repeat(pixels[:1], 4, 0)
    assert "all 4 calibration images are the same" in collect(graph, [same]).warnings[0]
