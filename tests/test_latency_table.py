"""The table of layer latencies: its lookup, its file, and its prediction beside LiteRT's own time."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edge_resnet.errors import InputError
from edge_resnet.export.tflite import IoType, tflite_bytes
from edge_resnet.graph import nodes as g
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.passes import (
    lower_average_pools,
    lower_for_integers,
    simplify,
    split_large_averages,
)
from edge_resnet.latency.clock import Entry
from edge_resnet.latency.grid import wanted_layers
from edge_resnet.latency.layers import LayerShape, coordinates, family, layer_shapes, with_channels
from edge_resnet.latency.probe import empty_model, probe
from edge_resnet.latency.store import Machine, local_store
from edge_resnet.latency.table import LatencyTable, latency_table, missing_entries
from tests.conftest import quantized
from tests.random_graphs import random_graph

_ONE = g.Padding.symmetric(1, 1)
_CONV = LayerShape("Conv", ((16, 8, 8),), (16, 8, 8), (3, 3), padding=_ONE)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGE_RESNET_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def unmeasured(cache: Path, monkeypatch: pytest.MonkeyPatch) -> list[LayerShape]:
    """Instead of the clock: an entry for each layer, of 1 ms a channel written; what was asked is kept."""
    asked: list[LayerShape] = []

    def measure(layers: list[LayerShape], *_: object) -> list[Entry]:
        asked.extend(layers)
        return [Entry(float(layer.output[0]), 0.0) for layer in layers]

    monkeypatch.setattr("edge_resnet.latency.table.measure", measure)
    return asked


def _weights(*shape: int) -> g.FloatWeights:
    rng = np.random.default_rng(0)
    return g.FloatWeights(rng.normal(0, 0.1, shape).astype(np.float32), np.zeros(shape[0], np.float32))


def _residual(width: int = 16, size: int = 12) -> Graph:
    """One block with option A's shortcut between two of its own."""
    nodes: list[g.Node] = [
        g.Input(name="image", shape=(3, size, size)),
        g.Normalize(
            name="norm", inputs=("image",), mean=np.full(3, 120, np.float32), std=np.full(3, 60, np.float32)
        ),
    ]

    def conv(name: str, source: str, reads: int, writes: int, stride: int = 1, relu: bool = True) -> str:
        activation = g.Activation.RELU if relu else g.Activation.NONE
        nodes.append(
            g.Conv(
                name=name,
                inputs=(source,),
                weights=_weights(writes, reads, 3, 3),
                stride=(stride, stride),
                padding=_ONE,
                activation=activation,
            )
        )
        return name

    def total(name: str, left: str, right: str) -> str:
        nodes.append(g.Add(name=name, inputs=(left, right), activation=g.Activation.RELU))
        return name

    stem = conv("stem", "norm", 3, width)
    first = total("sum1", conv("b", conv("a", stem, width, width), width, width, relu=False), stem)
    nodes.append(g.Subsample(name="sub", inputs=(first,), stride=(2, 2)))
    nodes.append(g.PadChannels(name="pad", inputs=("sub",), before=width // 2, after=width // 2))
    conv("d", conv("c", first, width, 2 * width, 2), 2 * width, 2 * width, relu=False)
    total("sum2", "d", "pad")
    nodes.append(g.GlobalAvgPool(name="pool", inputs=("sum2",)))
    nodes.append(g.Flatten(name="flat", inputs=("pool",)))
    nodes.append(g.Linear(name="fc", inputs=("flat",), weights=_weights(10, 2 * width)))
    return Graph("residual", tuple(nodes))


def _table(**families: dict[tuple[int, ...], float]) -> LatencyTable:
    entries = {
        name.replace("_", " "): {at: Entry(value, value / 10) for at, value in widths.items()}
        for name, widths in families.items()
    }
    return LatencyTable(Machine("cpu", "litert", "1", 1), "2000-01-01", entries, Entry(0.5, 0.0))


def test_interpolates_along_both_numbers_of_channels() -> None:
    table = _table(**{family(_CONV): {(8, 8): 1.0, (8, 16): 3.0, (16, 8): 2.0, (16, 16): 6.0}})
    assert table.milliseconds(_CONV) == 6.0
    assert table.milliseconds(with_channels(_CONV, (8,), 12)) == pytest.approx(2.0)
    assert table.milliseconds(with_channels(_CONV, (12,), 12)) == pytest.approx(3.0)
    assert 0.5 <= table.milliseconds(with_channels(_CONV, (8,), 4)) < 1.0
    with pytest.raises(LookupError, match="Conv 8x8 kernel 3x3"):
        table.milliseconds(with_channels(_CONV, (16,), 24))
    with pytest.raises(LookupError, match="Add 8x8"):
        table.milliseconds(LayerShape("Add", ((8, 8, 8),) * 2, (8, 8, 8)))
    assert table.spread == pytest.approx(0.1)


def test_what_rows_lack_others_give() -> None:
    """Graphs of other widths leave rows of other lengths in one file."""
    table = _table(**{family(_CONV): {(8, 8): 1.0, (16, 8): 2.0, (16, 16): 6.0}})
    assert table.milliseconds(with_channels(_CONV, (12,), 8)) == pytest.approx(1.5)
    assert table.milliseconds(with_channels(_CONV, (16,), 12)) == pytest.approx(4.0)


def test_grouped_convolutions_keep_their_channels_per_group() -> None:
    grouped = LayerShape("Conv", ((32, 8, 8),), (64, 8, 8), (3, 3), padding=_ONE, groups=4)
    fewer = with_channels(grouped, (16,), 32)
    assert fewer.groups == 2
    assert family(fewer) == family(grouped)
    assert coordinates(fewer) == (32,)
    depthwise = LayerShape("Conv", ((32, 8, 8),), (32, 8, 8), (3, 3), padding=_ONE, groups=32)
    assert with_channels(depthwise, (24,), 24).groups == 24
    assert family(depthwise) != family(grouped)
    assert coordinates(with_channels(grouped, (8,), 16)) == (8, 16)  # one group is a dense convolution


def test_lowering_changes_no_layer() -> None:
    """Costs are asked of the float graph, the prediction is made of the one in integers."""
    graph = simplify(random_graph(seed=54, blocks=3))
    before, after = layer_shapes(graph), layer_shapes(lower_for_integers(graph))
    assert set(before.values()) == set(after.values())
    large = Graph(
        "large",
        (g.Input(name="image", shape=(8, 28, 28)), g.GlobalAvgPool(name="pool", inputs=("image",))),
    )
    parts = set(layer_shapes(lower_average_pools(split_large_averages(large))).values())
    assert len(parts) == 2
    assert parts < set(wanted_layers(large, 8))


@pytest.mark.parametrize("seed", range(24))
def test_every_layer_of_random_graphs_has_a_probe_that_runs(seed: int) -> None:
    """Squeeze-and-excitation, swish, splits, depthwise, blur: what a probe holds is what it was made for."""
    from ai_edge_litert.interpreter import Interpreter

    graph = lower_for_integers(simplify(random_graph(seed, blocks=3)))
    for layer in set(layer_shapes(graph).values()):
        model = probe(layer, 2)
        found = [shape for name, shape in layer_shapes(model).items() if name.startswith("layer")]
        assert [(family(one), coordinates(one)) for one in found] == [(family(layer), coordinates(layer))] * 2
        interpreter = Interpreter(model_content=bytes(tflite_bytes(model, IoType.INT8)), num_threads=1)
        interpreter.allocate_tensors()
        interpreter.invoke()


def test_all_widths_that_pruning_may_ask_for_are_answered(unmeasured: list[LayerShape]) -> None:
    for seed in range(12):
        graph = simplify(random_graph(seed, blocks=3))
        table = latency_table(lower_for_integers(graph), multiple=2)
        for layer in layer_shapes(graph).values():
            for units in (1, 2, 3):
                group = layer.groups if layer.groups > 1 else 1
                reads, writes = layer.inputs[0][0] // group, layer.output[0] // group
                smaller = (units * reads, units * writes) if group > 1 else (2 * units, 2 * units)
                if smaller[0] <= layer.inputs[0][0] and smaller[1] <= layer.output[0]:
                    inputs = (smaller[0],) * len(layer.inputs)
                    assert table.milliseconds(with_channels(layer, inputs, smaller[1])) > 0


def test_the_second_call_measures_nothing(cache: Path, unmeasured: list[LayerShape]) -> None:
    graph, steps = lower_for_integers(_residual()), []
    count = missing_entries(graph)
    first = latency_table(graph, advance=steps.append)
    assert sum(steps) == count == len(unmeasured) == len(set(unmeasured)) > 0
    assert missing_entries(graph) == 0
    again = latency_table(graph)
    assert len(unmeasured) == count
    assert again.digest == first.digest
    # Another graph's layers come on top, and change nothing for this one.
    other = lower_for_integers(_residual(width=32))
    latency_table(other)
    assert latency_table(graph).digest == first.digest
    assert latency_table(other).digest != first.digest


def test_a_killed_run_loses_one_group_at_most(cache: Path, unmeasured: list[LayerShape]) -> None:
    graph = lower_for_integers(_residual())
    count = missing_entries(graph)

    def killed(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        latency_table(graph, advance=killed)
    assert missing_entries(graph) == count - len(unmeasured) < count


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: text.replace('"threads": 1', '"threads": 2'),
        lambda text: text.replace("table 1", "table 9"),
    ],
)
def test_a_damaged_cache_is_measured_anew(unmeasured: list[LayerShape], damage: Callable[[str], str]) -> None:
    graph = lower_for_integers(_residual())
    first = latency_table(graph)
    path = local_store("litert", 1).path
    path.write_text(damage(path.read_text()))
    assert missing_entries(graph) == len(unmeasured)
    assert latency_table(graph).digest == first.digest
    json.loads(path.read_text())


def test_a_table_from_elsewhere_is_only_read(tmp_path: Path, unmeasured: list[LayerShape]) -> None:
    graph = lower_for_integers(_residual())
    here = latency_table(graph)
    count, kept = len(unmeasured), local_store("litert", 1).path
    elsewhere = tmp_path / "phone.json"
    elsewhere.write_text(kept.read_text())
    table = latency_table(graph, device=str(elsewhere))
    assert table.predict(graph) == pytest.approx(here.predict(graph))
    assert len(unmeasured) == count
    assert missing_entries(_residual(width=32), device=str(elsewhere)) == 0
    with pytest.raises(InputError, match=r"layer 'stem': .*measure this model there: `python -m"):
        latency_table(lower_for_integers(_residual(width=32)), device=str(elsewhere))
    with pytest.raises(InputError, match="nothing was measured for images of 3x16x16"):
        latency_table(lower_for_integers(_residual(size=16)), device=str(elsewhere))
    with pytest.raises(InputError, match="not litert and 2"):
        latency_table(graph, device=str(elsewhere), threads=2)
    elsewhere.write_text("{}")
    with pytest.raises(InputError, match="not a latency table, or damaged"):
        latency_table(graph, device=str(elsewhere))


def test_other_devices_and_runtimes_are_refused(cache: Path) -> None:
    graph = _residual()
    with pytest.raises(InputError, match="now there are `local`"):
        latency_table(graph, device="ssh://board")
    with pytest.raises(InputError, match="now there are `local`"):
        missing_entries(graph, device="missing.json")
    with pytest.raises(InputError, match="not openvino"):
        latency_table(graph, runtime="openvino")


def test_a_removed_block_may_leave_a_relu(unmeasured: list[LayerShape]) -> None:
    """Where what passes by can be negative, the sum's ReLU stays: it is measured beforehand."""
    from edge_resnet.graph.passes.remove_blocks import identity_blocks, remove_blocks

    nodes = [
        g.Conv(**{**vars(node), "activation": g.Activation.NONE}) if node.name == "stem" else node
        for node in _residual().nodes
    ]
    graph = Graph("negative", tuple(nodes))
    table = latency_table(lower_for_integers(graph))
    shorter = remove_blocks(graph, [identity_blocks(graph)[0].total])
    assert any(isinstance(node, g.Relu) for node in shorter.nodes)
    assert 0 < table.predict(lower_for_integers(shorter)) < table.predict(lower_for_integers(graph))


@pytest.mark.slow  # times of a few microseconds: on a machine that is busy with other things they say little
def test_the_prediction_is_near_what_litert_takes(cache: Path) -> None:
    """Within a factor of two, on a machine that may be busy; on a quiet one it is a few percent."""
    from ai_edge_litert.interpreter import Interpreter

    graph = _residual()
    lowered = lower_for_integers(graph)
    table = latency_table(lowered, multiple=16)
    interpreter = Interpreter(model_content=bytes(tflite_bytes(quantized(graph))), num_threads=1)
    interpreter.allocate_tensors()
    times = []
    for _ in range(200):
        begun = time.perf_counter()
        interpreter.invoke()
        times.append((time.perf_counter() - begun) * 1e3)
    assert 0.5 < table.predict(lowered) / min(times) < 2
    costs = [table.milliseconds(with_channels(layer_shapes(graph)["d"], (32,), n)) for n in (16, 32)]
    assert costs[0] < costs[1]
    assert 0 < table.overhead < table.predict(lowered)


def test_the_command_writes_a_table(
    tmp_path: Path,
    unmeasured: list[LayerShape],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from edge_resnet.latency.__main__ import main

    path = tmp_path / "table.json"
    monkeypatch.setattr(sys, "argv", ["latency", "demo", str(path)])
    assert main() == 0
    assert "ms predicted" in capsys.readouterr().out
    assert json.loads(path.read_text())["machine"]["threads"] == 1
    monkeypatch.setattr(sys, "argv", ["latency", "no-such-model", str(path)])
    assert main() == 2


def test_an_empty_model_is_no_layer() -> None:
    assert empty_model((3, 32, 32)).output_shape == (8,)
