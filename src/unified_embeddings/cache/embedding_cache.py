"""A bounded cache of vectors in front of the model.

What lives here: the least-recently-used values in memory, and the single flight that computes a
missing vector once, however many threads ask for it. What does not: what a key means (`keys` only
digests the fields it is given), the tier on disk (`disk_tier`) and how vectors are computed.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
from cachetools import LRUCache

from unified_embeddings.cache.disk_tier import DiskTier
from unified_embeddings.cache.keys import Key, Value
from unified_embeddings.errors import InputError, UnifiedEmbeddingsError

_ENTRY_OVERHEAD = 256
"""Bytes that an entry costs beside its arrays: key, dict slot and array headers."""
_VALUES_PER_WRITE = 512
"""Values written to disk at once. A killed process loses at most this many."""


@dataclass(frozen=True)
class CacheStats:
    """A snapshot of the counters; one entry is one head of one text.

    Attributes:
        hits: Lookups answered from memory or disk, or by waiting for another thread's result.
        misses: Lookups that had to be computed.
        evictions: Entries dropped from memory to keep within the bounds.
        bytes: Bytes held in memory, overhead included.
        entries: Entries held in memory.

    Example:
        >>> from unified_embeddings import EmbeddingCache
        >>> EmbeddingCache().stats()
        CacheStats(hits=0, misses=0, evictions=0, bytes=0, entries=0)
    """

    hits: int
    misses: int
    evictions: int
    bytes: int
    entries: int


class EmbeddingCache:
    """Least-recently-used vectors, bounded in bytes, with one computation per missing key.

    Values are NumPy arrays or SparseVectors; they come back read-only. Thread-safe.

    Args:
        max_bytes: Bound of the memory tier in bytes. 0 keeps nothing, but a key that several
            threads ask for at once is still computed once.
        max_entries: A second bound, on the number of entries.
        path: A file for a second tier that outlives the process and is shared safely between
            processes (SQLite in WAL mode, raw array bytes). Its folder is created.
        max_disk_bytes: Bound of the disk tier in bytes.

    Raises:
        InputError: If a bound is negative, or `path` is not a cache file of this version.

    Example:
        >>> from unified_embeddings import EmbeddingCache
        >>> from unified_embeddings.embedders.fake import FakeEmbedder
        >>> cache = EmbeddingCache(max_bytes=64 * 2**20)
        >>> embedder = FakeEmbedder(cache=cache)
        >>> _ = embedder.encode_documents(["Foxes jump.", "Dogs sleep."])
        >>> _ = embedder.encode_documents(["Foxes jump."])
        >>> cache.stats().misses, cache.stats().hits    # dense and sparse of each text
        (4, 2)
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
        # Guards the counters, the values and the table of keys under way. It is never held while
        # something is computed, read from disk or waited for.
        self._lock = threading.Lock()
        self._values = _LruValues(max_bytes)
        self._in_flight: dict[Key, Future[Value]] = {}
        self._hits = self._misses = 0
        self._disk: DiskTier | None = None
        if path is not None:
            self._disk = DiskTier(Path(path).expanduser(), max_disk_bytes)

    @property
    def hits(self) -> int:
        """Return the number of lookups answered without computing; see CacheStats."""
        return self._hits

    @property
    def misses(self) -> int:
        """Return the number of lookups that had to be computed."""
        return self._misses

    @property
    def evictions(self) -> int:
        """Return the number of entries dropped from memory to keep within the bounds."""
        return self._values.evictions

    @property
    def bytes(self) -> int:
        """Return the bytes held in memory, overhead included."""
        return int(self._values.currsize)

    @property
    def entries(self) -> int:
        """Return the number of entries held in memory."""
        return len(self._values)

    def stats(self) -> CacheStats:
        """Return all counters, read together."""
        with self._lock:
            return CacheStats(
                hits=self._hits,
                misses=self._misses,
                evictions=self.evictions,
                bytes=self.bytes,
                entries=self.entries,
            )

    def claim(self, keys: Iterable[Key]) -> Claim:
        """Look keys up, and claim the missing ones, so that nobody else computes them.

        A key that another thread has claimed is waited for. If that thread fails, the key is
        claimed here in a second round, so that nobody suffers from another caller's error.

        Args:
            keys: The keys wanted. One that is named several times is computed once.

        Returns:
            A context manager. Leaving it, by an exception too, keeps what was put and releases what
            was not.

        Example:
            >>> import numpy as np
            >>> from unified_embeddings import EmbeddingCache
            >>> from unified_embeddings.cache.keys import key_for
            >>> cache, key = EmbeddingCache(), key_for("a text")
            >>> with cache.claim([key]) as claim:
            ...     for missing in claim.rounds():
            ...         for missing_key in missing:
            ...             claim.put(missing_key, np.ones(2, dtype=np.float32))
            >>> claim[key].tolist()
            [1.0, 1.0]
        """
        return Claim(self, list(keys))

    def clear(self) -> None:
        """Forget all values, on disk too. The counters stay."""
        with self._lock:
            self._values = _LruValues(self.max_bytes, evictions=self._values.evictions)
        if self._disk is not None:
            self._disk.clear()

    def close(self) -> None:
        """Close the disk tier. The memory tier stays in use. Idempotent."""
        disk, self._disk = self._disk, None
        if disk is not None:
            disk.close()

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle the bounds and the path: a copy in another process shares the disk tier only."""
        path = self._disk.path if self._disk else None
        return _rebuild, (self.max_bytes, self.max_entries, path, self._max_disk_bytes)

    # --- what a claim does under the lock -------------------------------------------------------

    def _take(
        self, keys: Iterable[Key], values: dict[Key, Value], claimed: dict[Key, Future[Value]]
    ) -> dict[Key, Future[Value]]:
        """Sort keys into values that are in memory, keys claimed now, and keys under way elsewhere.

        Args:
            keys: Distinct keys.
            values: Gains the values found.
            claimed: Gains the keys that are the caller's to compute.

        Returns:
            The other keys, each with the future of its value.
        """
        under_way: dict[Key, Future[Value]] = {}
        with self._lock:
            for key in keys:
                if key in self._values:
                    values[key] = self._values[key]
                    self._hits += 1
                elif key in self._in_flight:
                    under_way[key] = self._in_flight[key]
                else:
                    # In the claim first: it releases what it knows of, should an interrupt come.
                    claimed[key] = Future()
                    self._in_flight[key] = claimed[key]
        return under_way

    def _keep(self, key: Key, value: Value) -> None:
        """Store a value that was computed or read, and end its flight."""
        with self._lock:
            # A value over the bound by itself is not stored: it would evict all others for nothing.
            if _size_of(value) <= self.max_bytes and self.max_entries != 0:
                self._values[key] = value
            while self.max_entries is not None and len(self._values) > self.max_entries:
                self._values.popitem()
            self._in_flight.pop(key, None)

    def _release(self, keys: Iterable[Key]) -> None:
        """End the flight of keys that have no value."""
        with self._lock:
            for key in keys:
                self._in_flight.pop(key, None)

    def _count(self, *, hits: int = 0, misses: int = 0) -> None:
        with self._lock:
            self._hits += hits
            self._misses += misses

    def _read_disk(self, keys: Iterable[Key]) -> dict[Key, Value]:
        return {} if self._disk is None else self._disk.get(keys)

    def _write_disk(self, values: dict[Key, Value]) -> None:
        if self._disk is not None:
            self._disk.put(values)


class Claim:
    """Keys that are looked up, and the right to compute those that are missing.

    Made by `EmbeddingCache.claim`, used by one thread.
    """

    def __init__(self, cache: EmbeddingCache, keys: list[Key]) -> None:
        self._cache = cache
        self._keys = keys
        self._values: dict[Key, Value] = {}
        self._claimed: dict[Key, Future[Value]] = {}
        self._given_up: set[Key] = set()
        self._unwritten: dict[Key, Value] = {}
        self._is_entered = False

    def rounds(self) -> Iterator[frozenset[Key]]:
        """Yield the keys to compute now: none or one round, more only after another thread failed.

        Every key of a round must be `put` or released before the next is asked for. Between rounds
        this waits for the keys that other threads have claimed. Nothing is claimed here then, so
        that two threads cannot wait for each other.

        Raises:
            UnifiedEmbeddingsError: If keys of a round were neither put nor released, or the claim
                was not entered: nothing would release its keys.
        """
        if not self._is_entered:
            raise UnifiedEmbeddingsError("enter the claim first: with cache.claim(keys) as claim")
        wanted = list(dict.fromkeys(self._keys))
        repeated = len(self._keys) - len(wanted)
        while wanted:
            under_way = self._cache._take(wanted, self._values, self._claimed)
            self._take_from_disk()
            if self._claimed:
                round_size = len(self._claimed)
                self._cache._count(misses=round_size)
                yield frozenset(self._claimed)
                if self._claimed:
                    raise UnifiedEmbeddingsError(
                        f"{len(self._claimed)} of {round_size} vectors were asked for and not "
                        "computed"
                    )
            self._wait_for(under_way)
            done = self._values.keys() | self._given_up
            wanted = [key for key in wanted if key not in done]
        self._cache._count(hits=repeated)

    def put(self, key: Key, value: Value) -> None:
        """Publish a computed value: to this claim, the cache, and the threads that wait for it.

        Args:
            key: One of the round's.
            value: An array or a SparseVector. A view is copied: a row would pin its whole batch,
                and the bound in bytes would not hold.

        Raises:
            UnifiedEmbeddingsError: If the key is not to be computed here.
        """
        if key not in self._claimed:
            raise UnifiedEmbeddingsError(f"key {key.hex()} was not claimed")
        value = _detach(value)
        self._publish(key, value)
        self._unwritten[key] = value
        if len(self._unwritten) >= _VALUES_PER_WRITE:
            self._write()

    def release(self, key: Key) -> None:
        """Give a key up that cannot be computed; a thread that waits for it tries itself."""
        # In the order of `_publish`, for the same reason: an interrupt between two of these lines
        # leaves a key that leaving the claim releases.
        self._given_up.add(key)
        self._claimed[key].set_exception(UnifiedEmbeddingsError("it could not be computed"))
        self._cache._release([key])
        del self._claimed[key]

    def __getitem__(self, key: Key) -> Value:
        """Return the value of a key.

        Raises:
            KeyError: If it was not asked for, or not put.
        """
        return self._values[key]

    def __enter__(self) -> Claim:
        self._is_entered = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            for future in self._claimed.values():
                if not future.done():
                    future.set_exception(error or UnifiedEmbeddingsError("it was not computed"))
            self._cache._release(self._claimed)
            self._claimed = {}
        finally:
            self._write()

    def _publish(self, key: Key, value: Value) -> None:
        self._values[key] = value
        # Before the flight ends: should an interrupt come between these lines, then whoever waits
        # has the value, and leaving the claim ends the flight.
        self._claimed[key].set_result(value)
        self._cache._keep(key, value)
        del self._claimed[key]

    def _take_from_disk(self) -> None:
        """Publish the claimed keys whose values are on disk."""
        found = self._cache._read_disk(list(self._claimed)) if self._claimed else {}
        for key, value in found.items():
            self._publish(key, value)
        self._cache._count(hits=len(found))

    def _wait_for(self, under_way: dict[Key, Future[Value]]) -> None:
        """Collect values from other threads. What went wrong there is theirs to report."""
        for key, future in under_way.items():
            if future.exception() is None:
                self._values[key] = future.result()
                self._cache._count(hits=1)

    def _write(self) -> None:
        if self._unwritten:
            self._cache._write_disk(self._unwritten)
            self._unwritten = {}


def _size_of(value: Value) -> int:
    return value.nbytes + _ENTRY_OVERHEAD


class _LruValues(LRUCache[Key, Value]):
    """cachetools' LRU, bounded in bytes, which counts what it evicts."""

    def __init__(self, max_bytes: int, evictions: int = 0) -> None:
        super().__init__(max_bytes, getsizeof=_size_of)
        self.evictions = evictions

    def popitem(self) -> tuple[Key, Value]:
        self.evictions += 1
        return super().popitem()


def _rebuild(
    max_bytes: int, max_entries: int | None, path: Path | None, max_disk_bytes: int
) -> EmbeddingCache:
    return EmbeddingCache(max_bytes, max_entries, path, max_disk_bytes=max_disk_bytes)


def _detach(value: Value) -> Value:
    """Return the value read-only, and copied if it is a view of something larger."""
    if isinstance(value, np.ndarray):
        value = value if value.base is None else value.copy()
        value.setflags(write=False)
    return value
