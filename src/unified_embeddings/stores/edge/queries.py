"""Queries as Qdrant's core takes them: vectors checked, ids looked up, nested prefetches."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import qdrant_edge as core
from qdrant_client import models as qm

from unified_embeddings.errors import InputError
from unified_embeddings.stores.edge.bounds import check_search
from unified_embeddings.stores.edge.coercion import coerce
from unified_embeddings.stores.edge.core_types import CorePoint, CoreQuery
from unified_embeddings.stores.edge.examples import Examples, Queried
from unified_embeddings.stores.edge.filters import to_core_filter
from unified_embeddings.stores.edge.formulas import formula_error
from unified_embeddings.stores.edge.fused_order import (
    DEFAULT_LIMIT,
    count_candidates,
    order_found,
    uses_scores,
)
from unified_embeddings.stores.edge.limits import check_prefetch_depth
from unified_embeddings.stores.edge.mmr import (
    count_mmr_candidates,
    diversify,
    is_mmr,
    mmr_prefetch_error,
    relevance_share,
    sparse_values,
)
from unified_embeddings.stores.edge.points import to_list
from unified_embeddings.stores.edge.scoring import to_core_scoring
from unified_embeddings.stores.edge.translation import (
    PointId,
    argument_errors,
    convert_fields,
    from_core_id,
    to_payload_selector,
    to_vector_selector,
    unsupported,
)
from unified_embeddings.validation import require_whole_number


def find_points(request: qm.QueryRequest, queried: Queried) -> list[CorePoint]:
    """Return the page of points that answers a query.

    Raises:
        InputError: If it does not fit the collection, or is of a type that is not supported.
    """
    if is_sparse_mmr(request, queried):
        return _find_diverse(request, queried)
    core_query = to_core_query(request, queried)
    with formula_errors(request):
        points = queried.core_shard.query(core_query)
    return order_found(request, points)


def has_rank_of_its_own(request: qm.QueryRequest) -> bool:
    """Tell whether a longer page may begin with other points than a shorter one."""
    return is_mmr(request.query) or isinstance(request.query, qm.SampleQuery)


def is_sparse_mmr(request: qm.QueryRequest, queried: Queried) -> bool:
    """Tell whether a query asks for diverse hits by a sparse vector, which the core cannot do."""
    return is_mmr(request.query) and (request.using or "") in queried.settings.sparse_vectors


@contextlib.contextmanager
def formula_errors(*requests: qm.QueryRequest) -> Iterator[None]:
    """Turn what the core says of a formula without a value into an InputError.

    Raises:
        InputError: If the core gives up, and one of the requests has a formula.
    """
    try:
        yield
    except Exception as error:
        if not any(map(_has_formula, requests)) or "cancelled" not in str(error):
            raise
        raise formula_error(error) from error


def _has_formula(request: qm.QueryRequest | qm.Prefetch) -> bool:
    return isinstance(request.query, qm.FormulaQuery) or any(
        map(_has_formula, _list_prefetches(request))
    )


def _find_diverse(request: qm.QueryRequest, queried: Queried) -> list[CorePoint]:
    """Return the page of points that MMR chooses by their sparse vectors."""
    query: Any = request.query
    offset = request.offset or 0
    limit = DEFAULT_LIMIT if request.limit is None else request.limit
    check_limit(limit, offset)
    examples = Examples(queried, request.using or "", request.lookup_from)
    vector = examples.raw_vector(query.nearest)
    share = relevance_share(query.mmr)
    nearest = request.model_copy(
        update={
            "query": query.nearest,
            "limit": count_mmr_candidates(query.mmr, limit),
            "offset": 0,
        }
    )
    candidates = find_points(nearest, queried)
    chosen = diversify(
        candidates, sparse_values(vector), request.using or "", share, queried.core_shard
    )
    return chosen[offset : offset + limit]


def to_core_query(request: qm.QueryRequest, queried: Queried) -> CoreQuery:
    """Return a whole query as the core takes it.

    Args:
        request: The query.
        queried: The collection that it is about.

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
            with_vector=to_vector_selector(request.with_vector, queried.settings),
            **_shared_options(request, queried),
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
    prefetch: qm.Prefetch, queried: Queried, around: qm.Filter | None, *, is_scored_anew: bool
) -> CoreQuery:
    """Return a prefetch as the core takes it, within a query with the filter `around`."""
    limit = DEFAULT_LIMIT if prefetch.limit is None else prefetch.limit
    check_limit(limit)
    is_diverse = is_mmr(prefetch.query)
    if is_diverse and not is_scored_anew:
        raise mmr_prefetch_error()
    if is_scored_anew and (prefetch.prefetch or is_diverse):
        point_ids = _find_candidates(prefetch, queried, around)
        named = core.Filter(must=[core.HasIdCondition(point_ids)])
        return core.Prefetch(limit=max(len(point_ids), 1), filter=named)
    return core.Prefetch(limit=limit, **_shared_options(prefetch, queried))


def _find_candidates(
    prefetch: qm.Prefetch, queried: Queried, around: qm.Filter | None
) -> set[PointId]:
    """Return the ids that a prefetch finds, asked for by itself.

    Within a larger query the core would cut through equal scores of a prefetch's own prefetches,
    each time elsewhere, and take the nearest points where MMR is asked for.
    """
    fields = {name: getattr(prefetch, name) for name in qm.Prefetch.model_fields}
    conditions: list[qm.Condition] = [
        each for each in (around, prefetch.filter) if each is not None
    ]
    fields["filter"] = qm.Filter(must=conditions) if conditions else None
    request = qm.QueryRequest.model_construct(**fields, with_payload=False)
    return {from_core_id(point.id) for point in find_points(request, queried)}


def _shared_options(request: qm.QueryRequest | qm.Prefetch, queried: Queried) -> dict[str, Any]:
    """Return the options that a query and a prefetch have in common."""
    prefetches = _list_prefetches(request)
    threshold = request.score_threshold
    if threshold is not None and math.isnan(threshold):
        raise InputError("score_threshold must be a number, got NaN")
    if prefetches and request.query is None:
        raise InputError("prefetch needs a query that fuses or scores what it finds")
    scoring, mentioned_ids = to_core_scoring(request, len(prefetches), queried)
    condition = _combine_filters(request.filter, mentioned_ids)
    is_scored_anew = not uses_scores(request)
    return {
        "query": scoring,
        "prefetches": [
            _to_core_prefetch(prefetch, queried, condition, is_scored_anew=is_scored_anew)
            for prefetch in prefetches
        ],
        "filter": to_core_filter(condition),
        "score_threshold": threshold,
        "params": _to_search_params(request.params),
    }


def _list_prefetches(request: qm.QueryRequest | qm.Prefetch) -> list[qm.Prefetch]:
    if request.prefetch is None:
        return []
    if isinstance(request.prefetch, qm.Prefetch):
        return [request.prefetch]
    return request.prefetch


def _combine_filters(condition: qm.Filter | None, ids: list[PointId]) -> qm.Filter | None:
    """Return a request's filter, without the points that the query mentions."""
    if condition is not None and (condition.should or condition.min_should):
        # Passed as a single condition: the core merges the alternatives of an outer filter with
        # those of an inner one.
        condition = qm.Filter(must=[condition])
    if not ids:
        return condition
    all_others = qm.Filter(must_not=[qm.HasIdCondition(has_id=list(ids))])
    if condition is None:
        return all_others
    return qm.Filter(must=[condition, all_others])


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
