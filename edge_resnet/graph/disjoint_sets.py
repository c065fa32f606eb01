"""Things that belong together, directly or through others."""

from __future__ import annotations

__all__ = ["DisjointSets"]


class DisjointSets:
    """Of the numbers below `count`, at first each alone (a union-find with path halving)."""

    def __init__(self, count: int) -> None:
        self._leader = list(range(count))

    def find(self, number: int) -> int:
        """The number that stands for its set."""
        leader = self._leader
        while leader[number] != number:
            leader[number] = leader[leader[number]]
            number = leader[number]
        return number

    def join(self, first: int, second: int) -> None:
        """The sets of both are one from now on."""
        self._leader[self.find(first)] = self.find(second)
