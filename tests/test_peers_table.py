"""The peers' table and the plots: their words come from the results alone; one short real export in turns."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from benchmarks import record
from benchmarks.artifact_facts import answers, facts
from benchmarks.export_turns import export_in_turns, summarized
from benchmarks.models import SEED, blurred_noise, normalized, settled
from benchmarks.peers.torch_model import build
from benchmarks.peers_page import page, verdicts
from benchmarks.scaling import PLOTS, drawn
from edge_resnet.data.preprocess import Preprocess

SPREAD = {"median": 1.0, "p10": 0.9, "p90": 1.1, "rounds": 5}


def _spread(median: float) -> dict[str, float]:
    return SPREAD | {"median": median}


def _row(kind: str, part: float, seconds: float, memory: int) -> dict[str, Any]:
    return {
        "format": kind,
        "setting": "as it is",
        "versions": {"some-tool": "1.2"},
        "first_seconds": 9.0,
        "peak_memory_bytes": memory,
        "convert_seconds": _spread(seconds),
        "quantize_seconds": _spread(2.0),
        "write_seconds": _spread(0.01),
        "whole_seconds": _spread(seconds + 2.01),
        "bytes": 300_000,
        "operators": 39,
        "transposes": 2,
        "top1_agreement": 0.99,
        "p50_ms": _spread(0.3),
        "p99_ms": _spread(0.4),
        "ours_to_this_p50": _spread(part),
    }


@pytest.fixture
def document() -> dict[str, Any]:
    rows = {
        "edge-resnet tflite": _row("tflite", 1.0, 0.5, 400),
        "slow": _row("tflite", 0.7, 1.0, 900),
        "fast": _row("tflite", 0.94, 4.0, 500),
        "broken": {"format": "tflite", "setting": "x", "failed": "out of luck"},
    }
    about = {
        "model": "resnet20",
        "params": 1000,
        "weights": "random",
        "calibration": "8 images",
        "images": "9 images",
        "load_before_and_after": [0.1, 0.2],
        "exporters": rows,
    }
    models = {"resnet20": about}
    machine = {"cpu": "a CPU", "cores": 2, "os": "Linux"}
    versions = {"onnxruntime": "1", "ai-edge-litert": "2"}
    return {"machine": machine, "versions": versions, "models": models, "figures": verdicts(models)}


def test_ours_is_judged_by_the_best_peer_of_each_figure(document: dict[str, Any]) -> None:
    latency, export, memory = document["figures"]
    assert (latency["peer"], latency["value"], latency["limit"], latency["met"]) == ("fast", 0.94, 0.95, True)
    assert (export["peer"], export["met"]) == ("slow", True)
    assert export["value"] == pytest.approx(0.01 / 1.01, abs=1e-4)
    assert export["whole"] == {"peer": "slow", "value": pytest.approx(2.51 / 3.01, abs=1e-4)}
    assert (memory["peer"], memory["value"], memory["met"]) == ("fast", 0.8, False)


def test_the_page_says_what_was_missed_and_what_failed(document: dict[str, Any]) -> None:
    text = page(document)
    assert "| resnet20, TFLite: peak memory of the export | fast | 0.8 | 0.7 | **missed** |" in text
    assert "| resnet20, TFLite: p50 | fast | 0.94 | 0.95 | met |" in text
    assert "failed: out of luck" in text
    assert "some-tool 1.2" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in rows[:6]} == {rows[0].count("|")}
    changed = copy.deepcopy(document)
    changed["models"]["resnet20"]["exporters"]["fast"]["operators"] = 1234
    assert "1234 (2)" in page(changed)


def test_the_page_in_the_docs_is_that_of_the_results() -> None:
    found = json.loads((record.RESULTS / "peers_table.json").read_text())
    assert found["figures"] == verdicts(found["models"])
    assert (record.ROOT / "docs" / "peers.md").read_text() == page(found)


def test_the_plots_in_the_docs_are_those_of_the_results() -> None:
    found = json.loads((record.RESULTS / "scaling.json").read_text())
    for plot in PLOTS:
        text = (record.ROOT / "docs" / f"scaling-{plot.name}.svg").read_text()
        assert text == drawn(plot, found[plot.axis])
        tree = ElementTree.fromstring(text)
        names = {row["format"] for row in found[plot.axis]}
        assert names <= {element.text for element in tree.iter("{http://www.w3.org/2000/svg}text")}
        dots = list(tree.iter("{http://www.w3.org/2000/svg}circle"))
        assert len(dots) == len(found[plot.axis])


def test_loading_the_float_model_is_no_part_of_an_export() -> None:
    def answer(seconds: float) -> dict[str, Any]:
        names = ("libraries", "load", "convert", "write")
        phases = {name: {"seconds": seconds, "peak_memory_bytes": 7} for name in names}
        return {"phases": phases, "versions": {}}

    row = summarized({"first": answer(10.0), "passes": [answer(1.0), answer(3.0)]})
    assert row["first_seconds"] == 30
    assert row["whole_seconds"]["median"] == 4  # convert and write; nothing to calibrate
    assert row["quantize_seconds"]["median"] == 0


@pytest.mark.slow
def test_exports_in_turns_from_one_torch_module(tmp_path: Path) -> None:
    """Ours twice, for real, on the demo's network with random weights; a broken exporter stops nobody."""
    preprocess = Preprocess((32, 32), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    pixels = blurred_noise(8, 32)
    images = normalized(pixels, preprocess)
    torch.manual_seed(SEED)
    module = settled(build("demo", 10), images)
    torch.save(module.state_dict(), tmp_path / "state.pt")
    np.save(tmp_path / "calibration.npy", images)
    np.save(tmp_path / "calibration_pixels.npy", pixels)
    about = {"name": "demo", "classes": 10, "size": [32, 32], "mean": preprocess.mean, "std": preprocess.std}
    (tmp_path / "model.json").write_text(json.dumps(about))
    rows = export_in_turns(sys.executable, tmp_path, ["edge-resnet tflite", "tensorflow"], 1)
    assert "failed" in rows["tensorflow"]  # there is no model.keras
    row = rows["edge-resnet tflite"]
    assert row["write_seconds"]["rounds"] == 1
    assert 0 < row["write_seconds"]["median"] < row["whole_seconds"]["median"] < row["first_seconds"]
    assert 5e7 < row["libraries_memory_bytes"] <= row["peak_memory_bytes"]
    path = tmp_path / "edge-resnet.tflite"
    found = facts(path)
    assert found["bytes"] == path.stat().st_size
    assert found["transposes"] == 0
    assert found["operator_kinds"]["CONV_2D"] == 7
    with torch.no_grad():
        floats = module(torch.from_numpy(images)).numpy()
    assert (answers(path, images, pixels).argmax(1) == floats.argmax(1)).mean() > 0.7
