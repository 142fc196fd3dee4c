"""One collection's points: a shard of Qdrant's core in a folder, kept safe from crashes.

What lives here: loading, reading, writing, flushing and optimising a shard. What does not: what is
asked of the core (`queries`) or written to it (`points`), which shards exist (`catalog`), and how
damage to the files is recognised (`seal`, `probe`).

The core logs every write before it applies it, so acknowledged writes survive a killed process. Two
of its properties shape this module. It holds Python's interpreter lock while it works, so no other
thread runs meanwhile: writes come in small pieces, and indexes are built in another process. A full
disk ends the process (SIGBUS, from a write to a mapped page that cannot be allocated): free space
is checked before each write.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shlex
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from stat import S_ISREG
from typing import TypeVar

import qdrant_edge as core

from unified_embeddings.errors import InputError, StoreError, UnifiedEmbeddingsError
from unified_embeddings.stores.edge.core_types import CoreConfig, CoreShard, CoreUpdate
from unified_embeddings.stores.edge.optimizer import optimize_folder
from unified_embeddings.stores.edge.probe import ReadReport, read_shard
from unified_embeddings.stores.edge.seal import (
    Seal,
    break_seal,
    find_damage,
    find_damage_after_crash,
    forget_indexes,
    forget_last_seal,
    read_seal,
    write_seal,
)
from unified_embeddings.system.files import (
    NoSpaceError,
    copy_with_holes,
    make_folder,
    require_space,
    sync_tree,
)
from unified_embeddings.system.processes import ChildFailedError, ChildProcess
from unified_embeddings.system.signals import uninterrupted

T = TypeVar("T")

_RESERVE = 64 * 2**20
"""Bytes that must be free in addition to a write: the core's log grows by 32 MiB at a time."""
_SMALLEST_WRITE = 1024
"""Bytes that an operation counts as at least: deletions take space in the log too."""
_FLUSH_EVERY = 32 * 2**20
"""Bytes written after which the log is flushed, so that it stays short."""
_STAT_BLOCK = 512
"""Bytes that `st_blocks` counts in (POSIX)."""
_CALLERS_ERRORS = (
    "Validation failed", "No range index", "No appropriate index", "Wrong", "Not existing vector",
    "Payload type error", "Cannot",
)  # fmt: skip
"""How the core's errors begin that the request is to blame for, not the files."""
_READ_SECONDS = 60.0
_READ_BYTES_PER_SECOND = 5 * 10**6
"""How long reading all of a shard may take, far above what it does, before it counts as hanging."""
_LOG = logging.getLogger(__name__)


@contextlib.contextmanager
def core_errors(collection: str, operation: str) -> Iterator[None]:
    """Turn what the core raises, panics included, into a StoreError that names the collection.

    What it raises because of the request becomes an InputError.
    """
    try:
        yield
    except UnifiedEmbeddingsError:
        raise
    except Exception as error:
        if str(error).startswith(_CALLERS_ERRORS):
            raise InputError(f"{operation} is not possible: {str(error).strip()}") from error
        raise StoreError(collection, operation, str(error).strip()) from error
    except BaseException as error:
        # A panic arrives as pyo3's PanicException, which is not an Exception and not public.
        if type(error).__name__ != "PanicException":
            raise
        raise StoreError(
            collection, operation, f"Qdrant's core failed: {error}. Open the store again"
        ) from error


class Shard:
    """The points of one collection, loaded on first use.

    Reads take no lock. Writes are made one at a time, by the holder of `writing`.

    Args:
        collection: The collection's name, for messages.
        folder: The folder of its files.

    Attributes:
        collection: The collection's name.
        folder: The current folder of its files. `optimize` changes it.
        closed: Whether `close` was called.
        writing: Held by the writer, and by `optimize` for as long as it runs.
    """

    def __init__(self, collection: str, folder: Path) -> None:
        self.collection = collection
        self.folder = folder
        self.closed = False
        self.writing = threading.RLock()
        self._core: CoreShard | None = None
        self._unflushed_bytes = 0
        self._optimizer: ChildProcess[bool] | None = None
        self._optimizer_unwanted = False
        # The checksums of its files when it was opened; None if they cannot be used again.
        self._seal: Seal | None = None

    def create(self, config: CoreConfig, updates: Sequence[CoreUpdate] = ()) -> None:
        """Create an empty shard.

        Args:
            config: The core's settings.
            updates: Operations that create its payload indexes.

        Raises:
            StoreError: If the core refuses, or the disk is full.
        """
        with self.writing, core_errors(self.collection, "creating the collection"):
            self._require_space("creating the collection")
            make_folder(self.folder)
            self._core = core.EdgeShard.create(str(self.folder), config)
            for update in updates:
                self._core.update(update)
            self._core.flush()
            # The catalogue is about to name these files, and it outlives a loss of power. A thread
            # of the core's goes on preparing the log's next segment, so files may be renamed now.
            sync_tree(self.folder)

    def read(self, operation: str, call: Callable[[CoreShard], T]) -> T:
        """Return what `call` gets from the core's shard.

        Raises:
            StoreError: If the core fails, or the store was closed.
        """
        with core_errors(self.collection, operation):
            return call(self._load())

    def write(self, operation: str, update: CoreUpdate, *, size: int = 0) -> None:
        """Apply one of the core's operations. Once this returns, a crash does not undo it.

        Args:
            operation: What is being done, for messages.
            update: The core's UpdateOperation.
            size: Approximate bytes that it adds.

        Raises:
            StoreError: If the core fails, the disk is full, or the store was closed.
        """
        with self.writing, core_errors(self.collection, operation):
            shard = self._load()
            # Once in the log and once in the segment, both of which may double to grow.
            self._require_space(operation, 4 * size)
            self._seal = None
            shard.update(update)
            self._unflushed_bytes += max(size, _SMALLEST_WRITE)
            if self._unflushed_bytes >= _FLUSH_EVERY:
                self._flush(shard)

    def write_alone(self, operation: str, update: CoreUpdate) -> None:
        """Apply an operation that changes what a vector's name means, between two flushes.

        After a crash the core replays its log against the vector names of that time. If the log
        held writes from before this operation, they would be lost.

        Raises:
            StoreError: If the core fails, the disk is full, or the store was closed.
        """
        with self.writing:
            self.flush()
            forget_last_seal(self.folder)
            self.write(operation, update)
            self.flush()

    def write_index(self, operation: str, update: CoreUpdate) -> None:
        """Apply an operation that creates or drops a payload index.

        Raises:
            StoreError: If the core fails, the disk is full, or the store was closed.
        """
        with self.writing, core_errors(self.collection, operation):
            self._load()
            self._require_space(operation)
            forget_indexes(self.folder)
            self.write(operation, update)

    def flush(self) -> None:
        """Force everything written to the disk itself, so that it survives a loss of power.

        Raises:
            StoreError: If the core fails, or the store was closed.
        """
        with self.writing, core_errors(self.collection, "flushing"):
            self._flush(self._load())

    def disk_bytes(self) -> int:
        """Return the bytes that its files take on disk."""
        return _disk_usage(self.folder)

    def vector_names(self) -> set[str] | None:
        """Return the names of the vectors on disk.

        None if they cannot be read. Loading the shard then fails too, and says why.
        """
        try:
            config = json.loads((self.folder / "edge_config.json").read_text("utf-8"))
            return {*config["vectors"], *config["sparse_vectors"]}
        except (OSError, ValueError, LookupError, TypeError):
            return None

    def close(self, *, keep: bool = True) -> None:
        """Close the files, and end a running `optimize`. Idempotent.

        Args:
            keep: Whether to flush the log first; not needed if the files will be deleted.

        Raises:
            StoreError: If the log cannot be flushed. It is, when the shard is next opened.
        """
        self.closed = True
        optimizer = self._optimizer
        if optimizer is not None:
            # Killed before the lock is taken: the thread that waits for this process holds it.
            optimizer.kill()
        with self.writing, core_errors(self.collection, "closing"):
            shard, self._core = self._core, None
            if shard is None:
                return
            points_count = 0
            try:
                if keep:
                    if self._seal is None:  # otherwise nothing was written
                        shard.flush()
                    points_count = int(shard.count(core.CountRequest(exact=True)))
            finally:
                shard.close()
            if keep:
                self._write_seal(points_count)

    def stop_optimizing(self) -> None:
        """End a running `optimize`, which then raises a StoreError; nothing has changed."""
        self._optimizer_unwanted = True
        optimizer = self._optimizer
        if optimizer is not None:
            optimizer.kill()

    def optimize(
        self,
        folder: Path,
        commit: Callable[[], None],
        current_config: Callable[[], CoreConfig] | None = None,
    ) -> bool:
        """Merge and index the points in a copy, in another process, then switch to the copy.

        Reads continue meanwhile, writes wait. If it is interrupted, nothing has changed.

        Args:
            folder: Where the copy goes.
            commit: Called when the copy is complete, to make it the collection's. If it raises,
                the original stays the collection's.
            current_config: Returns the settings to build by; None are those it has.

        Returns:
            Whether there was something to do. If not, the copy is deleted again.

        Raises:
            StoreError: If there is no space for the copy, or the core fails.
        """
        with self.writing, core_errors(self.collection, "optimizing"):
            self._optimizer_unwanted = False
            self._flush(self._load())
            # For the copy, and for its new segments while the ones they replace still exist.
            self._require_space("optimizing", 3 * _disk_usage(self.folder))
            try:
                shutil.copytree(self.folder, folder, copy_function=copy_with_holes)
                if current_config is not None:
                    # They may have been changed since the files were written.
                    core.EdgeShard.load(str(folder), current_config()).close()
                has_changed = self._optimize_copy(folder)
                if has_changed:
                    # It names the segments that were merged, whose absence is no damage.
                    forget_last_seal(folder)
                    # The core flushes its own writes, not those of `copytree`. The original will
                    # be deleted, so the whole copy must be on the disk before `commit`.
                    sync_tree(folder)
                    self._switch_to(folder, commit)
            finally:
                if self.folder != folder:
                    shutil.rmtree(folder, ignore_errors=True)
            return has_changed

    def _optimize_copy(self, folder: Path) -> bool:
        """Optimise the shard in a folder, in a process of its own.

        Returns:
            Whether there was something to do.

        Raises:
            RuntimeError: If that process fails, or the store is closed meanwhile.
        """
        has_changed = False
        with ChildProcess(optimize_folder, [str(folder)], show_stderr=False) as process:
            self._optimizer = process
            try:
                # These may have come before there was a process to kill.
                if self.closed or self._optimizer_unwanted:
                    process.kill()
                has_changed = process.result()
            except ChildFailedError as error:
                if self._optimizer_unwanted:
                    raise RuntimeError("the collection was emptied meanwhile") from error
                if not self.closed:
                    raise
            finally:
                self._optimizer = None
        if self.closed:
            raise RuntimeError("the store was closed meanwhile")
        return has_changed

    def _switch_to(self, folder: Path, commit: Callable[[], None]) -> None:
        """Load the copy in a folder and make it the collection's."""
        new_core = core.EdgeShard.load(str(folder))

        def switch() -> None:
            commit()
            # The old one is not closed here: a reader may be using it. It is released with the
            # last reference.
            self._core, self.folder, self._seal = new_core, folder, None

        # An interrupt between the two would leave the catalogue and this object apart.
        uninterrupted(switch)

    def _load(self) -> CoreShard:
        """Return the core's shard, loaded now if it is not yet."""
        shard = self._core
        if shard is not None:
            return shard
        with self.writing:
            if self.closed:
                raise StoreError(
                    self.collection, "opening", "it was deleted, or the store has been closed"
                )
            if self._core is None:
                # Loading writes what is in the log to the segments.
                self._require_space("opening", _disk_usage(self.folder / "wal"))
                self._check_files()
                self._core = core.EdgeShard.load(str(self.folder))
            return self._core

    def _check_files(self) -> None:
        """Make sure that the core can load the files, before it does so in this process.

        Raises:
            StoreError: If one is not as it was when the shard was closed. If it was not closed, and
                its points cannot be read.
        """
        self._seal = read_seal(self.folder)
        if self._seal is None:
            damage = find_damage_after_crash(self.folder)
        else:
            damage = find_damage(self.folder, self._seal)
        if damage:
            more = f", and {len(damage) - 1} more" if len(damage) > 1 else ""
            raise self._damage_error(f"since it was closed, {damage[0]}{more}")
        if self._seal is None:
            _LOG.info("Collection %r was not closed; reading all of it.", self.collection)
            try:
                read_in_child(self.folder)
            except ChildFailedError as error:
                raise self._damage_error(str(error)) from error
        break_seal(self.folder)

    def _damage_error(self, problem: str) -> StoreError:
        return StoreError(
            self.collection,
            "opening",
            f"its files are damaged, or were changed by other software: {problem}. They are left "
            f"alone in {self.folder}; restore the store from a backup, or see what can be read "
            f"with: unified-embeddings check {shlex.quote(str(self.folder.parents[1]))}",
        )

    def _write_seal(self, points_count: int) -> None:
        """Record the checksums of the files; without them the next opening reads all of them."""
        try:
            write_seal(self.folder, points_count, unchanged=self._seal)
        except OSError as error:
            _LOG.info("Collection %r has no checksums: %s", self.collection, error)

    def _flush(self, shard: CoreShard) -> None:
        shard.flush()
        self._unflushed_bytes = 0

    def _require_space(self, operation: str, size: int = 0) -> None:
        """Refuse an operation that may fill the disk, which the core does not survive.

        Raises:
            StoreError: If fewer than `size` bytes are free in addition to the reserve.
        """
        try:
            require_space(self.folder, _RESERVE + size)
        except NoSpaceError as error:
            raise StoreError(
                self.collection,
                operation,
                f"{error}; make room and try again. What was stored before is safe",
            ) from error


def read_in_child(folder: Path) -> ReadReport | None:
    """Load a shard, and read and flush all of it, in another process, which may come to grief.

    Returns:
        What was read; None in a frozen program, which cannot start another process.

    Raises:
        ChildFailedError: If it cannot be loaded or read, or that takes far longer than it should.
    """
    seconds = _READ_SECONDS + _disk_usage(folder) / _READ_BYTES_PER_SECOND
    try:
        process = ChildProcess(read_shard, [str(folder)], show_stderr=False)
    except ChildFailedError:
        return None
    with process:
        deadline = threading.Timer(seconds, process.kill)
        deadline.daemon = True
        deadline.start()
        try:
            return process.result()
        finally:
            deadline.cancel()


def _disk_usage(folder: Path) -> int:
    """Return the bytes that a folder's files use on disk.

    The core's files are mostly holes, which use none. Windows does not report what is used, so
    there it is the files' lengths.
    """
    used_bytes = 0
    for file in folder.rglob("*"):
        # A file may go meanwhile: the core's log drops segments that were flushed.
        with contextlib.suppress(FileNotFoundError):
            stat = file.stat()
            if not S_ISREG(stat.st_mode):
                continue
            size = stat.st_size
            if hasattr(stat, "st_blocks"):
                size = min(size, _STAT_BLOCK * stat.st_blocks)
            used_bytes += size
    return used_bytes
