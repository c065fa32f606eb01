"""Prove a set of artifacts: read each back, run it on its runtime, and judge what was seen."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np

from edge_resnet.cpu import onnx_runtime_saturates, saturation_warning, this_cpu
from edge_resnet.errors import MissingToolError, VerificationError
from edge_resnet.graph.float_executor import FloatExecutor
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.mixed_executor import MixedExecutor
from edge_resnet.runners.base import Runner
from edge_resnet.targets import Target
from edge_resnet.verify.contents import StoredFloats
from edge_resnet.verify.evaluate import Labels, Outcome, Pixels, Subject, evaluate
from edge_resnet.verify.exactness import can_saturate, first_inexact
from edge_resnet.verify.float_weights import (
    compare_floats,
    flushed_weights,
    overflowing_activation,
    with_stored_weights,
)
from edge_resnet.verify.locate import first_difference
from edge_resnet.verify.parity import Logits, ParityTally
from edge_resnet.verify.ranges import RangeCheck, compare_ranges

__all__ = ["BASELINE", "Proof", "Proofs", "prove", "read_back"]

BASELINE = "baseline"
REFERENCE = "reference"
FLOAT_GRAPH = "float graph"

# A runtime that computes in float16 (Core ML) or sums floats in another order may choose another class on
# a few images; more than this share is a defect, not rounding.
_MAX_DISAGREEMENT = 0.01
# An NPU rounds twice where the reference rounds once (ResNet-20: 6 LSB, the same class on 200 of 200 images);
# beyond this share it computes something else.
_MAX_NPU_DISAGREEMENT = 0.1
# Below this number of images a share says nothing; so many may disagree in any case.
_FEW_DISAGREEMENTS = 2
# On so many images the values of all tensors are looked at, and palettes compared with their own weights.
_SAMPLE = 64

Batches = Iterable[tuple[Pixels, Labels]]


@dataclass
class Proof:
    """What was seen of one artifact. `failures` make a run fail, `warnings` do not.

    `exact`: its runtime must answer with the reference's integers to the bit. `ranges` is the check of an
    int8 file, `weights` that of a float file, whose `stored` numbers are there too.
    """

    target: Target
    path: Path
    exact: bool = False
    ranges: RangeCheck | None = None
    weights: RangeCheck | None = None
    stored: Mapping[str, StoredFloats] = field(default_factory=dict)
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
    batches: Batches,
    parity_images: int,
    emulated_images: int,
    advance: Callable[[int], None] = lambda steps: None,
    floating: Graph | None = None,
    changed: bool = False,
) -> Proofs:
    """Read back, run and compare. A problem of one artifact does not stop the others.

    `baseline` is the float model; `baseline_name` says in the report what it is. None leaves accuracy out.
    `floating` is what the float artifacts were written from; without it their weights are not checked.
    `changed`: it is another model than the baseline (pruned, trained), and float artifacts answer as it does.
    """
    inexact = first_inexact(quantized)
    proofs = [Proof(t, path, exact=t.exact and inexact is None) for t, path in artifacts.items()]
    for proof in proofs:
        if proof.target.exact and inexact is not None:
            proof.warnings.append(f"{proof.path.name}: not held to the bit: {inexact}")
        read_back(proof, quantized, floating)
        if not proof.failures:
            _open(proof)
    if floating is not None:
        batches = _check_half_precision(proofs, floating, batches)
    output = quantized.output.quant
    scale = None if output is None else output.scale
    expected: dict[str, Callable[[Pixels], Logits]] = {REFERENCE: MixedExecutor(quantized).logits}
    floats = BASELINE, baseline_name
    if changed and floating is not None:
        floats = FLOAT_GRAPH, FLOAT_GRAPH
        expected[FLOAT_GRAPH] = FloatExecutor(floating).run
    subjects = [_subject(proof, scale, *floats, emulated_images) for proof in proofs if proof.runner]
    if baseline is not None:
        subjects.insert(0, Subject(BASELINE, baseline))
    outcomes = evaluate(batches, subjects, expected, parity_images, advance)
    for proof in proofs:
        if proof.runner is not None:
            proof.outcome = outcomes[proof.target.name]
            _judge(proof, quantized)
    return Proofs(proofs, outcomes.get(BASELINE))


def read_back(proof: Proof, quantized: Graph, floating: Graph | None = None) -> None:
    """Compare what the file says with its graph; problems go into the proof's failures."""
    target = proof.target
    if target.compiled_from is not None:
        return
    try:
        if target.quantized:
            check = proof.ranges = compare_ranges(quantized, target.read_back(proof.path))
        elif floating is not None and target.float_type is not None:
            proof.stored = target.read_floats(proof.path)
            check = compare_floats(floating, proof.stored, target.float_type, target.palette_bits)
            proof.weights = check
        else:
            return
    except VerificationError as error:
        proof.failures.append(str(error))
        return
    if check.mismatches:
        first, others = check.mismatches[0], len(check.mismatches) - 1
        more = f" (and {others} more)" if others else ""
        proof.failures.append(f"{proof.path.name}: {first}{more}")


def _check_half_precision(proofs: list[Proof], floating: Graph, batches: Batches) -> Batches:
    """What float16 loses, and whether palettes are what the runtime computes with. Reads one batch ahead."""
    halves = [proof for proof in proofs if proof.target.float_type == "float16" and proof.runner]
    batches = iter(batches)
    first = next(batches, None)
    if first is None or not halves:
        return batches if first is None else chain([first], batches)
    pixels = first[0][:_SAMPLE]
    lost = [*flushed_weights(floating), overflowing_activation(floating, pixels)]
    for proof in halves:
        proof.warnings += [f"{proof.path.name}: {text}" for text in lost if text]
        if proof.target.palette_bits is not None:
            _check_own_weights(proof, floating, pixels)
    return chain([first], batches)


def _check_own_weights(proof: Proof, floating: Graph, pixels: Pixels) -> None:
    """The runtime must choose the class that the file's own weights give: only they are approximations."""
    assert proof.runner is not None
    tally = ParityTally("float graph with the file's weights", None)
    tally.update(
        FloatExecutor(with_stored_weights(floating, proof.stored)).run(pixels), proof.runner.logits(pixels)
    )
    if text := _disagreement(tally):
        proof.failures.append(f"{proof.path.name}: {text}")


def _open(proof: Proof) -> None:
    target, name = proof.target, proof.path.name
    if target.compiled_from is not None:
        proof.warnings.append(
            f"{name}: a compiler's own format: its integers are not read back. It was compiled from what "
            f"{target.compiled_from} holds"
        )
    if target.open is None:
        proof.warnings.append(f"{name}: nothing but the NPU itself runs it, so its answers are not known")
        return
    try:
        proof.runner = target.open(proof.path)
    except VerificationError as error:
        proof.failures.append(str(error))
    except MissingToolError as error:
        if target.compiled_from is None:
            raise
        proof.warnings.append(f"{name}: not run here: {error}")


def _subject(
    proof: Proof, scale: float | None, floats: str, floats_name: str, emulated_images: int
) -> Subject:
    """`floats`: what a float artifact's answers are compared with, and its name in the report."""
    target, runner = proof.target, proof.runner
    assert runner is not None
    if target.quantized:
        proof.parity = ParityTally("reference executor", scale, to_the_bit=proof.exact)
    else:
        proof.parity = ParityTally(floats_name, None)
    return Subject(
        name=target.name,
        logits=runner.logits,
        limit=min(emulated_images, target.most_images or emulated_images) if runner.emulated else None,
        expects=REFERENCE if target.quantized else floats,
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
        elif not _saturates(quantized):  # there, the reference's images have told it already
            for tally in proof.outcome.cross.values():
                if tally.identical_images < tally.n:
                    differing = tally.n - tally.identical_images
                    proof.failures.append(
                        f"{name}: logits differ from {tally.against}'s on {differing} of {tally.n} images"
                    )
        return
    text, bits = _disagreement(parity), proof.target.palette_bits
    if text and bits is not None:
        proof.warnings.append(f"{name}: {text}: weights of {bits} bits are approximations")
    elif (
        text and proof.target.compiled_from is not None and parity.top1_agreement >= 1 - _MAX_NPU_DISAGREEMENT
    ):
        proof.warnings.append(f"{name}: {text}: the NPU rounds in its own way")
    elif text:
        proof.failures.append(f"{name}: {text}")


def _disagreement(parity: ParityTally) -> str:
    """On how many images the class differs; empty where rounding explains so many."""
    disagreeing = parity.n - parity.agreeing_images
    if disagreeing <= max(_FEW_DISAGREEMENTS, int(np.floor(_MAX_DISAGREEMENT * parity.n))):
        return ""
    return f"top-1 differs from the {parity.against}'s on {disagreeing} of {parity.n} images"


def _judge_difference(proof: Proof, parity: ParityTally, quantized: Graph) -> None:
    """An exact runtime is not: a known trait of this CPU, or a defect whose node is named."""
    differing = parity.n - parity.identical_images
    text = (
        f"{proof.path.name}: logits differ from the {parity.against}'s on {differing} of {parity.n} images "
        f"(at most {parity.max_lsb} LSB)"
    )
    if proof.target.suffix == ".onnx" and _saturates(quantized):
        loss, words = 1 - parity.top1_agreement, saturation_warning(this_cpu())
        proof.warnings.append(f"{text}: {words} Measured: top-1 differs on {loss:.2%}.")
        return
    node = first_difference(quantized, proof.target, _locating_pixels(quantized))
    where = f"; they part at node {node!r}" if node else "; no single node parts on random images"
    proof.failures.append(text + where)


def _saturates(graph: Graph) -> bool:
    """Whether ONNX Runtime may be wrong about this graph on this CPU: never with portable weights."""
    return onnx_runtime_saturates(this_cpu()) and can_saturate(graph)


def _locating_pixels(graph: Graph) -> Pixels:
    channels, height, width = graph.input.shape
    return np.random.default_rng(0).integers(0, 256, (4, height, width, channels), np.uint8)
