"""The cache's second tier: vectors in one SQLite file that outlives the process.

What lives here: reading, writing and the limit. What does not: opening the file (`disk_file`), the
bytes of a vector (`rows`), which vectors are wanted and who computes the missing ones
(`embedding_cache`).
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from unified_embeddings.cache import rows
from unified_embeddings.cache.disk_file import (
    LOCK_TIMEOUT,
    inode_of,
    is_damage,
    open_cache_file,
    set_aside,
)
from unified_embeddings.cache.flights import Guard
from unified_embeddings.cache.keys import Key, Value
from unified_embeddings.errors import InputError

_LOG = logging.getLogger(__name__)

_PATIENCE = 10 * LOCK_TIMEOUT
"""Seconds after which the lock of the connection counts as lost."""
_KEYS_PER_QUERY = 500
"""Keys asked for in one query: older versions of SQLite take at most 999 parameters."""
_FAILURES = (sqlite3.Error, UnicodeDecodeError, OSError, MemoryError)
"""What a failing disk, or a damaged file, raises."""

_inherited: list[sqlite3.Connection] = []
"""A parent process's connections, kept so that a forked child never closes them."""


class DiskTier:
    """Vectors in one SQLite file, shared by any number of processes.

    A failing disk costs time, never an answer: reads and writes that fail (a full disk, a file that
    became read-only) are counted and the first one is logged, and the caller computes the vectors
    anew. A row whose checksum is wrong counts as missing. A damaged file is set aside, and a new
    one is started.

    SQLite itself keeps the file whole through crashes, and locks it between processes. Free space
    is not checked either, since a full disk is just such a failed write.

    Args:
        path: The file; created if it is missing, with its folder.
        max_bytes: Size of the values in it above which the least recently used are deleted.

    Raises:
        InputError: If the file cannot be opened, is another program's, or is of a later version.

    Attributes:
        path: The file's absolute path.
        max_bytes: See above.
        errors: Number of reads and writes that have failed.
    """

    def __init__(self, path: str | os.PathLike[str], max_bytes: int) -> None:
        try:
            self.path = Path(path).expanduser().absolute()
        except (TypeError, RuntimeError) as error:
            raise InputError(f"{path!r} cannot serve as a cache file: {error}") from error
        self.max_bytes = max_bytes
        self.errors = 0
        self._guard = Guard(_PATIENCE)
        self._connection: sqlite3.Connection | None = None
        self._process = os.getpid()
        self._inode = 0
        self._open()

    def get(self, keys: Iterable[Key]) -> dict[Key, Value]:
        """Return the values that are stored, by key. A damaged row counts as missing."""
        values: dict[Key, Value] = {}
        with self._guard.lock():
            try:
                database = self._database()
                for chunk in _chunks(list(keys), _KEYS_PER_QUERY):
                    values.update(self._read(database, chunk))
                if values:
                    _mark_as_used(database, values)
            except _FAILURES as error:
                self._handle(error)
        return values

    def put(self, values: dict[Key, Value]) -> None:
        """Store values, then delete the least recently used ones above the limit."""
        now = time.time()
        packed = []
        for key, value in values.items():
            try:
                packed.append((key, *rows.pack(key, value), now))
            except ValueError as error:  # a vector that should not be given to anybody again
                self._note(error)
        with self._guard.lock():
            try:
                self._insert(packed)
            except _FAILURES as error:
                if self._handle(error):  # There is a new file, which can take them.
                    self._insert_if_possible(packed)

    def clear(self) -> None:
        """Delete every value."""
        with self._guard.lock():
            try:
                database = self._database()
                with database:
                    database.execute("DELETE FROM vectors")
            except _FAILURES as error:
                self._handle(error)

    def close(self) -> None:
        """Close the file."""
        with self._guard.lock():
            if self._connection is not None:
                self._connection.close()

    # --- the connection -------------------------------------------------------------------------

    def _open(self) -> None:
        self._connection = open_cache_file(self.path)
        self._inode = inode_of(self.path)  # 0 if another process has just set it aside

    def _database(self) -> sqlite3.Connection:
        """Return the connection, with no transaction open.

        Raises:
            sqlite3.Error: If there is none.
        """
        if self._process != os.getpid():
            # SQLite's connections do not survive a fork, and closing this one would release the
            # parent's locks.
            if self._connection is not None:
                _inherited.append(self._connection)
            self._process, self._connection = os.getpid(), None
            try:
                self._open()
            except InputError as error:
                raise sqlite3.OperationalError(str(error)) from error
        if self._connection is None:
            raise sqlite3.OperationalError("it could not be opened again")
        if self._connection.in_transaction:  # left by an interrupt
            self._connection.rollback()
        return self._connection

    def _handle(self, error: Exception) -> bool:
        """Note a failure; set a damaged file aside and start a new one.

        Returns:
            Whether there is a new file now.
        """
        if not is_damage(error):
            self._note(error)
            return False
        self.errors += 1
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        try:
            set_aside(self.path, self._inode, "damaged", f"is damaged ({error})")
            self._open()
        except (InputError, OSError) as problem:
            _LOG.warning("The disk cache %s is damaged and bypassed: %s", self.path, problem)
        return self._connection is not None

    def _note(self, error: Exception) -> None:
        """Count a failure, and log the first one."""
        self.errors += 1
        if self.errors == 1:
            _LOG.warning("The disk cache %s fails and is bypassed: %r", self.path, error)

    # --- rows -----------------------------------------------------------------------------------

    def _read(self, database: sqlite3.Connection, keys: list[Key]) -> dict[Key, Value]:
        marks = ",".join("?" * len(keys))
        query = (
            "SELECT key, kind, width, data, checksum FROM vectors "  # noqa: S608 — only question marks
            f"WHERE key IN ({marks})"
        )
        wanted = frozenset(keys)
        values = {}
        for key, *columns in database.execute(query, keys):
            if key not in wanted:  # an index that points to another row
                continue
            try:
                values[key] = rows.unpack(key, rows.Row(*columns))
            except ValueError as error:  # A damaged row: it is computed and written again.
                self._note(error)
        return values

    def _insert(self, packed: Sequence[tuple[object, ...]]) -> None:
        database = self._database()
        with database:
            database.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?, ?, ?, ?, ?)", packed)
        self._shrink(database)

    def _insert_if_possible(self, packed: Sequence[tuple[object, ...]]) -> None:
        try:
            self._insert(packed)
        except _FAILURES as error:
            self._note(error)

    def _shrink(self, database: sqlite3.Connection) -> None:
        """Delete the least recently used tenth, until the values fit the limit."""
        while _used_bytes(database) > self.max_bytes:
            with database:
                deleted = database.execute(
                    "DELETE FROM vectors WHERE key IN (SELECT key FROM vectors ORDER BY used "
                    "LIMIT max(1, (SELECT count(*) FROM vectors) / 10))"
                ).rowcount
            if not deleted:
                return


def _mark_as_used(database: sqlite3.Connection, keys: Iterable[Key]) -> None:
    now = time.time()
    with database:
        database.executemany("UPDATE vectors SET used=? WHERE key=?", [(now, key) for key in keys])


def _used_bytes(database: sqlite3.Connection) -> int:
    """Return the size of the pages in use; the file keeps free ones for later values."""
    (pages,) = database.execute("PRAGMA page_count").fetchone()
    (free,) = database.execute("PRAGMA freelist_count").fetchone()
    (size,) = database.execute("PRAGMA page_size").fetchone()
    return int((pages - free) * size)


def _chunks(items: list[Key], size: int) -> Iterator[list[Key]]:
    """Yield the items in lists of `size`; the last one may be shorter."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
