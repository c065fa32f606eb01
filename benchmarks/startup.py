"""`edge-resnet --help`, as a whole process, in turn with an empty Python.

python -m benchmarks.startup
"""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path

from benchmarks import record

ROUNDS = 15


def main() -> None:
    command = str(Path(sys.executable).with_name("edge-resnet"))
    sides = {"edge-resnet --help": [command, "--help"], "python -c ''": [sys.executable, "-c", ""]}
    functions = {name: partial(_run, arguments) for name, arguments in sides.items()}
    record.save("startup", {"unit": "seconds", "wall": record.in_turns(functions, ROUNDS)})


def _run(arguments: list[str]) -> None:
    subprocess.run(arguments, check=True, capture_output=True)


if __name__ == "__main__":
    main()
