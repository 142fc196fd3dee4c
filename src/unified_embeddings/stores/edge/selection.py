"""Which points a write is for: ids, filters, and which of the ids exist.

A filter is answered here, and the core is told ids alone. The core logs what it is told before it
looks at it, and some filters that it takes it cannot read back out of its log, or reads as others.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import qdrant_edge as core
from qdrant_client import models as qm

from unified_embeddings.errors import InputError
from unified_embeddings.stores.edge.coercion import coerce_dict
from unified_embeddings.stores.edge.core_types import CoreFilter, CoreShard
from unified_embeddings.stores.edge.filters import to_core_filter
from unified_embeddings.stores.edge.shard import Shard
from unified_embeddings.stores.edge.translation import (
    PointId,
    from_core_id,
    to_core_id,
    unsupported,
)

PointIds: TypeAlias = Sequence[int | str | uuid.UUID]
Selector: TypeAlias = PointIds | qm.Filter | qm.PointIdsList | qm.FilterSelector
"""What qdrant-client's methods take as the points to change."""

_IDS_PER_PAGE = 10_000
_OPERATION = "looking up points"


def parse_selector(selector: Selector) -> tuple[list[PointId] | None, CoreFilter]:
    """Return the ids that a selector names, or None and its filter.

    Raises:
        InputError: If it names no id, or is not a selector.
    """
    if isinstance(selector, dict) and not selector:
        raise InputError("{} selects no points; Filter() selects all of them")
    selector = coerce_dict(
        qm.FilterSelector | qm.PointIdsList | qm.Filter, selector, "the selection of points"
    )
    if isinstance(selector, qm.FilterSelector | qm.PointIdsList) and selector.shard_key:
        raise unsupported("shard_key")
    if isinstance(selector, qm.FilterSelector):
        return None, to_core_filter(selector.filter)
    if isinstance(selector, qm.Filter):
        return None, to_core_filter(selector)
    point_ids = selector.points if isinstance(selector, qm.PointIdsList) else selector
    if isinstance(point_ids, str) or not isinstance(point_ids, Sequence):
        raise InputError(f"points are selected by ids or a filter, got {type(point_ids).__name__}")
    if not point_ids:
        raise InputError("the list of ids is empty")
    return [to_core_id(point_id) for point_id in point_ids], None


def find_existing(shard: Shard, point_ids: list[PointId]) -> set[PointId]:
    """Return those of the ids that the shard holds."""

    def retrieve(core_shard: CoreShard) -> set[PointId]:
        points = core_shard.retrieve(point_ids, False, False)  # neither payload nor vectors
        return {from_core_id(point.id) for point in points}

    return shard.read(_OPERATION, retrieve)


def find_matching(shard: Shard, condition: CoreFilter) -> list[PointId]:
    """Return the ids of all points that match a filter."""
    point_ids: list[PointId] = []
    offset = None
    while True:
        page, offset = _scroll_ids(shard, condition, offset)
        point_ids += page
        if offset is None:
            return point_ids


def find_protected(shard: Shard, point_ids: list[PointId], condition: CoreFilter) -> set[PointId]:
    """Return those of the ids whose points exist and do not match an update's filter.

    Such an update leaves them as they are. Without a filter there are none.
    """
    if condition is None:
        return set()
    named = core.HasIdCondition(set(point_ids))
    matching = find_matching(shard, core.Filter(must=[named, condition]))
    return find_existing(shard, point_ids).difference(matching)


def _scroll_ids(shard: Shard, condition: CoreFilter, offset: Any) -> tuple[list[PointId], Any]:
    """Return one page of ids, and the core's offset of the next one; None after the last."""
    request = core.ScrollRequest(
        offset=offset, limit=_IDS_PER_PAGE, filter=condition, with_payload=False
    )
    points, next_offset = shard.read(_OPERATION, lambda core_shard: core_shard.scroll(request))
    return [from_core_id(point.id) for point in points], next_offset


def require_existing(point_ids: Iterable[PointId], existing: set[PointId]) -> None:
    """Refuse ids that the shard does not hold.

    Raises:
        InputError: If there are any; it names the first one.
    """
    missing_ids = [point_id for point_id in point_ids if point_id not in existing]
    if missing_ids:
        raise InputError(
            f"no point with id {missing_ids[0]!r}; {len(missing_ids)} of the ids do not exist"
        )
