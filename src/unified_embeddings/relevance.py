"""What two rankings say about each of their items, and relevance in the order of an answer.

What lives here: arithmetic in pure Python, without a model or a store. What does not: what the
evidence is worth (`models.calibration`), and finding that out (`evaluation.calibrating`).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import NamedTuple, TypeVar

from unified_embeddings.fusion import rrf

Item = TypeVar("Item", bound=Hashable)

_K = 20
"""RRF's damping in `Evidence.agreement`."""


class Evidence(NamedTuple):
    """What speaks for an item; each number grows, or stays, when one of its scores grows.

    Attributes:
        dense_gap: Dense score above that of the list's last item, >= 0. Cosines of unrelated texts
            differ between languages and collections; this does not.
        sparse_share: Sparse score per unit of the question's summed weights, >= 0.
        sparse_lead: The same, less that of the best other item: positive for the first alone.
        agreement: Both lists' reciprocal ranks, 0 to 1; 1 is first in both.
    """

    dense_gap: float
    sparse_share: float
    sparse_lead: float
    agreement: float


def weigh_evidence(
    dense: Sequence[tuple[Item, float]],
    sparse: Sequence[tuple[Item, float]],
    *,
    query_weight: float,
    depth: int,
    background: float,
) -> dict[Item, Evidence]:
    """Return what two rankings say about each item that is in either.

    An item that a list lacks, or has below `depth`, gets what the last one read has, which is the
    most that it can have: a dense gap of 0, and the last sparse score. Where the sparse list is not
    full, it has no word of the question, and gets 0.

    Args:
        dense: (item, cosine) of the dense ranking, best first, each item once.
        sparse: (item, score) of the sparse one.
        query_weight: Sum of the question's sparse weights; 0 if it has none.
        depth: Items of each ranking that are read.
        background: The last dense score of a full list in a usual collection. It stands in where
            fewer than `depth` items were there to be found: the last of them may be a good one.
    """
    dense_scores, sparse_scores = dict(dense[:depth]), dict(sparse[:depth])
    floor = min(dense_scores.values(), default=background)
    if len(dense_scores) < depth:
        floor = min(floor, background)
    missing = 0.0
    if len(sparse_scores) >= depth:
        missing = min(sparse_scores.values())
    first, second, *_ = [*sorted(sparse_scores.values(), reverse=True)[:2], 0.0, 0.0]
    agreements = dict(rrf([list(dense_scores), list(sparse_scores)], k=_K))
    unit = query_weight if query_weight > 0 else 1.0
    evidence = {}
    for item in dict.fromkeys(item for item, _ in (*dense, *sparse)):
        score = sparse_scores.get(item, missing)
        best_other = first
        if item in sparse_scores and score == first:
            best_other = second
        evidence[item] = Evidence(
            dense_gap=dense_scores.get(item, floor) - floor,
            sparse_share=score / unit,
            sparse_lead=(score - best_other) / unit,
            agreement=agreements.get(item, 0.0) * (_K + 1) / 2,
        )
    return evidence


def level_in_order(values: Iterable[float]) -> list[float]:
    """Return values that never rise, as close to those given as can be (in squares).

    Values that rise are replaced by their mean, together with as many before and after them as it
    takes (pool adjacent violators; Ayer, Brunk, Ewing, Reid and Silverman 1955). Their sum stays.
    """
    pools: list[tuple[float, int]] = []  # (mean, how many values)
    for value in values:
        mean, count = value, 1
        while pools and pools[-1][0] < mean:
            mean_before, count_before = pools.pop()
            total = mean * count + mean_before * count_before
            count += count_before
            mean = total / count
        pools.append((mean, count))
    return [mean for mean, count in pools for _ in range(count)]
