"""Which channels stayed, as a layer's record says it: ranges from 0 on, for example "0-7,12"."""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["Span", "gone_spans", "kept_spans", "spans_words"]

Span = tuple[int, int]
"""Neighbouring channels: the first of them, and the one after the last."""

_PART = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9}))?")


def kept_spans(kept: str, before: int, after: int) -> list[Span]:
    """The spans of channels that stayed, of `before`; an empty `kept` means all of them, or none.

    Raises ValueError: no ranges, out of order, outside the layer, or not `after` channels in all.
    """
    if not kept and after in (0, before):
        return [(0, before)] if after else []
    spans: list[Span] = []
    for part in kept.split(","):
        match = _PART.fullmatch(part)
        if match is None:
            raise ValueError(f"{kept!r} is not a list of channels such as 0-7,12")
        first = int(match[1])
        stop = int(match[2] or match[1]) + 1
        if first >= stop or stop > before or (spans and first < spans[-1][1]):
            raise ValueError(f"{part!r} of {kept!r} is out of order, or not among {before} channels")
        if spans and first == spans[-1][1]:
            spans[-1] = spans[-1][0], stop
        else:
            spans.append((first, stop))
    count = sum(stop - first for first, stop in spans)
    if count != after:
        raise ValueError(f"{kept!r} names {count} channels, not {after}")
    return spans


def gone_spans(kept: Sequence[Span], before: int) -> list[Span]:
    """What lies between the spans that stayed."""
    edges = [0, *(edge for run in kept for edge in run), before]
    return [(first, stop) for first, stop in zip(edges[::2], edges[1::2], strict=True) if first < stop]


def spans_words(spans: Sequence[Span]) -> str:
    return ", ".join(str(first) if stop == first + 1 else f"{first}-{stop - 1}" for first, stop in spans)
