"""The points that a query names as examples: their vectors, here or in another collection."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from qdrant_client import models as qm

from unified_embeddings.errors import InputError
from unified_embeddings.stores.edge.core_types import CoreShard, CoreVector
from unified_embeddings.stores.edge.settings import Settings
from unified_embeddings.stores.edge.translation import (
    PointId,
    is_point_id,
    to_core_id,
    to_record,
    unsupported,
)
from unified_embeddings.stores.edge.vectors import to_core_vector

FindElsewhere: TypeAlias = Callable[[str, PointId], tuple[qm.Record | None, bool]]
"""Collection and id → the point there, if there is one, and whether it is the queried collection.
"""


@dataclass(frozen=True)
class Queried:
    """The collection that a query is about.

    Attributes:
        core_shard: Its points.
        settings: Its settings.
        find_elsewhere: Finds a point of another collection, for `lookup_from`.
    """

    core_shard: CoreShard
    settings: Settings
    find_elsewhere: FindElsewhere


class Examples:
    """Vectors of a query, given as numbers or as the ids of points that have them.

    Args:
        queried: The collection that the query is about.
        using: The name of the vectors to compare with; "" is the unnamed one.
        lookup: Where ids are looked up; None is the collection itself.

    Attributes:
        mentioned_ids: Ids of the collection's own points that were looked up. They are no answer.

    Raises:
        InputError: If the location names a shard.
    """

    def __init__(self, queried: Queried, using: str, lookup: qm.LookupLocation | None) -> None:
        if lookup is not None and lookup.shard_key is not None:
            raise unsupported("lookup_from.shard_key")
        self.mentioned_ids: list[PointId] = []
        self._queried = queried
        self._using = using
        self._lookup = lookup

    def raw_vector(self, example: Any) -> Any:
        """Return an example's vector as qdrant-client has it.

        Raises:
            InputError: If it is the id of a point that does not exist or lacks the vector, or is
                nothing that could be a vector.
        """
        if is_point_id(example):
            return self._look_up(to_core_id(example))
        if not isinstance(example, qm.SparseVector) and not hasattr(example, "__len__"):
            raise unsupported(f"the query {type(example).__name__}")
        return example

    def vector(self, example: Any) -> CoreVector:
        """Return an example's vector as the core takes it; see `raw_vector`.

        Raises:
            InputError: Also if the vector does not fit those that it is compared with.
        """
        return to_core_vector(self._using, self.raw_vector(example), self._queried.settings)

    def _look_up(self, point_id: PointId) -> Any:
        name, place = self._using, "the collection"
        if self._lookup is None:
            points = self._queried.core_shard.retrieve([point_id], False, True)  # only vectors
            record, is_own = (to_record(points[0]) if points else None), True
        else:
            name = name if self._lookup.vector is None else self._lookup.vector
            place = f"collection {self._lookup.collection!r}"
            record, is_own = self._queried.find_elsewhere(self._lookup.collection, point_id)
        if record is None:
            raise InputError(f"point {point_id!r} is not in {place}")
        vector: Any = record.vector
        if isinstance(vector, dict):
            vector = vector.get(name)
        elif name:
            vector = None
        if vector is None:
            raise InputError(f"point {point_id!r} of {place} has no vector named {name!r}")
        if is_own:
            self.mentioned_ids.append(point_id)
        return vector
