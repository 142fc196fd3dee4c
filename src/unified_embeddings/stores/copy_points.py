"""The points of a copy: read from the source in requests of bounded size, found in the target."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeAlias

from qdrant_client import models as qm

from unified_embeddings.errors import StoreError
from unified_embeddings.stores.errors import store_errors
from unified_embeddings.stores.opening import Client
from unified_embeddings.stores.schema import dense_vectors

PointId: TypeAlias = int | str

RESUME_HINT = "run the same copy again to resume"
_IDS_PER_PAGE = 1_000
_MULTI_VECTORS_PER_READ = 16
"""Qdrant lets each multi-vector hold 2**20 numbers, up to 24 MB as JSON."""


class PointReader:
    """Reads a collection's points in requests of bounded size.

    How many points fit into a request is learnt from those read before.

    Args:
        client: The source's client.
        name: The collection's name in the source.
        info: What the source reports about it.
        max_points: Maximum number of points in a request.
        max_bytes: Maximum size of a request as JSON; a larger point goes alone.
    """

    def __init__(
        self,
        client: Client,
        name: str,
        info: qm.CollectionInfo,
        *,
        max_points: int,
        max_bytes: int,
    ) -> None:
        self._client = client
        self._name = name
        self._max_points = max_points
        if any(params.multivector_config for params in dense_vectors(info).values()):
            self._max_points = min(max_points, _MULTI_VECTORS_PER_READ)
        self._max_bytes = max_bytes
        self._read_count = 1  # points of the next read
        self._largest_bytes = 1  # size of the largest point lately read

    def count(self) -> int:
        """Return the number of points in the source.

        Raises:
            StoreError: If the source cannot be read.
        """
        with store_errors(self._name, "reading the source"):
            return self._client.count(self._name, exact=True).count

    def id_pages(self) -> Iterator[list[PointId]]:
        """Yield the ids of all points, a page at a time.

        Raises:
            StoreError: If the source cannot be read.
        """
        offset = None
        while True:
            with store_errors(self._name, f"reading the source ({RESUME_HINT})"):
                records, offset = self._client.scroll(
                    self._name,
                    limit=_IDS_PER_PAGE,
                    offset=offset,
                    with_payload=False,
                    with_vectors=False,
                )
            yield [plain_id(record.id) for record in records]
            if offset is None:
                return

    def requests(self, point_ids: Sequence[PointId]) -> Iterator[list[qm.PointStruct]]:
        """Yield the points with these ids in lists to send; ids deleted meanwhile are left out.

        Raises:
            StoreError: If the source cannot be read.
        """
        remaining = list(point_ids)
        while remaining:
            with store_errors(self._name, f"reading the source ({RESUME_HINT})"):
                records = self._client.retrieve(
                    self._name, remaining[: self._read_count], with_payload=True, with_vectors=True
                )
            remaining = remaining[self._read_count :]
            yield from self._split_by_size(records)
            self._adapt_read_count()

    def _split_by_size(self, records: Sequence[qm.Record]) -> Iterator[list[qm.PointStruct]]:
        request: list[qm.PointStruct] = []
        request_bytes = 0
        for record in records:
            # Not validated again: pydantic takes time, and loses a Ctrl-C that comes meanwhile.
            point = qm.PointStruct.model_construct(
                id=record.id, vector=record.vector or {}, payload=record.payload
            )
            point_bytes = len(point.model_dump_json().encode())
            self._largest_bytes = max(self._largest_bytes, point_bytes)
            if request and request_bytes + point_bytes > self._max_bytes:
                yield request
                request, request_bytes = [], 0
            request.append(point)
            request_bytes += point_bytes
        if request:
            yield request

    def _adapt_read_count(self) -> None:
        # At most doubled, since nothing is known about the points to come.
        fitting_count = self._max_bytes // self._largest_bytes
        self._read_count = max(1, min(self._max_points, 2 * self._read_count, fitting_count))
        # A large point is forgotten by halves, or all points after it would be read one by one.
        self._largest_bytes = max(1, self._largest_bytes // 2)


def find_existing(client: Client, name: str, point_ids: Sequence[PointId]) -> set[PointId]:
    """Return those of the ids that the target's collection holds.

    Raises:
        StoreError: If the target cannot be read.
    """
    if not point_ids:
        return set()
    with store_errors(name, f"reading the target ({RESUME_HINT})"):
        records = client.retrieve(name, point_ids, with_payload=False, with_vectors=False)
    return {plain_id(record.id) for record in records}


def check_arrived(target: Client, name: str, sent_ids: Sequence[PointId]) -> None:
    """Check that points just written are in the target.

    Raises:
        StoreError: If one is missing, or the target cannot be read.
    """
    existing = find_existing(target, name, sent_ids)
    missing_ids = [point_id for point_id in sent_ids if point_id not in existing]
    if missing_ids:
        raise StoreError(
            name,
            "checking the copy",
            f"{len(missing_ids)} of {len(sent_ids)} points just written are not in the target, the "
            f"first of them {missing_ids[0]!r}; {RESUME_HINT}",
        )


def plain_id(point_id: object) -> PointId:
    """Return an id in the form that all clients share; some give a UUID as an object."""
    if isinstance(point_id, int):
        return point_id
    return str(point_id)
