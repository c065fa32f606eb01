"""Post-training quantization side by side with ONNX Runtime, NNCF, ai-edge-quantizer and torchao.

    python -m benchmarks.quantization_peers [--python PYTHON] [--peers PEER ...]

The same ResNet-20, the same 512 calibration images, the same machine. Each peer tries the settings that its
users would; all are written down, and the one with the best top-1 on the 10,000 test images, then the fastest
to quantize, goes into the comparison of latency: chosen by the test images, which favours the peers. Peers
get images that are normalized already, this project's files raw bytes. Latency is of one image on one thread,
all artifacts in turns (A B A B), each in a process of its own, medians of 100 calls.

`--python`: an interpreter with torch, onnxruntime, nncf, openvino, litert-torch, ai-edge-quantizer and
torchao. A peer that fails there is written down with its error.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import edge_resnet
from benchmarks import record
from benchmarks.models import SEED, cifar, normalized, pixels_of
from benchmarks.peers.quantizers import PEERS
from edge_resnet.benchmark.timing import spread
from edge_resnet.frontends.sources import open_model, resolve_preprocess

CALIBRATION_IMAGES = 512
TEST_IMAGES = 10_000
ROUNDS = 30
OURS = "edge-resnet"
RUNTIMES = {"onnx-int8": "onnxruntime", "tflite-int8": "litert"}
# Beside the quantized artifacts, so that a reader sees what quantization is for.
FLOAT = {"peer": "float", "setting": "float32", "runtime": "onnxruntime", "file": "float.onnx"}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--peers", nargs="+", default=list(PEERS), choices=list(PEERS))
    arguments = parser.parse_args()
    figures: dict[str, Any] = {
        "seed": SEED,
        "calibration_images": CALIBRATION_IMAGES,
        "test_images": TEST_IMAGES,
        "peer_versions": {},
        "not_measured": {},
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        labels = _prepare(folder)
        workers = _Workers(arguments.python, folder)
        rows = _ours(folder)
        for peer in arguments.peers:
            print(f"{peer} quantizes", file=sys.stderr)
            error = workers.run("quantize", peer)
            if error:
                figures["not_measured"][peer] = error
                continue
            found = json.loads((folder / f"{peer}.json").read_text())
            figures["peer_versions"].update(found["versions"])
            rows += [{"peer": peer} | variant for variant in found["variants"]]
        figures["variants"] = [_with_accuracy(row, workers, labels) for row in rows]
        best = _best(figures["variants"])
        record.save("quantization_peers", figures, quiet=True)
        figures["latency_ms"] = _latencies([FLOAT, *best], workers)
    record.save("quantization_peers", figures)


class _Workers:
    """Starts benchmarks.peers.worker in the peers' interpreter, on one thread."""

    def __init__(self, python: str, folder: Path) -> None:
        self.folder = folder
        self._program = [python, "-m", "benchmarks.peers.worker"]
        self._environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

    def run(self, command: str, *rest: str) -> str:
        """Empty, or the last line of its error."""
        done = subprocess.run(
            [*self._program, command, self.folder, *rest],
            cwd=record.ROOT,
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode == 0:
            return ""
        return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]

    def server(self, runtime: str, file: str) -> subprocess.Popen[str]:
        server = subprocess.Popen(
            [*self._program, "serve", self.folder, runtime, file],
            cwd=record.ROOT,
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        _line(server)
        return server


def _prepare(folder: Path) -> np.ndarray:
    """Write what all quantizers are given; returns the test images' labels."""
    data = record.real_data()
    model: Any = open_model("resnet20", data / "resnet20-cifar10.pt", None, SEED)
    preprocess = resolve_preprocess(model.preprocess_defaults, {})
    train, test = cifar(data)
    pixels, labels = pixels_of(test, preprocess, TEST_IMAGES)
    calibration, _ = pixels_of(train, preprocess, CALIBRATION_IMAGES)
    np.save(folder / "pixels.npy", pixels)
    np.save(folder / "images.npy", normalized(pixels, preprocess))
    np.save(folder / "calibration.npy", normalized(calibration, preprocess))
    module, sample = model.module.eval(), (torch.zeros(2, 3, *preprocess.size),)
    batch = ({0: torch.export.Dim("n", min=1)},)
    torch.export.save(torch.export.export(module, sample, dynamic_shapes=batch), folder / "float.pt2")
    names: dict[str, Any] = {"input_names": ["image"], "output_names": ["logits"]}
    axes = {"image": {0: "n"}}
    torch.onnx.export(module, sample, str(folder / "float.onnx"), dynamo=False, dynamic_axes=axes, **names)
    torch.onnx.export(
        module, sample, str(folder / "float-dynamo.onnx"), dynamo=True, dynamic_shapes=batch, **names
    )
    return labels


def _ours(folder: Path) -> list[dict[str, Any]]:
    """The default recipe, by the library's API. Its seconds include decoding the calibration images."""
    data = record.real_data()
    result = edge_resnet.compress(
        "resnet20",
        weights=data / "resnet20-cifar10.pt",
        data=data / "cifar10-jpeg.zip",
        targets=tuple(RUNTIMES),
        settings=(f"seed={SEED}", "evaluate.images=100", "benchmark.runs=0"),
        out=folder / "ours",
    )
    seconds = {stage.name: stage.seconds for stage in result.report.stages}
    return [
        {
            "peer": f"{OURS} ({artifact.target})",
            "setting": "default recipe (ptq)",
            "runtime": RUNTIMES[artifact.target],
            "file": f"ours/{artifact.path}",
            "bytes": artifact.bytes,
            "seconds": seconds["quantize"],
            "float_file": "float.pt2",
            "float_runtime": "torch",
            "conversion_seconds": seconds[f"export {artifact.target}"],
        }
        for artifact in result.report.artifacts
    ]


def _with_accuracy(row: dict[str, Any], workers: _Workers, labels: np.ndarray) -> dict[str, Any]:
    print(f"{row['peer']}, {row['setting']}: {row['runtime']} answers", file=sys.stderr)
    classes = []
    for runtime, file in ((row["runtime"], row["file"]), (row["float_runtime"], row["float_file"])):
        path = workers.folder / f"{file}.{runtime}.logits.npy"
        error = "" if path.exists() else workers.run("answer", runtime, file)
        if error:
            return row | {"failed": error}
        classes.append(np.load(path).argmax(1))
    for key in ("seconds", "conversion_seconds"):
        row[key] = round(row[key], 2)
    top1, own = (float((chosen == labels).mean()) for chosen in classes)
    agreement = float((classes[0] == classes[1]).mean())
    return row | {"top1": top1, "float_top1": own, "top1_as_own_float": agreement}


def _best(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each peer, the setting with the highest top-1, of these the fastest to quantize."""
    best: dict[str, dict[str, Any]] = {}
    for row in rows:
        if "failed" in row:
            continue
        rival = best.get(row["peer"])
        if rival is None or (row["top1"], -row["seconds"]) > (rival["top1"], -rival["seconds"]):
            best[row["peer"]] = row
    return list(best.values())


def _latencies(rows: list[dict[str, Any]], workers: _Workers) -> dict[str, Any]:
    servers = {}
    for row in rows:
        servers[f"{row['peer']}: {row['setting']}"] = workers.server(row["runtime"], row["file"])
    samples: dict[str, list[float]] = {name: [] for name in servers}
    for turn in range(ROUNDS + 1):
        for name, server in servers.items():
            assert server.stdin is not None
            server.stdin.write("\n")
            server.stdin.flush()
            milliseconds = float(_line(server))
            if turn:  # the first round warms up
                samples[name].append(milliseconds)
        time.sleep(0.2)  # rounds that lie apart see more of what else this machine does
    for server in servers.values():
        server.communicate()
    return {
        name: {key: round(value, 4) for key, value in spread(values).items()}
        for name, values in samples.items()
    }


def _line(server: subprocess.Popen[str]) -> str:
    assert server.stdout is not None
    line = server.stdout.readline()
    if not line:
        raise RuntimeError(f"{server.args!r} ended")
    return line


if __name__ == "__main__":
    main()
