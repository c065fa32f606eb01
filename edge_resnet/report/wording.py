"""How numbers are worded. Every view (HTML, Markdown, terminal) takes its words from here."""

from __future__ import annotations

import math

from edge_resnet.report.schema import ImportCheck

__all__ = [
    "NO_FIGURE",
    "bytes_words",
    "import_words",
    "interval_words",
    "join",
    "memory_words",
    "milliseconds",
    "percent",
    "plural",
    "points",
    "seconds_words",
    "share",
]

NO_FIGURE = "—"


def bytes_words(count: int) -> str:
    """Size of a file, in decimal units as shops and app stores count."""
    if count < 1000:
        return f"{count} B"
    # 999,500 would round to "1000 KB".
    return f"{count / 1e3:.0f} KB" if count < 999_500 else f"{count / 1e6:.2f} MB"


def memory_words(count: int) -> str:
    """Memory, in binary units as operating systems count; benchmark notes use the same."""
    return f"{count / 2**20:.1f} MiB"


def milliseconds(value: float) -> str:
    """Three significant digits, never in powers of ten: 0.0860 ms, 12.5 ms, 1,234 ms."""
    decimals = 3 if value <= 0 else min(4, max(0, 2 - math.floor(math.log10(value))))
    return f"{value:,.{decimals}f} ms"


def percent(value: float) -> str:
    return f"{value:.2%}"


def share(value: float) -> str:
    """A share of images. 100 % means all of them and 0 % none: neither is ever the result of rounding."""
    if value in (0, 1):
        return f"{value:.0%}"
    return f"{min(max(value, 0.0001), 0.9999):.2%}"


def points(value: float) -> str:
    """A difference of two accuracies in percentage points, with its sign."""
    return f"{round(value * 100, 2) + 0.0:+.2f}"


def seconds_words(value: float) -> str:
    """0.42 s, 17.3 s, 4 min 05 s, 1 h 02 min."""
    if value < 99.95:
        return f"{value:.2f} s" if value < 10 else f"{value:.1f} s"
    minutes, seconds = divmod(round(value), 60)
    hours, rest = divmod(minutes, 60)
    return f"{hours} h {rest:02d} min" if hours else f"{minutes} min {seconds:02d} s"


def interval_words(low: str, high: str) -> str:
    return f"{low} to {high}"


def join(names: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def import_words(check: ImportCheck | None) -> str:
    """How far the imported graph is from the model as it came."""
    if check is None:
        return NO_FIGURE
    images = plural(check.images, "image")
    if check.max_abs == 0:
        return f"the same as {check.runtime}, to the bit, on {images}"
    return f"at most {check.max_abs:.2g} ({check.relative:.1e} of the range) from {check.runtime} on {images}"


def plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
