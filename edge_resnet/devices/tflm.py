"""`tflm://host`: TFLite Micro, the interpreter for microcontrollers, with its reference kernels, run here.

Its kernels round twice in fixed point: their answers are a few LSB away from LiteRT's and from the integer
reference's (https://github.com/tensorflow/tflite-micro). The package is `tflite-micro`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edge_resnet.devices.emulated import EmulatedDevice, Package, emulator_command
from edge_resnet.errors import InputError

__all__ = ["TFLM", "open_tflm"]

TFLM = Package("tflite-micro", "tflite_micro", linux_x86_only=True)

_IMAGES = 1000  # 20 to 40 ms an image of ResNet-20


def open_tflm(uri: str) -> EmulatedDevice:
    if uri != "tflm://host":
        raise InputError(f"--device {uri}: TFLite Micro runs on this machine only: tflm://host")
    return EmulatedDevice(uri, "TFLite Micro", ".tflite", TFLM, _command, _notes, _IMAGES)


def _command(artifact: Path, folder: Path) -> list[str]:
    return emulator_command("tflm", artifact)


def _notes(left_out: Sequence[str]) -> list[str]:
    return [
        "reference kernels, compiled for this machine: no latency is claimed. The arena is that of 64-bit "
        "pointers (its persistent part is smaller on a microcontroller); a chip's optimized kernels may take "
        "more scratch"
    ]
