"""Files into a collection: the next run stores only what has changed since.

What lives here: the bookkeeping that makes indexing idempotent. The collection itself is its only
memory: every chunk carries its file's path and version, and how many chunks that version has. A
run that was killed at any point is therefore completed by the next one. What does not: reading
files (`reading`), and the collection's layout (`vector_store`).
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import BaseNode, MetadataMode
from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import models as qm

from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.errors import InputError, UnifiedEmbeddingsError
from unified_embeddings.llama.reading import (
    file_version,
    find_files,
    holds_no_text,
    make_splitter,
    read_chunks,
)
from unified_embeddings.stores.errors import store_errors

_CHUNK_TOKENS = 512
_BATCH_CHUNKS = 256
"""How many chunks are embedded and stored at a time. It bounds the memory they take."""
_SCROLL_POINTS = 1000
_NAMESPACE = uuid.UUID("6f1f9c1e-6a55-4c0a-9d3b-7f0c2f6f5a10")
"""Makes chunk ids (UUID version 5) this project's own."""
_BOOKKEEPING_KEYS = ("file_path", "file_version", "file_chunks")
_SHOWN_TO_LLM = frozenset(("file_name", "page_label"))
"""Metadata that goes into a prompt along with the text. None of it is embedded."""


@dataclass
class IndexReport:
    """What a run did.

    Attributes:
        unchanged: Files whose chunks were all stored already.
        indexed: Files read and stored.
        removed: Files whose chunks were removed because the file is gone.
        chunks_added: Chunks stored.
        chunks_removed: Chunks removed, those of changed files included.
        skipped: Files without text: empty, or of a type that holds none.
        failed: Files and folders that could not be read, each with the reason. What was stored of
            them before stays.
    """

    unchanged: int = 0
    indexed: int = 0
    removed: int = 0
    chunks_added: int = 0
    chunks_removed: int = 0
    skipped: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


@dataclass
class _StoredFile:
    """What the collection holds of one file.

    Attributes:
        chunk_ids: The ids of the chunks that are stored, by version. An interrupted run may leave
            chunks of two versions.
        chunk_counts: How many chunks a version has once it is complete.
    """

    chunk_ids: dict[str, list[str]] = field(default_factory=dict)
    chunk_counts: dict[str, int] = field(default_factory=dict)

    def is_complete(self, version: str) -> bool:
        """Tell whether all chunks of a version are stored."""
        if version not in self.chunk_ids:
            return False
        return len(self.chunk_ids[version]) == self.chunk_counts[version]

    def ids_of(self, version: str) -> set[str]:
        """Return the ids of a version's chunks."""
        return set(self.chunk_ids.get(version, ()))

    def all_ids(self) -> set[str]:
        """Return the ids of all versions' chunks."""
        return set().union(*self.chunk_ids.values())


@dataclass(frozen=True)
class _ChangedFile:
    """A file whose chunks are to be stored; none if it no longer holds any text."""

    path: str
    chunks: list[BaseNode]


def index_paths(
    paths: Sequence[Path],
    store: QdrantVectorStore,
    embedder: TextEmbedder,
    *,
    chunk_tokens: int = _CHUNK_TOKENS,
    exclude: Sequence[Path] = (),
    on_files: Callable[[int], None] = lambda _: None,
    on_file: Callable[[Path], None] = lambda _: None,
) -> IndexReport:
    """Bring a collection in line with files and folders.

    New and changed files are split into chunks of whole sentences, embedded and stored. Files that
    are gone from the given folders lose their chunks. Everything else stays. The old chunks of a
    changed file are removed only after the new ones are stored. To resume an interrupted run, make
    the same call again.

    Args:
        paths: Files and folders. Hidden files within folders are left out. A path that no longer
            exists loses the chunks that are stored of it.
        store: The store of the collection.
        embedder: Embeds the chunks.
        chunk_tokens: Maximum number of tokens per chunk, or what fits the model if that is less.
        exclude: Folders to leave out, such as the store's own.
        on_files: Called once with the number of files found.
        on_file: Called for each file once it has been processed.

    Raises:
        InputError: If a path does not exist and nothing of it is stored, or chunk_tokens < 32.
        StoreError: If Qdrant fails.
    """
    splitter = make_splitter(embedder, chunk_tokens)
    roots = [path.expanduser().resolve() for path in paths]
    excluded = [path.expanduser().resolve() for path in exclude]
    run = _IndexRun(store, embedder, splitter)
    run.check_roots(roots)
    files = run.find_files(roots, excluded)
    on_files(len(files))
    run.index_files(files, on_file)
    run.remove_missing_files(files, roots)
    return run.report


class _IndexRun:
    """One run of `index_paths`: what was stored before it, and what it has done so far.

    Args:
        store: The store of the collection.
        embedder: Embeds the chunks.
        splitter: Splits files into chunks.
    """

    def __init__(
        self, store: QdrantVectorStore, embedder: TextEmbedder, splitter: SentenceSplitter
    ) -> None:
        self.report = IndexReport()
        self._store = store
        self._embedder = embedder
        self._splitter = splitter
        self._stored_files = _read_stored_files(store)

    def check_roots(self, roots: Sequence[Path]) -> None:
        """Reject a path that does not exist, unless chunks of it are stored.

        Raises:
            InputError: If there is one.
        """
        for root in roots:
            if not root.exists() and not any(_is_under(path, root) for path in self._stored_files):
                raise InputError(f"{root} does not exist, and nothing of it is indexed")

    def find_files(self, roots: Sequence[Path], excluded: Sequence[Path]) -> list[Path]:
        """Return the files under all roots, each once, in alphabetical order."""
        files: set[Path] = set()
        for root in roots:
            found, unlisted = find_files(root, excluded)
            files.update(found)
            self.report.failed.update(unlisted)
        return sorted(files)

    def index_files(self, files: Sequence[Path], on_file: Callable[[Path], None]) -> None:
        """Store the chunks of those files that are new or changed."""
        batch: list[_ChangedFile] = []
        for file in files:
            chunks = self._read_if_changed(file)
            if chunks is not None:
                batch.append(_ChangedFile(str(file), chunks))
            if sum(len(changed.chunks) for changed in batch) >= _BATCH_CHUNKS:
                self._store_batch(batch)
                batch = []
            on_file(file)
        self._store_batch(batch)

    def remove_missing_files(self, files: Sequence[Path], roots: Sequence[Path]) -> None:
        """Remove the chunks of files that are gone from the roots.

        What is in a folder that could not be listed may still exist, so it stays.
        """
        present = {str(file) for file in files}
        unreadable = [Path(path) for path in self.report.failed]
        for path, stored in self._stored_files.items():
            if path in present or any(_is_under(path, place) for place in unreadable):
                continue
            if any(_is_under(path, root) for root in roots):
                self._remove_chunks(stored.all_ids())
                self.report.removed += 1

    def _stored_file(self, path: str) -> _StoredFile:
        return self._stored_files.get(path, _StoredFile())

    def _read_if_changed(self, file: Path) -> list[BaseNode] | None:
        """Return a file's chunks if they have to be stored, and None otherwise.

        The report says why not. A file that has lost its text gives an empty list, so that its old
        chunks are removed.
        """
        path = str(file)
        stored = self._stored_file(path)
        chunks: list[BaseNode] = []
        try:
            if holds_no_text(file):
                self.report.skipped.append(path)
                return None
            version = file_version(file, self._splitter)
            is_unchanged = stored.is_complete(version)
            if not is_unchanged:
                chunks = read_chunks(file, self._splitter)
        except (OSError, UnifiedEmbeddingsError) as error:
            self.report.failed[path] = str(error)
            return None
        if is_unchanged:
            self.report.unchanged += 1
            # A run may have been killed after it stored this version, and before it removed others.
            self._remove_chunks(stored.all_ids() - stored.ids_of(version))
            return None
        if not chunks and not stored.chunk_ids:
            self.report.skipped.append(path)
            return None
        _label_chunks(chunks, path, version)
        self.report.indexed += 1
        return chunks

    def _store_batch(self, batch: Sequence[_ChangedFile]) -> None:
        """Store the chunks of changed files, and only then remove their old chunks."""
        chunks = [chunk for changed in batch for chunk in changed.chunks]
        for start in range(0, len(chunks), _BATCH_CHUNKS):
            self._add_chunks(chunks[start : start + _BATCH_CHUNKS])
        self.report.chunks_added += len(chunks)
        for changed in batch:
            new_ids = {chunk.node_id for chunk in changed.chunks}
            self._remove_chunks(self._stored_file(changed.path).all_ids() - new_ids)

    def _add_chunks(self, chunks: list[BaseNode]) -> None:
        """Embed and store chunks. The store gets the sparse vectors from the cache."""
        texts = [chunk.get_content(metadata_mode=MetadataMode.EMBED) for chunk in chunks]
        dense = self._embedder.encode_documents(texts).dense
        assert dense is not None
        for chunk, vector in zip(chunks, dense, strict=True):
            chunk.embedding = vector.tolist()
        with store_errors(self._store.collection_name, "adding chunks"):
            self._store.add(chunks)

    def _remove_chunks(self, chunk_ids: Iterable[str]) -> None:
        point_ids: list[qm.ExtendedPointId] = [*sorted(chunk_ids)]
        if not point_ids:
            return
        with store_errors(self._store.collection_name, "removing chunks"):
            self._store.client.delete(
                self._store.collection_name, points_selector=qm.PointIdsList(points=point_ids)
            )
        self.report.chunks_removed += len(point_ids)


def _is_under(path: str, root: Path) -> bool:
    """Tell whether a path is a root itself or lies somewhere below it."""
    return Path(path).is_relative_to(root)


def _label_chunks(chunks: Sequence[BaseNode], path: str, version: str) -> None:
    """Give a file's chunks their ids and the metadata that the next run reads.

    The ids depend on path, version and position alone, so a run that is repeated overwrites what an
    interrupted one has stored.
    """
    for position, chunk in enumerate(chunks):
        chunk.id_ = str(uuid.uuid5(_NAMESPACE, f"{path}\0{version}\0{position}"))
        chunk.metadata |= {"file_version": version, "file_chunks": len(chunks)}
        chunk.excluded_embed_metadata_keys = list(chunk.metadata)
        chunk.excluded_llm_metadata_keys = [
            key for key in chunk.metadata if key not in _SHOWN_TO_LLM
        ]


def _read_stored_files(store: QdrantVectorStore) -> dict[str, _StoredFile]:
    """Return what the collection holds, by the path of the file.

    Points without our bookkeeping were stored by other means. They are not counted, and so never
    removed.

    Raises:
        StoreError: If Qdrant fails.
    """
    stored_files: dict[str, _StoredFile] = {}
    offset: qm.ExtendedPointId | None = None
    while True:
        with store_errors(store.collection_name, "listing the stored chunks"):
            points, offset = store.client.scroll(
                store.collection_name,
                limit=_SCROLL_POINTS,
                offset=offset,
                with_payload=list(_BOOKKEEPING_KEYS),
                with_vectors=False,
            )
        for point in points:
            payload = point.payload or {}
            if not all(key in payload for key in _BOOKKEEPING_KEYS):
                continue
            stored = stored_files.setdefault(payload["file_path"], _StoredFile())
            version = payload["file_version"]
            stored.chunk_counts[version] = payload["file_chunks"]
            stored.chunk_ids.setdefault(version, []).append(str(point.id))
        if offset is None:
            return stored_files
