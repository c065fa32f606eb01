"""Prove a set of artifacts: read each back, run it on its runtime, and judge what was seen."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from edge_resnet.cpu import onnx_runtime_saturates, saturation_warning, this_cpu
from edge_resnet.errors import VerificationError
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.reference import ReferenceExecutor, dequantize
from edge_resnet.runners.base import Runner
from edge_resnet.targets import Target
from edge_resnet.verify.evaluate import Labels, Outcome, Pixels, Subject, evaluate
from edge_resnet.verify.exactness import first_inexact
from edge_resnet.verify.locate import first_difference
from edge_resnet.verify.parity import Logits, ParityTally
from edge_resnet.verify.ranges import RangeCheck, compare_ranges

__all__ = ["BASELINE", "Proof", "Proofs", "prove", "read_back"]

BASELINE = "baseline"
REFERENCE = "reference"

# A runtime that computes in float16 (Core ML) or sums floats in another order may choose another class on
# a few images; more than this share is a defect, not rounding.
_MAX_DISAGREEMENT = 0.01
# Below this number of images a share says nothing; so many may disagree in any case.
_FEW_DISAGREEMENTS = 2


@dataclass
class Proof:
    """What was seen of one artifact. `failures` make a run fail, `warnings` do not.

    `exact`: its runtime must answer with the reference's integers to the bit.
    """

    target: Target
    path: Path
    exact: bool = False
    ranges: RangeCheck | None = None
    runner: Runner | None = None
    parity: ParityTally | None = None
    outcome: Outcome | None = None
    failures: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Proofs:
    """All artifacts' proofs, and the float baseline on the same images."""

    artifacts: list[Proof]
    baseline: Outcome | None


def prove(
    artifacts: Mapping[Target, Path],
    quantized: Graph,
    baseline: Callable[[Pixels], Logits] | None,
    baseline_name: str,
    batches: Iterable[tuple[Pixels, Labels]],
    parity_images: int,
    emulated_images: int,
    advance: Callable[[int], None] = lambda steps: None,
) -> Proofs:
    """Read back, run and compare. A problem of one artifact does not stop the others.

    `baseline` is the float model; `baseline_name` says in the report what it is. None leaves accuracy out.
    """
    inexact = first_inexact(quantized)
    proofs = [Proof(t, path, exact=t.exact and inexact is None) for t, path in artifacts.items()]
    for proof in proofs:
        if proof.target.exact and inexact is not None:
            proof.warnings.append(f"{proof.path.name}: not held to the bit: {inexact}, as the source has it")
        read_back(proof, quantized)
        if not proof.failures:
            _open(proof)
    reference = ReferenceExecutor(quantized)
    output = quantized.output.quant
    assert output is not None

    def expected(pixels: Pixels) -> Logits:
        return dequantize(reference.run(pixels), output)

    subjects = [
        _subject(proof, output.scale, baseline_name, emulated_images) for proof in proofs if proof.runner
    ]
    if baseline is not None:
        subjects.insert(0, Subject(BASELINE, baseline))
    outcomes = evaluate(batches, subjects, {REFERENCE: expected}, parity_images, advance)
    for proof in proofs:
        if proof.runner is not None:
            proof.outcome = outcomes[proof.target.name]
            _judge(proof, quantized)
    return Proofs(proofs, outcomes.get(BASELINE))


def read_back(proof: Proof, quantized: Graph) -> None:
    """Compare what the file says with the graph; problems go into the proof's failures."""
    if not proof.target.quantized:
        return
    try:
        proof.ranges = compare_ranges(quantized, proof.target.read_back(proof.path))
    except VerificationError as error:
        proof.failures.append(str(error))
        return
    if proof.ranges.mismatches:
        first, others = proof.ranges.mismatches[0], len(proof.ranges.mismatches) - 1
        more = f" (and {others} more)" if others else ""
        proof.failures.append(f"{proof.path.name}: {first}{more}")


def _open(proof: Proof) -> None:
    try:
        proof.runner = proof.target.open(proof.path)
    except VerificationError as error:
        proof.failures.append(str(error))


def _subject(proof: Proof, scale: float, baseline_name: str, emulated_images: int) -> Subject:
    target, runner = proof.target, proof.runner
    assert runner is not None
    if target.quantized:
        proof.parity = ParityTally("reference executor", scale, to_the_bit=proof.exact)
    else:
        proof.parity = ParityTally(baseline_name, None)
    return Subject(
        name=target.name,
        logits=runner.logits,
        limit=emulated_images if runner.emulated else None,
        expects=REFERENCE if target.quantized else BASELINE,
        parity=proof.parity,
        cross=proof.exact,
    )


def _judge(proof: Proof, quantized: Graph) -> None:
    """Turn parity into failures and warnings."""
    parity, name = proof.parity, proof.path.name
    assert parity is not None
    assert proof.outcome is not None
    if not parity.n:
        return
    if proof.exact:
        if parity.identical_images < parity.n:
            _judge_difference(proof, parity, quantized)
        elif not onnx_runtime_saturates(this_cpu()):  # there, the reference's images have told it already
            for tally in proof.outcome.cross.values():
                if tally.identical_images < tally.n:
                    differing = tally.n - tally.identical_images
                    proof.failures.append(
                        f"{name}: logits differ from {tally.against}'s on {differing} of {tally.n} images"
                    )
        return
    disagreeing = parity.n - parity.agreeing_images
    if disagreeing > max(_FEW_DISAGREEMENTS, int(np.floor(_MAX_DISAGREEMENT * parity.n))):
        proof.failures.append(
            f"{name}: top-1 differs from the {parity.against}'s on {disagreeing} of {parity.n} images"
        )


def _judge_difference(proof: Proof, parity: ParityTally, quantized: Graph) -> None:
    """An exact runtime is not: a known trait of this CPU, or a defect whose node is named."""
    differing = parity.n - parity.identical_images
    text = (
        f"{proof.path.name}: logits differ from the {parity.against}'s on {differing} of {parity.n} images "
        f"(at most {parity.max_lsb} LSB)"
    )
    cpu = this_cpu()
    if proof.target.suffix == ".onnx" and onnx_runtime_saturates(cpu):
        loss = 1 - parity.top1_agreement
        proof.warnings.append(f"{text}: {saturation_warning(cpu)} Measured: top-1 differs on {loss:.2%}.")
        return
    node = first_difference(quantized, proof.target, _locating_pixels(quantized))
    where = f"; they part at node {node!r}" if node else "; no single node parts on random images"
    proof.failures.append(text + where)


def _locating_pixels(graph: Graph) -> Pixels:
    channels, height, width = graph.input.shape
    return np.random.default_rng(0).integers(0, 256, (4, height, width, channels), np.uint8)
