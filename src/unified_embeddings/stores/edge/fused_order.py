"""One order for what prefetches find: the core leaves equal scores in the order of a hash map.

What lives here: fetching all that a fusion, or a second scoring, is over, so that the limit does
not cut through a tie, and cutting it by score, then by id. What does not: the scores themselves,
which are the core's.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from uuid import UUID

from qdrant_client import models as qm

from unified_embeddings.stores.edge.core_types import CorePoint

DEFAULT_LIMIT = 10
"""Qdrant's default where a request or a prefetch sets none."""


def uses_scores(request: qm.QueryRequest | qm.Prefetch) -> bool:
    """Tell whether a request goes by the ranks or the scores that its prefetches give."""
    return isinstance(request.query, qm.FusionQuery | qm.RrfQuery | qm.FormulaQuery)


def has_own_order(request: qm.QueryRequest) -> bool:
    """Tell whether hits come in an order that is not that of their scores."""
    query = request.query
    if isinstance(query, qm.NearestQuery):
        return query.mmr is not None
    return isinstance(query, qm.OrderByQuery | qm.SampleQuery)


def count_candidates(prefetches: Sequence[qm.Prefetch]) -> int:
    """Return how many points prefetches find at most."""
    return sum(prefetch.limit or DEFAULT_LIMIT for prefetch in prefetches)


def order_found(request: qm.QueryRequest, points: list[CorePoint]) -> list[CorePoint]:
    """Return a query's page of points, equal scores by id; without prefetches they are as they are.

    Args:
        request: What was asked for.
        points: What the core found, best first; with prefetches, all candidates.
    """
    if not request.prefetch:
        return points
    ordered: list[CorePoint] = []
    if has_own_order(request):
        ordered = points
    else:
        # Not sorted by the score: of some distances the smallest is the best.
        for _, equal in itertools.groupby(points, key=lambda point: point.score):
            ordered += sorted(equal, key=_id_order)
    start = request.offset or 0
    limit = DEFAULT_LIMIT if request.limit is None else request.limit
    return ordered[start : start + limit]


def _id_order(point: CorePoint) -> tuple[bool, int]:
    # Numbers come before UUIDs, as in Qdrant's own order of ids.
    if isinstance(point.id, UUID):
        return True, point.id.int
    return False, int(point.id)
