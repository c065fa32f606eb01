"""Pruning in words: the model after each stage, what is faster, and which channels and blocks went."""

from __future__ import annotations

from dataclasses import dataclass

from edge_resnet.benchmark.statistics import wilson_interval
from edge_resnet.report.channel_ranges import spans_words
from edge_resnet.report.figures import Figure, Reasons
from edge_resnet.report.present_latency import (
    NO_TABLE,
    UNTIMED,
    LatencyRow,
    latency_rows,
    latency_words,
    speed_up,
)
from edge_resnet.report.schema import Kind
from edge_resnet.report.schema_pruning import (
    Pruning,
    PruningStage,
    RemovableBlock,
    SlimLayer,
)
from edge_resnet.report.wording import (
    bytes_words,
    interval_words,
    join,
    milliseconds,
    percent,
    plural,
    points,
)

__all__ = [
    "BlockRow",
    "LayerRow",
    "PruningPage",
    "StageRow",
    "gain_words",
    "present_pruning",
]

_BUDGETS = {
    "latency": "int8 latency, as predicted",
    "macs": "multiply-accumulates",
    "params": "parameters",
    "bytes": "bytes of the int8 file",
}
_CRITERIA = {
    "l1": "the sum of its weights' absolute values (l1)",
    "l2": "its weights' Euclidean norm (l2)",
    "batch-norm": "its scale in batch normalization (batch-norm)",
    "taylor": "what its removal does to the loss, to first order (taylor)",
    "distillation": "what its removal does to the divergence from the original's answers (distillation)",
    "random": "chance: no criterion at all (random)",
}
_NOT_COUNTED = "the accuracy after this stage was not counted"
_OTHERS_UNTIMED = "of all stages only the unpruned and the final int8 file are timed"


@dataclass(frozen=True)
class StageRow:
    name: str
    detail: str
    top1: Figure
    change: Figure
    macs: Figure
    params: Figure
    size: Figure
    predicted: Figure
    measured: Figure


@dataclass(frozen=True)
class LayerRow:
    """`gone`: which channels; `removed`: the layer went with its block."""

    name: str
    channels: str
    gone: str
    size: str
    macs: str
    removed: bool


@dataclass(frozen=True)
class BlockRow:
    """`position` from 1, in the network's order."""

    position: int
    name: str
    layers: str
    cost: Figure
    removed: bool


@dataclass(frozen=True)
class PruningPage:
    """`facts`: name and words. `summary`: two sentences for where there is no room for tables.

    `layers`: those that changed, in the network's order.
    """

    facts: list[tuple[str, str]]
    summary: list[str]
    stages: list[StageRow]
    latency: list[LatencyRow]
    blocks: list[BlockRow]
    layers: list[LayerRow]
    source: Pruning


def present_pruning(pruning: Pruning, reasons: Reasons) -> PruningPage:
    """Everything that a view shows of it; `reasons` numbers why figures are missing."""
    return PruningPage(
        facts=_facts(pruning),
        summary=_summary(pruning),
        stages=[_stage_row(pruning, index, reasons) for index in range(len(pruning.stages))],
        latency=[] if pruning.latency is None else latency_rows(pruning.latency, reasons),
        blocks=[_block_row(at, block, reasons) for at, block in enumerate(pruning.blocks, 1)],
        layers=[_layer_row(layer) for layer in pruning.layers if layer.after != layer.before],
        source=pruning,
    )


def gain_words(pruning: Pruning) -> str:
    """`52% smaller and 1.88 times as fast as the unpruned int8 file`; empty where neither is known."""
    said = []
    if len(pruning.stages) > 1 and pruning.stages[0].bytes:
        rest = pruning.stages[-1].bytes / pruning.stages[0].bytes
        said.append(f"{abs(1 - rest):.0%} {'smaller' if rest <= 1 else 'larger'}")
    gain = None if pruning.latency is None else speed_up(pruning.latency)
    if gain is not None:
        factor, kind = gain
        said.append(f"{factor:.2f} times as fast{'' if kind is Kind.MEASURED else f' ({kind})'}")
    compared = "than" if len(said) == 1 and "fast" not in said[0] else "as"
    return f"{join(said)} {compared} the unpruned int8 file" if said else ""


def _facts(pruning: Pruning) -> list[tuple[str, str]]:
    facts = [
        (
            "Budget",
            f"{100 * pruning.part:.4g}% of the original's {_BUDGETS.get(pruning.budget, pruning.budget)}; "
            f"{percent(pruning.reached)} is left",
        ),
        ("What a channel is worth", _CRITERIA.get(pruning.criterion, pruning.criterion)),
        ("Channels", _channels_words(pruning)),
        ("Blocks", _blocks_words(pruning.blocks)),
    ]
    latency = pruning.latency
    if latency is not None and latency.table is not None:
        threads, spread = plural(latency.threads, "thread"), ""
        if latency.spread is not None:
            spread = f"; median spread of its entries {latency.spread:.1%}"
        facts.append(
            (
                "Latency table",
                f"{latency.table}; {latency.runtime}, {threads}{spread}",
            )
        )
    return facts


def _channels_words(pruning: Pruning) -> str:
    layers = pruning.layers
    gone = sum(layer.before - layer.after for layer in layers)
    if not gone:
        return "none went"
    with_blocks = sum(layer.before for layer in layers if not layer.after)
    inside = f" ({with_blocks:,} of them with their blocks)" if with_blocks else ""
    every = "" if pruning.multiple == 1 else f"; multiples of {pruning.multiple} are left where possible"
    return f"{gone:,} of {sum(layer.before for layer in layers):,} output channels went{inside}{every}"


def _blocks_words(blocks: list[RemovableBlock]) -> str:
    gone = [block.name for block in blocks if block.removed]
    if not gone:
        return f"none of the {len(blocks)} that could go went" if blocks else "none went"
    return f"{len(gone)} of the {len(blocks)} that could go went: {join(gone)}"


def _summary(pruning: Pruning) -> list[str]:
    lines = []
    if len(pruning.stages) > 1:
        first, last = pruning.stages[0], pruning.stages[-1]
        parts = [
            f"MACs {first.macs:,} -> {last.macs:,} ({_part(last.macs, first.macs)})",
            f"parameters {first.params:,} -> {last.params:,} ({_part(last.params, first.params)})",
            f"int8 file {bytes_words(first.bytes)} -> {bytes_words(last.bytes)}",
        ]
        gone = sum(layer.before - layer.after for layer in pruning.layers)
        blocks = sum(block.removed for block in pruning.blocks)
        went = f"{plural(gone, 'channel')} and {plural(blocks, 'block')} went"
        lines.append(f"Pruned: {', '.join(parts)}; {went}.")
    if pruning.latency is not None and (said := latency_words(pruning.latency)):
        lines.append(said)
    return lines


def _part(value: int, whole: int) -> str:
    return f"{value / whole:.1%}" if whole else "—"


def _stage_row(pruning: Pruning, index: int, reasons: Reasons) -> StageRow:
    stage, original = pruning.stages[index], pruning.stages[0]
    change = None
    if not index:
        change = Figure("reference")
    elif stage.top1 is not None and original.top1 is not None:
        other = "" if stage.n == original.n else "other images"
        change = Figure(points(stage.top1 - original.top1), Kind.MEASURED, other)
    numbers = "in integers" if stage.integers else "in float"
    counted = f", {plural(stage.n, 'image')}" if stage.top1 is not None and stage.n else ""
    return StageRow(
        name=stage.name,
        detail=f"{numbers}{counted}" + (f"; {stage.detail}" if stage.detail else ""),
        top1=_top1(stage, reasons),
        change=change or reasons.missing(_NOT_COUNTED),
        macs=_count(stage.macs, original.macs, index),
        params=_count(stage.params, original.params, index),
        size=Figure(
            bytes_words(stage.bytes), Kind.MEASURED, _of_original(stage.bytes, original.bytes, index)
        ),
        predicted=reasons.figure(stage.predicted_ms, milliseconds, Kind.PREDICTED, NO_TABLE),
        measured=_measured(pruning, index, reasons),
    )


def _top1(stage: PruningStage, reasons: Reasons) -> Figure:
    if stage.top1 is None or not stage.n:
        return reasons.missing(_NOT_COUNTED)
    low, high = wilson_interval(round(stage.top1 * stage.n), stage.n)
    return Figure(percent(stage.top1), Kind.MEASURED, interval_words(percent(low), percent(high)))


def _count(value: int, whole: int, index: int) -> Figure:
    return Figure(f"{value:,}", "", _of_original(value, whole, index))


def _of_original(value: int, whole: int, index: int) -> str:
    return _part(value, whole) if index else ""


def _measured(pruning: Pruning, index: int, reasons: Reasons) -> Figure:
    """The original's row has the unpruned file's, the last row the final one's."""
    if 0 < index < len(pruning.stages) - 1:
        return reasons.missing(_OTHERS_UNTIMED)
    latency = pruning.latency
    value = None
    if latency is not None:
        value = latency.measured_ms if index else latency.measured_unpruned_ms
    return reasons.figure(value, milliseconds, Kind.MEASURED, UNTIMED)


def _block_row(position: int, block: RemovableBlock, reasons: Reasons) -> BlockRow:
    return BlockRow(
        position=position,
        name=block.name,
        layers=", ".join(block.layers),
        cost=reasons.figure(
            block.cost,
            lambda value: f"{value:.3g}",
            Kind.MEASURED,
            "what this block is worth was not measured",
        ),
        removed=block.removed,
    )


def _layer_row(layer: SlimLayer) -> LayerRow:
    height, width = layer.size
    return LayerRow(
        name=layer.name,
        channels=f"{layer.before:,} → {layer.after:,}",
        gone="all, with its block" if not layer.after else spans_words(layer.gone),
        size=f"{height} x {width}",
        macs=f"{layer.macs_before:,} → {layer.macs_after:,}",
        removed=not layer.after,
    )
