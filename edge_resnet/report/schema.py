"""report.json, version 1, as typed values. Unknown keys are allowed; the names here are never renamed."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edge_resnet.errors import InputError

__all__ = [
    "Accuracy",
    "Artifact",
    "Baseline",
    "Benchmark",
    "Compressed",
    "CrossParity",
    "Environment",
    "Kind",
    "Model",
    "Parity",
    "Ranges",
    "Report",
    "Stage",
    "load_report",
]

SCHEMA_VERSION = 1


class Kind(StrEnum):
    """How a figure was had."""

    MEASURED = "measured"
    EMULATED = "emulated"
    ESTIMATED = "estimated"
    PREDICTED = "predicted"


class _Part(BaseModel):
    model_config = ConfigDict(extra="allow")


class Environment(_Part):
    python: str
    packages: dict[str, str]
    cpu: str
    os: str


class Model(_Part):
    name: str
    source: str
    weights_sha256: str | None
    input_shape: list[int]
    params: int
    macs: int


class Baseline(_Part):
    """The float model in torch, on the same images."""

    top1: float | None
    top5: float | None
    n: int
    latency_ms: dict[str, float] | None


class Compressed(_Part):
    params: int
    macs: int


class Stage(_Part):
    name: str
    seconds: float
    resumed: bool


class Ranges(_Part):
    """Scales, zero points and integer weights read back from the file, compared with the graph."""

    checked: int
    equal: int
    mismatches: list[str] = Field(default_factory=list)


class Parity(_Part):
    """`identical`: share of images whose logits are the same to the bit."""

    against: str
    n: int
    identical: float
    top1_agreement: float
    max_lsb: int | None
    mean_lsb: float | None
    lsb_histogram: dict[str, int] = Field(default_factory=dict)
    max_abs: float | None = None


class CrossParity(_Part):
    """Logits of two runtimes compared directly."""

    against: str
    n: int
    identical: float
    top1_agreement: float


class Accuracy(_Part):
    """Fractions; `delta` against the baseline on the same images, paired."""

    runtime: str
    top1: float
    top5: float
    n: int
    ci95: tuple[float, float]
    delta: float
    delta_ci95: tuple[float, float]
    kind: Kind = Kind.MEASURED
    runtime_version: str = ""


class Benchmark(_Part):
    device: str
    runtime: str
    runtime_version: str
    threads: int
    kind: Kind
    runs: int
    latency_ms: dict[str, float] | None
    cold_start_ms: float | None
    peak_memory_bytes: int | None
    throughput_per_s: float | None
    notes: list[str] = Field(default_factory=list)


class Artifact(_Part):
    target: str
    path: str
    bytes: int
    sha256: str
    ranges: Ranges | None
    parity: Parity | None
    accuracy: Accuracy | None
    benchmarks: list[Benchmark]
    cross_parity: list[CrossParity] = Field(default_factory=list)
    failures: list[str] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)


class Report(_Part):
    schema_version: int = SCHEMA_VERSION
    created: str
    command: str
    recipe: dict[str, Any]
    environment: Environment
    model: Model
    baseline: Baseline
    compressed: Compressed
    stages: list[Stage]
    artifacts: list[Artifact]
    data: dict[str, Any] = Field(default_factory=dict)
    preprocess: dict[str, Any] = Field(default_factory=dict)
    notes: list[str] = Field(default_factory=list)

    @property
    def failures(self) -> list[str]:
        return [failure for artifact in self.artifacts for failure in artifact.failures]


def load_report(path: Path) -> Report:
    """Read a report.json. Raises InputError: missing, damaged, or written by a newer version."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot read the report: {error.strerror or error}") from error
    except ValueError as error:
        raise InputError(f"{path}: not a report: {error}") from error
    version = values.get("schema_version") if isinstance(values, dict) else None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise InputError(f"{path}: written by a newer edge-resnet (schema {version}); upgrade to read it")
    try:
        return Report.model_validate(values)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"])
        raise InputError(f"{path}: not a report: {where}: {problem['msg']}") from error
