"""`edge-resnet verify DIR`: everything that `compress` proved, once more, from the files alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edge_resnet.errors import InputError
from edge_resnet.files import sha256_of
from edge_resnet.graph.float_executor import FloatExecutor
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.mixed_executor import MixedExecutor
from edge_resnet.graph.passes import fold_normalization_std
from edge_resnet.progress import Progress
from edge_resnet.report.schema import Report, load_report
from edge_resnet.run_directory import Probe, read_graphs, read_probe, read_record
from edge_resnet.targets import TARGETS, Target
from edge_resnet.verify.evaluate import Labels, Pixels
from edge_resnet.verify.prove import Proof, Proofs, prove, read_back
from edge_resnet.verify.run_images import labelled_batches

__all__ = ["Verification", "verify"]

# Of the logits' range: five steps of 8 bits.
_MIXED_TOLERANCE = 0.02


@dataclass(frozen=True)
class Verification:
    """What `verify` saw. `labelled`: the data was there, so accuracies mean something."""

    report: Report
    proofs: Proofs
    labelled: bool
    notes: tuple[str, ...]

    @property
    def failures(self) -> list[str]:
        return [failure for proof in self.proofs.artifacts for failure in proof.failures]


def verify(directory: Path, data: str | None, progress: Progress) -> Verification:
    """Check every artifact that the report lists. Raises InputError when `directory` holds no run.

    Without the data (moved, or another machine) the run's own probe images are used: integers and parity are
    checked all the same, accuracy is not.
    """
    report = load_report(directory / "report.json")
    quantized, floating = read_graphs(directory)
    record, probe = read_record(directory), read_probe(directory)
    _check_probe(quantized, probe)  # a graph that was changed proves nothing: say so before the long part
    written = fold_normalization_std(floating)
    sound, broken = _by_checksum(directory, report, quantized, written)
    source = labelled_batches(record, data, floating)
    notes: list[str] = []
    if source is None:
        notes.append(
            f"the data ({record.data}) is not here: checked on the run's {len(probe.pixels)} probe images, "
            "without accuracy; --data DIR gives it"
        )
        progress.note(notes[-1])
        source = _probe_batches(probe)
    total, batches = source
    with progress.stage("verify", total) as advance:
        proofs = prove(
            sound,
            quantized,
            FloatExecutor(floating).run,
            "float graph",
            batches,
            record.parity_images,
            record.emulated_images,
            advance,
            written,
        )
    proofs.artifacts.extend(broken)
    return Verification(report, proofs, not notes, tuple(notes))


def _by_checksum(
    directory: Path, report: Report, quantized: Graph, floating: Graph
) -> tuple[dict[Target, Path], list[Proof]]:
    """Artifacts whose bytes are the run's, and proofs of the others' failure.

    A changed file is read back, to name the tensor, but it is not run: a damaged file can crash a runtime.
    """
    sound: dict[Target, Path] = {}
    broken: list[Proof] = []
    for entry in report.artifacts:
        target = TARGETS.get(entry.target)
        if target is None:
            raise InputError(f"{directory}/report.json: unknown target {entry.target!r}")
        path = directory / Path(entry.path).name
        if not path.exists():
            broken.append(Proof(target, path, failures=[f"{path}: missing"]))
        elif sha256_of(path) == entry.sha256:
            sound[target] = path
        else:
            broken.append(_changed(target, path, quantized, floating))
    return sound, broken


def _changed(target: Target, path: Path, quantized: Graph, floating: Graph) -> Proof:
    proof = Proof(target, path)
    read_back(proof, quantized, floating)
    proof.failures.append(
        f"{path.name}: its bytes are not those that the run wrote (sha256 differs); not run"
    )
    return proof


def _probe_batches(probe: Probe) -> tuple[int, Iterator[tuple[Pixels, Labels]]]:
    unknown = np.full(len(probe.pixels), -1, np.int64)
    return len(probe.pixels), iter([(probe.pixels, unknown)])


def _check_probe(quantized: Graph, probe: Probe) -> None:
    """The graph still means what it meant when the run was made."""
    got = MixedExecutor(quantized).run(probe.pixels).astype(np.float64)
    recorded = probe.logits.astype(np.float64)
    # Float layers may round differently on another machine.
    tolerance = 0.0 if quantized.is_quantized else _MIXED_TOLERANCE * np.ptp(recorded)
    if got.shape != recorded.shape or not np.abs(got - recorded).max() <= tolerance:
        raise InputError(
            "the graph in graph/ does not compute the logits that the run recorded: graph/ was changed"
        )
