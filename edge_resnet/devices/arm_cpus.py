"""The ARM64 CPUs that can be emulated, and what Linux shows programs on them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edge_resnet.errors import InputError

__all__ = ["ARM_CPUS", "ASK_FEATURES", "ArmCpu", "arm_cpu", "features", "write_cpu_files"]


@dataclass(frozen=True)
class ArmCpu:
    """`model`: what qemu calls it. `part`: Arm's number of the core, 0 where it stands for none.

    `what`: for lists.
    """

    model: str
    part: int
    what: str


ARM_CPUS = {
    "cortex-a53": ArmCpu("cortex-a53", 0xD03, "Armv8.0, in order: Raspberry Pi 3, older phones"),
    "cortex-a72": ArmCpu("cortex-a72", 0xD08, "Armv8.0: Raspberry Pi 4"),
    "cortex-a76": ArmCpu(
        "cortex-a76", 0xD0B, "Armv8.2 with dot products (sdot): Raspberry Pi 5, phones of 2019"
    ),
    "neoverse-n1": ArmCpu("neoverse-n1", 0xD0C, "Armv8.2 with dot products (sdot): servers"),
    # qemu's `max` has SME, whose emulation (7.2) makes the runtimes compute garbage.
    "armv9-i8mm": ArmCpu("max,sme=off", 0, "Armv9 with SVE2 and matrix products (smmla): phones since 2022"),
}


def arm_cpu(name: str) -> ArmCpu:
    """Raises InputError that lists them."""
    if name not in ARM_CPUS:
        raise InputError(f"{name}: no emulated ARM CPU; there are {', '.join(ARM_CPUS)}")
    return ARM_CPUS[name]


# By the bit of AT_HWCAP and AT_HWCAP2 (Linux, arch/arm64/include/uapi/asm/hwcap.h).
_HWCAP = """
    fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm jscvt fcma lrcpc dcpop
    sha3 sm3 sm4 asimddp sha512 sve asimdfhm dit uscat ilrcpc flagm ssbs sb paca pacg
"""
_HWCAP2 = """
    dcpodp sve2 sveaes svepmull svebitperm svesha3 svesm4 flagm2 frint svei8mm svef32mm svef64mm svebf16 i8mm
    bf16 dgh rng bti mte ecv afp rpres mte3 sme
"""
# A Python program, run on the emulated CPU, that prints what `features` reads: qemu tells it to programs.
ASK_FEATURES = """
import struct
vector = open("/proc/self/auxv", "rb").read()
found = dict(struct.iter_unpack("=QQ", vector[: len(vector) // 16 * 16]))
print(found.get(16, 0), found.get(26, 0))
"""


def features(printed: str) -> list[str]:
    """Linux's names of what the CPU has, from what ASK_FEATURES printed there."""
    masks = [int(word) for word in printed.split()]
    return [
        word
        for mask, names in zip(masks, (_HWCAP, _HWCAP2), strict=True)
        for bit, word in enumerate(names.split())
        if mask >> bit & 1
    ]


def write_cpu_files(view: Path, part: int, has: Sequence[str]) -> None:
    """/proc and /sys below `view`, of a machine with as many cores as this one."""
    cores = os.cpu_count() or 1
    lines = (
        "BogoMIPS\t: 108.00", f"Features\t: {' '.join(has)}",
        f"CPU implementer\t: {0x41 if part else 0:#04x}", "CPU architecture: 8", "CPU variant\t: 0x0",
        f"CPU part\t: {part:#05x}", "CPU revision\t: 3",
    )  # fmt: skip
    cpuinfo = "".join("\n".join((f"processor\t: {core}", *lines, "", "")) for core in range(cores))
    cpus = view / "sys" / "devices" / "system" / "cpu"
    cpus.mkdir(parents=True)
    (view / "proc").mkdir()
    (view / "proc" / "cpuinfo").write_text(cpuinfo)
    for name in ("possible", "present", "online"):
        (cpus / name).write_text(f"0-{cores - 1}\n" if cores > 1 else "0\n")
