"""How long work tells that it goes on. The library is silent; the command line draws bars."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

__all__ = ["Advance", "Progress", "SilentProgress", "StageBar"]

Advance = Callable[[int], None]


class StageBar(Protocol):
    """A stage under way."""

    def __call__(self, steps: int, /) -> None:
        """So many steps more are done."""
        ...

    def show(self, text: str, keep: bool = False) -> None:
        """A few words beside the bar. `keep`: worth a line where there is no bar."""
        ...


class Progress(Protocol):
    """Where stages and notes go."""

    def stage(self, title: str, total: int | None = None) -> AbstractContextManager[StageBar]:
        """A stage of `total` steps; the block calls advance(steps)."""
        ...

    def note(self, text: str) -> None:
        """Something that the user should know, in one line."""
        ...


class SilentProgress:
    """Says nothing."""

    @contextmanager
    def stage(self, title: str, total: int | None = None) -> Iterator[StageBar]:
        yield _NoBar()

    def note(self, text: str) -> None:
        pass


class _NoBar:
    def __call__(self, steps: int, /) -> None:
        pass

    def show(self, text: str, keep: bool = False) -> None:
        pass
