"""What a benchmark is asked for, and what it says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from edge_resnet.errors import InputError

__all__ = ["BenchmarkResult", "BenchmarkSettings", "without_figures"]


@dataclass(frozen=True)
class BenchmarkSettings:
    """`runs` timed inferences of each artifact, in turns of `block`, each after `settle` untimed ones.

    Settling: the first inference after another process had the core was measured at 1.2 to 1.7 times the
    median, the second at 1.01 to 1.07, the third at 1.00 to 1.02 (ResNet-20). Timed, the
    first would be one sample in ten: the p95.
    Warm-up: blocks until a block's median is within the share `steady` of the one before it,
    `warmup_blocks` at most. `timeout` bounds each answer of a process, in seconds.
    `batch`: images at once, of which the throughput is measured as well; 1: of single images only.
    """

    runs: int = 200
    block: int = 10
    settle: int = 2
    warmup_blocks: int = 10
    steady: float = 0.05
    timeout: float = 120.0
    batch: int = 1

    def __post_init__(self) -> None:
        if self.runs < 1 or self.block < 1 or self.settle < 0:
            raise InputError(f"benchmark: {self.runs} runs in blocks of {self.block} cannot be timed")
        if self.batch < 1:
            raise InputError(f"benchmark: a batch of {self.batch} images cannot be timed")


@dataclass(frozen=True)
class BenchmarkResult:
    """One entry of report.json's `benchmarks`. A figure that could not be had is None, with a note.

    `kind` is measured, emulated, estimated or predicted. Latencies and cold start are in milliseconds for one
    image, throughput in images a second at batch 1; `batch_throughput_per_s` at batches of `batch`.
    `latency_interval_ms`: 80 % of a prediction. `energy_mj`: millijoules for one image, of all the processor.
    `figures`: what only this device tells, by names that end in their unit (`npu_cycles`, `arena_bytes`).
    `layers`: a row for each layer, as the device names them. `conditions`: its state around the runs.
    """

    device: str
    runtime: str
    runtime_version: str
    threads: int
    kind: str
    runs: int = 0
    latency_ms: dict[str, float] | None = None
    cold_start_ms: float | None = None
    peak_memory_bytes: int | None = None
    throughput_per_s: float | None = None
    notes: list[str] = field(default_factory=list)
    latency_interval_ms: tuple[float, float] | None = None
    batch: int | None = None
    batch_throughput_per_s: float | None = None
    energy_mj: float | None = None
    figures: dict[str, float | int] = field(default_factory=dict)
    layers: list[dict[str, Any]] = field(default_factory=list)
    conditions: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def without_figures(
    device: str, runtime: str, kind: str, reason: str, threads: int = 1, version: str = ""
) -> BenchmarkResult:
    """What is said of an artifact that could not be measured there."""
    return BenchmarkResult(device, runtime, version, threads, kind, notes=[reason])
