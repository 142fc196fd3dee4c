"""One collection's points: a shard of Qdrant's core in a folder, and what keeps it whole.

The core logs every write before it applies it, so what was acknowledged outlives a killed process.
It holds Python's interpreter while it works (no other thread runs meanwhile), and a full disk ends
the process (SIGBUS, a write to a mapped page with nothing behind it). Hence here: writes in small
pieces, a look at the free space before each, indexes built in a process of their own.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import qdrant_edge as core

from unified_embeddings.errors import StoreError, UnifiedEmbeddingsError
from unified_embeddings.stores.edge.optimizer import optimize_folder
from unified_embeddings.system.files import (
    NoSpaceError,
    make_folder,
    require_space,
    sync_tree,
    uninterrupted,
)
from unified_embeddings.system.processes import ChildFailedError, ChildProcess

T = TypeVar("T")

_RESERVE = 64 * 2**20
"""Bytes that must be free beside a write: the core's log grows by 32 MiB at a time."""
_LEAST = 1024
"""Bytes that an operation is counted with at least: deletions take room in the log too."""
_FLUSH_EVERY = 32 * 2**20
"""Bytes written after which the log is brought home, so that it stays short."""
_BLOCK = 64 * 2**10


@contextlib.contextmanager
def core_errors(collection: str, operation: str) -> Iterator[None]:
    """Turn what the core raises, a panic included, into a StoreError that says where."""
    try:
        yield
    except UnifiedEmbeddingsError:
        raise
    except Exception as error:
        raise StoreError(collection, operation, str(error).strip()) from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # pyo3's, not an Exception and not public
            raise
        raise StoreError(
            collection, operation, f"Qdrant's core failed: {error}. Open the store again"
        ) from error


class Shard:
    """The points of one collection, loaded when they are first asked for.

    Reads need no lock; writes are made one at a time, by who holds `writing`.

    Args:
        collection: The collection's name, for messages.
        folder: Where its files are.

    Attributes:
        collection: The collection's name.
        folder: Where its files are now; `optimize` moves them.
        closed: Whether `close` was called.
        writing: Held by who writes, and by `optimize` for as long as it takes.
    """

    def __init__(self, collection: str, folder: Path) -> None:
        self.collection = collection
        self.folder = folder
        self.closed = False
        self.writing = threading.RLock()
        self._core: Any = None
        self._unflushed = 0
        self._optimizer: ChildProcess[bool] | None = None

    def create(self, config: Any) -> None:
        """Make it, empty.

        Raises:
            StoreError: If the core refuses, or there is no room.
        """
        with self.writing, core_errors(self.collection, "creating the collection"):
            self._require_space("creating the collection")
            make_folder(self.folder)
            self._core = core.EdgeShard.create(str(self.folder), config)
            self._core.flush()
            # The catalogue will name these files for good, so they must be on the disk before.
            sync_tree(self.folder)

    def read(self, operation: str, call: Callable[[Any], T]) -> T:
        """Let `call` ask the core something.

        Raises:
            StoreError: If the core fails, or the store was closed.
        """
        with core_errors(self.collection, operation):
            return call(self._loaded())

    def write(self, operation: str, update: Any, *, size: int = 0) -> None:
        """Apply one of the core's operations; when it returns, a crash cannot undo it.

        Args:
            operation: What is done, for messages.
            update: The core's UpdateOperation.
            size: About how many bytes it brings.

        Raises:
            StoreError: If the core fails, the disk is full, or the store was closed.
        """
        with self.writing, core_errors(self.collection, operation):
            shard = self._loaded()
            self._require_space(operation, 4 * size)  # in the log and the segment, and to grow
            shard.update(update)
            self._unflushed += max(size, _LEAST)
            if self._unflushed >= _FLUSH_EVERY:
                self._flush(shard)

    def write_alone(self, operation: str, update: Any) -> None:
        """Apply an operation that changes what a vector's name means.

        The log must not span it: what was written before would be replayed, after a crash, against
        the vectors there are since.
        """
        with self.writing:
            self.flush()
            self.write(operation, update)
            self.flush()

    def flush(self) -> None:
        """Force everything written to the disk itself, against a loss of power too."""
        with self.writing, core_errors(self.collection, "flushing"):
            self._flush(self._loaded())

    def vector_names(self) -> set[str] | None:
        """The vectors it has on disk; None if that cannot be read, which loading it will tell."""
        try:
            config = json.loads((self.folder / "edge_config.json").read_text("utf-8"))
            return {*config["vectors"], *config["sparse_vectors"]}
        except (OSError, ValueError, LookupError, TypeError):
            return None

    def close(self, *, keep: bool = True) -> None:
        """Let go of the files, the log brought home unless they are to go; twice is once.

        Raises:
            StoreError: If the log cannot be brought home; the next one to open the shard does it.
        """
        self.closed = True
        optimizer = self._optimizer
        if optimizer is not None:
            optimizer.kill()  # who waits for it holds `writing`
        with self.writing, core_errors(self.collection, "closing"):
            shard, self._core = self._core, None
            if shard is None:
                return
            try:
                if keep:
                    shard.flush()
            finally:
                shard.close()

    def optimize(self, folder: Path, commit: Callable[[], None]) -> bool:
        """Merge and index the points in a copy, in another process, and then work on the copy.

        Reads go on meanwhile, writes wait. Stopped at any time, nothing has changed.

        Args:
            folder: Where the copy goes.
            commit: Called when the copy is ready, to make it the collection's; if it raises, it has
                not.

        Returns:
            Whether there was something to do; if not, the copy is gone again.

        Raises:
            StoreError: If there is no room for the copy, or the core fails.
        """
        with self.writing, core_errors(self.collection, "optimizing"):
            self._flush(self._loaded())
            # The copy, and its segments beside what they are merged into.
            self._require_space("optimizing", 3 * _allocated(self.folder))
            try:
                shutil.copytree(self.folder, folder, copy_function=_copy_with_holes)
                changed = self._optimize_copy(folder)
                if changed:
                    # The core flushes what it has written, not what `copytree` has. The original
                    # is deleted after `commit`, so by then the whole copy must be on the disk.
                    sync_tree(folder)
                    new = core.EdgeShard.load(str(folder))

                    def swap() -> None:
                        commit()
                        # Not closed here: a reader may be in it, and its last one lets go of it.
                        self._core, self.folder = new, folder

                    uninterrupted(swap)
            finally:
                if self.folder != folder:
                    shutil.rmtree(folder, ignore_errors=True)
            return changed

    def _optimize_copy(self, folder: Path) -> bool:
        """Optimize the shard in a folder, in a process that ends with the wait for it.

        Raises:
            RuntimeError: If that process fails.
        """
        has_changed = False
        with ChildProcess(optimize_folder, [str(folder)], show_stderr=False) as process:
            self._optimizer = process
            try:
                if self.closed:  # `close` may have come before there was a process to kill.
                    process.kill()
                has_changed = process.result()
            except ChildFailedError:
                if not self.closed:
                    raise
            finally:
                self._optimizer = None
        if self.closed:
            raise RuntimeError("the store was closed meanwhile")
        return has_changed

    def _loaded(self) -> Any:
        shard = self._core
        if shard is not None:
            return shard
        with self.writing:
            if self.closed:
                raise StoreError(
                    self.collection, "opening", "it was deleted, or the store has been closed"
                )
            if self._core is None:
                # What is in the log is written to the segments when a shard is loaded.
                self._require_space("opening", _allocated(self.folder / "wal"))
                self._core = core.EdgeShard.load(str(self.folder))
            return self._core

    def _flush(self, shard: Any) -> None:
        shard.flush()
        self._unflushed = 0

    def _require_space(self, operation: str, size: int = 0) -> None:
        """Refuse what may fill the disk, which the core does not survive.

        Raises:
            StoreError: If there are not `size` bytes free beside the reserve.
        """
        try:
            require_space(self.folder, _RESERVE + size)
        except NoSpaceError as error:
            raise StoreError(
                self.collection,
                operation,
                f"{error}; make room and try again. What was stored before is safe",
            ) from error


def _allocated(folder: Path) -> int:
    """Bytes that the files under a folder take on disk: holes, of which the core has many, none."""
    stats = [file.stat() for file in folder.rglob("*") if file.is_file()]
    return sum(min(one.st_size, 512 * getattr(one, "st_blocks", one.st_size)) for one in stats)


def _copy_with_holes(source: str, target: str) -> None:
    """Copy a file, blocks of zeros as holes: the core's files are longer than what is in them."""
    with Path(source).open("rb") as reading, Path(target).open("wb") as writing:
        while block := reading.read(_BLOCK):
            if any(block):
                writing.write(block)
            else:
                writing.seek(len(block), os.SEEK_CUR)
        writing.truncate(reading.tell())
