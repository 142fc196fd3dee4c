"""Points as Qdrant's core takes them: checked, with JSON payloads, in small pieces."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeAlias, TypeVar

import qdrant_edge as core
from pydantic_core import PydanticSerializationError, to_json
from qdrant_client import models as qm

from unified_embeddings.errors import InputError
from unified_embeddings.stores.edge.core_types import CorePoint, CoreVector
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

T = TypeVar("T")
Sized: TypeAlias = tuple[T, int]
"""Something for the core, and about how many bytes it takes."""


# --- points and vectors -------------------------------------------------------------------------


def to_core_points(
    points: qm.Batch | Sequence[qm.PointStruct], settings: Settings
) -> list[Sized[CorePoint]]:
    """Return the points of an upsert as the core takes them.

    If several points have the same id, the last one counts, as within one request to a server.

    Raises:
        InputError: If there are none, or one cannot be stored; its `index` says which.
    """
    structs = _list_points(points)
    if not structs:
        raise InputError("there are no points to store")
    core_points: dict[PointId, Sized[CorePoint]] = {}
    for index, point in enumerate(structs):
        if not isinstance(point, qm.PointStruct):
            raise InputError(f"expected a PointStruct, got {type(point).__name__}", index=index)
        with _errors_at(index):
            point_id = to_core_id(point.id)
            core_points[point_id] = _to_core_point(point_id, point, settings)
    return list(core_points.values())


def to_core_point_vectors(
    points: Sequence[qm.PointVectors], settings: Settings
) -> dict[PointId, dict[str, CoreVector]]:
    """Return the vectors to replace, by id and name.

    If a vector of a point is given several times, the last one counts.

    Raises:
        InputError: If there are none, or one cannot be stored; its `index` says which.
    """
    core_vectors: dict[PointId, dict[str, CoreVector]] = {}
    for index, point in enumerate(points):
        if not isinstance(point, qm.PointVectors):
            raise InputError(f"expected PointVectors, got {type(point).__name__}", index=index)
        with _errors_at(index):
            point_id = to_core_id(point.id)
            core_vectors.setdefault(point_id, {}).update(to_core_vectors(point.vector, settings))
    if not core_vectors:
        raise InputError("there are no points to update")
    return core_vectors


def _list_points(points: qm.Batch | Sequence[qm.PointStruct]) -> list[qm.PointStruct]:
    if not isinstance(points, qm.Batch):
        return list(points)
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


def to_json_payload(payload: Any) -> Sized[dict[str, Any]]:
    """Return a payload as JSON has it, dates and UUIDs as strings, and its size in bytes.

    Raises:
        InputError: If it is not a dict with strings as keys, or holds what JSON cannot: NaN, a lone
            surrogate, an integer beyond 64 bits, an object of another type.
    """
    if not isinstance(payload, dict):
        raise InputError(f"a payload must be a dict, got {type(payload).__name__}")
    try:
        text = to_json(payload, inf_nan_mode="constants")
        content = json.loads(text, parse_constant=_refuse_constant, parse_int=_parse_integer)
    except (ValueError, TypeError, RecursionError, PydanticSerializationError) as error:
        raise InputError(f"the payload is not valid JSON: {error}") from error
    return content, len(text)


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
