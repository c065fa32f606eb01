"""What the report's charts share: round ticks, a linear scale, and the frame around the picture."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from markupsafe import Markup, escape

__all__ = ["WIDTH", "plain", "scale", "svg", "ticks_over"]

_LEAST = 1e-10

WIDTH = 400
"""Of every picture, in its own units; on the page it is as wide as its card."""


def svg(height: float, spoken: str, body: Sequence[str]) -> Markup:
    """`spoken` is what a screen reader says."""
    view = f'viewBox="0 0 {WIDTH} {height:g}"'
    return Markup(f'<svg {view} role="img" aria-label="{escape(spoken)}">{"".join(body)}</svg>')


def scale(low: float, high: float, left: float, right: float) -> Callable[[float], float]:
    return lambda value: left + (right - left) * (value - low) / (high - low)


def ticks_over(low: float, high: float) -> list[float]:
    """Three to six round values that hold [low, high]: steps of 1, 2 or 5 times a power of ten."""
    largest = max(abs(low), abs(high))
    reach = high - low
    if reach < _LEAST or reach < 1e-9 * largest:  # ticks so close would be one number
        reach = largest if largest >= _LEAST else 1.0
    power = 10.0 ** math.floor(math.log10(reach / 3))
    step = next(power * times for times in (1, 2, 5, 10) if reach / (power * times) <= 4)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, max(last, first + 1) + 1)]


def plain(value: float) -> str:
    return f"{value:,.10g}"
