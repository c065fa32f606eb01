"""Which of many results no other beats, and which trial need not go on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Point", "front_of", "is_behind"]

# Before a median of so many means something, nothing is stopped.
_LEAST_PEERS = 4


@dataclass(frozen=True)
class Point:
    """`accuracy` is to be large, `latency` small; in whatever unit, the same for all."""

    accuracy: float
    latency: float


def front_of(points: Sequence[Point]) -> list[int]:
    """Indices of the Pareto front, the fastest first: each is more accurate than all that are as fast.

    Of equal points the first stands for all.
    """
    order = sorted(range(len(points)), key=lambda i: (points[i].latency, -points[i].accuracy, i))
    front: list[int] = []
    for index in order:
        if not front or points[index].accuracy > points[front[-1]].accuracy:
            front.append(index)
    return front


def is_behind(point: Point, others: Sequence[Point], images: int) -> str | None:
    """Why a trial need not go on from `point`, in words; None where it may.

    `others`: where the other trials were at the same place. Of those that are as fast or faster, half are
    more accurate, by more than a standard error of an accuracy on `images`. This is the median rule (Golovin
    et al., Google Vizier, 2017, section 3.2.2) among rivals alone: a slower model is none.
    """
    rivals = sorted(other.accuracy for other in others if other.latency <= point.latency)
    if len(rivals) < _LEAST_PEERS:
        return None
    median = (rivals[(len(rivals) - 1) // 2] + rivals[len(rivals) // 2]) / 2
    error = math.sqrt(median * (1 - median) / max(1, images))
    if point.accuracy >= median - error:
        return None
    return (
        f"{point.accuracy:.2%} where half of the {len(rivals)} trials that were as fast or faster had "
        f"{median:.2%} or more"
    )
