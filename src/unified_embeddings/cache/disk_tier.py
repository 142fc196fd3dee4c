"""The cache's second tier: vectors in one SQLite file that outlives the process."""

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


_DISK_SCHEMA = 1


_LOCK_TIMEOUT = 30.0
"""Seconds to wait for another process that writes."""


class DiskTier:
    """Vectors in one SQLite file. A failing disk costs speed, never an answer.

    Writes that fail (a full disk, a file made read-only) are logged once and counted; the caller's
    vectors are computed all the same.
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        self.path = path
        self.max_bytes = max_bytes
        self.errors = 0
        self._lock = threading.Lock()
        try:
            make_folder(path.parent)
            self._db = sqlite3.connect(path, timeout=_LOCK_TIMEOUT, check_same_thread=False)
            self._prepare()
        except (sqlite3.Error, OSError) as error:
            raise InputError(
                f"{path} cannot serve as a cache file: {error}. Give the path of a new file, or "
                "delete this one if it is a cache"
            ) from error

    def _prepare(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")
        with self._db:
            self._create_schema()
        # After the check: the mode is written into the file, which may be another program's.
        self._use_wal()
        self._db.execute("PRAGMA synchronous=NORMAL")

    def _use_wal(self) -> None:
        """SQLite does not wait for other connections when it switches, so this does."""
        give_up = time.monotonic() + _LOCK_TIMEOUT
        while True:
            try:
                self._db.execute("PRAGMA journal_mode=WAL")
                return
            except sqlite3.OperationalError:
                if time.monotonic() > give_up:
                    raise
                time.sleep(0.01)

    def _create_schema(self) -> None:
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        (tables,) = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if version not in (0, _DISK_SCHEMA) or (version == 0 and tables):
            raise InputError(
                f"{self.path} is a database of another kind or version (expected cache schema "
                f"{_DISK_SCHEMA}, found {version}); give another path"
            )
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS vectors (key BLOB PRIMARY KEY, kind INTEGER NOT NULL, "
            "width INTEGER NOT NULL, data BLOB NOT NULL, used REAL NOT NULL)"
        )
        self._db.execute("CREATE INDEX IF NOT EXISTS by_use ON vectors (used)")
        self._db.execute(f"PRAGMA user_version={_DISK_SCHEMA}")

    def get(self, keys: Iterable[bytes]) -> dict[bytes, Value]:
        """Return the values that are stored, by key; a damaged row counts as missing."""
        found = {}
        with self._lock:
            try:
                for chunk in _chunks(list(keys), 500):
                    marks = ",".join("?" * len(chunk))
                    query = f"SELECT key, kind, width, data FROM vectors WHERE key IN ({marks})"  # noqa: S608 — only question marks
                    for key, kind, width, data in self._db.execute(query, chunk):
                        try:
                            found[key] = _unpack(kind, width, data)
                        except ValueError as error:  # a damaged row: computed and written again
                            self._note(error)
                if found:
                    now = time.time()
                    with self._db:
                        self._db.executemany(
                            "UPDATE vectors SET used=? WHERE key=?", [(now, k) for k in found]
                        )
            except sqlite3.Error as error:
                self._note(error)
        return found

    def put(self, values: dict[bytes, Value]) -> None:
        """Store values, then drop the least recently used ones over the bound."""
        now = time.time()
        rows = [(key, *_pack(value), now) for key, value in values.items()]
        with self._lock:
            try:
                with self._db:
                    self._db.executemany(
                        "INSERT OR REPLACE INTO vectors VALUES (?, ?, ?, ?, ?)", rows
                    )
                self._shrink()
            except sqlite3.Error as error:
                self._note(error)

    def clear(self) -> None:
        """Delete every value."""
        with self._lock:
            try:
                with self._db:
                    self._db.execute("DELETE FROM vectors")
            except sqlite3.Error as error:
                self._note(error)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    def _shrink(self) -> None:
        """Drop the least recently used tenth while the pages in use exceed the bound."""
        while self._used() > self.max_bytes:
            with self._db:
                dropped = self._db.execute(
                    "DELETE FROM vectors WHERE key IN (SELECT key FROM vectors ORDER BY used "
                    "LIMIT max(1, (SELECT count(*) FROM vectors) / 10))"
                ).rowcount
            if not dropped:
                return

    def _used(self) -> int:
        (pages,) = self._db.execute("PRAGMA page_count").fetchone()
        (free,) = self._db.execute("PRAGMA freelist_count").fetchone()
        (size,) = self._db.execute("PRAGMA page_size").fetchone()
        return int((pages - free) * size)

    def _note(self, error: sqlite3.Error | ValueError) -> None:
        self.errors += 1
        if self.errors == 1:
            _LOG.warning("The disk cache %s fails and is passed over: %s", self.path, error)


_ARRAY_1D, _ARRAY_2D, _SPARSE = 0, 1, 2


def _pack(value: Value) -> tuple[int, int, bytes]:
    """(kind, width, little-endian bytes); width is the row length of a 2-d array, else nnz or n."""
    if isinstance(value, SparseVector):
        raw = value.indices.astype("<i4").tobytes() + value.values.astype("<f4").tobytes()
        return _SPARSE, len(value), raw
    kind = _ARRAY_1D if value.ndim == 1 else _ARRAY_2D
    return kind, value.shape[-1], value.astype("<f4").tobytes()


def _unpack(kind: int, width: int, data: bytes) -> Value:
    if kind == _SPARSE:
        return SparseVector(
            np.frombuffer(data, "<i4", count=width),
            np.frombuffer(data, "<f4", offset=4 * width),
        )
    array = np.frombuffer(data, "<f4")
    if kind == _ARRAY_1D and len(array) != width:
        raise ValueError(f"a vector of {width} numbers holds {len(array)}")
    return array if kind == _ARRAY_1D else array.reshape(-1, width)


def _chunks(items: list[bytes], size: int) -> Iterator[list[bytes]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
