"""Exporters side by side: each in a process of its own, asked in turns A B A B."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import record
from edge_resnet.benchmark.timing import spread

__all__ = ["export_in_turns", "run_worker", "summarized"]

# A cold pass of the slowest peer takes a minute and a half on a busy machine.
TIMEOUT = 600
PHASES = ("convert", "quantize", "write")


def export_in_turns(python: str, folder: Path, names: Sequence[str], rounds: int) -> dict[str, Any]:
    """Of each exporter: its first pass in a fresh process, and `rounds` more, in turns; or its error.

    The artifacts of the last pass are in `folder`.
    """
    rows: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        workers = {}
        for name in names:
            # One after the other: the first passes import whole frameworks.
            worker = stack.enter_context(_exporter(python, folder, name))
            print(f"{folder.name}: {name}", file=sys.stderr)
            first = worker.ask()
            if "failed" in first:
                rows[name] = first
                continue
            workers[name] = worker
            rows[name] = {"first": first, "passes": []}
        for _ in range(rounds):
            for name, worker in list(workers.items()):
                answer = worker.ask()
                if "failed" in answer:
                    rows[name] = answer
                    del workers[name]
                else:
                    rows[name]["passes"].append(answer)
    return {name: row if "failed" in row else summarized(row) for name, row in rows.items()}


def summarized(row: dict[str, Any]) -> dict[str, Any]:
    """Seconds: of the first pass, imports included, and of the later ones, phase by phase; loading the float
    model counts nowhere. `peak_memory_bytes`: of the first pass.
    """
    first = row["first"]["phases"]
    found: dict[str, Any] = {
        "versions": row["first"]["versions"],
        "first_seconds": round(sum(v["seconds"] for k, v in first.items() if k != "load"), 3),
        "peak_memory_bytes": max(phase["peak_memory_bytes"] for phase in first.values()),
        "libraries_memory_bytes": first["libraries"]["peak_memory_bytes"],
    }
    passes = [answer["phases"] for answer in row["passes"]]
    samples = {
        f"{key}_seconds": [phases.get(key, {"seconds": 0.0})["seconds"] for phases in passes]
        for key in PHASES
    }
    samples["whole_seconds"] = [sum(values) for values in zip(*samples.values(), strict=True)]
    for key, values in samples.items():
        found[key] = {name: round(value, 5) for name, value in spread(values).items()}
    return found


def run_worker(python: str, *arguments: str | Path) -> str:
    """Empty, or the last line of its error."""
    done = subprocess.run(
        _command(python, *arguments),
        cwd=record.ROOT,
        env=_environment(),
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        timeout=TIMEOUT,
    )
    if done.returncode == 0:
        return ""
    return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]


def _command(python: str, *arguments: str | Path) -> list[str]:
    return [python, "-m", "benchmarks.peers.worker", *map(str, arguments)]


def _environment() -> dict[str, str]:
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    return os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"} | quiet


class _Exporter:
    def __init__(self, process: subprocess.Popen[str], complaints: Path) -> None:
        self._process, self._complaints = process, complaints
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def ask(self) -> dict[str, Any]:
        """One pass: its phases and versions, or why it failed."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write("\n")
            self._process.stdin.flush()
        try:
            line = self._lines.get(timeout=TIMEOUT)
        except queue.Empty:
            return {"failed": f"gave no answer within {TIMEOUT} s"}
        if line:
            answer: dict[str, Any] = json.loads(line)
            return answer
        said = self._complaints.read_text(errors="replace").strip().splitlines()
        return {"failed": said[-1] if said else "it ended without a word"}

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put("")


@contextmanager
def _exporter(python: str, folder: Path, name: str) -> Iterator[_Exporter]:
    complaints = folder / f"{name}.stderr"
    with complaints.open("w") as errors:
        process = subprocess.Popen(
            _command(python, "export", folder, name),
            cwd=record.ROOT,
            env=_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    try:
        yield _Exporter(process, complaints)
    finally:
        process.kill()
        process.wait(10)
