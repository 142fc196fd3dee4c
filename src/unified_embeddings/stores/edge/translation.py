"""qdrant-client's models as Qdrant's core takes them, and what the core answers as those models.

Both speak of the same things under nearly the same names, so most of this is tables. What has no
counterpart is refused by its name; nothing is left out without a word.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import qdrant_edge as core
from pydantic import BaseModel
from qdrant_client import models

from unified_embeddings.errors import InputError
from unified_embeddings.stores.edge.settings import Settings

_LARGEST_ID = 2**64 - 1


def unsupported(what: str) -> InputError:
    """The error for what a server does and an embedded store does not."""
    return InputError(
        f"{what} is not supported by the embedded store; leave it out, or run a Qdrant server and "
        "use url="
    )


@contextlib.contextmanager
def arguments(what: str) -> Iterator[None]:
    """Turn what the core's types refuse into an InputError.

    Raises:
        InputError: If something within has another type, is out of range or cannot be read.
    """
    try:
        yield
    except InputError:
        raise
    except (AttributeError, OverflowError, TypeError, ValueError) as error:
        reason = str(error).split("\n", 1)[0]
        raise InputError(f"{what} cannot be used: {reason}") from error


def member(enum: Any, value: Any) -> Any:
    """A value of one of qdrant-client's enums as the core's: "max_sim" → MaxSim."""
    wanted = str(getattr(value, "value", value)).replace("_", "").lower()
    for name in dir(enum):
        if not name.startswith("_") and name.replace("_", "").lower() == wanted:
            return getattr(enum, name)
    raise unsupported(f"{enum.__name__} {getattr(value, 'value', value)!r}")


def convert_fields(model: BaseModel | None, **convert: Callable[[Any], Any]) -> dict[str, Any]:
    """The fields of a model that are set, by name, some converted."""
    if model is None:
        return {}
    values = {name: getattr(model, name) for name in type(model).model_fields}
    return {
        name: convert.get(name, _plain)(value)
        for name, value in values.items()
        if value is not None
    }


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        raise unsupported(f"{type(value).__name__} here")
    return value


# --- how a collection is made -------------------------------------------------------------------


# --- points -------------------------------------------------------------------------------------


def point_id(value: Any) -> int | str:
    """An id as the core takes it: unsigned 64-bit integer, or a UUID in its usual form.

    Raises:
        InputError: If it is neither.
    """
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _LARGEST_ID:
        return value
    if isinstance(value, uuid.UUID):
        return str(value)
    if isinstance(value, str):
        try:
            return str(uuid.UUID(value))
        except ValueError:
            pass
    raise InputError(f"an id must be a UUID or an integer from 0 to {_LARGEST_ID}, got {value!r}")


def _id_model(value: Any) -> int | str:
    return value if isinstance(value, int) else str(value)


def found_id(found: Any) -> int | str:
    """The id of something that the core found."""
    return _id_model(found.id)


def next_offset(value: Any) -> int | str | None:
    """Where the next page of a scroll begins; None after the last."""
    return None if value is None else _id_model(value)


def _vector_model(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _vector_model(one) for name, one in value.items()}
    if isinstance(value, core.SparseVector):
        return models.SparseVector(indices=value.indices, values=value.values)
    return value


def record(found: Any) -> models.Record:
    """A point that was retrieved or scrolled over."""
    return models.Record.model_construct(
        id=_id_model(found.id),
        payload=found.payload,
        vector=_vector_model(found.vector),
        order_value=found.order_value,
    )


def scored_point(found: Any) -> models.ScoredPoint:
    """A point that a query found."""
    return models.ScoredPoint.model_construct(
        id=_id_model(found.id),
        version=found.version,
        score=found.score,
        payload=found.payload,
        vector=_vector_model(found.vector),
        order_value=found.order_value,
    )


def with_payload(selector: Any) -> Any:
    """Which parts of the payload come back."""
    if isinstance(selector, models.PayloadSelectorInclude):
        return core.PayloadSelector.Include(selector.include)
    if isinstance(selector, models.PayloadSelectorExclude):
        return core.PayloadSelector.Exclude(selector.exclude)
    if selector is None or isinstance(selector, bool):
        return bool(selector)
    if isinstance(selector, str):
        raise InputError(f"with_payload takes a list of fields, got the text {selector!r}")
    return list(selector)


def with_vectors(selector: Any, settings: Settings) -> bool | list[str]:
    """Which vectors come back.

    Raises:
        InputError: If the collection has no vector of a name.
    """
    if selector is None or isinstance(selector, bool):
        return bool(selector)
    if isinstance(selector, str):
        raise InputError(f"with_vectors takes a list of names, got the text {selector!r}")
    names = list(selector)
    for name in names:
        if name not in settings.vectors and name not in settings.sparse_vectors:
            raise InputError(f"the collection has no vector named {name!r}")
    return names


def order_by(order: Any) -> Any:
    """How a scroll is ordered; None for by id."""
    if order is None:
        return None
    if isinstance(order, str):
        return core.OrderBy(order)
    direction = None if order.direction is None else member(core.Direction, order.direction)
    start = order.start_from
    return core.OrderBy(order.key, direction, start.isoformat() if _is_date(start) else start)


# --- queries ------------------------------------------------------------------------------------


# --- filters ------------------------------------------------------------------------------------


def to_filter(given: models.Filter | None) -> Any:
    """A filter.

    Raises:
        InputError: If it holds a condition that the core has not, or a key that is no JSON path.
    """
    if given is None:
        return None
    if not isinstance(given, models.Filter):
        raise InputError(f"a filter must be a models.Filter, got {type(given).__name__}")
    minimum = given.min_should
    with arguments("the filter"):
        return core.Filter(
            must=_conditions(given.must),
            should=_conditions(given.should),
            must_not=_conditions(given.must_not),
            min_should=None
            if minimum is None
            else core.MinShould([_condition(one) for one in minimum.conditions], minimum.min_count),
        )


def _conditions(given: Any) -> list[Any] | None:
    if given is None:
        return None
    return [_condition(one) for one in (given if isinstance(given, Sequence) else [given])]


def _condition(given: Any) -> Any:
    match given:
        case models.FieldCondition():
            return _field(given)
        case models.Filter():
            return to_filter(given)
        case models.HasIdCondition():
            return core.HasIdCondition({point_id(one) for one in given.has_id})
        case models.IsEmptyCondition():
            return core.IsEmptyCondition(given.is_empty.key)
        case models.IsNullCondition():
            return core.IsNullCondition(given.is_null.key)
        case models.HasVectorCondition():
            return core.HasVectorCondition(given.has_vector)
        case models.NestedCondition():
            return core.NestedCondition(given.nested.key, to_filter(given.nested.filter))
        case models.SliceCondition():
            return core.SliceCondition(given.slice.total, given.slice.index)
    raise unsupported(f"the condition {type(given).__name__}")


def _field(given: models.FieldCondition) -> Any:
    return core.FieldCondition(
        given.key,
        **convert_fields(
            given.model_copy(update={"key": None}),
            match=_match,
            range=_range,
            geo_bounding_box=lambda box: core.GeoBoundingBox(
                _point(box.top_left), _point(box.bottom_right)
            ),
            geo_radius=lambda circle: core.GeoRadius(_point(circle.center), circle.radius),
            geo_polygon=lambda polygon: core.GeoPolygon(
                _line(polygon.exterior), [_line(line) for line in polygon.interiors or ()]
            ),
            values_count=lambda count: core.ValuesCount(**convert_fields(count)),
        ),
    )


def _match(given: Any) -> Any:
    match given:
        case models.MatchValue():
            # To the core's binding Python's True is the number 1; only NumPy's is a truth value.
            value = np.bool_(given.value) if isinstance(given.value, bool) else given.value
            return core.MatchValue(value)
        case models.MatchAny():
            return core.MatchAny(given.any)
        case models.MatchExcept():
            return core.MatchExcept(given.except_)
        case models.MatchText():
            return core.MatchText(given.text)
        case models.MatchTextAny():
            return core.MatchTextAny(given.text_any)
        case models.MatchPhrase():
            return core.MatchPhrase(given.phrase)
        case models.MatchPrefix():
            return core.MatchPrefix(given.prefix)
        case models.MatchSubstring():
            return core.MatchSubstring(given.substring)
    raise unsupported(f"the match {type(given).__name__}")


def _range(given: Any) -> Any:
    if isinstance(given, models.DatetimeRange):
        return core.RangeDateTime(
            **{name: value.isoformat() for name, value in convert_fields(given).items()}
        )
    return core.RangeFloat(**convert_fields(given))


def _is_date(value: Any) -> bool:
    return hasattr(value, "isoformat")


def _point(point: models.GeoPoint) -> Any:
    return core.GeoPoint(point.lon, point.lat)


def _line(line: models.GeoLineString) -> list[Any]:
    return [_point(point) for point in line.points]
