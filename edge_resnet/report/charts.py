"""Small charts as inline SVG, in the page's own colours (currentColor and CSS classes)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from markupsafe import Markup, escape

__all__ = ["accuracy_chart", "bar_chart", "histogram_chart"]

_WIDTH, _LABEL, _ROW = 360, 92, 26


def _svg(height: int, title: str, body: list[str]) -> Markup:
    return Markup(
        f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(title)}">{"".join(body)}</svg>'
    )


def _label(text: str, y: float) -> str:
    return f'<text x="{_LABEL - 8}" y="{y}" text-anchor="end" class="label">{escape(text)}</text>'


def bar_chart(rows: Sequence[tuple[str, float, str]]) -> Markup | None:
    """Horizontal bars from zero: (name, value, the value in words)."""
    if not rows:
        return None
    largest = max(value for _, value, _ in rows) or 1
    room = _WIDTH - _LABEL - 66
    body = []
    for index, (name, value, words) in enumerate(rows):
        y, length = index * _ROW, max(1.0, room * value / largest)
        body += [
            _label(name, y + 17),
            f'<rect x="{_LABEL}" y="{y + 5}" width="{length:.1f}" height="16" rx="2" class="bar"/>',
            f'<text x="{_LABEL + length + 6:.1f}" y="{y + 17}" class="value">{escape(words)}</text>',
        ]
    return _svg(len(rows) * _ROW, ", ".join(f"{name} {words}" for name, _, words in rows), body)


def accuracy_chart(rows: Sequence[tuple[str, float, float, float]]) -> Markup | None:
    """Differences with their intervals, in points, around zero: (name, delta, low, high)."""
    if not rows:
        return None
    reach = max(0.1, *(abs(edge) for _, _, low, high in rows for edge in (low, high))) * 1.1
    room = _WIDTH - _LABEL - 20

    def x(points: float) -> float:
        return _LABEL + room * (points + reach) / (2 * reach)

    height = len(rows) * _ROW + 22
    body = [f'<line x1="{x(0):.1f}" y1="0" x2="{x(0):.1f}" y2="{height - 20}" class="axis"/>']
    for index, (name, delta, low, high) in enumerate(rows):
        y = index * _ROW + 13
        body += [
            _label(name, y + 4),
            f'<line x1="{x(low):.1f}" y1="{y}" x2="{x(high):.1f}" y2="{y}" class="whisker"/>',
            f'<circle cx="{x(delta):.1f}" cy="{y}" r="4.5" class="dot"/>',
        ]
    for points in (-reach / 1.1, 0.0, reach / 1.1):
        place = f'x="{x(points):.1f}" y="{height - 5}" text-anchor="middle"'
        body.append(f'<text {place} class="tick">{points:+.2g}</text>')
    words = ", ".join(f"{name} {delta:+.2f} ({low:+.2f} to {high:+.2f})" for name, delta, low, high in rows)
    return _svg(height, words, body)


def histogram_chart(histogram: Mapping[str, int]) -> Markup:
    """Share of logits by their distance in LSB."""
    counts = sorted(((int(lsb), count) for lsb, count in histogram.items()))
    total = sum(count for _, count in counts) or 1
    return (
        bar_chart([(f"{lsb} LSB", count / total, f"{count / total:.2%}") for lsb, count in counts])
        or Markup()
    )
