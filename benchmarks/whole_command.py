"""`edge-resnet compress` from start to end, as a user runs it: wall time, largest memory, and its report.

ResNet-20 with 512 calibration images, five targets and all 10,000 test images; ResNet-50 at 224x224 with
random weights (seed 0) on 64 random images.

    python -m benchmarks.whole_command
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks import record
from benchmarks.models import blurred_noise

FIVE = ("tflite-int8", "onnx-int8", "coreml-int8", "tflite-fp32", "onnx-fp32")


def main() -> None:
    data = record.real_data()
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        weights = ("--weights", str(data / "resnet20-cifar10.pt"))
        images = ("--data", str(data / "cifar10-jpeg.zip"))
        rows["resnet20"] = _run(("resnet20", *weights, *images), FIVE, Path(folder) / "r20")
        images = ("--data", str(_random_folder(Path(folder) / "images")))
        rows["resnet50"] = _run(("torchvision:resnet50", *images), FIVE[:3], Path(folder) / "r50")
    record.save("whole_command", {"models": rows})


def _run(arguments: tuple[str, ...], targets: tuple[str, ...], out: Path) -> dict[str, Any]:
    command = [str(Path(sys.executable).with_name("edge-resnet")), "compress", *arguments, "--out", str(out)]
    for target in targets:
        command += ["--target", target]
    begun = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begun
    report = json.loads((out / "report.json").read_text())
    return {
        "seconds": round(seconds, 1),
        "exit code": os.waitstatus_to_exitcode(status),
        "peak_memory_gib": round(usage.ru_maxrss * 1024 / 2**30, 2),
        "baseline": report["baseline"],
        "stages": {stage["name"]: stage["seconds"] for stage in report["stages"]},
        "artifacts": {
            artifact["target"]: {
                key: artifact[key]
                for key in ("bytes", "ranges", "parity", "cross_parity", "accuracy", "benchmarks")
            }
            for artifact in report["artifacts"]
        },
    }


def _random_folder(folder: Path) -> Path:
    """64 random images in two classes, half for calibration."""
    for index, pixels in enumerate(blurred_noise(64, 256)):
        directory = folder / ("train" if index % 2 else "val") / f"class{index // 2 % 2}"
        directory.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(directory / f"{index}.png")
    return folder


if __name__ == "__main__":
    main()
