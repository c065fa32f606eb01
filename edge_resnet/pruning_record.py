"""What pruning did, for the report: what went, what that cost, and what came out after each stage."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["BlockChange", "LatencyRecord", "LayerChange", "PruningRecord", "StageRecord"]


@dataclass(frozen=True)
class LayerChange:
    """One convolution or fully connected layer: its output channels before and after.

    `after` is 0 where the layer went with its block. `kept`: which channels stayed, as ranges from 0 on, for
    example "0-7,12"; all of them: "". `size`: height and width of its output.
    """

    name: str
    before: int
    after: int
    kept: str
    size: tuple[int, int]
    macs_before: int
    macs_after: int


@dataclass(frozen=True)
class BlockChange:
    """A residual block that could go. `layers`: those inside it. `removed`: it went.

    `cost`: what its removal from the original costs on the calibration images, as the divergence (KL, nats)
    of the answers from the original's; null where it was not measured.
    """

    name: str
    layers: tuple[str, ...]
    removed: bool
    cost: float | None = None


@dataclass(frozen=True)
class StageRecord:
    """The model after one stage: original, pruned, finetune, int8, qat.

    `top1` on `n` images of the val split, by the float or the integer reference; `bytes`: the int8 .tflite
    of this model. `predicted_ms`: its latency from the table, null without one.
    """

    name: str
    integers: bool
    top1: float | None
    n: int
    macs: int
    params: int
    bytes: int
    predicted_ms: float | None
    detail: str = ""


@dataclass(frozen=True)
class LatencyRecord:
    """Predicted and measured latency (ms, one image) of the final int8 file and of the unpruned one.

    `table`: where the table was measured, and when; `spread`: the median relative spread (interquartile
    range over median) of its entries. Without a table these and what is predicted are null; measured figures
    are null where nothing was measured.
    """

    runtime: str
    threads: int
    table: str | None
    spread: float | None
    predicted_ms: float | None
    predicted_unpruned_ms: float | None
    measured_ms: float | None = None
    measured_unpruned_ms: float | None = None


@dataclass
class PruningRecord:
    """`budget`: latency, macs, params or bytes; `part`: which part of the original it allows.

    `reached`: which part is left, by the same measure (of latency: as predicted).
    """

    budget: str
    part: float
    reached: float
    criterion: str
    multiple: int
    layers: tuple[LayerChange, ...] = ()
    blocks: tuple[BlockChange, ...] = ()
    stages: list[StageRecord] = field(default_factory=list)
    latency: LatencyRecord | None = None
