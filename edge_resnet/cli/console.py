"""Standard error: tables, notes, and progress (a moving bar on a terminal, one line a stage elsewhere)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)

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
    def stage(self, title: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        started = time.perf_counter()
        if self.quiet or not self.console.is_terminal:
            yield lambda steps: None
        else:
            columns = (
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
            )
            with Progress(*columns, console=self.console, transient=True) as bars:
                task = bars.add_task(title, total=total)
                yield lambda steps: bars.advance(task, steps)
        if not self.quiet:
            seconds = time.perf_counter() - started
            self.console.print(f"  {title}: {seconds:.1f} s", highlight=False, markup=False)

    def note(self, text: str) -> None:
        if not self.quiet:
            self.console.print(f"note: {text}", highlight=False, markup=False, soft_wrap=True)
