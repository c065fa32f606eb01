"""Time one artifact in a process of its own, told what to do by JSON lines on standard input.

    python worker.py ARTIFACT --runtime litert|onnxruntime --threads N

A program, not a module of the package: it needs the standard library, numpy and one runtime, so that it can
run on a board that has nothing else. It answers in JSON lines:

    at start                  {"version", "import_ms", "cold_start_ms", "rss_before_bytes"}
    {"run": n}                {"latency_ns": [n numbers], "energy_uj": of all of them or null}
    {"run": n, "batch": b}    the same for b images at once
    {"images": "x.npy", "first": i, "count": n}   {"logits": base64 of float32, "shape": [n, classes]}
    {"conditions": true}      {"conditions": {"mhz", "load_per_core", "celsius", "battery"}}, each may be null
    {"quit": true}            ends, as the end of standard input does
    an error                  {"error": "..."} and exit code 3

Every answer has "peak_memory_bytes".

Cold start is loading the model and its first inference in a new process, after the runtime was imported (the
file itself may be in the system's cache). `rss_before_bytes` is this process's memory just before that. A
latency is one inference with its input copied in and its output copied out. The input is pseudo-random, the
same in every process. The images of a file are raw RGB, uint8 [N, H, W, 3]. `energy_uj`: what the processor's
packages used meanwhile, all processes together (Linux's RAPL), else what the battery gave.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TextIO

import numpy as np

_SEED = 0
_RAPL = Path("/sys/class/powercap")
_CORES = Path("/sys/devices/system/cpu")
_THERMAL = Path("/sys/class/thermal")
_POWER = Path("/sys/class/power_supply")

Array = np.ndarray[Any, np.dtype[Any]]


class Model(Protocol):
    """A loaded artifact."""

    def runner(self, batch: int) -> Callable[[], None]:
        """What runs one inference of `batch` images, input copied in and output copied out."""
        ...

    def logits(self, pixels: Array) -> Array:
        """uint8 [N, H, W, 3] -> float32 [N, classes], image by image."""
        ...


def load(artifact: str, runtime: str, threads: int) -> tuple[str, Model]:
    """The runtime's version, and the artifact loaded by it."""
    version, loader = _RUNTIMES[runtime]()
    return version, loader(artifact, threads)


def main() -> int:
    # Read when ONNX Runtime is imported, which else keeps a database of its use in the user's cache folder.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    parser = argparse.ArgumentParser()
    parser.add_argument("artifact")
    parser.add_argument("--runtime", required=True, choices=sorted(_RUNTIMES))
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    answers = _take_standard_output()
    try:
        model, infer = _start(answers, options.artifact, options.runtime, options.threads)
        runners = {1: infer}
        for line in sys.stdin:
            command = json.loads(line)
            if command.get("quit"):
                break
            _answer(answers, **_obeyed(command, model, runners), peak_memory_bytes=_peak_memory())
    except Exception as error:  # whatever a runtime raises must reach the other side as a line
        _answer(answers, error=f"{type(error).__name__}: {' '.join(str(error).split())}")
        return 3
    return 0


def _obeyed(command: dict[str, Any], model: Model, runners: dict[int, Callable[[], None]]) -> dict[str, Any]:
    if "images" in command:
        first, count = int(command["first"]), int(command["count"])
        # Mapped: of a large file only the images in question are read.
        pixels = np.load(command["images"], mmap_mode="r")[first : first + count]
        logits = np.ascontiguousarray(model.logits(np.asarray(pixels)), np.float32)
        return {"logits": base64.b64encode(logits.tobytes()).decode(), "shape": logits.shape}
    if command.get("conditions"):
        return {"conditions": _conditions()}
    batch = int(command.get("batch", 1))
    if batch not in runners:
        runners[batch] = model.runner(batch)
        runners[batch]()
    before, begun = _energy_uj(), time.perf_counter()
    latencies = _timed(runners[batch], int(command["run"]))
    used = _used_uj(before, _energy_uj(), time.perf_counter() - begun)
    return {"latency_ns": latencies, "energy_uj": used}


def _take_standard_output() -> TextIO:
    """Keep standard output for the answers: what a runtime's native code prints goes to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


def _start(answers: TextIO, artifact: str, runtime: str, threads: int) -> tuple[Model, Callable[[], None]]:
    begun = time.perf_counter_ns()
    version, load = _RUNTIMES[runtime]()
    imported = time.perf_counter_ns()
    before = _resident()
    loading = time.perf_counter_ns()
    model = load(artifact, threads)
    infer = model.runner(1)
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
    return model, infer


def _timed(infer: Callable[[], None], runs: int) -> list[int]:
    latencies = []
    for _ in range(runs):
        begun = time.perf_counter_ns()
        infer()
        latencies.append(time.perf_counter_ns() - begun)
    return latencies


class _LiteRT:
    def __init__(self, interpreter: Any, artifact: str, threads: int) -> None:
        self._load: Callable[[], Any] = lambda: interpreter(model_path=artifact, num_threads=threads)
        self._one = self._load()
        self._one.allocate_tensors()
        self._source, self._output = self._one.get_input_details()[0], self._one.get_output_details()[0]

    def runner(self, batch: int) -> Callable[[], None]:
        interpreter, source, output = self._one, self._source["index"], self._output["index"]
        shape = [batch, *self._source["shape"][1:]]
        if batch != 1:
            interpreter = self._load()
            interpreter.resize_tensor_input(source, shape)
            interpreter.allocate_tensors()
        image = _image(shape, np.dtype(self._source["dtype"]))

        def infer() -> None:
            interpreter.set_tensor(source, image)
            interpreter.invoke()
            interpreter.get_tensor(output)

        return infer

    def logits(self, pixels: Array) -> Array:
        dtype = np.dtype(self._source["dtype"])
        images = (pixels.astype(np.int16) - 128 if dtype == np.int8 else pixels).astype(dtype)
        answers = []
        for image in images:  # one at a time, as an app does
            self._one.set_tensor(self._source["index"], image[None])
            self._one.invoke()
            answers.append(self._one.get_tensor(self._output["index"])[0])
        values = np.stack(answers)
        if values.dtype != np.float32:
            scale, zero = self._output["quantization"]
            values = (values.astype(np.float32) - np.float32(zero)) * np.float32(scale)
        return values


def _litert() -> tuple[str, Callable[[str, int], Model]]:
    from importlib.metadata import version

    from ai_edge_litert.interpreter import Interpreter

    return version("ai-edge-litert"), lambda artifact, threads: _LiteRT(Interpreter, artifact, threads)


class _OnnxRuntime:
    types = {"tensor(uint8)": np.uint8, "tensor(int8)": np.int8, "tensor(float)": np.float32}  # noqa: RUF012

    def __init__(self, onnxruntime: Any, artifact: str, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(artifact, options, providers=["CPUExecutionProvider"])
        self._source = self._session.get_inputs()[0]
        if self._source.type not in self.types:
            names = ", ".join(self.types)
            raise ValueError(f"input {self._source.name!r} is a {self._source.type}, not one of {names}")
        self._dtype = np.dtype(self.types[self._source.type])

    def runner(self, batch: int) -> Callable[[], None]:
        symbolic, *size = self._source.shape
        if isinstance(symbolic, int) and symbolic != batch:
            raise ValueError(f"the file takes {symbolic} images at once, not {batch}")
        shape = [batch, *(side if isinstance(side, int) else 1 for side in size)]
        image = _image(shape, self._dtype)
        session, name = self._session, self._source.name

        def infer() -> None:
            session.run(None, {name: image})

        return infer

    def logits(self, pixels: Array) -> Array:
        images = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)).astype(self._dtype)
        answers = [self._session.run(None, {self._source.name: image[None]})[0][0] for image in images]
        return np.stack(answers)


def _onnxruntime() -> tuple[str, Callable[[str, int], Model]]:
    import onnxruntime

    version = str(onnxruntime.__version__)
    return version, lambda artifact, threads: _OnnxRuntime(onnxruntime, artifact, threads)


_RUNTIMES: dict[str, Callable[[], tuple[str, Callable[[str, int], Model]]]] = {
    "litert": _litert,
    "onnxruntime": _onnxruntime,
}


def _image(shape: Any, dtype: np.dtype[Any]) -> Array:
    pixels = np.random.default_rng(_SEED).integers(0, 256, shape)
    image: Array = (pixels - 128 if dtype == np.int8 else pixels).astype(dtype)
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


def _number(path: Path) -> int | None:
    with contextlib.suppress(OSError, ValueError):
        return int(path.read_text())
    return None


def _energy_uj() -> int | None:
    """Microjoules of all processor packages so far, from some beginning."""
    found = [_number(folder / "energy_uj") for folder in sorted(_RAPL.glob("intel-rapl:?"))]
    known = [value for value in found if value is not None]
    return sum(known) if known else None


def _used_uj(before: int | None, after: int | None, seconds: float) -> float | None:
    """By the counter, else by the power that a battery gives now; a battery that is charged tells nothing."""
    if before is not None and after is not None:
        # The counter starts again from 0 now and then: such a turn has no energy.
        return after - before if after >= before else None
    for battery in _POWER.glob("BAT*"):
        with contextlib.suppress(OSError):
            microwatts = _number(battery / "power_now")
            if microwatts and (battery / "status").read_text().strip() == "Discharging":
                return microwatts * seconds
    return None


def _conditions() -> dict[str, Any]:
    """What latencies depend on beside the program."""
    clocks = [_number(path) for path in sorted(_CORES.glob("cpu[0-9]*/cpufreq/scaling_cur_freq"))]
    heat = [_number(path) for path in _THERMAL.glob("thermal_zone*/temp")]
    try:
        load: float | None = os.getloadavg()[0] / (os.cpu_count() or 1)
    except OSError:
        load = None
    states = []
    for path in _POWER.glob("BAT*/status"):
        with contextlib.suppress(OSError):
            states.append(path.read_text().strip())
    return {
        "mhz": [kilohertz // 1000 for kilohertz in clocks if kilohertz is not None] or None,
        "load_per_core": load,
        "celsius": max((value / 1000 for value in heat if value is not None), default=None),
        "battery": states[0] if states else None,
    }


def _answer(answers: TextIO, **values: Any) -> None:
    print(json.dumps(values), file=answers, flush=True)


if __name__ == "__main__":
    sys.exit(main())
