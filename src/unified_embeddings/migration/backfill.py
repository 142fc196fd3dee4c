"""The first pass of a migration, and the whole of it: every point of the source into the target.

What lives here: preparing the target, reading the source from where the last run stopped, and what
comes after another. What does not: comparing both sides afterwards (`catch_up`), and the steps that
protect a live writer's points (`transfer`).

To resume after any interruption, call `migrate_points` again. A batch is read, embedded, written
and then recorded; after a crash only the batches in hand are looked at again, and points of theirs
that had been written are not embedded again.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.errors import StoreError
from unified_embeddings.llama.layouts import SourceText
from unified_embeddings.migration.catch_up import catch_up
from unified_embeddings.migration.embedding import (
    Batch,
    Embedding,
    OpenEmbedding,
    in_process,
)
from unified_embeddings.migration.errors import MigrationError
from unified_embeddings.migration.journal import Journal, read_unrepaired
from unified_embeddings.migration.last_look import target_only
from unified_embeddings.migration.opening import check_alias_owner, check_model, check_source
from unified_embeddings.migration.record import MigrationRecord, PointId
from unified_embeddings.migration.sides import Page, Sides
from unified_embeddings.migration.states import require_transition
from unified_embeddings.migration.transfer import Transfer
from unified_embeddings.stores.aliases import read_aliases
from unified_embeddings.stores.copying import payload_indexes
from unified_embeddings.stores.creating import ensure_collection
from unified_embeddings.stores.errors import store_errors
from unified_embeddings.stores.opening import Client, is_local_mode, make_thread_safe
from unified_embeddings.validation import require_whole_number

DEFAULT_BATCH = 128
"""Points that are read, embedded and recorded together."""
_EXAMPLES = 3


def do_nothing(*_: object) -> None:
    """Stand for a callback of which nobody makes use."""


@dataclass(frozen=True)
class Watching:
    """What a caller wants to be told of, and to decide.

    Attributes:
        on_total: Called once with the number of points to go through.
        on_points: Called with the number of points just gone through.
        on_sweep: Called with the number of a comparison of both sides, and what it mended.
        check: Called between two batches, where work may stop; what it raises is raised.
    """

    on_total: Callable[[int], None] = do_nothing
    on_points: Callable[[int], None] = do_nothing
    on_sweep: Callable[[int, int], None] = do_nothing
    check: Callable[[], None] = do_nothing


def migrate_points(
    journal: Journal,
    client: Client,
    embedder: TextEmbedder,
    *,
    batch: int = DEFAULT_BATCH,
    open_embedding: OpenEmbedding | None = None,
    accept_failed: bool = False,
    discard_target_writes: bool = False,
    watching: Watching | None = None,
) -> None:
    """Copy every point of the source into the target, and what changes meanwhile.

    The state becomes "backfilling" and in the end "backfilled": at one moment both sides then held
    the same points. Call it again to resume, and also later, to copy what has changed since.

    Writers must write to both sides before this begins (see `DualWritingStore`), or stand still.

    Args:
        journal: Of the migration, open.
        client: Of the place of both collections.
        embedder: The new model's.
        batch: Points that are read, embedded and recorded together.
        open_embedding: Opens what embeds; None is the embedder in this process.
        accept_failed: Whether to go on though many more points have no text than the plan saw.
        discard_target_writes: Whether to go on after a rollback though writes since the switch have
            reached the target only: the source is the truth, so the target loses them.
        watching: What to tell the caller.

    Raises:
        MigrationError: If the source is gone or another, the target is not this migration's, or
            both sides do not come together since a writer writes to one of them only.
        FingerprintMismatchError: If the embedder is not the one that was planned.
        MigrationStateError: If the new side answers, or the migration is over.
        StoreError: If a side cannot be read or written; the disk may be full.
        JournalError: If the journal cannot be written.
    """
    require_whole_number("batch", batch)
    watching = watching or Watching()
    make_thread_safe(client)
    check_model(journal.record, embedder)
    require_transition(journal.record.state, "backfilling")
    check_alias_owner(client, journal.record)
    _refuse_switched(client, journal.record)
    _check_target_writes(journal, client, discard=discard_target_writes)
    _prepare_target(journal, client, embedder)
    sides = Sides(client, journal.record)
    transfer = Transfer(journal, sides, accept_failed=accept_failed)
    _remove_suspects(journal, sides)
    watching.on_total(sides.source.count())
    if not journal.record.copied:
        watching.on_points(journal.record.counters.read)
    try:
        with (open_embedding or partial(in_process, embedder))() as embedding:
            if not journal.record.copied:
                _FirstPass(journal, client, sides, transfer, watching, batch).run(embedding)
            catch_up(
                journal,
                sides,
                transfer,
                embedding,
                batch=batch,
                on_sweep=watching.on_sweep,
                check=watching.check,
                check_source=partial(check_source, client, journal.record),
            )
    except StoreError as error:
        with contextlib.suppress(StoreError):
            _explain(client, journal, error)
        raise
    journal.enter("backfilled", counters=transfer.counters)


def _explain(client: Client, journal: Journal, error: StoreError) -> None:
    """Say so in plain words if a store's error came of a source that is gone or replaced."""
    try:
        check_source(client, journal.record)
    except MigrationError as reason:
        raise reason from error


def _refuse_switched(client: Client, record: MigrationRecord) -> None:
    """Refuse to make a target that answers already like the source.

    Somebody may write to it by the alias, and what only the target holds would be removed.
    """
    with store_errors(record.alias, "reading the aliases"):
        owner = read_aliases(client).get(record.alias)
    if owner == record.target:
        raise MigrationError(
            f"the alias {record.alias!r} names {record.target!r} already, though the migration is "
            f"{record.state!r}: a cut-over was interrupted, or somebody switched the alias by "
            "hand. Nothing was copied. Run `migrate rollback` to let it name "
            f"{record.source!r} again, or `migrate cutover` to record the switch"
        )


def _check_target_writes(journal: Journal, client: Client, *, discard: bool) -> None:
    """Refuse to make the target like a source that lacks writes."""
    lacking = read_unrepaired(journal.folder, "source")
    if not lacking:
        if journal.record.state == "rolled_back" and not discard:
            _refuse_target_only(client, journal.record)
        return
    if discard:
        journal.note("discarded", side="source", writes=lacking)
        return
    raise MigrationError(
        f"{lacking} writes since the switch have reached {journal.record.target!r} only; copying "
        f"{journal.record.source!r} now would remove them there too. They are the events 'dirty' "
        "with the side 'source' in the journal's events.jsonl. Write them again, or decide to do "
        "without them, and then give --discard-target-writes"
    )


def _refuse_target_only(client: Client, record: MigrationRecord) -> None:
    """Refuse to remove what may have been written since the switch by somebody who was killed."""
    with store_errors(record.target, "reading the target"):
        if not client.collection_exists(record.target):
            return
    extra = target_only(Sides(client, record))
    if not extra:
        return
    examples = ", ".join(map(repr, extra[:_EXAMPLES]))
    raise MigrationError(
        f"{record.target!r} holds points that {record.source!r} lacks, such as {examples}: they "
        "were written after the switch and did not reach the old side, or they were deleted on the "
        "old side only. Copying now would remove them. Write them again if they are wanted, and "
        "then give --discard-target-writes"
    )


def _prepare_target(journal: Journal, client: Client, embedder: TextEmbedder) -> None:
    """Create the target, or check that the one that exists is this migration's."""
    record = journal.record
    source = check_source(client, record)
    with store_errors(record.target, "reading the target"):
        exists = client.collection_exists(record.target)
    if record.state == "planned" and exists:
        raise MigrationError(
            f"the target {record.target!r} exists already, and this migration has not made it: "
            "plan with another --target, or delete that collection"
        )
    # The state goes first: a target that exists from here on is this migration's.
    journal.enter("backfilling")
    if not exists and (record.copied or record.offset is not None):
        journal.note("target_gone", target=record.target)
        journal.update(copied=False, offset=None)
    ensure_collection(client, record.target, embedder)
    if is_local_mode(client):
        return
    with store_errors(record.target, "indexing the payload"), warnings.catch_warnings():
        existing = client.get_collection(record.target).payload_schema
        for field, index in payload_indexes(source, local=False).items():
            if field not in existing:
                client.create_payload_index(record.target, field, field_schema=index)


def _remove_suspects(journal: Journal, sides: Sides) -> None:
    """Remove the points whose vectors a verification found wrong; a sweep inserts them again."""
    suspects = journal.record.suspects
    if suspects:
        sides.target.remove(suspects)
        journal.update(suspects=())
        journal.note("removed_suspects", count=len(suspects))


@dataclass
class _Read:
    """A page on its way: where it ends, and whether it is in the target."""

    following: PointId | None
    points: int
    is_done: bool = False


class _FirstPass:
    """Every point that the source has, from where the last run stopped."""

    def __init__(
        self,
        journal: Journal,
        client: Client,
        sides: Sides,
        transfer: Transfer,
        watching: Watching,
        batch: int,
    ) -> None:
        self._journal = journal
        self._client = client
        self._sides = sides
        self._transfer = transfer
        self._watching = watching
        self._batch = batch
        self._pages: list[_Read] = []

    def run(self, embedding: Embedding) -> None:
        """Move the points, and record how far it has come after each batch."""
        for batch, outcomes in embedding.run(self._read(), self._watching.check):
            self._transfer.store(batch, outcomes, insert_only=True)
            assert isinstance(batch.key, _Read)
            batch.key.is_done = True
            self._record()

    def _read(self) -> Iterator[Batch]:
        """Yield what is to be embedded of each page; a page without is done at once."""
        offset = self._journal.record.offset
        while True:
            self._watching.check()
            check_source(self._client, self._journal.record)
            page = self._sides.source.page(offset, self._batch)
            read = _Read(following=page.following, points=len(page.points))
            self._pages.append(read)
            contents = self._select(page)
            if contents:
                yield Batch(contents=contents, key=read)
            else:
                read.is_done = True
                self._record()
            offset = page.following
            if offset is None:
                return

    def _select(self, page: Page) -> list[SourceText]:
        """Return the points of a page that the target lacks and that have a text."""
        existing = self._sides.target.existing(list(page.points))
        missing = {
            point_id: payload
            for point_id, payload in page.points.items()
            if point_id not in existing
        }
        self._transfer.count(already_there=len(existing))
        return self._transfer.select(self._sides.read(missing))

    def _record(self) -> None:
        """Record the pages that are done, up to the first one that is not."""
        while self._pages and self._pages[0].is_done:
            page = self._pages.pop(0)
            self._transfer.count(read=page.points)
            self._journal.update(
                offset=page.following,
                copied=page.following is None,
                counters=self._transfer.counters,
            )
            self._watching.on_points(page.points)
