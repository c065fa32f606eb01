"""What this CPU is, as far as it decides integers and speed."""

from __future__ import annotations

import os
import platform
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

__all__ = ["Cpu", "onnx_runtime_saturates", "read_cpu", "saturation_warning", "this_cpu"]

_RELEVANT = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm", "sve")


@dataclass(frozen=True)
class Cpu:
    """`flags` holds the relevant ones among the system's names (Linux: /proc/cpuinfo)."""

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
        return Cpu(_sysctl("machdep.cpu.brand_string") or architecture, architecture, cores, _macos_flags())
    name, flags = "", set[str]()
    for line in cpuinfo.read_text(errors="replace").splitlines():
        key, _, value = (part.strip() for part in line.partition(":"))
        if key == "model name":
            name = name or value
        elif key in ("flags", "Features"):
            flags.update(value.split())
    return Cpu(name or architecture, architecture, cores, frozenset(flags & set(_RELEVANT)))


def onnx_runtime_saturates(cpu: Cpu) -> bool:
    """Whether ONNX Runtime's uint8 x int8 kernels add in saturating 16 bits here.

    They do on x86 with AVX2 or AVX-512 but without VNNI; with SSE only, and on ARM, they are exact.
    """
    x86 = cpu.architecture.lower() in ("x86_64", "amd64", "i686")
    return x86 and "avx2" in cpu.flags and not cpu.flags & {"avx512_vnni", "avx_vnni"}


def saturation_warning(cpu: Cpu) -> str:
    """One line for people whose .onnx file meets such a CPU."""
    return (
        f"this CPU ({cpu.name}) has AVX2 without VNNI: ONNX Runtime's int8 sums saturate in 16 bits here. "
        "The file is right, and LiteRT is not affected; the session setting "
        "session.x64quantprecision avoids it."
    )


def _macos_flags() -> frozenset[str]:
    names = {"asimddp": "hw.optional.arm.FEAT_DotProd", "i8mm": "hw.optional.arm.FEAT_I8MM"}
    return frozenset(flag for flag, key in names.items() if _sysctl(key) == "1")


def _sysctl(key: str) -> str:
    try:
        done = subprocess.run(["sysctl", "-n", key], capture_output=True, text=True, timeout=5, check=False)
    except OSError:
        return ""
    return done.stdout.strip()
