"""Small charts as inline SVG, in the page's own colours (currentColor and CSS classes).

What was not measured is drawn hollow and says its kind in words: that shows in print and without colour.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from edge_resnet.report.axes import WIDTH, plain, scale, svg, ticks_over

__all__ = ["Bar", "Interval", "bar_chart", "histogram_chart", "interval_chart"]

_ROW, _FOOT = 28, 38
_RIGHT = 12
# The width of a letter in the chart's units (wide fonts included); a name that needs more room is cut.
_LETTER, _LABEL_MOST = 7.2, 150
# Beyond this distance a histogram's rows are added up: a defect can spread over all 255.
_FAR_LSB = 7


@dataclass(frozen=True)
class Bar:
    name: str
    value: float
    words: str
    kind: str


@dataclass(frozen=True)
class Interval:
    """A value with its interval, all in the axis's unit."""

    name: str
    value: float
    low: float
    high: float
    kind: str


def bar_chart(bars: Sequence[Bar], axis: str) -> Markup | None:
    """Horizontal bars from zero; `axis` names what is counted, with its unit."""
    if not bars:
        return None
    left = _label_width([bar.name for bar in bars])
    ticks = ticks_over(0, max(bar.value for bar in bars) or 1)
    words_width = max(len(bar.words) + len(_said(bar.kind)) for bar in bars) * _LETTER
    x = scale(0, ticks[-1], left, WIDTH - 8 - words_width)
    body = _axis(ticks, x, len(bars), axis, plain)
    for index, bar in enumerate(bars):
        y = index * _ROW
        length = max(1.5, x(bar.value) - left)
        shape = f'x="{left}" y="{y + 6}" width="{length:.1f}" height="16" rx="2"'
        body += [_label(bar.name, left, y), f'<rect {shape} class="{_mark("bar", bar.kind)}"/>']
        body.append(
            f'<text x="{left + length + 6:.1f}" y="{y + 18}" class="value">'
            f"{escape(bar.words)}{_said(bar.kind)}</text>"
        )
    spoken = ", ".join(f"{bar.name} {bar.words} {bar.kind}".strip() for bar in bars)
    return svg(len(bars) * _ROW + _FOOT, f"{axis}: {spoken}", body)


def interval_chart(
    intervals: Sequence[Interval], axis: str, reference: float | None, words: Callable[[float], str]
) -> Markup | None:
    """Points with whiskers; `reference` is a dashed line down the chart. `words` writes a tick's value."""
    if not intervals:
        return None
    left = _label_width([interval.name for interval in intervals])
    edges = [edge for interval in intervals for edge in (interval.low, interval.high)]
    edges += [] if reference is None else [reference]
    ticks = ticks_over(min(edges), max(edges))
    x = scale(ticks[0], ticks[-1], left + 8, WIDTH - _RIGHT - 14)
    body = _axis(ticks, x, len(intervals), axis, words)
    if reference is not None:
        place = f'x1="{x(reference):.1f}" x2="{x(reference):.1f}" y1="0" y2="{len(intervals) * _ROW}"'
        body.append(f'<line {place} class="reference"/>')
    for index, interval in enumerate(intervals):
        y = index * _ROW + 14
        body += [
            _label(interval.name, left, index * _ROW),
            f'<line x1="{x(interval.low):.1f}" x2="{x(interval.high):.1f}" y1="{y}" y2="{y}" '
            'class="whisker"/>',
            f'<circle cx="{x(interval.value):.1f}" cy="{y}" r="4.5" class="{_mark("dot", interval.kind)}"/>',
        ]
        if interval.kind not in ("", "measured"):
            where = f'x="{x(interval.value):.1f}" y="{y + 13}" text-anchor="middle"'
            body.append(f'<text {where} class="kind">{escape(interval.kind)}</text>')
    spoken = ", ".join(
        f"{i.name} {words(i.value)} from {words(i.low)} to {words(i.high)} {i.kind}".strip()
        for i in intervals
    )
    return svg(len(intervals) * _ROW + _FOOT, f"{axis}: {spoken}", body)


def histogram_chart(histogram: Mapping[str, int], kind: str) -> Markup | None:
    """Share of logits by their distance in LSB; what is far away is one row."""
    counts: dict[int, int] = {}
    for lsb, count in histogram.items():
        near = min(int(lsb), _FAR_LSB + 1)
        counts[near] = counts.get(near, 0) + count
    total = sum(counts.values()) or 1
    bars = [
        Bar(
            f"{lsb} LSB" if lsb <= _FAR_LSB else f"{lsb} or more",
            100 * count / total,
            f"{100 * count / total:.2f} %",
            kind,
        )
        for lsb, count in sorted(counts.items())
    ]
    return bar_chart(bars, "share of logits, %")


def _label_width(names: Sequence[str]) -> int:
    return min(_LABEL_MOST, max(40, math.ceil(max(map(len, names)) * _LETTER) + 12))


def _label(text: str, left: int, y: int) -> str:
    room = int((left - 12) / _LETTER + 1e-9)
    shown = text if len(text) <= room else text[: room - 1] + "…"
    return f'<text x="{left - 8}" y="{y + 18}" text-anchor="end" class="label">{escape(shown)}</text>'


def _mark(name: str, kind: str) -> str:
    return name if kind in ("", "measured") else f"{name} hollow"


def _said(kind: str) -> str:
    return "" if kind in ("", "measured") else f" {escape(kind)}"


def _axis(
    ticks: Sequence[float], x: Callable[[float], float], rows: int, title: str, words: Callable[[float], str]
) -> list[str]:
    bottom = rows * _ROW
    lines = [f'<line x1="{x(t):.1f}" x2="{x(t):.1f}" y1="0" y2="{bottom}" class="grid"/>' for t in ticks]
    lines += [
        f'<text x="{x(tick):.1f}" y="{bottom + 14}" text-anchor="middle" class="tick">'
        f"{escape(words(tick))}</text>"
        for tick in ticks
    ]
    middle = (x(ticks[0]) + x(ticks[-1])) / 2
    lines.append(
        f'<text x="{middle:.1f}" y="{bottom + 31}" text-anchor="middle" class="tick">{escape(title)}</text>'
    )
    return lines
