"""This machine, be it a laptop, a Raspberry Pi or a Mac."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_resnet.benchmark.process import worker_command
from edge_resnet.benchmark.result import BenchmarkResult, BenchmarkSettings
from edge_resnet.cpu import this_cpu
from edge_resnet.devices.device import Job, Measurement, Request
from edge_resnet.devices.host import measure_on_host, steps_on_host
from edge_resnet.errors import InputError
from edge_resnet.progress import Advance

__all__ = ["LocalDevice", "OnThisMachine", "benchmark_local", "open_local"]


class LocalDevice:
    """A Host and a Device: the Python that runs this has all that is needed."""

    uri = "local"
    kind = "measured"
    timed = True
    most_images: int | None = None

    @contextmanager
    def session(self, runtimes: Sequence[str]) -> Iterator[_Here]:
        with tempfile.TemporaryDirectory(prefix="edge-resnet-") as folder:
            yield _Here(Path(folder), this_cpu().cores)

    def steps(self, jobs: Sequence[Job], request: Request) -> int:
        return steps_on_host(jobs, request)

    def measure(self, jobs: Sequence[Job], request: Request, advance: Advance) -> dict[str, Measurement]:
        return measure_on_host(self, jobs, request, advance)


class OnThisMachine:
    """What a Session is whose worker sees this machine's files. `folder`: where images may be put."""

    def __init__(self, folder: Path, cores: int) -> None:
        self._folder, self.cores = folder, cores

    def images(self, pixels: NDArray[np.uint8]) -> str:
        path = self._folder / "images.npy"
        np.save(path, pixels)
        return str(path)

    def lost(self) -> str | None:
        return None


class _Here(OnThisMachine):
    def command(self, artifact: Path, runtime: str, threads: int) -> list[str]:
        return worker_command(artifact, runtime, threads)


def benchmark_local(
    artifacts: Sequence[tuple[str, Path]],
    threads: int,
    settings: BenchmarkSettings,
    advance: Callable[[int], None] = lambda steps: None,
) -> dict[str, BenchmarkResult]:
    """Latency, cold start and memory on this machine, by the artifacts' keys, in their order.

    `advance` counts the timed inferences, `runs` for each artifact; those of an artifact that fails count as
    done. Such an artifact has a result without figures and a note that says why. Raises InputError for a
    file that no runtime here knows.
    """
    jobs = [Job(key, path) for key, path in artifacts]
    found = measure_on_host(LocalDevice(), jobs, Request(settings, (threads,)), advance)
    return {key: measurement.benchmarks[0] for key, measurement in found.items()}


def open_local(uri: str) -> LocalDevice:
    if uri != "local":
        raise InputError(f"--device {uri}: this machine is called `local`, with nothing behind it")
    return LocalDevice()
