"""Standard error: tables, notes, and progress (a moving bar on a terminal, one line a stage elsewhere)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from edge_resnet.progress import StageBar

__all__ = ["ConsoleProgress", "error_console"]


def error_console() -> Console:
    """Tables and progress go to standard error; standard output holds results."""
    return Console(stderr=True)


class ConsoleProgress:
    """Implements edge_resnet.progress.Progress on a rich console."""

    def __init__(self, console: Console, quiet: bool = False) -> None:
        self.console = console
        self.quiet = quiet

    @contextmanager
    def stage(self, title: str, total: int | None = None) -> Iterator[StageBar]:
        started = time.perf_counter()
        if self.quiet or not self.console.is_terminal:
            yield _Lines(self.console, title, self.quiet)
        else:
            columns = (
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[beside]}"),
            )
            with Progress(*columns, console=self.console, transient=True) as bars:
                task = bars.add_task(title, total=total, beside="")
                yield _Bar(bars, task)
        if not self.quiet:
            seconds = time.perf_counter() - started
            self.console.print(f"  {title}: {seconds:.1f} s", highlight=False, markup=False)

    def note(self, text: str) -> None:
        if not self.quiet:
            self.console.print(f"note: {text}", highlight=False, markup=False, soft_wrap=True)


class _Bar:
    """A moving bar on a terminal."""

    def __init__(self, bars: Progress, task: TaskID) -> None:
        self._bars, self._task = bars, task

    def __call__(self, steps: int, /) -> None:
        self._bars.advance(self._task, steps)

    def show(self, text: str, keep: bool = False) -> None:
        self._bars.update(self._task, beside=text)


class _Lines:
    """Elsewhere: nothing moves, and what is worth keeping has a line."""

    def __init__(self, console: Console, title: str, quiet: bool) -> None:
        self._console, self._title, self._quiet = console, title, quiet

    def __call__(self, steps: int, /) -> None:
        pass

    def show(self, text: str, keep: bool = False) -> None:
        if keep and not self._quiet:
            self._console.print(f"  {self._title}: {text}", highlight=False, markup=False, soft_wrap=True)
