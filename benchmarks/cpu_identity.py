"""Are the logits the same to the bit on other CPUs, ARM and older x86 ones, as on this one?

    python -m benchmarks.cpu_identity [--images 1000] [CPU ...]

ResNet-20 in integers (plain PTQ), as TFLite and ONNX files, in LiteRT/XNNPACK and ONNX Runtime: here, and on
CPUs that are emulated (needs qemu-user, qemu-user-static, gcc and `make arm-root`; half an hour on two idle
cores; goes on where it was cut off). ONNX Runtime is known to differ on x86 with AVX2 but without VNNI, which
`portable_x86: true` avoids: both files are shown. How many instructions an inference takes is told beside it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import record
from benchmarks.emulation import logits_on
from benchmarks.models import SEED, cifar, floating, pixels_of
from edge_resnet.benchmark.result import BenchmarkSettings
from edge_resnet.compression.calibrate import calibrate
from edge_resnet.compression.quantize import PORTABLE_LIMIT, quantize
from edge_resnet.cpu import this_cpu
from edge_resnet.devices.arm_root import arm_emulator
from edge_resnet.devices.device import Job, Request
from edge_resnet.devices.instruction_counts import emulator_version
from edge_resnet.devices.local import LocalDevice
from edge_resnet.devices.qemu import EmulatedCpu, open_qemu
from edge_resnet.errors import EdgeResnetError
from edge_resnet.export.onnx import onnx_bytes
from edge_resnet.export.tflite import tflite_bytes
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.passes import lower_for_integers
from edge_resnet.graph.reference import ReferenceExecutor, dequantize
from edge_resnet.verify.parity import ParityTally

CALIBRATION_IMAGES = 512
CPUS = ("cortex-a53", "cortex-a72", "cortex-a76", "armv9-i8mm", "x86-haswell", "x86-nehalem")
TFLITE, ONNX, PORTABLE = "resnet20.tflite", "resnet20.onnx", "resnet20-portable.onnx"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("cpu", nargs="*", help="all where none is named")
    options = parser.parse_args()
    data = record.real_data()
    train, test = cifar(data)
    graph, preprocess = floating("resnet20", data / "resnet20-cifar10.pt")
    graphs = _integers(graph, pixels_of(train, preprocess, CALIBRATION_IMAGES)[0])
    pixels, labels = pixels_of(test, preprocess, options.images)
    try:
        for cpu in options.cpu or CPUS:
            device = open_qemu(f"qemu://{cpu}")
            for name, quantized in graphs.items():
                if _asked(name, cpu) and name not in _done(options.images).get(cpu, {}):
                    print(f"{cpu}, {name}: {options.images} images", file=sys.stderr)
                    row = _row(device, name, quantized, pixels, labels)
                    rows = _done(options.images)  # another process may have added to it meanwhile
                    _save(rows | {cpu: rows.get(cpu, {}) | {name: row}}, options.images)
        _save(_done(options.images), options.images)
    except EdgeResnetError as error:
        sys.exit(f"error: {error}")


def _integers(graph: Graph, pixels: np.ndarray) -> dict[str, Graph]:
    ready = lower_for_integers(graph)
    ranges = calibrate(ready, np.array_split(pixels, 16))
    plain = quantize(ready, ranges)
    return {TFLITE: plain, ONNX: plain, PORTABLE: quantize(ready, ranges, PORTABLE_LIMIT)}


def _asked(name: str, cpu: str) -> bool:
    """Only AVX2's kernels saturate: elsewhere there is nothing that portable weights would avoid."""
    return name != PORTABLE or cpu == "x86-haswell"


def _done(images: int) -> dict[str, Any]:
    """Rows that an earlier run with as many images and the same versions left, by CPU and file."""
    try:
        before = json.loads((record.RESULTS / "cpu_identity.json").read_text())
    except (OSError, ValueError):
        return {}
    same = before["images"] == images and all(
        before["versions"][name] == version(name) for name in ("onnxruntime", "ai-edge-litert")
    )
    return dict(before["cpus"]) if same else {}


def _save(rows: dict[str, Any], images: int) -> None:
    figures = {
        "seed": SEED,
        "images": images,
        "calibration_images": CALIBRATION_IMAGES,
        "qemu": ".".join(map(str, emulator_version(arm_emulator()))),
        "flags": sorted(this_cpu().flags),
        "cpus": {cpu: rows[cpu] for cpu in CPUS if cpu in rows},
    }
    record.save("cpu_identity", figures, quiet=True)


def _row(
    device: EmulatedCpu, name: str, graph: Graph, pixels: np.ndarray, labels: np.ndarray
) -> dict[str, Any]:
    content = tflite_bytes(graph) if name == TFLITE else onnx_bytes(graph)
    here = logits_on(LocalDevice(), {name: content}, pixels)[name]
    there = logits_on(device, {name: content}, pixels)[name]
    output = graph.output.quant
    assert output is not None
    executor = ReferenceExecutor(graph)
    reference = np.concatenate(
        [dequantize(executor.run(part), output) for part in np.array_split(pixels, 10)]
    )
    tally = ParityTally("this CPU", output.scale)
    tally.update(here, there)
    return {
        "images": len(pixels),
        "identical to this CPU's": tally.identical_images,
        "identical to the reference's": int((reference == there).all(1).sum()),
        "max LSB": tally.max_lsb,
        "top-1 as this CPU's": round(tally.top1_agreement, 4),
        "top-1": round(float((there.argmax(1) == labels).mean()), 4),
        "top-1 on this CPU": round(float((here.argmax(1) == labels).mean()), 4),
        "figures": _instructions(device, name, content),
    }


def _instructions(device: EmulatedCpu, name: str, content: bytes) -> dict[str, float | int]:
    """Of one inference; empty where this machine cannot count them."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        path.write_bytes(content)
        found = device.measure([Job(name, path)], Request(BenchmarkSettings(runs=1)), lambda steps: None)
    return found[name].benchmarks[0].figures


if __name__ == "__main__":
    main()
