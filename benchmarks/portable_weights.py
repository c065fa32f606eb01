"""What `portable_x86: true` costs, and what it saves on x86 CPUs with AVX2 but without VNNI.

    python -m benchmarks.portable_weights [--images 300]

ResNet-20, plain PTQ on 512 images, with weights of 8 and of 7 bits. Both ONNX files answer `--images` test
images in ONNX Runtime on this CPU and on an emulated Haswell (qemu-user, about a minute for 300), and are
compared with the integer reference; the accuracy on all 10,000 test images is LiteRT's.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import record
from benchmarks.emulation import logits_on
from benchmarks.models import SEED, cifar, floating, pixels_of
from edge_resnet.compression.calibrate import calibrate
from edge_resnet.compression.quantize import PORTABLE_LIMIT, quantize
from edge_resnet.devices.instruction_counts import emulator_version
from edge_resnet.devices.local import LocalDevice
from edge_resnet.devices.qemu import open_qemu, x86_emulator
from edge_resnet.errors import MissingToolError
from edge_resnet.export.onnx import onnx_bytes
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.passes import lower_for_integers
from edge_resnet.graph.reference import ReferenceExecutor, dequantize
from edge_resnet.recipe import Calibration, Export
from edge_resnet.targets import TARGETS
from edge_resnet.verify.parity import ParityTally

CALIBRATION_IMAGES = 512
LIMITS = {"8 bits": 127, "portable": PORTABLE_LIMIT}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=300)
    count = parser.parse_args().images
    data = record.real_data()
    train, test = cifar(data)
    graph, preprocess = floating("resnet20", data / "resnet20-cifar10.pt")
    ready = lower_for_integers(graph)
    batches = np.array_split(pixels_of(train, preprocess, CALIBRATION_IMAGES)[0], 16)
    ranges = calibrate(ready, batches, Calibration().estimator)
    graphs = {name: quantize(ready, ranges, limit) for name, limit in LIMITS.items()}
    pixels, labels = pixels_of(test, preprocess, 10_000)

    some = pixels[:count]
    files = {f"{name}.onnx": onnx_bytes(quantized) for name, quantized in graphs.items()}
    print(f"{count} images on the emulated Haswell", file=sys.stderr)
    try:
        here = logits_on(LocalDevice(), files, some)
        emulated = logits_on(open_qemu("qemu://x86-haswell"), files, some)
    except MissingToolError as error:
        sys.exit(f"error: {error}")
    rows: dict[str, Any] = {}
    for name, quantized in graphs.items():
        rows[name] = {
            "this CPU": _compare(quantized, some, labels[:count], here[f"{name}.onnx"]),
            "emulated Haswell": _compare(quantized, some, labels[:count], emulated[f"{name}.onnx"]),
            "LiteRT top-1, 10,000 images": _litert_top1(quantized, pixels, labels),
        }
    record.save(
        "portable_weights",
        {
            "seed": SEED,
            "qemu": ".".join(map(str, emulator_version(x86_emulator()))),
            "images": count,
            "calibration_images": CALIBRATION_IMAGES,
            "estimator": Calibration().estimator,
            "weights": rows,
        },
    )


def _compare(graph: Graph, pixels: np.ndarray, labels: np.ndarray, logits: np.ndarray) -> dict[str, Any]:
    output = graph.output.quant
    assert output is not None
    tally = ParityTally("reference", output.scale)
    tally.update(dequantize(ReferenceExecutor(graph).run(pixels), output), logits)
    return {
        "identical images": tally.identical_images,
        "max LSB": tally.max_lsb,
        "top-1 as the reference": round(tally.top1_agreement, 4),
        "top-1": round(float((logits.argmax(1) == labels).mean()), 4),
    }


def _litert_top1(graph: Graph, pixels: np.ndarray, labels: np.ndarray) -> float:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.tflite")
        TARGETS["tflite-int8"].write(graph, path, Export())
        runner = TARGETS["tflite-int8"].open(path)
        parts = np.array_split(pixels, 100)
        right = sum(
            int((runner.logits(part).argmax(1) == truth).sum())
            for part, truth in zip(parts, np.array_split(labels, 100), strict=True)
        )
    return right / len(labels)


if __name__ == "__main__":
    main()
