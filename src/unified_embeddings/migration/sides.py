"""The two collections of a migration, point by point: read, compared, written.

What lives here: pages of points, what the target is to hold for a point, and how a page of both
sides differs. What does not: vectors (`embedding`), and in which order a migration does what
(`backfill`, `catch_up`).

A writer may be at work on both sides. It writes the old side first, so what the old side holds is
what counts.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qdrant_client import models as qm

from unified_embeddings.llama.layouts import PayloadReader, SourceText, UnreadablePoint
from unified_embeddings.migration.record import MigrationRecord, PointId
from unified_embeddings.stores.copy_points import plain_id
from unified_embeddings.stores.errors import store_errors
from unified_embeddings.stores.opening import Client, is_in_process

Content = SourceText | UnreadablePoint

_REQUEST_BYTES = 16 * 2**20
"""As JSON: half of what a Qdrant server accepts unless configured otherwise."""
_PAUSES = (0.02, 0.1, 0.4)
"""Seconds before a difference is looked at again: a writer may be between its two sides."""
_HINT = "run the same command again to resume"


@dataclass(frozen=True)
class Page:
    """Some points of one side, in the order of their ids.

    Attributes:
        points: Id → payload.
        following: Where the next page begins; None after the last.
    """

    points: Mapping[PointId, dict[str, Any]]
    following: PointId | None


@dataclass
class Differences:
    """How the target differs from what the source says it should hold.

    Attributes:
        missing: Points that the target lacks, as the source has them.
        changed: Points that the target holds with other payloads, as the source has them.
        extra: Ids that only the target has.
    """

    missing: list[Content] = field(default_factory=list)
    changed: list[Content] = field(default_factory=list)
    extra: list[PointId] = field(default_factory=list)

    @property
    def ids(self) -> list[PointId]:
        """Return the ids of all points that differ."""
        return [content.point_id for content in (*self.missing, *self.changed)] + self.extra

    def __len__(self) -> int:
        return len(self.missing) + len(self.changed) + len(self.extra)


class Collection:
    """One side of a migration.

    Args:
        client: Of its place.
        name: The collection's own name.
    """

    def __init__(self, client: Client, name: str) -> None:
        self.client = client
        self.name = name

    def count(self) -> int:
        """Return the number of points.

        Raises:
            StoreError: If it cannot be read.
        """
        with store_errors(self.name, f"counting ({_HINT})"):
            return self.client.count(self.name, exact=True).count

    def page(self, offset: PointId | None, limit: int) -> Page:
        """Return the points from an id on, with their payloads.

        Raises:
            StoreError: If it cannot be read.
        """
        with store_errors(self.name, f"reading ({_HINT})"):
            records, following = self.client.scroll(
                self.name, limit=limit, offset=offset, with_payload=True, with_vectors=False
            )
        points = {plain_id(record.id): record.payload or {} for record in records}
        return Page(points=points, following=None if following is None else plain_id(following))

    def pages(self, limit: int) -> Iterator[Page]:
        """Yield all points, page by page."""
        offset: PointId | None = None
        while True:
            page = self.page(offset, limit)
            yield page
            offset = page.following
            if offset is None:
                return

    def payloads_of(self, point_ids: Sequence[PointId]) -> dict[PointId, dict[str, Any]]:
        """Return the payloads of those of the ids that it has.

        Raises:
            StoreError: If it cannot be read.
        """
        if not point_ids:
            return {}
        with store_errors(self.name, f"reading ({_HINT})"):
            records = self.client.retrieve(
                self.name, point_ids, with_payload=True, with_vectors=False
            )
        return {plain_id(record.id): record.payload or {} for record in records}

    def existing(self, point_ids: Sequence[PointId]) -> set[PointId]:
        """Return those of the ids that it has.

        Raises:
            StoreError: If it cannot be read.
        """
        if not point_ids:
            return set()
        with store_errors(self.name, f"reading ({_HINT})"):
            records = self.client.retrieve(
                self.name, point_ids, with_payload=False, with_vectors=False
            )
        return {plain_id(record.id) for record in records}

    def write(self, points: Sequence[qm.PointStruct], *, insert_only: bool) -> None:
        """Write points; with `insert_only` those whose ids it has stay as they are.

        Raises:
            StoreError: If it refuses them, or the disk is full.
        """
        mode = qm.UpdateMode.INSERT_ONLY if insert_only else None
        for request in self._requests(points):
            with store_errors(self.name, f"writing ({_HINT})"):
                self.client.upsert(self.name, request, wait=True, update_mode=mode)

    def remove(self, point_ids: Sequence[PointId]) -> None:
        """Remove points; ids that it does not have are passed over.

        Raises:
            StoreError: If it refuses.
        """
        if not point_ids:
            return
        with store_errors(self.name, f"removing points ({_HINT})"):
            self.client.delete(
                self.name, points_selector=qm.PointIdsList(points=list(point_ids)), wait=True
            )

    def _requests(self, points: Sequence[qm.PointStruct]) -> Iterator[list[qm.PointStruct]]:
        """Yield the points in requests that a server accepts; one in this process takes all."""
        if is_in_process(self.client):
            if points:
                yield list(points)
            return
        request: list[qm.PointStruct] = []
        request_bytes = 0
        for point in points:
            size = len(point.model_dump_json().encode())
            if request and request_bytes + size > _REQUEST_BYTES:
                yield request
                request, request_bytes = [], 0
            request.append(point)
            request_bytes += size
        if request:
            yield request


class Sides:
    """Both collections of a migration.

    Args:
        client: Of their place.
        record: Names them and the layout of the source's payloads.
    """

    def __init__(self, client: Client, record: MigrationRecord) -> None:
        self.source = Collection(client, record.source)
        self.target = Collection(client, record.target)
        self._reader = PayloadReader(
            record.layout, text_key=record.text_key, metadata_key=record.metadata_key
        )

    def read(self, points: Mapping[PointId, Mapping[str, Any]]) -> list[Content]:
        """Return what the source's points hold, and what the target is to hold for them."""
        return [self._reader.read(point_id, payload) for point_id, payload in points.items()]

    def compare_source_page(self, page: Page, *, is_patient: bool = True) -> Differences:
        """Return how the target differs from a page of the source.

        Args:
            page: The source's.
            is_patient: Whether a difference counts only once it has been there for half a second: a
                writer may be between its two sides.

        Raises:
            StoreError: If a side cannot be read.
        """
        differences = self._compare(page.points)
        for pause in _PAUSES if is_patient else ():
            if not len(differences):
                break
            time.sleep(pause)
            differences = self._compare(self.source.payloads_of(differences.ids))
        return differences

    def compare_target_page(self, page: Page, *, is_patient: bool = True) -> list[PointId]:
        """Return the ids of a page of the target that the source does not have."""
        extra = self._without_source(page.points)
        for pause in _PAUSES if is_patient else ():
            if not extra:
                break
            time.sleep(pause)
            extra = self._without_source(self.target.existing(extra))
        return extra

    def _compare(self, points: Mapping[PointId, Mapping[str, Any]]) -> Differences:
        differences = Differences()
        in_target = self.target.payloads_of(list(points))
        for content in self.read(points):
            payload = in_target.get(content.point_id)
            if payload is None:
                differences.missing.append(content)
            elif isinstance(content, UnreadablePoint) or payload != content.payload:
                differences.changed.append(content)
        return differences

    def _without_source(self, point_ids: Iterable[PointId]) -> list[PointId]:
        wanted = list(point_ids)
        in_source = self.source.existing(wanted)
        return [point_id for point_id in wanted if point_id not in in_source]
