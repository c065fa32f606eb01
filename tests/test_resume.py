"""Killed in any stage and started again, a run ends with the files of an undisturbed one, byte for byte."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edge_resnet.errors import InputError
from edge_resnet.graph.graph import Graph
from edge_resnet.stage_cache import StageCache, StageOutput, stage_key
from tests.test_quantization_command import artifacts, contents

# Runs compress once for each (stage, images, signal): the run sends the signal to itself once the stage has
# told of so many images. Where the stage is "move", it does so when the first folder takes its final name.
# The runs are forked, so that the libraries are loaded once. Prints how they ended.
CHILD = """
import json, os, signal, sys
from contextlib import contextmanager

import onnx, onnxruntime, torch, torch.export
import edge_resnet.pipeline as pipeline
from edge_resnet.progress import SilentProgress

out, recipe, targets, points = json.loads(sys.argv[1])

class Ending(SilentProgress):
    def __init__(self, title, images, number):
        self.title, self.left, self.number = title, images, number

    @contextmanager
    def stage(self, title, total=None):
        with super().stage(title, total) as bar:
            advance = self.counting(bar) if title == self.title else bar
            if title == self.title and self.left == 0:
                os.kill(os.getpid(), self.number)
            yield advance

    def counting(self, bar):
        def advance(images):
            self.left -= images
            if self.left <= 0:
                os.kill(os.getpid(), self.number)
        advance.show = bar.show
        return advance

def run(title, images, number):
    if title == "move":
        pipeline.replace_directory = lambda new, path: os.kill(os.getpid(), number)
    pipeline.compress(
        "demo", recipe=recipe, targets=targets, out=out, progress=Ending(title, images, number)
    )

ends = []
for title, images, number in points:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            run(title, images, number)
            code = 0
        except KeyboardInterrupt:
            code = 130
        finally:
            sys.excepthook(*sys.exc_info()) if code == 1 else None
            os._exit(code)
    ends.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(json.dumps(ends))
"""

SMALL: dict[str, Any] = {
    "prune": {"macs": 0.6, "multiple": 4, "images": 64},
    "calibration": {"images": 32},
    "evaluate": {"images": 40, "step_images": 40},
    "benchmark": {"runs": 0},
}

TRAINING = {"flip": False, "crop_padding": 1, "batch": 256, "precision": "float32"}

WHOLE: dict[str, Any] = {
    **SMALL,
    "prune": {**SMALL["prune"], "schedule": "linear", "steps": 2, "step_epochs": 1},
    "finetune": {"epochs": 2, "learning_rate": 0.02, "distill": {"weight": 0.5}, **TRAINING},
    "repair": {"equalize": True},
    "qat": {"epochs": 2, "distill": {"weight": 0.5}, **TRAINING},
    "sensitivity": {"images": 40, "max_drop": 0.5},
    "benchmark": {"runs": 20},
}
EPOCH = 1347

KILL, INTERRUPT = int(signal.SIGKILL), int(signal.SIGINT)


def ends(
    out: Path, recipe: dict[str, Any], targets: list[str], points: list[tuple[str, int, int]]
) -> list[int]:
    """The exit codes of runs that end at these points, and of one more that is left alone."""
    asked = json.dumps([str(out), recipe, targets, [*points, ("", 0, 0)]])
    done = subprocess.run(
        [sys.executable, "-c", CHILD, asked],
        stdout=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        text=True,
        check=True,
    )
    return list(json.loads(done.stdout))


def resumed(out: Path) -> dict[str, bool]:
    return {s["name"]: s["resumed"] for s in json.loads((out / "report.json").read_text())["stages"]}


def test_killed_twice_and_run_again(tmp_path: Path) -> None:
    whole, out, targets = tmp_path / "whole", tmp_path / "killed", ["tflite-int8", "onnx-int8"]
    assert ends(out, SMALL, targets, [("quantize", 0, KILL), ("move", 0, KILL)]) == [-KILL, -KILL, 0]
    stages = resumed(out)
    assert all(stages[name] for name in ("prune", "quantize", "measure ptq"))
    assert not any(stages[name] for name in ("import", "export tflite-int8", "verify"))
    assert not list(out.glob(".*"))  # what the killed runs left is gone
    assert ends(whole, SMALL, targets, []) == [0]
    assert artifacts(out) == artifacts(whole)
    assert not any(resumed(whole).values())
    first, again = (json.loads((folder / "report.json").read_text()) for folder in (whole, out))
    for entry in ("notes", "pruning"):
        assert first[entry] == again[entry], entry
    for step, other in zip(first["quantization"]["steps"], again["quantization"]["steps"], strict=True):
        assert {**step, "seconds": 0} == {**other, "seconds": 0}


@pytest.mark.slow
def test_killed_in_each_stage(tmp_path: Path) -> None:
    """Each run is killed a little later than the one before it, and twice in each training."""
    targets = ["tflite-int8", "onnx-int8", "onnx-fp32"]
    if importlib.util.find_spec("coremltools") is not None:
        targets.append("coreml-int8")
    half, more = EPOCH // 2, EPOCH + EPOCH // 2  # before the first checkpoint of two epochs, and after it
    points = [
        *(("import", 0, KILL), ("prune", 0, KILL), ("finetune-step1", half, KILL)),
        *(("measure original", 0, KILL), ("finetune", half, KILL), ("finetune", more, KILL)),
        *(("quantize", 0, KILL), ("equalize", 0, KILL), ("qat", half, KILL), ("qat", more, KILL)),
        *(("measure qat", 0, KILL), ("sensitivity", 0, KILL), ("mixed precision", 0, KILL)),
        *((f"export {targets[-1]}", 0, KILL), ("verify", 40, INTERRUPT), ("verify", 0, KILL)),
        *(("benchmark", 0, KILL), ("move", 0, KILL)),
    ]
    whole, out = tmp_path / "whole", tmp_path / "killed"
    codes = [130 if number == INTERRUPT else -KILL for _, _, number in points]
    found = dict(zip((str(point) for point in points), ends(out, WHOLE, targets, points), strict=False))
    assert found == dict(zip(map(str, points), codes, strict=True))
    assert ends(whole, WHOLE, targets, []) == [0]
    assert artifacts(out) == artifacts(whole)
    assert not list(out.glob(".*"))
    stages = resumed(out)
    done = "prune", "finetune", "quantize", "equalize", "qat", "sensitivity", "mixed precision"
    assert {name: stages[name] for name in done} == dict.fromkeys(done, True)
    report = json.loads((out / "report.json").read_text())
    for training in report["quantization"]["training"]:
        assert len(training["epochs"]) == (1 if training["name"] == "finetune-step1" else 2)


def test_what_was_put_is_got(tmp_path: Path, small_graph: Graph, small_quantized: Graph) -> None:
    cache, key = StageCache(tmp_path / "stages"), stage_key(graph=small_graph, steps=3)
    assert cache.get("quantize", key) is None
    record = {"seconds": 0.1, "sqnr_db": float("inf"), "top1": None, "notes": ["ä"]}
    cache.put("quantize", key, StageOutput({"floating": small_graph, "quantized": small_quantized}, record))
    cache.put("quantize", key, StageOutput({}, {"other": 1}))  # the first one stays
    output = cache.get("quantize", key)
    assert output is not None
    assert output.record == record
    for role, graph in (("floating", small_graph), ("quantized", small_quantized)):
        assert stage_key(graph=output.graphs[role]) == stage_key(graph=graph)
    assert cache.get("prune", key) is None
    assert cache.get("quantize", stage_key(graph=small_graph, steps=4)) is None
    assert cache.get("quantize", stage_key(graph=small_quantized, steps=3)) is None
    assert not list(tmp_path.rglob(".new-*"))


def test_whatever_is_damaged_is_not_there(tmp_path: Path, small_graph: Graph) -> None:
    cache = StageCache(tmp_path / "stages")
    cache.put("prune", "key", StageOutput({"pruned": small_graph}, {"reached": 0.5}))
    entry = tmp_path / "stages" / "prune" / "key"
    good = contents(entry)
    assert len(good) == 4
    for name, content in good.items():
        flipped = bytes([*content[:-2], content[-2] ^ 1, content[-1]])
        for bad in (flipped, content[: len(content) // 2], b"", None):
            shutil.rmtree(entry, ignore_errors=True)
            entry.mkdir()
            for other, intact in good.items():
                (entry / other).write_bytes(intact)
            assert cache.get("prune", "key") is not None
            (entry / name).unlink() if bad is None else (entry / name).write_bytes(bad)
            assert cache.get("prune", "key") is None, name
            assert not entry.exists()


def test_few_entries_and_no_leftovers_are_kept(tmp_path: Path) -> None:
    cache, folder = StageCache(tmp_path), tmp_path / "prune"
    for name, age in ((".new-killed", 10_000), (".new-under-way", 0)):
        (folder / name).mkdir(parents=True)
        written = (folder / name).stat().st_mtime - age
        os.utime(folder / name, (written, written))
    for number in range(12):
        cache.put("prune", f"key{number}", StageOutput({}, {"number": number}))
        os.utime(folder / f"key{number}", (number, number))
        if number:  # used again: it is not among the oldest
            assert cache.get("prune", "key0") is not None
    names = {entry.name for entry in folder.iterdir()}
    assert names == {".new-under-way", "key0", *(f"key{number}" for number in range(5, 12))}


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file")
    cache = StageCache(tmp_path / "state" / "stages")
    assert cache.get("prune", "key") is None
    with pytest.raises(InputError, match=r"prune: cannot keep what the stage made: .*; free some space"):
        cache.put("prune", "key", StageOutput({}, {}))
