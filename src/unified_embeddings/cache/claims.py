"""A claim: keys that are looked up in the cache, and the right to compute those that are missing.

What lives here: the caller's side of a computation, from the lookup to the published values. What
does not: the values and the table of keys under way (`embedding_cache`), and how long a key counts
as claimed (`flights`).
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from unified_embeddings.cache.flights import Flight, Rounds
from unified_embeddings.cache.keys import Key, Value
from unified_embeddings.errors import UnifiedEmbeddingsError

if TYPE_CHECKING:
    from unified_embeddings.cache.embedding_cache import EmbeddingCache

_VALUES_PER_WRITE = 512
"""Values written to disk at once. A killed process loses at most this many."""
_POLL = 0.02
"""Seconds between two looks at a key that another thread computes. Its last key wakes at once."""


class Claim:
    """Keys that are looked up, and the right to compute those that are missing.

    Made by `EmbeddingCache.claim`, used by one thread. Leaving the `with` statement, by an
    exception too, keeps what was put and releases what was not.
    """

    def __init__(self, cache: EmbeddingCache, keys: list[Key]) -> None:
        self._cache = cache
        self._keys = keys
        self._values: dict[Key, Value] = {}
        self._flight: Flight | None = None
        self._given_up: set[Key] = set()
        self._unwritten: dict[Key, Value] = {}
        self._rounds: weakref.ref[Rounds] | None = None
        self._is_entered = False

    def rounds(self) -> Rounds:
        """Return a generator of the keys to compute now, for a loop to run over.

        It yields none or one round, more only after another thread failed. Every key of a round
        must be `put` or released before the next is asked for. Between rounds this waits for the
        keys that other threads have claimed. Nothing is claimed here then, so that two threads
        cannot wait for each other.

        The keys of a round stay claimed until the loop over this generator is left.

        Raises:
            UnifiedEmbeddingsError: If the claim was not entered, keys of a round were neither put
                nor released, or one of the keys is being computed by this thread already, so that
                it would wait for itself.
        """
        if not self._is_entered:
            raise UnifiedEmbeddingsError("enter the claim first: with cache.claim(keys) as claim")
        rounds = self._run()
        self._rounds = weakref.ref(rounds)
        return rounds

    def _run(self) -> Rounds:
        assert self._rounds is not None
        wanted = list(dict.fromkeys(self._keys))
        repeated = len(self._keys) - len(wanted)
        while wanted:
            flight = self._flight = Flight(self._rounds)
            under_way = self._cache._take(wanted, self._values, flight)
            self._take_from_disk(flight)
            if flight.pending:
                round_size = len(flight.pending)
                self._cache._count(misses=round_size)
                yield frozenset(flight.pending)
                if flight.pending:
                    raise UnifiedEmbeddingsError(
                        f"{len(flight.pending)} of {round_size} vectors were asked for and not "
                        "computed"
                    )
            for key, other in under_way.items():
                self._wait_for(key, other)
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
        flight = self._require_claimed(key)
        value = _detach(value)
        self._publish(key, value, flight)
        self._unwritten[key] = value
        if len(self._unwritten) >= _VALUES_PER_WRITE:
            self._write()

    def release(self, key: Key) -> None:
        """Give a key up that cannot be computed; a thread that waits for it tries itself.

        Raises:
            UnifiedEmbeddingsError: If the key is not to be computed here.
        """
        flight = self._require_claimed(key)
        self._given_up.add(key)
        self._release([key], flight)

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
        # All of this is for speed. If an interrupt keeps it from being done, then whoever waits
        # finds the flight dead, and the values that were not written are computed again one day.
        try:
            if self._flight is not None:
                self._release(list(self._flight.pending), self._flight)
        finally:
            self._write()

    def _require_claimed(self, key: Key) -> Flight:
        if self._flight is None or key not in self._flight.pending:
            raise UnifiedEmbeddingsError(f"key {key.hex()} was not claimed")
        return self._flight

    def _publish(self, key: Key, value: Value, flight: Flight) -> None:
        self._values[key] = value
        # Before the flight ends: should an interrupt come between these lines, then whoever waits
        # has the value.
        flight.values[key] = value
        self._cache._keep(key, value)
        self._release([key], flight)

    def _release(self, keys: Iterable[Key], flight: Flight) -> None:
        self._cache._release(keys, flight)
        if not flight.pending:
            flight.land()

    def _take_from_disk(self, flight: Flight) -> None:
        """Publish the claimed keys whose values are on disk."""
        found = self._cache._read_disk(list(flight.pending)) if flight.pending else {}
        for key, value in found.items():
            self._publish(key, value, flight)
        self._cache._count(hits=len(found))

    def _wait_for(self, key: Key, flight: Flight) -> None:
        """Collect a value from another thread. What went wrong there is that thread's to report."""
        while key not in flight.values and self._cache._is_under_way(key, flight):
            flight.wait(_POLL)
        if key in flight.values:
            self._values[key] = flight.values[key]
            self._cache._count(hits=1)

    def _write(self) -> None:
        if self._unwritten:
            self._cache._write_disk(self._unwritten)
            self._unwritten = {}


def _detach(value: Value) -> Value:
    """Return the value read-only, and copied if it is a view of something larger."""
    if isinstance(value, np.ndarray):
        value = value if value.base is None else value.copy()
        value.setflags(write=False)
    return value
