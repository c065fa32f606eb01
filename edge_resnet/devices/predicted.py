"""A phone or board that is described but not here: its latencies are predicted, and nothing is computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edge_resnet.benchmark.result import BenchmarkResult, without_figures
from edge_resnet.devices.descriptions import Description, Figures, find_description
from edge_resnet.devices.device import Job, Measurement, Request
from edge_resnet.devices.prediction import Fitted, Prediction, Series, load_fitted, unlike_fitted
from edge_resnet.errors import EdgeResnetError, InputError
from edge_resnet.frontends.model_files import is_model_file, open_model_file
from edge_resnet.frontends.sources import import_graph, resolve_preprocess
from edge_resnet.graph.graph import Graph
from edge_resnet.progress import Advance
from edge_resnet.targets import target_of_file

__all__ = ["PredictedDevice", "open_described"]

KIND = "predicted"
# The publisher's runtime that opens such a file, and its name there.
_RUNTIMES = {".tflite": ("tflite", "TFLite"), ".onnx": ("onnx", "ONNX Runtime")}
_PRECISIONS = {"float": "float", "w8a8": "int8"}
# A network whose work is within this factor of the fitted ones' is not said to be extrapolated.
_NEAR = 0.05


@dataclass
class PredictedDevice:
    """A Device that answers no images: a prediction computes nothing."""

    uri: str
    description: Description
    figures: Figures
    fitted: Fitted
    most_images: int | None = None

    def steps(self, jobs: Sequence[Job], request: Request) -> int:
        return len(jobs)

    def measure(self, jobs: Sequence[Job], request: Request, advance: Advance) -> dict[str, Measurement]:
        """A job of which nothing can be predicted has a result without figures, with a note that says why."""
        found = {}
        for job in jobs:
            found[job.key] = Measurement([self._predicted(job)])
            advance(1)
        return found

    def _predicted(self, job: Job) -> BenchmarkResult:
        if job.path.suffix not in _RUNTIMES:
            what = f"no published figures of {job.path.suffix} files"
            return self._without("none", f"no prediction: {what}, only of {' and '.join(_RUNTIMES)}")
        runtime, name = _RUNTIMES[job.path.suffix]
        if target_of_file(job.path).compiled_from is not None:
            return self._without(
                name, "no prediction: the file is compiled for one NPU, and runs on no other"
            )
        try:
            graph = job.graph or _graph_of(job.path)
        except EdgeResnetError as error:
            return self._without(name, f"no prediction: {error}")
        if graph.is_mixed:
            return self._without(name, "no prediction: no figures of files that are part int8, part float")
        precision = "w8a8" if graph.is_quantized else "float"
        series = self.fitted.find(self.figures.device, self.figures.release, runtime, precision)
        if series is None:
            what = f"{name} {_PRECISIONS[precision]} on {self.figures.device}"
            return self._without(name, f"no prediction: {self.figures.source_words} has no figures of {what}")
        return self._result(name, series, graph)

    def _result(self, name: str, series: Series, graph: Graph) -> BenchmarkResult:
        prediction = self.fitted.predict(series, graph)
        return BenchmarkResult(
            device=self.uri,
            runtime=f"{name}/{series.unit} {_PRECISIONS[series.precision]}",
            runtime_version="",
            threads=1,
            kind=KIND,
            latency_ms={"p50": prediction.milliseconds},
            latency_interval_ms=prediction.interval,
            notes=self._notes(series, prediction, graph),
        )

    def _notes(self, series: Series, prediction: Prediction, graph: Graph) -> list[str]:
        left_out = self.fitted.left_out
        notes = [
            f"predicted for {self.description.title} ({self.description.chipset}), not measured: fitted on "
            f"{', '.join(series.models)}, as {self.figures.source_words} publishes them; about models left "
            f"out, the median error is {left_out['median_error']:.1%} and one in ten is above "
            f"{left_out['p90_error']:.0%} (median with this runtime and precision here: {series.error:.1%})",
            "the publisher's figures are the shortest of many runs on random input, one after the other: a "
            "median on a phone in use is longer; memory, start, mean and tails are not predicted",
        ]
        if self.description.same_chip_as is not None:
            notes.append(f"of the {self.figures.device}, which has the same chip")
        if prediction.away > _NEAR:
            works = [self.fitted.works[model] for model in series.models]
            work = self.fitted.unit.of(graph)
            if work > max(works):
                where = f"{work / max(works):.1f} times the work of the largest model with figures"
            else:
                where = f"1/{min(works) / work:.3g} of the work of the smallest model with figures"
            notes.append(f"extrapolated: this has {where}, so the interval is wide")
        if strange := unlike_fitted(graph):
            notes.append(f"no fitted model has {strange}: the interval does not tell what these change")
        if series.unit == "CPU":
            notes.append("in the published runs this ran on the CPU, not the NPU")
        if self.description.note is not None:
            notes.append(self.description.note)
        return notes

    def _without(self, runtime: str, reason: str) -> BenchmarkResult:
        return without_figures(self.uri, runtime, KIND, reason)


def _graph_of(path: Path) -> Graph:
    """What the file computes, read back from it."""
    if not is_model_file(str(path)):
        raise InputError(f"{path}: not a model file")
    model = open_model_file(path)
    # Normalization costs nothing here, and a file does not tell it.
    unknown = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    return import_graph(model, resolve_preprocess({**unknown, **model.preprocess_defaults}, {}))


def open_described(name: str) -> PredictedDevice:
    """Raises InputError where there is no such description, or it is damaged."""
    description, figures = find_description(name)
    return PredictedDevice(name, description, figures, load_fitted())
