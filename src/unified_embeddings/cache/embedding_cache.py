"""A bounded store of vectors in front of the model.

What lives here: the LRU in memory, the single flight that computes a missing vector once however
many threads ask, and the optional tier on disk. What does not: what a key means (`key_for` only
digests the fields it is given) and how vectors are computed.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from cachetools import LRUCache

from unified_embeddings.cache.disk_tier import DiskTier
from unified_embeddings.cache.keys import Key, Value
from unified_embeddings.errors import InputError, UnifiedEmbeddingsError

Compute: TypeAlias = Callable[[list[int]], Iterable[tuple[int, Value]]]

_ENTRY_OVERHEAD = 256
"""Bytes an entry costs beside its arrays: key, dict slot and array headers."""
_DISK_BATCH = 512
"""Vectors a write to disk waits for: what a killed process can lose at most."""


@dataclass(frozen=True)
class CacheStats:
    """A snapshot of the counters; one entry is one head of one text.

    Attributes:
        hits: Lookups answered from memory or disk, or by waiting for another thread's result.
        misses: Lookups that had to be computed.
        evictions: Entries dropped from memory to keep within the bounds.
        bytes: Bytes held in memory, overhead included.
        entries: Entries held in memory.
    """

    hits: int
    misses: int
    evictions: int
    bytes: int
    entries: int


class EmbeddingCache:
    """Least-recently-used vectors, bounded in bytes, with one computation per missing key.

    Args:
        max_bytes: Bound of the memory tier in bytes; 0 keeps nothing (single flight still holds).
        max_entries: A second bound, on the number of entries.
        path: A file for a second tier that outlives the process, shared safely between processes
            (SQLite in WAL mode, raw array bytes). Its folder is created.
        max_disk_bytes: Bound of the disk tier in bytes.

    Values are NumPy arrays or SparseVectors; they come back read-only. Thread-safe.

    Raises:
        InputError: If a bound is negative, or `path` is not a cache file of this version.
    """

    def __init__(
        self,
        max_bytes: int = 256 * 2**20,
        max_entries: int | None = None,
        path: str | os.PathLike[str] | None = None,
        *,
        max_disk_bytes: int = 4 * 2**30,
    ) -> None:
        for name, bound in (
            ("max_bytes", max_bytes),
            ("max_entries", max_entries),
            ("max_disk_bytes", max_disk_bytes),
        ):
            if bound is not None and bound < 0:
                raise InputError(f"{name} must be >= 0, got {bound}")
        self.max_bytes = max_bytes
        self.max_entries = max_entries
        self._max_disk_bytes = max_disk_bytes
        self._lock = threading.Lock()
        self._values = _Lru(max_bytes)
        self._in_flight: dict[Key, Future[Value]] = {}
        self._hits = self._misses = 0
        self._disk = None if path is None else DiskTier(Path(path).expanduser(), max_disk_bytes)

    @property
    def hits(self) -> int:
        """Lookups answered without computing; see CacheStats."""
        return self._hits

    @property
    def misses(self) -> int:
        """Lookups that had to be computed."""
        return self._misses

    @property
    def evictions(self) -> int:
        """Entries dropped from memory to keep within the bounds."""
        return self._values.evictions

    @property
    def bytes(self) -> int:
        """Bytes held in memory, overhead included."""
        return int(self._values.currsize)

    @property
    def entries(self) -> int:
        """Entries held in memory."""
        return len(self._values)

    def stats(self) -> CacheStats:
        """All counters, read together."""
        with self._lock:
            return CacheStats(
                self._hits, self._misses, self.evictions, self.bytes, len(self._values)
            )

    def get_or_compute(self, keys: Sequence[Key], compute: Compute) -> list[Value]:
        """The values of `keys`, in order; each distinct missing key is computed once.

        `compute` receives the positions (into `keys`) that nobody has or is computing, one for
        each distinct key, and yields (position, value) pairs in any order. What it has yielded is
        kept even if it raises later. A key that another thread is computing is waited for; if that
        thread fails, this one computes it itself, so that nobody suffers from another caller's
        error.

        Raises:
            Whatever `compute` raises.
            UnifiedEmbeddingsError: If `compute` leaves out a position it was given.
        """
        found: dict[Key, Value] = {}
        wanted = {key: at for at, key in reversed(list(enumerate(keys)))}
        while wanted:
            mine, theirs = self._claim(wanted, found)
            if mine:
                self._compute(mine, compute, found)
            for key, future in theirs.items():
                error = future.exception()
                if error is None:
                    found[key] = future.result()
                    with self._lock:
                        self._hits += 1
            wanted = {key: at for key, at in wanted.items() if key not in found}
        with self._lock:
            self._hits += len(keys) - len({*keys})
        return [found[key] for key in keys]

    def __reduce__(self) -> tuple[object, ...]:
        """Pickled as its bounds and path: a copy in another process shares the disk tier only."""
        path = self._disk.path if self._disk else None
        return _rebuild, (self.max_bytes, self.max_entries, path, self._max_disk_bytes)

    def clear(self) -> None:
        """Forget everything, on disk too; counters stay."""
        with self._lock:
            self._values = _Lru(self.max_bytes, evictions=self._values.evictions)
        if self._disk is not None:
            self._disk.clear()

    def close(self) -> None:
        """Close the disk tier; the memory tier goes on."""
        disk, self._disk = self._disk, None
        if disk is not None:
            disk.close()

    def _claim(
        self, wanted: dict[Key, int], found: dict[Key, Value]
    ) -> tuple[dict[Key, int], dict[Key, Future[Value]]]:
        """Split what is wanted: found in memory, claimed by this thread, under way in another."""
        mine: dict[Key, int] = {}
        theirs: dict[Key, Future[Value]] = {}
        with self._lock:
            for key, at in wanted.items():
                if key in self._values:
                    found[key] = self._values[key]
                    self._hits += 1
                elif key in self._in_flight:
                    theirs[key] = self._in_flight[key]
                else:
                    self._in_flight[key] = Future()
                    mine[key] = at
        return mine, theirs

    def _compute(self, mine: dict[Key, int], compute: Compute, found: dict[Key, Value]) -> None:
        key_at = {at: key for key, at in mine.items()}
        unsaved: dict[Key, Value] = {}
        try:
            for key, value in self._read_disk(mine):
                found[key] = value
                self._publish(key, value)
                del key_at[mine[key]]
            with self._lock:
                self._hits += len(mine) - len(key_at)
                self._misses += len(key_at)
            for at, value in compute(list(key_at)) if key_at else ():
                key = key_at[at]
                found[key] = unsaved[key] = _owned(value)
                self._publish(key, found[key])
                del key_at[at]
                if len(unsaved) >= _DISK_BATCH:
                    self._save(unsaved)
            if key_at:
                raise UnifiedEmbeddingsError(
                    f"{len(key_at)} of {len(mine)} vectors were asked for and not computed"
                )
        except BaseException as error:
            with self._lock:
                abandoned = [self._in_flight.pop(key, None) for key in key_at.values()]
            for future in abandoned:
                if future is not None:
                    future.set_exception(error)
            raise
        finally:
            self._save(unsaved)

    def _read_disk(self, keys: Iterable[Key]) -> list[tuple[Key, Value]]:
        return [] if self._disk is None else list(self._disk.get(keys).items())

    def _save(self, unsaved: dict[Key, Value]) -> None:
        if self._disk is not None and unsaved:
            self._disk.put(unsaved)
        unsaved.clear()

    def _publish(self, key: Key, value: Value) -> None:
        with self._lock:
            self._keep(key, value)
            future = self._in_flight.pop(key)
        future.set_result(value)

    def _keep(self, key: Key, value: Value) -> None:
        """Store under the lock; a value over the bound by itself is not stored."""
        if _size(value) > self.max_bytes or self.max_entries == 0:
            return
        self._values[key] = value
        while self.max_entries is not None and len(self._values) > self.max_entries:
            self._values.popitem()


def _size(value: Value) -> int:
    return value.nbytes + _ENTRY_OVERHEAD


class _Lru(LRUCache[Key, Value]):
    """cachetools' LRU, bounded in bytes, that counts what it drops."""

    def __init__(self, max_bytes: int, evictions: int = 0) -> None:
        super().__init__(max_bytes, getsizeof=_size)
        self.evictions = evictions

    def popitem(self) -> tuple[Key, Value]:
        self.evictions += 1
        return super().popitem()


def _rebuild(
    max_bytes: int, max_entries: int | None, path: Path | None, max_disk_bytes: int
) -> EmbeddingCache:
    return EmbeddingCache(max_bytes, max_entries, path, max_disk_bytes=max_disk_bytes)


def _owned(value: Value) -> Value:
    """Read-only, and no view: a row that pinned its whole batch would break the bound in bytes."""
    if isinstance(value, np.ndarray):
        value = value if value.base is None else value.copy()
        value.setflags(write=False)
    return value
