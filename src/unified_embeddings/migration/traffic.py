"""A migration's two sides as retrievers, and what the journal says about who answers.

What lives here: opening both sides, the share of a canary, and the reports of comparisons in the
journal. What does not: asking them (`retrievers.transition`), and deciding on it (`gate`).
"""

from __future__ import annotations

import shlex
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.errors import InputError, UnifiedEmbeddingsError
from unified_embeddings.llama.layouts import PayloadReader
from unified_embeddings.migration.adoption import adopt_collection
from unified_embeddings.migration.errors import MigrationError
from unified_embeddings.migration.journal import (
    Journal,
    append_event,
    read_again,
    read_events,
    read_record,
)
from unified_embeddings.migration.opening import check_model, open_model
from unified_embeddings.migration.probes import Layout
from unified_embeddings.migration.record import MigrationRecord
from unified_embeddings.migration.states import require_transition
from unified_embeddings.migration.versioned_retriever import VersionedRetriever
from unified_embeddings.retrievers.shares import require_share
from unified_embeddings.retrievers.transition import TransitionRetriever
from unified_embeddings.retrievers.transition_report import TransitionReport
from unified_embeddings.stores.errors import store_errors
from unified_embeddings.stores.opening import Client
from unified_embeddings.stores.schema import recorded_model

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from unified_embeddings.llama.stock_arguments import RetrieverOptions

_REPORT = "traffic_report"
"""The event under which a comparison of both sides is recorded."""
_READ_SECONDS = 1.0
"""How long a share that was read is used: a change reaches every process within a second."""


@dataclass(frozen=True)
class SidesToAsk:
    """Both sides of a migration, each over its own collection with its own model.

    Attributes:
        old: The source.
        new: The target.
    """

    old: VersionedRetriever
    new: VersionedRetriever


def open_sides(
    record: MigrationRecord,
    client: Client,
    old_embedder: TextEmbedder,
    new_embedder: TextEmbedder,
    **options: Unpack[RetrieverOptions],
) -> SidesToAsk:
    """Open both sides of a migration.

    Args:
        record: The migration's record.
        client: Client of its place.
        old_embedder: The embedder that made the source. A source that records its model is checked
            against it; one that does not is taken at your word.
        new_embedder: The new model's.
        **options: Those of `UnifiedHybridRetriever`, for both sides.

    Raises:
        FingerprintMismatchError: If the new embedder is not the migration's.
        InputError: If an option is out of range.
    """
    check_model(record, new_embedder)
    reader = None
    if record.layout != "llama_index":
        reader = PayloadReader(
            record.layout, text_key=record.text_key, metadata_key=record.metadata_key
        )
    old = VersionedRetriever(
        client,
        record.source,
        [old_embedder],
        known={record.source: old_embedder},
        readers={} if reader is None else {record.source: reader},
        **options,
    )
    return SidesToAsk(
        old=old, new=VersionedRetriever(client, record.target, [new_embedder], **options)
    )


def prove_source(record: MigrationRecord, client: Client, embedder: TextEmbedder) -> None:
    """Refuse an embedder that did not make a source which records no model.

    The answers of another model would be worse than the old side's, and the new side look better.

    Raises:
        MigrationError: If it cannot be proved; the message has the measured cosine.
        StoreError: If the source cannot be read, or its vectors have another dimension.
    """
    with store_errors(record.source, "reading the source"):
        info = client.get_collection(record.source)
    if recorded_model(info) is not None:
        return  # whoever asks it is checked against that
    layout = Layout(record.layout, text_key=record.text_key, metadata_key=record.metadata_key)
    report = adopt_collection(client, record.source, embedder, layout=layout, record=False)
    if not report.is_accepted:
        raise MigrationError(
            f"the old collection {record.source!r} does not record its model, and it is not proved "
            f"to be {embedder.model_name!r}: {report.reason}. Name the model that made it; if you "
            "know that this one did, record it: unified-embeddings adopt "
            f"{shlex.quote(record.source)} --trust"
        )


def open_transition(
    folder: Path | str,
    client: Client,
    old_embedder: TextEmbedder,
    *,
    new_embedder: TextEmbedder | None = None,
    retriever_options: RetrieverOptions | None = None,
    **options: Any,
) -> TransitionRetriever:
    """Return a retriever for an application that follows a migration from shadow to its end.

    Who answers is read from the journal, at most once a second: the old side until the canary,
    then the canary's share from the new side, after the cut-over the new side, and after a rollback
    the old side again. Both are compared all along, unless `shadow=False`.

    Args:
        folder: The migration's journal.
        client: Client of its place.
        old_embedder: The embedder that made the source.
        new_embedder: The new model's; None makes the one that the journal names.
        retriever_options: Options of `UnifiedHybridRetriever`, for both sides.
        **options: Those of `TransitionRetriever` but `share`.

    Raises:
        JournalError: If the folder holds no migration.
        FingerprintMismatchError: If the new embedder is not the migration's.
        InputError: If an option is out of range.

    Example:
        >>> from unified_embeddings.migration.traffic import open_transition
        >>> retriever = open_transition(    # doctest: +SKIP
        ...     "migrations/docs", client, old.embedder, callback_manager=None
        ... )
        >>> engine = RetrieverQueryEngine.from_args(retriever)    # doctest: +SKIP
    """
    folder = Path(folder)
    record = read_record(folder)
    if new_embedder is None:
        new_embedder = open_model(record).embedder
    sides = open_sides(record, client, old_embedder, new_embedder, **(retriever_options or {}))
    return TransitionRetriever(sides.old, sides.new, share=JournalShare(folder), **options)


class JournalShare:
    """The share of the questions that the new side answers, as a migration's journal says.

    It is 0 until the canary and after a rollback, the canary's share during it, and 1 after the
    cut-over. The journal is read at most once a second. If it cannot be read, or holds another
    migration by now, the last share is kept.

    Args:
        folder: The migration's journal.

    Raises:
        JournalError: If the folder holds no migration.
    """

    def __init__(self, folder: Path | str) -> None:
        self._folder = Path(folder)
        self._lock = threading.Lock()
        self._record = read_record(self._folder)
        self._share = share_of(self._record)
        self._read = time.monotonic()

    def __call__(self) -> float:
        """Return the share."""
        with self._lock:
            now = time.monotonic()
            if now - self._read >= _READ_SECONDS:
                self._read = now
                try:
                    self._share = share_of(read_again(self._folder, self._record))
                except UnifiedEmbeddingsError:
                    # Answering goes on as before: a shared disk may be away for a while.
                    return self._share
            return self._share


def share_of(record: MigrationRecord) -> float:
    """Return the share of the questions that the new side is to answer."""
    if record.serving == "target":
        return 1.0
    share = record.traffic.get("share")
    if record.state == "canary" and isinstance(share, int | float):
        return float(share)
    return 0.0


def set_share(journal: Journal, share: float) -> None:
    """Let the new side answer a share of the questions: enter the canary, or change its share.

    Raises:
        InputError: If it is not from 0 to 1.
        MigrationStateError: If the migration's state does not allow a canary.
        JournalError: If it cannot be written.
    """
    share = require_share(share)
    journal.enter("canary", traffic={**journal.record.traffic, "share": share})
    journal.note("share", share=share)


def record_report(folder: Path | str, report: TransitionReport) -> None:
    """Record a comparison of both sides in a migration's journal, where the gate finds the latest.

    It needs no lock, so that an application can do it while a command works on the migration.

    Raises:
        JournalError: If it cannot be written.
    """
    append_event(Path(folder), _REPORT, **report.to_dict())


def enter_shadow(journal: Journal) -> None:
    """Enter the shadow, unless the canary has begun, which compares as well.

    Raises:
        MigrationStateError: If the migration's state does not allow it.
        JournalError: If it cannot be written.
    """
    if journal.record.state != "canary":
        journal.enter("shadow")


def require_comparable(record: MigrationRecord) -> None:
    """Refuse a comparison in a state in which the new side is not complete.

    Raises:
        MigrationStateError: If it is not.
    """
    if record.state != "canary":
        require_transition(record.state, "shadow")


def latest_report(folder: Path | str) -> TransitionReport | None:
    """Return the latest comparison in a migration's journal; None if there is none.

    Raises:
        JournalError: If it cannot be read.
        MigrationError: If it is damaged.
    """
    latest: Mapping[str, object] | None = None
    for event in read_events(Path(folder)):
        if event.event == _REPORT:
            latest = event.facts
    if latest is None:
        return None
    try:
        return TransitionReport.from_dict(latest)
    except InputError as error:
        raise MigrationError(
            f"the latest comparison in {folder} cannot be read: {error}. Compare again "
            "(`migrate shadow`)"
        ) from error
