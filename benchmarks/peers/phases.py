"""How long each phase of an export took, and how much memory its process had taken by then."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["Phases"]


class Phases:
    """`rows`: for each phase, in their order, its seconds and the process's peak memory at its end."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, Any]] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        self.rows[name] = {"seconds": time.perf_counter() - begun, "peak_memory_bytes": peak_memory()}

    def move(self, source: str, target: str, seconds: float) -> None:
        """Book `seconds` of the phase `source` as `target`, which ran inside it."""
        self.rows[source]["seconds"] -= seconds
        self.rows[target] = {"seconds": seconds, "peak_memory_bytes": self.rows[source]["peak_memory_bytes"]}


def peak_memory() -> int:
    """Largest resident memory of this process so far, in bytes (Linux).

    Not ru_maxrss: a new process starts with its parent's peak in it.
    """
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:")) * 1024
