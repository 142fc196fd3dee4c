"""One run over files of a kind: the bookkeeping that makes indexing idempotent.

What lives here: which files are new, changed, moved or gone, and the order in which they are stored
and removed. The collection itself is its only memory: every chunk carries its file's path and
version, and how many chunks that version has. A run that was killed at any point is therefore
completed by the next one. What does not: what a file becomes (`file_kind`), finding files
(`finding`), and the collection's layout (`vector_store`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from llama_index.vector_stores.qdrant import QdrantVectorStore

from unified_embeddings.errors import InputError, UnifiedEmbeddingsError
from unified_embeddings.llama.file_kind import FileKind
from unified_embeddings.llama.finding import FileSelection, FoundFiles, Places, find_files, is_gone
from unified_embeddings.llama.index_progress import IndexProgress, ignore_position
from unified_embeddings.llama.index_report import IndexReport
from unified_embeddings.llama.reading import FileChunks, check_name
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

_FIRST_BATCH = 32
"""Chunks of the first batch. Each further one has twice as many, up to the kind's own size, so that
an interrupt early on loses half of the work at most."""


class FileRun:
    """One run over files of a kind: what was stored before it, and what it has done so far.

    Args:
        store: The store of the collection; None if there is none yet, with `dry_run`.
        kind: What the files are.
        dry_run: Whether nothing is stored or removed.
        on_outcome: Called with a path and what became of it.
        on_progress: Called with how many passages are embedded.

    Attributes:
        files: The files that are indexed.
        report: What was done so far.

    Raises:
        InputError: If there is no store without `dry_run`, or its collection has other software's
            payloads.
    """

    def __init__(
        self,
        store: QdrantVectorStore | None,
        kind: FileKind,
        *,
        dry_run: bool = False,
        on_outcome: Callable[[str, str], None],
        on_progress: Show = ignore_position,
    ) -> None:
        _check_store(store, dry_run=dry_run)
        self.report = IndexReport()
        self.files: list[Path] = []
        self._found = FoundFiles()
        self._store = store
        self._kind = kind
        self._dry_run = dry_run
        self._tell = on_outcome
        self._progress = IndexProgress(on_progress)
        self._batch_size = min(_FIRST_BATCH, kind.batch_size)
        self._store_folder: Path | None = None
        if store is not None and isinstance(store.client, EdgeQdrantClient):
            self._store_folder = store.client.path
        self._base = self._store_folder.parent if self._store_folder else None
        self._stored_files: dict[str, StoredFile] = {}

    # --- which files --------------------------------------------------------------------------

    def find_files(self, roots: Sequence[Path], selection: FileSelection) -> FoundFiles:
        """Find the files under all roots, without those of the store."""
        if self._store_folder is not None:
            exclude = (*selection.exclude, self._store_folder)
            selection = replace(selection, exclude=exclude)
        return find_files(roots, selection)

    def take_found(self, found: FoundFiles, roots: Sequence[Path]) -> None:
        """Take all that was found under the roots, and look up what is stored of it."""
        self._found = replace(found, dead_links=[*found.dead_links])
        self.files = [file for file in found.files if self._kind.takes(file)]
        self.report.failed.update(found.failed)
        self.report.left_out.update(found.left_out)
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

    # --- what must not be lost by mistake -----------------------------------------------------

    def check_known(self, roots: Sequence[Path]) -> None:
        """Reject a root that does not exist, and of which nothing is stored.

        Raises:
            InputError: If there is one.
        """
        places = Places(roots)
        with_stored = {place for path in self._stored_files for place in places.holding(path)}
        for root in roots:
            if is_gone(root) and str(root) not in with_stored:
                raise InputError(f"{root} does not exist, and nothing of it is indexed")

    def check_roots(self, roots: Sequence[Path], prune: bool | Callable[[str], bool]) -> None:
        """Reject a root whose files are all gone, unless that is meant.

        A folder whose files are gone at once is more often a disk that is not mounted than a
        folder that was emptied.

        Raises:
            InputError: If there is one.
        """
        places = Places(roots)
        missing = Counter(
            place for path in self._missing_files(roots) for place in places.holding(path)
        )
        with_files = {place for file in self._found.files for place in places.holding(str(file))}
        for root in roots:
            count = missing[str(root)]
            if not count or str(root) in with_files:
                continue
            lack = "does not exist" if is_gone(root) else "holds no files to index"
            problem = f"{root} {lack} any more, but {self._describe_stored(count)} indexed"
            if _may_prune(prune, problem):
                continue
            raise InputError(
                f"{problem}. Nothing was changed. If it is a disk that is not mounted, mount it; "
                f"to remove the {self._kind.contents}, say so: --prune, or prune=True in Python"
            )

    def check_links(self, prune: bool | Callable[[str], bool]) -> None:
        """Keep what is stored of links that lead to nothing now, unless it is to be removed."""
        places = Places(self._found.dead_links)
        stored = Counter(link for path in self._stored_files for link in places.holding(path))
        for link, count in stored.items():
            reason = self.report.left_out[link]
            problem = f"{link} {reason}, but {self._describe_stored(count)} indexed"
            if _may_prune(prune, problem):
                self._found.dead_links.remove(link)
                continue
            kept = f"its {self._kind.contents} are kept, --prune removes them"
            self.report.left_out[link] = f"{reason}; {kept}"

    def _describe_stored(self, count: int) -> str:
        name = self._kind.name
        return f"1 {name} of it is" if count == 1 else f"{count} {name}s of it are"

    # --- what is done -------------------------------------------------------------------------

    def index_files(self, on_file: Callable[[Path], None]) -> None:
        """Store those files that are new or changed.

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
            if sum(len(waiting.nodes) for waiting in batch) >= self._batch_size:
                self._store_batch(batch)
                batch = []
                self._batch_size = min(2 * self._batch_size, self._kind.batch_size)
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
        unreadable = Places([*self._found.failed, *self._found.dead_links])
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
            if reason := self._kind.why_empty(file):
                self._skip(path, reason)
                # What was stored of it, while it was a text, is in it no more.
                self._remove_chunks(stored.all_ids())
                return False
            check_name(file)
            version = self._kind.version_of(file)
        except (OSError, UnifiedEmbeddingsError) as error:
            self._fail(path, error)
            return False
        return not self._is_stored(path, version, stored)

    def _read(self, file: Path) -> FileChunks | None:
        """Return a file's chunks, none if it has lost its text; None if there is nothing to do."""
        path = str(file)
        try:
            changed = self._kind.read(file, relative_to_store(file, self._base))
        except (OSError, UnifiedEmbeddingsError) as error:
            self._fail(path, error)
            return None
        if changed.notes:
            self.report.notes[path] = "; ".join(changed.notes)
        if not changed.nodes and not self._stored_files.get(path, StoredFile()).chunk_ids:
            self._skip(path, "it is empty")
            return None
        return changed

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

    def _store_batch(self, batch: Sequence[FileChunks]) -> None:
        """Store the chunks of changed files, and only then remove their old chunks."""
        if not batch:
            return
        unreadable: Mapping[str, InputError] = {}
        if not self._dry_run:
            assert self._store is not None
            unreadable = self._kind.add(self._store, batch, self._progress)
        for changed in batch:
            if changed.path in unreadable:
                self._fail(changed.path, unreadable[changed.path])
                continue
            new_ids = {node.node_id for node in changed.nodes}
            stored = self._stored_files.get(changed.path, StoredFile())
            self._remove_chunks(stored.all_ids() - new_ids)
            self.report.indexed += 1
            self.report.chunks_added += len(changed.nodes)
            self._tell(changed.path, self._kind.describe_stored(changed))

    def _remove_chunks(self, chunk_ids: set[str]) -> None:
        self.report.chunks_removed += len(chunk_ids)
        if not self._dry_run and self._store is not None:
            remove_chunks(self._store, chunk_ids)

    def _fail(self, path: str, error: OSError | UnifiedEmbeddingsError) -> None:
        problem = error.strerror if isinstance(error, OSError) else None
        self.report.failed[path] = problem or str(error)
        self._tell(path, f"failed: {self.report.failed[path]}")

    def _skip(self, path: str, reason: str) -> None:
        self.report.skipped[path] = reason
        self._tell(path, f"skipped: {reason}")

    def _versions_of(self, file: Path) -> list[str]:
        """Return the versions that a file's content may have; none if it cannot be read."""
        try:
            check_name(file)
            return [self._kind.version_of(file), *self._kind.old_versions_of(file)]
        except (OSError, UnifiedEmbeddingsError):
            return []


def _check_store(store: QdrantVectorStore | None, *, dry_run: bool) -> None:
    if store is None and not dry_run:
        raise InputError("indexing needs a store; only a dry run goes without")
    if store is not None and not fields_of(store).is_llama_index:
        raise InputError(
            f"collection {store.collection_name!r} is laid out as other software's, where it is "
            "not known which files its points are of; index files into a collection of their own"
        )


def _may_prune(prune: bool | Callable[[str], bool], problem: str) -> bool:
    """Tell whether what is stored of files that are gone may be removed."""
    return prune(problem) if callable(prune) else prune
