"""What this machine can do, and the command that adds what it lacks."""

from __future__ import annotations

import importlib.util
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_resnet.cpu import onnx_runtime_saturates, saturation_warning, this_cpu

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Check", "Status", "checks_to_json", "examine", "exit_code", "print_doctor"]

_LEAST_FREE_BYTES = 2 * 2**30  # a run of ResNet-50 with five targets leaves about 400 MB


class Status(StrEnum):
    OK = "ok"
    WARNING = "warning"
    MISSING = "missing"


@dataclass(frozen=True)
class Check:
    """One thing that was looked at. `required`: nothing works without it. `fix`: the command that adds it."""

    name: str
    status: Status
    detail: str
    fix: str = ""
    required: bool = False


def examine() -> list[Check]:
    """Look at everything; imports nothing heavy into this process."""
    return [
        _python(),
        _package("torch", "import torch", "pip install torch", required=True),
        _package(
            "ai-edge-litert",
            "from ai_edge_litert.interpreter import Interpreter",
            "pip install ai-edge-litert",
            required=True,
        ),
        _package("onnxruntime", "import onnxruntime", "pip install onnxruntime", required=True),
        _coreml(),
        _extra("torchvision", "torchvision:NAME models"),
        _extra("timm", "timm:NAME models"),
        _cpu(),
        _saturation(),
        _disk(),
    ]


def exit_code(checks: Sequence[Check]) -> int:
    """3 when something required is missing."""
    return 3 if any(check.required and check.status is Status.MISSING for check in checks) else 0


def checks_to_json(checks: Sequence[Check]) -> list[dict[str, Any]]:
    return [asdict(check) for check in checks]


def print_doctor(checks: Sequence[Check], console: Console) -> None:
    """A table, and below it what to type."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=False)
    colours = {Status.OK: "green", Status.WARNING: "yellow", Status.MISSING: "red"}
    for check in checks:
        table.add_row(f"[{colours[check.status]}]{check.status}[/]", check.name, check.detail)
    console.print(table)
    for check in checks:
        if check.fix and check.status is not Status.OK:
            console.print(f"{check.name}: {check.fix}", markup=False, highlight=False, soft_wrap=True)


def _python() -> Check:
    fine = sys.version_info >= (3, 11)
    return Check(
        "Python", Status.OK if fine else Status.MISSING, platform.python_version(), "use 3.11 or newer", True
    )


def _package(name: str, probe: str, fix: str, required: bool = False) -> Check:
    """Installed, and its compiled part loads (tried in another process)."""
    try:
        installed = version(name)
    except PackageNotFoundError:
        return Check(name, Status.MISSING, "not installed", fix, required)
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=False)
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit {done.returncode}"
        return Check(name, Status.MISSING, f"{installed}, does not load: {reason}", fix, required)
    return Check(name, Status.OK, installed, "", required)


def _coreml() -> Check:
    if importlib.util.find_spec("coremltools") is None:
        return Check(
            "Core ML", Status.MISSING, "coremltools has no wheel for Linux on ARM", "pip install coremltools"
        )
    if sys.platform == "darwin":
        return Check("Core ML", Status.OK, f"coremltools {version('coremltools')}, run on this Mac")
    detail = (
        f"coremltools {version('coremltools')}: packages are written here and evaluated (emulated), not run"
    )
    return Check(
        "Core ML", Status.WARNING, detail, "run `edge-resnet verify DIR` on a Mac to see them running"
    )


def _extra(name: str, what: str) -> Check:
    try:
        return Check(name, Status.OK, f"{version(name)}, for {what}")
    except PackageNotFoundError:
        fix = f'pip install "edge-resnet[{name}]"'
        return Check(name, Status.MISSING, f"not installed; needed for {what}", fix)


def _cpu() -> Check:
    cpu = this_cpu()
    flags = ", ".join(sorted(cpu.flags)) or "none that matter here"
    return Check("CPU", Status.OK, f"{cpu.name}, {cpu.cores} cores, {cpu.architecture}; {flags}")


def _saturation() -> Check:
    cpu = this_cpu()
    if onnx_runtime_saturates(cpu):
        fix = "run `edge-resnet verify DIR`: it measures the loss on this CPU"
        return Check("ONNX Runtime int8", Status.WARNING, saturation_warning(cpu), fix)
    return Check("ONNX Runtime int8", Status.OK, "exact on this CPU")


def _disk() -> Check:
    free = shutil.disk_usage(Path.cwd()).free
    status = Status.OK if free >= _LEAST_FREE_BYTES else Status.WARNING
    return Check("disk", status, f"{free / 2**30:.1f} GiB free here", "make room, or give --out elsewhere")
