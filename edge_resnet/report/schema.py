"""report.json, version 1, as typed values. Unknown keys are allowed; the names here are never renamed."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from edge_resnet.errors import InputError
from edge_resnet.report.part import Part
from edge_resnet.report.schema_pruning import Pruning
from edge_resnet.report.schema_quantization import Quantization

__all__ = [
    "Accuracy",
    "Artifact",
    "Baseline",
    "Benchmark",
    "Compressed",
    "CrossParity",
    "Data",
    "Environment",
    "Kind",
    "Latency",
    "Model",
    "Parity",
    "Pruning",
    "Quantization",
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


class Environment(Part):
    python: str
    packages: dict[str, str]
    cpu: str
    os: str


class ImportCheck(Part):
    """The imported graph beside the source on its own runtime: random images and some of the data's."""

    runtime: str
    images: int
    max_abs: float
    relative: float


class Model(Part):
    name: str
    source: str
    weights_sha256: str | None
    input_shape: list[int]
    params: int
    macs: int
    import_check: ImportCheck | None = None
    notes: list[str] = Field(default_factory=list)


class Data(Part):
    """`n_train` images to calibrate from, `n_val` to measure on; `fingerprint` of names and sizes."""

    source: str | None = None
    classes: list[str] = Field(default_factory=list)
    n_train: int | None = None
    n_val: int | None = None
    fingerprint: str | None = None


class Latency(Part):
    """Milliseconds for one image. Of a prediction only the middle, `p50`, is known."""

    mean: float | None = None
    p50: float
    p95: float | None = None
    p99: float | None = None


class Baseline(Part):
    """The model as it came, on its own runtime (`runtime`), on the same images."""

    top1: float | None
    top5: float | None
    n: int
    latency_ms: Latency | None
    runtime: str = "torch (eager, float32)"


class Compressed(Part):
    params: int
    macs: int


class Stage(Part):
    name: str
    seconds: float
    resumed: bool


class Ranges(Part):
    """Scales, zero points and integer weights (or float weights) read back, compared with the graph."""

    checked: int
    equal: int
    mismatches: list[str] = Field(default_factory=list)


class Parity(Part):
    """Logits on `runtime`, compared with what they should be.

    `identical`: share of images whose logits are the same: to the bit where `to_the_bit`, else as the
    integers that they stand for (a float16 runtime cannot hold every dequantized value). `lsb_histogram`
    counts logits by their distance in steps of the 8-bit output.
    """

    against: str
    n: int
    identical: float
    top1_agreement: float
    max_lsb: int | None
    mean_lsb: float | None
    lsb_histogram: dict[str, int] = Field(default_factory=dict)
    max_abs: float | None = None
    runtime: str | None = None
    kind: Kind | None = None
    to_the_bit: bool = False


class CrossParity(Part):
    """Logits of two runtimes compared directly."""

    against: str
    n: int
    identical: float
    top1_agreement: float


class Accuracy(Part):
    """Fractions; `delta` against the baseline on the same images, paired."""

    runtime: str
    top1: float
    top5: float | None
    n: int
    ci95: tuple[float, float]
    delta: float | None
    delta_ci95: tuple[float, float] | None
    kind: Kind = Kind.MEASURED
    runtime_version: str = ""


class Benchmark(Part):
    """What one device says of the artifact, at batch 1; `kind` holds for all of it.

    A null figure has its reason in `notes`. `accuracy` and `parity`: of the artifact's answers on that
    device, `accuracy.delta` against the float baseline on the same images. `figures`, `layers` and
    `conditions` as in edge_resnet.benchmark.result.BenchmarkResult.
    """

    device: str
    runtime: str
    runtime_version: str
    threads: int
    kind: Kind
    runs: int
    latency_ms: Latency | None
    cold_start_ms: float | None
    peak_memory_bytes: int | None
    throughput_per_s: float | None
    notes: list[str] = Field(default_factory=list)
    latency_interval_ms: tuple[float, float] | None = None
    batch: int | None = None
    batch_throughput_per_s: float | None = None
    energy_mj: float | None = None
    figures: dict[str, float | int] = Field(default_factory=dict)
    layers: list[dict[str, Any]] = Field(default_factory=list)
    conditions: dict[str, Any] = Field(default_factory=dict)
    accuracy: Accuracy | None = None
    parity: Parity | None = None


class Artifact(Part):
    """One file. `ranges` is null for a float file, `weights` for an int8 file.

    `failures` make the run fail, `notes` do not.
    """

    target: str
    path: str
    bytes: int
    sha256: str
    ranges: Ranges | None
    weights: Ranges | None = None
    parity: Parity | None
    accuracy: Accuracy | None
    benchmarks: list[Benchmark]
    cross_parity: list[CrossParity] = Field(default_factory=list)
    failures: list[str] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)


class Report(Part):
    """report.json."""

    schema_version: int = Field(default=SCHEMA_VERSION, ge=1, le=SCHEMA_VERSION, strict=True)
    created: str
    command: str
    recipe: dict[str, Any]
    environment: Environment
    model: Model
    baseline: Baseline
    compressed: Compressed
    stages: list[Stage]
    artifacts: list[Artifact]
    data: Data = Field(default_factory=Data)
    preprocess: dict[str, Any] = Field(default_factory=dict)
    notes: list[str] = Field(default_factory=list)
    quantization: Quantization | None = None
    pruning: Pruning | None = None

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
