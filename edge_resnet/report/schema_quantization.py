"""How the integers came about, in report.json: the records of `quantization_record.py` as typed values.

All figures are measured. A step's accuracy is that of the integer reference.
"""

from __future__ import annotations

from pydantic import Field

from edge_resnet.report.part import Part

__all__ = ["Epoch", "Layer", "Quantization", "Sensitivity", "Step", "Training"]


class Step(Part):
    """`top1` on `n` images; `sqnr_db` of the logits, null where not measured or where there is no noise."""

    name: str
    seconds: float
    top1: float | None = None
    n: int = 0
    sqnr_db: float | None = None
    detail: str = ""


class Epoch(Part):
    """Means over an epoch; `top1` on the augmented images that were trained on."""

    epoch: int
    loss: float
    top1: float
    seconds: float


class Training(Part):
    """`losses`: (step, mean loss since the point before). `images`: seen in each epoch."""

    name: str
    epochs: list[Epoch]
    losses: list[tuple[int, float]]
    images: int
    seconds: float
    teacher: str | None = None
    resumed_at: list[int] = Field(default_factory=list)


class Layer(Part):
    """A layer that is quantized alone. `sqnr_db`: null where that makes no noise. `drop`: a fraction."""

    name: str
    kind: str
    macs: int
    params: int
    sqnr_db: float | None
    top1: float
    drop: float
    from_weights: float | None = None
    kept_float: bool = False


class Sensitivity(Part):
    """`layers` in the network's order. `max_drop` in points."""

    n: int
    float_top1: float
    int8_top1: float
    layers: list[Layer]
    max_drop: float | None = None
    mixed_top1: float | None = None
    notes: list[str] = Field(default_factory=list)


class Quantization(Part):
    quantizer: str
    estimator: str
    portable_x86: bool
    steps: list[Step] = Field(default_factory=list)
    training: list[Training] = Field(default_factory=list)
    sensitivity: Sensitivity | None = None
