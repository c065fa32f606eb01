"""Which channels and blocks went, as inline SVG: a row for each layer, a place for each channel.

Solid is what stayed and hollow what went, so that it shows in print and without colour. Neighbouring channels
are one stroke, and all strokes of a layer one path: 2,048 channels cost no more than their spans.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from edge_resnet.report.axes import WIDTH, svg
from edge_resnet.report.channel_ranges import spans_words
from edge_resnet.report.schema_pruning import Pruning, SlimLayer

__all__ = ["ChannelChart", "channel_charts"]

_ROW, _BAR, _GAP = 15, 9, 5
_LETTER = 6.1  # width of a letter of a row's text, wide fonts included
_LABEL_MOST = 134
# Widths that differ more than this cannot all be seen when bars are as long as they are wide.
_MOST_APART = 8
# With more rows than this there are two pictures, side by side where there is room.
_MOST_ROWS = 30


@dataclass(frozen=True)
class ChannelChart:
    """`first` and `last` layer of the picture, from 1. `squared`: lengths are square roots of channels."""

    first: int
    last: int
    squared: bool
    picture: Markup


@dataclass(frozen=True)
class _Group:
    """Layers that follow each other in one block; `block` is empty for those in none that could go."""

    block: str
    removed: bool
    layers: list[SlimLayer]


@dataclass(frozen=True)
class _Frame:
    left: float
    length: Callable[[int], float]


def channel_charts(pruning: Pruning) -> list[ChannelChart]:
    """One picture, or two of about as many layers each for a deep network; none without layers."""
    if not pruning.layers:
        return []
    widths = [layer.before for layer in pruning.layers]
    squared = max(widths) > _MOST_APART * min(widths)
    left = min(_LABEL_MOST, max(len(layer.name) for layer in pruning.layers) * _LETTER + 12)
    values = max(len(_value(layer)) for layer in pruning.layers) * _LETTER + 8
    room, power = WIDTH - 2 - left - values, 0.5 if squared else 1.0
    frame = _Frame(left, lambda channels: room * (channels / max(widths)) ** power)
    charts, first = [], 1
    for groups in _halves(_groups(pruning), len(widths)):
        count = sum(len(group.layers) for group in groups)
        charts.append(ChannelChart(first, first + count - 1, squared, _chart(groups, frame)))
        first += count
    return charts


def _groups(pruning: Pruning) -> list[_Group]:
    blocks = {name: block for block in pruning.blocks for name in block.layers}
    groups: list[_Group] = []
    for layer in pruning.layers:
        block = blocks.get(layer.name)
        name = "" if block is None else block.name
        if not groups or groups[-1].block != name:
            groups.append(_Group(name, block is not None and block.removed, []))
        groups[-1].layers.append(layer)
    return groups


def _halves(groups: list[_Group], count: int) -> list[list[_Group]]:
    """Cut between two groups, as near to the middle as possible."""
    if count <= _MOST_ROWS or len(groups) == 1:
        return [groups]

    def distance(cut: int) -> int:
        return abs(count - 2 * sum(len(group.layers) for group in groups[:cut]))

    cut = min(range(1, len(groups)), key=distance)
    return [groups[:cut], groups[cut:]]


def _chart(groups: Sequence[_Group], frame: _Frame) -> Markup:
    body: list[str] = []
    y = 0.0
    for group in groups:
        if y:
            y += _GAP
        if group.removed:
            what = f'x="{frame.left:.1f}" y="{y + 11:.1f}"'
            body.append(f'<text {what} class="row lost">{escape(_cut(group.block, 40))} removed</text>')
            y += _ROW
        height = len(group.layers) * _ROW
        if group.block:
            x = f"{frame.left - 4:.1f}"
            kind = "bracket lost" if group.removed else "bracket"
            body.append(
                f'<line x1="{x}" x2="{x}" y1="{y + 1:.1f}" y2="{y + height - 1:.1f}" class="{kind}"/>'
            )
        for layer in group.layers:
            body += _row(layer, y, frame)
            y += _ROW
    said = [_said(layer) for group in groups for layer in group.layers]
    title = f"Channels of {len(said)} layers before and after"
    return svg(y, title, [f"<desc>{escape('; '.join(said))}</desc>", *body])


def _row(layer: SlimLayer, y: float, frame: _Frame) -> list[str]:
    left, length = frame.left, frame.length(layer.before)
    top = y + (_ROW - _BAR) / 2
    label = "row" if layer.after else "row soft"
    room = int((left - 12) / _LETTER + 1e-9)
    place = f'x="{left:.1f}" y="{top:.1f}" width="{length:.2f}" height="{_BAR}"'
    parts = [f"<g><title>{escape(_said(layer))}</title>"]
    parts.append(
        f'<text x="{left - 9:.1f}" y="{y + 11:.1f}" text-anchor="end" class="{label}">'
        f"{escape(_cut(layer.name, room))}</text>"
    )
    if layer.after:
        parts.append(f'<rect {place} class="channels"/>')
        if gone := layer.gone:
            each, middle = length / layer.before, f"{y + _ROW / 2:.1f}"
            strokes = "".join(
                f"M{left + first * each:.2f} {middle}h{(stop - first) * each:.2f}" for first, stop in gone
            )
            parts.append(f'<path d="{strokes}" class="gone"/>')
        parts.append(f'<rect {place} class="outline"/>')
    else:
        parts.append(f'<rect {place} class="outline lost"/>')
    where = f'x="{left + length + 6:.1f}" y="{y + 11:.1f}"'
    parts.append(f'<text {where} class="row value">{_value(layer)}</text></g>')
    return parts


def _cut(name: str, room: int) -> str:
    """The end of a name says more than its beginning."""
    return name if len(name) <= room else f"…{name[len(name) - room + 1 :]}"


def _value(layer: SlimLayer) -> str:
    return f"{layer.before}" if layer.after == layer.before else f"{layer.before} → {layer.after}"


def _said(layer: SlimLayer) -> str:
    if not layer.after:
        return f"{layer.name}: went with its block, {layer.before} channels"
    if layer.after == layer.before:
        return f"{layer.name}: all {layer.before} channels stayed"
    return f"{layer.name}: {layer.after} of {layer.before} channels stayed, gone: {spans_words(layer.gone)}"
