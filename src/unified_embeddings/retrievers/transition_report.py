"""What is known about two indexes that were asked the same questions, and counting it.

What lives here: the report as plain values, and the counters behind it. What does not: asking
(`transition`), and what is decided on it (`migration.gate`).
"""

from __future__ import annotations

import dataclasses
import heapq
import itertools
import math
import threading
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np

from unified_embeddings.errors import InputError
from unified_embeddings.evaluation.ranked_lists import list_overlap, rank_biased_overlap

Side: TypeAlias = Literal["old", "new"]
Failure: TypeAlias = Literal["error", "timeout", "busy"]

_LATENCIES_KEPT = 10_000
"""Latest latencies of each side: 80 kB, and the 95th percentile is exact to about 0.4%."""
_TEXT_LENGTH = 200
"""Characters of a question, and of an error, that a report keeps."""


@dataclass(frozen=True)
class Latency:
    """How long a side took, in seconds.

    Attributes:
        mean: Mean of the latest samples.
        p50: Their median.
        p95: Their 95th percentile.
        samples: Their number.
    """

    mean: float
    p50: float
    p95: float
    samples: int


@dataclass(frozen=True)
class QueryComparison:
    """The answers of both sides to one question.

    Attributes:
        query: The question, at most 200 characters.
        overlap: Share of common nodes in the first k.
        rank_biased_overlap: RBO of the two rankings.
        old_ids: Ids of the old side's first k nodes.
        new_ids: Ids of the new side's first k nodes.
    """

    query: str
    overlap: float
    rank_biased_overlap: float
    old_ids: tuple[str, ...]
    new_ids: tuple[str, ...]


@dataclass(frozen=True)
class TransitionReport:
    """What a TransitionRetriever has seen so far.

    Attributes:
        depth: How many nodes of each answer are compared.
        share: The share of the questions that the new side answers now.
        queries: Questions asked.
        answered_by_old: Questions that the old side answered, also instead of the new one.
        answered_by_new: Questions that the new side answered.
        fallbacks: Why the old side answered instead of the new one: "error", "timeout", or "busy"
            where too many earlier questions had not come back; each with its number.
        compared: Questions whose two answers were compared.
        dropped: Comparisons left out because too many were waiting.
        failed: Comparisons that came to nothing because a side raised: "old", "new", each with its
            number.
        mean_overlap: Mean share of common nodes in the first k; None if nothing was compared.
        mean_rank_biased_overlap: Mean RBO; None if nothing was compared.
        same_first: Share of compared questions with the same first node; None if there are none.
        old_latency: None if the old side never answered.
        new_latency: None if the new side never answered.
        worst: The compared questions whose answers have least in common, the worst first.
        last_error: The new side's latest error, at most 200 characters; None if it had none.
    """

    depth: int
    share: float
    queries: int = 0
    answered_by_old: int = 0
    answered_by_new: int = 0
    fallbacks: Mapping[str, int] = field(default_factory=dict)
    compared: int = 0
    dropped: int = 0
    failed: Mapping[str, int] = field(default_factory=dict)
    mean_overlap: float | None = None
    mean_rank_biased_overlap: float | None = None
    same_first: float | None = None
    old_latency: Latency | None = None
    new_latency: Latency | None = None
    worst: tuple[QueryComparison, ...] = ()
    last_error: str | None = None

    def to_dict(self) -> dict[str, object]:
        """Return the report as values that JSON can hold."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> TransitionReport:
        """Return the report that `to_dict` wrote.

        Raises:
            InputError: If the values are no report.
        """
        try:
            fields = dict(values)
            for name in ("old_latency", "new_latency"):
                if fields.get(name) is not None:
                    fields[name] = Latency(**fields[name])  # type: ignore[arg-type]
            fields["worst"] = tuple(
                _restore_comparison(item)
                for item in fields.get("worst", ())  # type: ignore[attr-defined]
            )
            return cls(**fields)  # type: ignore[arg-type]
        except (TypeError, ValueError, KeyError) as error:
            raise InputError(f"expected a report of two indexes, got {values!r:.200}") from error


def _restore_comparison(values: Mapping[str, object]) -> QueryComparison:
    fields = dict(values)
    for name in ("old_ids", "new_ids"):
        fields[name] = tuple(fields[name])  # type: ignore[arg-type]
    return QueryComparison(**fields)  # type: ignore[arg-type]


@dataclass(frozen=True, order=True)
class _RankedExample:
    """A comparison in the order of how little the answers have in common.

    Attributes:
        badness: Overlap, RBO and the question's number, all negative: the larger, the worse, and of
            equally bad ones the earlier is the worse. No two questions have the same number.
        comparison: The comparison, which takes no part in the order.
    """

    badness: tuple[float, float, int]
    comparison: QueryComparison = field(compare=False)


class TransitionCounters:
    """Counters that threads share; `report` returns a snapshot.

    Args:
        depth: How many nodes of each answer are compared.
        examples: How many of the questions with the least overlap are kept; 0 keeps no question.
    """

    def __init__(self, *, depth: int, examples: int) -> None:
        self._lock = threading.Lock()
        self._depth = depth
        self._examples = examples
        self._queries = 0
        self._answers: Counter[Side] = Counter()
        self._fallbacks: Counter[Failure] = Counter()
        self._failed: Counter[Side] = Counter()
        self._dropped = 0
        self._overlap_sum = self._rbo_sum = 0.0
        self._compared = self._same_first = 0
        self._latencies: dict[Side, deque[float]] = {
            "old": deque(maxlen=_LATENCIES_KEPT),
            "new": deque(maxlen=_LATENCIES_KEPT),
        }
        # A heap whose first entry is the least bad, which the next worse one replaces.
        self._worst: list[_RankedExample] = []
        self._numbers = itertools.count()
        self._last_error: str | None = None

    def count_answer(self, side: Side, seconds: float, *, fallback: Failure | None = None) -> None:
        """Count a question and who answered it, and why the new side did not if it should have."""
        with self._lock:
            self._queries += 1
            self._answers[side] += 1
            self._latencies[side].append(seconds)
            if fallback is not None:
                self._fallbacks[fallback] += 1

    def count_unanswered(self, fallback: Failure | None) -> None:
        """Count a question that nobody answered: the old side raised."""
        with self._lock:
            self._queries += 1
            if fallback is not None:
                self._fallbacks[fallback] += 1

    def count_latency(self, side: Side, seconds: float) -> None:
        """Note how long a side took for a comparison."""
        with self._lock:
            self._latencies[side].append(seconds)

    def count_dropped(self) -> None:
        """Count a comparison that was left out."""
        with self._lock:
            self._dropped += 1

    def count_failed(self, side: Side) -> None:
        """Count a comparison that came to nothing."""
        with self._lock:
            self._failed[side] += 1

    def note_error(self, error: BaseException) -> None:
        """Keep the new side's latest error."""
        text = f"{type(error).__name__}: {error}".rstrip(": ")[:_TEXT_LENGTH]
        with self._lock:
            self._last_error = text

    def add_comparison(self, query: str, old_ids: Sequence[str], new_ids: Sequence[str]) -> None:
        """Compare two answers to a question."""
        old_best = tuple(dict.fromkeys(old_ids))[: self._depth]
        new_best = tuple(dict.fromkeys(new_ids))[: self._depth]
        comparison = QueryComparison(
            query=query[:_TEXT_LENGTH],
            overlap=list_overlap(old_best, new_best, self._depth),
            rank_biased_overlap=rank_biased_overlap(old_best, new_best),
            old_ids=old_best,
            new_ids=new_best,
        )
        with self._lock:
            self._compared += 1
            self._overlap_sum += comparison.overlap
            self._rbo_sum += comparison.rank_biased_overlap
            self._same_first += old_best[:1] == new_best[:1]
            self._keep_if_worst(comparison)

    def report(self, share: float) -> TransitionReport:
        """Return what was counted so far."""
        with self._lock:
            compared = self._compared
            worst = sorted(self._worst, reverse=True)
            return TransitionReport(
                depth=self._depth,
                share=share,
                queries=self._queries,
                answered_by_old=self._answers["old"],
                answered_by_new=self._answers["new"],
                fallbacks={str(kind): count for kind, count in self._fallbacks.items()},
                compared=compared,
                dropped=self._dropped,
                failed={str(side): count for side, count in self._failed.items()},
                mean_overlap=_mean(self._overlap_sum, compared),
                mean_rank_biased_overlap=_mean(self._rbo_sum, compared),
                same_first=_mean(self._same_first, compared),
                old_latency=_summarise(self._latencies["old"]),
                new_latency=_summarise(self._latencies["new"]),
                worst=tuple(example.comparison for example in worst),
                last_error=self._last_error,
            )

    def _keep_if_worst(self, comparison: QueryComparison) -> None:
        if not self._examples:
            return
        example = _RankedExample(
            badness=(-comparison.overlap, -comparison.rank_biased_overlap, -next(self._numbers)),
            comparison=comparison,
        )
        if len(self._worst) < self._examples:
            heapq.heappush(self._worst, example)
        else:
            heapq.heappushpop(self._worst, example)


def _mean(total: float, count: int) -> float | None:
    return total / count if count else None


def _summarise(seconds: Sequence[float]) -> Latency | None:
    if not seconds:
        return None
    values = np.asarray(seconds, dtype=np.float64)
    p50, p95 = np.percentile(values, (50, 95))
    return Latency(
        mean=math.fsum(seconds) / len(seconds), p50=float(p50), p95=float(p95), samples=len(seconds)
    )
