"""ONNX Runtime on an emulated x86 CPU with AVX2 but without VNNI (Haswell), by qemu-user.

    python -m benchmarks.haswell PIXELS.npy A.onnx [B.onnx ...]

is what runs there: it writes each file's logits beside it, as A.npy.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = ["INSTALL", "emulator", "haswell_logits"]

INSTALL = "qemu-x86_64 is not installed: apt-get install qemu-user-static (Debian, Ubuntu)"
_ROOT = Path(__file__).resolve().parent.parent
# So many images at once: results do not depend on it.
_BATCH = 20


def emulator() -> str | None:
    """The path of qemu's program for x86-64; None where it is not installed."""
    return shutil.which("qemu-x86_64-static") or shutil.which("qemu-x86_64")


def haswell_logits(files: Mapping[str, bytes], pixels: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
    """Of each .onnx file, the logits of uint8 [N, H, W, 3] on the emulated CPU.

    Raises FileNotFoundError without qemu, CalledProcessError when the program in it fails.
    """
    program = emulator()
    if program is None:
        raise FileNotFoundError(INSTALL)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.save(folder / "pixels.npy", pixels)
        paths = {key: folder / f"file{index}.onnx" for index, key in enumerate(files)}
        for key, path in paths.items():
            path.write_bytes(files[key])
        worker = [sys.executable, "-m", "benchmarks.haswell", folder / "pixels.npy", *paths.values()]
        subprocess.run(
            [program, "-cpu", "Haswell", *worker],
            cwd=_ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            stderr=subprocess.DEVNULL,  # qemu names the features of this CPU that it does not have
            check=True,
        )
        return {key: np.load(path.with_suffix(".npy")) for key, path in paths.items()}


def _worker(pixels: Path, files: list[Path]) -> None:
    from edge_resnet.runners.onnxruntime import OnnxRuntimeRunner

    images = np.load(pixels)
    for path in files:
        runner = OnnxRuntimeRunner(path, threads=1)
        parts = np.array_split(images, -(-len(images) // _BATCH))
        np.save(path.with_suffix(".npy"), np.concatenate([runner.logits(part) for part in parts]))


if __name__ == "__main__":
    _worker(Path(sys.argv[1]), [Path(argument) for argument in sys.argv[2:]])
