"""How long many pieces of work took, counted in few numbers.

What lives here: a histogram of seconds. What does not: a lock (each owner has one), who is told of
the numbers (`monitoring`).
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Seconds at which a bucket ends: from a short query on a GPU to a long text on a CPU."""


@dataclass(frozen=True)
class Durations:
    """How often work took how long.

    Attributes:
        counts: How many pieces of work ended in each bucket: counts[i] took at most BOUNDS[i] and
            more than the bound before; the last number counts those beyond all bounds.
        seconds: What all of them took together.

    Example:
        >>> from unified_embeddings.system.durations import Durations, DurationCounter
        >>> counter = DurationCounter()
        >>> counter.note(0.004)
        >>> counter.note(90.0)
        >>> counter.snapshot().counts
        (0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1)
    """

    counts: tuple[int, ...]
    seconds: float

    @property
    def count(self) -> int:
        """Return the number of pieces of work."""
        return sum(self.counts)

    def __add__(self, other: Durations) -> Durations:
        """Return the numbers of both together."""
        pairs = zip(self.counts, other.counts, strict=True)
        return Durations(tuple(a + b for a, b in pairs), self.seconds + other.seconds)


class DurationCounter:
    """Counts durations; not thread-safe, since its owner holds a lock anyway."""

    def __init__(self) -> None:
        self._counts = [0] * (len(BOUNDS) + 1)
        self._seconds = 0.0

    def note(self, seconds: float) -> None:
        """Count one piece of work."""
        self._counts[bisect_left(BOUNDS, seconds)] += 1
        self._seconds += seconds

    def snapshot(self) -> Durations:
        """Return the numbers as they are now."""
        return Durations(tuple(self._counts), self._seconds)
