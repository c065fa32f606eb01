"""Curves over training steps, and columns for the layers of a network, as inline SVG."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from edge_resnet.report.axes import WIDTH, plain, scale, svg, ticks_over

__all__ = ["Column", "Curve", "column_chart", "curve_chart", "smoothed"]

_HEIGHT, _TOP, _FOOT, _RIGHT = 170, 8, 38, 10
_LETTER = 7.0  # width of a tick's digit


@dataclass(frozen=True)
class Curve:
    """`name` says what the line is; `faint` for what another line smooths, `dots` for few points."""

    name: str
    points: Sequence[tuple[float, float]]
    faint: bool = False
    dots: bool = False


@dataclass(frozen=True)
class Column:
    """`value` None: nothing to draw, but its place is kept. `hollow`: set apart, as the caption explains."""

    name: str
    value: float | None
    words: str
    hollow: bool = False


def smoothed(points: Sequence[tuple[float, float]], window: int) -> list[tuple[float, float]]:
    """Each point's mean with its neighbours, `window` in all; fewer at the two ends."""
    half = window // 2
    values = [value for _, value in points]
    spans = [values[max(0, i - half) : i + half + 1] for i in range(len(values))]
    return [(step, sum(span) / len(span)) for (step, _), span in zip(points, spans, strict=True)]


def curve_chart(
    curves: Sequence[Curve],
    x_title: str,
    y_title: str,
    words: Callable[[float], str] = plain,
    marks: Sequence[float] = (),
    x_from: float | None = None,
) -> Markup | None:
    """Lines over a common axis; `marks` are dashed lines from top to bottom. `x_from` starts the axis."""
    points = [point for curve in curves for point in curve.points]
    if not points:
        return None
    y_ticks = ticks_over(min(y for _, y in points), max(y for _, y in points))
    left = _left(y_ticks, words)
    places = [*(x for x, _ in points), *marks, *(() if x_from is None else (x_from,))]
    first, last = min(places), max(places)
    last = last if last > first else first + 1
    x, y = scale(first, last, left + 6, WIDTH - _RIGHT - 6), _vertical(y_ticks)
    x_ticks = [tick for tick in ticks_over(first, last) if first <= tick <= last and tick == int(tick)]
    body = _frame(x, y, x_ticks or [first], y_ticks, left, (x_title, y_title), words)
    for mark in marks:
        place = f'x1="{x(mark):.1f}" x2="{x(mark):.1f}" y1="{_TOP}" y2="{_HEIGHT}"'
        body.append(f'<line {place} class="reference"/>')
    for curve in curves:
        path = " ".join(f"{x(at):.1f},{y(value):.1f}" for at, value in curve.points)
        body.append(f'<polyline points="{path}" class="curve{" faint" if curve.faint else ""}"/>')
        if curve.dots:
            body += [
                f'<circle cx="{x(at):.1f}" cy="{y(value):.1f}" r="3.5" class="dot"/>'
                for at, value in curve.points
            ]
    spoken = ", ".join(
        f"{curve.name}: from {words(curve.points[0][1])} to {words(curve.points[-1][1])}"
        for curve in curves
        if curve.points and not curve.faint
    )
    return svg(_HEIGHT + _FOOT, f"{y_title} over {x_title}; {spoken}", body)


def column_chart(
    columns: Sequence[Column], x_title: str, y_title: str, words: Callable[[float], str] = plain
) -> Markup | None:
    """A column for each, numbered from 1, up or down from zero. Pointing at one tells its name."""
    values = [column.value for column in columns if column.value is not None]
    if not values:
        return None
    y_ticks = ticks_over(min(0.0, *values), max(0.0, *values))
    left = _left(y_ticks, words)
    count = len(columns)
    x, y = scale(0.5, count + 0.5, left + 2, WIDTH - _RIGHT), _vertical(y_ticks)
    x_ticks = [1.0, *(tick for tick in ticks_over(1, count + 1) if 1 < tick <= count and tick == int(tick))]
    body = _frame(x, y, x_ticks, y_ticks, left, (x_title, y_title), words)
    width = min(16.0, 0.72 * (x(2) - x(1)))
    for number, column in enumerate(columns, 1):
        if column.value is None:
            continue
        top, bottom = sorted((y(column.value), y(0)))
        height = max(1.0, bottom - top)
        shape = f'x="{x(number) - width / 2:.1f}" y="{top:.1f}" width="{width:.1f}" height="{height:.1f}"'
        mark = "bar hollow" if column.hollow else "bar"
        title = f"{number}. {column.name}: {column.words}"
        body.append(f'<g><title>{escape(title)}</title><rect {shape} class="{mark}"/></g>')
    zero = f'x1="{left}" x2="{WIDTH - _RIGHT}" y1="{y(0):.1f}" y2="{y(0):.1f}"'
    body.append(f'<line {zero} class="zero"/>')
    spoken = ", ".join(f"{column.name} {column.words}" for column in columns)
    return svg(_HEIGHT + _FOOT, f"{y_title}: {spoken}", body)


def _left(ticks: Sequence[float], words: Callable[[float], str]) -> float:
    """Room for the vertical axis's title, turned, and for its longest tick."""
    return 24 + max(len(words(tick)) for tick in ticks) * _LETTER


def _vertical(ticks: Sequence[float]) -> Callable[[float], float]:
    return scale(ticks[0], ticks[-1], _HEIGHT, _TOP)


def _frame(
    x: Callable[[float], float],
    y: Callable[[float], float],
    x_ticks: Sequence[float],
    y_ticks: Sequence[float],
    left: float,
    titles: tuple[str, str],
    words: Callable[[float], str],
) -> list[str]:
    lines = []
    for tick in y_ticks:
        place = f'x1="{left:.1f}" x2="{WIDTH - _RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"'
        lines.append(f'<line {place} class="grid"/>')
        where = f'x="{left - 5:.1f}" y="{y(tick) + 4:.1f}" text-anchor="end"'
        lines.append(f'<text {where} class="tick">{escape(words(tick))}</text>')
    for tick in x_ticks:
        where = f'x="{x(tick):.1f}" y="{_HEIGHT + 14}" text-anchor="middle"'
        lines.append(f'<text {where} class="tick">{escape(plain(tick))}</text>')
    across = f'x="{(left + WIDTH - _RIGHT) / 2:.1f}" y="{_HEIGHT + 31}" text-anchor="middle"'
    lines.append(f'<text {across} class="tick">{escape(titles[0])}</text>')
    middle = (_TOP + _HEIGHT) / 2
    turned = f'transform="translate(11 {middle}) rotate(-90)" text-anchor="middle"'
    lines.append(f'<text {turned} class="tick">{escape(titles[1])}</text>')
    return lines
