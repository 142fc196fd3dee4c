"""Helpers shared by the modules that convert objects for Qdrant's core and back.

What lives here: errors, enums, fields, ids, selectors, and the points that the core found as
qdrant-client's models. Filters, queries, vectors and settings have modules of their own.

qdrant-client and the core speak of the same things under nearly the same names. What has no
counterpart in the core is refused by its name; nothing is dropped silently.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import qdrant_edge as core
from pydantic import BaseModel
from qdrant_client import models as qm

from unified_embeddings.errors import InputError
from unified_embeddings.stores.edge.coercion import coerce_dict
from unified_embeddings.stores.edge.core_types import CoreEnum, CorePoint, CoreVector
from unified_embeddings.stores.edge.settings import Settings

PointId: TypeAlias = int | str
"""A point's id as the core takes it: an unsigned 64-bit integer or a UUID as a string."""

_LARGEST_ID = 2**64 - 1
_IRREGULAR_MEMBERS = {
    "bits1_5": "Bits1_5",
    "scalar4bits": "Scalar4Bits",
    "scalar8bits": "Scalar8Bits",
}
"""qdrant-client's value → the core's member, where that is not the value in PascalCase."""


def unsupported(feature: str) -> InputError:
    """Return the error for something that a server can do and an embedded store cannot."""
    return InputError(
        f"{feature} is not supported by the embedded store; leave it out, or run a Qdrant server "
        "and use url="
    )


class UnsupportedMethodError(InputError, AttributeError):
    """A method that only a server has. Also an AttributeError, so that `hasattr` is False."""


def unsupported_method(name: str) -> UnsupportedMethodError:
    """Return the error for a method that a server has and an embedded store has not."""
    return UnsupportedMethodError(unsupported(f"{name}()").problem)


@contextlib.contextmanager
def argument_errors(subject: str) -> Iterator[None]:
    """Turn the errors that the core's constructors raise into InputErrors.

    Args:
        subject: What is being built, for messages.

    Raises:
        InputError: If an argument in this block has the wrong type, is out of range or cannot be
            parsed.
    """
    try:
        yield
    except InputError:
        raise
    except (AttributeError, OverflowError, TypeError, ValueError) as error:
        reason = str(error).split("\n", 1)[0]
        raise InputError(f"{subject} cannot be used: {reason}") from error


def to_core_member(enum: CoreEnum, value: object) -> CoreEnum:
    """Return the member of a core enum that qdrant-client's value names: "max_sim" → MaxSim.

    Args:
        enum: The core's enum.
        value: A member of qdrant-client's enum of that name, or its value.

    Raises:
        InputError: If the core has no such member.
    """
    text = str(getattr(value, "value", value))
    pascal_case = "".join(word.capitalize() for word in text.split("_"))
    # The core's enums are not Python's: they cannot be indexed by name.
    member = getattr(enum, _IRREGULAR_MEMBERS.get(text, pascal_case), None)
    if member is None:
        raise unsupported(f"{enum.__name__} {text!r}")
    return member


def convert_fields(model: BaseModel | None, **converters: Callable[[Any], Any]) -> dict[str, Any]:
    """Return the fields of a model that are set, by name.

    Args:
        model: One of qdrant-client's models; None has no fields.
        **converters: Field name → function that makes the core's object of the field's value.

    Raises:
        InputError: If a field without a converter holds a model, which the core would not take.
    """
    converted: dict[str, Any] = {}
    if model is None:
        return converted
    for name in type(model).model_fields:
        value = getattr(model, name)
        if value is None:
            continue
        if name in converters:
            converted[name] = converters[name](value)
        elif isinstance(value, BaseModel):
            raise unsupported(f"{type(value).__name__} here")
        else:
            converted[name] = value
    return converted


# --- ids ----------------------------------------------------------------------------------------


def to_core_id(value: object) -> PointId:
    """Return an id as the core takes it; a UUID in its canonical form.

    Raises:
        InputError: If it is neither an unsigned 64-bit integer nor a UUID.
    """
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        number = int(value)
        if 0 <= number <= _LARGEST_ID:
            return number
    if isinstance(value, uuid.UUID):
        return str(value)
    if isinstance(value, str):
        try:
            return str(uuid.UUID(value))
        except ValueError:
            pass
    raise InputError(f"an id must be a UUID or an integer from 0 to {_LARGEST_ID}, got {value!r}")


def is_point_id(value: object) -> bool:
    """Tell whether a query names a point, rather than being a vector or a query of its own."""
    return isinstance(value, int | str | uuid.UUID) and not isinstance(value, bool)


def to_core_ids(values: object) -> list[PointId]:
    """Return several ids as the core takes them.

    Raises:
        InputError: If it is not a list of ids.
    """
    if isinstance(values, str | bytes | dict) or not isinstance(values, Iterable):
        raise InputError(f"ids must be a list of ids, got {type(values).__name__}")
    return [to_core_id(value) for value in values]


def from_core_id(value: object) -> PointId:
    """Return an id that the core answered; it gives a UUID as an object."""
    if isinstance(value, int):
        return value
    return str(value)


# --- what comes back ----------------------------------------------------------------------------


def to_record(core_point: CorePoint) -> qm.Record:
    """Return a point that was retrieved or scrolled over."""
    # Not validated: the core's answer is well-formed, and validation costs more than the read.
    return qm.Record.model_construct(
        id=from_core_id(core_point.id),
        payload=core_point.payload,
        vector=_from_core_vector(core_point.vector),
        order_value=core_point.order_value,
    )


def to_scored_point(core_point: CorePoint) -> qm.ScoredPoint:
    """Return a point that a query found."""
    return qm.ScoredPoint.model_construct(
        id=from_core_id(core_point.id),
        version=core_point.version,
        score=core_point.score,
        payload=core_point.payload,
        vector=_from_core_vector(core_point.vector),
        order_value=core_point.order_value,
    )


def _from_core_vector(vector: CoreVector) -> Any:
    """Return a vector, or a dict of them by name, with sparse ones as qdrant-client's."""
    if isinstance(vector, dict):
        return {name: _from_core_vector(value) for name, value in vector.items()}
    if isinstance(vector, core.SparseVector):
        return qm.SparseVector(indices=vector.indices, values=vector.values)
    return vector


# --- selectors ----------------------------------------------------------------------------------


def to_payload_selector(selector: bool | Sequence[str] | qm.PayloadSelector | None) -> Any:
    """Return which parts of the payload come back, as the core takes it.

    Raises:
        InputError: If it is a single string.
    """
    selector = coerce_dict(qm.PayloadSelector, selector, "with_payload")
    if isinstance(selector, qm.PayloadSelectorInclude):
        return core.PayloadSelector.Include(selector.include)
    if isinstance(selector, qm.PayloadSelectorExclude):
        return core.PayloadSelector.Exclude(selector.exclude)
    if selector is None or isinstance(selector, bool):
        return bool(selector)
    if isinstance(selector, str):
        raise InputError(f"with_payload takes a list of fields, got the string {selector!r}")
    return list(selector)


def to_vector_selector(
    selector: bool | Sequence[str] | None, settings: Settings
) -> bool | list[str]:
    """Return which vectors come back, as the core takes it.

    Raises:
        InputError: If it is a single string, or names a vector that the collection lacks.
    """
    if selector is None or isinstance(selector, bool):
        return bool(selector)
    if isinstance(selector, str):
        raise InputError(f"with_vectors takes a list of names, got the string {selector!r}")
    names = list(selector)
    for name in names:
        if name not in settings.vectors and name not in settings.sparse_vectors:
            raise InputError(f"the collection has no vector named {name!r}")
    return names


def to_core_order(order: str | qm.OrderBy | None) -> Any:
    """Return how a scroll is ordered, as the core takes it; None orders by id."""
    if order is None:
        return None
    if isinstance(order, str):
        return core.OrderBy(order)
    direction = None
    if order.direction is not None:
        direction = to_core_member(core.Direction, order.direction)
    start: Any = order.start_from
    if hasattr(start, "isoformat"):  # the core parses dates from strings
        start = start.isoformat()
    return core.OrderBy(order.key, direction, start)
