"""Is our clock right? Beside the runtimes' own, and beside a bare loop.

    python -m benchmarks.timing [--rounds N]

* LiteRT's own tool is `ai_edge_litert.tools.benchmark_litert_model`, which comes with its wheel; ONNX
  Runtime's is its profiler (`enable_profiling`), whose `model_run` events are read. Each round takes one
  process of ours and one of theirs, one after the other; the first changes from round to round. What is
  compared are the medians, as the ratio within a round.
* What the runner adds: its times, one inference each, beside the same calls in a loop that is timed as a
  whole, in turns in one process.

The runtimes' tools time something a little different: LiteRT's copies neither input nor output, ONNX
Runtime's profiler leaves out the call from Python, and writes an event for each operator meanwhile (so it is
slower than what it profiles; `--rounds` cannot cure that). One thread.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import record
from benchmarks.models import SEED, blurred_noise, integers, settled_graph
from edge_resnet.benchmark import worker
from edge_resnet.benchmark.process import WorkerProcess, worker_command
from edge_resnet.benchmark.timing import spread
from edge_resnet.cpu import this_cpu
from edge_resnet.frontends.sources import open_model, resolve_preprocess
from edge_resnet.recipe import Export
from edge_resnet.targets import TARGETS

# Inferences in each round. No smaller files: LiteRT's tool rounds its median to 0.01 ms, and ONNX Runtime's
# profiler writes an event for each operator, a microsecond or two, while it is timing.
FILES = {
    ("resnet110", "tflite-int8"): 100,
    ("torchvision:resnet18", "tflite-int8"): 40,
    ("torchvision:resnet18", "onnx-int8"): 40,
    ("torchvision:resnet50", "onnx-int8"): 20,
}
SMALL = "resnet20"
WARMUP = 20
AGREEMENT = 0.05
OVERHEAD = 0.01
TIMEOUT = 300.0


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    before = os.getloadavg()[0]
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for (model, target), runs in FILES.items():
            path = _written(model, target, folder)
            print(path.name, file=sys.stderr)
            rows[path.name] = compared(path, TOOLS[target], runs, options.rounds)
        overhead = runner_overhead(_written(SMALL, "tflite-int8", folder), 100 * options.rounds)
    load = [round(before, 2), round(os.getloadavg()[0], 2)]
    worst = max(abs(row["ours_to_theirs"]["median"] - 1) for row in rows.values())
    figures: list[dict[str, Any]] = [
        {"what": "our median against the runtime's own tool", "value": round(worst, 4), "limit": AGREEMENT},
        {"what": "what the runner adds", "value": overhead["added"], "limit": OVERHEAD},
    ]
    # Two processes one after the other see different machines then: neither met nor missed.
    noisy = max(load) > this_cpu().cores
    for figure in figures:
        figure["met"] = None if noisy else figure["value"] <= figure["limit"]
    said = {"seed": SEED, "load_before_and_after": load, "noisy": noisy, "files": rows, "runner": overhead}
    record.save("timing", {**said, "figures": figures})


def _written(model: str, target: str, folder: Path) -> Path:
    opened: Any = open_model(model, None, None, SEED)
    preprocess = resolve_preprocess(opened.preprocess_defaults, {})
    graph = settled_graph(opened.module, opened.name, preprocess)
    path = TARGETS[target].path(folder, graph.name)
    TARGETS[target].write(integers(graph, blurred_noise(8, preprocess.size[0])), path, Export())
    return path


def compared(
    path: Path, theirs: Callable[[Path, int], list[float] | float], runs: int, rounds: int
) -> dict[str, Any]:
    """Medians in milliseconds, ours and the runtime's own, and their ratio, over rounds."""
    sides: Mapping[str, Callable[[], float]] = {
        "ours": lambda: ours(path, runs),
        "theirs": lambda: float(np.median(theirs(path, runs))),
    }
    samples: dict[str, list[float]] = {side: [] for side in sides}
    for turn in range(rounds):
        for side in sorted(sides, reverse=bool(turn % 2)):
            samples[side].append(sides[side]())
    ratios = [a / b for a, b in zip(samples["ours"], samples["theirs"], strict=True)]
    said = {f"{side}_ms": values for side, values in samples.items()} | {"ours_to_theirs": ratios}
    return {"tool": theirs.__name__, "runs": runs} | {key: _rounded(values) for key, values in said.items()}


def ours(path: Path, runs: int) -> float:
    runtime = "litert" if path.suffix == ".tflite" else "onnxruntime"
    with WorkerProcess(worker_command(path, runtime, 1), path.name, TIMEOUT) as process:
        process.run(WARMUP)
        return float(np.median(process.run(runs)))


def litert_tool(path: Path, runs: int) -> float:
    """The median that LiteRT's own benchmark says."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        tool = [sys.executable, "-m", "ai_edge_litert.tools.benchmark_litert_model", f"--model={path}"]
        options = [f"--num_runs={runs}", f"--warmup_runs={WARMUP}", "--num_threads=1"]
        done = subprocess.run(
            [*tool, *options, f"--result_json={result}"],
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT,
        )
        if not result.exists():
            sys.exit(f"benchmark_litert_model: {(done.stderr.strip().splitlines() or ['no word'])[-1]}")
        return float(json.loads(result.read_text())["latency"]["median_ms"])


_PROFILED = """
import sys, numpy as np, onnxruntime as ort
path, prefix, warmup, runs = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
options = ort.SessionOptions()
options.intra_op_num_threads = 1
options.enable_profiling = True
options.profile_file_prefix = prefix
session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
source = session.get_inputs()[0]
image = np.random.default_rng(0).integers(0, 256, [1, *source.shape[1:]]).astype(np.uint8)
for _ in range(warmup + runs):
    session.run(None, {source.name: image})
print(session.end_profiling())
"""


def onnx_profiler(path: Path, runs: int) -> list[float]:
    """Milliseconds of ONNX Runtime's `model_run` events."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", _PROFILED, path, Path(folder) / "profile", str(WARMUP), str(runs)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=TIMEOUT)
        events = json.loads(Path(done.stdout.strip().splitlines()[-1]).read_text())
    times = [event["dur"] / 1000 for event in events if event.get("name") == "model_run"]
    return times[-runs:]


TOOLS: dict[str, Callable[[Path, int], list[float] | float]] = {
    "tflite-int8": litert_tool,
    "onnx-int8": onnx_profiler,
}


def runner_overhead(path: Path, rounds: int, calls: int = 20) -> dict[str, Any]:
    """The runner's times, added up, against the same calls in a bare loop timed as a whole, in turns.

    So few calls that most turns end before the system gives the core to another program.
    """
    from ai_edge_litert.interpreter import Interpreter

    model = worker._LiteRT(Interpreter, str(path), 1)
    infer = model.runner(1)
    worker._timed(infer, WARMUP)
    samples: dict[str, list[float]] = {"runner": [], "bare": []}
    for turn in range(rounds):
        for side in sorted(samples, reverse=bool(turn % 2)):
            if side == "runner":
                samples[side].append(float(np.mean(worker._timed(infer, calls))) / 1e6)
            else:
                samples[side].append(_bare(model._one, calls))
    # Of the medians, not of the pairs: another program may have the core in one of a pair.
    added, least = (
        float(np.percentile(samples["runner"], q) / np.percentile(samples["bare"], q)) - 1 for q in (50, 10)
    )
    return {
        "file": path.name,
        "calls": calls,
        "runner_ms": _rounded(samples["runner"]),
        "bare_ms": _rounded(samples["bare"]),
        "added": round(added, 5),
        "added_p10": round(least, 5),  # of the undisturbed turns, on a busy machine
    }


def _bare(interpreter: Any, calls: int) -> float:
    """Milliseconds of a call of set_tensor, invoke and get_tensor, in a loop that is timed as a whole."""
    source, output = interpreter.get_input_details()[0], interpreter.get_output_details()[0]["index"]
    image = np.random.default_rng(SEED).integers(0, 256, source["shape"]).astype(source["dtype"])
    source = source["index"]
    begun = time.perf_counter_ns()
    for _ in range(calls):
        interpreter.set_tensor(source, image)
        interpreter.invoke()
        interpreter.get_tensor(output)
    return (time.perf_counter_ns() - begun) / calls / 1e6


def _rounded(values: list[float]) -> dict[str, float]:
    return {key: round(value, 5) for key, value in spread(values).items()}


if __name__ == "__main__":
    main()
