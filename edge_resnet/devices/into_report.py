"""From what devices found to report.json: benchmarks with accuracy and parity, one entry a device."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from edge_resnet.benchmark.result import BenchmarkResult, without_figures
from edge_resnet.devices.device import Answers, Measurement
from edge_resnet.devices.run_artifacts import Images, MeasuredRun
from edge_resnet.report import schema
from edge_resnet.report.assemble import accuracy_part, parity_part
from edge_resnet.report.save import save_report
from edge_resnet.verify.answers import Expected, outcome_of

__all__ = ["add_to_report", "benchmarks_of"]


def benchmarks_of(
    device: str, artifact: Path, measurement: Measurement, run: MeasuredRun | None, images: Images | None
) -> list[schema.Benchmark]:
    """The entries of one artifact on one device. What it answered is judged where the run is known."""
    results, answers = list(measurement.benchmarks), measurement.answers
    place = None if answers is None else _place(device, results, answers)
    entries = [schema.Benchmark.model_validate(result.to_json()) for result in results]
    if place is None or answers is None or run is None or images is None:
        return entries
    expected = run.expects(artifact, images)
    entries[place].parity = _parity(answers, expected)
    entries[place].accuracy = accuracy_part(
        outcome_of(answers.logits, images.labels),
        answers.runtime,
        answers.runtime_version,
        schema.Kind(answers.kind),
        run.baseline,
    )
    if run.baseline is None:
        entries[place].notes.append(
            "no delta: an older version made the run and did not keep what the baseline answered; "
            "run compress again"
        )
    return entries


def add_to_report(run: MeasuredRun, entries: Mapping[str, list[schema.Benchmark]]) -> None:
    """Put entries (by the file's name) into the run's report, in the place of older ones of the same kind.

    report.json, .html and .md are written anew, each complete or not at all.
    """
    for artifact in run.report.artifacts:
        new = entries.get(artifact.path, [])
        before = {_identity(entry): entry for entry in artifact.benchmarks}
        for entry in new:
            old = before.pop(_identity(entry), None)
            if old is not None and entry.accuracy is None:
                # Measured without images this time: what the same file answered there still holds.
                entry.accuracy, entry.parity = old.accuracy, old.parity
        kept = list(before.values())
        artifact.benchmarks = [*kept, *new]
    work = Path(tempfile.mkdtemp(prefix=".work-", dir=run.directory))
    try:
        save_report(run.report, work)
        for name in ("report.md", "report.html", "report.json"):
            (work / name).replace(run.directory / name)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _identity(entry: schema.Benchmark) -> tuple[str, str, int]:
    return entry.device, entry.runtime, entry.threads


def _place(device: str, results: list[BenchmarkResult], answers: Answers) -> int:
    """Which entry the answers belong to; one without other figures is added where there is none."""
    for index, result in enumerate(results):
        if result.runtime == answers.runtime:
            return index
    reason = "not timed here"
    results.append(
        without_figures(device, answers.runtime, answers.kind, reason, version=answers.runtime_version)
    )
    return len(results) - 1


def _parity(answers: Answers, expected: Expected) -> schema.Parity | None:
    return parity_part(expected.compare(answers.logits), answers.runtime, schema.Kind(answers.kind))
