"""Emulated CPUs: what the kernels for another CPU answer, to the bit, and how many instructions they take.

ARM64 CPUs run the root of arm_root.py; the x86 ones this environment, on CPUs that lack what this one has.
Emulated time means nothing, so none is told.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from edge_resnet.benchmark.process import WORKER
from edge_resnet.benchmark.result import BenchmarkResult
from edge_resnet.devices.arm_cpus import ARM_CPUS
from edge_resnet.devices.arm_root import PYTHON, arm_command, arm_emulator, arm_root
from edge_resnet.devices.device import Job, Measurement, Request
from edge_resnet.devices.host import RUNTIMES, measure_on_host, steps_on_host
from edge_resnet.devices.instruction_counts import count_instructions, emulator_version
from edge_resnet.devices.local import OnThisMachine
from edge_resnet.errors import InputError, MissingToolError
from edge_resnet.progress import Advance

__all__ = ["X86_CPUS", "EmulatedCpu", "X86Cpu", "open_qemu", "x86_emulator"]

# Emulation takes 100 to 1,000 times as long: a quarter of a minute for an image of ResNet-50.
_TIMEOUT_S = 3600.0
_PROXY = (
    "instructions of one inference: a repeatable proxy for comparing builds on this CPU, not latency (dot "
    "products repeat exactly, all instructions within 0.1 %)"
)
_SATURATES = (
    "its kernel here adds products in 16 bits, which saturate (pmaddubsw): a file without "
    "`portable_x86: true` answers differently here than on other CPUs"
)
_NOT_TIMED = "emulated: no latency, as emulated time means nothing"
# Above this share, inferences differ by more than the odd allocation.
_SPREAD = 0.01
# qemu emulates AVX2 since 7.2; before, a program on its Haswell would take other kernels and find nothing.
_AVX2_SINCE = (7, 2)

# Runs Python with `arguments`, by `emulator` (qemu with options), or the usual one.
_Command = Callable[[Sequence[str], Sequence[str]], list[str]]


@dataclass(frozen=True)
class X86Cpu:
    """`model`: what qemu calls it."""

    model: str
    what: str
    avx2: bool


X86_CPUS = {
    "x86-haswell": X86Cpu("Haswell", "AVX2 without VNNI: ONNX Runtime's int8 sums can saturate", True),
    "x86-nehalem": X86Cpu("Nehalem", "SSE4.2 without AVX", False),
}


class EmulatedCpu:
    """A Host and a Device. `most_images`: some minutes for ResNet-20."""

    kind = "emulated"
    timed = False
    most_images: int | None = 1000

    def __init__(self, cpu: str) -> None:
        self.uri, self._cpu = f"qemu://{cpu}", cpu

    @contextmanager
    def session(self, runtimes: Sequence[str]) -> Iterator[_Emulation]:
        command = self._command()
        with tempfile.TemporaryDirectory(prefix="edge-resnet-") as folder:
            yield _Emulation(Path(folder), command)

    def steps(self, jobs: Sequence[Job], request: Request) -> int:
        return steps_on_host(jobs, request, self.timed) + len(jobs)

    def measure(self, jobs: Sequence[Job], request: Request, advance: Advance) -> dict[str, Measurement]:
        """Answers to the images, and counts of instructions where this machine can count."""
        patient = replace(request.settings, timeout=max(_TIMEOUT_S, request.settings.timeout))
        found = measure_on_host(self, jobs, replace(request, settings=patient), advance)
        command = self._command() if any(not found[job.key].benchmarks for job in jobs) else None
        for job in jobs:
            # Those that have an entry failed, and it says why.
            if command is not None and not found[job.key].benchmarks:
                answers = found[job.key].answers
                version = "" if answers is None else answers.runtime_version
                found[job.key].benchmarks.append(self._counted(job, command, version, patient.timeout))
            advance(1)
        return found

    def _counted(self, job: Job, command: _Command, version: str, timeout: float) -> BenchmarkResult:
        worker, runtime = RUNTIMES[job.path.suffix]
        figures: dict[str, float | int] = {}
        try:
            counted = count_instructions(command, self._architecture, job.path, worker, timeout)
        except MissingToolError as error:
            notes = [_NOT_TIMED, str(error)]
        else:
            version, notes = counted.version, [_NOT_TIMED, _PROXY]
            figures.update(counted.figures)
            if figures.get("pmaddubsw_instructions"):
                notes.append(_SATURATES)
            if counted.spread > _SPREAD:
                notes.append(
                    f"instructions of one inference differ by {counted.spread:.1%}; the fewest are told"
                )
        return BenchmarkResult(self.uri, runtime, version, 1, self.kind, notes=notes, figures=figures)

    @property
    def _architecture(self) -> str:
        return "aarch64" if self._cpu in ARM_CPUS else "x86_64"

    def _command(self) -> _Command:
        """Raises MissingToolError for what is not there."""
        if self._cpu in ARM_CPUS:
            arm_emulator()
            root = arm_root()
            environment = {"PYTHONHASHSEED": "0"}
            return lambda emulator, arguments: arm_command(
                root, self._cpu, [PYTHON, *arguments], environment, emulator
            )
        return _x86_command(X86_CPUS[self._cpu])


class _Emulation(OnThisMachine):
    def __init__(self, folder: Path, command: _Command) -> None:
        super().__init__(folder, os.cpu_count() or 1)
        self._command = command

    def command(self, artifact: Path, runtime: str, threads: int) -> list[str]:
        arguments = [str(WORKER), str(artifact.absolute()), "--runtime", runtime, "--threads", str(threads)]
        return self._command([], arguments)


def open_qemu(uri: str) -> EmulatedCpu:
    """Raises InputError that lists the CPUs."""
    cpu = uri.partition("://")[2]
    if cpu not in ARM_CPUS and cpu not in X86_CPUS:
        known = ", ".join((*ARM_CPUS, *X86_CPUS))
        raise InputError(f"--device {uri}: no CPU that is emulated here; qemu://CPU with one of {known}")
    return EmulatedCpu(cpu)


def x86_emulator() -> str:
    """The path of qemu's program for x86-64."""
    found = shutil.which("qemu-x86_64-static") or shutil.which("qemu-x86_64")
    if found is None:
        raise MissingToolError(
            "qemu-x86_64 is not installed: apt-get install qemu-user-static (Debian, Ubuntu)"
        )
    return found


def _x86_command(cpu: X86Cpu) -> _Command:
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise MissingToolError(
            f"{cpu.model} is emulated on x86-64 Linux only, with the environment that runs there"
        )
    usual = x86_emulator()

    def command(emulator: Sequence[str], arguments: Sequence[str]) -> list[str]:
        program = [*(emulator or [usual])]
        if cpu.avx2 and emulator_version(program[0]) < _AVX2_SINCE:
            raise MissingToolError(
                f"{program[0]} has no AVX2, which qemu emulates since 7.2: install a newer one"
            )
        variables = (
            "OMP_NUM_THREADS=1",
            "OPENBLAS_NUM_THREADS=1",
            "PYTHONHASHSEED=0",
            "PYTHONDONTWRITEBYTECODE=1",
        )
        return ["env", *variables, *program, "-cpu", cpu.model, sys.executable, *arguments]

    return command
