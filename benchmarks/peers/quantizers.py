"""Each peer quantizes the float model of a folder, with every setting that its users would try."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["PEERS", "Peer", "Variant"]

BATCH = 32


@dataclass(frozen=True)
class Variant:
    """One setting and its artifact.

    `seconds` is what calibration and quantization took, `conversion_seconds` what the peer's own converter or
    compiler took besides. Agreement is with `float_file`.
    """

    setting: str
    runtime: str
    file: str
    bytes: int
    seconds: float
    float_file: str
    float_runtime: str
    conversion_seconds: float = 0.0


@dataclass(frozen=True)
class Peer:
    """`packages`: whose versions are written down."""

    packages: tuple[str, ...]
    quantize: Callable[[Path, np.ndarray], Iterator[Variant]]


def _onnx_runtime(folder: Path, calibration: np.ndarray) -> Iterator[Variant]:
    """quantize_static behind quant_pre_process: QDQ, uint8 activations, int8 weights per channel."""
    import onnxruntime.quantization as ort
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(ort.CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter(np.array_split(calibration, len(calibration) // BATCH))

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self.batches, None)
            return None if batch is None else {"image": batch}

    for source in ("float.onnx", "float-dynamo.onnx"):
        for method in (
            ort.CalibrationMethod.MinMax,
            ort.CalibrationMethod.Entropy,
            ort.CalibrationMethod.Percentile,
        ):
            path = folder / f"ort-{source.removesuffix('.onnx')}-{method.name}.onnx"
            started = time.perf_counter()
            quant_pre_process(folder / source, folder / "prepared.onnx")
            ort.quantize_static(
                folder / "prepared.onnx",
                path,
                Reader(),
                quant_format=ort.QuantFormat.QDQ,
                per_channel=True,
                activation_type=ort.QuantType.QUInt8,
                weight_type=ort.QuantType.QInt8,
                calibrate_method=method,
            )
            seconds = time.perf_counter() - started
            setting = f"{method.name}, {'dynamo' if 'dynamo' in source else 'TorchScript'} export"
            size = path.stat().st_size
            yield Variant(setting, "onnxruntime", path.name, size, seconds, source, "onnxruntime")


def _nncf(folder: Path, calibration: np.ndarray, backend: str) -> Iterator[Variant]:
    """nncf.quantize on ONNX or OpenVINO, both presets, fast and exact bias correction."""
    sys.modules["openvino_telemetry"] = None  # nothing is sent
    import nncf

    nncf.set_log_level(logging.ERROR)
    for preset in (nncf.QuantizationPreset.PERFORMANCE, nncf.QuantizationPreset.MIXED):
        for fast in (True, False):
            model, data = _nncf_source(folder, calibration, backend)
            started = time.perf_counter()
            quantized = nncf.quantize(
                model,
                nncf.Dataset(data),
                preset=preset,
                subset_size=len(calibration),
                fast_bias_correction=fast,
            )
            seconds = time.perf_counter() - started
            name = f"nncf-{preset.value}-{'fast' if fast else 'exact'}"
            setting = f"{preset.value}, {'fast' if fast else 'exact'} bias correction"
            file, size = _nncf_save(folder, name, quantized, backend)
            # OpenVINO itself computes a float model in bfloat16 where the CPU has it: its float is torch's.
            floating = ("float.pt2", "torch") if backend == "openvino" else ("float.onnx", backend)
            yield Variant(setting, backend, file, size, seconds, *floating)


def _nncf_source(folder: Path, calibration: np.ndarray, backend: str) -> tuple[Any, list[Any]]:
    if backend == "openvino":
        import openvino

        return openvino.convert_model(folder / "float.onnx"), list(calibration[:, None])
    import onnx

    return onnx.load(str(folder / "float.onnx")), [{"image": image[None]} for image in calibration]


def _nncf_save(folder: Path, name: str, model: Any, backend: str) -> tuple[str, int]:
    if backend == "openvino":
        import openvino

        path = folder / f"{name}.xml"
        openvino.save_model(model, path)
        return path.name, path.stat().st_size + path.with_suffix(".bin").stat().st_size
    import onnx

    path = folder / f"{name}.onnx"
    onnx.save(model, str(path))
    return path.name, path.stat().st_size


def _ai_edge(folder: Path, calibration: np.ndarray) -> Iterator[Variant]:
    """litert-torch, then ai-edge-quantizer's static_wi8_ai8; the image channels first, and last."""
    import litert_torch
    import torch
    from ai_edge_quantizer import quantizer, recipe

    for layout in ("channels first", "channels last"):
        model = _without_train(torch.export.load(folder / "float.pt2").module())
        images, sample = calibration, torch.zeros(1, *calibration.shape[1:])
        if layout == "channels last":
            model = litert_torch.to_channel_last_io(model, args=[0])
            images = np.ascontiguousarray(calibration.transpose(0, 2, 3, 1))
            sample = sample.permute(0, 2, 3, 1).contiguous()
        floating = folder / f"ai-edge-{layout.replace(' ', '-')}-float.tflite"
        path = folder / f"ai-edge-{layout.replace(' ', '-')}.tflite"
        started = time.perf_counter()
        litert_torch.convert(model, (sample,)).export(str(floating))
        exported = time.perf_counter() - started
        started = time.perf_counter()
        tool = quantizer.Quantizer(str(floating))
        tool.load_quantization_recipe(recipe.static_wi8_ai8())
        data = [{"args_0": image[None]} for image in images]
        ranges = tool.calibrate({"serving_default": data}, num_threads=1)
        tool.quantize(ranges).export_model(str(path), overwrite=True)
        seconds = time.perf_counter() - started
        size = path.stat().st_size
        yield Variant(layout, "litert", path.name, size, seconds, floating.name, "litert", exported)


def _without_train(module: Any) -> Any:
    """An exported module is in evaluation for ever, and raises where others are told to be."""
    module.train = lambda mode=True: module
    return module


def _torchao(folder: Path, calibration: np.ndarray) -> Iterator[Variant]:
    """PT2E for TorchInductor on x86: static, uint8 activations, int8 weights per channel; ahead of time.

    `torch.compile` at run time answers the same, three times as slowly for one image.
    """
    import torch
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
        X86InductorQuantizer,
        get_default_x86_inductor_quantization_config,
    )

    model = torch.export.load(folder / "float.pt2").module()
    path = folder / "torchao.pt2"
    started = time.perf_counter()
    chosen = X86InductorQuantizer()
    chosen.set_global(get_default_x86_inductor_quantization_config())
    prepared = prepare_pt2e(model, chosen)
    with torch.no_grad():
        for batch in torch.from_numpy(calibration).split(BATCH):
            prepared(batch)
        quantized = convert_pt2e(prepared)
    seconds = time.perf_counter() - started
    started = time.perf_counter()
    with torch.no_grad():
        program = torch.export.export(quantized, (torch.zeros(1, *calibration.shape[1:]),))
        # Without freezing the weights are not packed for the integer kernels.
        torch._inductor.aoti_compile_and_package(
            program, package_path=str(path), inductor_configs={"freezing": True}
        )
    compiled = time.perf_counter() - started
    size = path.stat().st_size
    setting = "X86InductorQuantizer, static, AOTInductor"
    yield Variant(setting, "aotinductor", path.name, size, seconds, "float.pt2", "torch", compiled)


PEERS = {
    "onnxruntime": Peer(("onnxruntime",), _onnx_runtime),
    "nncf (ONNX)": Peer(("nncf", "onnxruntime"), lambda folder, images: _nncf(folder, images, "onnxruntime")),
    "nncf (OpenVINO)": Peer(("nncf", "openvino"), lambda folder, images: _nncf(folder, images, "openvino")),
    "ai-edge-quantizer": Peer(("ai-edge-quantizer", "litert-torch", "ai-edge-litert"), _ai_edge),
    "torchao": Peer(("torchao", "torch"), _torchao),
}
