"""search.html and search.md: the front as a picture and a table, and what became of the other trials."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape

from edge_resnet.report.axes import WIDTH, plain, scale, svg, ticks_over
from edge_resnet.report.pages import page_environment
from edge_resnet.report.wording import bytes_words, milliseconds, percent, seconds_words
from edge_resnet.search.report import SearchReport, TrialResult

__all__ = ["FIGURES", "front_chart", "front_table", "headline", "to_html", "to_markdown"]

FIGURES = 6
"""So many columns of the front's table come before the values, which a terminal has no room for."""

_HEIGHT, _TOP, _FOOT, _LEFT, _RIGHT = 230, 10, 38, 58, 14


@dataclass(frozen=True)
class Table:
    """`numeric`: which columns hold numbers."""

    heads: list[str]
    rows: list[list[str]]
    numeric: frozenset[int]


def headline(report: SearchReport) -> str:
    """How many trials there were and what became of them."""
    counted = {state: len(report.of_state(state)) for state in ("complete", "stopped", "failed")}
    words = [f"{len(report.trials)} trials: {counted['complete']} complete"]
    words += [f"{counted['stopped']} stopped early"] * bool(counted["stopped"])
    words += [f"{counted['failed']} failed"] * bool(counted["failed"])
    words += [f"{report.lost} lost with their worker"] * bool(report.lost)
    return f"{', '.join(words)}; {len(report.front)} on the front"


def front_table(report: SearchReport) -> Table:
    """The front, the fastest first, and the unpruned model."""
    keys = list(report.ranges)
    rows = []
    for point in report.front:
        trial = report.trial(point.trial)
        assert trial.accuracy is not None
        assert trial.latency_ms is not None
        assert trial.bytes is not None
        figures = [
            percent(trial.accuracy),
            milliseconds(trial.latency_ms),
            f"{trial.latency_part:.3f}",
            bytes_words(trial.bytes),
        ]
        rows.append(
            [point.recipe, str(trial.number), *figures, *(value_words(trial.values[key]) for key in keys)]
        )
    unpruned = report.unpruned
    rows.append(
        [
            *("unpruned", "—", percent(unpruned.accuracy), milliseconds(unpruned.latency_ms)),
            *("1.000", bytes_words(unpruned.bytes), *("—" for _ in keys)),
        ]
    )
    heads = ["Recipe", "Trial", "Top-1", "Latency", "Of unpruned", "Size", *keys]
    return Table(heads, rows, frozenset(range(1, len(heads))))


def other_table(report: SearchReport) -> Table:
    """Stopped and failed trials, each with its reason."""
    rows = [
        [
            str(trial.number),
            trial.state,
            trial.reason or "—",
            seconds_words(trial.seconds or 0.0),
            _values(trial),
        ]
        for trial in report.trials
        if trial.state != "complete"
    ]
    return Table(["Trial", "State", "Reason", "Took", "Values"], rows, frozenset({0, 3}))


def front_chart(report: SearchReport) -> Markup | None:
    """Every complete trial; those on the front solid and joined by steps, the others hollow."""
    complete = [(t, t.latency_ms, t.accuracy) for t in report.of_state("complete")]
    points = [(trial, ms, 100 * top1) for trial, ms, top1 in complete if ms is not None and top1 is not None]
    if not points:
        return None
    reference = report.unpruned.latency_ms, 100 * report.unpruned.accuracy
    x_ticks = ticks_over(
        min(0.0, *(ms for _, ms, _ in points)), max(reference[0], *(ms for _, ms, _ in points))
    )
    tops = [top1 for _, _, top1 in points] + [reference[1]]
    y_ticks = ticks_over(min(tops), max(tops))
    bottom = _HEIGHT - _FOOT
    x = scale(x_ticks[0], x_ticks[-1], _LEFT, WIDTH - _RIGHT)
    y = scale(y_ticks[0], y_ticks[-1], bottom, _TOP)
    body = [*_axes(x_ticks, y_ticks, x, y, bottom), _cross(x(reference[0]), y(reference[1]))]
    numbers = [point.trial for point in report.front]
    places = {trial.number: (x(ms), y(top1)) for trial, ms, top1 in points}
    body.append(f'<path d="{_steps([places[number] for number in numbers])}" class="curve faint"/>')
    for trial, ms, top1 in sorted(points, key=lambda point: point[0].number in numbers):
        mark = "dot" if trial.number in numbers else "dot hollow"
        at = f'cx="{x(ms):.1f}" cy="{y(top1):.1f}"'
        title = f"trial {trial.number}: {top1:.2f} %, {milliseconds(ms)}"
        body.append(f'<circle {at} r="4.5" class="{mark}"><title>{escape(title)}</title></circle>')
    spoken = ", ".join(f"trial {t.number} {top1:.2f} % {milliseconds(ms)}" for t, ms, top1 in points)
    return svg(_HEIGHT, f"top-1 over latency: {spoken}", body)


def to_html(report: SearchReport) -> str:
    """One file that opens offline; names from users are escaped."""
    return (
        page_environment()
        .get_template("search.html.j2")
        .render(
            report=report,
            headline=headline(report),
            picture=front_chart(report),
            front=front_table(report),
            others=other_table(report),
            ranges=_ranges(report),
        )
    )


def to_markdown(report: SearchReport) -> str:
    """The page's tables as text."""
    lines = [f"# Search: {_cell(report.model)}", "", f"{headline(report)}.", ""]
    lines += [
        f"Top-1 is measured on {report.images:,} images of the train split that no trial saw; the model as "
        "it came may have been trained on them."
    ]
    lines += [""]
    lines += ["## Front", "", *_markdown(front_table(report)), ""]
    others = other_table(report)
    if others.rows:
        lines += ["## Stopped and failed", "", *_markdown(others), ""]
    lines += ["## Ranges", "", *_markdown(_ranges(report)), ""]
    lines += [
        f"Study {_cell(report.study)} in {_cell(report.storage)}, seed {report.seed}. `{report.command}`",
        "",
    ]
    return "\n".join(lines)


def value_words(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _values(trial: TrialResult) -> str:
    return ", ".join(f"{key}={value_words(value)}" for key, value in trial.values.items())


def _ranges(report: SearchReport) -> Table:
    rows = [
        [key, ", ".join(value_words(choice) for choice in written["choices"])]
        if "choices" in written
        else [key, _interval(written)]
        for key, written in report.ranges.items()
    ]
    return Table(["Key", "Tried"], rows, frozenset())


def _interval(written: dict[str, Any]) -> str:
    words = f"{value_words(written['low'])} to {value_words(written['high'])}"
    words += ", logarithmic" if written.get("log") else ""
    return words + (f", in steps of {value_words(written['step'])}" if written.get("step") else "")


def _markdown(table: Table) -> list[str]:
    rule = ["---:" if index in table.numeric else "---" for index in range(len(table.heads))]
    rows = [table.heads, rule, *([_cell(text) for text in row] for row in table.rows)]
    return [f"| {' | '.join(row)} |" for row in rows]


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _axes(x_ticks: Sequence[float], y_ticks: Sequence[float], x: Any, y: Any, bottom: float) -> list[str]:
    body = []
    for tick in y_ticks:
        body.append(
            f'<line x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}" class="grid"/>'
            f'<text x="{_LEFT - 6}" y="{y(tick) + 4:.1f}" text-anchor="end" class="tick">'
            f"{plain(tick)}%</text>"
        )
    for tick in x_ticks:
        body.append(
            f'<line x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{_TOP}" y2="{bottom}" class="grid"/>'
            f'<text x="{x(tick):.1f}" y="{bottom + 14}" text-anchor="middle" class="tick">'
            f"{plain(tick)}</text>"
        )
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    title = "latency of one image in the int8 file, ms"
    body.append(f'<text x="{middle}" y="{bottom + 31}" text-anchor="middle" class="tick">{title}</text>')
    return body


def _steps(places: Sequence[tuple[float, float]]) -> str:
    """What is reached: from each point right to the next one's latency, then up."""
    path = f"M{places[0][0]:.1f},{places[0][1]:.1f}"
    return path + "".join(f"H{x:.1f}V{y:.1f}" for x, y in places[1:])


def _cross(x: float, y: float) -> str:
    path = f"M{x - 5:.1f},{y - 5:.1f}l10,10m0,-10l-10,10"
    return f'<path d="{path}" class="curve"><title>unpruned, without training</title></path>'
