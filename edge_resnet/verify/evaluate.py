"""Run everything on the same images, once: the float baseline, the reference executor and each artifact.

Images stream through in batches, so memory does not grow with the data set; what stays is one flag for each
image and subject.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edge_resnet.verify.parity import Logits, ParityTally

__all__ = ["Outcome", "Subject", "evaluate"]

Pixels = NDArray[np.uint8]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Subject:
    """Something that answers with logits. `limit`: at most so many images (an emulated runtime is slow).

    `parity` compares with the expected logits of its `expects` on the first images. `cross`: compare with
    every other such subject on all images.
    """

    name: str
    logits: Callable[[Pixels], Logits]
    limit: int | None = None
    expects: str | None = None
    parity: ParityTally | None = None
    cross: bool = False


@dataclass
class Outcome:
    """For each image in order, whether the label was the first, and among the first five."""

    top1: list[NDArray[np.bool_]] = field(default_factory=list)
    top5: list[NDArray[np.bool_]] = field(default_factory=list)
    cross: dict[str, ParityTally] = field(default_factory=dict)

    def add(self, logits: Logits, labels: Labels) -> None:
        # Stable, so that ties go to the lower class, as argmax does on the phone.
        ranked = np.argsort(-logits, axis=1, kind="stable")[:, :5]
        hits = ranked == labels[:, None]
        self.top1.append(hits[:, 0])
        self.top5.append(hits.any(1))

    @property
    def top1_correct(self) -> NDArray[np.bool_]:
        return np.concatenate(self.top1) if self.top1 else np.zeros(0, np.bool_)

    @property
    def top5_correct(self) -> NDArray[np.bool_]:
        return np.concatenate(self.top5) if self.top5 else np.zeros(0, np.bool_)


def evaluate(
    batches: Iterable[tuple[Pixels, Labels]],
    subjects: list[Subject],
    expected: dict[str, Callable[[Pixels], Logits]],
    parity_images: int,
    advance: Callable[[int], None] = lambda steps: None,
) -> dict[str, Outcome]:
    """Outcome of each subject over the batches; parity tallies of the subjects are filled on the way.

    `expected` holds what parity is measured against, by name; it runs on the first `parity_images`. An
    expectation that is also a subject's name is that subject's own logits.
    """
    outcomes = {subject.name: Outcome() for subject in subjects}
    seen = 0
    for pixels, labels in batches:
        answers = _answers(subjects, pixels, labels, seen, outcomes)
        take = min(len(pixels), max(0, parity_images - seen))
        if take:
            wanted = {subject.expects for subject in subjects if subject.parity is not None}
            references = {
                name: answers[name][:take] if name in answers else expected[name](pixels[:take])
                for name in wanted
                if name is not None
            }
            for subject in subjects:
                if subject.parity is not None and subject.expects is not None and subject.name in answers:
                    got = answers[subject.name][:take]
                    subject.parity.update(references[subject.expects][: len(got)], got)
        _cross(subjects, answers, outcomes)
        seen += len(pixels)
        advance(len(pixels))
    return outcomes


def _answers(
    subjects: list[Subject], pixels: Pixels, labels: Labels, seen: int, outcomes: dict[str, Outcome]
) -> dict[str, Logits]:
    answers: dict[str, Logits] = {}
    for subject in subjects:
        count = len(pixels) if subject.limit is None else min(len(pixels), max(0, subject.limit - seen))
        if count:
            answers[subject.name] = subject.logits(pixels[:count])
            outcomes[subject.name].add(answers[subject.name], labels[:count])
    return answers


def _cross(subjects: list[Subject], answers: dict[str, Logits], outcomes: dict[str, Outcome]) -> None:
    crossing = [subject for subject in subjects if subject.cross and subject.name in answers]
    for first in crossing:
        for second in crossing:
            if first is not second:
                scale = first.parity.scale if first.parity is not None else None
                tally = outcomes[first.name].cross.setdefault(second.name, ParityTally(second.name, scale))
                tally.update(answers[second.name], answers[first.name])
