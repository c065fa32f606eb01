"""What the next trial tries: at first the ends of the ranges, then what TPE proposes.

TPE (multi-objective: Ozaki et al., 2022, JAIR 73) rather than NSGA-II: it learns from each trial, while a
genetic algorithm needs a population of about 50 before its first generation: more than most searches have.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from edge_resnet.recipe import BUDGETS
from edge_resnet.recipe.ranges import Choices, Range

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial

__all__ = ["distributions_of", "first_trials", "make_sampler"]

Key = tuple[str, ...]

# Where along the budget's range the first trials lie: its ends, then between them.
_SPREAD = (1.0, 0.0, 0.5, 0.25)
# So many trials are drawn evenly before TPE begins to compare.
_EVEN_TRIALS = 8


def distributions_of(ranges: Sequence[Range]) -> dict[str, BaseDistribution]:
    """Optuna's, by the dotted key."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    found: dict[str, BaseDistribution] = {}
    for one in ranges:
        name = ".".join(one.key)
        if isinstance(one, Choices):
            found[name] = CategoricalDistribution(one.choices)
        elif isinstance(one.low, int) and isinstance(one.high, int):
            found[name] = IntDistribution(one.low, one.high, log=one.log, step=int(one.step or 1))
        else:
            found[name] = FloatDistribution(one.low, one.high, log=one.log, step=one.step)
    return found


def first_trials(ranges: Sequence[Range]) -> list[dict[Key, Any]]:
    """The values of the first trials: a front from the largest model to the smallest is there early.

    Pruning's budget goes from end to end while other numbers stay in the middle; without a budget all
    numbers go together. Choices take turns.
    """
    budgets = [
        one.key for one in ranges if len(one.key) == 2 and one.key[0] == "prune" and one.key[1] in BUDGETS
    ]
    trials: list[dict[Key, Any]] = []
    for number, part in enumerate(_SPREAD):
        values: dict[Key, Any] = {}
        for one in ranges:
            if isinstance(one, Choices):
                values[one.key] = one.choices[number % len(one.choices)]
            else:
                values[one.key] = one.at(part if not budgets or one.key in budgets else 0.5)
        if values not in trials:
            trials.append(values)
    return trials


def make_sampler(seed: int) -> BaseSampler:
    """A TPE whose proposals depend on the seed, the trial's number and the earlier trials' results alone.

    So a search that was interrupted goes on as it would have, and two workers propose different trials.
    """
    from optuna.samplers import BaseSampler, TPESampler

    class SeededByTrial(BaseSampler):
        _tpe: BaseSampler

        def before_trial(self, study: Study, trial: FrozenTrial) -> None:
            digest = hashlib.sha256(f"{seed} {trial.number}".encode()).digest()
            self._tpe = TPESampler(
                seed=int.from_bytes(digest[:4], "little"), n_startup_trials=_EVEN_TRIALS, multivariate=True
            )
            self._tpe.before_trial(study, trial)

        def infer_relative_search_space(
            self, study: Study, trial: FrozenTrial
        ) -> dict[str, BaseDistribution]:
            return self._tpe.infer_relative_search_space(study, trial)

        def sample_relative(
            self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
        ) -> dict[str, Any]:
            return self._tpe.sample_relative(study, trial, search_space)

        def sample_independent(
            self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
        ) -> Any:
            return self._tpe.sample_independent(study, trial, param_name, param_distribution)

    return SeededByTrial()
