"""A figure as a reader sees it: a number in words with its kind, or a dash with its reason."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from edge_resnet.report.wording import NO_FIGURE

__all__ = ["Figure", "Reasons", "because"]

_T = TypeVar("_T")


@dataclass(frozen=True)
class Figure:
    """`kind` is how the number was had, `detail` its small print. A missing one has its `reason`'s number."""

    text: str
    kind: str = ""
    detail: str = ""
    reason: int | None = None


@dataclass
class Reasons:
    """Why figures are missing: each reason once, numbered from 1 in the order in which it is met."""

    texts: list[str] = field(default_factory=list)

    def missing(self, reason: str) -> Figure:
        if reason not in self.texts:
            self.texts.append(reason)
        return Figure(NO_FIGURE, reason=self.texts.index(reason) + 1)

    def figure(
        self, value: _T | None, words: Callable[[_T], str], kind: str, reason: str, detail: str = ""
    ) -> Figure:
        """The value in words, or a dash when there is none."""
        return self.missing(reason) if value is None else Figure(words(value), kind, detail)


def because(notes: Sequence[str], otherwise: str) -> str:
    """The notes as one reason."""
    return "; ".join(dict.fromkeys(notes)) or otherwise
