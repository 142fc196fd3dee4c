"""The client's methods that write many points at once: from iterables, arrays and operations."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from qdrant_client import models as qm

from unified_embeddings.errors import InputError
from unified_embeddings.stores.edge.arguments import errors_at, refuse_server_options
from unified_embeddings.stores.edge.bounds import check_timeout
from unified_embeddings.stores.edge.coercion import coerce
from unified_embeddings.stores.edge.point_writing import PointWriting
from unified_embeddings.stores.edge.points import (
    to_core_point_vectors,
    to_core_points,
    to_iterator,
    to_list,
)
from unified_embeddings.stores.edge.settings import Settings
from unified_embeddings.validation import require_whole_number

_END = object()


class BulkWriting(PointWriting):
    """The methods that write many points."""

    def upload_points(
        self,
        collection_name: str,
        points: Iterable[qm.PointStruct],
        batch_size: int = 64,
        parallel: int = 1,
        method: str | None = None,
        max_retries: int = 3,
        wait: bool = False,
        shard_key_selector: qm.ShardKeySelector | None = None,
        update_filter: qm.Filter | None = None,
        update_mode: qm.UpdateMode | None = None,
    ) -> None:
        """Store points from an iterable, `batch_size` at a time; see `upsert`.

        `parallel`, `method` and `max_retries` configure a connection, and there is none here.

        Raises:
            InputError: If a point cannot be stored; its `index` counts all points given, and the
                batches before it are stored. If batch_size < 1.
            StoreError: If it cannot be written.
        """
        require_whole_number("batch_size", batch_size)
        remaining = to_iterator(points, "points")
        stored_count = 0
        while batch := list(itertools.islice(remaining, batch_size)):
            try:
                self.upsert(
                    collection_name,
                    batch,
                    shard_key_selector=shard_key_selector,
                    update_filter=update_filter,
                    update_mode=update_mode,
                )
            except InputError as error:
                if error.index is None:
                    raise
                raise InputError(error.problem, index=stored_count + error.index) from error
            stored_count += len(batch)

    def upload_collection(
        self,
        collection_name: str,
        vectors: Any,
        payload: Iterable[dict[Any, Any]] | None = None,
        ids: Iterable[int | str | uuid.UUID] | None = None,
        batch_size: int = 64,
        parallel: int = 1,
        method: str | None = None,
        max_retries: int = 3,
        wait: bool = False,
        shard_key_selector: qm.ShardKeySelector | None = None,
        update_filter: qm.Filter | None = None,
        update_mode: qm.UpdateMode | None = None,
    ) -> None:
        """Store points whose vectors, payloads and ids come separately; see `upload_points`.

        Args:
            collection_name: Where to store them.
            vectors: One for each point: an array, any iterable of vectors (or of dicts of them by
                name), or a dict of arrays by name.
            payload: One for each point; may go on after the last vector. None stores none.
            ids: One for each point, as `payload`. None makes random UUIDs.
            batch_size: How many are stored at a time.
            parallel: Configures a connection, of which there is none, as the next three.
            method: As `parallel`.
            max_retries: As `parallel`.
            wait: Every write is waited for.
            shard_key_selector: Only for a server.
            update_filter: Replace only points that match.
            update_mode: Store only new points, or only those that exist.

        Raises:
            InputError: If a point cannot be stored, or ids or payloads end before the vectors; its
                `index` counts all points given, and the batches before it are stored. If the
                arrays of a dict differ in length; nothing is stored then.
            StoreError: If it cannot be written.
        """
        points = _to_points(_list_vectors(vectors), ids, payload)
        self.upload_points(
            collection_name,
            points,
            batch_size=batch_size,
            shard_key_selector=shard_key_selector,
            update_filter=update_filter,
            update_mode=update_mode,
        )

    def batch_update_points(
        self,
        collection_name: str,
        update_operations: Sequence[qm.UpdateOperation],
        wait: bool = True,
        ordering: qm.WriteOrdering | None = None,
        timeout: int | None = None,
    ) -> list[qm.UpdateResult]:
        """Apply several operations on points, one after the other.

        Nothing is changed if one of them has a point or a vector that cannot be stored. An
        operation that fails for another reason ends the batch; those before it are applied.

        Returns:
            One result for each operation.

        Raises:
            InputError: If an operation cannot be applied; its `index` says which.
            StoreError: If it cannot be written.
        """
        check_timeout(timeout)
        operations = []
        for index, given in enumerate(to_list(update_operations, "update_operations")):
            with errors_at(index):
                operations.append(coerce(qm.UpdateOperation, given, "the operation"))
        _, settings = self._store.collection(collection_name)
        for index, operation in enumerate(operations):
            with errors_at(index):
                _check_operation(operation, settings)
        results = []
        for index, operation in enumerate(operations):
            with errors_at(index):
                results.append(self._apply(collection_name, operation))
        return results

    def _apply(self, name: str, operation: qm.UpdateOperation) -> qm.UpdateResult:
        match operation:
            case qm.UpsertOperation(upsert=given):
                return self.upsert(
                    name,
                    _points_of(given),
                    update_filter=given.update_filter,
                    update_mode=given.update_mode,
                )
            case qm.DeleteOperation(delete=selector):
                return self.delete(name, selector)
            case qm.SetPayloadOperation(set_payload=change):
                return self.set_payload(name, change.payload, _select(change), key=change.key)
            case qm.OverwritePayloadOperation(overwrite_payload=change):
                return self.overwrite_payload(name, change.payload, _select(change))
            case qm.DeletePayloadOperation(delete_payload=removal):
                return self.delete_payload(name, removal.keys, _select(removal))
            case qm.ClearPayloadOperation(clear_payload=selector):
                return self.clear_payload(name, selector)
            case qm.UpdateVectorsOperation(update_vectors=update):
                return self.update_vectors(name, update.points, update_filter=update.update_filter)
            case qm.DeleteVectorsOperation(delete_vectors=dropped):
                return self.delete_vectors(name, dropped.vector, _select(dropped))
        raise InputError(f"not an operation on points: {type(operation).__name__}")


# --- operations ---------------------------------------------------------------------------------


def _points_of(given: qm.PointsBatch | qm.PointsList) -> Any:
    return given.batch if isinstance(given, qm.PointsBatch) else given.points


def _select(change: Any) -> Any:
    """Return which points an operation is for.

    Raises:
        InputError: If it names neither ids nor a filter.
    """
    if change.points is not None:
        return change.points
    if change.filter is None:
        raise InputError("the operation needs points or a filter; Filter() selects all points")
    return change.filter


def _check_operation(operation: qm.UpdateOperation, settings: Settings) -> None:
    """Refuse an operation that could not be applied whatever points there are.

    Raises:
        InputError: If a point or a vector cannot be stored, nothing is selected, or it names a
            shard.
    """
    (content,) = (getattr(operation, name) for name in type(operation).model_fields)
    refuse_server_options("batch_update_points", shard_key=getattr(content, "shard_key", None))
    if isinstance(operation, qm.UpsertOperation):
        to_core_points(_points_of(operation.upsert), settings)
    elif isinstance(operation, qm.UpdateVectorsOperation):
        to_core_point_vectors(operation.update_vectors.points, settings)
    elif not isinstance(operation, qm.DeleteOperation | qm.ClearPayloadOperation):
        _select(content)


# --- columns ------------------------------------------------------------------------------------


def _list_vectors(vectors: Any) -> Iterator[Any]:
    """Yield the vectors of one point after the other.

    Raises:
        InputError: If the arrays of a dict differ in length, or it cannot be iterated over.
    """
    if not isinstance(vectors, Mapping):
        return to_iterator(vectors, "vectors")
    lengths = {name: len(column) for name, column in vectors.items()}
    if len(set(lengths.values())) > 1:
        raise InputError(f"the vectors' arrays must have one length, got {lengths}")
    rows = zip(*vectors.values(), strict=True)
    return (dict(zip(vectors, row, strict=True)) for row in rows)


def _to_points(
    vectors: Iterator[Any], ids: Iterable[Any] | None, payloads: Iterable[Any] | None
) -> Iterator[qm.PointStruct]:
    """Yield points of vectors with their ids and payloads.

    Raises:
        InputError: If ids or payloads end before the vectors.
    """
    remaining_ids = _random_ids() if ids is None else to_iterator(ids, "ids")
    remaining_payloads = (
        itertools.repeat(None) if payloads is None else to_iterator(payloads, "payload")
    )
    for index, vector in enumerate(vectors):
        point_id = next(remaining_ids, _END)
        payload = next(remaining_payloads, _END)
        for name, value in (("ids", point_id), ("payloads", payload)):
            if value is _END:
                raise InputError(f"there are fewer {name} than vectors", index=index)
        # Not validated: `upsert` checks every part, and takes arrays, which pydantic refuses.
        yield qm.PointStruct.model_construct(id=_plain_id(point_id), vector=vector, payload=payload)


def _random_ids() -> Iterator[str]:
    while True:
        yield str(uuid.uuid4())


def _plain_id(value: Any) -> Any:
    return int(value) if isinstance(value, np.integer) else value
