"""One order for what a fusion finds: the core leaves equal scores in the order of a hash map.

What lives here: fetching all fused points, so that the limit does not cut through a tie, and
cutting them by score, then by id. What does not: the fusion itself, which is the core's.
"""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from qdrant_client import models as qm

from unified_embeddings.stores.edge.core_types import CorePoint

DEFAULT_LIMIT = 10
"""Qdrant's default where a request or a prefetch sets none."""


def is_fusion(request: qm.QueryRequest) -> bool:
    """Tell whether a request fuses what its prefetches find."""
    return isinstance(request.query, qm.FusionQuery | qm.RrfQuery)


def count_candidates(prefetches: Sequence[qm.Prefetch]) -> int:
    """Return how many points prefetches find at most."""
    return sum(prefetch.limit or DEFAULT_LIMIT for prefetch in prefetches)


def order_fused(request: qm.QueryRequest, points: list[CorePoint]) -> list[CorePoint]:
    """Return a fusion's page of points, by score and then by id; other points as they are.

    Args:
        request: What was asked for.
        points: What the core found; of a fusion, all candidates.
    """
    if not is_fusion(request):
        return points
    ordered = sorted(points, key=_score_and_id)
    start = request.offset or 0
    limit = DEFAULT_LIMIT if request.limit is None else request.limit
    return ordered[start : start + limit]


def _score_and_id(point: CorePoint) -> tuple[float, bool, int]:
    # Numbers come before UUIDs, as in Qdrant's own order of ids.
    if isinstance(point.id, UUID):
        return -point.score, True, point.id.int
    return -point.score, False, int(point.id)
