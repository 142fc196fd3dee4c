"""Points of the source into the target, while a writer may be at work on both.

What lives here: the steps that keep a live writer's word the last one. What does not: which points
are to be moved (`backfill` and `catch_up`).

A writer writes and deletes in the source first, then in the target. So:

- A missing point is inserted only where the target still lacks it: a newer one stays.
- After inserting, the ids are looked up in the source again, and those that are gone are removed
  from the target: they were deleted after they had been read.

What can still go wrong meanwhile (a point deleted and added again between two of these steps) is
found by the next comparison of both sides; see `catch_up`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from unified_embeddings.llama.layouts import SourceText, UnreadablePoint
from unified_embeddings.migration.embedding import Batch, Outcome, TextVectors, build_point
from unified_embeddings.migration.errors import MigrationError
from unified_embeddings.migration.journal import Journal
from unified_embeddings.migration.record import PointId
from unified_embeddings.migration.sides import Content, Sides

_UNEXPECTED = 100
"""Points without text beyond what the plan expected, before the migration stops to ask."""


class Transfer:
    """What moves points, counts them, and records those that cannot be embedded.

    Args:
        journal: Of the migration, open.
        sides: Its collections.
        accept_failed: Whether to go on though many more points have no text than the plan saw.

    Attributes:
        counters: Those of the record, and what was done since it was written.
    """

    def __init__(self, journal: Journal, sides: Sides, *, accept_failed: bool = False) -> None:
        self._journal = journal
        self._sides = sides
        self._accept_failed = accept_failed
        self._expected = _expected_failures(journal)
        self.counters = journal.record.counters

    def count(self, **changes: int) -> None:
        """Add to counters."""
        values = {name: getattr(self.counters, name) + more for name, more in changes.items()}
        self.counters = dataclasses.replace(self.counters, **values)

    def select(self, contents: Sequence[Content]) -> list[SourceText]:
        """Return those that have a text, and record the others.

        Raises:
            MigrationError: If many more have none than the plan expected.
        """
        failed = {
            content.point_id: content.problem
            for content in contents
            if isinstance(content, UnreadablePoint)
        }
        if failed:
            self._note_failed(failed)
        return [content for content in contents if isinstance(content, SourceText)]

    def store(
        self, batch: Batch, outcomes: Sequence[Outcome], *, insert_only: bool
    ) -> list[PointId]:
        """Write the points of a batch that has been embedded, and remove what is gone meanwhile.

        A point whose new text cannot be embedded is removed from the target: its vectors there are
        another text's.

        Returns:
            The ids of those that were written or removed.
        """
        points = []
        failed: dict[PointId, str] = {}
        for content, outcome in zip(batch.contents, outcomes, strict=True):
            if isinstance(outcome, TextVectors):
                points.append(build_point(content, outcome))
            else:
                failed[content.point_id] = outcome
        self._sides.target.write(points, insert_only=insert_only)
        point_ids = [content.point_id for content in batch.contents]
        gone = set(point_ids) - self._sides.source.existing(point_ids)
        outdated = [] if insert_only else list(failed)
        self._sides.target.remove([*gone, *outdated])
        problems: dict[PointId, str | None] = dict.fromkeys(point_ids, None)
        problems |= {point_id: text for point_id, text in failed.items() if point_id not in gone}
        self._journal.note_failed(problems)
        self.count(embedded=len(batch.contents), written=len(points), removed=len(gone))
        written = [content.point_id for content in batch.contents if content.point_id not in failed]
        return written + outdated

    def remove(self, point_ids: Sequence[PointId]) -> None:
        """Remove points from the target that the source does not have."""
        self._sides.target.remove(point_ids)
        self._journal.note_failed(dict.fromkeys(point_ids, None))
        self.count(removed=len(point_ids))

    def remove_outdated(self, point_ids: Sequence[PointId]) -> None:
        """Remove points from the target whose new content has no text."""
        self._sides.target.remove(point_ids)

    def _note_failed(self, failed: dict[PointId, str]) -> None:
        self._journal.note_failed(dict(failed))
        if self._accept_failed or len(self._journal.failed) <= self._expected:
            return
        example, problem = next(iter(failed.items()))
        raise MigrationError(
            f"{len(self._journal.failed)} points have no text that can be embedded, many more than "
            f"the plan found; the last is {example!r}: {problem}. If the layout of the payloads "
            "has changed, plan anew with --layout; if this is as it should be, continue with "
            "--accept-failed. What was written is kept"
        )


def _expected_failures(journal: Journal) -> int:
    """Return how many points may fail before it is surprising."""
    estimate = journal.record.estimate or {}
    planned = estimate.get("without_text", 0)
    points = estimate.get("points", 0)
    assert isinstance(planned, int)
    assert isinstance(points, int)
    return planned * 2 + max(_UNEXPECTED, points // 100)
