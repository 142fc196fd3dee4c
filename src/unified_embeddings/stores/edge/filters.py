"""Filters as Qdrant's core takes them, checked for what the core accepts and a server refuses.

The core takes a condition that tests nothing: in `must_not` every point passes it, and a deletion
empties the collection. A NaN in a range ends in a panic. A condition with two tests passes what
passes either of them, or only what passes one of them, depending on the field's payload index. All
of these are refused, wherever a filter is taken. Ranges and counts without bounds are not: they
mean what they mean on a server.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import qdrant_edge as core
from qdrant_client import models as qm

from unified_embeddings.errors import InputError
from unified_embeddings.stores.edge.coercion import coerce
from unified_embeddings.stores.edge.core_types import CoreFilter
from unified_embeddings.stores.edge.limits import check_filter_depth
from unified_embeddings.stores.edge.translation import (
    argument_errors,
    convert_fields,
    to_core_id,
    unsupported,
)

_TESTS = (
    "match", "range", "geo_bounding_box", "geo_radius", "geo_polygon", "values_count", "is_empty",
    "is_null",
)  # fmt: skip
"""Fields of a FieldCondition of which one, and only one, says what is tested."""


def to_core_filter(given: qm.Filter | Mapping[str, Any] | None) -> CoreFilter:
    """Return a filter as the core takes it; None stays None.

    Raises:
        InputError: If it holds a condition that the core lacks, or one that tests nothing. If it is
            nested too deeply, or a key is not a JSON path.
    """
    if given is None:
        return None
    condition: qm.Filter = coerce(qm.Filter, given, "the filter")
    check_filter_depth(condition)
    with argument_errors("the filter"):
        return _to_core_filter(condition)


def _to_core_filter(given: qm.Filter) -> CoreFilter:
    return core.Filter(
        must=_to_core_clause(given.must),
        should=_to_core_clause(given.should),
        must_not=_to_core_clause(given.must_not),
        min_should=_to_core_min_should(given.min_should),
    )


def _to_core_min_should(given: qm.MinShould | None) -> CoreFilter:
    if given is None:
        return None
    if not given.conditions or given.min_count < 1:
        raise InputError(
            "min_should needs conditions, and a min_count of at least 1, got "
            f"{len(given.conditions)} and {given.min_count}"
        )
    conditions = [_to_core_condition(condition) for condition in given.conditions]
    return core.MinShould(conditions, given.min_count)


def _to_core_clause(
    clause: list[qm.Condition] | qm.Condition | None,
) -> list[CoreFilter] | None:
    """Return a clause's conditions; qdrant-client also takes a single one without a list."""
    if clause is None:
        return None
    if isinstance(clause, Sequence):
        return [_to_core_condition(condition) for condition in clause]
    return [_to_core_condition(clause)]


def _to_core_condition(condition: qm.Condition) -> CoreFilter:
    match condition:
        case qm.FieldCondition():
            return _to_core_field_condition(condition)
        case qm.Filter():
            return _to_core_filter(condition)
        case qm.HasIdCondition():
            return core.HasIdCondition({to_core_id(value) for value in condition.has_id})
        case qm.IsEmptyCondition():
            return core.IsEmptyCondition(condition.is_empty.key)
        case qm.IsNullCondition():
            return core.IsNullCondition(condition.is_null.key)
        case qm.HasVectorCondition():
            return core.HasVectorCondition(condition.has_vector)
        case qm.NestedCondition():
            nested = condition.nested
            return core.NestedCondition(nested.key, _to_core_filter(nested.filter))
        case qm.SliceCondition():
            return core.SliceCondition(condition.slice.total, condition.slice.index)
    raise unsupported(f"the condition {type(condition).__name__}")


def _to_core_field_condition(condition: qm.FieldCondition) -> CoreFilter:
    tests = [name for name in _TESTS if getattr(condition, name) is not None]
    if not tests:
        raise InputError(
            f"the condition on {condition.key!r:.80} tests nothing; give it one of: "
            f"{', '.join(_TESTS)}"
        )
    if len(tests) > 1:
        raise InputError(
            f"the condition on {condition.key!r:.80} has several tests ({', '.join(tests)}), of "
            "which Qdrant lets any one pass; make a condition of each"
        )
    fields = convert_fields(
        condition,
        match=_to_core_match,
        range=_to_core_range,
        geo_bounding_box=_to_core_bounding_box,
        geo_radius=_to_core_radius,
        geo_polygon=_to_core_polygon,
        values_count=_to_core_values_count,
    )
    return core.FieldCondition(**fields)


def _to_core_match(condition: qm.Match) -> Any:
    match condition:
        case qm.MatchValue():
            value: Any = condition.value
            if isinstance(value, bool):
                # The core's binding takes Python's True for the number 1; only NumPy's is a truth
                # value to it.
                value = np.bool_(value)
            return core.MatchValue(value)
        case qm.MatchAny():
            return core.MatchAny(condition.any)
        case qm.MatchExcept():
            return core.MatchExcept(condition.except_)
        case qm.MatchText():
            return core.MatchText(condition.text)
        case qm.MatchTextAny():
            return core.MatchTextAny(condition.text_any)
        case qm.MatchPhrase():
            return core.MatchPhrase(condition.phrase)
        case qm.MatchPrefix():
            return core.MatchPrefix(condition.prefix)
        case qm.MatchSubstring():
            return core.MatchSubstring(condition.substring)
    raise unsupported(f"the match {type(condition).__name__}")


def _to_core_range(bounds: qm.Range | qm.DatetimeRange) -> Any:
    limits = convert_fields(bounds)
    if isinstance(bounds, qm.DatetimeRange):
        dates = {name: date.isoformat() for name, date in limits.items()}
        return core.RangeDateTime(**dates)
    for name, limit in limits.items():
        _require_finite(f"a range's {name}", limit)
    return core.RangeFloat(**limits)


def _to_core_values_count(count: qm.ValuesCount) -> Any:
    return core.ValuesCount(**convert_fields(count))


def _require_finite(subject: str, value: float) -> None:
    if not math.isfinite(value):
        raise InputError(f"{subject} must be a finite number, got {value}")


def _to_core_bounding_box(box: qm.GeoBoundingBox) -> Any:
    return core.GeoBoundingBox(
        _to_core_geo_point(box.top_left), _to_core_geo_point(box.bottom_right)
    )


def _to_core_radius(circle: qm.GeoRadius) -> Any:
    _require_finite("a radius", circle.radius)
    return core.GeoRadius(_to_core_geo_point(circle.center), circle.radius)


def _to_core_polygon(polygon: qm.GeoPolygon) -> Any:
    interiors = [_to_core_line(line) for line in polygon.interiors or ()]
    return core.GeoPolygon(_to_core_line(polygon.exterior), interiors)


def _to_core_line(line: qm.GeoLineString) -> list[Any]:
    return [_to_core_geo_point(point) for point in line.points]


def _to_core_geo_point(point: qm.GeoPoint) -> Any:
    return core.GeoPoint(point.lon, point.lat)
