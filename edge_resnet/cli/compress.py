"""`edge-resnet compress`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_resnet.cli.console import ConsoleProgress, error_console
from edge_resnet.project import PROJECT_FILE, Project, load_project

if TYPE_CHECKING:
    from rich.console import Console

    from edge_resnet.pipeline import RunResult

__all__ = ["run"]

DEFAULT_TARGETS = ("tflite-int8",)

# On 1,000 images a drop of half a point is five images.
_DROP_IMAGES = 1000


def run(
    model: str | None,
    weights: Path | None,
    data: str | None,
    targets: Sequence[str],
    recipe: Path | None,
    settings: Sequence[str],
    max_drop: float | None,
    out: Path | None,
    output: str | None,
    teacher: str | None,
    teacher_weights: Path | None,
    requantize: bool,
    measured_on: Sequence[str],
    devices: int,
    as_json: bool,
) -> int:
    """Returns the exit code: 1 when a verification failed, 3 when a device of `measured_on` was lost."""
    from edge_resnet.devices.registry import open_devices
    from edge_resnet.training import WorkerDone, is_worker

    open_devices(measured_on)  # a wrong name: say so before any work
    console = error_console()
    progress = ConsoleProgress(console, quiet=as_json or is_worker())
    project = None
    if model is None:
        project = _default_project(progress)
        # What the project says of its own model says nothing of weights that the user gives for it.
        model, weights = project.model, weights or project.weights
    chosen = recipe or (project.recipe if project else None)
    if max_drop is not None:
        settings = _limited_drop(chosen, settings, max_drop)
    from edge_resnet.pipeline import compress
    from edge_resnet.report.schema import load_report
    from edge_resnet.report.terminal import print_summary

    try:
        result = compress(
            model,
            weights=weights,
            data=data or (project.data if project else None),
            targets=targets or (project.targets if project else ()) or DEFAULT_TARGETS,
            recipe=chosen,
            settings=settings,
            out=out or (project.out if project else None),
            output=output,
            teacher=teacher,
            teacher_weights=teacher_weights,
            requantize=requantize,
            devices=devices,
            progress=progress,
            command=shlex.join(["edge-resnet", *sys.argv[1:]]),
        )
    except WorkerDone:
        return 0
    code = 1 if result.failures else 0
    if measured_on and not code:
        code = _on_devices(result, measured_on, progress, None if as_json else console)
    report = load_report(result.directory / "report.json")
    if as_json:
        print(report.model_dump_json(indent=1))
    else:
        print_summary(report, console)
        for artifact in report.artifacts:
            print(result.directory / artifact.path)
        print(result.directory / "report.html")
    for failure in result.failures:
        print(f"edge-resnet: verification failed: {failure}", file=sys.stderr)
    return code


def _on_devices(
    result: RunResult, devices: Sequence[str], progress: ConsoleProgress, console: Console | None
) -> int:
    """Latency and accuracy on devices, with the run's own test images; returns the exit code."""
    from edge_resnet.benchmark.result import BenchmarkSettings
    from edge_resnet.cli.benchmark import print_benchmarks
    from edge_resnet.devices.benchmark import benchmark
    from edge_resnet.run_directory import read_record

    recipe = result.report.recipe["benchmark"]
    found = benchmark(
        [result.directory / artifact.path for artifact in result.report.artifacts],
        devices,
        data=read_record(result.directory).data,
        threads=(recipe["threads"],),
        settings=BenchmarkSettings(runs=recipe["runs"] or BenchmarkSettings().runs),
        progress=progress,
    )
    return print_benchmarks(found, console)


def _limited_drop(
    recipe: Path | Mapping[str, Any] | None, settings: Sequence[str], max_drop: float
) -> list[str]:
    """What --max-drop stands for: the limit, and images to measure it on where the recipe has none."""
    from edge_resnet.recipe import load_recipe

    images = load_recipe(recipe, settings).sensitivity.images or _DROP_IMAGES
    return [*settings, f"sensitivity.images={images}", f"sensitivity.max_drop={max_drop}"]


def _default_project(progress: ConsoleProgress) -> Project:
    path = Path(PROJECT_FILE)
    if path.exists():
        progress.note(f"no MODEL given: taking {PROJECT_FILE}")
        return load_project(path)
    progress.note(f"no MODEL given and no {PROJECT_FILE} here: taking the bundled demo (handwritten digits)")
    return Project(model="demo", data="demo")
