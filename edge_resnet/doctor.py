"""What this machine can do, and the command that adds what it lacks.

Nothing heavy is imported: versions come from the packages' metadata, and that the two runtimes' compiled
parts load is tried in processes of their own, at the same time.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_resnet.cpu import onnx_runtime_saturates, saturation_warning, this_cpu
from edge_resnet.errors import MissingToolError

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Check", "Status", "checks_to_json", "examine", "exit_code", "print_doctor"]

_LEAST_FREE_BYTES = 2 * 2**30  # a run of ResNet-50 with five targets leaves about 400 MB
_LEAST_MEMORY_BYTES = 2 * 2**30  # the whole command took 1.7 GiB with ResNet-50, three targets
_PROBE_SECONDS = 60.0  # a runtime's first import from a cold disk can take ten
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


class Status(StrEnum):
    OK = "ok"
    WARN = "warn"
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
    """Look at everything; under a second where the files are in the system's cache."""
    with ThreadPoolExecutor(2) as pool:
        litert = pool.submit(
            _runtime, "ai-edge-litert", "from ai_edge_litert.interpreter import Interpreter as _"
        )
        onnx = pool.submit(_runtime, "onnxruntime", "import onnxruntime")
        before = [_python(), _package("torch", "models and calibration", required=True)]
        after = [
            _coreml(),
            _package("scikit-learn", "the bundled demo's images"),
            _package("torchvision", "torchvision:NAME models", extra=True),
            _package("timm", "timm:NAME models", extra=True),
            _package("nncf", "--quantizer nncf", extra=True),
            _npu("ethos-u-vela", "--device vela://ethos-u55-128 and --target vela"),
            _npu("onnxruntime-qnn", "--device qnn-htp://73 and --target qnn-context", linux_x86_only=True),
            _npu("tflite-micro", "--device tflm://host", linux_x86_only=True),
            _ssh(),
            *_phones(),
            _emulated_arm(),
            _cpu(),
            _saturation(),
            _memory(),
            _disk(),
            _browser(),
        ]
        return [*before, litert.result(), onnx.result(), *after]


def exit_code(checks: Sequence[Check]) -> int:
    """3 when something required is missing, else 0."""
    return 3 if any(check.required and check.status is Status.MISSING for check in checks) else 0


def checks_to_json(checks: Sequence[Check]) -> list[dict[str, Any]]:
    return [asdict(check) for check in checks]


def print_doctor(checks: Sequence[Check], console: Console) -> int:
    """A table, and below it what to type. Returns `exit_code(checks)`."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, show_header=False)
    for check in checks:
        # As Text: a detail may hold brackets, which rich would take for its own markup.
        table.add_row(Text(check.status, style=_colour(check)), check.name, Text(check.detail))
    console.print(table)
    for check in checks:
        if check.fix and check.status is not Status.OK:
            console.print(f"{check.name}: {check.fix}", markup=False, highlight=False, soft_wrap=True)
    return exit_code(checks)


def _colour(check: Check) -> str:
    if check.status is Status.OK:
        return "green"
    return "red" if check.required and check.status is Status.MISSING else "yellow"


def _python() -> Check:
    fine = sys.version_info >= (3, 11)
    return Check(
        "Python", Status.OK if fine else Status.MISSING, platform.python_version(), "use 3.11 or newer", True
    )


def _package(name: str, what: str, required: bool = False, extra: bool = False) -> Check:
    """Installed or not, by its metadata; `extra`: this package has an extra of that name."""
    try:
        return Check(name, Status.OK, f"{version(name)}, for {what}", required=required)
    except PackageNotFoundError:
        fix = f'pip install "edge-resnet[{name}]"' if extra else f"pip install {name}"
        return Check(name, Status.MISSING, f"not installed; needed for {what}", fix, required)


def _npu(name: str, what: str, linux_x86_only: bool = False) -> Check:
    """A package of the extra `npu`."""
    if linux_x86_only and (sys.platform, platform.machine()) != ("linux", "x86_64"):
        detail = f"exists for Linux x86-64 only; needed for {what}"
        return Check(name, Status.MISSING, detail, "use a Linux x86-64 machine for this")
    found = _package(name, what)
    return replace(found, fix='pip install "edge-resnet[npu]"') if found.fix else found


def _runtime(name: str, probe: str) -> Check:
    """Installed, and its compiled part loads (tried in another process)."""
    fix = f"pip install {name}"
    try:
        installed = version(name)
    except PackageNotFoundError:
        return Check(name, Status.MISSING, "not installed", fix, required=True)
    command = [sys.executable, "-c", probe]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PROBE_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        reason = f"no answer within {_PROBE_SECONDS:.0f} s"
    else:
        if done.returncode == 0:
            return Check(name, Status.OK, f"{installed}, loads", required=True)
        lines = done.stderr.strip().splitlines()
        reason = lines[-1] if lines else f"exit code {done.returncode}"
    fix = f"pip install --force-reinstall {name}"
    return Check(name, Status.MISSING, f"{installed}, does not load: {reason}", fix, required=True)


def _coreml() -> Check:
    """coremltools writes packages on Linux x86-64 and macOS; only macOS runs them."""
    try:
        installed = version("coremltools")
    except PackageNotFoundError:
        if sys.platform == "linux" and platform.machine() != "x86_64":
            detail = f"coremltools has no wheel for Linux on {platform.machine()}: no Core ML targets here"
            return Check(
                "Core ML", Status.MISSING, detail, "write Core ML targets on Linux x86-64 or on a Mac"
            )
        return Check(
            "Core ML", Status.MISSING, "not installed; needed for Core ML targets", "pip install coremltools"
        )
    if sys.platform == "darwin":
        return Check("Core ML", Status.OK, f"coremltools {installed}, packages run on this Mac")
    detail = f"coremltools {installed}: packages are written here and evaluated (emulated), not run"
    return Check("Core ML", Status.WARN, detail, "run `edge-resnet verify DIR` on a Mac to see them running")


def _phones() -> list[Check]:
    """adb, and LiteRT's benchmark_model, which the user downloads."""
    from edge_resnet.devices.adb_tools import BENCHMARK_MODEL, NIGHTLY, benchmark_model, find_adb

    adb = find_adb()
    install = "brew install android-platform-tools" if sys.platform == "darwin" else "apt-get install adb"
    checks = [
        Check("adb", Status.OK, f"{adb}, for --device adb://SERIAL")
        if adb
        else Check("adb", Status.MISSING, "not installed; needed for --device adb://SERIAL", install)
    ]
    try:
        tool = benchmark_model()
    except MissingToolError as error:
        known = BENCHMARK_MODEL in os.environ
        detail = str(error) if known else "not known; needed for --device adb://SERIAL"
        fix = f"download {NIGHTLY} and set {BENCHMARK_MODEL} to its path"
        return [*checks, Check("benchmark_model", Status.MISSING, detail, fix)]
    return [*checks, Check("benchmark_model", Status.OK, f"{tool.path}, {tool.abi or 'a script'}")]


def _ssh() -> Check:
    found = shutil.which("ssh")
    if found:
        return Check("ssh", Status.OK, f"{found}, for --device ssh://user@host")
    install = "apt-get install openssh-client"
    return Check("ssh", Status.MISSING, "not installed; needed for --device ssh://user@host", install)


def _emulated_arm() -> Check:
    """qemu, and the root that `make arm-root` builds."""
    from edge_resnet.devices.arm_root import arm_emulator, arm_root

    name, needed = "ARM64, emulated", "needed for --device qemu://cortex-a76"
    try:
        emulator = arm_emulator()
    except MissingToolError:
        return Check(name, Status.MISSING, f"no qemu; {needed}", "apt-get install qemu-user-static")
    try:
        return Check(name, Status.OK, f"{emulator} with {arm_root()}, for --device qemu://cortex-a76")
    except MissingToolError as error:
        return Check(name, Status.MISSING, f"{error}; {needed}", "make arm-root")


def _cpu() -> Check:
    cpu = this_cpu()
    flags = ", ".join(sorted(cpu.flags)) or "none that matter here"
    return Check("CPU", Status.OK, f"{cpu.name}, {cpu.cores} cores, {cpu.architecture}; {flags}")


def _saturation() -> Check:
    cpu = this_cpu()
    if onnx_runtime_saturates(cpu):
        fix = "run `edge-resnet verify DIR`: it measures the loss on this CPU"
        return Check("ONNX Runtime int8", Status.WARN, saturation_warning(cpu), fix)
    return Check("ONNX Runtime int8", Status.OK, "exact on this CPU")


def _memory() -> Check:
    """Physical memory, or a container's limit where that is less."""
    size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(OSError, ValueError):  # no container, or the word "max"
        size = min(size, int(_CGROUP_LIMIT.read_text()))
    enough = size >= _LEAST_MEMORY_BYTES
    fix = "close other programs, or compress for one --target at a time"
    return Check("memory", Status.OK if enough else Status.WARN, f"{size / 2**30:.1f} GiB", fix)


def _disk() -> Check:
    free = shutil.disk_usage(Path.cwd()).free
    status = Status.OK if free >= _LEAST_FREE_BYTES else Status.WARN
    return Check("disk", status, f"{free / 2**30:.1f} GiB free here", "make room, or give --out elsewhere")


def _browser() -> Check:
    """Users need none; one of the project's tests looks at a report as a reader would."""
    found = shutil.which("chromium") or shutil.which("google-chrome")
    if found:
        return Check("Chromium", Status.OK, "for the project's own test of report.html")
    fix = "brew install --cask chromium" if sys.platform == "darwin" else "apt-get install chromium"
    detail = "not found; only the project's own test of report.html uses it"
    return Check("Chromium", Status.MISSING, detail, fix)
