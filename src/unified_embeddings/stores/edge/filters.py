"""Filters as Qdrant's core takes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import qdrant_edge as core
from qdrant_client import models as qm

from unified_embeddings.errors import InputError
from unified_embeddings.stores.edge.core_types import CoreFilter
from unified_embeddings.stores.edge.translation import (
    argument_errors,
    convert_fields,
    to_core_id,
    unsupported,
)


def to_core_filter(given: qm.Filter | None) -> CoreFilter:
    """Return a filter as the core takes it; None stays None.

    Raises:
        InputError: If it holds a condition that the core lacks, or a key that is not a JSON path.
    """
    if given is None:
        return None
    if not isinstance(given, qm.Filter):
        raise InputError(f"a filter must be a models.Filter, got {type(given).__name__}")
    with argument_errors("the filter"):
        min_should = None
        if given.min_should is not None:
            conditions = [_to_core_condition(each) for each in given.min_should.conditions]
            min_should = core.MinShould(conditions, given.min_should.min_count)
        return core.Filter(
            must=_to_core_clause(given.must),
            should=_to_core_clause(given.should),
            must_not=_to_core_clause(given.must_not),
            min_should=min_should,
        )


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
            return to_core_filter(condition)
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
            return core.NestedCondition(nested.key, to_core_filter(nested.filter))
        case qm.SliceCondition():
            return core.SliceCondition(condition.slice.total, condition.slice.index)
    raise unsupported(f"the condition {type(condition).__name__}")


def _to_core_field_condition(condition: qm.FieldCondition) -> CoreFilter:
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
    return core.RangeFloat(**limits)


def _to_core_values_count(count: qm.ValuesCount) -> Any:
    return core.ValuesCount(**convert_fields(count))


def _to_core_bounding_box(box: qm.GeoBoundingBox) -> Any:
    return core.GeoBoundingBox(
        _to_core_geo_point(box.top_left), _to_core_geo_point(box.bottom_right)
    )


def _to_core_radius(circle: qm.GeoRadius) -> Any:
    return core.GeoRadius(_to_core_geo_point(circle.center), circle.radius)


def _to_core_polygon(polygon: qm.GeoPolygon) -> Any:
    interiors = [_to_core_line(line) for line in polygon.interiors or ()]
    return core.GeoPolygon(_to_core_line(polygon.exterior), interiors)


def _to_core_line(line: qm.GeoLineString) -> list[Any]:
    return [_to_core_geo_point(point) for point in line.points]


def _to_core_geo_point(point: qm.GeoPoint) -> Any:
    return core.GeoPoint(point.lon, point.lat)
