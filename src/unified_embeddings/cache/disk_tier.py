"""The cache's second tier: vectors in one SQLite file that outlives the process.

What lives here: the file, its schema and its limit. What does not: which vectors are wanted and who
computes the missing ones (`embedding_cache`).
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from unified_embeddings.cache.keys import Value
from unified_embeddings.errors import InputError
from unified_embeddings.system.files import make_folder
from unified_embeddings.types import SparseVector

_LOG = logging.getLogger(__name__)

_SCHEMA_VERSION = 1
"""Written into the file (PRAGMA user_version)."""
_LOCK_TIMEOUT = 30.0
"""Seconds to wait for another process that is writing."""
_LOCK_POLL = 0.01
"""Seconds between two attempts to switch the journal mode."""
_KEYS_PER_QUERY = 500
"""Keys asked for in one query: older versions of SQLite take at most 999 parameters."""
_ARRAY_1D, _ARRAY_2D, _SPARSE = 0, 1, 2
"""Values of the column "kind"."""


class DiskTier:
    """Vectors in one SQLite file, shared by any number of processes.

    A failing disk costs time, never an answer: writes that fail (a full disk, a file that became
    read-only) are counted and the first one is logged, and the caller computes the vectors anew.

    SQLite itself keeps the file whole through crashes, and locks it between processes. Free space
    is not checked either, since a full disk is just such a failed write.

    Args:
        path: The file; created if it is missing, with its folder.
        max_bytes: Size of the values in it above which the least recently used are deleted.

    Raises:
        InputError: If the file cannot be opened, or is not a cache of this version.

    Attributes:
        path: The file.
        max_bytes: See above.
        errors: Number of reads and writes that have failed.
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        self.path = path
        self.max_bytes = max_bytes
        self.errors = 0
        self._lock = threading.Lock()
        try:
            make_folder(path.parent)
            self._database = sqlite3.connect(path, timeout=_LOCK_TIMEOUT, check_same_thread=False)
            self._prepare()
        except (sqlite3.Error, OSError) as error:
            raise InputError(
                f"{path} cannot serve as a cache file: {error}. Give the path of a new file, or "
                "delete this one if it is a cache"
            ) from error

    def _prepare(self) -> None:
        self._database.execute("BEGIN IMMEDIATE")
        with self._database:
            self._create_schema()
        # After the check, since the journal mode is written into the file, which may turn out to
        # be another program's.
        self._use_write_ahead_log()
        # A transaction may be lost with the power then, but the file stays whole.
        self._database.execute("PRAGMA synchronous=NORMAL")

    def _use_write_ahead_log(self) -> None:
        """Switch the journal mode, waiting for other connections, which SQLite does not do here."""
        deadline = time.monotonic() + _LOCK_TIMEOUT
        while True:
            try:
                self._database.execute("PRAGMA journal_mode=WAL")
                return
            except sqlite3.OperationalError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(_LOCK_POLL)

    def _create_schema(self) -> None:
        """Create the table, unless it exists.

        Raises:
            InputError: If the file is another program's, or of another version.
        """
        (version,) = self._database.execute("PRAGMA user_version").fetchone()
        (tables,) = self._database.execute("SELECT count(*) FROM sqlite_master").fetchone()
        is_new = version == 0 and tables == 0
        if not is_new and version != _SCHEMA_VERSION:
            raise InputError(
                f"{self.path} is a database of another kind or version (expected cache schema "
                f"{_SCHEMA_VERSION}, found {version}); give another path"
            )
        self._database.execute(
            "CREATE TABLE IF NOT EXISTS vectors (key BLOB PRIMARY KEY, kind INTEGER NOT NULL, "
            "width INTEGER NOT NULL, data BLOB NOT NULL, used REAL NOT NULL)"
        )
        self._database.execute("CREATE INDEX IF NOT EXISTS by_use ON vectors (used)")
        self._database.execute(f"PRAGMA user_version={_SCHEMA_VERSION}")

    def get(self, keys: Iterable[bytes]) -> dict[bytes, Value]:
        """Return the values that are stored, by key. A damaged row counts as missing."""
        values: dict[bytes, Value] = {}
        with self._lock:
            try:
                for chunk in _chunks(list(keys), _KEYS_PER_QUERY):
                    values.update(self._read(chunk))
                if values:
                    self._mark_as_used(values)
            except sqlite3.Error as error:
                self._note(error)
        return values

    def _read(self, keys: list[bytes]) -> dict[bytes, Value]:
        marks = ",".join("?" * len(keys))
        query = f"SELECT key, kind, width, data FROM vectors WHERE key IN ({marks})"  # noqa: S608 — only question marks
        values = {}
        for key, kind, width, data in self._database.execute(query, keys):
            try:
                values[key] = _unpack(kind, width, data)
            except ValueError as error:  # A damaged row: it is computed and written again.
                self._note(error)
        return values

    def _mark_as_used(self, keys: Iterable[bytes]) -> None:
        now = time.time()
        with self._database:
            self._database.executemany(
                "UPDATE vectors SET used=? WHERE key=?", [(now, key) for key in keys]
            )

    def put(self, values: dict[bytes, Value]) -> None:
        """Store values, then delete the least recently used ones above the limit."""
        now = time.time()
        rows = [(key, *_pack(value), now) for key, value in values.items()]
        with self._lock:
            try:
                with self._database:
                    self._database.executemany(
                        "INSERT OR REPLACE INTO vectors VALUES (?, ?, ?, ?, ?)", rows
                    )
                self._shrink()
            except sqlite3.Error as error:
                self._note(error)

    def clear(self) -> None:
        """Delete every value."""
        with self._lock:
            try:
                with self._database:
                    self._database.execute("DELETE FROM vectors")
            except sqlite3.Error as error:
                self._note(error)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._database.close()

    def _shrink(self) -> None:
        """Delete the least recently used tenth, until the values fit the limit."""
        while self._used_bytes() > self.max_bytes:
            with self._database:
                deleted = self._database.execute(
                    "DELETE FROM vectors WHERE key IN (SELECT key FROM vectors ORDER BY used "
                    "LIMIT max(1, (SELECT count(*) FROM vectors) / 10))"
                ).rowcount
            if not deleted:
                return

    def _used_bytes(self) -> int:
        """Return the size of the pages in use; the file keeps free ones for later values."""
        (pages,) = self._database.execute("PRAGMA page_count").fetchone()
        (free,) = self._database.execute("PRAGMA freelist_count").fetchone()
        (size,) = self._database.execute("PRAGMA page_size").fetchone()
        return int((pages - free) * size)

    def _note(self, error: sqlite3.Error | ValueError) -> None:
        """Count a failure, and log the first one."""
        self.errors += 1
        if self.errors == 1:
            _LOG.warning("The disk cache %s fails and is bypassed: %s", self.path, error)


def _pack(value: Value) -> tuple[int, int, bytes]:
    """Return a value's row: kind, width and little-endian bytes.

    The width is the row length of a 2-d array, the length of a 1-d one, and the number of weights
    of a sparse vector.
    """
    if isinstance(value, SparseVector):
        raw = value.indices.astype("<i4").tobytes() + value.values.astype("<f4").tobytes()
        return _SPARSE, len(value), raw
    kind = _ARRAY_1D if value.ndim == 1 else _ARRAY_2D
    return kind, value.shape[-1], value.astype("<f4").tobytes()


def _unpack(kind: int, width: int, data: bytes) -> Value:
    """Return the value of a row.

    Raises:
        ValueError: If the row is damaged.
    """
    if kind == _SPARSE:
        return SparseVector(
            np.frombuffer(data, "<i4", count=width),
            np.frombuffer(data, "<f4", offset=4 * width),
        )
    array = np.frombuffer(data, "<f4")
    if kind == _ARRAY_2D:
        return array.reshape(-1, width)
    if kind != _ARRAY_1D or len(array) != width:
        raise ValueError(f"a row of kind {kind} and width {width} holds {len(array)} numbers")
    return array


def _chunks(items: list[bytes], size: int) -> Iterator[list[bytes]]:
    """Yield the items in lists of `size`; the last one may be shorter."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
