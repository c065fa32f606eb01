"""search.json: what was tried, what came of it, and which trials are on the front."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel

from edge_resnet.recipe.load import SearchSpace
from edge_resnet.search.front import Point, front_of
from edge_resnet.search.lease import counts
from edge_resnet.version import __version__

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

__all__ = ["FrontPoint", "SearchReport", "TrialResult", "Unpruned", "make_report", "trial_result"]

_STATES: dict[str, Literal["complete", "stopped", "failed"]] = {
    "COMPLETE": "complete",
    "PRUNED": "stopped",
    "FAIL": "failed",
}


class TrialResult(BaseModel):
    """`latency_ms` is the part of the unpruned file's latency, which was timed in turn, times the study's.

    So a slow moment of the machine, or a slower machine, changes nothing. `measured_ms` is what the clock
    said. A trial that is not complete has a `reason` and no figures.
    """

    number: int
    state: Literal["complete", "stopped", "failed"]
    values: dict[str, Any]
    accuracy: float | None = None
    latency_part: float | None = None
    latency_ms: float | None = None
    measured_ms: float | None = None
    bytes: int | None = None
    macs: int | None = None
    params: int | None = None
    seconds: float | None = None
    reason: str | None = None


class FrontPoint(BaseModel):
    """One trial that no other beats in both goals, and the recipe file that makes its model."""

    trial: int
    recipe: str


class Unpruned(BaseModel):
    """The int8 file of the model as it came, without training."""

    accuracy: float
    latency_ms: float
    bytes: int


class SearchReport(BaseModel):
    """Accuracy is top-1 on `images` of the train split that no trial saw; all figures are measured."""

    format: Literal["edge-resnet search 1"] = "edge-resnet search 1"
    created: str
    command: str
    versions: dict[str, str]
    model: str
    data: str
    images: int
    seed: int
    storage: str
    study: str
    ranges: dict[str, dict[str, Any]]
    recipe: dict[str, Any]
    unpruned: Unpruned
    trials: list[TrialResult]
    lost: int
    front: list[FrontPoint]

    def trial(self, number: int) -> TrialResult:
        return next(trial for trial in self.trials if trial.number == number)

    def of_state(self, state: str) -> list[TrialResult]:
        return [trial for trial in self.trials if trial.state == state]


def make_report(
    trials: Sequence[FrozenTrial], space: SearchSpace, unpruned: Unpruned, **about: Any
) -> SearchReport:
    """`about`: command, model, data, images, storage, study."""
    ended = [trial for trial in trials if trial.state.is_finished()]
    results = [trial_result(trial, unpruned.latency_ms) for trial in ended if counts(trial)]
    complete = [result for result in results if result.state == "complete"]
    points = [Point(result.accuracy or 0.0, result.latency_part or 0.0) for result in complete]
    front = [complete[index].number for index in front_of(points)]
    names = ("optuna", "torch", "ai-edge-litert", "numpy")
    return SearchReport(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        versions={"edge-resnet": __version__, **{name: version(name) for name in names}},
        seed=space.recipe(space.middle).seed,
        ranges={".".join(one.key): _written(space.values, one.key) for one in space.ranges},
        recipe=dict(space.values),
        unpruned=unpruned,
        trials=results,
        lost=len(ended) - len(results),
        front=[FrontPoint(trial=number, recipe=f"recipe-{at}.yaml") for at, number in enumerate(front, 1)],
        **about,
    )


def trial_result(trial: FrozenTrial, unpruned_ms: float) -> TrialResult:
    attributes = trial.user_attrs
    figures: Mapping[str, Any] = attributes.get("result") or {}
    part = figures.get("latency")
    return TrialResult(
        number=trial.number,
        state=_STATES[trial.state.name],
        values=dict(trial.params),
        accuracy=figures.get("accuracy"),
        latency_part=part,
        latency_ms=None if part is None else part * unpruned_ms,
        measured_ms=figures.get("measured_ms"),
        bytes=figures.get("bytes"),
        macs=figures.get("macs"),
        params=figures.get("params"),
        seconds=attributes.get("seconds"),
        reason=attributes.get("reason"),
    )


def _written(values: Mapping[str, Any], key: Sequence[str]) -> dict[str, Any]:
    """A range as the recipe has it."""
    for part in key:
        values = values[part]
    return dict(values)
