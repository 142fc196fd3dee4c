"""Points on their way into the core: checked, payloads as JSON has them, in small pieces."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import qdrant_edge as core
from pydantic_core import PydanticSerializationError, to_json
from qdrant_client import models

from unified_embeddings.errors import InputError
from unified_embeddings.stores.edge import translation, vectors
from unified_embeddings.stores.edge.settings import Settings

_PIECE_POINTS = 64
_PIECE_BYTES = 2**20
"""Most that goes to the core in one write, which other threads wait for: some milliseconds."""

PointId = int | str
Sized = tuple[Any, int]
"""Something for the core, and about how many bytes it is."""


def _structs(points: Any) -> list[models.PointStruct]:
    """The points of an upsert, one by one."""
    if not isinstance(points, models.Batch):
        return list(points)
    count = len(points.ids)
    batch = points.vectors
    payloads: list[Any] = points.payloads or [None] * count
    rows = (
        [{name: column[index] for name, column in batch.items()} for index in range(count)]
        if isinstance(batch, dict) and all(len(column) == count for column in batch.values())
        else batch
    )
    if not isinstance(rows, list) or len(rows) != count or len(payloads) != count:
        raise InputError(f"a batch of {count} ids needs as many vectors and payloads")
    return [
        models.PointStruct.model_construct(id=one, vector=vector, payload=payload)
        for one, vector, payload in zip(points.ids, rows, payloads, strict=True)
    ]


def to_core(given: models.Batch | Sequence[models.PointStruct], settings: Settings) -> list[Sized]:
    """The points of an upsert as the core takes them.

    Of points with the same id the last one counts, as within one request to a server.

    Raises:
        InputError: If there are none, or one cannot be stored; its `index` says which.
    """
    structs = _structs(given)
    if not structs:
        raise InputError("there are no points to store")
    made = {
        _point_id(index, point): _point(index, point, settings)
        for index, point in enumerate(structs)
    }
    return list(made.values())


def vectors_to_core(given: Sequence[models.PointVectors], settings: Settings) -> dict[PointId, Any]:
    """Vectors to replace, by id; of a vector that is there twice the last one counts.

    Raises:
        InputError: If there are none, or one cannot be stored; its `index` says which.
    """
    made: dict[PointId, Any] = {}
    for index, point in enumerate(given):
        if not isinstance(point, models.PointVectors):
            kind = type(point).__name__
            raise InputError(f"expected PointVectors, got {kind}", index=index)
        try:
            point_id = translation.point_id(point.id)
            vector = vectors.all_to_core(point.vector, settings)
        except InputError as error:
            raise InputError(str(error), index=index) from error
        made[point_id] = {**made.get(point_id, {}), **vector}
    if not made:
        raise InputError("there are no points to update")
    return made


def _point_id(index: int, point: Any) -> PointId:
    if not isinstance(point, models.PointStruct):
        raise InputError(f"expected a PointStruct, got {type(point).__name__}", index=index)
    try:
        return translation.point_id(point.id)
    except InputError as error:
        raise InputError(str(error), index=index) from error


def _point(index: int, point: Any, settings: Settings) -> Sized:
    """One point as the core takes it, and about how many bytes it is."""
    try:
        vector = vectors.all_to_core(point.vector, settings)
        content, size = payload(point.payload or {})
        made = core.Point(translation.point_id(point.id), unnamed(vector), content)
    except InputError as error:
        raise InputError(str(error), index=index) from error
    except (ValueError, TypeError, OverflowError) as error:
        raise InputError(str(error).split("\n", 1)[0], index=index) from error
    return made, size + size_of(vector)


def payload(given: Any) -> tuple[dict[str, Any], int]:
    """A payload as JSON has it, dates and UUIDs as texts, and its size in bytes.

    Raises:
        InputError: If it is no dict with texts as keys, or holds what JSON cannot: NaN, half of a
            character, an object of another kind.
    """
    if not isinstance(given, dict):
        raise InputError(f"a payload must be a dict, got {type(given).__name__}")
    try:
        text = to_json(given, inf_nan_mode="constants")
        return json.loads(text, parse_constant=_no_constant, parse_int=_integer), len(text)
    except (ValueError, TypeError, RecursionError, PydanticSerializationError) as error:
        raise InputError(f"the payload is no JSON: {error}") from error


def _no_constant(name: str) -> Any:
    raise ValueError(f"it holds {name}")


def _integer(text: str) -> int:
    """A whole number; the core makes those beyond 64 bits floats, which are others."""
    number = int(text)
    if not -(2**63) <= number < 2**64:
        raise ValueError(f"it holds {text:.30}, which does not fit into 64 bits")
    return number


def unnamed(vector: dict[str, Any]) -> Any:
    """A point's vectors as the core takes them: the unnamed one, if alone, by itself."""
    return vector[""] if set(vector) == {""} else vector


def size_of(vector: dict[str, Any]) -> int:
    """About how many bytes a point's vectors take."""
    size = 0
    for one in vector.values():
        if isinstance(one, core.SparseVector):
            size += 8 * len(one.indices)
        else:
            size += 4 * (len(one) * len(one[0]) if isinstance(one[0], list) else len(one))
    return size


def pieces(points: Iterable[Sized]) -> Iterator[tuple[list[Any], int]]:
    """The points in portions that the core takes quickly, each with its size in bytes."""
    piece: list[Any] = []
    total = 0
    for point, size in points:
        if piece and (len(piece) == _PIECE_POINTS or total + size > _PIECE_BYTES):
            yield piece, total
            piece, total = [], 0
        piece.append(point)
        total += size
    if piece:
        yield piece, total


def texts(given: Sequence[str], what: str) -> list[str]:
    """A list of texts, which one text is not.

    Raises:
        InputError: If it is something else.
    """
    if isinstance(given, str) or not all(isinstance(one, str) for one in given):
        raise InputError(f"{what} must be a list of texts, got {given!r:.80}")
    return list(given)


def selected(selector: Any) -> tuple[list[PointId] | None, Any]:
    """The ids a selector names, or its filter.

    Raises:
        InputError: If it names none, or is no selector.
    """
    if isinstance(selector, models.FilterSelector | models.PointIdsList) and selector.shard_key:
        raise translation.unsupported("shard_key")
    if isinstance(selector, models.FilterSelector):
        selector = selector.filter
    if isinstance(selector, models.Filter):
        return None, translation.to_filter(selector)
    if isinstance(selector, models.PointIdsList):
        selector = selector.points
    if isinstance(selector, str) or not isinstance(selector, Sequence):
        raise InputError(f"points are chosen by ids or a filter, got {type(selector).__name__}")
    if not selector:
        raise InputError("there are no ids to work on")
    return [translation.point_id(one) for one in selector], None
