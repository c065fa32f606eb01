"""What quantization did, for the report: its steps and their gain, training's curve, the layers' cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = [
    "EpochRecord",
    "LayerCost",
    "QuantizationRecord",
    "SensitivityRecord",
    "StepRecord",
    "TrainingRecord",
    "training_record",
]


@dataclass(frozen=True)
class StepRecord:
    """The integers after one step: top-1 of the integer reference on `n` images of the val split.

    `sqnr_db`: signal to quantization noise of the logits against the float graph's, on the same images;
    infinite where there is none.
    `detail`: what the step did, in a few words.
    """

    name: str
    seconds: float
    top1: float | None = None
    n: int = 0
    sqnr_db: float | None = None
    detail: str = ""


@dataclass(frozen=True)
class EpochRecord:
    """Means over one epoch of training; `top1` is that of the augmented training images."""

    epoch: int
    loss: float
    top1: float
    seconds: float


@dataclass(frozen=True)
class TrainingRecord:
    """`name` is train or qat. `losses` are (step, mean loss since the point before), at most some hundreds.

    `images` are those seen in each epoch. `resumed_at`: steps after which this run went on from a checkpoint.
    """

    name: str
    epochs: tuple[EpochRecord, ...]
    losses: tuple[tuple[int, float], ...]
    images: int
    seconds: float
    teacher: str | None = None
    resumed_at: tuple[int, ...] = ()


def training_record(values: Mapping[str, Any]) -> TrainingRecord:
    """From what dataclasses.asdict made of one, also when it went through JSON."""
    epochs = tuple(EpochRecord(**epoch) for epoch in values["epochs"])
    losses = tuple((step, loss) for step, loss in values["losses"])
    lists = {"epochs": epochs, "losses": losses, "resumed_at": tuple(values["resumed_at"])}
    return TrainingRecord(**{**values, **lists})


@dataclass(frozen=True)
class LayerCost:
    """One layer quantized alone, all others in float: the SQNR of the logits and the top-1 that is lost.

    `drop` is a fraction: 0.01 is one point; below 0 where top-1 rose. `from_weights`: which share of the
    noise at the layer's own output its integer weights make; the rest is the rounding of the output.
    `kept_float`: this layer was left in float.
    """

    name: str
    kind: str
    macs: int
    params: int
    sqnr_db: float
    top1: float
    drop: float
    from_weights: float = 0.0
    kept_float: bool = False


@dataclass(frozen=True)
class SensitivityRecord:
    """Every layer's cost on `n` images; with `max_drop` (points), what it took to meet it."""

    n: int
    float_top1: float
    int8_top1: float
    layers: tuple[LayerCost, ...]
    max_drop: float | None = None
    mixed_top1: float | None = None
    notes: tuple[str, ...] = ()


@dataclass
class QuantizationRecord:
    quantizer: str = "edge-resnet"
    estimator: str = "minmax"
    portable_x86: bool = False
    steps: list[StepRecord] = field(default_factory=list)
    training: list[TrainingRecord] = field(default_factory=list)
    sensitivity: SensitivityRecord | None = None
