"""Open an artifact on its own runtime, on one thread, for one image at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["RUNTIMES", "Opened"]

# Compiled for this batch where the runtime compiles for one.
_ONE = 1


@dataclass(frozen=True)
class Opened:
    """A model that is ready to answer.

    `prepare` makes the runtime's input of normalized images, float32 [N, 3, H, W], or of raw pixels, uint8
    [N, H, W, 3], whichever it takes. `run` answers logits [N, classes]; only that is timed. `batch`: how many
    images at once.
    """

    prepare: Callable[[np.ndarray, np.ndarray], Any]
    run: Callable[[Any], np.ndarray]
    batch: int = _ONE


def _onnx_runtime(path: Path) -> Opened:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    image = session.get_inputs()[0]

    def prepare(images: np.ndarray, pixels: np.ndarray) -> np.ndarray:
        raw = image.type == "tensor(uint8)"
        return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)) if raw else images

    return Opened(prepare, lambda x: session.run(None, {image.name: x})[0])


def _litert(path: Path) -> Opened:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path), num_threads=1)
    interpreter.allocate_tensors()
    image, output = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    scale, zero = image["quantization"]

    def prepare(images: np.ndarray, pixels: np.ndarray) -> np.ndarray:
        if image["dtype"] == np.uint8:
            return pixels
        if image["shape"][-1] == 3:
            images = np.ascontiguousarray(images.transpose(0, 2, 3, 1))
        if image["dtype"] == np.int8:
            return np.clip(np.rint(images / scale) + zero, -128, 127).astype(np.int8)
        return images

    def run(x: np.ndarray) -> np.ndarray:
        interpreter.set_tensor(image["index"], x)
        interpreter.invoke()
        logits: np.ndarray = interpreter.get_tensor(output["index"])
        return logits

    return Opened(prepare, run)


def _openvino(path: Path) -> Opened:
    import openvino

    core = openvino.Core()
    model = core.read_model(str(path))
    model.reshape([_ONE, *list(model.input(0).partial_shape)[1:]])
    settings = {"INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY"}
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    return Opened(lambda images, pixels: images, lambda x: request.infer([x])[0].copy())


def _aotinductor(path: Path) -> Opened:
    import torch

    torch.set_num_threads(1)
    package = torch._inductor.aoti_load_package(str(path))
    return Opened(lambda images, pixels: torch.from_numpy(images), _without_gradients(package))


def _torch(path: Path) -> Opened:
    import torch

    torch.set_num_threads(1)
    module = torch.export.load(path).module()
    return Opened(lambda images, pixels: torch.from_numpy(images), _without_gradients(module), batch=100)


def _without_gradients(module: Callable[..., Any]) -> Callable[[Any], np.ndarray]:
    import torch

    def run(x: Any) -> np.ndarray:
        with torch.no_grad():
            logits: np.ndarray = module(x).numpy()
        return logits

    return run


RUNTIMES: dict[str, Callable[[Path], Opened]] = {
    "onnxruntime": _onnx_runtime,
    "litert": _litert,
    "openvino": _openvino,
    "aotinductor": _aotinductor,
    "torch": _torch,
}
