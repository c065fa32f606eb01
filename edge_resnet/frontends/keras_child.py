"""Run a module of this package in a process of its own that may take long, or die."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from edge_resnet.errors import InputError, MissingToolError

__all__ = ["run_child"]

_ROOT = Path(__file__).resolve().parents[2]


def run_child(
    module: str,
    arguments: Sequence[str],
    *,
    name: str,
    timeout: float,
    environment: Mapping[str, str] | None = None,
) -> str:
    """`python -m module arguments...`; its standard output. Raises InputError where it fails, dies or hangs.

    What it prints on standard error is kept for the message. The working directory is not searched for
    modules (-P), since an untrusted model may lie in it.
    """
    known = dict(os.environ if environment is None else environment)
    known["PYTHONPATH"] = os.pathsep.join([str(_ROOT), *filter(None, [known.get("PYTHONPATH")])])
    command = [sys.executable, "-P", "-m", module, *arguments]
    # Files, not pipes: nobody would empty a pipe while waiting.
    with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as complaints:
        try:
            code = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=complaints,
                timeout=timeout,
                env=known,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            raise InputError(f"{name} took more than {timeout:g} s; stopped") from None
        except OSError as error:
            raise MissingToolError(f"{name}: cannot start {sys.executable}: {error}") from error
        complaints.seek(0)
        lines = complaints.read().decode("utf-8", "replace").splitlines()
        said.seek(0)
        text = said.read().decode("utf-8", "replace")
    if code:
        raise InputError(f"{name}: the process {_ending(code)}{_last(lines)}")
    return text


def _ending(code: int) -> str:
    if code > 0:
        return f"ended with code {code}"
    if code == -signal.SIGKILL:
        return "was killed by SIGKILL (the system does that when memory runs out)"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


def _last(lines: Sequence[str]) -> str:
    useful = [line.strip() for line in lines if line.strip()]
    return f": {useful[-1][:300]}" if useful else ""
