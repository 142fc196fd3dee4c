"""Files into a collection: the next run stores only what has changed since.

What lives here: the bookkeeping that makes indexing idempotent. The collection itself is its only
memory: every chunk carries its file's path and version, and how many chunks that version has. A
run that was killed at any point is therefore completed by the next one. What does not: finding
files (`finding`), reading them (`reading`), and the collection's layout (`vector_store`).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from llama_index.core.schema import BaseNode
from llama_index.vector_stores.qdrant import QdrantVectorStore

from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.errors import InputError, UnifiedEmbeddingsError
from unified_embeddings.llama.adding import BATCH_CHUNKS, add_chunks
from unified_embeddings.llama.finding import FileSelection, Places, find_files, is_gone, named_path
from unified_embeddings.llama.index_progress import IndexProgress, ignore_position
from unified_embeddings.llama.index_report import IndexReport
from unified_embeddings.llama.readers.registry import why_without_text
from unified_embeddings.llama.reading import (
    FileChunks,
    check_name,
    file_version,
    old_file_version,
    read_chunks,
)
from unified_embeddings.llama.splitter import FEWEST_TOKENS, UnifiedSentenceSplitter
from unified_embeddings.llama.store_settings import fields_of
from unified_embeddings.llama.stored_files import (
    StoredFile,
    identify,
    read_stored_files,
    relabel,
    relative_to_store,
    remove_chunks,
)
from unified_embeddings.stores.edge.client import EdgeQdrantClient
from unified_embeddings.system.progress import Show

CHUNK_TOKENS = 512
"""Maximum number of tokens in a chunk, unless it is given."""


def index_paths(
    paths: Sequence[Path],
    store: QdrantVectorStore | None,
    embedder: TextEmbedder,
    *,
    chunk_tokens: int = CHUNK_TOKENS,
    exclude: Sequence[Path | str] = (),
    include: Sequence[str] = (),
    gitignore: bool = False,
    within: Sequence[Path] = (),
    prune: bool | Callable[[str], bool] = False,
    dry_run: bool = False,
    on_files: Callable[[int], None] = lambda _: None,
    on_file: Callable[[Path], None] = lambda _: None,
    on_outcome: Callable[[str, str], None] = lambda _, __: None,
    on_progress: Show = ignore_position,
) -> IndexReport:
    """Bring a collection in line with files and folders.

    New and changed files are split into chunks of whole sentences, embedded and stored. Files that
    are gone from the given folders, or left out, lose their chunks. Everything else stays. The old
    chunks of a changed file are removed only after the new ones are stored. To resume an
    interrupted run, make the same call again.

    Args:
        paths: Files and folders. Hidden files within folders are left out, and so is the folder of
            an embedded store.
        store: The store of the collection; None if there is none yet, with `dry_run`.
        embedder: Embeds the chunks.
        chunk_tokens: Maximum number of tokens per chunk, or what fits the model if that is less.
        exclude: What to leave out: Path for folders and files, str for patterns in the syntax of
            .gitignore, relative to the folder that was given.
        include: Patterns. If there are any, only files that match one are taken.
        gitignore: Whether .gitignore files are honoured.
        within: Folders. If there are any, nothing outside them is read, wherever links lead.
        prune: Whether a given path that does not exist any more, or holds no file any more, loses
            all that is stored of it, and so does a link that leads to nothing now. A function is
            asked, with a text that says what would be removed.
        dry_run: Whether to read only, and to store and remove nothing.
        on_files: Called once with the number of files found.
        on_file: Called for each file once it has been processed.
        on_outcome: Called with a path and what became of it.
        on_progress: Called with how many passages are embedded and about how many there are.

    Raises:
        InputError: If a path does not exist and nothing of it is stored, a path or pattern is not
            usable, chunk_tokens < 32, or the collection has other software's payloads. If a path
            does not exist or holds no file any more, and `prune` does not allow to remove what is
            stored of it. Nothing is changed then.
        StoreError: If Qdrant fails.
    """
    if chunk_tokens < FEWEST_TOKENS:
        raise InputError(f"chunk_tokens must be at least {FEWEST_TOKENS}, got {chunk_tokens}")
    for name, values in (("paths", paths), ("exclude", exclude), ("include", include)):
        if isinstance(values, (str, os.PathLike)):
            raise InputError(f"{name} takes several, so put it into a list: [{values!r}]")
    if store is None and not dry_run:
        raise InputError("indexing needs a store; only a dry run goes without")
    if store is not None and not fields_of(store).is_llama_index:
        raise InputError(
            f"collection {store.collection_name!r} is laid out as other software's, where it is "
            "not known which files its points are of; index files into a collection of their own"
        )
    roots = [named_path(Path(path)) for path in paths]
    run = IndexRun(
        store,
        embedder,
        UnifiedSentenceSplitter(embedder, chunk_size=chunk_tokens),
        dry_run=dry_run,
        on_outcome=on_outcome,
        on_progress=on_progress,
    )
    run.find_files(roots, FileSelection(exclude, include, gitignore, within))
    run.check_roots(roots, prune)
    run.check_links(prune)
    on_files(len(run.files))
    run.index_files(on_file)
    run.remove_missing_files(roots)
    return run.report


class IndexRun:
    """One run of `index_paths`: what was stored before it, and what it has done so far.

    Args:
        store: The store of the collection; None if there is none.
        embedder: Embeds the chunks.
        splitter: Splits files into chunks.
        dry_run: Whether nothing is stored or removed.
        on_outcome: Called with a path and what became of it.
        on_progress: Called with how many passages are embedded.

    Attributes:
        files: The files that were found.
        report: What was done so far.
    """

    def __init__(
        self,
        store: QdrantVectorStore | None,
        embedder: TextEmbedder,
        splitter: UnifiedSentenceSplitter,
        *,
        dry_run: bool,
        on_outcome: Callable[[str, str], None],
        on_progress: Show,
    ) -> None:
        self.report = IndexReport()
        self.files: list[Path] = []
        self._dead_links: list[str] = []
        self._store = store
        self._embedder = embedder
        self._splitter = splitter
        self._dry_run = dry_run
        self._tell = on_outcome
        self._progress = IndexProgress(on_progress, embedder)
        self._store_folder: Path | None = None
        if store is not None and isinstance(store.client, EdgeQdrantClient):
            self._store_folder = store.client.path
        self._base = self._store_folder.parent if self._store_folder else None
        self._stored_files: dict[str, StoredFile] = {}

    def find_files(self, roots: Sequence[Path], selection: FileSelection) -> None:
        """Find the files under all roots, and what is stored of them."""
        if self._store_folder is not None:
            exclude = (*selection.exclude, self._store_folder)
            selection = replace(selection, exclude=exclude)
        found = find_files(roots, selection)
        self.files = found.files
        self.report.failed.update(found.failed)
        self.report.left_out.update(found.left_out)
        self._dead_links = found.dead_links
        if self._store is not None:
            self._stored_files = identify(
                read_stored_files(self._store), self.files, roots, self._base, self._versions_of
            )

    def take_files(self, files: Sequence[Path], gone: Sequence[str]) -> None:
        """Take files by their paths, and what is stored of them and of some that are gone."""
        self.files = [*files]
        if self._store is not None:
            stored_files = read_stored_files(self._store, [*map(str, files), *gone])
            for place, stored in stored_files.items():
                self._stored_files.setdefault(place.path, StoredFile()).add(stored)

    def check_roots(self, roots: Sequence[Path], prune: bool | Callable[[str], bool]) -> None:
        """Reject a root that is not there, and one whose files are all gone unless that is meant.

        A folder whose files are gone at once is more often a disk that is not mounted than a
        folder that was emptied.

        Raises:
            InputError: If there is one.
        """
        places = Places(roots)
        missing = Counter(
            place for path in self._missing_files(roots) for place in places.holding(path)
        )
        with_files = {place for file in self.files for place in places.holding(str(file))}
        with_stored = {place for path in self._stored_files for place in places.holding(path)}
        for root in roots:
            exists = not is_gone(root)
            if not exists and str(root) not in with_stored:
                raise InputError(f"{root} does not exist, and nothing of it is indexed")
            count = missing[str(root)]
            if not count or str(root) in with_files:
                continue
            gone = "holds no files to index any more" if exists else "does not exist any more"
            files = "1 file" if count == 1 else f"{count} files"
            problem = f"{root} {gone}, but {files} of it are indexed"
            if prune is True or (callable(prune) and prune(problem)):
                continue
            raise InputError(
                f"{problem}. Nothing was changed. If it is a disk that is not mounted, mount it; "
                "to remove the passages, say so: --prune, or prune=True in Python"
            )

    def check_links(self, prune: bool | Callable[[str], bool]) -> None:
        """Keep what is stored of links that lead to nothing now, unless it is to be removed."""
        places = Places(self._dead_links)
        stored = Counter(link for path in self._stored_files for link in places.holding(path))
        for link, count in stored.items():
            files = "1 file" if count == 1 else f"{count} files"
            problem = f"{link} {self.report.left_out[link]}, but {files} of it are indexed"
            if prune is True or (callable(prune) and prune(problem)):
                self._dead_links.remove(link)
                continue
            self.report.left_out[link] += "; its passages are kept, --prune removes them"

    def index_files(self, on_file: Callable[[Path], None]) -> None:
        """Store the chunks of those files that are new or changed.

        Which these are is found first, so that it is known how much there is to do.
        """
        changed_files = []
        for file in self.files:
            self._progress.checking(file)
            if self._is_changed(file):
                changed_files.append(file)
            else:
                on_file(file)
        self._progress.expect(changed_files)
        batch: list[FileChunks] = []
        for file in changed_files:
            self._progress.reading(file)
            changed = self._read(file)
            self._progress.note_read(file, changed)
            if changed is not None:
                batch.append(changed)
            if sum(len(waiting.nodes) for waiting in batch) >= BATCH_CHUNKS:
                self._store_batch(batch)
                batch = []
            on_file(file)
        self._store_batch(batch)

    def remove_missing_files(self, roots: Sequence[Path]) -> None:
        """Remove the chunks of files that are gone from the roots."""
        self.remove_files(self._missing_files(roots))

    def remove_files(self, paths: Iterable[str]) -> None:
        """Remove the chunks of files; nothing of one of which nothing is stored."""
        for path in paths:
            stored = self._stored_files.get(path)
            if stored is not None:
                self._remove_chunks(stored.all_ids())
                self.report.removed += 1
                self._tell(path, "removed")

    def _missing_files(self, roots: Sequence[Path]) -> list[str]:
        """Return the stored files under the roots that were not found.

        What is in a folder that could not be listed, or behind a link that leads to nothing, may
        still exist, so it is not missing.
        """
        present = {str(file) for file in self.files}
        unreadable = Places([*self.report.failed, *self._dead_links])
        places = Places(roots)
        missing = []
        for path in self._stored_files:
            if path not in present and places.holding(path) and not unreadable.holding(path):
                missing.append(path)
        return missing

    def _is_changed(self, file: Path) -> bool:
        """Tell whether a file has to be read; the report says why not.

        A file that has lost its text loses its chunks.
        """
        path = str(file)
        stored = self._stored_files.get(path, StoredFile())
        try:
            if reason := why_without_text(file):
                self._skip(path, reason)
                # What was stored of it, while it was a text, is in it no more.
                self._remove_chunks(stored.all_ids())
                return False
            check_name(file)
            version = file_version(file, self._splitter)
        except (OSError, UnifiedEmbeddingsError) as error:
            self._fail(path, error)
            return False
        return not self._is_stored(path, version, stored)

    def _read(self, file: Path) -> FileChunks | None:
        """Return a file's chunks, none if it has lost its text; None if there is nothing to do."""
        path = str(file)
        try:
            changed = read_chunks(file, self._splitter, relative_to_store(file, self._base))
        except (OSError, UnifiedEmbeddingsError) as error:
            self._fail(path, error)
            return None
        if changed.notes:
            self.report.notes[path] = "; ".join(changed.notes)
        if not changed.nodes and not self._stored_files.get(path, StoredFile()).chunk_ids:
            self._skip(path, "it is empty")
            return None
        self.report.indexed += 1
        count = len(changed.nodes)
        self._tell(path, f"indexed, {count} chunk{'' if count == 1 else 's'}")
        return changed

    def _fail(self, path: str, error: OSError | UnifiedEmbeddingsError) -> None:
        problem = error.strerror if isinstance(error, OSError) else None
        self.report.failed[path] = problem or str(error)
        self._tell(path, f"failed: {self.report.failed[path]}")

    def _is_stored(self, path: str, version: str, stored: StoredFile) -> bool:
        """Tell whether a version is stored completely, under its new path if the file moved."""
        stored_path = path if stored.is_complete(path, version) else stored.complete_path(version)
        if stored_path is None:
            return False
        count = stored.chunk_counts[version]
        if stored_path == path:
            self.report.unchanged += 1
            self._tell(path, "unchanged")
            # A run may have been killed after it stored this version, and before it removed others.
            self._remove_chunks(stored.all_ids() - stored.expected_ids(path, version))
            return True
        self.report.moved += 1
        self._tell(path, f"moved from {stored_path}")
        if not self._dry_run:
            assert self._store is not None
            relabel(self._store, stored_path, path, version, count, self._base)
            remove_chunks(self._store, stored.all_ids() - stored.expected_ids(path, version))
        return True

    def _skip(self, path: str, reason: str) -> None:
        self.report.skipped[path] = reason
        self._tell(path, f"skipped: {reason}")

    def _store_batch(self, batch: Sequence[FileChunks]) -> None:
        """Store the chunks of changed files, and only then remove their old chunks."""
        chunks: list[BaseNode] = [node for changed in batch for node in changed.nodes]
        if not self._dry_run:
            assert self._store is not None
            with self._progress.embedding(batch):
                add_chunks(self._store, self._embedder, chunks)
        self.report.chunks_added += len(chunks)
        for changed in batch:
            new_ids = {node.node_id for node in changed.nodes}
            stored = self._stored_files.get(changed.path, StoredFile())
            self._remove_chunks(stored.all_ids() - new_ids)

    def _remove_chunks(self, chunk_ids: set[str]) -> None:
        self.report.chunks_removed += len(chunk_ids)
        if not self._dry_run and self._store is not None:
            remove_chunks(self._store, chunk_ids)

    def _versions_of(self, file: Path) -> list[str]:
        """Return the versions that a file's content may have; none if it cannot be read."""
        try:
            check_name(file)
            return [file_version(file, self._splitter), old_file_version(file, self._splitter)]
        except (OSError, UnifiedEmbeddingsError):
            return []
