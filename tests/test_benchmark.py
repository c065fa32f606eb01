"""Real worker processes on real files, and the statistics."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edge_resnet.benchmark import local
from edge_resnet.benchmark.local import BenchmarkSettings, benchmark_local
from edge_resnet.benchmark.statistics import latency_summary, paired_difference, wilson_interval
from edge_resnet.errors import InputError
from edge_resnet.export.onnx import onnx_bytes
from edge_resnet.export.tflite import IoType, tflite_bytes
from edge_resnet.graph.graph import Graph

QUICK = BenchmarkSettings(runs=30, block=10, warmup_blocks=2)


@pytest.fixture
def artifacts(tmp_path: Path, small_quantized: Graph) -> dict[str, Path]:
    contents = {"a.tflite": tflite_bytes(small_quantized), "b.onnx": onnx_bytes(small_quantized)}
    contents |= {f"{io}.tflite": tflite_bytes(small_quantized, io) for io in (IoType.INT8, IoType.FLOAT32)}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    return {name: tmp_path / name for name in contents}


def test_every_figure_of_the_contract(artifacts: dict[str, Path]) -> None:
    done: list[int] = []
    results = benchmark_local(list(artifacts.items()), 1, QUICK, done.append)
    assert sum(done) == 30 * len(artifacts)
    assert list(results) == list(artifacts)
    for result in results.values():
        assert (result.runs, result.kind, result.device, result.threads) == (30, "measured", "local", 1)
        latency = result.latency_ms
        assert latency is not None
        assert 0 < latency["p50"] <= latency["p95"] <= latency["p99"]
        assert result.cold_start_ms is not None
        assert result.cold_start_ms > latency["p50"] / 10
        assert result.throughput_per_s == pytest.approx(1000 / latency["mean"])
        # The process alone: this test's own process, with torch in it, is several times larger.
        assert result.peak_memory_bytes is not None
        assert 5e6 < result.peak_memory_bytes < 3e8
        assert set(result.to_json()) == {
            "device", "runtime", "runtime_version", "threads", "kind", "runs", "latency_ms", "cold_start_ms",
            "peak_memory_bytes", "throughput_per_s", "notes",
        }  # fmt: skip


def test_a_broken_artifact_does_not_stop_the_others(artifacts: dict[str, Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken.tflite"
    broken.write_bytes(b"rubbish")
    results = benchmark_local([("broken", broken), ("good", artifacts["b.onnx"])], 1, QUICK)
    assert results["broken"].latency_ms is None
    assert "broken.tflite" in results["broken"].notes[0]
    assert results["good"].runs == 30
    package = tmp_path / "x.mlpackage"
    assert "Mac only" in benchmark_local([("x", package)], 1, QUICK)["x"].notes[0]


def test_a_killed_process_leaves_a_note_and_nothing_running(
    artifacts: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    workers: list[local._Worker] = []
    run = local._Worker.run

    def die(self: local._Worker, count: int) -> list[float]:
        workers.append(self)
        self._process.kill()
        return run(self, count)

    monkeypatch.setattr(local._Worker, "run", die)
    results = benchmark_local([("a", artifacts["a.tflite"])], 1, QUICK)
    assert results["a"].latency_ms is None
    assert "ended" in results["a"].notes[0]
    assert all(worker._process.poll() is not None for worker in workers)


def test_a_hung_process_is_given_up(
    artifacts: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hang = tmp_path / "hang.py"
    hang.write_text("import time\ntime.sleep(600)\n")
    monkeypatch.setattr(local, "_WORKER", hang)
    settings = BenchmarkSettings(runs=10, timeout=0.5)
    results = benchmark_local([("a", artifacts["a.tflite"])], 1, settings)
    assert "no answer within" in results["a"].notes[0]


def test_the_worker_is_a_program_of_its_own(artifacts: dict[str, Path], tmp_path: Path) -> None:
    worker = tmp_path / "worker.py"
    worker.write_bytes(local._WORKER.read_bytes())
    command = [sys.executable, str(worker), str(artifacts["b.onnx"]), "--runtime", "onnxruntime"]
    done = subprocess.run(
        command, input='{"run": 3}\n{"quit": 1}\n', capture_output=True, text=True, timeout=60
    )
    hello, answer = map(json.loads, done.stdout.splitlines())
    assert done.returncode == 0
    assert len(answer["latency_ns"]) == 3
    assert hello["peak_memory_bytes"] >= hello["rss_before_bytes"]


def test_wilson_against_published_values() -> None:
    # Newcombe, "Two-sided confidence intervals for the single proportion", Statistics in Medicine 17, 1998.
    for correct, n, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611)):
        assert wilson_interval(correct, n) == pytest.approx((low, high), abs=5e-5)
    with pytest.raises(InputError):
        wilson_interval(0, 0)


def test_the_paired_interval_covers() -> None:
    """On simulated pairs with a known difference, 95 % intervals hold it in about 95 % of cases."""
    rng = np.random.default_rng(0)
    n, lost, gained = 500, 0.04, 0.02
    covered = 0
    for _ in range(1000):
        u = rng.random(n)
        base = u < 0.9
        flip = rng.random(n)
        new = np.where(base, flip >= lost / 0.9, flip < gained / 0.1)
        delta, low, high = paired_difference(base, new)
        assert low <= delta <= high
        covered += low <= gained - lost <= high
    assert 0.93 < covered / 1000 < 0.98
    assert paired_difference(np.ones(10, bool), np.ones(10, bool))[0] == 0
    with pytest.raises(InputError):
        paired_difference(np.ones(0, bool), np.ones(0, bool))


def test_latency_summary() -> None:
    summary = latency_summary(list(range(1, 101)))
    assert summary["p50"] == 50.5
    assert summary["mean"] == 50.5
    assert summary["p95"] < summary["p99"] < 100
