"""Milliseconds on a phone or board that is not here, from published measurements of other models.

    milliseconds = overhead + slope * work(graph)

`work` is multiply-accumulates, and what moving each convolution's input and output costs, in the same unit,
which is the same on all devices; overhead and slope are each device's, runtime's and precision's own.
fitted.json has them: benchmarks/prediction.py fits them, and measures how wrong they are about models that
they were not fitted on.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from edge_resnet.graph.graph import Graph
from edge_resnet.graph.nodes import Conv, HardSigmoid, Linear, Mul, Node, Sigmoid

__all__ = [
    "FITTED",
    "Curve",
    "Fitted",
    "Prediction",
    "Series",
    "Spread",
    "WorkUnit",
    "distance",
    "load_fitted",
    "unlike_fitted",
]

FITTED = Path(__file__).with_name("fitted.json")
# Integer graphs hold average pools as depthwise convolutions; a network built of them has many more.
_MANY = 0.2


@dataclass(frozen=True)
class WorkUnit:
    """How work is counted. `per_element`: what reading or writing one element of an activation costs, in
    multiply-accumulates.
    """

    per_element: float

    def of(self, graph: Graph) -> float:
        """The work of one image, in multiply-accumulates."""
        layers = (node for node in graph.nodes if isinstance(node, Conv | Linear))
        return graph.macs + self.per_element * sum(_elements(graph, node) for node in layers)


def _elements(graph: Graph, node: Node) -> int:
    """Elements that a layer reads and writes, weights aside."""
    return int(sum(np.prod(graph.shapes[name]) for name in (node.name, *node.inputs)))


@dataclass(frozen=True)
class Curve:
    """`slope_ms`: milliseconds for 10^9 of work; both are above 0."""

    overhead_ms: float
    slope_ms: float

    def milliseconds(self, work: float) -> float:
        return self.overhead_ms + self.slope_ms * work / 1e9


@dataclass(frozen=True)
class Spread:
    """Of the logarithm of measured / predicted, 80 % lie within `near`, and `per_e_fold` more for each factor
    of e that a model's work lies outside that of the fitted ones.
    """

    near: float
    per_e_fold: float

    def factor(self, away: float) -> float:
        return math.exp(self.near + self.per_e_fold * away)


@dataclass(frozen=True)
class Series:
    """What is known of a device, with one runtime and precision (`float`: half floats; `w8a8`: int8).

    `device` and `release` as the source names them. `unit`: which processor ran it there, NPU or CPU.
    `error`: the median error about models left out, as a fraction.
    """

    device: str
    release: str
    runtime: str
    precision: str
    unit: str
    models: tuple[str, ...]
    error: float
    curve: Curve


@dataclass(frozen=True)
class Prediction:
    """Milliseconds with the ends of the 80 % interval. `away`: 0 for a model between the fitted ones, else
    the logarithm of the factor by which its work lies outside.
    """

    milliseconds: float
    interval: tuple[float, float]
    away: float


@dataclass(frozen=True)
class Fitted:
    """All that ships. `works`: of the fitted models. `left_out`: how wrong it is about models left out."""

    unit: WorkUnit
    works: Mapping[str, float]
    spread: Spread
    left_out: Mapping[str, float]
    series: tuple[Series, ...]

    def find(self, device: str, release: str, runtime: str, precision: str) -> Series | None:
        wanted = (device, release, runtime, precision)
        for one in self.series:
            if (one.device, one.release, one.runtime, one.precision) == wanted:
                return one
        return None

    def predict(self, series: Series, graph: Graph) -> Prediction:
        work = self.unit.of(graph)
        away = distance(work, [self.works[model] for model in series.models])
        value, factor = series.curve.milliseconds(work), self.spread.factor(away)
        return Prediction(value, (value / factor, value * factor), away)

    def to_json(self) -> dict[str, Any]:
        rows = [
            {
                "device": one.device,
                "release": one.release,
                "runtime": one.runtime,
                "precision": one.precision,
                "unit": one.unit,
                "models": list(one.models),
                "left_out_error": round(one.error, 4),
                "overhead_ms": round(one.curve.overhead_ms, 5),
                "ms_per_gwork": round(one.curve.slope_ms, 5),
            }
            for one in self.series
        ]
        return {
            "work": {"macs_per_element": self.unit.per_element},
            "model_work": dict(self.works),
            "interval80": {
                "near": round(self.spread.near, 4),
                "per_e_fold": round(self.spread.per_e_fold, 4),
            },
            "left_out_models": dict(self.left_out),
            "series": rows,
        }


def distance(work: float, fitted: list[float]) -> float:
    """How far outside the fitted models' works it lies, as the logarithm of the factor; 0 between them."""
    return max(0.0, math.log(work / max(fitted)), math.log(min(fitted) / work))


def unlike_fitted(graph: Graph) -> str:
    """What the model has that no fitted one had, in words; empty where there is nothing."""
    convolutions = [node for node in graph.nodes if isinstance(node, Conv)]
    depthwise = sum(node.groups > 1 and node.weights.weight.shape[1] == 1 for node in convolutions)
    found = []
    if depthwise > _MANY * len(convolutions):
        found.append("depthwise convolutions")
    if any(isinstance(node, Mul | Sigmoid | HardSigmoid) for node in graph.nodes):
        found.append("gates (squeeze-and-excitation)")
    return " and ".join(found)


@cache
def load_fitted(path: Path = FITTED) -> Fitted:
    """The coefficients that came with the program."""
    values = json.loads(path.read_text(encoding="utf-8"))
    series = tuple(
        Series(
            device=row["device"],
            release=row["release"],
            runtime=row["runtime"],
            precision=row["precision"],
            unit=row["unit"],
            models=tuple(row["models"]),
            error=row["left_out_error"],
            curve=Curve(row["overhead_ms"], row["ms_per_gwork"]),
        )
        for row in values["series"]
    )
    spread = values["interval80"]
    return Fitted(
        WorkUnit(values["work"]["macs_per_element"]),
        values["model_work"],
        Spread(spread["near"], spread["per_e_fold"]),
        values["left_out_models"],
        series,
    )
