"""Following folders: what has changed since the last look, and bringing a collection in line.

What lives here: telling a file that is still being written from one that is ready, and a deleted
file from a disk that went away. What does not: the first pass (`indexing`), and how often to look
(the caller).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from llama_index.vector_stores.qdrant import QdrantVectorStore

from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.llama.file_kind import FileKind
from unified_embeddings.llama.file_run import FileRun
from unified_embeddings.llama.finding import (
    FileSelection,
    FoundFiles,
    Places,
    find_files,
    is_gone,
    is_image,
    named_path,
)
from unified_embeddings.llama.image_indexing import PictureFiles
from unified_embeddings.llama.index_report import IndexReport
from unified_embeddings.llama.indexing import CHUNK_TOKENS
from unified_embeddings.llama.text_files import TextFiles

if TYPE_CHECKING:
    from unified_embeddings.embedders.clip import ClipEmbedder

SETTLE_SECONDS = 2.0
"""How long a file must stay as it is before it is taken: the coarsest file systems tell the time of
a change to two seconds."""


@dataclass(frozen=True)
class Changes:
    """What has changed and is ready.

    Attributes:
        changed: Files that are new or not as they were.
        removed: The paths of files that are gone.
    """

    changed: tuple[Path, ...] = ()
    removed: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.changed or self.removed)

    @property
    def pictures(self) -> Changes:
        """Return those of pictures."""
        return Changes(
            changed=tuple(file for file in self.changed if is_image(file)),
            removed=tuple(path for path in self.removed if is_image(Path(path))),
        )

    @property
    def texts(self) -> Changes:
        """Return those of all other files."""
        return Changes(
            changed=tuple(file for file in self.changed if not is_image(file)),
            removed=tuple(path for path in self.removed if not is_image(Path(path))),
        )


class _Signature(NamedTuple):
    """What a file shows from outside: if it stays the same, so does the content."""

    modified_ns: int
    size: int
    inode: int
    device: int


@dataclass
class _Pending:
    """A change that is not ready: how the file looks (None: it is gone), and since when."""

    signature: _Signature | None
    since: float


class FolderWatch:
    """Tells what changes below folders, by looking again and again.

    A change is told once the file has stayed as it is for a while: one that is being written is not
    read by halves, and one that an editor replaces is not removed. A folder that was named and is
    gone, or holds no file any more, may be a disk that is not mounted: its files are not told as
    removed, and those on a disk that was mounted somewhere below it are not either.

    Args:
        paths: Files and folders.
        selection: Which files are taken.
        settle_seconds: How long a file must stay as it is.
        clock: Returns seconds that only grow.
        note: Told when a place is gone, and when it is back.
        found: What `find_files` has found there just now, where that is known.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from unified_embeddings.llama.following import FolderWatch
        >>> now = 0.0
        >>> folder = Path(tempfile.mkdtemp())
        >>> watch = FolderWatch([folder], clock=lambda: now)
        >>> _ = (folder / "notes.md").write_text("Foxes jump.")
        >>> bool(watch.look())          # it may still be written
        False
        >>> now = 2.0
        >>> [file.name for file in watch.look().changed]
        ['notes.md']
    """

    def __init__(
        self,
        paths: Sequence[Path],
        selection: FileSelection = FileSelection(),  # noqa: B008 — it is frozen
        *,
        settle_seconds: float = SETTLE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
        note: Callable[[str], None] = lambda _: None,
        found: FoundFiles | None = None,
    ) -> None:
        self._roots = [named_path(path) for path in paths]
        self._selection = selection
        self._settle_seconds = settle_seconds
        self._clock = clock
        self._note = note
        self._away: set[str] = set()
        self._pending: dict[str, _Pending] = {}
        self._known, _ = self._look_at(found or find_files(self._roots, selection))

    @property
    def waiting(self) -> int:
        """Return how many changes were seen and are not done."""
        return len(self._pending)

    def look(self) -> Changes:
        """Return what has changed and is ready; it is told again until it is `done`."""
        now = self._clock()
        found, unreadable = self._look_at(find_files(self._roots, self._selection))
        self._note_places(found)
        gone = {path for path in self._known if path not in found}
        kept = Places([*unreadable, *self._away])
        gone = {path for path in gone if not kept.holding(path)}
        new = {path: look for path, look in found.items() if self._known.get(path) != look}
        for path in [path for path in self._pending if path not in new and path not in gone]:
            del self._pending[path]
        changed = [Path(path) for path in sorted(new) if self._is_ready(path, new[path], now)]
        removed = [path for path in sorted(gone) if self._is_ready(path, None, now)]
        return Changes(tuple(changed), tuple(removed))

    def done(self, changes: Changes) -> None:
        """Take note that changes are in the collection."""
        for path in (*map(str, changes.changed), *changes.removed):
            pending = self._pending.pop(path, None)
            if pending is None:
                continue
            if pending.signature is None:
                self._known.pop(path, None)
            else:
                self._known[path] = pending.signature

    def _is_ready(self, path: str, signature: _Signature | None, now: float) -> bool:
        """Tell whether a change has stayed the same for long enough."""
        pending = self._pending.get(path)
        if pending is None or pending.signature != signature:
            self._pending[path] = pending = _Pending(signature, now)
        return now - pending.since >= self._settle_seconds

    def _look_at(self, found: FoundFiles) -> tuple[dict[str, _Signature], list[str]]:
        """Return how the files look that are there, and places of which nothing can be said."""
        signatures: dict[str, _Signature] = {}
        unreadable = [*found.failed, *found.dead_links]
        for file in found.files:
            try:
                status = file.stat()
            except (FileNotFoundError, NotADirectoryError):  # it went away just now
                continue
            except OSError:  # in a folder that may be listed and not entered, or on a failing disk
                unreadable.append(str(file))
                continue
            signatures[str(file)] = _Signature(
                modified_ns=status.st_mtime_ns,
                size=status.st_size,
                inode=status.st_ino,
                device=status.st_dev,
            )
        return signatures, unreadable

    def _note_places(self, found: dict[str, _Signature]) -> None:
        """Find the places that are away, and tell of those that left or came back."""
        missing = [path for path in self._known if path not in found]
        roots = Places(self._roots)
        full = {root for path in found for root in roots.holding(path)}
        away: set[str] = set()
        for path in missing:
            away.update(root for root in roots.holding(path) if root not in full)
        away.update(self._unmounted(path for path in missing if not Places(away).holding(path)))
        for place in sorted(away - self._away):
            problem = "is not there" if is_gone(Path(place)) else "holds no files any more"
            self._note(
                f"{place} {problem}; waiting for it, and nothing of it is removed. If that is "
                "meant, index it once with --prune"
            )
        for place in sorted(self._away - away):
            self._note(f"{place} is there again")
        self._away = away

    def _unmounted(self, missing: Iterable[str]) -> set[str]:
        """Return the folders of missing files whose disk is not the one mounted there now."""
        devices: dict[str, int] = {}
        away = set()
        for path in missing:
            place = os.path.dirname(path)  # noqa: PTH120 — a str
            if place not in devices:
                devices[place] = _device_of(place)
            if devices[place] != self._known[path].device:
                away.add(place)
        return away


def index_changes(
    changes: Changes,
    store: QdrantVectorStore,
    embedder: TextEmbedder,
    *,
    chunk_tokens: int = CHUNK_TOKENS,
    on_outcome: Callable[[str, str], None] = lambda _, __: None,
) -> IndexReport:
    """Bring a collection in line with files that have changed, and with no others.

    The collection is looked up for these files alone. As with `index_paths`, a changed file's old
    chunks go only after its new ones are stored, and the same call again completes one that was
    interrupted.

    Args:
        changes: Files that are new, changed or gone.
        store: The store of the collection, which `index_paths` has filled.
        embedder: Embeds the chunks.
        chunk_tokens: Maximum number of tokens per chunk, as for `index_paths`.
        on_outcome: Called with a path and what became of it.

    Raises:
        StoreError: If Qdrant fails.
    """
    return _index_changes(changes, store, TextFiles(embedder, chunk_tokens), on_outcome)


def index_image_changes(
    changes: Changes,
    store: QdrantVectorStore,
    clip: ClipEmbedder,
    *,
    on_outcome: Callable[[str, str], None] = lambda _, __: None,
) -> IndexReport:
    """Bring a collection of pictures in line with pictures that have changed, as `index_changes`.

    Args:
        changes: Files that are new, changed or gone; what is no picture is passed over.
        store: The store of the collection, as `index_images` takes it.
        clip: Embeds the pictures.
        on_outcome: Called with a path and what became of it.

    Raises:
        ModelLoadError: If the model cannot be loaded.
        StoreError: If Qdrant fails.
    """
    return _index_changes(changes.pictures, store, PictureFiles(clip), on_outcome)


def _index_changes(
    changes: Changes,
    store: QdrantVectorStore,
    kind: FileKind,
    on_outcome: Callable[[str, str], None],
) -> IndexReport:
    run = FileRun(store, kind, on_outcome=on_outcome)
    run.take_files(changes.changed, changes.removed)
    run.index_files(lambda _: None)
    run.remove_files(changes.removed)
    return run.report


def _device_of(place: str) -> int:
    """Return the disk of a folder, or of the nearest one above it that is there."""
    while True:
        try:
            return os.stat(place).st_dev  # noqa: PTH116 — a str
        except OSError:
            above = os.path.dirname(place)  # noqa: PTH120
            if above == place:
                return -1
            place = above
