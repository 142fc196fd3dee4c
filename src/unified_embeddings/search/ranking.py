"""One order for what a search finds, however the store orders equal scores.

What lives here: which scores tie, the order of tied points, and how deep to search so that a tie
is not cut in two. What does not: sending requests (`collection_reader`) and fusing (`fusion`).

Qdrant returns points with equal scores in an order that depends on where they are stored, and its
own fusion in one that depends on a hash map, anew at each call. The limit then cuts through the
tie. So each ranking is fetched a little deeper than needed, ordered here, and cut here.
"""

from __future__ import annotations

from collections.abc import Sequence

from qdrant_client import models as qm

from unified_embeddings.fusion import sort_by_score

TOLERANCE = 1e-6
"""Scores that differ by less tie; of scores above 1, that share of them.

Qdrant computes in single precision. The same two vectors give scores that differ in the seventh
digit between a server, the embedded core and local mode, as sums are taken in another order.
"""

_SPARE = 10
"""Points that are fetched beyond the depth that is needed, to see where a tie at the cut ends."""
_DEEPEST = 1000
"""Points that are fetched at most to see where a tie ends, unless more are needed anyway."""
_GROWTH = 4
"""How much deeper each further attempt looks."""


def first_limit(depth: int) -> int:
    """Return how many points to fetch in order to rank `depth` of them."""
    return depth + _SPARE


def next_limits(
    rankings: Sequence[Sequence[qm.ScoredPoint]], depths: Sequence[int], limits: Sequence[int]
) -> list[int] | None:
    """Return how many points to fetch next; None if no ranking has to be fetched again.

    Args:
        rankings: What searches found.
        depths: How many points of each are needed.
        limits: How many were asked for.
    """
    next_limits = []
    for points, depth, limit in zip(rankings, depths, limits, strict=True):
        is_cut = len(points) >= limit and _is_cut_through_tie(points, depth)
        if is_cut and limit < _DEEPEST:
            next_limits.append(min(limit * _GROWTH, _DEEPEST))
        else:
            next_limits.append(limit)
    return None if next_limits == list(limits) else next_limits


def order_points(points: Sequence[qm.ScoredPoint]) -> list[tuple[qm.ScoredPoint, float]]:
    """Return points with their scores, best first; points whose scores tie, by id.

    Points of a tie get the score of its best one, so that sorting them by score again changes
    nothing. Where the collection measures distances (Euclid, Manhattan), the smallest is the best.

    Args:
        points: Points as Qdrant returns them, the best first but for ties.
    """
    # By more than rounding, in which a tie's points may come in any order.
    are_distances = bool(points) and points[-1].score - points[0].score > TOLERANCE
    sign = -1 if are_distances else 1
    points_by_id = {point.id: point for point in points}
    scored = [(point.id, sign * point.score) for point in points]
    ordered = sort_by_score(scored, id_order, relative=TOLERANCE, absolute=TOLERANCE)
    return [(points_by_id[point_id], sign * score) for point_id, score in ordered]


def id_order(point_id: qm.ExtendedPointId) -> tuple[bool, int, str]:
    """Return the key to sort ids by: numbers first, then UUIDs by their text."""
    if isinstance(point_id, int):
        return False, point_id, ""
    return True, 0, str(point_id)


def _is_cut_through_tie(points: Sequence[qm.ScoredPoint], depth: int) -> bool:
    """Tell whether the last point ties with the last one needed, so that more may tie with it."""
    ordered = order_points(points)
    _, score_at_cut = ordered[min(depth, len(ordered)) - 1]
    _, lowest_score = ordered[-1]
    return score_at_cut == lowest_score
