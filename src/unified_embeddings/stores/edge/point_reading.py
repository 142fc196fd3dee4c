"""The client's methods that read points: by id, by page, by number, by query."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

import qdrant_edge as core
from qdrant_client import models as qm
from qdrant_client.http.models import QueryResponse  # qm has FastEmbed's by that name

from unified_embeddings.errors import InputError
from unified_embeddings.stores.edge.arguments import (
    Query,
    WithPayload,
    WithVectors,
    errors_at,
    refuse_server_options,
)
from unified_embeddings.stores.edge.bounds import check_timeout
from unified_embeddings.stores.edge.coercion import coerce, coerce_dict
from unified_embeddings.stores.edge.core_types import CorePoint, CoreQuery, CoreShard
from unified_embeddings.stores.edge.examples import Queried
from unified_embeddings.stores.edge.filters import to_core_filter
from unified_embeddings.stores.edge.fused_order import order_found
from unified_embeddings.stores.edge.parts import ClientPart
from unified_embeddings.stores.edge.points import to_list
from unified_embeddings.stores.edge.queries import (
    check_limit,
    find_points,
    formula_errors,
    is_sparse_mmr,
    to_core_query,
    to_prefetches,
)
from unified_embeddings.stores.edge.selection import PointIds
from unified_embeddings.stores.edge.settings import Settings
from unified_embeddings.stores.edge.translation import (
    PointId,
    argument_errors,
    from_core_id,
    to_core_id,
    to_core_ids,
    to_core_order,
    to_payload_selector,
    to_record,
    to_scored_point,
    to_vector_selector,
)


class PointReading(ClientPart):
    """The methods that read points."""

    def _queried(self, name: str, settings: Settings, core_shard: CoreShard) -> Queried:
        """Return a collection as queries need it, with a way to the points of the others."""

        def find_elsewhere(other: str, point_id: PointId) -> tuple[qm.Record | None, bool]:
            found = self.retrieve(other, [point_id], with_payload=False, with_vectors=True)
            is_same = self._store.collection(other)[0] is self._store.collection(name)[0]
            return (found[0] if found else None), is_same

        return Queried(core_shard, settings, find_elsewhere)

    def retrieve(
        self,
        collection_name: str,
        ids: PointIds,
        with_payload: WithPayload = True,
        with_vectors: WithVectors = False,
        consistency: qm.ReadConsistency | None = None,
        shard_key_selector: qm.ShardKeySelector | None = None,
        timeout: int | None = None,
    ) -> list[qm.Record]:
        """Return points by their ids, in the order of the ids; unknown ids are left out."""
        refuse_server_options("retrieve", shard_key_selector=shard_key_selector)
        check_timeout(timeout)
        point_ids = to_core_ids(ids)

        def ask(settings: Settings, core_shard: CoreShard) -> list[CorePoint]:
            with argument_errors("the request"):
                payload_selector = to_payload_selector(with_payload)
                vector_selector = to_vector_selector(with_vectors, settings)
            points: list[CorePoint] = core_shard.retrieve(
                point_ids, payload_selector, vector_selector
            )
            return points

        points = self._store.read(collection_name, "retrieving", ask)
        records = {from_core_id(point.id): to_record(point) for point in points}
        return [records[point_id] for point_id in point_ids if point_id in records]

    def scroll(
        self,
        collection_name: str,
        scroll_filter: qm.Filter | None = None,
        limit: int = 10,
        order_by: str | qm.OrderBy | None = None,
        offset: int | str | uuid.UUID | None = None,
        with_payload: WithPayload = True,
        with_vectors: WithVectors = False,
        consistency: qm.ReadConsistency | None = None,
        shard_key_selector: qm.ShardKeySelector | None = None,
        timeout: int | None = None,
    ) -> tuple[list[qm.Record], int | str | None]:
        """Return one page of points in the order of their ids, and where the next one begins.

        Raises:
            InputError: If limit < 1, or `order_by` comes with an offset.
            StoreError: If `order_by` names a field that has no payload index, or the core fails.
        """
        refuse_server_options("scroll", shard_key_selector=shard_key_selector)
        check_timeout(timeout)
        check_limit(limit)
        order_by = coerce_dict(qm.OrderBy, order_by, "order_by")
        if order_by is not None and offset is not None:
            raise InputError("order_by takes no offset; start from a value instead")

        def ask(settings: Settings, core_shard: CoreShard) -> tuple[list[CorePoint], Any]:
            with argument_errors("the request"):
                request = core.ScrollRequest(
                    offset=None if offset is None else to_core_id(offset),
                    limit=limit,
                    filter=to_core_filter(scroll_filter),
                    with_payload=to_payload_selector(with_payload),
                    with_vector=to_vector_selector(with_vectors, settings),
                    order_by=to_core_order(order_by),
                )
            points, next_id = core_shard.scroll(request)
            return points, next_id

        points, next_id = self._store.read(collection_name, "scrolling", ask)
        next_offset = None if next_id is None else from_core_id(next_id)
        return [to_record(point) for point in points], next_offset

    def count(
        self,
        collection_name: str,
        count_filter: qm.Filter | None = None,
        exact: bool = True,
        shard_key_selector: qm.ShardKeySelector | None = None,
        timeout: int | None = None,
    ) -> qm.CountResult:
        """Count the points, or those that match a filter."""
        refuse_server_options("count", shard_key_selector=shard_key_selector)
        check_timeout(timeout)
        with argument_errors("the request"):
            request = core.CountRequest(exact=exact, filter=to_core_filter(count_filter))

        def ask(_: Settings, core_shard: CoreShard) -> int:
            return int(core_shard.count(request))

        return qm.CountResult(count=self._store.read(collection_name, "counting", ask))

    def query_points(
        self,
        collection_name: str,
        query: Query | None = None,
        using: str | None = None,
        prefetch: qm.Prefetch | Sequence[qm.Prefetch] | None = None,
        query_filter: qm.Filter | None = None,
        search_params: qm.SearchParams | None = None,
        limit: int = 10,
        offset: int | None = None,
        with_payload: WithPayload = True,
        with_vectors: WithVectors = False,
        score_threshold: float | None = None,
        lookup_from: qm.LookupLocation | None = None,
        consistency: qm.ReadConsistency | None = None,
        shard_key_selector: qm.ShardKeySelector | None = None,
        timeout: int | None = None,
    ) -> QueryResponse:
        """Return the points that answer a query best, best first.

        Args:
            collection_name: Where to search.
            query: A vector (dense, sparse, multi), a point's id (returns the points nearest to it,
                without itself), or one of qdrant-client's queries: NearestQuery (also with MMR),
                RecommendQuery, DiscoverQuery, ContextQuery, OrderByQuery, SampleQuery, and, over
                prefetches, FusionQuery, RrfQuery and FormulaQuery. None returns points in no
                order.
            using: Which of the collection's vectors to compare; None for the unnamed one.
            prefetch: Queries whose results `query` fuses or rescores; they nest.
            query_filter: What all results must match.
            search_params: How an index is searched.
            limit: Maximum number of points.
            offset: Number of points to skip at the beginning.
            with_payload: Whether payloads come back, or which fields.
            with_vectors: Whether vectors come back, or which.
            score_threshold: The worst score to return.
            lookup_from: The collection in which ids that the query names are looked up.
            consistency: Every read is consistent.
            shard_key_selector: Only for a server.
            timeout: Nothing is waited for.

        Raises:
            InputError: If the query does not fit the collection, or is of a type that is not
                supported (text, relevance feedback).
            StoreError: If the core fails.
        """
        refuse_server_options("query_points", shard_key_selector=shard_key_selector)
        check_timeout(timeout)
        request = to_request(
            query=query,
            using=using,
            prefetch=prefetch,
            query_filter=query_filter,
            search_params=search_params,
            limit=limit,
            offset=offset,
            with_payload=with_payload,
            with_vectors=with_vectors,
            score_threshold=score_threshold,
            lookup_from=lookup_from,
        )

        def ask(settings: Settings, core_shard: CoreShard) -> list[CorePoint]:
            return find_points(request, self._queried(collection_name, settings, core_shard))

        return _to_query_response(self._store.read(collection_name, "querying", ask))

    def query_batch_points(
        self,
        collection_name: str,
        requests: Sequence[qm.QueryRequest],
        consistency: qm.ReadConsistency | None = None,
        timeout: int | None = None,
    ) -> list[QueryResponse]:
        """Answer several queries in one call; payloads come back only on request.

        See `query_points`.

        Raises:
            InputError: If a query does not fit; its `index` says which.
            StoreError: If the core fails.
        """
        check_timeout(timeout)

        parsed_requests = []
        for index, given in enumerate(to_list(requests, "requests")):
            with errors_at(index):
                parsed_requests.append(coerce(qm.QueryRequest, given, "the request"))

        def ask(settings: Settings, core_shard: CoreShard) -> list[list[CorePoint]]:
            queried = self._queried(collection_name, settings, core_shard)
            return _find_batch(parsed_requests, queried)

        answers = self._store.read(collection_name, "querying", ask)
        return [_to_query_response(points) for points in answers]


def to_request(
    *,
    query: Any,
    prefetch: Any,
    query_filter: Any,
    search_params: Any,
    lookup_from: Any,
    with_vectors: Any,
    **options: Any,
) -> qm.QueryRequest:
    """Return what `query_points` is called with as one request.

    Raises:
        InputError: If a dict does not make the model that is meant.
    """
    # Not validated: pydantic refuses arrays, and `to_core_query` checks every part.
    return qm.QueryRequest.model_construct(
        query=coerce_dict(qm.QueryInterface, query, "the query"),
        prefetch=to_prefetches(prefetch),
        filter=coerce(qm.Filter, query_filter, "query_filter"),
        params=coerce(qm.SearchParams, search_params, "search_params"),
        lookup_from=coerce(qm.LookupLocation, lookup_from, "lookup_from"),
        with_vector=with_vectors,
        **options,
    )


def _find_batch(requests: list[qm.QueryRequest], queried: Queried) -> list[list[CorePoint]]:
    """Return the points that answer several queries; those that the core can, in one call."""
    answers: list[list[CorePoint]] = [[] for _ in requests]
    core_queries: dict[int, CoreQuery] = {}
    for index, request in enumerate(requests):
        with errors_at(index):
            if is_sparse_mmr(request, queried):
                answers[index] = find_points(request, queried)
            else:
                core_queries[index] = to_core_query(request, queried)
    if not core_queries:
        return answers
    with formula_errors(*requests):
        found = queried.core_shard.query_batch(core.QueryBatchRequest(list(core_queries.values())))
    for index, points in zip(core_queries, found, strict=True):
        answers[index] = order_found(requests[index], points)
    return answers


def _to_query_response(points: list[CorePoint]) -> QueryResponse:
    return QueryResponse.model_construct(points=[to_scored_point(point) for point in points])
