"""Queries as Qdrant's core takes them: vectors checked, ids looked up, nested prefetches."""

from __future__ import annotations

import math
import uuid
from typing import Any

import qdrant_edge as core
from qdrant_client import models as qm

from unified_embeddings.errors import InputError
from unified_embeddings.stores.edge.bounds import check_search
from unified_embeddings.stores.edge.coercion import coerce
from unified_embeddings.stores.edge.core_types import CoreQuery, CoreShard
from unified_embeddings.stores.edge.filters import to_core_filter
from unified_embeddings.stores.edge.fused_order import (
    DEFAULT_LIMIT,
    count_candidates,
    is_fusion,
    order_found,
)
from unified_embeddings.stores.edge.limits import check_prefetch_depth
from unified_embeddings.stores.edge.points import to_list
from unified_embeddings.stores.edge.settings import Settings
from unified_embeddings.stores.edge.translation import (
    PointId,
    argument_errors,
    convert_fields,
    from_core_id,
    to_core_id,
    to_payload_selector,
    to_record,
    to_vector_selector,
    unsupported,
)
from unified_embeddings.stores.edge.vectors import to_core_vector
from unified_embeddings.validation import require_whole_number

_DEFAULT_RRF_K = 2
"""Qdrant's default where a request sets none."""


def to_core_query(request: qm.QueryRequest, core_shard: CoreShard, settings: Settings) -> CoreQuery:
    """Return a whole query as the core takes it.

    Args:
        request: The query.
        core_shard: Where the points are looked up whose ids the query names.
        settings: The collection's settings.

    Raises:
        InputError: If it does not fit the collection, or is of a type that is not supported.
    """
    check_prefetch_depth(request)
    with argument_errors("the query"):
        limit = DEFAULT_LIMIT if request.limit is None else request.limit
        check_limit(limit, request.offset)
        if request.shard_key is not None:
            raise unsupported("shard_key")
        offset = request.offset or 0
        if prefetches := _list_prefetches(request):  # `order_found` cuts the page
            limit, offset = count_candidates(prefetches), 0
        return core.QueryRequest(
            limit=limit,
            offset=offset,
            with_payload=to_payload_selector(request.with_payload),
            with_vector=to_vector_selector(request.with_vector, settings),
            **_shared_options(request, core_shard, settings),
        )


def to_prefetches(given: Any) -> Any:
    """Return prefetches with plain dicts made into models; None stays None.

    Raises:
        InputError: If it is neither a prefetch nor a list of them.
    """
    if given is None or isinstance(given, qm.Prefetch):
        return given
    if isinstance(given, dict):
        return coerce(qm.Prefetch, given, "the prefetch")
    return [coerce(qm.Prefetch, prefetch, "a prefetch") for prefetch in to_list(given, "prefetch")]


def check_limit(limit: int, offset: int | None = None) -> None:
    """Refuse an empty page, or one that begins before the first point.

    Raises:
        InputError: If limit < 1, offset < 0, or one of them is not a whole number.
    """
    require_whole_number("limit", limit)
    if offset is not None:
        require_whole_number("offset", offset, least=0)


def _to_core_prefetch(
    prefetch: qm.Prefetch, core_shard: CoreShard, settings: Settings, *, is_scored_anew: bool
) -> CoreQuery:
    limit = DEFAULT_LIMIT if prefetch.limit is None else prefetch.limit
    check_limit(limit)
    if is_scored_anew and prefetch.prefetch:
        point_ids = _find_candidates(prefetch, core_shard, settings)
        named = core.Filter(must=[core.HasIdCondition(point_ids)])
        return core.Prefetch(limit=max(len(point_ids), 1), filter=named)
    return core.Prefetch(limit=limit, **_shared_options(prefetch, core_shard, settings))


def _find_candidates(
    prefetch: qm.Prefetch, core_shard: CoreShard, settings: Settings
) -> set[PointId]:
    """Return the ids that a prefetch with prefetches of its own finds, asked for by itself.

    Within a larger query the core would cut through equal scores, each time elsewhere.
    """
    fields = {name: getattr(prefetch, name) for name in qm.Prefetch.model_fields}
    request = qm.QueryRequest.model_construct(**fields, with_payload=False)
    points = core_shard.query(to_core_query(request, core_shard, settings))
    return {from_core_id(point.id) for point in order_found(request, points)}


def _shared_options(
    request: qm.QueryRequest | qm.Prefetch, core_shard: CoreShard, settings: Settings
) -> dict[str, Any]:
    """Return the options that a query and a prefetch have in common."""
    if request.lookup_from is not None:
        raise unsupported("lookup_from")
    prefetches = _list_prefetches(request)
    threshold = request.score_threshold
    if threshold is not None and math.isnan(threshold):
        raise InputError("score_threshold must be a number, got NaN")
    if prefetches and request.query is None:
        raise InputError("prefetch needs a query that fuses or scores what it finds")
    scoring, source_id = _to_core_scoring(request.query, request.using, core_shard, settings)
    if isinstance(request.query, qm.FusionQuery | qm.RrfQuery):
        _check_fusion(request.query, len(prefetches))
    is_scored_anew = not is_fusion(request)
    return {
        "query": scoring,
        "prefetches": [
            _to_core_prefetch(prefetch, core_shard, settings, is_scored_anew=is_scored_anew)
            for prefetch in prefetches
        ],
        "filter": to_core_filter(_combine_filters(request.filter, source_id)),
        "score_threshold": threshold,
        "params": _to_search_params(request.params),
    }


def _list_prefetches(request: qm.QueryRequest | qm.Prefetch) -> list[qm.Prefetch]:
    if request.prefetch is None:
        return []
    if isinstance(request.prefetch, qm.Prefetch):
        return [request.prefetch]
    return request.prefetch


def _combine_filters(condition: qm.Filter | None, source_id: PointId | None) -> qm.Filter | None:
    """Return a request's filter, without the point that the query vector comes from."""
    if condition is not None and (condition.should or condition.min_should):
        # Passed as a single condition: the core merges the alternatives of an outer filter with
        # those of an inner one.
        condition = qm.Filter(must=[condition])
    if source_id is None:
        return condition
    all_but_source = qm.Filter(must_not=[qm.HasIdCondition(has_id=[source_id])])
    if condition is None:
        return all_but_source
    return qm.Filter(must=[condition, all_but_source])


def _to_core_scoring(
    query: Any, using: str | None, core_shard: CoreShard, settings: Settings
) -> tuple[CoreQuery, PointId | None]:
    """Return what to score by, and the id of the point whose vector that is, if it is one."""
    if isinstance(query, qm.NearestQuery):
        if query.mmr is not None:
            raise unsupported("NearestQuery.mmr")
        query = query.nearest
    if query is None:
        return None, None
    if isinstance(query, qm.FusionQuery | qm.RrfQuery):
        if using:
            raise InputError("a fusion takes no using; its prefetches do")
        return _to_core_fusion(query), None
    name = using or ""
    source_id = None
    if isinstance(query, int | str | uuid.UUID) and not isinstance(query, bool):
        source_id = to_core_id(query)
        query = _look_up_vector(source_id, name, core_shard)
    elif not isinstance(query, qm.SparseVector) and not hasattr(query, "__len__"):
        raise unsupported(f"the query {type(query).__name__}")
    core_vector = to_core_vector(name, query, settings)
    return core.Query.Nearest(core_vector, using=using or None), source_id


def _look_up_vector(point_id: PointId, name: str, core_shard: CoreShard) -> Any:
    """Return a stored point's vector; name "" is the unnamed one."""
    points = core_shard.retrieve([point_id], False, True)  # vectors without payload
    if not points:
        raise InputError(f"point {point_id!r} is not in the collection")
    vector: Any = to_record(points[0]).vector
    if isinstance(vector, dict):
        vector = vector.get(name)
    if vector is None:
        raise InputError(f"point {point_id!r} has no vector named {name!r}")
    return vector


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


def _to_search_params(params: qm.SearchParams | None) -> Any:
    """Return how an index is searched; None searches it with its own settings."""
    if params is None:
        return None
    check_search(params)
    options = convert_fields(
        params, quantization=_to_quantization_params, acorn=_to_acorn_params, idf=_to_idf_params
    )
    return core.SearchParams(**options)


def _to_quantization_params(params: qm.QuantizationSearchParams) -> Any:
    return core.QuantizationSearchParams(**convert_fields(params))


def _to_acorn_params(params: qm.AcornSearchParams) -> Any:
    return core.AcornSearchParams(**convert_fields(params))


def _to_idf_params(params: qm.IdfParams) -> Any:
    """Return the points over which a sparse vector's IDF is computed: a filter's, or all."""
    corpus = None
    if isinstance(params, qm.IdfCorpusParams):
        corpus = to_core_filter(params.corpus)
    return core.IdfParams(corpus=corpus)
