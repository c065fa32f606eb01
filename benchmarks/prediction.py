"""How wrong the latency predictor is about models and devices that it was not fitted on; `--fit` fits it.

    python -m benchmarks.prediction [--clone DIR] [--fit]

--clone: a clone of https://github.com/quic/ai-hub-models. It has models on which nothing was fitted, and
devices that only older releases measured. Without it these parts are taken from the last run, and `--fit`
keeps them.

Why work is counted so. Forms that were tried, by their errors about the table's four models left out (median,
p90): MACs (17 %, 42 %); MACs with channels rounded up to 8, 16, 32 (13 %, 8 %, 27 %; 40 %, 28 %, 55 %); with
bytes of weights (14 %, 40 %); with a fixed cost for each layer (22 %, 44 %); each layer to a power (25 %,
49 %); each layer the larger of its MACs, elements and weights (9 %, 23 %, with two more constants); MACs and
elements moved, which has one constant more. That constant was then chosen on other networks.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.ai_hub import NEWEST, OLDER, RELEASES, SOURCE, Figure, from_clone, from_table
from benchmarks.models import floating
from benchmarks.prediction_fit import (
    UNITS,
    Error,
    Name,
    about,
    choose_unit,
    fit_curves,
    fit_spread,
    judge,
    leave_out_devices,
    leave_out_models,
    outer_slope,
    prototype,
    widened,
    within,
)
from benchmarks.record import RESULTS, real_data, save
from edge_resnet.devices.prediction import FITTED, Fitted, Series, Spread, WorkUnit, load_fitted
from edge_resnet.files import atomic_write
from edge_resnet.graph.graph import Graph

MODELS = ("resnet18", "resnet50", "resnet101", "resnext50")
LARGER = ("resnext101", "wideresnet50")
# No ResNets: how work is counted is chosen on these.
OTHERS = (
    "mobilenet_v2",
    "mobilenet_v3_small",
    "mobilenet_v3_large",
    "mnasnet05",
    "regnet",
    "regnet_y_800mf",
    "squeezenet1_1",
    "googlenet",
    "densenet121",
    "efficientnet_b0",
)
# Outside the fitted models' range, and built of the same layers.
OUTSIDE = (*LARGER, "squeezenet1_1")
TORCHVISION = {
    "resnext50": "resnext50_32x4d",
    "resnext101": "resnext101_32x8d",
    "wideresnet50": "wide_resnet50_2",
    "mnasnet05": "mnasnet0_5",
    "regnet": "regnet_x_3_2gf",
}
_FEWEST = 3


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clone", type=Path, help="a clone of https://github.com/quic/ai-hub-models")
    parser.add_argument("--fit", action="store_true", help=f"write {FITTED.name}")
    arguments = parser.parse_args()
    published = from_table(real_data() / "phone_latency.csv")
    before = load_fitted() if FITTED.exists() else None
    clone: Path | None = arguments.clone
    graphs = graphs_of((*MODELS, *LARGER, *OTHERS) if clone else MODELS)
    if clone is None:
        if before is None:
            parser.error("nothing was fitted yet: give --clone")
        unit, steepest = before.unit, before.spread.per_e_fold
        elsewhere = _last("elsewhere")
    else:
        unit, steepest, elsewhere = other_models(clone, published, graphs)
    report, fitted = examine(published, graphs, unit, steepest)
    if arguments.fit:
        older = (
            [one for one in before.series if one.release != NEWEST]
            if clone is None and before is not None
            else fit_older(clone, graphs, fitted)
        )
        write(replace(fitted, series=(*fitted.series, *older)))
    save("prediction", {"source": f"{SOURCE}, release {NEWEST}", **report, "elsewhere": elsewhere})


def graphs_of(models: Iterable[str]) -> dict[str, Graph]:
    """By the publisher's names; random weights, which cost as much."""
    return {model: floating(f"torchvision:{TORCHVISION.get(model, model)}")[0] for model in models}


def table_of(figures: Iterable[Figure], models: Iterable[str]) -> dict[Name, dict[str, float]]:
    wanted = set(models)
    table: dict[Name, dict[str, float]] = {}
    for one in figures:
        if one.model in wanted:
            table.setdefault((one.device, one.runtime, one.precision), {})[one.model] = one.milliseconds
    return {name: row for name, row in table.items() if len(row) >= _FEWEST}


def examine(
    published: Sequence[Figure], graphs: Mapping[str, Graph], unit: WorkUnit, steepest: float
) -> tuple[dict[str, Any], Fitted]:
    """Errors on models and devices left out of the table, and what is fitted on all of it."""
    table = table_of(published, MODELS)
    works = {model: unit.of(graphs[model]) for model in MODELS}
    judged = judge(table, works, MODELS, steepest)
    macs = {model: float(graphs[model].macs) for model in MODELS}
    first = [
        error
        for model in MODELS
        for error in prototype(table, macs, [other for other in MODELS if other != model], model)
    ]
    nothing, one = leave_out_devices(table, works, MODELS, "resnet50")
    groups = sorted({name[1:] for name in table})
    covered = dict(zip(map(_key, judged.errors), judged.covered, strict=True))
    report = {
        "macs_per_element": unit.per_element,
        "models_left_out": _summary(judged.errors, covered)
        | {
            "by_runtime": {
                "/".join(group): _summary([e for e in judged.errors if e.name[1:] == group], covered)
                for group in groups
            },
            "by_model": {
                model: _summary([e for e in judged.errors if e.model == model], covered) for model in MODELS
            },
        },
        "prototype_models_left_out": _summary(first)
        | {"by_model": {model: _summary([e for e in first if e.model == model]) for model in MODELS}},
        "devices_left_out": {
            "nothing_known": _summary(nothing),
            "one_model_known": _summary(one),
            "note": "an unknown device is not predicted",
        },
    }
    spread = widened(fit_spread(leave_out_models(table, works, MODELS)), steepest)
    overall = _summary(judged.errors, covered)
    fitted = Fitted(unit, works, spread, overall, fit_series(published, table, works, judged.errors))
    return report, fitted


def fit_series(
    published: Sequence[Figure],
    table: Mapping[Name, Mapping[str, float]],
    works: Mapping[str, float],
    errors: Sequence[Error],
) -> tuple[Series, ...]:
    curves = fit_curves(table, works, MODELS)
    series = []
    for name in sorted(curves):
        mine = [one for one in published if (one.device, one.runtime, one.precision) == name]
        units = {one.unit for one in mine if one.model in table[name]}
        if len(units) > 1:
            continue  # some models ran on the NPU, some on the GPU: no curve goes through both
        wrong = float(np.median([error.relative for error in errors if error.name == name]))
        device, runtime, precision = name
        models = tuple(model for model in MODELS if model in table[name])
        series.append(
            Series(device, mine[0].release, runtime, precision, units.pop(), models, wrong, curves[name])
        )
    return tuple(series)


def fit_older(clone: Path | None, graphs: Mapping[str, Graph], fitted: Fitted) -> list[Series]:
    """Series of devices that only older releases have."""
    assert clone is not None
    works = {model: fitted.unit.of(graphs[model]) for model in MODELS}
    older: list[Series] = []
    for release in sorted(set(OLDER.values())):
        figures = [
            one
            for one in from_clone(clone, release, MODELS)
            if OLDER.get(one.device) == release and one.runtime in ("tflite", "onnx", "qnn_dlc")
        ]
        table = table_of(figures, MODELS)
        older += fit_series(figures, table, works, leave_out_models(table, works, MODELS))
    return older


def other_models(
    clone: Path, published: Sequence[Figure], graphs: Mapping[str, Graph]
) -> tuple[WorkUnit, float, dict[str, Any]]:
    """How work is counted, how intervals widen outside, and the errors about models of which nothing was
    fitted.
    """
    table = table_of(published, MODELS)
    figures = list(from_clone(clone, NEWEST, (*LARGER, *OTHERS)))
    foreign = {name: row for name, row in table_of(figures, OTHERS).items() if name in table}
    all_works = {unit: {name: unit.of(graph) for name, graph in graphs.items()} for unit in UNITS}
    unit = choose_unit(foreign, all_works, OTHERS)
    works = all_works[unit]
    everything: dict[Name, dict[str, float]] = {name: dict(row) for name, row in table.items()}
    for one in figures:
        row = everything.get((one.device, one.runtime, one.precision))
        if row is not None:
            row[one.model] = one.milliseconds
    curves = fit_curves(table, works, MODELS)
    near = fit_spread(leave_out_models(table, works, MODELS)).near
    errors = {model: about(model, curves, everything, works, MODELS) for model in (*LARGER, *OTHERS)}
    steepest = outer_slope([error for model in OUTSIDE for error in errors[model]], near)
    spread = Spread(near, steepest)
    covered = {_key(e): within(e, spread) for found in errors.values() for e in found}
    six = (*MODELS, *LARGER)
    macs = {model: float(graph.macs) for model, graph in graphs.items()}
    return (
        unit,
        steepest,
        {
            "note": "macs_per_element was chosen on `chosen_on`, of which none is a ResNet; outside the "
            f"fitted range interval80 widens so that it covers 80 % of {', '.join(OUTSIDE)}",
            "chosen_on": list(OTHERS),
            "mean_log_error_of_choices": {
                str(choice.per_element): round(
                    float(np.mean([e.log for e in leave_out_models(foreign, all_works[choice], OTHERS)])), 4
                )
                for choice in UNITS
            },
            "fitted_on_four": {
                model: _summary(found, covered)
                | {"median_ratio": round(float(np.median([e.ratio for e in found])), 3)}
                for model, found in errors.items()
            },
            "six_resnets_left_out_in_turn": _summary(leave_out_models(everything, works, six)),
            "six_resnets_left_out_in_turn_prototype": _summary(
                [
                    e
                    for model in six
                    for e in prototype(everything, macs, [m for m in six if m != model], model)
                ]
            ),
            "two_left_out_prototype": _summary(
                [e for m in LARGER for e in prototype(table | everything, macs, MODELS, m)]
            ),
        },
    )


def _key(error: Error) -> tuple[Name, str]:
    return error.name, error.model


def _summary(
    errors: Sequence[Error], covered: Mapping[tuple[Name, str], bool] | None = None
) -> dict[str, Any]:
    relative = [error.relative for error in errors]
    summary: dict[str, Any] = {
        "figures": len(errors),
        "median_error": round(float(np.median(relative)), 4),
        "p90_error": round(float(np.quantile(relative, 0.9)), 4),
    }
    if covered is not None:
        summary["covered80"] = round(float(np.mean([covered[_key(error)] for error in errors])), 4)
    return summary


def _last(key: str) -> Any:
    path = RESULTS / "prediction.json"
    return json.loads(path.read_text(encoding="utf-8")).get(key) if path.exists() else None


def write(fitted: Fitted) -> None:
    document = {
        "source": f"fitted on figures of {SOURCE} (BSD-3-Clause, Qualcomm Technologies, Inc.)",
        "releases": RELEASES,
        **fitted.to_json(),
    }
    atomic_write(FITTED, json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
