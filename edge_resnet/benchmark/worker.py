"""Time one artifact in a process of its own, told what to do by JSON lines on standard input.

    python worker.py ARTIFACT --runtime litert|onnxruntime --threads N

A program, not a module of the package: it needs the standard library, numpy and one runtime, so that it can
run on a board that has nothing else. It answers in JSON lines:

    at start        {"version", "import_ms", "cold_start_ms", "rss_before_bytes", "peak_memory_bytes"}
    {"run": n}      {"latency_ns": [n numbers], "peak_memory_bytes"}
    {"quit": true}  ends, as the end of standard input does
    an error        {"error": "..."} and exit code 3

Cold start is loading the model and its first inference in a new process, after the runtime was imported (the
file itself may be in the system's cache). `rss_before_bytes` is this process's memory just before that. A
latency is one inference with its input copied in and its output copied out. The input is pseudo-random, the
same in every process.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

import numpy as np

Infer = Callable[[], None]

_SEED = 0


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("artifact")
    parser.add_argument("--runtime", required=True, choices=sorted(_RUNTIMES))
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    answers = _take_standard_output()
    try:
        infer = _start(answers, options.artifact, options.runtime, options.threads)
        for line in sys.stdin:
            command = json.loads(line)
            if command.get("quit"):
                break
            latencies = _timed(infer, int(command["run"]))
            _answer(answers, latency_ns=latencies, peak_memory_bytes=_peak_memory())
    except Exception as error:  # whatever a runtime raises must reach the other side as a line
        _answer(answers, error=f"{type(error).__name__}: {' '.join(str(error).split())}")
        return 3
    return 0


def _take_standard_output() -> TextIO:
    """Keep standard output for the answers: what a runtime's native code prints goes to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


def _start(answers: TextIO, artifact: str, runtime: str, threads: int) -> Infer:
    begun = time.perf_counter_ns()
    version, load = _RUNTIMES[runtime]()
    imported = time.perf_counter_ns()
    before = _resident()
    loading = time.perf_counter_ns()
    infer = load(artifact, threads)
    infer()
    cold = time.perf_counter_ns()
    _answer(
        answers,
        version=version,
        import_ms=(imported - begun) / 1e6,
        cold_start_ms=(cold - loading) / 1e6,
        rss_before_bytes=before,
        peak_memory_bytes=_peak_memory(),
    )
    return infer


def _timed(infer: Infer, runs: int) -> list[int]:
    latencies = []
    for _ in range(runs):
        begun = time.perf_counter_ns()
        infer()
        latencies.append(time.perf_counter_ns() - begun)
    return latencies


def _litert() -> tuple[str, Callable[[str, int], Infer]]:
    from importlib.metadata import version

    from ai_edge_litert.interpreter import Interpreter

    def load(artifact: str, threads: int) -> Infer:
        interpreter = Interpreter(model_path=artifact, num_threads=threads)
        interpreter.allocate_tensors()
        source, output = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
        image = _image(source["shape"], np.dtype(source["dtype"]))

        def infer() -> None:
            interpreter.set_tensor(source["index"], image)
            interpreter.invoke()
            interpreter.get_tensor(output["index"])

        return infer

    return version("ai-edge-litert"), load


def _onnxruntime() -> tuple[str, Callable[[str, int], Infer]]:
    import onnxruntime

    types = {"tensor(uint8)": np.uint8, "tensor(int8)": np.int8, "tensor(float)": np.float32}

    def load(artifact: str, threads: int) -> Infer:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(artifact, options, providers=["CPUExecutionProvider"])
        source = session.get_inputs()[0]
        shape = [size if isinstance(size, int) else 1 for size in source.shape]  # a symbolic batch is 1
        if source.type not in types:
            raise ValueError(f"input {source.name!r} is a {source.type}, not one of {', '.join(types)}")
        image = _image(shape, np.dtype(types[source.type]))

        def infer() -> None:
            session.run(None, {source.name: image})

        return infer

    return str(onnxruntime.__version__), load


_RUNTIMES: dict[str, Callable[[], tuple[str, Callable[[str, int], Infer]]]] = {
    "litert": _litert,
    "onnxruntime": _onnxruntime,
}


def _image(shape: Any, dtype: np.dtype[Any]) -> np.ndarray[Any, np.dtype[Any]]:
    pixels = np.random.default_rng(_SEED).integers(0, 256, shape)
    image: np.ndarray[Any, np.dtype[Any]] = (pixels - 128 if dtype == np.int8 else pixels).astype(dtype)
    return image


def _resident() -> int:
    """Resident memory now; where the system does not tell, the peak so far."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:
        return _peak_memory()


def _peak_memory() -> int:
    """Largest resident memory of this process so far, in bytes."""
    try:
        # Not ru_maxrss: on Linux a new process starts with its parent's peak in it.
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("VmHWM:")) * 1024
    except (OSError, StopIteration):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, others KiB


def _answer(answers: TextIO, **values: Any) -> None:
    print(json.dumps(values), file=answers, flush=True)


if __name__ == "__main__":
    sys.exit(main())
