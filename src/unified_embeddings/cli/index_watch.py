"""`unified-embeddings index --watch`: what comes after the first pass.

What lives here: looking at the folders again and again until somebody ends it, and what is printed
meanwhile. What does not: what has changed and is ready (`llama.following`).
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import typer

from unified_embeddings.cli import shared
from unified_embeddings.errors import OverloadedError, ServiceError, StoreError

if TYPE_CHECKING:
    from llama_index.vector_stores.qdrant import QdrantVectorStore

    from unified_embeddings.embedders.base import TextEmbedder
    from unified_embeddings.embedders.clip import ClipEmbedder
    from unified_embeddings.llama.following import Changes, FolderWatch
    from unified_embeddings.llama.index_report import IndexReport

_GROUP = 32
"""Files that are indexed at a time, while Ctrl-C waits; together they are faster than alone."""
_LEAST_SHARE = 9
"""How many times as long as a look takes is waited before the next one."""


@dataclass(frozen=True)
class WatchedPictures:
    """How pictures are followed.

    Attributes:
        open_store: Opens their collection; with `create`, also one that does not exist.
        clip: Embeds the pictures.
    """

    open_store: Callable[..., QdrantVectorStore]
    clip: ClipEmbedder


@dataclass(frozen=True)
class Watching:
    """How folders are watched.

    Attributes:
        open_store: Opens the collection of texts.
        embedder: Embeds the passages.
        chunk_tokens: Maximum number of tokens per chunk.
        as_json: Whether to print JSON, one object a line.
        pictures: How pictures are followed; None leaves them out.
        interval: Seconds between two looks.
        clock: Returns seconds that only grow.
        sleep: Waits for some seconds.
    """

    open_store: Callable[[], QdrantVectorStore]
    embedder: TextEmbedder
    chunk_tokens: int
    as_json: bool
    pictures: WatchedPictures | None = None
    interval: float = 1.0
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


class _Done(NamedTuple):
    """What became of a file, in how many seconds, and together with how many in all."""

    path: str
    outcome: str
    seconds: float
    together: int


def watch(folders: FolderWatch, watching: Watching) -> None:
    """Index what changes until Ctrl-C or SIGTERM.

    The collection is open only while there is something to do: in between, other processes may
    search an embedded store. A signal is held back until the files in hand are stored.

    Raises:
        Exit: With code 130 at the second Ctrl-C, which does not wait.
    """
    from unified_embeddings.system.signals import hold_interrupts

    follower = _Follower(folders, watching)
    try:
        with hold_interrupts(signal.SIGTERM) as interrupts:
            for _ in interrupts.let_through(_ticks(follower, watching)):
                follower.look(check=interrupts.check)
    except KeyboardInterrupt:
        if follower.is_indexing:
            shared.print_error(
                "interrupted; what was stored is kept. Run the same command again to resume"
            )
            raise typer.Exit(130) from None
    if folders.waiting:
        count = "1 change was" if folders.waiting == 1 else f"{folders.waiting} changes were"
        shared.print_note(f"watching ended; {count} not indexed yet, the next run will")
    else:
        shared.print_note("watching ended; all that was seen is indexed")


def _ticks(follower: _Follower, watching: Watching) -> Iterator[None]:
    """Yield when it is time to look; looking takes a tenth of the time at most."""
    while True:
        watching.sleep(max(watching.interval, _LEAST_SHARE * follower.seconds_of_look))
        yield


class _Follower:
    """Looks for changes, and indexes and prints them.

    Args:
        folders: Tells what has changed.
        watching: How they are watched.

    Attributes:
        is_indexing: Whether some files are being indexed.
        seconds_of_look: How long the last look took.
    """

    def __init__(self, folders: FolderWatch, watching: Watching) -> None:
        self._folders = folders
        self._watching = watching
        self.is_indexing = False
        self.seconds_of_look = 0.0
        self._problem = ""
        self._done: list[_Done] = []
        self._notes: dict[str, str] = {}

    def look(self, check: Callable[[], None]) -> None:
        """Index what has changed and is ready.

        Args:
            check: Called between two groups of files, where it may end.
        """
        begun = self._watching.clock()
        changes = self._folders.look()
        self.seconds_of_look = self._watching.clock() - begun
        if not changes:
            return
        try:
            self._index(changes, check)
        except (StoreError, ServiceError, OverloadedError) as error:
            # It is tried again at the next look: a server is started again, a folder is left.
            self.is_indexing = False
            if str(error) != self._problem:
                shared.print_error(f"{error}. Waiting for it; the changes are kept in mind")
            self._problem = str(error)

    def _index(self, changes: Changes, check: Callable[[], None]) -> None:
        pictures = self._watching.pictures
        if pictures is None:
            self._index_texts(changes, check)
        else:
            self._index_texts(changes.texts, check)
            self._index_pictures(changes.pictures, pictures, check)
        self._problem = ""

    def _index_texts(self, changes: Changes, check: Callable[[], None]) -> None:
        from unified_embeddings.llama.following import index_changes

        if changes:
            index = partial(
                index_changes,
                embedder=self._watching.embedder,
                chunk_tokens=self._watching.chunk_tokens,
            )
            self._index_groups(changes, self._watching.open_store(), index, check)

    def _index_pictures(
        self, changes: Changes, pictures: WatchedPictures, check: Callable[[], None]
    ) -> None:
        from unified_embeddings.llama.following import index_image_changes

        if not changes:
            return
        try:
            store = pictures.open_store(create=bool(changes.changed))
        except shared.MissingCollectionError:
            # No picture was ever stored, so nothing of those that are gone is.
            self._folders.done(changes)
            return
        index = partial(index_image_changes, clip=pictures.clip)
        self._index_groups(changes, store, index, check)

    def _index_groups(
        self,
        changes: Changes,
        store: QdrantVectorStore,
        index: Callable[..., IndexReport],
        check: Callable[[], None],
    ) -> None:
        """Index changes a few at a time, and close the store."""
        try:
            for group in _groups(changes):
                self._print_done()
                check()
                self._index_group(group, store, index)
        finally:
            store.client.close()
            # Whoever reads the last line may search at once: the folder is free.
            self._print_done()

    def _index_group(
        self, group: Changes, store: QdrantVectorStore, index: Callable[..., IndexReport]
    ) -> None:
        outcomes: list[tuple[str, str]] = []
        begun = self._watching.clock()
        self.is_indexing = True
        report = index(
            group, store, on_outcome=lambda path, outcome: outcomes.append((path, outcome))
        )
        self.is_indexing = False
        seconds = self._watching.clock() - begun
        self._folders.done(group)
        told = [(path, outcome) for path, outcome in outcomes if outcome != "unchanged"]
        self._done = [_Done(path, outcome, seconds, len(told)) for path, outcome in told]
        self._notes = report.notes

    def _print_done(self) -> None:
        """Print what became of the last group, once."""
        for done in self._done:
            self._print(done)
        for path, note in self._notes.items():
            shared.print_note(f"{path}: {note}")
        self._done, self._notes = [], {}

    def _print(self, done: _Done) -> None:
        """Print a line about one file."""
        if self._watching.as_json:
            line = {"file": done.path, "outcome": done.outcome, "seconds": round(done.seconds, 3)}
            typer.echo(json.dumps(line, ensure_ascii=False))
            return
        line_end = f" for {done.together} files" if done.together > 1 else ""
        text = f"{done.path}: {done.outcome}, {done.seconds:.2f} s{line_end}"
        shared.print_line(shared.printable(text))


def _groups(changes: Changes) -> Iterator[Changes]:
    """Yield changes, a few files at a time."""
    from unified_embeddings.llama.following import Changes

    for start in range(0, len(changes.removed), _GROUP):
        yield Changes(removed=changes.removed[start : start + _GROUP])
    for start in range(0, len(changes.changed), _GROUP):
        yield Changes(changed=changes.changed[start : start + _GROUP])


def describe_watching(paths: list[Path], path: Path, url: str | None) -> str:
    """Return what is watched, and how the collection is searched meanwhile."""
    names = ", ".join(map(str, paths))
    if url:
        return f"watching {names}; Ctrl-C ends it"
    return (
        f"watching {names}; Ctrl-C ends it. Between changes the store in {path} is free for search "
        "and other commands; to search at any time, and with serve, index into a server: --url"
    )
