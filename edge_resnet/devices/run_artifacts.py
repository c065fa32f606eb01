"""What `edge-resnet benchmark` is given: artifacts, and the runs that they belong to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_resnet.devices.device import Job
from edge_resnet.errors import InputError
from edge_resnet.files import sha256_of
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.passes import fold_normalization_std
from edge_resnet.report.schema import Report, load_report
from edge_resnet.run_directory import EvaluationRecord, read_baseline, read_graphs, read_record
from edge_resnet.targets import TARGETS, target_of_file
from edge_resnet.verify.answers import Expected
from edge_resnet.verify.run_images import labelled_batches

__all__ = ["Images", "MeasuredRun", "artifacts_of", "images_of"]

_SUFFIXES = tuple(dict.fromkeys(target.suffix for target in TARGETS.values()))


@dataclass(frozen=True, eq=False)
class Images:
    """Test images, uint8 [N, H, W, 3], with their labels [N]."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]


@dataclass
class MeasuredRun:
    """A run's folder: its report, which receives what is found, and what its artifacts should answer."""

    directory: Path
    report: Report
    expected: dict[bool, Expected] = field(default_factory=dict)

    @cached_property
    def record(self) -> EvaluationRecord:
        return read_record(self.directory)

    @cached_property
    def graphs(self) -> tuple[Graph, Graph]:
        """In integers and in floats, as artifacts were written from them."""
        quantized, floating = read_graphs(self.directory)
        return quantized, fold_normalization_std(floating)

    @cached_property
    def baseline(self) -> NDArray[np.bool_] | None:
        return read_baseline(self.directory)

    def graph_of(self, artifact: Path) -> Graph:
        return self.graphs[0 if target_of_file(artifact).quantized else 1]

    def expects(self, artifact: Path, images: Images) -> Expected:
        """What the artifact should answer to the images; computed once for all of a kind."""
        quantized = target_of_file(artifact).quantized
        if quantized not in self.expected:
            name = "reference executor" if quantized else "float graph"
            self.expected[quantized] = Expected(self.graph_of(artifact), name, images.pixels)
        return self.expected[quantized]


def artifacts_of(paths: Sequence[Path]) -> tuple[list[Job], dict[str, MeasuredRun]]:
    """A job for each artifact, with the path as its key; and the run of each that lies in a run's folder.

    Raises InputError: nothing is there, it is no artifact, or not the file that the run wrote.
    """
    jobs: list[Job] = []
    runs: dict[str, MeasuredRun] = {}
    opened: dict[Path, MeasuredRun | None] = {}
    for path in dict.fromkeys(_files(paths)):
        folder = path.parent
        if folder not in opened:
            report = folder / "report.json"
            opened[folder] = MeasuredRun(folder, load_report(report)) if report.exists() else None
        run, key = opened[folder], str(path)
        if run is not None and _is_of(run, path):
            runs[key] = run
            jobs.append(Job(key, path, run.graph_of(path)))
        else:
            jobs.append(Job(key, path))
    return jobs, runs


def images_of(runs: Sequence[MeasuredRun], jobs: Sequence[Job], data: str) -> Images:
    """The test images of `--data`, as the runs saw them, in their order.

    Raises InputError for an artifact without a run (its preprocessing and baseline are not known), for runs
    that saw other images than each other, and for other images than theirs.
    """
    if len(runs) == 0 or any(job.graph is None for job in jobs):
        lone = next((job.key for job in jobs if job.graph is None), "")
        raise InputError(
            f"--data: {lone} lies in no run's folder, so its preprocessing and its float baseline are not "
            "known; give the folder that `compress` wrote"
        )
    first = runs[0].record
    for run in runs[1:]:
        other = run.record
        if (first.fingerprint, first.preprocess, first.seed) != (
            other.fingerprint,
            other.preprocess,
            other.seed,
        ):
            raise InputError(
                f"--data: {runs[0].directory} and {run.directory} were evaluated on other images or with "
                "another preprocessing; measure them one by one"
            )
    longest = max(runs, key=lambda run: run.record.images)
    found = labelled_batches(longest.record, data, longest.graphs[1])
    assert found is not None  # `data` is given: what is wrong with it was raised
    batches = list(found[1])
    if not batches:
        raise InputError(f"--data {data}: no test images")
    return Images(
        np.concatenate([pixels for pixels, _ in batches]), np.concatenate([labels for _, labels in batches])
    )


def _files(paths: Sequence[Path]) -> list[Path]:
    found: list[Path] = []
    for path in paths:
        if not path.exists():
            raise InputError(f"{path}: there is no such artifact or folder")
        if path.is_dir() and path.suffix not in _SUFFIXES:
            inside = sorted(entry for entry in path.iterdir() if entry.suffix in _SUFFIXES)
            if not inside:
                raise InputError(f"{path}: holds no artifact ({', '.join(sorted(_SUFFIXES))})")
            found += inside
        else:
            target_of_file(path)
            found.append(path)
    return found


def _is_of(run: MeasuredRun, path: Path) -> bool:
    """Whether the run's report tells of this file. Raises InputError where the file was changed since."""
    entry = next((artifact for artifact in run.report.artifacts if artifact.path == path.name), None)
    if entry is None:
        return False
    if sha256_of(path) != entry.sha256:
        raise InputError(
            f"{path}: not the file that the run wrote (its sha256 differs from report.json's); "
            "`edge-resnet verify` says what changed"
        )
    return True
