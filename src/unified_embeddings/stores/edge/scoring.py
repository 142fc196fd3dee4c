"""What a query scores points by, as Qdrant's core takes it."""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import qdrant_edge as core
from qdrant_client import models as qm

from unified_embeddings.errors import InputError
from unified_embeddings.stores.edge.core_types import CoreQuery
from unified_embeddings.stores.edge.examples import Examples, Queried
from unified_embeddings.stores.edge.formulas import to_core_formula
from unified_embeddings.stores.edge.mmr import to_core_mmr
from unified_embeddings.stores.edge.recommending import (
    to_core_context,
    to_core_discovery,
    to_core_recommendation,
)
from unified_embeddings.stores.edge.translation import (
    PointId,
    to_core_member,
    to_core_order,
)

AnyRequest: TypeAlias = qm.QueryRequest | qm.Prefetch
_DEFAULT_RRF_K = 2
"""Qdrant's default where a request sets none."""


def to_core_scoring(
    request: AnyRequest, prefetch_count: int, queried: Queried
) -> tuple[CoreQuery, list[PointId]]:
    """Return what to score by, and the ids of the points that the query mentions.

    Args:
        request: The query or the prefetch.
        prefetch_count: How many prefetches it has.
        queried: The collection that it is about.

    Raises:
        InputError: If it does not fit the collection or its prefetches, or is of a type that is
            not supported.
    """
    query, using = request.query, request.using or ""
    match query:
        case None:
            return None, []
        case qm.FusionQuery() | qm.RrfQuery():
            if using:
                raise InputError("a fusion takes no using; its prefetches do")
            _check_fusion(query, prefetch_count)
            return _to_core_fusion(query), []
        case qm.FormulaQuery():
            if prefetch_count == 0:
                raise InputError(
                    "a formula needs a prefetch that finds the points to score; one without a "
                    "query finds points in the order of their ids"
                )
            return to_core_formula(query), []
        case qm.OrderByQuery():
            return to_core_order(query.order_by), []
        case qm.SampleQuery():
            return to_core_member(core.Sample, query.sample), []
    examples = Examples(queried, using, request.lookup_from)
    scoring = _to_core_comparison(query, using, examples, request, queried)
    return scoring, examples.mentioned_ids


def _to_core_comparison(
    query: Any, using: str, examples: Examples, request: AnyRequest, queried: Queried
) -> CoreQuery:
    """Return a query that compares vectors, as the core takes it."""
    match query:
        case qm.RecommendQuery():
            return to_core_recommendation(query.recommend, using, examples, queried.settings)
        case qm.DiscoverQuery():
            return to_core_discovery(query.discover, using, examples)
        case qm.ContextQuery():
            return to_core_context(query.context, using, examples)
        case qm.NearestQuery():
            vector = examples.vector(query.nearest)
            if query.mmr is not None:
                return to_core_mmr(query.mmr, vector, using, request.limit)
        case _:
            vector = examples.vector(query)
    return core.Query.Nearest(vector, using=using or None)


def _to_core_fusion(query: qm.FusionQuery | qm.RrfQuery) -> CoreQuery:
    """Return how the results of the prefetches are fused."""
    if isinstance(query, qm.RrfQuery):
        k = _DEFAULT_RRF_K if query.rrf.k is None else query.rrf.k
        if k < 1:
            raise InputError(f"RRF's k must be at least 1, got {k}")
        return core.Fusion.Rrf(k, query.rrf.weights)
    if query.fusion == qm.Fusion.DBSF:
        return core.Fusion.Dbsf()
    return core.Fusion.Rrf(_DEFAULT_RRF_K)


def _check_fusion(query: qm.FusionQuery | qm.RrfQuery, prefetch_count: int) -> None:
    """Refuse a fusion of nothing, and weights that do not fit the prefetches.

    Raises:
        InputError: If there is no prefetch, not one weight for each, or a weight is not finite.
    """
    if prefetch_count == 0:
        raise InputError("a fusion needs at least one prefetch to fuse")
    if not isinstance(query, qm.RrfQuery) or query.rrf.weights is None:
        return
    weights = query.rrf.weights
    if len(weights) != prefetch_count:
        raise InputError(
            f"RRF needs a weight for each prefetch: {len(weights)} for {prefetch_count}"
        )
    if not all(map(math.isfinite, weights)):
        raise InputError(f"RRF's weights must be finite numbers, got {weights}")
