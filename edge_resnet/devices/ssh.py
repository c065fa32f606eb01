"""Linux boards reached by ssh://[user@]host[:port][/folder]: Raspberry Pi, Jetson, i.MX and the like.

What we need there: sshd, a login by key, Python 3.9 or newer. Nothing is installed outside of our folder,
~/.cache/edge-resnet where the URI names none. Artifacts and virtual environments stay in it, so that they
travel once, until they were not used for a month; images, and all that runs, are gone with the session.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_resnet.benchmark.process import WORKER
from edge_resnet.cpu import read_cpu
from edge_resnet.devices.device import DeviceLostError, Job, Measurement, Request
from edge_resnet.devices.host import RUNTIMES, measure_on_host, steps_on_host
from edge_resnet.devices.ssh_connection import Connection
from edge_resnet.devices.ssh_environment import Environment, environment
from edge_resnet.devices.ssh_target import Target, parse_target, user_options
from edge_resnet.errors import MissingToolError
from edge_resnet.progress import Advance

__all__ = ["SshDevice", "open_ssh"]


class SshDevice:
    """A Host and a Device."""

    kind = "measured"
    timed = True
    most_images: int | None = None

    def __init__(self, target: Target) -> None:
        self.uri, self._target = target.uri, target
        self._facts: dict[str, Any] = {}
        self._notes: dict[str, list[str]] = {}  # by the runtime's name in reports

    @contextmanager
    def session(self, runtimes: Sequence[str]) -> Iterator[_Board]:
        with Connection(self._target) as connection:
            self._facts = _described(connection.facts)
            board = _Board(connection, self._facts["cores"])
            self._notes = board.prepare(runtimes)
            yield board

    def steps(self, jobs: Sequence[Job], request: Request) -> int:
        return steps_on_host(jobs, request)

    def measure(self, jobs: Sequence[Job], request: Request, advance: Advance) -> dict[str, Measurement]:
        try:
            return self._told(measure_on_host(self, jobs, request, advance))
        except DeviceLostError as error:
            error.partial = self._told(error.partial)
            raise

    def _told(self, found: Mapping[str, Measurement]) -> dict[str, Measurement]:
        """With what the board is, beside the figures."""
        for measurement in found.values():
            measurement.benchmarks = [
                replace(
                    result,
                    notes=[*result.notes, _sentence(self._facts), *self._notes.get(result.runtime, [])],
                    conditions={**result.conditions, "host": self._facts},
                )
                if result.latency_ms is not None
                else result
                for result in measurement.benchmarks
            ]
        return dict(found)


class _Board:
    def __init__(self, connection: Connection, cores: int) -> None:
        self._connection, self.cores = connection, cores
        self._ready: dict[str, Environment] = {}
        self._failed: dict[str, str] = {}

    def prepare(self, runtimes: Sequence[str]) -> dict[str, list[str]]:
        """Notes, by the runtime's name in reports. Raises DeviceLostError where no runtime can be had; one of
        two is better than none.
        """
        for runtime in runtimes:
            try:
                self._ready[runtime] = environment(self._connection, runtime)
            except DeviceLostError:
                raise
            except MissingToolError as error:
                self._failed[runtime] = str(error)
        if not self._ready:
            raise DeviceLostError("; ".join(dict.fromkeys(self._failed.values())))
        names = dict(RUNTIMES.values())
        return {names[runtime]: list(ready.notes) for runtime, ready in self._ready.items()}

    def command(self, artifact: Path, runtime: str, threads: int) -> list[str]:
        if runtime in self._failed:
            raise MissingToolError(self._failed[runtime])
        worker, model = self._connection.upload(WORKER), self._connection.upload(artifact)
        arguments = [worker, model, "--runtime", runtime, "--threads", str(threads)]
        return self._connection.worker(self._ready[runtime].python, arguments)

    def images(self, pixels: NDArray[np.uint8]) -> str:
        with tempfile.TemporaryDirectory(prefix="edge-resnet-") as folder:
            path = Path(folder) / "images.npy"
            np.save(path, pixels)
            return self._connection.upload(path, path.name)

    def lost(self) -> str | None:
        return self._connection.lost()


def _described(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What reports keep of a board's facts."""
    with tempfile.TemporaryDirectory(prefix="edge-resnet-") as folder:
        cpuinfo = Path(folder) / "cpuinfo"
        cpuinfo.write_text(facts["cpuinfo"])
        cpu = read_cpu(cpuinfo, facts["machine"])
    names = ("model", "cores", "machine", "os", "kernel", "python", "memory_bytes", "governor")
    return {"cpu": cpu.name, "cpu_flags": sorted(cpu.flags), **{name: facts[name] for name in names}}


def _sentence(facts: Mapping[str, Any]) -> str:
    model = f"{facts['model']}, " if facts["model"] else ""
    governor = f", governor {facts['governor']}" if facts["governor"] else ""
    return f"{model}{facts['cpu']}, {facts['cores']} cores{governor}, {facts['os']}, Python {facts['python']}"


def open_ssh(uri: str) -> SshDevice:
    user_options()  # wrong ones are the user's mistake, which is told before anything runs
    return SshDevice(parse_target(uri))
