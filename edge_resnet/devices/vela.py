"""`vela://ethos-u55-128`: Arm's Ethos-U NPUs, as their compiler Vela estimates them.

    vela://ethos-u55-128                                      with Vela's own choice of board
    vela://ethos-u65-256?system=Ethos_U65_Embedded&memory=Shared_Sram
    vela://ethos-u55-128?sram=512K                            a board with so much SRAM: does the model fit?

`system` and `memory` are names of Vela's configuration file: clock and bandwidth of a board, and what lies
where. No simulator of the NPU is on PyPI: nothing is run, there are no answers. The package is
`ethos-u-vela`.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl

from edge_resnet.benchmark.result import BenchmarkResult, without_figures
from edge_resnet.devices.device import Job, Measurement, Request
from edge_resnet.devices.emulated import named_nodes
from edge_resnet.devices.vela_compiler import (
    VELA,
    Board,
    Estimate,
    board_names,
    check_accelerator,
    compile_with_vela,
)
from edge_resnet.errors import EdgeResnetError, InputError, MissingToolError
from edge_resnet.progress import Advance

__all__ = ["VelaDevice", "open_vela"]

RUNTIME = "Vela"
KIND = "estimated"
_FORM = re.compile(r"ethos-u\d+-\d+")
_UNITS = {"": 1, "K": 2**10, "M": 2**20}
# Conversions at the model's ends are a few numbers: what they take on the CPU is nothing beside the NPU's
# work, so that the NPU's time is the model's. Of anything else on the CPU, Vela does not know the time.
_LITTLE = frozenset({"Quantize", "Dequantize", "Reshape"})


@dataclass(frozen=True)
class VelaDevice:
    """`sram_bytes`: how much the user's board has; None: not said."""

    uri: str
    board: Board
    sram_bytes: int | None
    most_images: int | None = 0

    def steps(self, jobs: Sequence[Job], request: Request) -> int:
        return len(jobs)

    def measure(self, jobs: Sequence[Job], request: Request, advance: Advance) -> dict[str, Measurement]:
        found: dict[str, Measurement] = {}
        if any(job.path.suffix == ".tflite" for job in jobs):
            VELA.check(self.uri)
        for job in jobs:
            found[job.key] = Measurement([self._one(job, request.settings.timeout)])
            advance(1)
        return found

    def _one(self, job: Job, timeout: float) -> BenchmarkResult:
        if job.path.suffix != ".tflite":
            return self._without(f"Vela compiles .tflite files, not {job.path.suffix}")
        try:
            with tempfile.TemporaryDirectory(prefix="edge-resnet-") as folder:
                estimate = compile_with_vela(job.path, self.board, Path(folder), timeout)
        except EdgeResnetError as error:
            return self._without(str(error))
        if any(kind == "Custom" for kind, _ in estimate.on_cpu):
            return self._without("compiled already; the int8 file that it was compiled from has the estimate")
        milliseconds = estimate.milliseconds if self._is_all(estimate) else None
        return BenchmarkResult(
            self.uri,
            RUNTIME,
            estimate.version,
            1,
            KIND,
            # An estimate has no spread.
            latency_ms=None if milliseconds is None else {"p50": milliseconds},
            throughput_per_s=None if milliseconds is None else 1000 / milliseconds,
            figures=estimate.figures,
            layers=estimate.layers,
            notes=self._notes(estimate),
        )

    @staticmethod
    def _is_all(estimate: Estimate) -> bool:
        """Whether the NPU's time is as good as the model's."""
        return bool(estimate.figures["npu_operators"]) and all(kind in _LITTLE for kind, _ in estimate.on_cpu)

    def _notes(self, estimate: Estimate) -> list[str]:
        notes = []
        total = estimate.figures["npu_operators"] + estimate.figures["cpu_operators"]
        names = named_nodes([f"{kind} {name!r}" for kind, name in estimate.on_cpu])
        if len(estimate.on_cpu) == total:
            notes.append(f"no operator runs on the NPU, all {total} stay on the CPU (a float model?)")
        elif not self._is_all(estimate):
            notes.append(
                f"no latency: {len(estimate.on_cpu)} of {total} operators stay on the CPU, and Vela does not "
                f"estimate their time: {names}"
            )
        elif estimate.on_cpu:
            notes.append(f"on the CPU, not in the time: {names}")
        used = estimate.figures["sram_bytes"]
        if self.sram_bytes is not None and used > self.sram_bytes:
            notes.insert(
                0,
                f"does not fit: it takes {used / 1024:,.1f} KiB of SRAM and the board has "
                f"{self.sram_bytes / 1024:,.1f} KiB; a smaller or pruned model, or a board with DRAM "
                "(Ethos-U65, U85)",
            )
        notes.append(
            f"Vela's estimate for {estimate.system} at {estimate.clock_hz / 1e6:g} MHz, memory mode "
            f"{estimate.memory}: one number, without spread; nothing was run, so nothing was answered"
        )
        return notes

    def _without(self, reason: str) -> BenchmarkResult:
        return without_figures(self.uri, RUNTIME, KIND, reason)


def open_vela(uri: str) -> VelaDevice:
    """Raises InputError for names that Vela does not know. Where it is not installed, the form is checked."""
    accelerator, _, query = uri.partition("://")[2].partition("?")
    given = dict(parse_qsl(query, keep_blank_values=True))
    if odd := [key for key in given if key not in {"system", "memory", "sram"}]:
        raise InputError(f"--device {uri}: unknown option {odd[0]!r}; there are system, memory and sram")
    sram = _bytes(uri, given["sram"]) if "sram" in given else None
    if ("system" in given) != ("memory" in given):
        raise InputError(f"--device {uri}: give system=... and memory=... together, or neither")
    if VELA.installed():
        with suppress(MissingToolError):  # a broken Vela: measuring tells, after the other devices
            check_accelerator(f"--device {uri}", accelerator)
        known = board_names()
        for what, name in given.items():
            if what in known and name not in known[what]:
                raise InputError(f"--device {uri}: no such {what}; Vela has {', '.join(known[what])}")
        _check_family(uri, accelerator, given.get("system", ""))
    elif not _FORM.fullmatch(accelerator):
        raise InputError(f"--device {uri}: no such accelerator; write vela://ethos-u55-128, for example")
    board = Board(accelerator, given.get("system", ""), given.get("memory", ""), sram)
    return VelaDevice(uri, board, sram)


def _check_family(uri: str, accelerator: str, system: str) -> None:
    """Vela compiles for an Ethos-U55 at the clock and with the DRAM of an Ethos-U65's board, if told to."""
    family = re.match(r"Ethos_(U\d+)_", system)
    if family is not None and family[1].lower() != accelerator.split("-")[1]:
        raise InputError(f"--device {uri}: {system} is a board with an Ethos-{family[1]}")


def _bytes(uri: str, text: str) -> int:
    found = re.fullmatch(r"([1-9]\d{0,9})([KM]?)", text)
    if found is None:
        raise InputError(f"--device {uri}: sram={text} is no size; write sram=512K or sram=2M")
    return int(found[1]) * _UNITS[found[2]]
