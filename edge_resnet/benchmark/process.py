"""The other end of worker.py: start it, ask it, and be sure that it ends."""

from __future__ import annotations

import base64
import contextlib
import json
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_resnet.errors import MissingToolError

__all__ = ["WORKER", "Start", "WorkerProcess", "worker_command"]

WORKER = Path(__file__).with_name("worker.py")
# How long a process may take to end once its answers ended, or once it was killed, in seconds.
_ENDING = 10.0


@dataclass(frozen=True)
class Start:
    """What the worker said once the model was loaded: times in milliseconds, memory in bytes."""

    version: str
    import_ms: float
    cold_start_ms: float
    rss_before_bytes: int


def worker_command(artifact: Path, runtime: str, threads: int) -> list[str]:
    """The command line that starts worker.py in this Python."""
    return [sys.executable, str(WORKER), str(artifact), "--runtime", runtime, "--threads", str(threads)]


class WorkerProcess:
    """A running worker; it ends with the `with` block, whatever happens inside.

    `name` is what its errors call it. `timeout` bounds each answer, in seconds. Between answers the process
    waits on its standard input, and ends by itself when that is closed: it does not outlive this process.
    Raises MissingToolError, here and in `run`, when the process is lost, hangs, or reports an error.
    """

    def __init__(self, command: Sequence[str], name: str, timeout: float) -> None:
        self._name, self._timeout = name, timeout
        self.peak_memory_bytes = 0
        self.energy_uj: float | None = None
        self._lines: queue.Queue[str | None] = queue.Queue()
        # Not a pipe: nobody would empty it, and a runtime that prints a lot would wait for ever.
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115  # close() closes it
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._complaints,
                encoding="utf-8",
                errors="replace",
            )
        except OSError as error:
            self._complaints.close()
            raise MissingToolError(f"{name}: cannot start {command[0]}: {error}") from error
        self._reader = threading.Thread(target=self._read, daemon=True)
        try:
            self._reader.start()
            hello = self._answer()
            self.start = Start(
                str(hello["version"]),
                float(hello["import_ms"]),
                float(hello["cold_start_ms"]),
                int(hello["rss_before_bytes"]),
            )
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def run(self, count: int) -> list[float]:
        """Milliseconds of `count` inferences of one image, in the order in which they ran.

        `energy_uj` is then what the processor used for all of them, where it tells.
        """
        return self.run_batch(1, count)

    def run_batch(self, batch: int, count: int) -> list[float]:
        """Milliseconds of `count` inferences of `batch` images each."""
        answer = self._asked({"run": count, "batch": batch})
        energy = answer.get("energy_uj")
        self.energy_uj = None if energy is None else float(energy)
        return [nanoseconds / 1e6 for nanoseconds in answer["latency_ns"]]

    def logits(self, images: str, first: int, count: int) -> NDArray[np.float32]:
        """The answers to some images of a file there (see worker.py), float32 [count, classes]."""
        answer = self._asked({"images": images, "first": first, "count": count})
        values = np.frombuffer(base64.b64decode(answer["logits"]), np.float32)
        return values.reshape(answer["shape"])

    def parts(self, images: str, total: int, at_once: int) -> Iterator[NDArray[np.float32]]:
        """The answers to the first `total` images, so many at once: none is waited for longer than the
        time-out."""
        for first in range(0, total, at_once):
            yield self.logits(images, first, min(at_once, total - first))

    def figures(self) -> tuple[dict[str, float | int], list[str]]:
        """What only an emulator tells, and what it left to the CPU (devices/emulator_process.py)."""
        answer = self._asked({"figures": True})
        return answer["figures"], answer["left_out"]

    def conditions(self) -> dict[str, Any]:
        """Clock, load and temperature there."""
        found: dict[str, Any] = self._asked({"conditions": True})["conditions"]
        return found

    def close(self) -> None:
        """Kill the process. It has nothing to lose; asking it to quit could hang."""
        self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):  # stuck in the kernel: the kill is pending
            self._process.wait(_ENDING)
        if self._reader.is_alive():
            self._reader.join(_ENDING)
        for pipe in (self._process.stdin, self._process.stdout, self._complaints):
            with contextlib.suppress(OSError):
                pipe.close()  # type: ignore[union-attr]  # Popen types its pipes as optional

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def _asked(self, command: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()
        except OSError:
            raise MissingToolError(self._epitaph()) from None
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        try:
            line = self._lines.get(timeout=self._timeout)
        except queue.Empty:
            self._process.kill()
            raise MissingToolError(
                f"{self._name}: the benchmark process gave no answer within {self._timeout:g} s; stopped"
            ) from None
        if line is None:
            raise MissingToolError(self._epitaph())
        try:
            answer: dict[str, Any] = json.loads(line)
        except ValueError:
            raise MissingToolError(
                f"{self._name}: the benchmark process said {line.strip()[:80]!r}"
            ) from None
        if "error" in answer:
            raise MissingToolError(f"{self._name}: {answer['error']}")
        self.peak_memory_bytes = int(answer["peak_memory_bytes"])
        return answer

    def _epitaph(self) -> str:
        """How the process ended, with the last line that it left on standard error."""
        try:
            code = self._process.wait(_ENDING)
        except subprocess.TimeoutExpired:
            return f"{self._name}: the benchmark process stopped answering"
        how = f"ended with code {code}"
        if code < 0:
            how = f"was killed by {_signal_name(-code)}"
        if code == -signal.SIGKILL:
            how += " (the system does that when memory runs out)"
        self._complaints.seek(0)
        said = self._complaints.read().decode("utf-8", "replace").splitlines()
        # LiteRT says at every start, as INFO, which kernels it took; that explains nothing.
        lines = [line.strip() for line in said if line.strip() and not line.startswith("INFO")]
        return f"{self._name}: the benchmark process {how}" + (f": {lines[-1]}" if lines else "")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
