"""Vela, Arm's compiler for Ethos-U NPUs, in a process of its own, and what its tables say."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from configparser import ConfigParser
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from importlib.util import find_spec
from math import isnan
from pathlib import Path
from typing import Any

from edge_resnet.devices.emulated import Package
from edge_resnet.errors import InputError, MissingToolError, VerificationError
from edge_resnet.frontends.keras_child import run_child

__all__ = [
    "VELA",
    "Board",
    "Estimate",
    "accelerators",
    "board_names",
    "check_accelerator",
    "compile_with_vela",
]

VELA = Package("ethos-u-vela", "ethosu", linux_x86_only=False)
_CONFIGURATION = "Arm/vela.ini"
_ASKING = 60.0  # seconds; it takes one third of one
# Vela's own columns of the layers' table -> ours. Its percentages follow from the cycles.
_LAYER_COLUMNS = {
    "Name": "name",
    "Original Operator": "operator",
    "NNG Operator": "becomes",
    "Target": "runs_on",
    "Op Cycles": "cycles",
    "MAC Count": "macs",
    "Util% (MAC)": "mac_utilization_percent",
    "Staging Usage": "sram_bytes",
}
_MEMORIES = {
    "sram_memory_used": "sram_bytes",
    "dram_memory_used": "dram_bytes",
    "on_chip_flash_memory_used": "on_chip_flash_bytes",
    "off_chip_flash_memory_used": "flash_bytes",
}


@dataclass(frozen=True)
class Board:
    """What to compile for. `system` and `memory`: names of Vela's configuration file, both or none (its own
    choice). `arena_bytes`: the SRAM that it tries to stay within.
    """

    accelerator: str
    system: str = ""
    memory: str = ""
    arena_bytes: int | None = None


@dataclass(frozen=True)
class Estimate:
    """`milliseconds`: of the NPU's part alone. `on_cpu`: operators that stay there, (kind, name)."""

    version: str
    milliseconds: float
    clock_hz: float
    system: str
    memory: str
    figures: dict[str, float | int]
    layers: list[dict[str, Any]]
    on_cpu: list[tuple[str, str]]
    compiled: bytes


@lru_cache
def accelerators() -> tuple[str, ...]:
    """As Vela's own help lists them. Raises MissingToolError where it does not answer."""
    try:
        said = run_child("ethosu.vela", ["--help"], name="vela --help", timeout=_ASKING)
    except InputError as error:
        raise MissingToolError(f"{error}; pip install --force-reinstall ethos-u-vela") from error
    found = re.search(r"--accelerator-config\s*\{([^}]*)\}", said)
    if found is None:
        raise MissingToolError("vela --help names no accelerators: this version of Vela is not known")
    return tuple(name.strip() for name in found[1].split(","))


@lru_cache
def board_names() -> dict[str, tuple[str, ...]]:
    """ "system" and "memory" -> the names in Vela's configuration file."""
    spec = find_spec("ethosu")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    parser = ConfigParser()
    parser.read(Path(spec.submodule_search_locations[0]) / "config_files" / _CONFIGURATION)
    kinds = {"system": "System_Config.", "memory": "Memory_Mode."}
    return {
        kind: tuple(name.removeprefix(start) for name in parser.sections() if name.startswith(start))
        for kind, start in kinds.items()
    }


def check_accelerator(asker: str, name: str) -> None:
    """Raises InputError that lists what Vela has, where it has no such accelerator; MissingToolError."""
    if name not in accelerators():
        raise InputError(f"{asker}: no such accelerator; Vela has {', '.join(accelerators())}")


def compile_with_vela(artifact: Path, board: Board, folder: Path, timeout: float) -> Estimate:
    """Compile a .tflite file; what Vela writes goes into `folder`, which is empty.

    Raises InputError with Vela's last words where it fails, VerificationError where its tables are not as
    expected.
    """
    options = ["--accelerator-config", board.accelerator, "--output-dir", str(folder)]
    if board.system:
        options += ["--config", _CONFIGURATION]
        options += ["--system-config", board.system, "--memory-mode", board.memory]
    if board.arena_bytes is not None:
        options += ["--arena-cache-size", str(board.arena_bytes)]
    name = f"vela on {artifact.name}"
    run_child("ethosu.vela", [str(artifact), *options, "--verbose-performance"], name=name, timeout=timeout)
    summary = _table(folder, "*_summary_*.csv")[0]
    rows = _table(folder, "*_per-layer.csv")
    try:
        return _estimate(summary, rows, next(folder.glob("*_vela.tflite")).read_bytes())
    except (KeyError, ValueError, StopIteration) as error:
        raise VerificationError(f"{name}: its tables are not as expected: {error!r}") from None


def _table(folder: Path, pattern: str) -> list[dict[str, str]]:
    path = next(iter(sorted(folder.glob(pattern))), None)
    rows: list[dict[str, str]] = []
    if path is not None:
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
    if not rows:
        raise VerificationError(f"vela wrote no {pattern}: this version of it is not known")
    return rows


def _estimate(summary: Mapping[str, str], rows: list[dict[str, str]], compiled: bytes) -> Estimate:
    layers = [{ours: _value(row[theirs]) for theirs, ours in _LAYER_COLUMNS.items()} for row in rows]
    on_cpu = [(str(row["operator"]), str(row["name"])) for row in layers if row["runs_on"] == "CPU"]
    figures: dict[str, float | int] = {
        "total_cycles": round(float(summary["cycles_total"])),
        "npu_cycles": round(float(summary["cycles_npu"])),
        "npu_macs": round(float(summary["nn_macs"])),
    }
    for column, key in _MEMORIES.items():
        kibibytes = float(summary[column])
        if kibibytes or key == "sram_bytes":
            figures[key] = round(1024 * kibibytes)
    # Not the rows: an activation that became part of the operator before it has one of its own.
    figures["npu_operators"] = int(summary["passes_after_fusing"]) - len(on_cpu)
    figures["cpu_operators"] = len(on_cpu)
    return Estimate(
        version=version("ethos-u-vela"),
        milliseconds=1000 * float(summary["inference_time"]),
        clock_hz=float(summary["core_clock"]),
        system=summary["system_config"],
        memory=summary["memory_mode"],
        figures=figures,
        layers=layers,
        on_cpu=on_cpu,
        compiled=compiled,
    )


def _value(text: str) -> str | float | int | None:
    try:
        number = float(text)
    except ValueError:
        return text
    if isnan(number):  # which JSON does not know
        return None
    return int(number) if number.is_integer() else number
