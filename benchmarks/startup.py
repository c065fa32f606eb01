"""`edge-resnet --help`, as a whole process, in turn with an empty Python.

python -m benchmarks.startup
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks import record

ROUNDS = 15


def main() -> None:
    command = str(Path(sys.executable).with_name("edge-resnet"))
    timers = {
        "edge-resnet --help": _timer([command, "--help"]),
        "python -c pass": _timer([sys.executable, "-c", ""]),
    }
    record.save("startup", {"unit": "seconds", "wall": record.interleaved(timers, ROUNDS)})


def _timer(command: list[str]) -> Callable[[], float]:
    def once() -> float:
        begun = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        return time.perf_counter() - begun

    return once


if __name__ == "__main__":
    main()
