"""A LlamaIndex vector store that writes to the old and the new collection of a migration.

What lives here: the order of the two writes, what the failure of one means, and which side answers.
What does not: the target's points (`dual_target`), and mending what a failure has left
(`catch_up`).

The side that serves, the source until cut-over and then the target, is written first, and its
errors are the caller's. An error of the other side is counted and recorded as the event "dirty",
which `migrate start` mends and `migrate verify` reports.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.schema import BaseNode
from llama_index.core.vector_stores.types import (
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryResult,
)
from llama_index.vector_stores.qdrant import QdrantVectorStore

from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.errors import InputError
from unified_embeddings.llama.fingerprinted_store import FingerprintedStore
from unified_embeddings.llama.vector_store import build_vector_store
from unified_embeddings.migration.brought_vectors import BroughtVectors
from unified_embeddings.migration.dual_target import TargetWriter, stored_payloads
from unified_embeddings.migration.journal import JournalError, append_event, read_again, read_record
from unified_embeddings.migration.opening import check_model, open_model
from unified_embeddings.migration.record import MigrationRecord, Side
from unified_embeddings.migration.sides import Collection
from unified_embeddings.stores.clearing import clear_collection
from unified_embeddings.stores.errors import store_errors
from unified_embeddings.stores.opening import Client, make_thread_safe

_LOG = logging.getLogger(__name__)
_IDS_RECORDED = 20


class DualWritingStore(QdrantVectorStore):
    """A QdrantVectorStore over both collections of a migration.

    Use it in place of the old store from before the backfill until the migration is retired. The
    nodes that are added, and the queries, bring embeddings of one model, which `brings` names; the
    other side's are made here, from the texts. Until the backfill has begun only the source is
    written, and after the migration was retired only the target.

    In one process the two writes of a call are not interleaved with those of another. Writers in
    several processes that change the same node at once can leave two versions of it, which the next
    `migrate start` mends.

    Args:
        source: The old collection's store. It may be opened by the alias.
        folder: The migration's journal.
        embedder: The new model's; None makes the one that the journal names.
        brings: Whose embeddings callers bring: "source" while the application embeds with the old
            model, "target" once it embeds with the new one.
        source_model: The old model, to embed for the source where callers bring the target's.

    Attributes:
        failures: How many writes of the side that does not serve have failed.

    Raises:
        InputError: If the source has no sync client, or `source_model` is needed and missing.
        JournalError: If the folder holds no migration.
        FingerprintMismatchError: If the embedder is not the migration's.

    Example:
        >>> from llama_index.vector_stores.qdrant import QdrantVectorStore
        >>> from unified_embeddings.migration.dual_store import DualWritingStore
        >>> old = QdrantVectorStore("docs", client=client)              # doctest: +SKIP
        >>> store = DualWritingStore(old, "migrations/docs")            # doctest: +SKIP
        >>> index = VectorStoreIndex.from_vector_store(store)           # doctest: +SKIP
    """

    _source: QdrantVectorStore = PrivateAttr()
    _target: FingerprintedStore | None = PrivateAttr()
    _writer: TargetWriter = PrivateAttr()
    _folder: Path = PrivateAttr()
    _record: MigrationRecord = PrivateAttr()
    _brought: BroughtVectors = PrivateAttr()
    _lock: threading.RLock = PrivateAttr()
    _failures: dict[Side, int] = PrivateAttr()

    def __init__(
        self,
        source: QdrantVectorStore,
        folder: Path | str,
        *,
        embedder: TextEmbedder | None = None,
        brings: Side = "source",
        source_model: BaseEmbedding | None = None,
    ) -> None:
        record = read_record(Path(folder))
        _check_source(source, record)
        if embedder is None:
            embedder = open_model(record).embedder
        check_model(record, embedder)
        brought = BroughtVectors(brings, embedder, source_model)
        client = cast("Client", source.client)
        make_thread_safe(client)
        # The alias names another collection one day; the source is always the source.
        source = source.model_copy(update={"collection_name": record.source})
        super().__init__(
            collection_name=record.source,
            client=source.client,
            aclient=source._aclient,
            batch_size=source.batch_size,
            dense_vector_name=source.dense_vector_name,
            sparse_vector_name=source.sparse_vector_name,
        )
        self.enable_hybrid = source.enable_hybrid
        self._source = source
        self._target = None
        self._writer = TargetWriter(client, record, embedder)
        self._folder = Path(folder)
        self._record = record
        self._brought = brought
        self._lock = threading.RLock()
        self._failures = {"source": 0, "target": 0}

    @property
    def failures(self) -> int:
        """Return how many writes of the side that does not serve have failed."""
        return sum(self._failures.values())

    # --- writing --------------------------------------------------------------------------------

    def add(
        self,
        nodes: Sequence[BaseNode],
        shard_identifier: object = None,
        **kwargs: Any,
    ) -> list[str]:
        """Store nodes on both sides, and return their ids.

        Raises:
            Exception: What the side raises that serves; nothing is written to the other then.
        """
        added = list(nodes)
        ids = [node.node_id for node in added]
        prepare = partial(self._writer.prepare, stored_payloads(self._source, added))
        record = self._read_record()
        prepared = None
        problem: Exception | None = None
        if added and self._writes(record, "target"):
            # Outside the lock: embedding takes most of the time.
            prepared, problem = _attempt(prepare)
            if problem is not None and record.serving == "target":
                raise problem

        def to_source() -> None:
            self._source.add(
                self._brought.nodes_for_source(added), shard_identifier=shard_identifier, **kwargs
            )

        def to_target() -> None:
            if problem is not None:
                raise problem
            if prepared is None:
                # The backfill began after this call did.
                self._writer.write(prepare())
            else:
                self._writer.write(prepared)

        self._write_both("add", ids, to_source, to_target)
        return ids

    def delete(self, ref_doc_id: str, shard_identifier: object = None, **kwargs: Any) -> None:
        """Delete the nodes of a document on both sides."""

        def from_source() -> None:
            self._source.delete(ref_doc_id, shard_identifier=shard_identifier, **kwargs)

        self._write_both(
            "delete",
            [],
            from_source,
            lambda: self._open_target().delete(ref_doc_id),
            document=ref_doc_id,
        )

    def delete_nodes(
        self,
        node_ids: list[str] | None = None,
        filters: MetadataFilters | None = None,
        shard_identifier: object = None,
        **kwargs: Any,
    ) -> None:
        """Delete nodes on both sides: those that the store of the side that serves deletes."""
        source, target = self._source, self._writer.collection
        first = Collection(target.client, source.collection_name)

        def from_source() -> None:
            if self._read_record().serving == "target":
                self._writer.delete_like(target, first, node_ids, filters)
                return
            source.delete_nodes(node_ids, filters, shard_identifier=shard_identifier, **kwargs)

        def from_target() -> None:
            if self._read_record().serving == "target":
                self._open_target().delete_nodes(node_ids, filters)
                return
            self._writer.delete_like(first, target, node_ids, filters)

        self._write_both("delete_nodes", list(node_ids or ()), from_source, from_target)

    def clear(self) -> None:
        """Delete all nodes on both sides; both collections stay, and the alias with them."""
        client = cast("Client", self._source.client)

        def empty(name: str) -> None:
            with store_errors(name, "clearing"):
                clear_collection(client, name)

        record = self._read_record()
        self._write_both("clear", [], partial(empty, record.source), partial(empty, record.target))

    def _write_both(
        self,
        operation: str,
        ids: Sequence[str],
        to_source: Callable[[], None],
        to_target: Callable[[], None],
        **facts: object,
    ) -> None:
        """Write to the side that serves, then to the other one, whose errors are recorded."""
        writes: dict[Side, Callable[[], None]] = {"source": to_source, "target": to_target}
        with self._lock:
            record = self._read_record()
            other: Side = "source" if record.serving == "target" else "target"
            writes[record.serving]()
            if not self._writes(record, other):
                return
            _, problem = _attempt(writes[other])
        # Until the backfill has made the target there is nothing that could lack the write.
        if problem is not None and (other == "source" or self._target_exists()):
            self._note_dirty(other, operation, ids, problem, facts)

    @staticmethod
    def _writes(record: MigrationRecord, side: Side) -> bool:
        """Tell whether a side is written: the target once there is one, the source while it is."""
        if side == "target":
            return record.state != "planned"
        return record.state != "retired"

    def _target_exists(self) -> bool:
        exists, _ = _attempt(
            partial(self._writer.collection.client.collection_exists, self._writer.collection.name)
        )
        return exists is not False

    def _note_dirty(
        self,
        side: Side,
        operation: str,
        ids: Sequence[str],
        problem: Exception,
        facts: dict[str, object],
    ) -> None:
        """Count and record that a side lacks a write; nothing here fails the caller's call."""
        self._failures[side] += 1
        words = f"{type(problem).__name__}: {problem}"
        _LOG.warning(
            "Migration of %r: %s was written to the other side, but not to the %s: %s. "
            "`migrate start` mends it.",
            self._writer.alias,
            operation,
            side,
            words,
        )
        try:
            append_event(
                self._folder,
                "dirty",
                side=side,
                operation=operation,
                ids=list(ids[:_IDS_RECORDED]),
                count=len(ids),
                problem=words[:500],
                **facts,
            )
        except JournalError as error:
            _LOG.warning("The journal does not know of it: %s", error)

    # --- reading --------------------------------------------------------------------------------

    def query(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """Search the side that serves, with a vector of its own model.

        Raises:
            InputError: If the query brings the other side's vector, and no text to embed.
        """
        side = self._read_record().serving
        store = self._store_of(side)
        return store.query(self._brought.query_for(query, side), **kwargs)

    async def aquery(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """Like `query`, but without blocking the event loop."""
        return await asyncio.to_thread(self.query, query, **kwargs)

    def get_nodes(
        self,
        node_ids: list[str] | None = None,
        filters: MetadataFilters | None = None,
        limit: int | None = None,
        shard_identifier: object = None,
    ) -> list[BaseNode]:
        """Return nodes from the side that serves."""
        store = self._store_of(self._read_record().serving)
        return store.get_nodes(node_ids, filters, limit, shard_identifier)

    def _store_of(self, side: Side) -> QdrantVectorStore:
        return self._open_target() if side == "target" else self._source

    def _open_target(self) -> FingerprintedStore:
        with self._lock:
            if self._target is None:
                self._target = build_vector_store(
                    self._brought.embedder,
                    self._writer.collection.name,
                    client=self._writer.collection.client,
                )
            return self._target

    def _read_record(self) -> MigrationRecord:
        return read_again(self._folder, self._record)

    # --- in event loops -------------------------------------------------------------------------

    async def async_add(
        self, nodes: Sequence[BaseNode], shard_identifier: object = None, **kwargs: Any
    ) -> list[str]:
        """Like `add`, but without blocking the event loop."""
        return await asyncio.to_thread(self.add, nodes, shard_identifier, **kwargs)

    async def adelete(
        self, ref_doc_id: str, shard_identifier: object = None, **kwargs: Any
    ) -> None:
        """Like `delete`, but without blocking the event loop."""
        await asyncio.to_thread(self.delete, ref_doc_id, shard_identifier, **kwargs)

    async def adelete_nodes(
        self,
        node_ids: list[str] | None = None,
        filters: MetadataFilters | None = None,
        shard_identifier: object = None,
        **kwargs: Any,
    ) -> None:
        """Like `delete_nodes`, but without blocking the event loop."""
        await asyncio.to_thread(self.delete_nodes, node_ids, filters, shard_identifier, **kwargs)

    async def aget_nodes(
        self,
        node_ids: list[str] | None = None,
        filters: MetadataFilters | None = None,
        limit: int | None = None,
        shard_identifier: object = None,
    ) -> list[BaseNode]:
        """Like `get_nodes`, but without blocking the event loop."""
        return await asyncio.to_thread(self.get_nodes, node_ids, filters, limit, shard_identifier)

    async def aclear(self) -> None:
        """Like `clear`, but without blocking the event loop."""
        await asyncio.to_thread(self.clear)


def _check_source(source: QdrantVectorStore, record: MigrationRecord) -> None:
    if source.client is None:
        raise InputError("the old store has no sync client; make it with client= as well")
    if source.collection_name not in (record.alias, record.source):
        raise InputError(
            f"the store is over {source.collection_name!r}, but the migration moves "
            f"{record.source!r} (alias {record.alias!r})"
        )


def _attempt(call: Callable[[], Any]) -> tuple[Any, Exception | None]:
    """Return what a call returns, or the error that it raises."""
    try:
        return call(), None
    except Exception as error:
        return None, error
