"""Queries as the core takes them: vectors checked, ids looked up, prefetches within prefetches."""

from __future__ import annotations

import math
import uuid
from typing import Any

import qdrant_edge as core
from qdrant_client import models

from unified_embeddings.errors import InputError
from unified_embeddings.stores.edge import translation, vectors
from unified_embeddings.stores.edge.settings import Settings
from unified_embeddings.stores.edge.translation import convert_fields, to_filter


def request(given: models.QueryRequest, points: Any, settings: Settings) -> Any:
    """A whole query as the core takes it.

    Args:
        given: The query.
        points: The core's shard, for the points it names by id.
        settings: The collection's.

    Raises:
        InputError: If it does not fit the collection, or is of a kind that is not supported.
    """
    with translation.arguments("the query"):
        limit = 10 if given.limit is None else given.limit
        check_limit(limit, given.offset)
        if given.shard_key is not None:
            raise translation.unsupported("shard_key")
        return core.QueryRequest(
            limit=limit,
            offset=given.offset or 0,
            with_payload=translation.with_payload(given.with_payload),
            with_vector=translation.with_vectors(given.with_vector, settings),
            **_parts(given, points, settings),
        )


def _prefetch(given: models.Prefetch, points: Any, settings: Settings) -> Any:
    limit = 10 if given.limit is None else given.limit
    check_limit(limit)
    return core.Prefetch(limit=limit, **_parts(given, points, settings))


def _parts(
    given: models.QueryRequest | models.Prefetch, points: Any, settings: Settings
) -> dict[str, Any]:
    """What a query and a prefetch have in common."""
    if given.lookup_from is not None:
        raise translation.unsupported("lookup_from")
    prefetches = given.prefetch
    if prefetches is None:
        prefetches = []
    elif isinstance(prefetches, models.Prefetch):
        prefetches = [prefetches]
    threshold = given.score_threshold
    if threshold is not None and math.isnan(threshold):
        raise InputError("score_threshold must be a number, got NaN")
    if prefetches and given.query is None:
        raise InputError("prefetch needs a query that fuses or scores what it finds")
    query, itself = _query(given.query, given.using, points, settings)
    if isinstance(given.query, models.FusionQuery | models.RrfQuery):
        check_fusion(given.query, len(prefetches))
    condition = given.filter
    if condition is not None and (condition.should or condition.min_should):
        # As one condition: the core merges an outer filter's alternatives with an inner one's.
        condition = models.Filter(must=[condition])
    if itself is not None:
        own = models.Filter(must_not=[models.HasIdCondition(has_id=[itself])])
        condition = own if condition is None else models.Filter(must=[condition, own])
    return {
        "query": query,
        "prefetches": [_prefetch(one, points, settings) for one in prefetches],
        "filter": translation.to_filter(condition),
        "score_threshold": threshold,
        "params": search_params(given.params),
    }


def _query(
    query: Any, using: str | None, points: Any, settings: Settings
) -> tuple[Any, int | str | None]:
    """What to score by, and the id of the point it comes from."""
    if isinstance(query, models.NearestQuery):
        if query.mmr is not None:
            raise translation.unsupported("NearestQuery.mmr")
        query = query.nearest
    if query is None:
        return None, None
    if isinstance(query, models.FusionQuery | models.RrfQuery):
        if using:
            raise InputError("a fusion takes no using; its prefetches do")
        return fusion(query), None
    name = using or ""
    itself = None
    if isinstance(query, int | str | uuid.UUID) and not isinstance(query, bool):
        itself = translation.point_id(query)
        query = _vector_of(itself, name, points)
    elif not isinstance(query, models.SparseVector) and not hasattr(query, "__len__"):
        raise translation.unsupported(f"the query {type(query).__name__}")
    return core.Query.Nearest(vectors.to_core(name, query, settings), using=using or None), itself


def _vector_of(point_id: int | str, name: str, points: Any) -> Any:
    found = points.retrieve([point_id], False, True)
    if not found:
        raise InputError(f"point {point_id!r} is not in the collection")
    vector: Any = translation.record(found[0]).vector
    vector = vector.get(name) if isinstance(vector, dict) else vector
    if vector is None:
        raise InputError(f"point {point_id!r} has no vector named {name!r}")
    return vector


def check_limit(limit: int, offset: int | None = None) -> None:
    """Refuse a page of nothing, or one that begins before the first.

    Raises:
        InputError: If so.
    """
    if limit < 1:
        raise InputError(f"limit must be at least 1, got {limit}")
    if offset is not None and offset < 0:
        raise InputError(f"offset must be at least 0, got {offset}")


_DEFAULT_RRF_K = 2
"""Qdrant's own where a request names none."""


def fusion(query: models.FusionQuery | models.RrfQuery) -> Any:
    """How the prefetches are fused."""
    if isinstance(query, models.RrfQuery):
        k = _DEFAULT_RRF_K if query.rrf.k is None else query.rrf.k
        if k < 1:
            raise InputError(f"RRF's k must be at least 1, got {k}")
        return core.Fusion.Rrf(k, query.rrf.weights)
    if query.fusion == models.Fusion.DBSF:
        return core.Fusion.Dbsf()
    return core.Fusion.Rrf(_DEFAULT_RRF_K)


def check_fusion(query: models.FusionQuery | models.RrfQuery, prefetches: int) -> None:
    """Refuse a fusion of nothing, or with another number of weights than lists.

    Raises:
        InputError: If so.
    """
    if not prefetches:
        raise InputError("a fusion needs at least one prefetch to fuse")
    weights = query.rrf.weights if isinstance(query, models.RrfQuery) else None
    if weights is not None and len(weights) != prefetches:
        raise InputError(f"RRF needs a weight for each prefetch: {len(weights)} for {prefetches}")
    if weights is not None and not all(map(math.isfinite, weights)):
        raise InputError(f"RRF's weights must be finite numbers, got {weights}")


def search_params(params: models.SearchParams | None) -> Any:
    """How an index is searched; None for as it is set up."""
    if params is None:
        return None
    return core.SearchParams(
        **convert_fields(
            params,
            quantization=lambda value: core.QuantizationSearchParams(**convert_fields(value)),
            acorn=lambda value: core.AcornSearchParams(**convert_fields(value)),
            idf=_idf,
        )
    )


def _idf(params: models.IdfParams) -> Any:
    """Over which points a sparse vector's IDF is computed: those of a filter, or all."""
    corpus = params.corpus if isinstance(params, models.IdfCorpusParams) else None
    return core.IdfParams(corpus=to_filter(corpus))
