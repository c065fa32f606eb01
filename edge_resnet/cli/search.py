"""`edge-resnet search`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from edge_resnet.cli.console import ConsoleProgress, error_console

if TYPE_CHECKING:
    from edge_resnet.search.report import SearchReport

__all__ = ["run"]


def run(
    recipe: Path,
    model: str,
    weights: Path | None,
    data: str | None,
    settings: Sequence[str],
    trials: int,
    timeout: float | None,
    jobs: int,
    storage: str | None,
    study: str,
    out: Path | None,
    output: str | None,
    teacher: str | None,
    teacher_weights: Path | None,
    requantize: bool,
    as_json: bool,
) -> int:
    """Prints the front's table, and the recipes' paths on standard output."""
    from edge_resnet.search import search

    console = error_console()
    result = search(
        recipe,
        model,
        weights=weights,
        data=data,
        settings=settings,
        trials=trials,
        timeout=timeout,
        jobs=jobs,
        storage=storage,
        study=study,
        out=out,
        output=output,
        teacher=teacher,
        teacher_weights=teacher_weights,
        requantize=requantize,
        progress=ConsoleProgress(console, quiet=as_json),
        command=shlex.join(["edge-resnet", *sys.argv[1:]]),
    )
    if as_json:
        print(result.report.model_dump_json(indent=1))
        return 0
    _print_front(result.report, console)
    for path in result.recipes:
        print(path)
    print(result.directory / "search.html")
    return 0


def _print_front(report: SearchReport, console: Console) -> None:
    from edge_resnet.search.page import FIGURES, front_table, headline

    front = front_table(report)
    table = Table(title=f"{report.model}: the front", title_justify="left")
    for index, head in enumerate(front.heads[:FIGURES]):
        table.add_column(head, justify="right" if index in front.numeric else "left", no_wrap=index == 0)
    for row in front.rows:
        table.add_row(*row[:FIGURES])
    console.print(table)
    console.print(f"{headline(report)}; top-1 on {report.images:,} images kept apart", highlight=False)
