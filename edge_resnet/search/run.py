"""`edge_resnet.search.search`: begin or continue a study, with worker processes, and write what was found."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from edge_resnet.errors import EdgeResnetError, InputError
from edge_resnet.files import atomic_write, check_writable
from edge_resnet.progress import Progress, SilentProgress
from edge_resnet.recipe.load import SearchSpace, load_space
from edge_resnet.search.page import to_html, to_markdown
from edge_resnet.search.report import SearchReport, Unpruned, make_report
from edge_resnet.search.sampler import first_trials
from edge_resnet.search.storage import (
    check_identity,
    import_optuna,
    open_storage,
    open_study,
    storage_errors,
)
from edge_resnet.search.trial import Bench, Source
from edge_resnet.search.worker import Job, Worker, work

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

    from optuna import Study

__all__ = ["SearchResult", "search"]

_UNPRUNED, _PLANNED = "unpruned", "planned"
_JOURNAL = "study.journal"
_JOIN_SECONDS = 20.0


@dataclass(frozen=True)
class SearchResult:
    """The report (what search.json holds), its folder, and the recipes of the front, the fastest first."""

    report: SearchReport
    directory: Path
    recipes: tuple[Path, ...]


def search(
    recipe: str | Path | Mapping[str, Any],
    model: str = "demo",
    *,
    weights: str | Path | None = None,
    data: str | Path | None = None,
    settings: Sequence[str] = (),
    trials: int = 30,
    timeout: float | None = None,
    jobs: int = 1,
    storage: str | None = None,
    study: str = "search",
    out: str | Path | None = None,
    output: str | None = None,
    teacher: str | None = None,
    teacher_weights: str | Path | None = None,
    requantize: bool = False,
    progress: Progress | None = None,
    command: str = "",
) -> SearchResult:
    """Try out what the recipe marks as ranges, for accuracy and latency, and write the Pareto front.

    The arguments are those of `edge-resnet search`. A study goes on where it ended: until `trials` of it have
    ended, or no new one after `timeout` seconds. Several machines share a study by the same `storage` and
    `study`. Raises InputError for what the user gave wrongly, for a study of something else, and where no
    trial came to an end; MissingToolError where Optuna is not installed.
    """
    import_optuna()
    progress = progress or SilentProgress()
    deadline = None if timeout is None else time.time() + timeout
    space = load_space(recipe, settings)
    started = _first_valid(space)
    directory = Path(out) if out else Path("runs") / f"search-{Path(model).stem}"
    check_writable(directory)
    names = (weights, data, teacher_weights)
    weights_name, data_name, teacher_name = (None if name is None else str(name) for name in names)
    source = Source(model, weights_name, data_name, output, teacher, teacher_name, requantize)
    where = storage or str(directory / _JOURNAL)
    job = Job(source, dict(space.values), where, study, trials, directory, deadline, _threads(jobs))
    opened = open_study(open_storage(where), where, study)  # before the model: its errors come at once
    bench = Bench(source, space.recipe(started[0]), directory, progress)
    check_identity(opened, where, {**bench.identity, "recipe": dict(space.values)})
    unpruned = _prepare(opened, where, bench, started, progress)
    with progress.stage("search", trials) as advance, _workers(job, jobs - 1):
        done = 0

        def ended(count: int) -> None:
            nonlocal done
            advance(min(count, trials) - done)
            done = min(count, trials)

        Worker(job, space, bench, opened).run(advance.show, ended)
    with storage_errors(where):
        found = opened.get_trials(deepcopy=False)
    about = {"model": bench.model, "data": bench.data_source, "images": bench.images, "command": command}
    report = make_report(found, space, unpruned, storage=where, study=study, **about)
    if not report.front:
        raise InputError(_nothing(report))
    return SearchResult(report, directory, _save(report, space, directory))


def _first_valid(space: SearchSpace) -> list[dict[tuple[str, ...], Any]]:
    """The first trials, those left out that the recipe refuses. Raises InputError where it refuses all."""
    valid, refused = [], None
    for values in first_trials(space.ranges):
        try:
            space.recipe(values)
            valid.append(values)
        except InputError as error:
            refused = error
    if not valid:
        assert refused is not None
        raise refused
    return valid


def _prepare(
    study: Study,
    where: str,
    bench: Bench,
    started: Sequence[Mapping[tuple[str, ...], Any]],
    progress: Progress,
) -> Unpruned:
    """What the trials are compared with, and the first trials, if the study has none of them yet."""
    with storage_errors(where):
        found, planned = study.user_attrs.get(_UNPRUNED), study.user_attrs.get(_PLANNED)
    if found is None:
        with progress.stage("unpruned"):
            measured = bench.unpruned()
        found = Unpruned(
            accuracy=measured.accuracy, latency_ms=measured.speed.unpruned, bytes=measured.bytes
        ).model_dump()
        with storage_errors(where):
            study.set_user_attr(_UNPRUNED, found)
    if planned is None:
        with storage_errors(where):
            study.set_user_attr(_PLANNED, len(started))
            for values in started:
                study.enqueue_trial(
                    {".".join(key): value for key, value in values.items()}, skip_if_exists=True
                )
    return Unpruned(**found)


@contextmanager
def _workers(job: Job, count: int) -> Iterator[None]:
    """Other processes that take trials as well, while the block runs."""
    context = multiprocessing.get_context("spawn")  # a fork would share the runtimes' threads
    processes: list[BaseProcess] = [
        context.Process(target=_child, args=(job,), name=f"edge-resnet-worker-{index}", daemon=True)
        for index in range(count)
    ]
    for process in processes:
        process.start()
    try:
        yield
        limit = time.monotonic() + _JOIN_SECONDS
        for process in processes:
            process.join(max(0.0, limit - time.monotonic()))
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _child(job: Job) -> None:
    try:
        work(job)
    except EdgeResnetError as error:
        print(f"edge-resnet: a worker ended: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


def _threads(jobs: int) -> int | None:
    """Of torch in each of several processes; one process alone decides itself."""
    return None if jobs == 1 else max(1, (os.cpu_count() or 1) // jobs)


def _nothing(report: SearchReport) -> str:
    """Why there is no front."""
    reasons = Counter(trial.reason or "no reason given" for trial in report.trials)
    if not reasons:
        return "no trial ended in time: raise --timeout"
    (reason, count), *_ = reasons.most_common(1)
    return f"none of {len(report.trials)} trials came to an end; {count} of them: {reason}"


def _save(report: SearchReport, space: SearchSpace, directory: Path) -> tuple[Path, ...]:
    """The report last. Recipes of an earlier, smaller study go."""
    keys = {".".join(one.key): one.key for one in space.ranges}
    paths = []
    for point in report.front:
        trial = report.trial(point.trial)
        values = space.sampled({keys[name]: value for name, value in trial.values.items()})
        text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
        path = directory / point.recipe
        atomic_write(path, _header(report, point.trial) + text)
        paths.append(path)
    for path in directory.glob("recipe-*.yaml"):
        if path not in paths and path.stem.removeprefix("recipe-").isdigit():
            path.unlink(missing_ok=True)
    atomic_write(directory / "search.md", to_markdown(report))
    atomic_write(directory / "search.html", to_html(report))
    atomic_write(directory / "search.json", report.model_dump_json(indent=1) + "\n")
    return tuple(paths)


def _header(report: SearchReport, number: int) -> str:
    trial = report.trial(number)
    return (
        f"# Trial {number} of the search over {len(report.trials)}, on the front.\n"
        f"# Top-1 {trial.accuracy:.2%} of the int8 file, on {report.images} images of the train split that "
        "it was not trained on.\n"
        f"# Latency {trial.latency_ms:.4g} ms, {trial.latency_part:.3f} of the unpruned file's, measured.\n"
    )
