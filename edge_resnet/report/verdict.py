"""What a reader must know first: may these files be shipped, and on what evidence."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from enum import StrEnum

from edge_resnet.report.present_pruning import gain_words
from edge_resnet.report.schema import Artifact, Kind, Parity, Report
from edge_resnet.report.wording import join, plural, share
from edge_resnet.targets import TARGETS

__all__ = ["Status", "Verdict", "problems", "verdict"]


class Status(StrEnum):
    """`INCOMPLETE`: nothing failed, but a file was not run, so nothing is proven of it."""

    VERIFIED = "Verified"
    INCOMPLETE = "Not fully verified"
    FAILED = "Failed"


@dataclass(frozen=True)
class Verdict:
    """`headline` is one sentence; each of `evidence` is one more, computed from the figures."""

    status: Status
    headline: str
    evidence: tuple[str, ...]

    @property
    def good(self) -> bool:
        return self.status is Status.VERIFIED


def verdict(report: Report) -> Verdict:
    """Judge the whole report."""
    artifacts = report.artifacts
    failed = [artifact for artifact in artifacts if problems(artifact)]
    unproven = [artifact for artifact in artifacts if artifact.parity is None and not problems(artifact)]
    evidence = (
        *_integers(artifacts),
        *_weights(artifacts),
        *_bit_for_bit(artifacts),
        *_crossed(artifacts),
        *_close(artifacts),
    )
    if failed:
        what = f"{len(failed)} of {plural(len(artifacts), 'artifact')} failed verification: do not ship."
        return Verdict(Status.FAILED, what, evidence)
    if not artifacts:
        return Verdict(Status.INCOMPLETE, "The run has no artifacts.", ())
    if unproven:
        names = join([artifact.target for artifact in unproven])
        what = f"{names} {'was' if len(unproven) == 1 else 'were'} not run: nothing is known of the logits."
        return Verdict(Status.INCOMPLETE, what, evidence)
    int8 = sum(artifact.ranges is not None for artifact in artifacts)
    compiled = sum(_is_compiled(artifact) for artifact in artifacts)
    counts = (int8, "int8"), (len(artifacts) - int8 - compiled, "float"), (compiled, "compiled")
    kinds = [f"{count} {name}" for count, name in counts if count]
    noun = "artifact" if len(artifacts) == 1 else "artifacts"
    gain = "" if report.pruning is None else gain_words(report.pruning)
    pruned = f" Pruned: {gain}." if gain else ""
    return Verdict(Status.VERIFIED, f"{join(kinds)} {noun}, run and checked.{pruned}", evidence)


def _is_compiled(artifact: Artifact) -> bool:
    target = TARGETS.get(artifact.target)
    return target is not None and target.compiled_from is not None


def problems(artifact: Artifact) -> list[str]:
    """What makes the artifact unfit to ship: its recorded failures, or integers that are not the graph's."""
    ranges = artifact.ranges or artifact.weights
    if artifact.failures or ranges is None or ranges.equal == ranges.checked:
        return list(artifact.failures)
    unequal = plural(ranges.checked - ranges.equal, "tensor")
    return [f"{artifact.path}: {unequal} of {ranges.checked} differ from the graph"]


def _integers(artifacts: list[Artifact]) -> list[str]:
    equal = [a for a in artifacts if a.ranges is not None and 0 < a.ranges.checked == a.ranges.equal]
    if not equal:
        return []
    names = join([artifact.target for artifact in equal])
    if len(equal) == 1:
        return [f"{names} holds the graph's integers: scales, zero points, weights and biases, read back."]
    return [f"Same integers in {names}: scales, zero points, weights and biases, read back and equal."]


def _weights(artifacts: list[Artifact]) -> list[str]:
    """Float files whose weights are the graph's, or as near as their palette has it."""
    equal = [
        a.target for a in artifacts if a.weights is not None and 0 < a.weights.checked == a.weights.equal
    ]
    plain = [target for target in equal if "palette" not in target]
    said = []
    if plain:
        said.append(
            f"{join(plain)} {_hold(plain)} the float model's weights, rounded to the file's type at most."
        )
    if palettes := [target for target in equal if "palette" in target]:
        names = f"{join(palettes)} {_hold(palettes)}"
        said.append(f"{names} the palette entry nearest to each of the float model's weights.")
    return said


def _hold(names: list[str]) -> str:
    return "holds" if len(names) == 1 else "hold"


def _bit_for_bit(artifacts: list[Artifact]) -> list[str]:
    """Artifacts whose logits are the reference's on all images, grouped by how many images that is."""
    groups: dict[tuple[str, int, bool], list[str]] = defaultdict(list)
    for artifact in artifacts:
        parity = artifact.parity
        if artifact.ranges is not None and parity is not None and parity.identical == 1:
            groups[parity.against, parity.n, parity.to_the_bit].append(_name(artifact, parity))
    return [
        f"Logits of {join(names)} are identical to the {against}'s{', bit for bit,' if to_the_bit else ''} "
        f"on {n:,} of {plural(n, 'image')}."
        for (against, n, to_the_bit), names in groups.items()
    ]


def _crossed(artifacts: list[Artifact]) -> list[str]:
    """Each pair of runtimes once, whether they agree or not."""
    said: list[str] = []
    for artifact in artifacts:
        for cross in artifact.cross_parity:
            if artifact.target > cross.against:
                continue
            same = round(cross.identical * cross.n)
            said.append(
                f"{artifact.target} and {cross.against} give the same logits, bit for bit, on {same:,} of "
                f"{plural(cross.n, 'image')}."
            )
    return said


def _close(artifacts: list[Artifact]) -> list[str]:
    """What is not identical, in numbers, so that "verified" never hides it."""
    groups: dict[str, list[str]] = defaultdict(list)
    for artifact in artifacts:
        parity = artifact.parity
        if parity is None or (artifact.ranges is not None and parity.identical == 1):
            continue
        images = plural(parity.n, "image")
        if artifact.ranges is None:
            text = (
                f"same top-1 as {parity.against} on {round(parity.top1_agreement * parity.n):,} of {images}."
            )
        else:
            apart = "" if parity.max_lsb is None else f", at most {parity.max_lsb} LSB away"
            text = (
                f"logits identical on {round(parity.identical * parity.n):,} of {images}{apart}; "
                f"same top-1 as the {parity.against} on {share(parity.top1_agreement)}."
            )
        groups[text].append(_name(artifact, parity))
    return [f"{join(names)}: {text}" for text, names in groups.items()]


def _name(artifact: Artifact, parity: Parity) -> str:
    """The target; what was not measured on the real runtime says so wherever it is named."""
    kind = parity.kind or (artifact.accuracy.kind if artifact.accuracy else None)
    return artifact.target if kind in (None, Kind.MEASURED) else f"{artifact.target} ({kind})"
