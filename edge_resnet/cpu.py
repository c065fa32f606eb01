"""What this CPU is, as far as it decides integers and speed."""

from __future__ import annotations

import os
import platform
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

__all__ = ["Cpu", "onnx_runtime_saturates", "read_cpu", "saturation_warning", "this_cpu"]

_X86 = ("x86_64", "amd64", "i686")
# In the words of Linux. asimddp is ARM's dot product (sdot, udot), i8mm its 8-bit matrix product.
_RELEVANT = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm", "sve")
# macOS has other words for the same things.
_MACOS = {
    "asimddp": "hw.optional.arm.FEAT_DotProd",
    "i8mm": "hw.optional.arm.FEAT_I8MM",
    "avx2": "hw.optional.avx2_0",
    "avx512f": "hw.optional.avx512f",
    "avx512_vnni": "hw.optional.avx512vnni",
}
# ARM's own cores (implementer 0x41): Linux tells their number, not their name. Numbers as in lscpu.
_ARM = "0x41"
_ARM_PARTS = {
    "0xd03": "Cortex-A53",
    "0xd04": "Cortex-A35",
    "0xd05": "Cortex-A55",
    "0xd07": "Cortex-A57",
    "0xd08": "Cortex-A72",
    "0xd09": "Cortex-A73",
    "0xd0a": "Cortex-A75",
    "0xd0b": "Cortex-A76",
    "0xd0c": "Neoverse-N1",
    "0xd0d": "Cortex-A77",
    "0xd40": "Neoverse-V1",
    "0xd41": "Cortex-A78",
    "0xd44": "Cortex-X1",
    "0xd46": "Cortex-A510",
    "0xd47": "Cortex-A710",
    "0xd48": "Cortex-X2",
    "0xd49": "Neoverse-N2",
    "0xd4d": "Cortex-A715",
    "0xd4e": "Cortex-X3",
    "0xd4f": "Neoverse-V2",
    "0xd80": "Cortex-A520",
    "0xd81": "Cortex-A720",
    "0xd82": "Cortex-X4",
}


@dataclass(frozen=True)
class Cpu:
    """`flags` holds the relevant ones in Linux's words; `cores` are those that this process may use."""

    name: str
    architecture: str
    cores: int
    flags: frozenset[str]


@cache
def this_cpu() -> Cpu:
    """The CPU that this process runs on."""
    return read_cpu(Path("/proc/cpuinfo"), platform.machine())


def read_cpu(cpuinfo: Path, architecture: str) -> Cpu:
    """From the text of /proc/cpuinfo; from sysctl where there is none (macOS)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not cpuinfo.exists():
        flags = frozenset(flag for flag, key in _MACOS.items() if _sysctl(key) == "1")
        return Cpu(_sysctl("machdep.cpu.brand_string") or architecture, architecture, cores, flags)
    names: dict[str, None] = {}  # an ordered set: a phone has two or three kinds of core
    found: set[str] = set()
    implementer = ""
    for line in cpuinfo.read_text(errors="replace").splitlines():
        key, _, value = (part.strip() for part in line.partition(":"))
        if key == "model name" and value:
            names[value] = None
        elif key == "CPU implementer":
            implementer = value
        elif key == "CPU part":
            names[_arm_name(implementer, value)] = None
        elif key in ("flags", "Features"):
            found.update(value.split())
    return Cpu(" + ".join(names) or architecture, architecture, cores, frozenset(found & set(_RELEVANT)))


def onnx_runtime_saturates(cpu: Cpu) -> bool:
    """Whether ONNX Runtime's uint8 x int8 kernels add in saturating 16 bits here.

    They do on x86 with AVX2 or AVX-512 but without VNNI; with SSE only, and on ARM, they are exact. Whether
    a graph's weights are large enough for it, `verify.exactness.can_saturate` says.
    """
    wide = cpu.flags & {"avx2", "avx512f"}
    return cpu.architecture.lower() in _X86 and bool(wide) and not cpu.flags & {"avx512_vnni", "avx_vnni"}


def saturation_warning(cpu: Cpu) -> str:
    """One line for people whose .onnx file meets such a CPU."""
    return (
        f"this CPU ({cpu.name}) has AVX2 without VNNI: ONNX Runtime's int8 sums saturate in 16 bits here. "
        "The file is right, and LiteRT is not affected. `portable_x86: true` in the recipe makes weights "
        "that cannot saturate; the session setting session.x64quantprecision=1 avoids it, at some speed."
    )


def _arm_name(implementer: str, part: str) -> str:
    if implementer == _ARM and part in _ARM_PARTS:
        return _ARM_PARTS[part]
    return f"ARM implementer {implementer or '?'} part {part}"


def _sysctl(key: str) -> str:
    """The value of a macOS system setting; empty where it is unknown."""
    try:
        done = subprocess.run(["sysctl", "-n", key], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
