"""A bounded cache of vectors in front of the model.

What lives here: the two tiers, their counters, and the table of keys that are being computed, so
that a missing vector is computed once, however many threads ask for it. What does not: what a key
means (`keys` only digests the fields it is given), the tiers themselves (`memory_tier`,
`disk_tier`), the caller's side of a computation (`claims`) and how vectors are computed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from unified_embeddings.cache.claims import Claim
from unified_embeddings.cache.disk_tier import DiskTier
from unified_embeddings.cache.flights import Flight, Guard
from unified_embeddings.cache.keys import Key, Value
from unified_embeddings.cache.memory_tier import MemoryTier
from unified_embeddings.errors import InputError, UnifiedEmbeddingsError
from unified_embeddings.validation import require_whole_number

_PATIENCE = 5.0
"""Seconds after which the lock of the table counts as lost; its sections take microseconds."""


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
            processes (SQLite in WAL mode, raw array bytes with a checksum). Its folder is created.
            A damaged file is set aside with a warning, and a new one is started.
        max_disk_bytes: Bound of the disk tier in bytes.

    Raises:
        InputError: If a bound is not a whole number >= 0, or `path` is another program's file, or
            a cache file of a later version.

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
        self.max_bytes = _require_bound("max_bytes", max_bytes)
        if max_entries is not None:
            max_entries = _require_bound("max_entries", max_entries)
        self.max_entries = max_entries
        self._max_disk_bytes = _require_bound("max_disk_bytes", max_disk_bytes)
        # Guards the counters, the values and the table of keys under way. It is never held while
        # something is computed, read from disk or waited for.
        self._guard = Guard(_PATIENCE)
        self._values = MemoryTier(self.max_bytes, max_entries)
        self._in_flight: dict[Key, Flight] = {}
        self._flights: set[Flight] = set()
        self._hits = self._misses = 0
        self._disk: DiskTier | None = None
        if path is not None:
            self._disk = DiskTier(path, self._max_disk_bytes)

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
        with self._guard.lock():
            return self._values.bytes

    @property
    def entries(self) -> int:
        """Return the number of entries held in memory."""
        return len(self._values)

    def stats(self) -> CacheStats:
        """Return all counters, read together."""
        with self._guard.lock():
            return CacheStats(
                hits=self._hits,
                misses=self._misses,
                evictions=self._values.evictions,
                bytes=self._values.bytes,
                entries=len(self._values),
            )

    def claim(self, keys: Iterable[Key]) -> Claim:
        """Look keys up, and claim the missing ones, so that nobody else computes them.

        A key that another thread has claimed is waited for. If that thread fails, or is interrupted
        at whatever moment, the key is claimed here in a second round, so that nobody suffers from
        another caller's error.

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

    def recall(self, keys: Sequence[Key]) -> list[Value] | None:
        """Return the values of keys that are all in memory; None if one is missing.

        A question asked before is answered by this alone: nothing has to be claimed. If a key is
        missing, nothing is counted, and `claim` looks all of them up.

        Args:
            keys: The keys wanted, in any order. One that is named several times counts as often.

        Returns:
            Their values, in the order of the keys.
        """
        with self._guard.lock():
            values = self._values.get_all(keys)
            if values is not None:
                self._hits += len(values)
        return values

    def clear(self) -> None:
        """Forget all values, on disk too. The counters stay."""
        with self._guard.lock():
            self._values.clear()
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
        self, keys: Iterable[Key], values: dict[Key, Value], flight: Flight
    ) -> dict[Key, Flight]:
        """Sort keys into values that are in memory, keys claimed now, and keys under way elsewhere.

        Args:
            keys: Distinct keys.
            values: Gains the values found.
            flight: Gains the keys that are the caller's to compute.

        Returns:
            The other keys, each with the flight that it is in.

        Raises:
            UnifiedEmbeddingsError: If the calling thread itself is computing one of the keys.
        """
        under_way: dict[Key, Flight] = {}
        with self._guard.lock():
            self._forget_dead_flights()
            self._flights.add(flight)
            for key in keys:
                value = self._values.get(key)
                if value is not None:
                    values[key] = value
                    self._hits += 1
                elif key not in self._in_flight:
                    # In the flight first: should an interrupt come between these lines, then the
                    # flight knows all that it has to give back.
                    flight.pending.add(key)
                    self._in_flight[key] = flight
                elif self._in_flight[key].thread == flight.thread:
                    raise UnifiedEmbeddingsError(
                        "a vector was asked for in the midst of its own computation, which would "
                        "wait for itself: the code that computes it asks for the same text"
                    )
                else:
                    under_way[key] = self._in_flight[key]
        return under_way

    def _forget_dead_flights(self) -> None:
        """Give back the keys of computations that ended without doing so."""
        for flight in list(self._flights):
            if not flight.pending:
                self._flights.discard(flight)
            elif not flight.is_alive():
                self._give_back(list(flight.pending), flight)
                self._flights.discard(flight)

    def _give_back(self, keys: Iterable[Key], flight: Flight) -> None:
        for key in keys:
            # Since the flight was taken for dead, another may have claimed the key.
            if self._in_flight.get(key) is flight:
                del self._in_flight[key]
            flight.pending.discard(key)

    def _is_under_way(self, key: Key, flight: Flight) -> bool:
        """Tell whether a key's value is still to come from this flight."""
        return self._in_flight.get(key) is flight and flight.is_alive()

    def _keep(self, key: Key, value: Value) -> None:
        """Store a value that was computed or read."""
        with self._guard.lock():
            self._values.put(key, value)

    def _release(self, keys: Iterable[Key], flight: Flight) -> None:
        """End the flight of keys, whose values are published or will not come."""
        with self._guard.lock():
            self._give_back(keys, flight)

    def _count(self, *, hits: int = 0, misses: int = 0) -> None:
        with self._guard.lock():
            self._hits += hits
            self._misses += misses

    def _read_disk(self, keys: Iterable[Key]) -> dict[Key, Value]:
        return {} if self._disk is None else self._disk.get(keys)

    def _write_disk(self, values: dict[Key, Value]) -> None:
        if self._disk is not None:
            self._disk.put(values)


def _require_bound(name: str, value: object) -> int:
    if isinstance(value, int) and value < 0:
        raise InputError(f"{name} must be >= 0, got {value}")
    return require_whole_number(name, value, least=0)


def _rebuild(
    max_bytes: int, max_entries: int | None, path: Path | None, max_disk_bytes: int
) -> EmbeddingCache:
    return EmbeddingCache(max_bytes, max_entries, path, max_disk_bytes=max_disk_bytes)
