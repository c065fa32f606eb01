"""Each peer's whole way from the torch module to its int8 file, phase by phase, in a process of its own.

The phases, where a peer has them:

    libraries   importing what it needs
    load        the float model, from disk into memory (not counted as export)
    convert     from there to the form that it quantizes, or from the quantized model to its file
    quantize    calibration and quantization
    write       the file, where that is a step of its own
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.phases import Phases
from benchmarks.peers.torch_model import load

__all__ = ["EXPORTS", "Exporter"]


@dataclass(frozen=True)
class Exporter:
    """`packages`: whose versions are written down. `export(folder, phases)` writes `file` there."""

    format: str
    setting: str
    packages: tuple[str, ...]
    file: str
    export: Callable[[Path, Phases, Path], None]


def _calibration(folder: Path) -> np.ndarray:
    images: np.ndarray = np.load(folder / "calibration.npy")  # normalized, float32 [N, 3, H, W]
    return images


def _litert_torch(folder: Path, phases: Phases, path: Path) -> None:
    with phases("libraries"):
        import litert_torch
        import torch
        from ai_edge_quantizer import quantizer, recipe
    with phases("load"):
        module, images = load(folder), _calibration(folder)
    floating = path.with_name(f"{path.stem}-float.tflite")
    with phases("convert"):
        images = np.ascontiguousarray(images.transpose(0, 2, 3, 1))
        module = litert_torch.to_channel_last_io(module, args=[0])
        litert_torch.convert(module, (torch.from_numpy(images[:1]),)).export(str(floating))
    with phases("quantize"):
        tool = quantizer.Quantizer(str(floating))
        tool.load_quantization_recipe(recipe.static_wi8_ai8())
        data = [{"args_0": image[None]} for image in images]
        quantized = tool.quantize(tool.calibrate({"serving_default": data}, num_threads=1))
    with phases("write"):
        quantized.export_model(str(path), overwrite=True)


def _tensorflow(folder: Path, phases: Phases, path: Path) -> None:
    with phases("libraries"):
        import tensorflow as tf
    with phases("load"):
        model = tf.keras.models.load_model(folder / "model.keras")
        images = _calibration(folder).transpose(0, 2, 3, 1)
    spans: list[float] = []

    def representative() -> Iterator[list[np.ndarray]]:
        begun = time.perf_counter()
        for image in images:
            yield [np.ascontiguousarray(image[None])]
        spans.append(time.perf_counter() - begun)

    with phases("convert"):
        converter = tf.lite.TFLiteConverter.from_keras_model(model)
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = representative
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = tf.int8
        content = converter.convert()
    # The calibration runs inside convert(), and can be told from the rest; the quantization cannot.
    phases.move("convert", "quantize", sum(spans))
    with phases("write"):
        path.write_bytes(content)


def _torch_onnx(module: Any, image: np.ndarray, path: Path) -> Path:
    """By the exporter that leaves the fewest operators behind, TorchScript's; the batch is free."""
    import torch

    exported = path.with_name(f"{path.stem}-float.onnx")
    torch.onnx.export(
        module,
        (torch.from_numpy(image),),
        str(exported),
        dynamo=False,
        input_names=["image"],
        output_names=["logits"],
        dynamic_axes={"image": {0: "n"}},
    )
    return exported


def _quantize_static(activations: str) -> Callable[[Path, Phases, Path], None]:
    def export(folder: Path, phases: Phases, path: Path) -> None:
        with phases("libraries"):
            import onnxruntime.quantization as ort
            import torch  # noqa: F401
            from onnxruntime.quantization.shape_inference import quant_pre_process

        class Reader(ort.CalibrationDataReader):  # type: ignore[misc]
            def __init__(self, images: np.ndarray) -> None:
                self.batches = iter(np.array_split(images, -(-len(images) // 32)))

            def get_next(self) -> dict[str, np.ndarray] | None:
                batch = next(self.batches, None)
                return None if batch is None else {"image": batch}

        with phases("load"):
            module, images = load(folder), _calibration(folder)
        with phases("convert"):
            prepared = path.with_name(f"{path.stem}-prepared.onnx")
            quant_pre_process(_torch_onnx(module, images[:1], path), prepared)
        with phases("quantize"):
            ort.quantize_static(
                prepared,
                path,
                Reader(images),
                quant_format=ort.QuantFormat.QDQ,
                per_channel=True,
                activation_type=ort.QuantType[activations],
                weight_type=ort.QuantType.QInt8,
            )

    return export


def _nncf(folder: Path, phases: Phases, path: Path) -> None:
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # nothing is sent
    with phases("libraries"):
        import nncf
        import onnx
        import torch  # noqa: F401

        nncf.set_log_level(logging.ERROR)
    with phases("load"):
        module, images = load(folder), _calibration(folder)
    with phases("convert"):
        model = onnx.load(str(_torch_onnx(module, images[:1], path)))
    with phases("quantize"):
        data = nncf.Dataset([{"image": image[None]} for image in images])
        quantized = nncf.quantize(model, data, subset_size=len(images))
    with phases("write"):
        onnx.save(quantized, str(path))


def _coremltools(folder: Path, phases: Phases, path: Path) -> None:
    """LinearQuantizer: coremltools' own activation quantization of a finished model needs a Mac to calibrate.

    The normalization of the image stands in front of the network, so that the package takes pixels, 0 to 255.
    """
    with phases("libraries"):
        import coremltools as ct
        import torch
        from coremltools.optimize.torch.quantization import LinearQuantizer, LinearQuantizerConfig
    with phases("load"):
        module, images = load(folder), torch.from_numpy(_calibration(folder))
        about = json.loads((folder / "model.json").read_text())
    with phases("quantize"):
        # Observers and rounding from the first step on, batch normalization's statistics as they are.
        options = {"quantization_scheme": "symmetric", "milestones": [0, 10**6, 10**6, 0]}
        tool = LinearQuantizer(module, LinearQuantizerConfig.from_dict({"global_config": options}))
        prepared = tool.prepare(example_inputs=(images[:1],), inplace=False)
        tool.step()
        with torch.no_grad():
            for batch in images.split(32):
                prepared(batch)
        prepared.eval()  # or batch normalization is not what it was
        quantized = tool.finalize().eval()
    with phases("convert"):
        mean, std = (255 * torch.tensor(about[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
        whole = torch.nn.Sequential(_normalize(mean, std), quantized).eval()
        pixels = 255 * torch.rand(images[:1].shape)
        converted = ct.convert(
            torch.jit.trace(whole, (pixels,)),
            inputs=[ct.ImageType(name="image", shape=tuple(pixels.shape))],
            outputs=[ct.TensorType(name="logits")],
            minimum_deployment_target=ct.target.iOS17,
        )
    with phases("write"):
        converted.save(str(path))


def _normalize(mean: Any, std: Any) -> Any:
    import torch

    class Normalize(torch.nn.Module):
        def forward(self, pixels: Any) -> Any:
            return (pixels - mean) / std

    return Normalize()


EXPORTS = {
    "litert-torch": Exporter(
        "tflite",
        "litert-torch, channels last, then ai-edge-quantizer's static_wi8_ai8",
        ("litert-torch", "ai-edge-quantizer", "torch"),
        "litert-torch.tflite",
        _litert_torch,
    ),
    "tensorflow": Exporter(
        "tflite",
        "TFLiteConverter from the same network in Keras, full integers, int8 in and out",
        ("tensorflow", "keras"),
        "tensorflow.tflite",
        _tensorflow,
    ),
    "onnxruntime U8S8": Exporter(
        "onnx",
        "quantize_static, QDQ, MinMax, uint8 activations, int8 weights per channel",
        ("onnxruntime", "onnx", "torch"),
        "onnxruntime-u8s8.onnx",
        _quantize_static("QUInt8"),
    ),
    "onnxruntime S8S8": Exporter(
        "onnx",
        "quantize_static, QDQ, MinMax, int8 activations, int8 weights per channel",
        ("onnxruntime", "onnx", "torch"),
        "onnxruntime-s8s8.onnx",
        _quantize_static("QInt8"),
    ),
    "nncf": Exporter(
        "onnx",
        "nncf.quantize on ONNX, preset performance, fast bias correction",
        ("nncf", "onnx", "torch"),
        "nncf.onnx",
        _nncf,
    ),
    "coremltools": Exporter(
        "coreml",
        "LinearQuantizer (torch), W8A8, symmetric, iOS 17",
        ("coremltools", "torch"),
        "coremltools.mlpackage",
        _coremltools,
    ),
}
