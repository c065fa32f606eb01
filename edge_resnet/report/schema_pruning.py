"""What went and what that cost, in report.json: the records of `pruning_record.py` as typed values.

`bytes` and accuracies are measured, `predicted_ms` is predicted; MACs, parameters and channels are counted.
"""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from edge_resnet.report.channel_ranges import Span, gone_spans, kept_spans
from edge_resnet.report.part import Part

__all__ = ["Pruning", "PruningLatency", "PruningStage", "RemovableBlock", "SlimLayer"]


class SlimLayer(Part):
    """Output channels of one layer; `kept` as ranges, empty for all of them or, with its block, none."""

    name: str
    before: int = Field(ge=1)
    after: int = Field(ge=0)
    kept: str
    size: tuple[int, int]
    macs_before: int
    macs_after: int

    @model_validator(mode="after")
    def _channels_add_up(self) -> Self:
        kept_spans(self.kept, self.before, self.after)
        return self

    @property
    def gone(self) -> list[Span]:
        return gone_spans(kept_spans(self.kept, self.before, self.after), self.before)


class RemovableBlock(Part):
    """`cost`: divergence (KL, nats) from the original's answers where this block alone goes."""

    name: str
    layers: list[str]
    removed: bool
    cost: float | None = None


class PruningStage(Part):
    """The model after one stage; `bytes` and `predicted_ms` are those of its int8 .tflite."""

    name: str
    integers: bool
    top1: float | None = None
    n: int = 0
    macs: int
    params: int
    bytes: int
    predicted_ms: float | None = None
    detail: str = ""


class PruningLatency(Part):
    """Of the final int8 .tflite and of the unpruned one. `spread`: of the table's entries, relative.

    Without a table nothing is predicted.
    """

    runtime: str
    threads: int
    table: str | None = None
    spread: float | None = None
    predicted_ms: float | None = None
    predicted_unpruned_ms: float | None = None
    measured_ms: float | None = None
    measured_unpruned_ms: float | None = None


class Pruning(Part):
    """`part` of the original's latency, macs, params or bytes (`budget`) was allowed, `reached` is left.

    `layers` and `blocks` in the network's order.
    """

    budget: str
    part: float
    reached: float
    criterion: str
    multiple: int
    layers: list[SlimLayer] = Field(default_factory=list)
    blocks: list[RemovableBlock] = Field(default_factory=list)
    stages: list[PruningStage] = Field(default_factory=list)
    latency: PruningLatency | None = None
