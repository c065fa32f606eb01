"""Parts of a search: ranges in recipes, the front, the rule that stops trials, the sampler."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from edge_resnet.errors import InputError
from edge_resnet.recipe import load_recipe, load_space
from edge_resnet.recipe.ranges import Choices, Interval, recipe_schema
from edge_resnet.search.front import Point, front_of, is_behind
from edge_resnet.search.sampler import distributions_of, first_trials, make_sampler

RANGES = """\
name: x
prune:
  latency: {low: 0.3, high: 0.9}
  criterion: {choices: [taylor, l1]}
finetune:
  epochs: 1
  learning_rate: {low: 0.01, high: 0.1, log: true}
"""


def written(tmp_path: Path, content: str) -> Path:
    path = tmp_path / "r.yaml"
    path.write_text(content)
    return path


def refusal(load: Callable[..., Any], path: Path, *settings: str) -> str:
    with pytest.raises(InputError) as error:
        load(path, settings)
    message = str(error.value)
    assert "\n" not in message
    return message.replace(f"{path}:", "")


def test_ranges_are_read_and_replaced_by_what_is_sampled(tmp_path: Path) -> None:
    space = load_space(written(tmp_path, RANGES))
    assert space.ranges == (
        Interval(("prune", "latency"), 0.3, 0.9),
        Choices(("prune", "criterion"), ("taylor", "l1")),
        Interval(("finetune", "learning_rate"), 0.01, 0.1, log=True),
    )
    chosen = {("prune", "latency"): 0.5, ("prune", "criterion"): "l1", ("finetune", "learning_rate"): 0.02}
    recipe = space.recipe(chosen)
    assert (recipe.prune.latency, recipe.prune.criterion, recipe.finetune.learning_rate) == (0.5, "l1", 0.02)
    again = written(tmp_path, yaml.safe_dump(space.sampled(chosen)))
    assert load_recipe(again) == recipe
    assert space.values["prune"]["latency"] == {"low": 0.3, "high": 0.9}  # untouched


def test_settings_may_give_and_change_ranges(tmp_path: Path) -> None:
    path = written(tmp_path, "name: x\n")
    (one,) = load_space(path, ["prune.macs={low: 0.2, high: 0.5, step: 0.1}"]).ranges
    assert one == Interval(("prune", "macs"), 0.2, 0.5, step=0.1)
    assert load_space(written(tmp_path, RANGES), ["prune.latency.high=0.6"]).ranges[0].at(1.0) == 0.6
    assert load_space(None, ["prune.steps={low: 1, high: 3}", "prune.macs=0.5", "prune.schedule=cubic"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("prune:\n  macs:\n    low: 0.9\n    high: 0.3\n", "3: prune.macs: low 0.9 is not below high 0.3"),
        ("prune:\n  macs:\n    low: 0.9\n    high: 1.3\n", "4: prune.macs: expected a number above 0 and"),
        ("prune:\n  macs: {low: 0.9}\n", "2: prune.macs: high is missing; a range is {low"),
        ("prune:\n  macs: {low: 0.2, hihg: 0.9}\n", "2: prune.macs: 'hihg' means nothing here"),
        ("prune:\n  macs: {low: a, high: 0.9}\n", "2: prune.macs: low: expected a number, got 'a'"),
        ("prune:\n  macs: {low: .nan, high: 0.9}\n", "2: prune.macs: low: expected a number, got nan"),
        ("qat:\n  epochs: {low: 1.5, high: 3}\n", "2: qat.epochs: low: expected an integer, got 1.5"),
        ("prune:\n  macs: {low: 0.2, high: 0.9, log: 3}\n", "2: prune.macs: log: expected true or false"),
        ("qat:\n  weight_decay: {low: 0, high: 1, log: true}\n", "2: qat.weight_decay: with log: true, low"),
        ("prune:\n  macs: {low: 0.2, high: 0.9, log: true, step: 0.1}\n", "2: prune.macs: log and step"),
        (
            "prune:\n  macs: {low: 0.2, high: 0.9, step: 3}\n",
            "2: prune.macs: step: expected a number above 0",
        ),
        ("prune:\n  criterion: {low: 1, high: 2}\n", "2: prune.criterion: no number, so it has no low"),
        ("prune:\n  criterion: {choices: [l1, l3]}\n", "2: prune.criterion: expected one of l1, l2, "),
        ("prune:\n  criterion: {choices: [l1]}\n", "2: prune.criterion: choices are a list of at least two"),
        ("prune:\n  criterion: {choices: [l1, l1]}\n", "2: prune.criterion: choices are a list of at least"),
        ("prune:\n  criterion: {choices: l1}\n", "2: prune.criterion: choices are a list of at least"),
        ("prune:\n  keep: {choices: [[a], [b]]}\n", "2: prune.keep: choices are a list of at least"),
        ("train:\n  epochs: {low: 1, high: 3}\n", "2: train.epochs takes one value; ranges are for prune, "),
        ("seed: {choices: [1, 2]}\n", "1: seed takes one value; ranges are for"),
        ("prune: {macs: {low: 0.2, high: 0.9}}\nqat: {epoch: 1}\n", "2: unknown key 'qat.epoch'"),
    ],
)
def test_wrong_ranges_say_where(tmp_path: Path, content: str, message: str) -> None:
    path = written(tmp_path, content)
    assert refusal(load_space, path).startswith(message)
    assert refusal(load_recipe, path).startswith(message)


def test_a_range_is_for_search_and_a_search_needs_one(tmp_path: Path) -> None:
    path = written(tmp_path, RANGES)
    assert refusal(load_recipe, path).startswith("3: prune.latency is a range, which `edge-resnet search`")
    assert "--set prune.latency=0.6" in refusal(load_recipe, path)
    assert "there is nothing to search" in refusal(load_space, written(tmp_path, "name: x\n"))
    assert load_recipe({"preprocess": {"low": 1}}).preprocess == {"low": 1}  # no range: a section of its own


def test_the_schema_takes_ranges_where_a_search_does() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(recipe_schema())
    validator.validate(yaml.safe_load(RANGES))
    validator.validate({"prune": {"macs": 0.5}, "qat": {"distill": {"weight": {"choices": [0, 1]}}}})
    for wrong in (
        {"prune": {"macs": {"low": 0.5}}},
        {"prune": {"criterion": {"low": 1, "high": 2}}},
        {"train": {"epochs": {"low": 1, "high": 2}}},
        {"qat": {"epochs": {"choices": [1]}}},
    ):
        assert not validator.is_valid(wrong)
    json.dumps(recipe_schema())


points = st.lists(
    st.builds(Point, st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]) | st.floats(0, 1), st.floats(0.1, 2)),
    max_size=30,
)


@given(points)
def test_the_front_is_what_no_other_point_beats(found: list[Point]) -> None:
    def beaten(one: Point) -> bool:
        return any(
            other != one and other.accuracy >= one.accuracy and other.latency <= one.latency
            for other in found
        )

    front = front_of(found)
    assert {found[index] for index in front} == {one for one in found if not beaten(one)}
    assert len({found[index] for index in front}) == len(front)
    assert [found[index].latency for index in front] == sorted(found[index].latency for index in front)


@given(points)
def test_the_front_is_that_of_optuna(found: list[Point]) -> None:
    """By a library that computes it in its own way."""
    optuna = pytest.importorskip("optuna")
    study = optuna.create_study(directions=["maximize", "minimize"])
    for point in found:
        study.add_trial(optuna.trial.create_trial(values=[point.accuracy, point.latency]))
    expected = {tuple(trial.values) for trial in study.best_trials} if found else set()
    assert {(found[i].accuracy, found[i].latency) for i in front_of(found)} == expected


def test_a_trial_is_stopped_only_behind_rivals_that_are_as_fast() -> None:
    rivals = [Point(accuracy, 0.5) for accuracy in (0.9, 0.9, 0.92, 0.8)]
    reason = is_behind(Point(0.5, 0.6), rivals, images=1000)
    assert reason is not None
    assert "50.00%" in reason
    assert "4 trials" in reason
    assert is_behind(Point(0.5, 0.4), rivals, 1000) is None  # faster than all
    assert is_behind(Point(0.5, 0.6), rivals[:3], 1000) is None  # too few to say
    assert is_behind(Point(0.895, 0.6), rivals, 1000) is None  # within a standard error
    assert is_behind(Point(0.895, 0.6), rivals, 100_000) is not None


def test_the_first_trials_span_the_budget(tmp_path: Path) -> None:
    ranges = load_space(written(tmp_path, RANGES)).ranges
    first = first_trials(ranges)
    assert [trial["prune", "latency"] for trial in first] == pytest.approx([0.9, 0.3, 0.6, 0.45])
    assert {trial["prune", "criterion"] for trial in first} == {"taylor", "l1"}
    assert all(trial["finetune", "learning_rate"] == pytest.approx(0.0316, abs=1e-4) for trial in first)
    whole = load_space(None, ["qat.epochs={low: 1, high: 4}"]).ranges
    assert [trial["qat", "epochs"] for trial in first_trials(whole)] == [4, 1, 2]


def test_proposals_depend_on_the_seed_and_the_results_alone(tmp_path: Path) -> None:
    optuna = pytest.importorskip("optuna")
    distributions = distributions_of(load_space(written(tmp_path, RANGES)).ranges)

    def proposed(seed: int, breaks: set[int]) -> list[dict[str, Any]]:
        """`breaks`: before which trials the process is another."""
        study = optuna.create_study(directions=["maximize", "minimize"], sampler=make_sampler(seed))
        for number in range(14):
            if number in breaks:
                study.sampler = make_sampler(seed)
            trial = study.ask(distributions)
            if number % 5 == 3:  # stopped and failed ones have no values
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
            elif number % 5 == 4:
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
            else:
                part = trial.params["prune.latency"]
                study.tell(trial, [part**0.5 - trial.params["finetune.learning_rate"], part])
        return [trial.params for trial in study.trials]

    assert proposed(3, set()) == proposed(3, {1, 6, 12})
    assert proposed(3, set()) != proposed(4, set())
