"""What every device looks like to the rest of the program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edge_resnet.benchmark.result import BenchmarkResult, BenchmarkSettings
from edge_resnet.errors import MissingToolError
from edge_resnet.graph.graph import Graph
from edge_resnet.progress import Advance

__all__ = ["Answers", "Device", "DeviceLostError", "Job", "Measurement", "Request"]


@dataclass(frozen=True)
class Job:
    """An artifact to measure. `key` names it in results. `graph`: what it was written from, in integers or
    floats; None where only the file is known.
    """

    key: str
    path: Path
    graph: Graph | None = None


@dataclass(frozen=True, eq=False)
class Request:
    """What to find out. `threads`: each of these numbers of threads is timed (0: all cores there).

    `pixels`: raw RGB images uint8 [N, H, W, 3] to answer, in this order; None: none.
    """

    settings: BenchmarkSettings
    threads: tuple[int, ...] = (1,)
    pixels: NDArray[np.uint8] | None = None


@dataclass(frozen=True, eq=False)
class Answers:
    """What the artifact answers there to the request's first len(logits) images.

    `logits` float32 [n, classes], as edge_resnet.runners.base.Runner gives them; `kind` and `runtime` as in
    BenchmarkResult.
    """

    logits: NDArray[np.float32]
    runtime: str
    runtime_version: str
    kind: str


@dataclass
class Measurement:
    """What a device found of one artifact; where it found nothing, a benchmark without figures says why."""

    benchmarks: list[BenchmarkResult] = field(default_factory=list)
    answers: Answers | None = None


class DeviceLostError(MissingToolError):
    """The device was lost, is not there, or refuses. `partial`: what it had found before, by the jobs' keys.

    The message names the device.
    """

    def __init__(self, message: str, partial: Mapping[str, Measurement] | None = None) -> None:
        super().__init__(message)
        self.partial = dict(partial or {})


class Device(Protocol):
    """A place where artifacts run, are compiled for or are predicted. Opening one (`registry.open_device`)
    checks its name and nothing else.

    `uri`: as the user named it. `most_images`: so many images are answered where the user does not say
    otherwise; None: all of them.
    """

    uri: str
    most_images: int | None

    def steps(self, jobs: Sequence[Job], request: Request) -> int:
        """How far `advance` will count."""
        ...

    def measure(self, jobs: Sequence[Job], request: Request, advance: Advance) -> dict[str, Measurement]:
        """Prepare, run, clean up: a measurement for each job, in their order; nothing is left running there.

        Raises DeviceLostError (with what it has so far) where the device is lost, MissingToolError where this
        machine lacks a tool for it, InputError for what the user gave wrongly.
        """
        ...
