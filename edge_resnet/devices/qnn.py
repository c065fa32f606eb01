"""`qnn-htp://73`: Qualcomm's Hexagon tensor processor (HTP), compiled for and emulated without a phone.

The package `onnxruntime-qnn` for Linux x86-64 holds the offline compiler and the emulator. What they tell:
does every node run on the NPU, and what does it answer there. The emulator's cycles are no latency.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from edge_resnet.benchmark.process import WorkerProcess
from edge_resnet.devices.emulated import EmulatedDevice, Package, emulator_command, named_nodes
from edge_resnet.errors import InputError

__all__ = ["ARCHITECTURES", "QNN", "compile_for_hexagon", "open_qnn", "qnn_command"]

# Architecture -> a chip that has it
# (https://github.com/pytorch/executorch/blob/main/backends/qualcomm/serialization/qc_schema.py). The library
# takes any other number without a word, and compiles for who knows what.
ARCHITECTURES = {
    "68": "Snapdragon 888",
    "69": "Snapdragon 8 Gen 1",
    "73": "Snapdragon 8 Gen 2",
    "75": "Snapdragon 8 Gen 3",
    "79": "Snapdragon 8 Elite",
    "81": "Snapdragon 8 Elite Gen 5",
}
# On Linux with ARM the package is there for boards with a Hexagon, without the emulator.
QNN = Package("onnxruntime-qnn", "onnxruntime_qnn", linux_x86_only=True)
RUNTIME = "QNN HTP emulator"
_IMAGES = 500  # 60 to 120 ms an image of ResNet-20
_COMPILING = 600.0  # seconds; ResNet-50 takes one


def open_qnn(uri: str) -> EmulatedDevice:
    architecture = uri.partition("://")[2]
    if architecture not in ARCHITECTURES:
        known = ", ".join(f"{number} ({chip})" for number, chip in ARCHITECTURES.items())
        raise InputError(f"--device {uri}: no such Hexagon architecture; qnn-htp://N with N one of {known}")
    return EmulatedDevice(
        uri,
        RUNTIME,
        ".onnx",
        QNN,
        partial(qnn_command, architecture),
        partial(_notes, architecture),
        _IMAGES,
    )


def qnn_command(architecture: str, artifact: Path, folder: Path) -> list[str]:
    context = folder / f"{artifact.stem}-context.onnx"
    return emulator_command("qnn", artifact, "--architecture", architecture, "--context", str(context))


def compile_for_hexagon(model: bytes, architecture: str, name: str) -> bytes:
    """An ONNX file in integers -> an ONNX file with the context binary for one architecture in it.

    Raises MissingToolError where the package is missing, and where the compiler fails.
    """
    QNN.check("--target qnn-context")
    with tempfile.TemporaryDirectory(prefix="edge-resnet-") as folder:
        source = Path(folder) / f"{name}.onnx"
        source.write_bytes(model)
        command = qnn_command(architecture, source, Path(folder))
        with WorkerProcess(command, f"{name}, compiled for Hexagon v{architecture}", _COMPILING):
            pass
        return (Path(folder) / f"{name}-context.onnx").read_bytes()


def _notes(architecture: str, left_out: Sequence[str]) -> list[str]:
    notes = [
        f"the compiler's emulator of Hexagon v{architecture} ({ARCHITECTURES[architecture]}): "
        "no latency is claimed"
    ]
    if left_out:
        several = len(left_out) > 1
        notes.append(
            f"{len(left_out)} node{'s' if several else ''} would run on the CPU beside the NPU: "
            f"{named_nodes(left_out)}"
        )
    return notes
