"""The client's methods that write points, their vectors and their payloads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import qdrant_edge as core
from qdrant_client import models as qm

from unified_embeddings.errors import InputError
from unified_embeddings.stores.edge.arguments import refuse_server_options
from unified_embeddings.stores.edge.bounds import check_timeout
from unified_embeddings.stores.edge.core_types import CorePoint, CoreUpdate
from unified_embeddings.stores.edge.filters import to_core_filter
from unified_embeddings.stores.edge.limits import path_depth
from unified_embeddings.stores.edge.parts import ClientPart
from unified_embeddings.stores.edge.points import (
    split_into_pieces,
    to_core_point_vectors,
    to_core_points,
    to_json_payload,
    to_names,
)
from unified_embeddings.stores.edge.selection import (
    Selector,
    find_existing,
    find_matching,
    find_protected,
    parse_selector,
    require_existing,
)
from unified_embeddings.stores.edge.translation import (
    PointId,
    argument_errors,
    to_core_member,
    to_vector_selector,
)
from unified_embeddings.stores.edge.vectors import approximate_bytes, unwrap_unnamed

_IDS_PER_WRITE = 100_000
"""Ids in one deletion: it holds the interpreter for some tens of milliseconds."""
_ID_BYTES = 40
"""About what an id takes in the core's log: a UUID's text."""


class PointWriting(ClientPart):
    """The methods that write points."""

    def upsert(
        self,
        collection_name: str,
        points: qm.Batch | Sequence[qm.PointStruct],
        wait: bool = True,
        ordering: qm.WriteOrdering | None = None,
        shard_key_selector: qm.ShardKeySelector | None = None,
        update_filter: qm.Filter | None = None,
        update_mode: qm.UpdateMode | None = None,
        timeout: int | None = None,
    ) -> qm.UpdateResult:
        """Store points; a point with the same id is replaced.

        Args:
            collection_name: Where to store them.
            points: The points; none is stored if one of them cannot be.
            wait: Every write is waited for.
            ordering: Every write is ordered.
            shard_key_selector: Only for a server.
            update_filter: Replace only points that match.
            update_mode: Store only new points, or only those that exist.
            timeout: Nothing is waited for.

        Raises:
            InputError: If a point cannot be stored; its `index` says which.
            StoreError: If it cannot be written.
        """
        refuse_server_options("upsert", shard_key_selector=shard_key_selector)
        check_timeout(timeout)
        condition = to_core_filter(update_filter)
        mode = None
        if update_mode is not None:
            mode = to_core_member(core.UpdateMode, update_mode)
        with self._store.writing(collection_name) as (shard, settings):
            core_points = to_core_points(points, settings)
            protected = find_protected(shard, list(core_points), condition)
            stored = [item for key, item in core_points.items() if key not in protected]
            for piece, size in split_into_pieces(stored):
                update = core.UpdateOperation.upsert_points(piece, None, mode)
                shard.write("storing points", update, size=size)
        return self._completed()

    def update_vectors(
        self,
        collection_name: str,
        points: Sequence[qm.PointVectors],
        wait: bool = True,
        ordering: qm.WriteOrdering | None = None,
        shard_key_selector: qm.ShardKeySelector | None = None,
        update_filter: qm.Filter | None = None,
        timeout: int | None = None,
    ) -> qm.UpdateResult:
        """Replace the vectors given; a point keeps its other vectors and its payload.

        Raises:
            InputError: If a vector cannot be stored, and nothing is. If a point does not exist; the
                others are updated by then.
            StoreError: If it cannot be written.
        """
        refuse_server_options("update_vectors", shard_key_selector=shard_key_selector)
        check_timeout(timeout)
        condition = to_core_filter(update_filter)
        with self._store.writing(collection_name) as (shard, settings):
            new_vectors = to_core_point_vectors(points, settings)
            existing = find_existing(shard, list(new_vectors))
            protected = find_protected(shard, list(new_vectors), condition)
            sized_points: list[tuple[CorePoint, int]] = []
            for point_id, vectors in new_vectors.items():
                if point_id in existing and point_id not in protected:
                    core_point = core.PointVectors(point_id, unwrap_unnamed(vectors))
                    sized_points.append((core_point, approximate_bytes(vectors)))
            for piece, size in split_into_pieces(sized_points):
                update = core.UpdateOperation.update_vectors(piece)
                shard.write("updating vectors", update, size=size)
        require_existing(new_vectors, existing)
        return self._completed()

    def delete_vectors(
        self,
        collection_name: str,
        vectors: Sequence[str],
        points: Selector,
        wait: bool = True,
        ordering: qm.WriteOrdering | None = None,
        shard_key_selector: qm.ShardKeySelector | None = None,
        timeout: int | None = None,
    ) -> qm.UpdateResult:
        """Remove vectors from points by name.

        Raises:
            InputError: If there is no such vector. If a point does not exist; the others are
                changed by then.
            StoreError: If it cannot be written.
        """
        refuse_server_options("delete_vectors", shard_key_selector=shard_key_selector)
        check_timeout(timeout)
        _, settings = self._store.collection(collection_name)
        names = to_vector_selector(to_names(vectors, "vectors"), settings)
        if not names:
            raise InputError("there are no vectors to delete")
        return self._update_selected(
            collection_name,
            "deleting vectors",
            points,
            lambda point_ids: core.UpdateOperation.delete_vectors(point_ids, names),
        )

    def delete(
        self,
        collection_name: str,
        points_selector: Selector,
        wait: bool = True,
        ordering: qm.WriteOrdering | None = None,
        shard_key_selector: qm.ShardKeySelector | None = None,
        timeout: int | None = None,
    ) -> qm.UpdateResult:
        """Delete points by ids or by a filter; ids that do not exist are no error.

        Raises:
            InputError: If the list of ids is empty.
            StoreError: If it cannot be written.
        """
        refuse_server_options("delete", shard_key_selector=shard_key_selector)
        check_timeout(timeout)
        point_ids, condition = parse_selector(points_selector)
        with self._store.writing(collection_name) as (shard, _):
            if point_ids is None:
                point_ids = find_matching(shard, condition)
            for start in range(0, len(point_ids), _IDS_PER_WRITE):
                piece = point_ids[start : start + _IDS_PER_WRITE]
                update = core.UpdateOperation.delete_points(piece)
                shard.write("deleting points", update, size=_ID_BYTES * len(piece))
        return self._completed()

    def set_payload(
        self,
        collection_name: str,
        payload: dict[str, Any],
        points: Selector,
        key: str | None = None,
        wait: bool = True,
        ordering: qm.WriteOrdering | None = None,
        shard_key_selector: qm.ShardKeySelector | None = None,
        timeout: int | None = None,
    ) -> qm.UpdateResult:
        """Merge fields into the payload of points, at `key` if it is given.

        Raises:
            InputError: If the payload is not valid JSON. If an id does not exist; the others are
                changed by then.
            StoreError: If it cannot be written.
        """
        refuse_server_options("set_payload", shard_key_selector=shard_key_selector)
        check_timeout(timeout)
        if key is not None and not isinstance(key, str):
            raise InputError(f"key must be a JSON path such as 'a.b', got {key!r:.80}")
        above = 0 if key is None else path_depth(key)
        content, size = to_json_payload(payload, above=above)
        return self._update_selected(
            collection_name,
            "setting payload",
            points,
            lambda point_ids: core.UpdateOperation.set_payload(point_ids, content, key),
            size=size,
            # A null removes its field, but the core keeps it where the payload was cleared before.
            removed=_find_nulls(payload) if key is None else [],
        )

    def overwrite_payload(
        self,
        collection_name: str,
        payload: dict[str, Any],
        points: Selector,
        wait: bool = True,
        ordering: qm.WriteOrdering | None = None,
        shard_key_selector: qm.ShardKeySelector | None = None,
        timeout: int | None = None,
    ) -> qm.UpdateResult:
        """Replace the whole payload of points; see `set_payload`."""
        refuse_server_options("overwrite_payload", shard_key_selector=shard_key_selector)
        check_timeout(timeout)
        content, size = to_json_payload(payload)
        return self._update_selected(
            collection_name,
            "overwriting payload",
            points,
            lambda point_ids: core.UpdateOperation.overwrite_payload(point_ids, content),
            size=size,
        )

    def delete_payload(
        self,
        collection_name: str,
        keys: Sequence[str],
        points: Selector,
        wait: bool = True,
        ordering: qm.WriteOrdering | None = None,
        shard_key_selector: qm.ShardKeySelector | None = None,
        timeout: int | None = None,
    ) -> qm.UpdateResult:
        """Remove fields from the payload of points; see `set_payload`."""
        refuse_server_options("delete_payload", shard_key_selector=shard_key_selector)
        check_timeout(timeout)
        names = to_names(keys, "keys")
        return self._update_selected(
            collection_name,
            "deleting payload",
            points,
            lambda point_ids: core.UpdateOperation.delete_payload(point_ids, names),
        )

    def clear_payload(
        self,
        collection_name: str,
        points_selector: Selector,
        wait: bool = True,
        ordering: qm.WriteOrdering | None = None,
        shard_key_selector: qm.ShardKeySelector | None = None,
        timeout: int | None = None,
    ) -> qm.UpdateResult:
        """Remove the whole payload of points; see `set_payload`."""
        refuse_server_options("clear_payload", shard_key_selector=shard_key_selector)
        check_timeout(timeout)
        return self._update_selected(
            collection_name,
            "clearing payload",
            points_selector,
            core.UpdateOperation.clear_payload,
        )

    # --- inside ---------------------------------------------------------------------------------

    def _update_selected(
        self,
        collection_name: str,
        operation: str,
        selector: Selector,
        make_update: Callable[[list[PointId]], CoreUpdate],
        *,
        size: int = 0,
        removed: Sequence[str] = (),
    ) -> qm.UpdateResult:
        """Apply one of the core's operations to the points selected, some at a time.

        Args:
            collection_name: The collection that holds them.
            operation: What is being done, for messages.
            selector: Which points.
            make_update: Makes the core's operation for some ids.
            size: About how many bytes the operation adds to each point.
            removed: Fields that are removed from the same points afterwards.

        Raises:
            InputError: If the operation cannot be made. If a selected id does not exist; the others
                are changed by then, as a server does it.
            StoreError: If it cannot be written.
        """
        selected_ids, condition = parse_selector(selector)
        with self._store.writing(collection_name) as (shard, _):
            if selected_ids is None:
                selected_ids = find_matching(shard, condition)
                existing = set(selected_ids)
            else:
                existing = find_existing(shard, selected_ids)
            sized_ids = [(point_id, size) for point_id in selected_ids if point_id in existing]
            for piece, piece_size in split_into_pieces(sized_ids):
                with argument_errors(operation):
                    update = make_update(piece)
                shard.write(operation, update, size=piece_size)
                if removed:
                    shard.write(operation, core.UpdateOperation.delete_payload(piece, [*removed]))
        require_existing(selected_ids, existing)
        return self._completed()


def _find_nulls(payload: Mapping[str, object]) -> list[str]:
    """Return the fields that are null, as paths: names are quoted, since a dot would divide one."""
    names = [name for name, value in payload.items() if value is None]
    return [f'"{name}"' for name in names if '"' not in name]
