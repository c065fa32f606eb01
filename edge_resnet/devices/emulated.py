"""Devices that are emulated by a vendor's library: what an artifact answers there, never how fast."""

from __future__ import annotations

import platform
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from edge_resnet.benchmark.process import WorkerProcess
from edge_resnet.benchmark.result import BenchmarkResult, without_figures
from edge_resnet.devices.device import Answers, Job, Measurement, Request
from edge_resnet.errors import MissingToolError
from edge_resnet.progress import Advance

__all__ = ["EmulatedDevice", "Package", "emulator_command", "named_nodes"]

KIND = "emulated"
_PROGRAM = Path(__file__).with_name("emulator_process.py")
# Few: a large model takes seconds an image, and each answer is waited for no longer than the time-out.
_IMAGES_AT_ONCE = 4
_MOST_NAMES = 8


def emulator_command(emulator: str, artifact: Path, *options: str) -> list[str]:
    """Starts emulator_process.py in this Python; the working directory is not searched for modules (-P)."""
    return [sys.executable, "-P", str(_PROGRAM), emulator, str(artifact), *options]


@dataclass(frozen=True)
class Package:
    """A vendor's package: what `pip install` calls it, and what Python does."""

    name: str
    module: str
    linux_x86_only: bool

    def installed(self) -> bool:
        return find_spec(self.module) is not None

    def check(self, asker: str) -> None:
        """Raises MissingToolError, with the command that adds it, where it is not installed."""
        if self.linux_x86_only and (sys.platform, platform.machine()) != ("linux", "x86_64"):
            raise MissingToolError(
                f"{asker}: {self.name} has it for Linux x86-64 only; run this command on such a machine"
            )
        if not self.installed():
            raise MissingToolError(f'{asker}: {self.name} is not installed: pip install "edge-resnet[npu]"')


@dataclass(frozen=True)
class EmulatedDevice:
    """`command`: from an artifact and a folder of its own to the emulator's command line. `notes`: from what
    the emulator left to the CPU to what the reader should know.
    """

    uri: str
    runtime: str
    suffix: str
    package: Package
    command: Callable[[Path, Path], list[str]]
    notes: Callable[[Sequence[str]], list[str]]
    most_images: int | None

    def steps(self, jobs: Sequence[Job], request: Request) -> int:
        return len(jobs) * (1 + (0 if request.pixels is None else len(request.pixels)))

    def measure(self, jobs: Sequence[Job], request: Request, advance: Advance) -> dict[str, Measurement]:
        """An artifact that fails has a benchmark without figures, which says why."""
        found: dict[str, Measurement] = {}
        if any(job.path.suffix == self.suffix for job in jobs):
            self.package.check(self.uri)
        with tempfile.TemporaryDirectory(prefix="edge-resnet-") as name:
            folder = Path(name)
            if request.pixels is not None:
                np.save(folder / "images.npy", request.pixels)
            for job in jobs:
                steps = self.steps([job], request)
                measurement = found[job.key] = Measurement()
                done = 0

                def count(made: int) -> None:
                    nonlocal done
                    done += made
                    advance(made)

                self._one(job, request, folder, measurement, count)
                advance(steps - done)
        return found

    def _one(
        self, job: Job, request: Request, folder: Path, measurement: Measurement, advance: Advance
    ) -> None:
        if job.path.suffix != self.suffix:
            reason = f"{self.runtime} takes {self.suffix} files, not {job.path.suffix}"
            measurement.benchmarks.append(without_figures(self.uri, self.runtime, KIND, reason))
            return
        parts: list[np.ndarray[tuple[int, ...], np.dtype[np.float32]]] = []
        version, timeout = "", request.settings.timeout
        try:
            with WorkerProcess(self.command(job.path, folder), job.path.name, timeout) as worker:
                version = worker.start.version
                figures, left_out = worker.figures()
                measurement.benchmarks.append(
                    BenchmarkResult(
                        self.uri,
                        self.runtime,
                        version,
                        1,
                        KIND,
                        figures=figures,
                        notes=self.notes(left_out),
                    )
                )
                advance(1)
                total = 0 if request.pixels is None else len(request.pixels)
                for part in worker.parts(str(folder / "images.npy"), total, _IMAGES_AT_ONCE):
                    parts.append(part)
                    advance(len(part))
        except MissingToolError as error:
            if measurement.benchmarks:
                answered = sum(map(len, parts))
                measurement.benchmarks[0].notes.append(f"only {answered} images were answered: {error}")
            else:
                measurement.benchmarks.append(without_figures(self.uri, self.runtime, KIND, str(error)))
        if parts:
            measurement.answers = Answers(np.concatenate(parts), self.runtime, version, KIND)


def named_nodes(nodes: Sequence[str]) -> str:
    """Some names, and how many more there are."""
    more = len(nodes) - _MOST_NAMES
    return ", ".join(nodes[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")
