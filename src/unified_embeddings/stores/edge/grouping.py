"""Hits in groups, such as the best passages of each document.

A ranking is read page by page until the groups are known: the first groups that it leads to, each
with its first hits. The answer is exact, as if all points had been ranked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qdrant_client import models as qm

from unified_embeddings.errors import InputError
from unified_embeddings.stores.edge.arguments import (
    Query,
    WithPayload,
    WithVectors,
    refuse_server_options,
)
from unified_embeddings.stores.edge.bounds import check_timeout
from unified_embeddings.stores.edge.coercion import coerce_dict
from unified_embeddings.stores.edge.core_types import CorePoint, CoreShard
from unified_embeddings.stores.edge.examples import Queried
from unified_embeddings.stores.edge.payload_paths import Step, find_values, parse_path
from unified_embeddings.stores.edge.point_reading import PointReading, to_request
from unified_embeddings.stores.edge.queries import find_points, has_rank_of_its_own
from unified_embeddings.stores.edge.settings import Settings
from unified_embeddings.stores.edge.translation import (
    PointId,
    argument_errors,
    from_core_id,
    to_core_id,
    to_payload_selector,
    to_record,
    to_scored_point,
    to_vector_selector,
)
from unified_embeddings.validation import require_whole_number

_PAGES_GROW_BY = 4
_LARGEST_MATCHED = 2**63 - 1
Groups = dict[tuple[type, Any], list[CorePoint]]
"""A group's value, with its type (1 is not True), → its hits."""


class Grouping(PointReading):
    """The method that groups hits."""

    def query_points_groups(
        self,
        collection_name: str,
        group_by: str,
        query: Query | None = None,
        using: str | None = None,
        prefetch: qm.Prefetch | Sequence[qm.Prefetch] | None = None,
        query_filter: qm.Filter | None = None,
        search_params: qm.SearchParams | None = None,
        limit: int = 10,
        group_size: int = 3,
        with_payload: WithPayload = True,
        with_vectors: WithVectors = False,
        score_threshold: float | None = None,
        with_lookup: qm.WithLookup | str | None = None,
        lookup_from: qm.LookupLocation | None = None,
        consistency: qm.ReadConsistency | None = None,
        shard_key_selector: qm.ShardKeySelector | None = None,
        timeout: int | None = None,
    ) -> qm.GroupsResult:
        """Return the best hits of each of the best groups; see `query_points`.

        Args:
            collection_name: Where to search.
            group_by: The payload field, or its JSON path, whose value is a hit's group. A hit with
                a list of values is in a group for each. One without a text or a whole number there
                is in none.
            query: As in `query_points`.
            using: As in `query_points`.
            prefetch: As in `query_points`, without their limits: every point is a candidate.
            query_filter: What all hits must match.
            search_params: How an index is searched.
            limit: Maximum number of groups, in the order of their best hits.
            group_size: Maximum number of hits in a group.
            with_payload: Whether payloads come back, or which fields.
            with_vectors: Whether vectors come back, or which.
            score_threshold: The worst score to return.
            with_lookup: A collection in which a group's value is the id of a point that comes back
                with the group, such as the document of its passages.
            lookup_from: As in `query_points`.
            consistency: Every read is consistent.
            shard_key_selector: Only for a server.
            timeout: Nothing is waited for.

        Raises:
            InputError: If the query does not fit, or there is no such collection.
            StoreError: If the core fails.
        """
        refuse_server_options("query_points_groups", shard_key_selector=shard_key_selector)
        check_timeout(timeout)
        require_whole_number("limit", limit)
        require_whole_number("group_size", group_size)
        steps = parse_path(group_by)
        if isinstance(with_lookup, str):
            with_lookup = qm.WithLookup(collection=with_lookup)
        lookup = coerce_dict(qm.WithLookup, with_lookup, "with_lookup")
        if lookup is not None:
            self._store.collection(lookup.collection)  # refused before the search, if it is none
        request = to_request(
            query=query,
            using=using,
            prefetch=prefetch,
            query_filter=query_filter,
            search_params=search_params,
            limit=limit * group_size,
            with_payload=qm.PayloadSelectorInclude(include=[f'"{steps[0]}"']),
            with_vectors=False,
            score_threshold=score_threshold,
            lookup_from=lookup_from,
        )

        def ask(settings: Settings, core_shard: CoreShard) -> list[qm.PointGroup]:
            queried = self._queried(collection_name, settings, core_shard)
            groups = _find_groups(request, group_by, limit, group_size, queried)
            return _fill(groups, queried, with_payload, with_vectors)

        found = self._store.read(collection_name, "querying", ask)
        if lookup is not None:
            for group in found:
                group.lookup = self._look_up_group(group.id, lookup)
        return qm.GroupsResult(groups=found)

    def _look_up_group(self, value: Any, lookup: qm.WithLookup) -> qm.Record | None:
        """Return the point whose id is a group's value; None if there is none."""
        try:
            point_id = to_core_id(value)
        except InputError:  # a text that is no UUID
            return None
        found = self.retrieve(
            lookup.collection,
            [point_id],
            with_payload=True if lookup.with_payload is None else lookup.with_payload,
            with_vectors=lookup.with_vectors or False,
        )
        return found[0] if found else None


def _find_groups(
    request: qm.QueryRequest, group_by: str, limit: int, group_size: int, queried: Queried
) -> Groups:
    """Return the first groups of a ranking with their first hits."""
    steps = parse_path(group_by)
    count = max(queried.core_shard.info().points_count, 1)
    page = min(limit * group_size, count)
    if request.prefetch is not None or has_rank_of_its_own(request):
        request.prefetch = _without_limits(request.prefetch, count)
        page = count  # a longer page, or other points, would be another ranking
    while True:
        request.limit = page
        points = find_points(request, queried)
        groups = _group(points, steps, group_size)
        first = dict(list(groups.items())[:limit])
        is_full = len(first) == limit and all(len(hits) == group_size for hits in first.values())
        if is_full or page == count or len(points) < page:
            return first
        if len(first) == limit:
            break
        page = min(_PAGES_GROW_BY * page, count)
    # The groups are known, and their other hits may be anywhere: only their points are ranked.
    request.limit = count
    request.filter = _within(request.filter, group_by, first)
    groups = _group(find_points(request, queried), steps, group_size)
    return {key: groups[key] for key in first if key in groups}


def _within(given: qm.Filter | None, group_by: str, groups: Groups) -> qm.Filter:
    """Return a filter that the points of some groups pass, besides their own filter."""
    texts = [value for kind, value in groups if kind is str]
    integers = [value for kind, value in groups if kind is int and value <= _LARGEST_MATCHED]
    alternatives: list[qm.Condition] = [
        qm.FieldCondition(key=group_by, match=qm.MatchAny(any=values))
        for values in (texts, integers)
        if values
    ]
    if len(texts) + len(integers) < len(groups):
        alternatives = []  # the core matches no integers beyond 63 bits; all points pass
    conditions: list[qm.Condition] = [] if given is None else [given]
    if alternatives:
        conditions.append(qm.Filter(should=alternatives))
    return qm.Filter(must=conditions)


def _group(points: list[CorePoint], steps: list[Step], group_size: int) -> Groups:
    groups: Groups = {}
    for point in points:
        values = find_values(point.payload or {}, steps)
        if not all(type(value) in (str, int) for value in values):
            continue
        for value in dict.fromkeys(values):
            hits = groups.setdefault((type(value), value), [])
            if len(hits) < group_size:
                hits.append(point)
    return groups


def _without_limits(given: Any, count: int) -> Any:
    """Return prefetches that find every point."""
    if given is None:
        return None
    prefetches = given if isinstance(given, list) else [given]
    return [
        prefetch.model_copy(
            update={"limit": count, "prefetch": _without_limits(prefetch.prefetch, count)}
        )
        for prefetch in prefetches
    ]


def _fill(
    groups: Groups, queried: Queried, with_payload: WithPayload, with_vectors: WithVectors
) -> list[qm.PointGroup]:
    """Return the groups with the payloads and vectors that were asked for."""
    with argument_errors("the request"):
        payload_selector = to_payload_selector(with_payload)
        vector_selector = to_vector_selector(with_vectors, queried.settings)
    ids = {from_core_id(hit.id) for hits in groups.values() for hit in hits}
    points = queried.core_shard.retrieve(list(ids), payload_selector, vector_selector)
    records: dict[PointId, qm.Record] = {
        from_core_id(point.id): to_record(point) for point in points
    }
    return [
        qm.PointGroup(id=value, hits=[_fill_hit(hit, records) for hit in hits])
        for (_, value), hits in groups.items()
    ]


def _fill_hit(hit: CorePoint, records: dict[PointId, qm.Record]) -> qm.ScoredPoint:
    scored = to_scored_point(hit)
    record = records.get(from_core_id(hit.id))
    # Another thread may have deleted it meanwhile.
    scored.payload = None if record is None else record.payload
    scored.vector = None if record is None else record.vector
    return scored
