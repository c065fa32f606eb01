"""How long work tells that it goes on. The library is silent; the command line draws bars."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

__all__ = ["Progress", "SilentProgress"]

Advance = Callable[[int], None]


class Progress(Protocol):
    """Where stages and notes go."""

    def stage(self, title: str, total: int | None = None) -> AbstractContextManager[Advance]:
        """A stage of `total` steps; the block calls advance(steps)."""
        ...

    def note(self, text: str) -> None:
        """Something that the user should know, in one line."""
        ...


class SilentProgress:
    """Says nothing."""

    @contextmanager
    def stage(self, title: str, total: int | None = None) -> Iterator[Advance]:
        yield lambda steps: None

    def note(self, text: str) -> None:
        pass
