"""How long a model's forward passes take, by the length of their texts.

What lives here: counting passes. What does not: running them (`single_model`), telling the numbers
(`monitoring`).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from unified_embeddings.embedders.lazy import Counters
from unified_embeddings.system.durations import DurationCounter, Durations

LENGTHS = (32, 128, 512, 2048, 8192)
"""Tokens at which a bucket of lengths ends: a query, a sentence or two, a chunk, a page, the most
that BGE-M3 takes."""


@dataclass(frozen=True)
class PassTimes:
    """The forward passes of one model whose longest text is in one bucket of lengths.

    Attributes:
        model: The model's name.
        engine: What ran it.
        shortest: Tokens that the longest text of a pass has at least.
        longest: Tokens that it has at most; None in the last bucket.
        durations: How long the passes took.

    Example:
        >>> from unified_embeddings.embedders.pass_times import PassTimes
        >>> from unified_embeddings.system.durations import DurationCounter
        >>> durations = DurationCounter().snapshot()
        >>> PassTimes("BAAI/bge-m3", "onnx", 33, 128, durations).lengths
        '33-128'
    """

    model: str
    engine: str
    shortest: int
    longest: int | None
    durations: Durations

    @property
    def lengths(self) -> str:
        """Return the bucket's name: "33-128", and "8193-" for the last one."""
        return f"{self.shortest}-{'' if self.longest is None else self.longest}"


class PassCounters(Counters):
    """An embedder's counters, and the durations of its forward passes."""

    def __init__(self, *names: str) -> None:
        super().__init__(*names)
        self._durations = [DurationCounter() for _ in (*LENGTHS, None)]

    def add_pass(self, lengths: Sequence[int], seconds: float, budget: int) -> None:
        """Count one forward pass.

        Args:
            lengths: Tokens of each of its texts, at least one text.
            seconds: How long it took.
            budget: The most tokens of a pass. A longer text, which stands alone, fills its pass.
        """
        tokens = sum(lengths)
        bucket = bisect_left(LENGTHS, max(lengths))
        self.add(forwards=1, tokens=tokens, capacity=max(budget, tokens))
        with self._lock:
            self._durations[bucket].note(seconds)

    def pass_times(self, model: str, engine: str) -> tuple[PassTimes, ...]:
        """Return the durations by length, for every bucket in which there was a pass."""
        with self._lock:
            all_durations = [counter.snapshot() for counter in self._durations]
        times = []
        shortest = 1
        for longest, durations in zip((*LENGTHS, None), all_durations, strict=True):
            if durations.count:
                times.append(PassTimes(model, engine, shortest, longest, durations))
            shortest = (longest or 0) + 1
        return tuple(times)
