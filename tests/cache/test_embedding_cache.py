"""The cache: what it keeps, what it computes once, and what it does when something fails."""

from __future__ import annotations

import gc
import hashlib
import itertools
import logging
import os
import pickle
import sqlite3
import subprocess
import sys
import threading
import time
import weakref
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unified_embeddings.cache.embedding_cache import EmbeddingCache
from unified_embeddings.cache.flights import Flight
from unified_embeddings.cache.keys import key_for
from unified_embeddings.errors import InputError, UnifiedEmbeddingsError
from unified_embeddings.types import SparseVector

T = TypeVar("T")
PATIENCE = 30.0
"""Seconds after which a thread counts as stuck."""


Compute = Callable[[list[int]], Iterable[tuple[int, Any]]]


def get_or_compute(cache: EmbeddingCache, keys: list[bytes], compute: Compute) -> list[Any]:
    """Return the values of the keys; compute gets positions of the missing ones, yields values."""
    with cache.claim(keys) as claim:
        for missing in claim.rounds():
            for position, value in compute([keys.index(key) for key in missing_in(keys, missing)]):
                claim.put(keys[position] if position < len(keys) else f"{position}".encode(), value)
    return [claim[key] for key in keys]


def missing_in(keys: list[bytes], missing: frozenset[bytes]) -> list[bytes]:
    return [key for key in dict.fromkeys(keys) if key in missing]


class Source:
    """A model to put a cache in front of: a name's vector, and a record of what was computed."""

    def __init__(self, width: int = 4) -> None:
        self.width = width
        self.computed: Counter[str] = Counter()

    def vector(self, name: str) -> np.ndarray:
        seed = int.from_bytes(name.encode(), "little") % 2**32
        return np.random.default_rng(seed).normal(size=self.width).astype(np.float32)

    def ask(self, cache: EmbeddingCache, *names: str) -> list[Any]:
        def compute(positions: list[int]) -> Iterator[tuple[int, np.ndarray]]:
            for at in positions:
                self.computed[names[at]] += 1
                yield at, self.vector(names[at])

        return get_or_compute(cache, [key_for(name) for name in names], compute)

    def knows(self, cache: EmbeddingCache, name: str) -> bool:
        """Whether asking for this name computes nothing."""
        before = self.computed[name]
        self.ask(cache, name)
        return self.computed[name] == before


def put(cache: EmbeddingCache, name: str, value: Any) -> Any:
    return get_or_compute(cache, [key_for(name)], lambda _: [(0, value)])[0]


def never(positions: list[int]) -> Any:
    raise AssertionError(f"nothing should be computed, got {positions}")


def read(cache: EmbeddingCache, name: str) -> Any:
    return get_or_compute(cache, [key_for(name)], never)[0]


@pytest.fixture(scope="module")
def overhead() -> int:
    """Bytes an entry costs beside its array."""
    cache = EmbeddingCache()
    put(cache, "nothing", np.zeros(0, dtype=np.float32))
    return cache.bytes


def in_thread(function: Callable[[], T]) -> tuple[threading.Thread, Future[T]]:
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, future


def within_patience(function: Callable[[], T]) -> T:
    """Its result; an error instead of a hang if it waits for something that never comes."""
    return in_thread(function)[1].result(timeout=PATIENCE)


def until_waiting(*threads: threading.Thread) -> None:
    """Return when every one of the threads waits for another."""
    waits = (threading.Condition.wait.__code__, Flight.wait.__code__)
    give_up = time.monotonic() + PATIENCE
    while time.monotonic() < give_up:
        frames = sys._current_frames()
        if all(t.ident in frames and frames[t.ident].f_code in waits for t in threads):
            return
        time.sleep(0.001)
    raise AssertionError("a thread neither waits nor ends")


class TestKeyFor:
    def test_moved_boundaries_make_other_keys(self) -> None:
        keys = [
            key_for("ab", "c"),
            key_for("a", "bc"),
            key_for("abc"),
            key_for("", "abc"),
            key_for("abc", ""),
            key_for("ab", "", "c"),
        ]
        assert len(set(keys)) == 6

    def test_is_blake2b_over_length_prefixed_utf8(self) -> None:
        raw = b"\x02" + bytes(7) + "é".encode() + b"\x01" + bytes(7) + b"c"
        assert key_for("é", "c") == hashlib.blake2b(raw, digest_size=16).digest()

    def test_lone_surrogates_are_refused(self) -> None:
        with pytest.raises(UnicodeEncodeError):
            key_for("\ud800")

    @settings(deadline=None)
    @given(st.lists(st.text("ab\x00\x01", max_size=4), max_size=4), st.data())
    def test_no_two_ways_to_cut_a_text_share_a_key(
        self, fields: list[str], data: st.DataObject
    ) -> None:
        whole = "".join(fields)
        cuts = data.draw(st.lists(st.integers(0, len(whole)), max_size=3).map(sorted))
        edges = [0, *cuts, len(whole)]
        other = [whole[a:b] for a, b in itertools.pairwise(edges)]
        assert (key_for(*fields) == key_for(*other)) == (fields == other)


class TestCounters:
    def test_a_new_cache_is_empty(self) -> None:
        cache = EmbeddingCache()
        assert (cache.hits, cache.misses, cache.evictions) == (0, 0, 0)
        assert (cache.bytes, cache.entries) == (0, 0)
        assert cache.max_bytes == 268_435_456

    def test_by_hand(self, overhead: int) -> None:
        cache, source = EmbeddingCache(), Source(width=4)
        source.ask(cache, "a", "b")
        assert (cache.hits, cache.misses) == (0, 2)
        source.ask(cache, "b", "c")
        assert (cache.hits, cache.misses) == (1, 3)
        source.ask(cache, "a", "b", "c")
        stats = cache.stats()
        assert (stats.hits, stats.misses, stats.evictions, stats.entries) == (4, 3, 0, 3)
        assert stats.bytes == cache.bytes == 3 * (4 * 4 + overhead)

    def test_bytes_count_arrays_and_sparse_vectors(self, overhead: int) -> None:
        cache = EmbeddingCache()
        put(cache, "dense", np.ones(10, dtype=np.float32))
        assert cache.bytes == 40 + overhead
        put(cache, "colbert", np.ones((3, 5), dtype=np.float32))
        assert cache.bytes == 40 + 60 + 2 * overhead
        put(cache, "sparse", SparseVector.from_dict({1: 1.0, 2: 1.0}))
        assert cache.bytes == 40 + 60 + (8 + 8) + 3 * overhead

    def test_a_key_asked_twice_in_one_call_is_computed_once(self) -> None:
        cache, source = EmbeddingCache(), Source()
        first, second, third, fourth = source.ask(cache, "a", "b", "a", "a")
        assert source.computed == {"a": 1, "b": 1}
        assert first is third is fourth
        assert second.tolist() == source.vector("b").tolist()
        assert (cache.misses, cache.hits) == (2, 2)

    def test_compute_gets_one_position_of_each_missing_key(self) -> None:
        cache, asked = EmbeddingCache(), []
        put(cache, "known", np.ones(1, dtype=np.float32))

        def compute(positions: list[int]) -> list[tuple[int, np.ndarray]]:
            asked.extend(positions)
            return [(at, np.ones(1, dtype=np.float32)) for at in positions]

        keys = [key_for(name) for name in ("known", "x", "y", "x")]
        get_or_compute(cache, keys, compute)
        assert len(asked) == 2
        assert 2 in asked
        assert len({1, 3} & {*asked}) == 1

    def test_nothing_asked_computes_nothing(self) -> None:
        cache = EmbeddingCache()
        assert get_or_compute(cache, [], never) == []
        assert (cache.hits, cache.misses) == (0, 0)

    def test_values_come_in_the_order_of_the_keys_whatever_order_they_are_computed_in(
        self,
    ) -> None:
        values = {at: np.full(2, at, dtype=np.float32) for at in range(5)}
        keys = [key_for(str(at)) for at in range(5)]
        for order in (lambda ps: sorted(ps), lambda ps: sorted(ps, reverse=True)):
            found = get_or_compute(
                EmbeddingCache(),
                keys,
                lambda positions, order=order: ((at, values[at]) for at in order(positions)),
            )
            assert [value[0] for value in found] == [0, 1, 2, 3, 4]


class TestBounds:
    def test_the_least_recently_used_goes_not_the_oldest(self, overhead: int) -> None:
        cache, source = EmbeddingCache(max_bytes=2 * (16 + overhead)), Source(width=4)
        source.ask(cache, "old")
        source.ask(cache, "new")
        source.ask(cache, "old")
        source.ask(cache, "newest")
        assert cache.evictions == 1
        assert cache.entries == 2
        assert cache.bytes == 2 * (16 + overhead)
        assert source.knows(cache, "old")
        assert source.knows(cache, "newest")
        assert not source.knows(cache, "new")

    def test_a_large_value_evicts_as_many_small_ones_as_it_needs(self, overhead: int) -> None:
        one = 16 + overhead
        cache, source = EmbeddingCache(max_bytes=4 * one), Source(width=4)
        for name in "abcd":
            source.ask(cache, name)
        put(cache, "large", np.ones((2 * one - overhead) // 4, dtype=np.float32))
        assert cache.evictions == 2
        assert cache.entries == 3
        assert cache.bytes == 4 * one
        assert [source.knows(cache, name) for name in "cd"] == [True, True]

    def test_one_byte_short_holds_one_entry_less(self, overhead: int) -> None:
        cache, source = EmbeddingCache(max_bytes=2 * (16 + overhead) - 1), Source(width=4)
        source.ask(cache, "a")
        source.ask(cache, "b")
        assert (cache.entries, cache.evictions) == (1, 1)

    def test_a_value_over_the_bound_is_returned_and_evicts_nothing(self, overhead: int) -> None:
        cache, source = EmbeddingCache(max_bytes=2 * (16 + overhead)), Source(width=4)
        source.ask(cache, "a")
        source.ask(cache, "b")
        huge = put(cache, "huge", np.full(1000, 7, dtype=np.float32))
        assert huge.shape == (1000,)
        assert (cache.entries, cache.evictions) == (2, 0)
        assert source.knows(cache, "a")
        assert source.knows(cache, "b")

    def test_max_bytes_zero_keeps_nothing(self) -> None:
        cache, source = EmbeddingCache(max_bytes=0), Source()
        first = source.ask(cache, "a", "b", "a")
        again = source.ask(cache, "a")
        assert first[0].tolist() == again[0].tolist() == source.vector("a").tolist()
        assert source.computed == {"a": 2, "b": 1}
        assert (cache.bytes, cache.entries, cache.evictions) == (0, 0, 0)
        assert (cache.misses, cache.hits) == (3, 1)

    def test_max_entries(self) -> None:
        cache, source = EmbeddingCache(max_entries=2), Source()
        for name in "aba":
            source.ask(cache, name)
        source.ask(cache, "c")
        assert (cache.entries, cache.evictions) == (2, 1)
        assert source.knows(cache, "a")
        assert not source.knows(cache, "b")

    def test_max_entries_zero_keeps_nothing(self) -> None:
        cache, source = EmbeddingCache(max_entries=0), Source()
        source.ask(cache, "a")
        assert (cache.entries, cache.bytes) == (0, 0)

    @pytest.mark.parametrize("bound", ["max_bytes", "max_entries", "max_disk_bytes"])
    def test_negative_bounds_are_refused_by_name(self, bound: str) -> None:
        with pytest.raises(InputError, match=f"{bound} must be >= 0, got -1"):
            EmbeddingCache(**{bound: -1})  # type: ignore[arg-type]

    def test_clear_forgets_values_and_keeps_counters(self, overhead: int) -> None:
        cache, source = EmbeddingCache(max_bytes=16 + overhead), Source(width=4)
        source.ask(cache, "a")
        source.ask(cache, "b")
        cache.clear()
        assert (cache.bytes, cache.entries) == (0, 0)
        assert (cache.misses, cache.evictions) == (2, 1)
        assert not source.knows(cache, "b")


class TestValues:
    def test_are_read_only(self) -> None:
        cache = EmbeddingCache()
        for value in (put(cache, "a", np.ones(2, dtype=np.float32)), read(cache, "a")):
            with pytest.raises(ValueError, match="read-only"):
                value[0] = 5

    def test_are_read_only_where_nothing_is_kept_too(self) -> None:
        value = put(EmbeddingCache(max_bytes=0), "a", np.ones(2, dtype=np.float32))
        with pytest.raises(ValueError, match="read-only"):
            value[0] = 5

    def test_a_row_of_a_batch_does_not_pin_the_batch(self) -> None:
        cache = EmbeddingCache()
        batch = np.arange(40_000, dtype=np.float32).reshape(10_000, 4)
        put(cache, "row", batch[1])
        whole = weakref.ref(batch)
        del batch
        gc.collect()
        assert whole() is None
        assert read(cache, "row").tolist() == [4, 5, 6, 7]

    def test_a_row_does_not_follow_later_changes_of_its_batch(self) -> None:
        cache = EmbeddingCache()
        batch = np.ones((2, 2), dtype=np.float32)
        put(cache, "row", batch[0])
        batch[:] = 9
        assert read(cache, "row").tolist() == [1, 1]

    def test_sparse_vectors_come_back_as_they_are(self) -> None:
        cache = EmbeddingCache()
        put(cache, "a", SparseVector.from_dict({7: 0.5}))
        assert read(cache, "a") == {7: 0.5}


class TestSingleFlight:
    @pytest.mark.parametrize("max_bytes", [2**20, 0])
    def test_sixteen_threads_asking_one_key_compute_it_once(self, max_bytes: int) -> None:
        cache, computed = EmbeddingCache(max_bytes), []
        entered, release = threading.Event(), threading.Event()

        def compute(positions: list[int]) -> Iterator[tuple[int, np.ndarray]]:
            computed.append(positions)
            entered.set()
            assert release.wait(PATIENCE)
            yield 0, np.full(2, 7, dtype=np.float32)

        def ask() -> Any:
            return get_or_compute(cache, [key_for("a")], compute)[0]

        owner, owned = in_thread(ask)
        assert entered.wait(PATIENCE)
        waiters = [in_thread(ask) for _ in range(15)]
        until_waiting(owner, *(thread for thread, _ in waiters))
        release.set()
        values = [f.result(PATIENCE).tolist() for f in (owned, *(f for _, f in waiters))]
        assert values == [[7, 7]] * 16
        assert computed == [[0]]
        assert (cache.misses, cache.hits) == (1, 15)

    def test_sixteen_threads_starting_together_compute_each_key_once(self) -> None:
        cache, source = EmbeddingCache(), Source()
        names = [f"text {i}" for i in range(50)]
        barrier = threading.Barrier(16)

        def ask(rotation: int) -> list[Any]:
            barrier.wait(PATIENCE)
            return source.ask(cache, *names[rotation:], *names[:rotation])

        running = [in_thread(lambda r=r: ask(3 * r))[1] for r in range(16)]
        for rotation, future in enumerate(running):
            values = future.result(PATIENCE)
            order = [*names[3 * rotation :], *names[: 3 * rotation]]
            assert [v.tolist() for v in values] == [source.vector(n).tolist() for n in order]
        assert set(source.computed.values()) == {1}
        assert (cache.misses, cache.hits) == (50, 15 * 50)

    def test_overlapping_batches_neither_deadlock_nor_compute_twice(self) -> None:
        cache, computed = EmbeddingCache(), Counter()
        first_holds, second_done = threading.Event(), threading.Event()

        def compute(names: str, hold: bool) -> Callable[[list[int]], Any]:
            def run(positions: list[int]) -> Iterator[tuple[int, np.ndarray]]:
                for at in positions:
                    computed[names[at]] += 1
                    if hold:
                        first_holds.set()
                        assert second_done.wait(PATIENCE)
                    yield at, np.full(1, ord(names[at]), dtype=np.float32)
                if not hold:
                    second_done.set()

            return run

        def ask(names: str, hold: bool) -> list[int]:
            keys = [key_for(name) for name in names]
            return [int(v[0]) for v in get_or_compute(cache, keys, compute(names, hold))]

        _, first = in_thread(lambda: ask("abc", hold=True))
        assert first_holds.wait(PATIENCE)
        _, second = in_thread(lambda: ask("dcb", hold=False))
        assert second.result(PATIENCE) == [ord("d"), ord("c"), ord("b")]
        assert first.result(PATIENCE) == [ord("a"), ord("b"), ord("c")]
        assert computed == {"a": 1, "b": 1, "c": 1, "d": 1}

    def test_another_key_does_not_wait_for_one_under_way(self) -> None:
        cache = EmbeddingCache()
        entered, release = threading.Event(), threading.Event()

        def slow(_: list[int]) -> Iterator[tuple[int, np.ndarray]]:
            entered.set()
            assert release.wait(PATIENCE)
            yield 0, np.ones(1, dtype=np.float32)

        _, held = in_thread(lambda: get_or_compute(cache, [key_for("slow")], slow))
        assert entered.wait(PATIENCE)
        other = within_patience(lambda: put(cache, "other", np.ones(1, dtype=np.float32)))
        assert other.tolist() == [1]
        assert not held.done()
        release.set()
        held.result(PATIENCE)

    def test_a_waiter_takes_what_is_done_before_the_rest_of_the_batch(self) -> None:
        cache = EmbeddingCache()
        entered, release = threading.Event(), threading.Event()

        def compute(positions: list[int]) -> Iterator[tuple[int, np.ndarray]]:
            yield 0, np.full(1, 3, dtype=np.float32)
            entered.set()
            assert release.wait(PATIENCE)
            yield 1, np.full(1, 4, dtype=np.float32)

        _, held = in_thread(lambda: get_or_compute(cache, [key_for("a"), key_for("b")], compute))
        assert entered.wait(PATIENCE)
        assert within_patience(lambda: read(cache, "a")).tolist() == [3]
        release.set()
        assert [v.tolist() for v in held.result(PATIENCE)] == [[3], [4]]


class TestFailures:
    def test_a_waiter_does_not_suffer_from_the_owners_error(self) -> None:
        cache, source = EmbeddingCache(), Source()
        entered, release = threading.Event(), threading.Event()

        def failing(_: list[int]) -> Iterator[tuple[int, np.ndarray]]:
            entered.set()
            assert release.wait(PATIENCE)
            raise RuntimeError("out of memory")
            yield

        _, owner = in_thread(lambda: get_or_compute(cache, [key_for("a")], failing))
        assert entered.wait(PATIENCE)
        waiting, waiter = in_thread(lambda: source.ask(cache, "a"))
        until_waiting(waiting)
        release.set()
        with pytest.raises(RuntimeError, match="out of memory"):
            owner.result(PATIENCE)
        assert waiter.result(PATIENCE)[0].tolist() == source.vector("a").tolist()
        assert source.computed == {"a": 1}

    def test_a_lookup_that_waited_in_vain_and_computed_is_a_miss_and_no_hit(self) -> None:
        cache, source = EmbeddingCache(), Source()
        entered, release = threading.Event(), threading.Event()

        def failing(_: list[int]) -> Iterator[tuple[int, np.ndarray]]:
            entered.set()
            assert release.wait(PATIENCE)
            raise RuntimeError
            yield

        _, owner = in_thread(lambda: get_or_compute(cache, [key_for("a")], failing))
        assert entered.wait(PATIENCE)
        waiting, waiter = in_thread(lambda: source.ask(cache, "a"))
        until_waiting(waiting)
        release.set()
        waiter.result(PATIENCE)
        assert isinstance(owner.exception(PATIENCE), RuntimeError)
        assert (cache.misses, cache.hits) == (2, 0)

    def test_what_was_yielded_before_a_failure_is_kept(self) -> None:
        cache, source = EmbeddingCache(), Source()
        keys = [key_for(name) for name in "abc"]

        def compute(positions: list[int]) -> Iterator[tuple[int, np.ndarray]]:
            yield 1, source.vector("b")
            raise RuntimeError("a bad text")

        with pytest.raises(RuntimeError, match="a bad text"):
            get_or_compute(cache, keys, compute)
        assert read(cache, "b").tolist() == source.vector("b").tolist()
        within_patience(lambda: source.ask(cache, "a", "b", "c"))
        assert source.computed == {"a": 1, "c": 1}

    def test_a_position_left_out_is_an_error_and_the_rest_is_kept(self) -> None:
        cache, source = EmbeddingCache(), Source()
        keys = [key_for(name) for name in "abc"]
        with pytest.raises(UnifiedEmbeddingsError, match="2 of 3"):
            within_patience(
                lambda: get_or_compute(cache, keys, lambda _: [(0, source.vector("a"))])
            )
        assert source.knows(cache, "a")
        assert len(within_patience(lambda: source.ask(cache, "b", "c"))) == 2

    @pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit, GeneratorExit])
    def test_an_interrupt_leaves_nothing_under_way(self, interrupt: type[BaseException]) -> None:
        cache, source = EmbeddingCache(), Source()

        def compute(positions: list[int]) -> Iterator[tuple[int, np.ndarray]]:
            yield 0, source.vector("a")
            raise interrupt

        with pytest.raises(interrupt):
            get_or_compute(cache, [key_for("a"), key_for("b")], compute)
        values = within_patience(lambda: source.ask(cache, "a", "b"))
        assert [v.tolist() for v in values] == [source.vector(n).tolist() for n in "ab"]
        assert source.computed == {"b": 1}

    def test_a_value_that_cannot_be_kept_leaves_nothing_under_way(self) -> None:
        class Uncopyable(np.ndarray):
            def copy(self, *args: Any, **kwargs: Any) -> Any:
                raise MemoryError

        cache, source = EmbeddingCache(), Source()
        with pytest.raises(MemoryError):
            put(cache, "a", np.ones(3, dtype=np.float32).view(Uncopyable))
        value = within_patience(lambda: source.ask(cache, "a"))[0]
        assert value.tolist() == source.vector("a").tolist()

    def test_a_position_that_was_not_asked_for_leaves_nothing_under_way(self) -> None:
        cache, source = EmbeddingCache(), Source()
        with pytest.raises(Exception, match="5"):
            get_or_compute(cache, [key_for("a")], lambda _: [(5, source.vector("a"))])
        assert len(within_patience(lambda: source.ask(cache, "a"))) == 1


class TestClaim:
    def test_a_put_value_is_in_the_claim_and_in_the_cache(self) -> None:
        cache, key = EmbeddingCache(), key_for("a")
        with cache.claim([key]) as claim:
            assert [set(missing) for missing in rounds_with(claim, np.ones(2, np.float32))] == [
                {key}
            ]
        assert claim[key].tolist() == read(cache, "a").tolist() == [1, 1]

    def test_known_keys_need_no_round(self) -> None:
        cache = EmbeddingCache()
        put(cache, "a", np.ones(2, dtype=np.float32))
        with cache.claim([key_for("a")]) as claim:
            assert list(claim.rounds()) == []

    def test_only_missing_keys_can_be_put(self) -> None:
        cache = EmbeddingCache()
        put(cache, "known", np.ones(1, dtype=np.float32))
        for name in ("known", "never asked for"):
            with (
                pytest.raises(UnifiedEmbeddingsError, match="was not claimed"),
                cache.claim([key_for("known")]) as claim,
            ):
                claim.put(key_for(name), np.zeros(1, dtype=np.float32))
        assert read(cache, "known").tolist() == [1]

    def test_a_released_key_has_no_value_and_no_second_round(self) -> None:
        cache, source = EmbeddingCache(), Source()
        good, bad = key_for("good"), key_for("bad")
        rounds = 0
        with cache.claim([good, bad]) as claim:
            for _ in claim.rounds():
                rounds += 1
                claim.release(bad)
                claim.put(good, source.vector("good"))
        assert rounds == 1
        assert claim[good].tolist() == source.vector("good").tolist()
        with pytest.raises(KeyError):
            claim[bad]
        assert within_patience(lambda: source.ask(cache, "bad"))[0] is not None

    def test_who_waits_for_a_released_key_computes_it(self) -> None:
        cache, source = EmbeddingCache(), Source()
        entered, go_on = threading.Event(), threading.Event()

        def give_up() -> None:
            with cache.claim([key_for("a")]) as claim:
                for _ in claim.rounds():
                    entered.set()
                    assert go_on.wait(PATIENCE)
                    claim.release(key_for("a"))

        _, owner = in_thread(give_up)
        assert entered.wait(PATIENCE)
        waiting, waiter = in_thread(lambda: source.ask(cache, "a"))
        until_waiting(waiting)
        go_on.set()
        owner.result(PATIENCE)
        assert waiter.result(PATIENCE)[0].tolist() == source.vector("a").tolist()

    def test_an_interrupted_release_leaves_nothing_under_way(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cache, source = EmbeddingCache(), Source()

        def interrupt(*_: Any) -> None:
            monkeypatch.undo()
            raise KeyboardInterrupt

        def give_up() -> None:
            with cache.claim([key_for("a")]) as claim:
                next(claim.rounds())
                monkeypatch.setattr(cache, "_release", interrupt)
                claim.release(key_for("a"))

        with pytest.raises(KeyboardInterrupt):
            give_up()
        assert within_patience(lambda: source.ask(cache, "a"))[0] is not None

    def test_a_claim_that_was_not_entered_claims_nothing(self) -> None:
        cache, source = EmbeddingCache(), Source()
        with pytest.raises(UnifiedEmbeddingsError, match="enter the claim first"):
            next(cache.claim([key_for("a")]).rounds())
        assert within_patience(lambda: source.ask(cache, "a"))[0] is not None

    def test_leaving_early_releases_what_was_not_put(self) -> None:
        cache, source = EmbeddingCache(), Source()
        with cache.claim([key_for("a"), key_for("b")]) as claim:
            next(claim.rounds())
            claim.put(key_for("a"), source.vector("a"))
        assert within_patience(lambda: source.knows(cache, "a"))
        assert not within_patience(lambda: source.knows(cache, "b"))


def rounds_with(claim: Any, value: np.ndarray) -> Iterator[frozenset[bytes]]:
    """Yield a claim's rounds, every key of which gets this value."""
    for missing in claim.rounds():
        for key in missing:
            claim.put(key, value)
        yield missing


class TestProperties:
    asks = st.lists(
        st.tuples(
            st.lists(st.integers(0, 7), min_size=1, max_size=6),
            st.none() | st.integers(0, 3),
        ),
        max_size=25,
    )

    @settings(deadline=None)
    @given(
        asks,
        st.integers(0, 2500),
        st.none() | st.integers(0, 4),
    )
    def test_values_are_right_and_bounds_hold_after_any_asks(
        self,
        asks: list[tuple[list[int], int | None]],
        max_bytes: int,
        max_entries: int | None,
    ) -> None:
        cache = EmbeddingCache(max_bytes, max_entries)
        for names, fails_after in asks:
            keys = [key_for(str(name)) for name in names]

            def compute(
                positions: list[int],
                names: list[int] = names,
                fails_after: int | None = fails_after,
            ) -> Iterator[tuple[int, np.ndarray]]:
                for done, at in enumerate(positions):
                    if done == fails_after:
                        raise RuntimeError
                    yield at, np.full(1 + 40 * names[at], names[at], dtype=np.float32)

            looked_up = cache.hits + cache.misses
            try:
                values = get_or_compute(cache, keys, compute)
            except RuntimeError:
                assert fails_after is not None
            else:
                assert [(len(v), set(v.tolist())) for v in values] == [
                    (1 + 40 * name, {float(name)}) for name in names
                ]
                assert cache.hits + cache.misses == looked_up + len(names)
            assert cache.bytes <= max_bytes
            assert max_entries is None or cache.entries <= max_entries

    @settings(deadline=None)
    @given(st.lists(st.sampled_from("abcdef"), max_size=40), st.integers(1, 4))
    def test_single_asks_hit_and_evict_as_a_textbook_lru(
        self, names: list[str], capacity: int
    ) -> None:
        cache, source = EmbeddingCache(max_entries=capacity), Source()
        textbook: OrderedDict[str, None] = OrderedDict()
        hits = evictions = 0
        for name in names:
            if name in textbook:
                hits += 1
                textbook.move_to_end(name)
            else:
                textbook[name] = None
                if len(textbook) > capacity:
                    textbook.popitem(last=False)
                    evictions += 1
            source.ask(cache, name)
            assert (cache.hits, cache.evictions) == (hits, evictions)
            assert cache.entries == len(textbook)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "cache.sqlite"


EXACT_VALUES = {
    "dense": np.array([0.1, -0.0, 1e-42, 3.4e38], dtype=np.float32),
    "one number": np.array([1 / 3], dtype=np.float32),
    "no numbers": np.zeros(0, dtype=np.float32),
    "colbert": np.arange(12, dtype=np.float32).reshape(4, 3) / 7,
    "one row": np.ones((1, 5), dtype=np.float32),
    "no rows": np.zeros((0, 5), dtype=np.float32),
}


class TestDiskTier:
    def test_survives_the_instance(self, path: Path) -> None:
        source = Source()
        with_disk = EmbeddingCache(path=path)
        source.ask(with_disk, "a", "b")
        with_disk.close()
        again = EmbeddingCache(path=path)
        values = source.ask(again, "a", "b")
        assert [v.tolist() for v in values] == [source.vector(n).tolist() for n in "ab"]
        assert source.computed == {"a": 1, "b": 1}
        assert (again.hits, again.misses) == (2, 0)
        assert again.entries == 2

    def test_is_shared_by_two_instances_at_once(self, path: Path) -> None:
        source = Source()
        one, other = EmbeddingCache(path=path), EmbeddingCache(path=str(path))
        source.ask(one, "a")
        assert source.knows(other, "a")
        source.ask(other, "b")
        assert source.knows(one, "b")

    @pytest.mark.parametrize("name", EXACT_VALUES)
    def test_arrays_come_back_bit_for_bit(self, path: Path, name: str) -> None:
        value = EXACT_VALUES[name]
        put(EmbeddingCache(path=path), name, value.copy())
        found = read(EmbeddingCache(path=path), name)
        assert found.shape == value.shape
        assert found.dtype == np.float32
        assert found.tobytes() == value.tobytes()
        assert not found.flags.writeable

    @pytest.mark.parametrize("weights", [{}, {7: 0.5}, {0: 1e-30, 5: 1 / 3, 2**31 - 1: 2.5}])
    def test_sparse_vectors_come_back_bit_for_bit(
        self, path: Path, weights: dict[int, float]
    ) -> None:
        vector = SparseVector.from_dict(weights)
        put(EmbeddingCache(path=path), "sparse", vector)
        found = read(EmbeddingCache(path=path), "sparse")
        assert isinstance(found, SparseVector)
        assert found.indices.tobytes() == vector.indices.tobytes()
        assert found.values.tobytes() == vector.values.tobytes()

    def test_more_keys_than_one_query_takes(self, path: Path) -> None:
        source, names = Source(width=1), [f"text {i}" for i in range(1500)]
        source.ask(EmbeddingCache(path=path), *names)
        again = EmbeddingCache(path=path)
        values = source.ask(again, *names)
        assert (again.hits, again.misses) == (1500, 0)
        assert [v.tolist() for v in values] == [source.vector(n).tolist() for n in names]

    def test_a_value_too_large_for_memory_is_found_on_disk(self, path: Path) -> None:
        put(EmbeddingCache(max_bytes=0, path=path), "a", np.ones(2, dtype=np.float32))
        assert read(EmbeddingCache(max_bytes=0, path=path), "a").tolist() == [1, 1]

    def test_what_was_yielded_before_a_failure_is_on_disk(self, path: Path) -> None:
        source = Source()

        def compute(positions: list[int]) -> Iterator[tuple[int, np.ndarray]]:
            yield 0, source.vector("a")
            raise RuntimeError

        with pytest.raises(RuntimeError):
            get_or_compute(EmbeddingCache(path=path), [key_for("a"), key_for("b")], compute)
        assert source.knows(EmbeddingCache(path=path), "a")

    def test_clear_empties_the_file_too(self, path: Path) -> None:
        cache, source = EmbeddingCache(path=path), Source()
        source.ask(cache, "a")
        cache.clear()
        assert not source.knows(EmbeddingCache(path=path), "a")

    def test_after_close_the_memory_tier_goes_on(self, path: Path) -> None:
        cache, source = EmbeddingCache(path=path), Source()
        source.ask(cache, "a")
        cache.close()
        cache.close()
        assert source.knows(cache, "a")
        assert not source.knows(cache, "b")
        assert source.knows(cache, "b")
        assert not source.knows(EmbeddingCache(path=path), "b")

    def test_close_leaves_one_file(self, path: Path) -> None:
        cache = EmbeddingCache(path=path)
        Source().ask(cache, "a")
        cache.close()
        assert [file.name for file in path.parent.iterdir()] == [path.name]


class TestDiskFilesOfAnotherKind:
    def test_another_programs_database_is_refused_and_left_as_it_is(self, tmp_path: Path) -> None:
        path = tmp_path / "notes.sqlite"
        database = sqlite3.connect(path)
        database.execute("CREATE TABLE notes (text)")
        database.commit()
        database.close()
        before = path.read_bytes()
        with pytest.raises(InputError, match=r"notes\.sqlite is a database of another kind"):
            EmbeddingCache(path=path)
        gc.collect()
        assert path.read_bytes() == before

    def test_a_later_version_is_refused_and_left_as_it_is(self, path: Path) -> None:
        EmbeddingCache(path=path).close()
        database = sqlite3.connect(path)
        database.execute("ALTER TABLE vectors ADD COLUMN language TEXT")
        database.execute("PRAGMA user_version=99")
        database.commit()
        database.close()
        before = path.read_bytes()
        with pytest.raises(InputError, match="found 99"):
            EmbeddingCache(path=path)
        assert path.read_bytes() == before

    def test_version_1_which_has_no_checksums_is_set_aside(
        self, path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        path.parent.mkdir()
        database = sqlite3.connect(path)
        database.execute(
            "CREATE TABLE vectors (key BLOB PRIMARY KEY, kind INTEGER NOT NULL, "
            "width INTEGER NOT NULL, data BLOB NOT NULL, used REAL NOT NULL)"
        )
        database.execute("CREATE INDEX by_use ON vectors (used)")
        row = (key_for("a"), 0, 1, np.ones(1, dtype="<f4").tobytes(), 1.0)
        database.execute("INSERT INTO vectors VALUES (?, ?, ?, ?, ?)", row)
        database.execute("PRAGMA user_version=1")
        database.commit()
        database.close()
        before, source = path.read_bytes(), Source()
        cache = EmbeddingCache(path=path)
        assert source.ask(cache, "a")[0].tolist() == source.vector("a").tolist()
        assert path.with_name("cache.sqlite.version-1").read_bytes() == before
        assert "cache.sqlite.version-1" in caplog.text
        assert source.knows(EmbeddingCache(path=path), "a")

    def test_a_file_that_is_no_database_is_refused_and_left_as_it_is(self, tmp_path: Path) -> None:
        path = tmp_path / "report.txt"
        path.write_text("words " * 1000)
        with pytest.raises(InputError, match=r"report\.txt cannot serve as a cache file"):
            EmbeddingCache(path=path)
        assert path.read_text() == "words " * 1000

    def test_a_folder_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="cannot serve as a cache file"):
            EmbeddingCache(path=tmp_path)

    def test_a_folder_that_cannot_be_made_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(InputError, match="cannot serve as a cache file"):
            EmbeddingCache(path=tmp_path / "file" / "cache.sqlite")


class TestDiskBound:
    BOUND = 200 * 1024

    def test_holds_however_much_is_written(self, path: Path) -> None:
        source = Source(width=256)
        cache = EmbeddingCache(path=path, max_disk_bytes=self.BOUND)
        for i in range(600):
            source.ask(cache, f"text {i}")
        cache.close()
        reader = EmbeddingCache(path=path)
        kept = sum(source.knows(reader, f"text {i}") for i in range(600))
        assert 0 < kept * 1024 <= self.BOUND

    def test_the_file_does_not_grow_with_what_has_been_dropped(self, path: Path) -> None:
        source = Source(width=256)
        cache = EmbeddingCache(path=path, max_disk_bytes=self.BOUND)
        for i in range(600):
            source.ask(cache, f"text {i}")
        cache.close()
        assert path.stat().st_size <= 1.1 * self.BOUND

    def test_what_was_written_last_is_kept_and_the_first_is_gone(self, path: Path) -> None:
        source, names = Source(width=256), [f"text {i}" for i in range(600)]
        writer = EmbeddingCache(path=path, max_disk_bytes=self.BOUND)
        for name in names:
            source.ask(writer, name)
        reader = EmbeddingCache(path=path, max_disk_bytes=self.BOUND)
        assert source.knows(reader, names[-1])
        assert source.knows(reader, names[-50])
        assert not source.knows(reader, names[0])

    def test_what_is_used_outlives_what_is_not(self, path: Path) -> None:
        source = Source(width=256)
        writer = EmbeddingCache(path=path, max_disk_bytes=self.BOUND)
        source.ask(writer, "used", "unused")
        for i in range(250):
            source.ask(writer, f"text {i}")
            if i % 5 == 0:
                reader = EmbeddingCache(path=path, max_disk_bytes=self.BOUND)
                assert source.knows(reader, "used")
                reader.close()
        reader = EmbeddingCache(path=path, max_disk_bytes=self.BOUND)
        assert source.knows(reader, "used")
        assert not source.knows(reader, "unused")

    def test_zero_keeps_nothing_on_disk(self, path: Path) -> None:
        source = Source()
        source.ask(EmbeddingCache(path=path, max_disk_bytes=0), "a")
        assert not source.knows(EmbeddingCache(path=path), "a")


class TestFailingDisk:
    def test_costs_speed_and_one_warning_but_no_answer(
        self, path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        cache, source = EmbeddingCache(path=path), Source()
        vandal = sqlite3.connect(path)
        vandal.execute("DROP TABLE vectors")
        vandal.commit()
        vandal.close()
        with caplog.at_level(logging.WARNING):
            for name in "abc":
                value = source.ask(cache, name)[0]
                assert value.tolist() == source.vector(name).tolist()
            assert source.knows(cache, "a")
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert str(path) in caplog.text

    def test_a_full_disk_loses_no_vector_and_writing_goes_on_when_it_can(self, path: Path) -> None:
        cache, source = EmbeddingCache(path=path), Source()
        vandal = sqlite3.connect(path)
        vandal.execute(
            "CREATE TRIGGER full BEFORE INSERT ON vectors "
            "BEGIN SELECT RAISE(ABORT, 'database or disk is full'); END"
        )
        vandal.commit()
        assert source.ask(cache, "a")[0].tolist() == source.vector("a").tolist()
        vandal.execute("DROP TRIGGER full")
        vandal.commit()
        vandal.close()
        source.ask(cache, "b")
        reader = EmbeddingCache(path=path)
        assert source.knows(reader, "b")
        assert not source.knows(reader, "a")

    @pytest.mark.parametrize(
        "damage",
        [
            pytest.param("data = x'00'", id="cut short"),
            pytest.param("kind = 2", id="of another kind"),
            pytest.param("kind = 0, width = 8", id="of another shape"),
            pytest.param("width = 2", id="of another width"),
            pytest.param("width = -4", id="of a width below nothing"),
            pytest.param("data = CAST(data AS TEXT)", id="text"),
            pytest.param("data = 5", id="a number"),
            pytest.param("kind = 'x', width = 'y', checksum = 1.5", id="of other types"),
            pytest.param("data = zeroblob(length(data))", id="of zeros"),
            pytest.param("checksum = x''", id="without a checksum"),
        ],
    )
    def test_a_damaged_vector_is_computed_again(self, path: Path, damage: str) -> None:
        expected = np.arange(8, dtype=np.float32).reshape(2, 4) - 4
        put(EmbeddingCache(path=path), "a", expected.copy())
        vandal = sqlite3.connect(path)
        vandal.execute(f"UPDATE vectors SET {damage}")
        vandal.commit()
        vandal.close()
        cache = EmbeddingCache(path=path)
        assert put(cache, "a", expected.copy()).tolist() == expected.tolist()


WRITER = """
import sys
import numpy as np
from unified_embeddings.cache.embedding_cache import EmbeddingCache
from unified_embeddings.cache.keys import key_for

path, first, last = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
print("ready", flush=True)
sys.stdin.readline()
cache = EmbeddingCache(path=path)
for i in range(first, last):
    value = np.full(8, i, dtype=np.float32)
    with cache.claim([key_for(str(i))]) as claim:
        for missing in claim.rounds():
            for key in missing:
                claim.put(key, value)
assert (cache.hits + cache.misses) == last - first
"""

OPENER = """
import multiprocessing
import sys
from pathlib import Path

from unified_embeddings.cache.embedding_cache import EmbeddingCache

def open_all(barrier, folder):
    for i in range(60):
        barrier.wait(30)
        try:
            EmbeddingCache(path=folder / f"{i}.sqlite")
        except Exception as error:
            print(repr(error), file=sys.stderr)

if __name__ == "__main__":
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(6)
    arguments = (barrier, Path(sys.argv[1]))
    openers = [context.Process(target=open_all, args=arguments) for _ in range(6)]
    for opener in openers:
        opener.start()
    for opener in openers:
        opener.join()
    sys.exit(sum(opener.exitcode != 0 for opener in openers))
"""


class TestProcesses:
    @pytest.mark.skipif(sys.platform == "win32", reason="processes are forked here")
    def test_processes_that_make_the_file_at_once_all_get_it(self, path: Path) -> None:
        path.parent.mkdir()
        done = subprocess.run(
            [sys.executable, "-c", OPENER, str(path.parent)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            timeout=4 * PATIENCE,
        )
        assert done.stderr == ""
        assert done.returncode == 0

    def test_two_processes_writing_at_once_lose_nothing(self, path: Path) -> None:
        environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        writers = [
            subprocess.Popen(
                [sys.executable, "-W", "error", "-c", WRITER, str(path), str(first), str(last)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=environ,
                text=True,
            )
            for first, last in ((0, 300), (200, 500))
        ]
        for writer in writers:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "ready\n"
        for writer in writers:
            assert writer.stdin is not None
            writer.stdin.write("go\n")
            writer.stdin.flush()
        for writer in writers:
            _, problems = writer.communicate(timeout=PATIENCE)
            assert problems == ""
            assert writer.returncode == 0
        cache = EmbeddingCache(path=path)
        keys = [key_for(str(i)) for i in range(500)]
        assert [set(v.tolist()) for v in get_or_compute(cache, keys, never)] == [
            {float(i)} for i in range(500)
        ]

    def test_a_pickled_cache_keeps_its_bounds_and_shares_the_file_only(self, path: Path) -> None:
        source = Source()
        cache = EmbeddingCache(max_bytes=12_345, max_entries=7, path=path)
        source.ask(cache, "a")
        copy = pickle.loads(pickle.dumps(cache))
        assert (copy.max_bytes, copy.max_entries) == (12_345, 7)
        assert (copy.entries, copy.hits, copy.misses) == (0, 0, 0)
        assert source.knows(copy, "a")
        source.ask(copy, "b")
        assert source.knows(cache, "b")

    def test_a_pickled_cache_without_a_file_is_empty(self) -> None:
        cache, source = EmbeddingCache(max_bytes=12_345), Source()
        source.ask(cache, "a")
        copy = pickle.loads(pickle.dumps(cache))
        assert copy.max_bytes == 12_345
        assert not source.knows(copy, "a")

    def test_the_disk_bound_is_pickled_too(self, path: Path) -> None:
        source = Source()
        copy = pickle.loads(pickle.dumps(EmbeddingCache(path=path, max_disk_bytes=0)))
        source.ask(copy, "a")
        assert not source.knows(EmbeddingCache(path=path), "a")


@settings(max_examples=20, deadline=None)
@given(
    asks=st.lists(
        st.tuples(st.booleans(), st.lists(st.integers(0, 9).map(str), max_size=5)), max_size=10
    )
)
def test_two_tiers_answer_right_and_compute_each_text_once(
    tmp_path_factory: pytest.TempPathFactory, asks: list[tuple[bool, list[str]]]
) -> None:
    path, source = tmp_path_factory.mktemp("tiers") / "cache.sqlite", Source()
    cache = EmbeddingCache(max_entries=2, path=path)
    for reopen, names in asks:
        if reopen:
            cache.close()
            cache = EmbeddingCache(max_entries=2, path=path)
        values = source.ask(cache, *names)
        assert [v.tolist() for v in values] == [source.vector(name).tolist() for name in names]
    cache.close()
    assert source.computed == Counter({name for _, names in asks for name in names})


def test_a_vector_cut_at_a_whole_number_on_disk_is_computed_again(tmp_path: Path) -> None:
    path, value = tmp_path / "vectors.db", np.arange(8, dtype=np.float32)
    first = EmbeddingCache(path=path)
    put(first, "a", value.copy())
    first.close()
    with sqlite3.connect(path) as database:
        database.execute("UPDATE vectors SET data = substr(data, 1, 28)")
    database.close()
    assert put(EmbeddingCache(path=path), "a", value.copy()).tolist() == value.tolist()
