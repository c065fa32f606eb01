"""Fitting the latency predictor (edge_resnet/devices/prediction.py), and finding how wrong it is.

Each series (a device, a runtime and a precision) has a curve, milliseconds = overhead + slope * work, fitted
to relative errors, robustly: three of the 252 published figures are four times what their neighbours say. The
share of the overhead is drawn towards that of the other devices with this runtime and precision.
What all series share, how work is counted, is chosen on other networks of the same publication, none of which
is a ResNet: no figure of a model whose error is reported had a say in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_resnet.devices.prediction import Curve, Spread, WorkUnit, distance

# Device, runtime, precision.
Name = tuple[str, str, str]
# Milliseconds of each model in each series.
Table = Mapping[Name, Mapping[str, float]]
# Work of each model in each way of counting it.
Works = Mapping[WorkUnit, Mapping[str, float]]

UNITS = tuple(
    WorkUnit(per_element) for per_element in (0.0, 10.0, 20.0, 50.0, 100.0, 150.0, 200.0, 300.0, 500.0)
)
# Shares of the work, against the overhead, that are tried for a curve, as logits.
_LOGITS = np.linspace(-4, 4, 81)
# A relative error from which a figure pulls less than in proportion: about that of repeating a measurement.
_USUAL_ERROR = 0.05
# How hard the other devices pull: a logit that is 1 off costs as much as one figure that is 7 % off.
_PULL = 1.0
_COVERED = 0.8


@dataclass(frozen=True)
class Error:
    """Of one prediction of a left-out model: `ratio` is predicted / measured, `away` as in Prediction."""

    name: Name
    model: str
    ratio: float
    away: float

    @property
    def relative(self) -> float:
        return abs(self.ratio - 1)

    @property
    def log(self) -> float:
        return abs(float(np.log(self.ratio)))


def fit_curves(table: Table, works: Mapping[str, float], models: Sequence[str]) -> dict[Name, Curve]:
    """A curve for each series, from the figures of `models` only."""
    names = list(table)
    work = np.array([works[model] for model in models])
    reference = float(np.exp(np.log(work).mean()))
    figures = np.array([[table[name].get(model, np.nan) for model in models] for name in names])
    share = 1 / (1 + np.exp(-_LOGITS))
    shapes = share[:, None] * work / reference + 1 - share[:, None]  # [logit, model]
    residuals = np.log(figures)[:, None] - np.log(shapes)[None]  # [series, logit, model]
    level = _robust_mean(residuals)
    losses = np.nansum(_loss(residuals - level[..., None]), axis=2)
    curves: dict[Name, Curve] = {}
    for group in sorted({name[1:] for name in names}):
        rows = [index for index, name in enumerate(names) if name[1:] == group]
        for row, best in zip(rows, _drawn_together(losses[rows]), strict=True):
            scale = float(np.exp(level[row, best]))
            curves[names[row]] = Curve(
                scale * float(1 - share[best]), scale * float(share[best]) / reference * 1e9
            )
    return curves


def _loss(error: NDArray[np.float64]) -> NDArray[np.float64]:
    return 2 * (np.sqrt(1 + (error / _USUAL_ERROR) ** 2) - 1)


def _robust_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Where the loss is smallest, along the last axis; missing values are NaN."""
    centre = np.nanmedian(values, axis=-1)
    for _ in range(25):
        weights = 1 / np.sqrt(1 + ((values - centre[..., None]) / _USUAL_ERROR) ** 2)
        centre = np.nansum(weights * values, axis=-1) / np.nansum(weights * np.isfinite(values), axis=-1)
    return np.asarray(centre)


def _drawn_together(losses: NDArray[np.float64]) -> list[int]:
    """Which logit each series of a group takes: of least loss, with what it costs to differ from the rest."""
    middle = _LOGITS[int(np.argmin(losses.sum(0)))]
    chosen = np.zeros(len(losses), int)
    for _ in range(20):
        chosen = np.argmin(losses + _PULL * (_LOGITS - middle) ** 2, axis=1)
        middle = float(np.median(_LOGITS[chosen]))
    return [int(index) for index in chosen]


def leave_out_models(table: Table, works: Mapping[str, float], models: Sequence[str]) -> list[Error]:
    """The errors about each model, predicted from curves that were fitted on the others."""
    errors = []
    for model in models:
        others = [other for other in models if other != model]
        errors += about(model, fit_curves(table, works, others), table, works, others)
    return errors


def about(
    model: str, curves: Mapping[Name, Curve], table: Table, works: Mapping[str, float], fitted: Sequence[str]
) -> list[Error]:
    """The errors about one model, which was not fitted on."""
    away = distance(works[model], [works[other] for other in fitted])
    return [
        Error(name, model, curve.milliseconds(works[model]) / table[name][model], away)
        for name, curve in curves.items()
        if model in table.get(name, {})
    ]


def choose_unit(table: Table, works: Works, models: Sequence[str]) -> WorkUnit:
    """The way of counting work with the smallest mean error about models left out of `models`."""

    def cost(unit: WorkUnit) -> float:
        return float(np.mean([error.log for error in leave_out_models(table, works[unit], models)]))

    return min(works, key=cost)


def fit_spread(errors: Sequence[Error]) -> Spread:
    """Regression of the errors' 80 % quantile on how far away the model was (Koenker and Bassett, 1978)."""
    size = np.array([error.log for error in errors])
    away = np.array([error.away for error in errors])
    best: tuple[float, Spread] | None = None
    for slope in np.linspace(0, 1, 101):
        near = max(0.0, float(np.quantile(size - slope * away, _COVERED)))
        off = size - near - slope * away
        cost = float(np.mean(np.where(off > 0, _COVERED * off, (_COVERED - 1) * off)))
        if best is None or cost < best[0] - 1e-9:
            best = cost, Spread(near, float(slope))
    assert best is not None
    return best[1]


@dataclass(frozen=True)
class Judged:
    """What leaving out one model after the other says. `covered`: whether the interval held each figure."""

    errors: list[Error]
    covered: list[bool]


def judge(table: Table, works: Mapping[str, float], models: Sequence[str], steepest: float) -> Judged:
    """Leave out each model; curves are fitted, and the interval is found, on the others alone.

    `steepest`: as in `widened`.
    """
    judged = Judged([], [])
    for model in models:
        others = [other for other in models if other != model]
        spread = widened(fit_spread(leave_out_models(table, works, others)), steepest)
        found = about(model, fit_curves(table, works, others), table, works, others)
        judged.errors.extend(found)
        judged.covered.extend(within(error, spread) for error in found)
    return judged


def within(error: Error, spread: Spread) -> bool:
    return error.log <= float(np.log(spread.factor(error.away)))


def widened(spread: Spread, steepest: float) -> Spread:
    return Spread(spread.near, max(spread.per_e_fold, steepest))


def outer_slope(errors: Sequence[Error], near: float) -> float:
    """The smallest `per_e_fold` with which 80 % of the errors about models that lie outside are covered."""
    outside = [(error.log - near) / error.away for error in errors if error.away > 0]
    return max(0.0, float(np.quantile(outside, _COVERED, method="higher")))


def prototype(table: Table, macs: Mapping[str, float], models: Sequence[str], model: str) -> list[Error]:
    """`milliseconds = a * MACs + c` by least squares, fitted on `models`: what was there first."""
    errors = []
    for name, figures in table.items():
        known = [other for other in models if other in figures]
        if model not in figures or len(known) < 2:
            continue
        line = np.polyfit([macs[other] for other in known], [figures[other] for other in known], 1)
        value = max(float(np.polyval(line, macs[model])), 1e-3)
        away = distance(macs[model], [macs[other] for other in known])
        errors.append(Error(name, model, value / figures[model], away))
    return errors


def leave_out_devices(
    table: Table, works: Mapping[str, float], models: Sequence[str], known: str
) -> tuple[list[Error], list[Error]]:
    """The errors about a device of which nothing is known, taken as the middle of the others; and about one
    on which the model `known` alone was measured, which sets the scale of the others' middle curve.
    """
    curves = fit_curves(table, works, models)
    nothing: list[Error] = []
    one: list[Error] = []
    for name, row in table.items():
        others = [curve for other, curve in curves.items() if other[1:] == name[1:] and other[0] != name[0]]
        for model, value in row.items():
            times = [curve.milliseconds(works[model]) for curve in others]
            nothing.append(Error(name, model, float(np.median(times)) / value, 0.0))
            if model != known and known in row:
                shapes = [
                    curve.milliseconds(works[model]) / curve.milliseconds(works[known]) for curve in others
                ]
                one.append(Error(name, model, row[known] * float(np.median(shapes)) / value, 0.0))
    return nothing, one
