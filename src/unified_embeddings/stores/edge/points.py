"""Points as Qdrant's core takes them: checked, with JSON payloads, in small pieces."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeAlias, TypeVar

import numpy as np
import qdrant_edge as core
from pydantic import BaseModel
from pydantic_core import PydanticSerializationError, to_json
from qdrant_client import models as qm

from unified_embeddings.errors import InputError
from unified_embeddings.stores.edge.coercion import coerce, coerce_dict
from unified_embeddings.stores.edge.core_types import CorePoint, CoreVector
from unified_embeddings.stores.edge.limits import (
    PAYLOAD_DEPTH,
    check_payload_depth,
    payload_depth_error,
)
from unified_embeddings.stores.edge.settings import Settings
from unified_embeddings.stores.edge.translation import PointId, to_core_id
from unified_embeddings.stores.edge.vectors import (
    approximate_bytes,
    to_core_vectors,
    unwrap_unnamed,
)

_PIECE_POINTS = 64
_PIECE_BYTES = 2**20
"""Limits of one write to the core, which holds the interpreter: some milliseconds."""
_TOO_DEEP_FOR_PYDANTIC = "depth exceeded"
"""Part of what pydantic says of a payload that is nested too deeply, or contains itself."""

T = TypeVar("T")
Sized: TypeAlias = tuple[T, int]
"""Something for the core, and about how many bytes it takes."""


# --- points and vectors -------------------------------------------------------------------------


def to_core_points(
    points: qm.Batch | Sequence[qm.PointStruct], settings: Settings
) -> dict[PointId, Sized[CorePoint]]:
    """Return the points of an upsert by id, as the core takes them.

    If several points have the same id, the last one counts, as within one request to a server.

    Raises:
        InputError: If there are none, or one cannot be stored; its `index` says which.
    """
    structs = _list_points(points)
    if not structs:
        raise InputError("there are no points to store")
    core_points: dict[PointId, Sized[CorePoint]] = {}
    for index, given in enumerate(structs):
        with _errors_at(index):
            point = _to_struct(given)
            point_id = to_core_id(point.id)
            core_points[point_id] = _to_core_point(point_id, point, settings)
    return core_points


def to_core_point_vectors(
    points: Sequence[qm.PointVectors], settings: Settings
) -> dict[PointId, dict[str, CoreVector]]:
    """Return the vectors to replace, by id and name.

    If a vector of a point is given several times, the last one counts.

    Raises:
        InputError: If there are none, or one cannot be stored; its `index` says which.
    """
    core_vectors: dict[PointId, dict[str, CoreVector]] = {}
    for index, given in enumerate(to_list(points, "points")):
        with _errors_at(index):
            point = coerce(qm.PointVectors, given, "the point")
            point_id = to_core_id(point.id)
            core_vectors.setdefault(point_id, {}).update(to_core_vectors(point.vector, settings))
    if not core_vectors:
        raise InputError("there are no points to update")
    return core_vectors


def to_list(values: Any, subject: str) -> list[Any]:
    """Return a list of what an argument holds; see `to_iterator`."""
    return list(to_iterator(values, subject))


def to_iterator(values: Any, subject: str) -> Iterator[Any]:
    """Iterate over what an argument holds; a dict or a text is not taken for a list.

    Raises:
        InputError: If it cannot be iterated over.
    """
    if isinstance(values, Iterable) and not isinstance(values, str | bytes | dict | BaseModel):
        return iter(values)
    raise InputError(f"{subject} must be a list, got {type(values).__name__}")


def _to_struct(given: Any) -> qm.PointStruct:
    """Return a point to store; a point that was read from a client is one too.

    Raises:
        InputError: If it is not a point.
    """
    if isinstance(given, qm.PointStruct):
        return given
    if isinstance(given, qm.Record):
        vector = {} if given.vector is None else given.vector
        return qm.PointStruct.model_construct(id=given.id, vector=vector, payload=given.payload)
    if isinstance(given, dict):
        struct: qm.PointStruct = coerce(qm.PointStruct, given, "the point")
        return struct
    raise InputError(f"expected a PointStruct, got {type(given).__name__}")


def _list_points(points: qm.Batch | Sequence[qm.PointStruct]) -> list[Any]:
    points = coerce_dict(qm.Batch, points, "the batch")
    if not isinstance(points, qm.Batch):
        return to_list(points, "points")
    count = len(points.ids)
    vectors = _list_batch_vectors(points.vectors, count)
    payloads: list[Any] = points.payloads or [None] * count
    if vectors is None or len(vectors) != count or len(payloads) != count:
        raise InputError(f"a batch of {count} ids needs as many vectors and payloads")
    # Not validated again: the batch was, and its parts are checked on their way into the core.
    return [
        qm.PointStruct.model_construct(id=point_id, vector=vector, payload=payload)
        for point_id, vector, payload in zip(points.ids, vectors, payloads, strict=True)
    ]


def _list_batch_vectors(batch: Any, count: int) -> list[Any] | None:
    """Return the vectors of a batch, one entry per point; None if their number is wrong.

    A batch holds a list with an entry per point, or a dict of such lists by vector name.
    """
    if isinstance(batch, list):
        return batch
    if not isinstance(batch, dict):
        return None
    rows: list[dict[str, Any]] = [{} for _ in range(count)]
    for name, column in batch.items():
        if len(column) != count:
            return None
        for row, vector in zip(rows, column, strict=True):
            row[name] = vector
    return rows


def _to_core_point(
    point_id: PointId, point: qm.PointStruct, settings: Settings
) -> Sized[CorePoint]:
    core_vectors = to_core_vectors(point.vector, settings)
    content, content_bytes = to_json_payload(point.payload or {})
    core_point = core.Point(point_id, unwrap_unnamed(core_vectors), content)
    return core_point, content_bytes + approximate_bytes(core_vectors)


@contextlib.contextmanager
def _errors_at(index: int) -> Iterator[None]:
    """Turn what a bad point raises into an InputError with its position."""
    try:
        yield
    except InputError as error:
        raise InputError(error.problem, index=index) from error
    except (ValueError, TypeError, OverflowError) as error:  # from the core's constructor
        raise InputError(str(error).split("\n", 1)[0], index=index) from error


# --- payloads -----------------------------------------------------------------------------------


def to_json_payload(payload: Any, *, above: int = 0) -> Sized[dict[str, Any]]:
    """Return a payload as JSON has it, dates and UUIDs as strings, and its size in bytes.

    Args:
        payload: The payload.
        above: How many levels it will be stored below the top of the point's payload.

    Raises:
        InputError: If it is not a dict, is nested too deeply, or holds what JSON cannot: NaN, a
            lone surrogate, an integer beyond 64 bits, an object of another type, two keys that are
            the same as strings.
    """
    if not isinstance(payload, dict):
        raise InputError(f"a payload must be a dict, got {type(payload).__name__}")
    try:
        text = to_json(payload, inf_nan_mode="constants", fallback=_to_plain_number)
        content = json.loads(text, parse_constant=_refuse_constant, parse_int=_parse_integer)
        # JSON allows a key twice in an object, of which Python's dict keeps one.
        if to_json(content) != text:
            raise ValueError("two of its keys are the same as strings, such as 1 and '1'")
    except RecursionError as error:
        raise payload_depth_error() from error
    except (ValueError, TypeError, PydanticSerializationError) as error:
        if _TOO_DEEP_FOR_PYDANTIC in str(error):
            raise payload_depth_error() from error
        raise InputError(f"the payload is not valid JSON: {error}") from error
    # Rarely counted, and cheaper than walking through every payload.
    if text.count(b"{") + text.count(b"[") > PAYLOAD_DEPTH - above:
        check_payload_depth(content, above=above)
    return content, len(text)


def _to_plain_number(value: Any) -> Any:
    """Return a NumPy number as Python's; pydantic asks for what it does not know."""
    if isinstance(value, np.bool_):
        return bool(value)
    if isinstance(value, np.integer):
        return int(value)
    if isinstance(value, np.floating):
        return float(value)
    raise TypeError(f"it contains an object of the type {type(value).__name__}")


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"it contains {name}")


def _parse_integer(text: str) -> int:
    """Return an integer; refuse one beyond 64 bits, which the core would round to a float."""
    number = int(text)
    if not -(2**63) <= number < 2**64:
        raise ValueError(f"it contains {text:.30}, which does not fit into 64 bits")
    return number


def to_names(names: Sequence[str], subject: str) -> list[str]:
    """Return a list of names; a single string is refused, since it is a sequence of letters.

    Raises:
        InputError: If it is not a list of strings.
    """
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise InputError(f"{subject} must be a list of strings, got {names!r:.80}")
    return list(names)


# --- pieces -------------------------------------------------------------------------------------


def split_into_pieces(items: Iterable[Sized[T]]) -> Iterator[Sized[list[T]]]:
    """Yield the items in lists that the core writes quickly, each with its size in bytes.

    An item that is larger than a piece may be comes alone.
    """
    piece: list[T] = []
    piece_bytes = 0
    for item, item_bytes in items:
        is_full = len(piece) == _PIECE_POINTS or piece_bytes + item_bytes > _PIECE_BYTES
        if piece and is_full:
            yield piece, piece_bytes
            piece, piece_bytes = [], 0
        piece.append(item)
        piece_bytes += item_bytes
    if piece:
        yield piece, piece_bytes
