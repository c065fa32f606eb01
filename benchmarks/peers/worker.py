"""The program that a peer runs in.

    python -m benchmarks.peers.worker quantize FOLDER PEER          writes FOLDER/PEER.json
    python -m benchmarks.peers.worker export FOLDER NAME            for each line that comes in: writes the
                                                                    artifact and answers with its phases
    python -m benchmarks.peers.worker keras FOLDER                  writes FOLDER/model.keras
    python -m benchmarks.peers.worker answer FOLDER RUNTIME FILE    writes FOLDER/FILE.RUNTIME.logits.npy
    python -m benchmarks.peers.worker serve FOLDER RUNTIME FILE     for each line that comes in: the median
                                                                    milliseconds of CALLS calls

What libraries print goes to standard error, so that standard output has nothing but answers.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TextIO

import numpy as np

from benchmarks.peers.keras_model import save_keras
from benchmarks.peers.own import EXPORTERS
from benchmarks.peers.phases import Phases
from benchmarks.peers.quantizers import PEERS
from benchmarks.peers.runtimes import RUNTIMES

CALLS = 100


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    command, folder, name, *rest = [*sys.argv[1:], ""]
    if command == "quantize":
        _quantize(Path(folder), name)
    elif command == "export":
        _export(Path(folder), name, answers)
    elif command == "keras":
        save_keras(Path(folder))
    elif command == "answer":
        _answer(Path(folder), name, rest[0])
    else:
        _serve(Path(folder), name, rest[0], answers)


def _quantize(folder: Path, name: str) -> None:
    peer = PEERS[name]
    variants = [asdict(v) for v in peer.quantize(folder, np.load(folder / "calibration.npy"))]
    found = {"versions": {package: version(package) for package in peer.packages}, "variants": variants}
    (folder / f"{name}.json").write_text(json.dumps(found))


def _export(folder: Path, name: str, answers: TextIO) -> None:
    exporter = EXPORTERS[name]
    for _ in sys.stdin:
        phases = Phases()
        exporter.export(folder, phases, folder / exporter.file)
        versions = {package: version(package) for package in exporter.packages}
        print(json.dumps({"phases": phases.rows, "versions": versions}), file=answers, flush=True)


def _answer(folder: Path, runtime: str, file: str) -> None:
    images, pixels = np.load(folder / "images.npy", mmap_mode="r"), np.load(folder / "pixels.npy")
    opened = RUNTIMES[runtime](folder / file)
    logits = []
    for start in range(0, len(images), opened.batch):
        part = slice(start, start + opened.batch)
        logits.append(np.array(opened.run(opened.prepare(np.array(images[part]), pixels[part]))))
    np.save(folder / f"{file}.{runtime}.logits.npy", np.concatenate(logits))


def _serve(folder: Path, runtime: str, file: str, answers: TextIO) -> None:
    images, pixels = (
        np.load(folder / "images.npy", mmap_mode="r"),
        np.load(folder / "pixels.npy", mmap_mode="r"),
    )
    opened = RUNTIMES[runtime](folder / file)
    image = opened.prepare(np.array(images[:1]), np.array(pixels[:1]))
    opened.run(image)  # compiles, where the runtime does
    print("ready", file=answers, flush=True)
    for _ in sys.stdin:
        taken = []
        for _ in range(CALLS):
            started = time.perf_counter()
            opened.run(image)
            taken.append(time.perf_counter() - started)
        print(1000 * float(np.median(taken)), file=answers, flush=True)


if __name__ == "__main__":
    main()
