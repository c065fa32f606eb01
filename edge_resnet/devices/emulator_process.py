"""Run one artifact in an emulator, in a process of its own: native code that nobody here can repair.

    python emulator_process.py tflm ARTIFACT
    python emulator_process.py qnn ARTIFACT --architecture 73 --context OUT.onnx

It speaks as benchmark/worker.py does (whose other end, process.WorkerProcess, starts it too), but for times:
those of an emulator mean nothing. Beside `{"images": ...}` and `{"quit": ...}` it answers

    {"figures": true}    {"figures": {name: number}, "left_out": [nodes that are not on the NPU]}

`qnn` compiles the artifact, an ONNX file, to a context binary, which it writes to OUT.onnx. An artifact that
is one already is taken as it is (then neither option is needed), and OUT is not written.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import os
import re
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol, TextIO

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

_EP = "QNNExecutionProvider"
# A note of ours in context binaries: QNN runs one of another architecture without a word.
_MADE_FOR = "edge_resnet.htp_arch"
# TFLite Micro needs to be told how much memory it may take: more, until the model fits.
_FIRST_ARENA, _LARGEST_ARENA = 1 << 20, 1 << 31
_ARENA_TOO_SMALL = re.compile(r"Failed to (resize buffer|allocate)|not enough|missing: \d", re.IGNORECASE)
_ARENA = re.compile(r"Arena allocation (total|head|tail) (\d+) bytes")


class Emulator(Protocol):
    version: str
    figures: dict[str, float | int]
    left_out: list[str]

    def logits(self, pixels: Array) -> Array:
        """uint8 [N, H, W, 3] -> float32 [N, classes], image by image."""
        ...


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("emulator", choices=("tflm", "qnn"))
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--architecture")
    parser.add_argument("--context", type=Path)
    options = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what native code prints on standard output must not come between the answers
    try:
        begun = time.perf_counter()
        emulator: Emulator
        if options.emulator == "tflm":
            emulator = _TFLiteMicro(options.artifact)
        else:
            emulator = _Hexagon(options.artifact, options.architecture, options.context)
        took = 1000 * (time.perf_counter() - begun)
        _answer(answers, version=emulator.version, import_ms=0, cold_start_ms=took, rss_before_bytes=0)
        for line in sys.stdin:
            command = json.loads(line)
            if command.get("quit"):
                break
            _answer(answers, **_obeyed(command, emulator))
    except Exception as error:  # whatever a runtime raises must reach the other side as a line
        _answer(answers, error=f"{type(error).__name__}: {' '.join(str(error).split())}")
        return 3
    return 0


def _obeyed(command: dict[str, Any], emulator: Emulator) -> dict[str, Any]:
    if command.get("figures"):
        return {"figures": emulator.figures, "left_out": emulator.left_out}
    first, count = int(command["first"]), int(command["count"])
    pixels = np.load(command["images"], mmap_mode="r")[first : first + count]
    logits = np.ascontiguousarray(emulator.logits(np.asarray(pixels)), np.float32)
    return {"logits": base64.b64encode(logits.tobytes()).decode(), "shape": logits.shape}


def _answer(answers: TextIO, **values: Any) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"peak_memory_bytes": peak, **values}), file=answers, flush=True)


class _TFLiteMicro:
    """The interpreter for microcontrollers with its reference kernels, compiled for this machine."""

    def __init__(self, artifact: Path) -> None:
        from tflite_micro.python.tflite_micro import runtime

        self.version, self.left_out = version("tflite-micro"), list[str]()
        content = artifact.read_bytes()
        size = _FIRST_ARENA
        while True:
            with _complaints() as said:
                try:
                    self._interpreter = runtime.Interpreter.from_bytes(content, arena_size=size)
                    break
                except RuntimeError as error:
                    reason = str(error)
            if size < _LARGEST_ARENA and any(map(_ARENA_TOO_SMALL.search, said)):
                size *= 2
                continue
            raise RuntimeError("; ".join([reason, *said]))
        self._source = self._interpreter.get_input_details(0)
        shape = self._source["shape"]
        self._invoke(np.zeros(shape, self._source["dtype"]))
        with _complaints() as said:
            self._interpreter.print_allocations()
        found = {part: int(count) for part, count in _ARENA.findall("\n".join(said))}
        # Persistent: tables that live as long as the interpreter; scratch: tensors, which share their places.
        names = {"total": "arena_bytes", "head": "arena_scratch_bytes", "tail": "arena_persistent_bytes"}
        self.figures: dict[str, float | int] = {names[part]: count for part, count in found.items()}

    def logits(self, pixels: Array) -> Array:
        dtype = np.dtype(self._source["dtype"])
        images = (pixels.astype(np.int16) - 128 if dtype == np.int8 else pixels).astype(dtype)
        values = np.stack([self._invoke(image[None])[0] for image in images])
        if values.dtype != np.float32:
            output = self._interpreter.get_output_details(0)["quantization_parameters"]
            scale, zero = output["scales"][0], output["zero_points"][0]
            values = (values.astype(np.float32) - np.float32(zero)) * np.float32(scale)
        return values

    def _invoke(self, image: Array) -> Array:
        with _complaints() as said:
            try:
                self._interpreter.set_input(image, 0)
                self._interpreter.invoke()
                answer: Array = self._interpreter.get_output(0)
                return answer
            except RuntimeError as error:
                reason = str(error)
        raise RuntimeError("; ".join([reason, *said]))


@contextlib.contextmanager
def _complaints() -> Iterator[list[str]]:
    """The lines that native code prints on standard error meanwhile: the reasons for what it then raises."""
    lines: list[str] = []
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield lines
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            text = file.read().decode("utf-8", "replace")
            lines += [line.strip() for line in text.splitlines() if line.strip(" \0")]


class _Hexagon:
    """Qualcomm's compiler and the emulator of its tensor processor (HTP), behind ONNX Runtime."""

    types = {"tensor(uint8)": np.uint8, "tensor(int8)": np.int8, "tensor(float)": np.float32}  # noqa: RUF012

    def __init__(self, artifact: Path, architecture: str | None, context: Path | None) -> None:
        import onnx
        import onnxruntime
        import onnxruntime_qnn

        self.version = f"{onnxruntime_qnn.__version__} (ONNX Runtime {onnxruntime.__version__})"
        onnxruntime.register_execution_provider_library(_EP, onnxruntime_qnn.get_library_path())
        self._runtime = onnxruntime
        self._backend = onnxruntime_qnn.get_qnn_htp_path()
        model = onnx.load(str(artifact))
        compiled = any(node.op_type == "EPContext" for node in model.graph.node)
        made_for = next((entry.value for entry in model.metadata_props if entry.key == _MADE_FOR), None)
        if compiled and None not in (made_for, architecture) and made_for != architecture:
            raise ValueError(f"compiled for architecture {made_for}, not {architecture}")
        self._architecture = architecture or made_for
        if self._architecture is None or (context is None and not compiled):
            raise ValueError("--architecture and --context are needed")
        if not compiled:
            _take_one_image(model)
        begun = time.perf_counter()
        try:
            self._session = self._compiled(model.SerializeToString(), None if compiled else context)
        except Exception as error:
            if not compiled and all(node.op_type != "QuantizeLinear" for node in model.graph.node):
                raise ValueError(f"a float model, which the compiler refuses: {error}") from error
            raise
        seconds = time.perf_counter() - begun
        nodes = [
            (assigned.ep_name, node)
            for assigned in self._session.get_provider_graph_assignment_info()
            for node in assigned.get_nodes()
        ]
        self.left_out = [f"{node.op_type} {node.name!r}" for owner, node in nodes if owner != _EP]
        binary = model
        if not compiled and context is not None:
            binary = onnx.load(str(context))
            binary.metadata_props.add(key=_MADE_FOR, value=self._architecture)
            context.write_bytes(binary.SerializeToString(deterministic=True))
        self.figures: dict[str, float | int] = {"context_bytes": _context_bytes(binary)}
        if not compiled:
            self.figures |= {
                "npu_nodes": len(nodes) - len(self.left_out),
                "cpu_nodes": len(self.left_out),
                "compile_seconds": seconds,
            }
        self._source = self._session.get_inputs()[0]
        if self._source.type not in self.types:
            raise ValueError(f"input {self._source.name!r} is a {self._source.type}")

    def _compiled(self, model: bytes, context: Path | None) -> Any:
        """The session: every node on the NPU, or, where that cannot be, as many as possible."""
        try:
            return self._load(model, context, alone=True)
        except Exception as error:
            if "fallback to CPU EP has been explicitly disabled" not in str(error):
                raise
        return self._load(model, context, alone=False)

    def _load(self, model: bytes, context: Path | None, alone: bool) -> Any:
        options = self._runtime.SessionOptions()
        options.log_severity_level = 3
        devices = [device for device in self._runtime.get_ep_devices() if device.ep_name == _EP]
        settings = {
            "backend_path": self._backend,
            "htp_arch": self._architecture,
            # The ends' conversions are the NPU's work too, or the last layer stays in float.
            "offload_graph_io_quantization": "0",
        }
        options.add_provider_for_devices(devices, settings)
        entries = {
            "session.disable_cpu_ep_fallback": str(int(alone)),
            "session.record_ep_graph_assignment_info": "1",
        }
        if context is not None:
            context.unlink(missing_ok=True)  # ONNX Runtime does not overwrite one
            entries |= {
                "ep.context_enable": "1",
                "ep.context_file_path": str(context),
                "ep.context_embed_mode": "1",
            }
        for key, value in entries.items():
            options.add_session_config_entry(key, value)
        return self._runtime.InferenceSession(model, options)

    def logits(self, pixels: Array) -> Array:
        dtype = np.dtype(self.types[self._source.type])
        images = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)).astype(dtype)
        answers = [self._session.run(None, {self._source.name: image[None]})[0][0] for image in images]
        return np.stack(answers)


def _take_one_image(model: Any) -> None:
    """The NPU's compiler wants to know every size: a symbolic batch becomes 1."""
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        sizes = value.type.tensor_type.shape.dim
        if sizes and sizes[0].HasField("dim_param"):
            sizes[0].dim_value = 1


def _context_bytes(model: Any) -> int:
    contexts = (node for node in model.graph.node if node.op_type == "EPContext")
    return sum(len(part.s) for node in contexts for part in node.attribute if part.name == "ep_cache_context")


if __name__ == "__main__":
    sys.exit(main())
