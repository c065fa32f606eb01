"""Real worker processes on real files, and the statistics."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edge_resnet.benchmark import process
from edge_resnet.benchmark.process import WorkerProcess, worker_command
from edge_resnet.benchmark.result import BenchmarkSettings
from edge_resnet.benchmark.statistics import paired_difference, wilson_interval
from edge_resnet.benchmark.timing import interleaved, latency_summary, spread, tail, warm_up
from edge_resnet.devices.host import noise
from edge_resnet.devices.local import benchmark_local
from edge_resnet.errors import InputError, MissingToolError
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


def _onnx_model(path: Path, kind: int, shape: list[int | str]) -> Path:
    """One Identity on an input of that type and shape."""
    values = [onnx.helper.make_tensor_value_info(name, kind, shape) for name in "xy"]
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    opset = [onnx.helper.make_opsetid("", 17)]
    graph = onnx.helper.make_graph([node], "g", values[:1], values[1:])
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    return path


def _has_ended(pid: int) -> bool:
    """Gone, or a zombie that nobody reaped."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return Path("/proc/self").exists()  # gone meanwhile; where there is no /proc, it still runs


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The processes that were started, by their ids."""
    pids: list[int] = []
    popen = subprocess.Popen

    def recorded(*arguments: Any, **options: Any) -> subprocess.Popen[str]:
        child = popen(*arguments, **options)
        pids.append(child.pid)
        return child

    monkeypatch.setattr(process.subprocess, "Popen", recorded)
    return pids


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
        assert result.runtime_version
        assert "were there before the model was loaded" in result.notes[0]
        assert set(result.to_json()) == {
            "device", "runtime", "runtime_version", "threads", "kind", "runs", "latency_ms", "cold_start_ms",
            "peak_memory_bytes", "throughput_per_s", "notes", "latency_interval_ms", "batch",
            "batch_throughput_per_s", "energy_mj", "figures", "layers", "conditions",
        }  # fmt: skip


def test_a_broken_artifact_does_not_stop_the_others(
    artifacts: dict[str, Path], tmp_path: Path, started: list[int]
) -> None:
    broken = tmp_path / "broken.tflite"
    broken.write_bytes(b"rubbish")
    package = tmp_path / "x.mlpackage"
    done: list[int] = []
    entries = [("broken", broken), ("package", package), ("good", artifacts["b.onnx"])]
    results = benchmark_local(entries, 1, QUICK, done.append)
    assert list(results) == ["broken", "package", "good"]
    assert results["broken"].latency_ms is None
    assert "broken.tflite: ValueError" in results["broken"].notes[0]
    assert results["package"].runtime == "Core ML"
    assert results["good"].runs == 30
    assert sum(done) == 3 * 30  # a bar reaches its end
    assert len(started) == 2
    assert all(map(_has_ended, started))


def test_core_ml_is_not_timed_and_says_why(tmp_path: Path) -> None:
    package = tmp_path / "x.mlpackage"
    result = benchmark_local([("x", package)], 1, QUICK)["x"]
    assert "Mac only" in result.notes[0]
    figures = (result.latency_ms, result.cold_start_ms, result.peak_memory_bytes, result.throughput_per_s)
    assert figures == (None, None, None, None)


def test_input_that_cannot_be_timed(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not an artifact"):
        benchmark_local([("x", tmp_path / "x.txt")], 1, QUICK)
    with pytest.raises(InputError, match="0 runs"):
        BenchmarkSettings(runs=0)


def test_a_killed_process_leaves_a_note_and_nothing_running(
    artifacts: dict[str, Path], monkeypatch: pytest.MonkeyPatch, started: list[int]
) -> None:
    run = WorkerProcess.run

    def die(self: WorkerProcess, count: int) -> list[float]:
        if self.pid == started[0]:
            os.kill(self.pid, signal.SIGKILL)
        return run(self, count)

    monkeypatch.setattr(WorkerProcess, "run", die)
    results = benchmark_local([("a", artifacts["a.tflite"]), ("b", artifacts["b.onnx"])], 1, QUICK)
    assert results["a"].latency_ms is None
    assert results["a"].notes == [
        "a.tflite: the benchmark process was killed by SIGKILL (the system does that when memory runs out)"
    ]
    assert results["b"].runs == 30
    assert all(map(_has_ended, started))


@pytest.mark.parametrize(
    ("program", "note"),
    [
        ("import time; time.sleep(600)", "gave no answer within 0.5 s"),
        ("import sys; sys.exit('out of luck')", "ended with code 1: out of luck"),
        ("print('hello')", "said 'hello'"),
    ],
)
def test_a_process_that_does_not_answer_is_given_up(
    artifacts: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    started: list[int],
    program: str,
    note: str,
) -> None:
    odd = tmp_path / "odd.py"
    odd.write_text(program)
    monkeypatch.setattr(process, "WORKER", odd)
    settings = BenchmarkSettings(runs=10, timeout=0.5 if "sleep" in program else 30)
    results = benchmark_local([("a", artifacts["a.tflite"])], 1, settings)
    assert note in results["a"].notes[0]
    assert all(map(_has_ended, started))


def test_an_interruption_leaves_nothing_running(
    artifacts: dict[str, Path], monkeypatch: pytest.MonkeyPatch, started: list[int]
) -> None:
    def interrupted(self: WorkerProcess, count: int) -> list[float]:
        raise KeyboardInterrupt

    monkeypatch.setattr(WorkerProcess, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        benchmark_local(list(artifacts.items()), 1, QUICK)
    assert len(started) == len(artifacts)
    assert all(map(_has_ended, started))


def test_a_worker_does_not_outlive_its_owner(artifacts: dict[str, Path]) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from edge_resnet.benchmark.process import WorkerProcess, worker_command\n"
        "worker = WorkerProcess(worker_command(Path(sys.argv[1]), 'onnxruntime', 1), 'x', 60)\n"
        "print(worker.pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    command = [sys.executable, "-c", code, str(artifacts["b.onnx"])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr
    deadline = time.monotonic() + 30
    while not _has_ended(int(done.stdout)):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_command_that_is_not_there() -> None:
    with pytest.raises(MissingToolError, match="cannot start"):
        WorkerProcess(["no-such-program-here"], "x", 1)


@pytest.mark.parametrize("kind", [onnx.TensorProto.UINT8, onnx.TensorProto.INT8, onnx.TensorProto.FLOAT])
def test_a_symbolic_batch_is_one_image(tmp_path: Path, kind: int) -> None:
    model = _onnx_model(tmp_path / "m.onnx", kind, ["N", 3, 4, 4])
    with WorkerProcess(worker_command(model, "onnxruntime", 1), model.name, 60) as worker:
        assert len(worker.run(3)) == 3
        assert worker.start.rss_before_bytes <= worker.peak_memory_bytes
        assert worker.start.cold_start_ms > 0 < worker.start.import_ms


def test_an_input_of_another_type_is_named(tmp_path: Path) -> None:
    model = _onnx_model(tmp_path / "m.onnx", onnx.TensorProto.DOUBLE, [1, 3])
    with pytest.raises(MissingToolError, match=r"m\.onnx: ValueError: input 'x' is a tensor\(double\)"):
        WorkerProcess(worker_command(model, "onnxruntime", 1), model.name, 60)


def test_the_first_inferences_of_a_turn_are_not_counted(
    artifacts: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that had to wait is slow at first; that is this benchmark's doing, not the artifact's."""
    monkeypatch.setattr(WorkerProcess, "run", lambda self, count: [100.0, 50.0] + [1.0] * (count - 2))
    result = benchmark_local([("a", artifacts["a.tflite"])], 1, BenchmarkSettings(runs=25))["a"]
    assert result.runs == 25
    assert result.latency_ms == {"mean": 1.0, "p50": 1.0, "p95": 1.0, "p99": 1.0}


@pytest.mark.parametrize(
    ("latencies", "load", "threads", "words"),
    [
        ([1.0] * 8 + [9.0] * 2, 0.1, 1, "p95 is 800% above the median"),
        ([1.0] * 10, 1.5, 1, "load was 1.5 for each core"),
        ([1.0] * 10, None, 10_000, "10000 threads shared"),
        ([1.0] * 10, 0.9, 1, None),
    ],
)
def test_noise_is_said(latencies: list[float], load: float | None, threads: int, words: str | None) -> None:
    notes = list(noise(latency_summary(latencies), threads, 4, {"load_per_core": load}))
    assert notes == [] if words is None else words in notes[0]


def test_the_worker_is_a_program_of_its_own(artifacts: dict[str, Path], tmp_path: Path) -> None:
    worker = tmp_path / "worker.py"
    worker.write_bytes(process.WORKER.read_bytes())
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


def test_the_paired_interval_against_a_published_value() -> None:
    # Cavo et al. 2012, 59, 6, 16, 80: M. Fagerland, S. Lydersen and P. Laake, "Statistical Analysis of
    # Contingency Tables", 2017, chapter 8, and the R package contingencytables.
    base = np.repeat([True, False, True, False], (59, 6, 16, 80))
    new = np.repeat([True, True, False, False], (59, 6, 16, 80))
    assert paired_difference(base, new) == pytest.approx((-0.0621, -0.1182, -0.0045), abs=5e-5)
    assert paired_difference(base.astype(int), new.astype(int)) == paired_difference(base, new)


@pytest.mark.parametrize("n", [1, 2, 10, 1000])
def test_the_paired_interval_holds_its_difference_at_the_edges(n: int) -> None:
    for base, new, delta in ((np.zeros(n), np.ones(n), 1), (np.ones(n), np.zeros(n), -1)):
        got, low, high = paired_difference(base, new)
        assert got == delta
        assert -1 <= low <= got <= high <= 1


def test_wilson_covers() -> None:
    """Exactly, by adding up the binomial: about 95 % on average over shares from 0.02 to 0.98."""
    n, shares = 100, np.linspace(0.02, 0.98, 97)
    intervals = np.array([wilson_interval(correct, n) for correct in range(n + 1)])  # [n + 1, 2]
    held = (intervals[:, :1] <= shares) & (shares <= intervals[:, 1:])  # [n + 1, shares]
    k = np.arange(n + 1)[:, None]
    ways = np.array([[math.comb(n, correct)] for correct in range(n + 1)], np.float64)
    coverage = (ways * shares**k * (1 - shares) ** (n - k) * held).sum(0)
    assert 0.94 < coverage.mean() < 0.96
    assert coverage.min() > 0.88


def test_latency_summary() -> None:
    summary = latency_summary(list(range(1, 101)))
    assert summary["p50"] == 50.5
    assert summary["mean"] == 50.5
    assert summary["p95"] < summary["p99"] < 100
    assert tail(summary) == pytest.approx((summary["p95"] - 50.5) / 50.5)
    assert spread([5, 1, 3, 2, 4]) == {"median": 3.0, "p10": 1.4, "p90": 4.6, "rounds": 5}


def test_functions_take_turns() -> None:
    calls: list[str] = []
    functions: dict[str, Callable[[], None]] = {name: lambda name=name: calls.append(name) for name in "AB"}
    samples = interleaved(functions, rounds=3, warmup=2)
    assert "".join(calls) == "AB" * 5
    assert {name: len(values) for name, values in samples.items()} == {"A": 3, "B": 3}
    assert min(samples["A"] + samples["B"]) >= 0


def test_warm_up_ends_when_steady() -> None:
    blocks = iter([[9.0], [5.0], [3.0], [3.1], [3.0]])
    assert warm_up(lambda: next(blocks), most=10, steady=0.05) == 4
    falling = iter([[2.0**-power] for power in range(20)])
    assert warm_up(lambda: next(falling), most=6, steady=0.05) == 6
    assert warm_up(list, most=6, steady=0.05) == 1
