"""Both sides compared page by page, and the target mended, until there is nothing to mend.

What lives here: the sweeps. What does not: the comparison itself (`sides`), and writing
(`transfer`).

A sweep that mends something may itself have written an outdated text: a writer may have changed the
point between reading and writing. So another one follows. A sweep that finds nothing writes
nothing: each page was then equal on both sides at some moment, and from that moment on the writers,
who write to both, keep it equal.
"""

from __future__ import annotations

from collections.abc import Callable

from unified_embeddings.llama.layouts import UnreadablePoint
from unified_embeddings.migration.embedding import Batch, Embedding
from unified_embeddings.migration.errors import MigrationError
from unified_embeddings.migration.journal import Journal
from unified_embeddings.migration.record import PointId
from unified_embeddings.migration.sides import Content, Sides
from unified_embeddings.migration.transfer import Transfer

MOST_SWEEPS = 12
"""Sweeps after which a writer counts as writing to one side only."""
_EXAMPLES = 3


def catch_up(
    journal: Journal,
    sides: Sides,
    transfer: Transfer,
    embedding: Embedding,
    *,
    batch: int,
    on_sweep: Callable[[int, int], None],
    check: Callable[[], None],
    check_source: Callable[[], object],
) -> None:
    """Compare and mend until both sides are equal, but for points that cannot be embedded.

    Args:
        journal: Of the migration, open.
        sides: Its collections.
        transfer: What moves points.
        embedding: What embeds.
        batch: Points of a page.
        on_sweep: Called with the number of each sweep, from 1, and what it mended.
        check: Called between two pages; what it raises is raised.
        check_source: Called before each page; raises if the source is not what it was.

    Raises:
        MigrationError: If they do not become equal.
    """
    sweeper = _Sweeper(journal, sides, transfer, embedding, batch, check, check_source)
    for number in range(1, MOST_SWEEPS + 1):
        journal.note("sweeping", number=number)
        mended = sweeper.sweep(is_patient=number > 1)
        transfer.count(sweeps=1)
        journal.update(counters=transfer.counters)
        journal.note("swept", number=number, mended=len(mended))
        on_sweep(number, len(mended))
        if not mended:
            return
    examples = ", ".join(map(repr, mended[:_EXAMPLES]))
    raise MigrationError(
        f"after {MOST_SWEEPS} comparisons the two sides still differ, lately in {len(mended)} "
        f"points such as {examples}: something writes to {journal.record.source!r} only. Let every "
        "application that writes use the dual-writing store, or stop it for the rest of the "
        "migration, and run the same command again"
    )


class _Sweeper:
    def __init__(
        self,
        journal: Journal,
        sides: Sides,
        transfer: Transfer,
        embedding: Embedding,
        batch: int,
        check: Callable[[], None],
        check_source: Callable[[], object],
    ) -> None:
        self._journal = journal
        self._sides = sides
        self._transfer = transfer
        self._embedding = embedding
        self._batch = batch
        self._check = check
        self._check_source = check_source
        self._tried: dict[PointId, Content] = {}

    def sweep(self, *, is_patient: bool) -> list[PointId]:
        """Compare all points once; return the ids of those that were mended.

        The first sweep may have much to mend, and waits for no writer: a point that is mended for
        nothing only costs a further sweep.
        """
        mended: list[PointId] = []
        for page in self._sides.source.pages(self._batch):
            self._check()
            self._check_source()
            differences = self._sides.compare_source_page(page, is_patient=is_patient)
            mended += self._mend(differences.missing, insert_only=True)
            mended += self._mend(differences.changed, insert_only=False)
        for page in self._sides.target.pages(self._batch):
            self._check()
            self._check_source()
            extra = self._sides.compare_target_page(page, is_patient=is_patient)
            if extra:
                self._transfer.remove(extra)
                mended += extra
        return mended

    def _mend(self, contents: list[Content], *, insert_only: bool) -> list[PointId]:
        """Move points; return the ids of those that were written or removed for it."""
        if insert_only:
            # What failed in this run and is still the same would fail again.
            contents = [
                content for content in contents if self._tried.get(content.point_id) != content
            ]
        mended: list[PointId] = []
        texts = self._transfer.select(contents)
        if not insert_only:
            textless = [
                content.point_id for content in contents if isinstance(content, UnreadablePoint)
            ]
            self._transfer.remove_outdated(textless)
            mended += textless
        if texts:
            for batch, outcomes in self._embedding.run([Batch(contents=texts)], self._check):
                mended += self._transfer.store(batch, outcomes, insert_only=insert_only)
        for content in contents:
            if content.point_id in self._journal.failed:
                self._tried[content.point_id] = content
        self._transfer.count(repaired=len(mended))
        return mended
