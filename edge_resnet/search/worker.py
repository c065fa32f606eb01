"""Workers: each takes trials of a study, one after the other, until there are enough.

Any number of processes, on any number of machines; what they share is the study's storage.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_resnet.errors import EdgeResnetError, MissingToolError
from edge_resnet.progress import SilentProgress
from edge_resnet.recipe.load import SearchSpace, load_space
from edge_resnet.search.front import Point, is_behind
from edge_resnet.search.lease import Leases, counts, give_up, held
from edge_resnet.search.sampler import distributions_of, make_sampler
from edge_resnet.search.storage import open_storage, open_study, storage_errors
from edge_resnet.search.trial import Bench, Measured, Source

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial, Trial

__all__ = ["Job", "Worker", "work"]

_WAIT_SECONDS = 1.0


@dataclass(frozen=True)
class Job:
    """What a worker process is given. `deadline`: by time.time(), after which no trial begins."""

    source: Source
    values: dict[str, Any]
    storage: str
    study: str
    trials: int
    out: Path
    deadline: float | None = None
    threads: int | None = None

    @property
    def space(self) -> SearchSpace:
        return load_space(self.values)


def work(job: Job) -> None:
    """What a worker's process does. The one that started it says what went wrong, from the study."""
    if job.threads is not None:
        import torch

        torch.set_num_threads(job.threads)
    space = job.space
    bench = Bench(job.source, space.recipe(space.middle), job.out, SilentProgress())
    study = open_study(open_storage(job.storage), job.storage, job.study)
    Worker(job, space, bench, study).run()


class Worker:
    """Takes trials of an open study."""

    def __init__(self, job: Job, space: SearchSpace, bench: Bench, study: Study) -> None:
        self._job, self._space, self._bench, self._study = job, space, bench, study
        self._leases = Leases(study)
        self._distributions = distributions_of(space.ranges)
        study.sampler = make_sampler(space.recipe(space.middle).seed)

    def run(
        self,
        show: Callable[[str], None] = lambda text: None,
        ended: Callable[[int], None] = lambda count: None,
    ) -> None:
        """Until as many trials as asked for have ended, by whomever; `ended` is told how many have.

        Raises InputError where the storage fails, MissingToolError where a tool is missing.
        """
        while True:
            with self._storage():
                self._leases.take_back()
                trials = [trial for trial in self._study.get_trials(deepcopy=False) if counts(trial)]
            over = sum(trial.state.is_finished() for trial in trials)
            ended(over)
            if over >= self._job.trials or self._late:
                return
            if len(trials) >= self._job.trials:  # the last ones are under way elsewhere
                show("waiting for the last trials of other workers")
                time.sleep(_WAIT_SECONDS)
                continue
            self._one(show)

    @property
    def _late(self) -> bool:
        """Whether no trial may begin any more: time is over, or the process that started this one is gone."""
        starter = multiprocessing.parent_process()
        if starter is not None and not starter.is_alive():
            return True
        return self._job.deadline is not None and time.time() >= self._job.deadline

    def _storage(self) -> Any:
        return storage_errors(self._job.storage)

    def _one(self, show: Callable[[str], None]) -> None:
        with self._storage():
            trial = self._study.ask(self._distributions)
            if self._is_surplus(trial.number):
                give_up(trial, "another worker began the last trial at the same moment")
                self._end(trial, "FAIL")
                return
        try:
            with held(trial):
                self._attempt(trial, show)
        except BaseException:
            with self._storage():
                give_up(trial, "the search was interrupted, or failed")
                self._end(trial, "FAIL")
            raise

    def _attempt(self, trial: Trial, show: Callable[[str], None]) -> None:
        """Run one trial and tell its end."""
        from optuna import TrialPruned

        def watch(place: str, point: Point) -> None:
            with self._storage():
                others = self._others(trial.number, place)
                trial.set_user_attr(place, asdict(point))
            reason = is_behind(point, others, self._bench.images)
            if reason is not None:
                raise TrialPruned(f"{place}: {reason}")

        started = time.perf_counter()
        try:
            recipe = self._space.recipe(
                {one.key: trial.params[".".join(one.key)] for one in self._space.ranges}
            )
            measured = self._bench.measure(
                recipe, watch, lambda title: show(f"trial {trial.number}: {title}")
            )
        except TrialPruned as stop:
            self._note(trial, started, reason=str(stop))
            self._end(trial, "PRUNED")
        except MissingToolError:
            raise
        except EdgeResnetError as error:
            self._note(trial, started, reason=" ".join(str(error).split()))
            self._end(trial, "FAIL")
        else:
            self._note(trial, started, result=_figures(measured))
            self._end(trial, "COMPLETE", [measured.accuracy, measured.speed.part])

    def _note(self, trial: Trial, started: float, **attributes: Any) -> None:
        with self._storage():
            for name, value in {**attributes, "seconds": time.perf_counter() - started}.items():
                trial.set_user_attr(name, value)

    def _end(self, trial: Trial, state: str, values: list[float] | None = None) -> None:
        from optuna.trial import TrialState

        with self._storage():
            self._study.tell(trial, values, state=TrialState[state], skip_if_finished=True)

    def _others(self, number: int, place: str) -> list[Point]:
        """Where the other trials were at this place."""
        return [
            Point(**trial.user_attrs[place])
            for trial in self._study.get_trials(deepcopy=False)
            if trial.number != number and place in trial.user_attrs
        ]

    def _is_surplus(self, number: int) -> bool:
        """Two workers that both see one trial missing both begin one: the later does not count."""
        trials: list[FrozenTrial] = self._study.get_trials(deepcopy=False)
        before = sum(
            counts(trial) and trial.number != number for trial in trials if _begun_before(trial, number)
        )
        return before >= self._job.trials


def _begun_before(trial: FrozenTrial, number: int) -> bool:
    return trial.state.is_finished() or trial.number < number


def _figures(measured: Measured) -> dict[str, Any]:
    return {
        "accuracy": measured.accuracy,
        "latency": measured.speed.part,
        "measured_ms": measured.speed.milliseconds,
        "measured_unpruned_ms": measured.speed.unpruned,
        "bytes": measured.bytes,
        "macs": measured.macs,
        "params": measured.params,
        "worker": os.getpid(),
    }
