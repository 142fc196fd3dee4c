"""Ctrl-C at any moment: no vector stays claimed, and a later call is answered."""

from __future__ import annotations

import itertools
import multiprocessing
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

import unified_embeddings
from unified_embeddings.cache import embedding_cache
from unified_embeddings.cache.claims import Claim
from unified_embeddings.cache.embedding_cache import EmbeddingCache
from unified_embeddings.cache.keys import key_for
from unified_embeddings.embedders.fake import FakeEmbedder
from unified_embeddings.errors import UnifiedEmbeddingsError

PATIENCE = 20.0
"""Seconds after which a thread counts as stuck."""
PACKAGE = Path(unified_embeddings.__file__).parent
TRACED = (str(PACKAGE / "cache"), str(PACKAGE / "embedders" / "cached.py"))
"""Where an interrupt may come: the cache, and the way of an embedder's texts through it."""
KEYS = [key_for(name) for name in ("a", "b")]


def vector_of(key: bytes) -> np.ndarray:
    return np.frombuffer(key, dtype=np.uint8).astype(np.float32)


def ask(cache: EmbeddingCache, keys: list[bytes]) -> list[Any]:
    with cache.claim(keys) as claim:
        for missing in claim.rounds():
            for key in missing:
                claim.put(key, vector_of(key))
    return [claim[key] for key in keys]


def answer_from_another_thread(function: Callable[[], Any]) -> Any:
    """Return what a function gives in another thread; fail if it waits for ever."""
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(function()), daemon=True)
    thread.start()
    thread.join(PATIENCE)
    assert answers, "a later call waits for ever, or fails"
    return answers[0]


@contextmanager
def interrupt_after(instructions: int) -> Iterator[None]:
    """Raise KeyboardInterrupt before a bytecode instruction of the cache, counted from 1."""
    left = instructions

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        if event == "call" and not frame.f_code.co_filename.startswith(TRACED):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            left -= 1
            if left == 0:
                raise KeyboardInterrupt
        return trace

    former = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(former)


def interrupt_everywhere(
    prepare: Callable[[], Any], work: Callable[[Any], Any], check: Callable[[Any], None]
) -> int:
    """Do a piece of work with an interrupt before its first, second, ... last instruction.

    Returns:
        The number of instructions.
    """
    kept: list[BaseException] = []  # as a notebook keeps the last one, with all local variables
    for instructions in itertools.count(1):
        subject = prepare()
        try:
            with interrupt_after(instructions):
                work(subject)
        except KeyboardInterrupt as error:
            kept[:] = [error]
        else:
            return instructions - 1
        check(subject)
    raise AssertionError


@pytest.fixture(autouse=True)
def little_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a lock count as lost soon.

    An exception before the very instruction that releases a lock is what a tracer can raise here,
    and no signal can.
    """
    monkeypatch.setattr(embedding_cache, "_PATIENCE", 0.02)


def check_answers(cache: EmbeddingCache) -> None:
    values = answer_from_another_thread(lambda: ask(cache, KEYS))
    assert [value.tolist() for value in values] == [vector_of(key).tolist() for key in KEYS]
    assert cache.bytes == cache.entries * (KEYS_BYTES + OVERHEAD)
    assert not cache._in_flight


KEYS_BYTES = 4 * len(KEYS[0])
OVERHEAD = 256


class TestEveryInstruction:
    def test_of_a_computation(self) -> None:
        instructions = interrupt_everywhere(
            EmbeddingCache, lambda cache: ask(cache, KEYS), check_answers
        )
        assert instructions > 300

    def test_of_a_computation_that_evicts(self) -> None:
        def check(cache: EmbeddingCache) -> None:
            check_answers(cache)
            assert cache.entries == 1

        interrupt_everywhere(
            lambda: EmbeddingCache(max_bytes=KEYS_BYTES + OVERHEAD),
            lambda cache: ask(cache, KEYS),
            check,
        )

    def test_of_a_computation_that_fails(self) -> None:
        def compute_half(cache: EmbeddingCache) -> None:
            with cache.claim(KEYS) as claim:
                for _ in claim.rounds():
                    claim.put(KEYS[0], vector_of(KEYS[0]))
                    raise ZeroDivisionError

        def fail(cache: EmbeddingCache) -> None:
            with pytest.raises(ZeroDivisionError):
                compute_half(cache)

        interrupt_everywhere(EmbeddingCache, fail, check_answers)

    def test_of_a_computation_that_gives_keys_up(self) -> None:
        def give_up(cache: EmbeddingCache) -> None:
            with cache.claim(KEYS) as claim:
                for missing in claim.rounds():
                    for key in missing:
                        claim.release(key)

        interrupt_everywhere(EmbeddingCache, give_up, check_answers)

    def test_of_an_embedder(self) -> None:
        def check(embedder: FakeEmbedder) -> None:
            found = answer_from_another_thread(lambda: embedder.encode_documents(["fox", "dog"]))
            assert np.array_equal(found.dense, expected.dense)

        expected = FakeEmbedder(dimension=4).encode_documents(["fox", "dog"])
        interrupt_everywhere(
            lambda: FakeEmbedder(dimension=4), lambda it: it.encode_documents(["fox", "dog"]), check
        )


class Owner:
    """A thread that has claimed a key, and waits to be told what to do with it."""

    def __init__(self, cache: EmbeddingCache) -> None:
        self.cache = cache
        self.has_claimed, self.go_on = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self._compute, daemon=True)
        self.thread.start()
        assert self.has_claimed.wait(PATIENCE)

    def _compute(self) -> None:
        with self.cache.claim(KEYS[:1]) as claim:
            for _ in claim.rounds():
                self.has_claimed.set()
                assert self.go_on.wait(PATIENCE)
                claim.put(KEYS[0], vector_of(KEYS[0]))

    def finish(self) -> None:
        self.go_on.set()
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive()


def test_every_instruction_of_waiting_for_another_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    owner: list[Owner] = []
    wait = embedding_cache.Flight.wait

    def wait_once(flight: Any, seconds: float) -> None:
        wait(flight, 0)
        owner[-1].finish()

    def prepare() -> EmbeddingCache:
        cache = EmbeddingCache()
        owner.append(Owner(cache))
        return cache

    def check(cache: EmbeddingCache) -> None:
        owner[-1].finish()
        check_answers(cache)

    monkeypatch.setattr(embedding_cache.Flight, "wait", wait_once)
    interrupt_everywhere(prepare, lambda cache: ask(cache, KEYS), check)


def test_a_claim_that_a_kept_exception_still_refers_to_holds_no_key(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    cache = EmbeddingCache()
    with monkeypatch.context() as patched:
        patched.setattr(Claim, "__exit__", interrupted)
        with pytest.raises(KeyboardInterrupt) as kept:
            ask(cache, KEYS)
    assert kept.value.__traceback__ is not None
    check_answers(cache)


class TestOwnKey:
    def test_a_computation_that_asks_for_its_own_key_raises(self) -> None:
        def compute() -> None:
            with cache.claim(KEYS[:1]) as claim:
                for _ in claim.rounds():
                    ask(cache, KEYS)

        cache = EmbeddingCache()
        with pytest.raises(UnifiedEmbeddingsError, match="midst of its own computation"):
            compute()
        check_answers(cache)

    def test_an_embedder_that_embeds_the_same_text_inside_raises(self) -> None:
        class Recursive(FakeEmbedder):
            def _run(self, texts: Any, role: Any, heads: Any) -> Any:
                self.encode_documents(list(texts))
                return super()._run(texts, role, heads)

        with pytest.raises(UnifiedEmbeddingsError, match="midst of its own computation"):
            Recursive().encode_documents(["fox"])

    def test_another_text_inside_is_computed(self) -> None:
        cache = EmbeddingCache()
        with cache.claim(KEYS[:1]) as claim:
            for _ in claim.rounds():
                (inner,) = ask(cache, KEYS[1:2])
                claim.put(KEYS[0], inner + 1)
        assert claim[KEYS[0]].tolist() == (vector_of(KEYS[1]) + 1).tolist()


@pytest.mark.skipif(sys.platform == "win32", reason="processes are forked here")
def test_a_forked_child_does_not_wait_for_its_parents_threads() -> None:
    cache = EmbeddingCache()
    owner = Owner(cache)
    child = multiprocessing.get_context("fork").Process(target=ask, args=(cache, KEYS))
    child.start()
    child.join(PATIENCE)
    stuck = child.is_alive()
    child.kill()
    owner.finish()
    assert not stuck
    assert child.exitcode == 0


@pytest.mark.skipif(sys.platform == "win32", reason="processes are forked here")
def test_a_forked_child_does_not_wait_for_the_locks_of_its_parents_threads(tmp_path: Path) -> None:
    """One of them may be writing to the disk, whose lock is waited for with patience."""
    cache = EmbeddingCache(path=tmp_path / "cache.db")
    assert cache._disk is not None
    with cache._guard.lock(), cache._disk._guard.lock():
        child = multiprocessing.get_context("fork").Process(target=ask, args=(cache, KEYS))
        child.start()
        child.join(timeout=4)
        exit_code = child.exitcode
        child.kill()
    assert exit_code == 0


@pytest.mark.endurance
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs interval timers")
def test_five_thousand_interrupts_at_random_moments(tmp_path: Path) -> None:
    texts = [f"number {i}" for i in range(60)]
    embedder = FakeEmbedder(dimension=8)
    expected = embedder.encode_documents(texts).dense
    rng = random.Random(13)
    former = signal.signal(signal.SIGALRM, signal.default_int_handler)
    kept: list[BaseException] = []
    try:
        for round_ in range(5000):
            path = tmp_path / f"{round_ % 7}.sqlite" if round_ % 2 else None
            embedder.cache = EmbeddingCache(path=path)
            # What is on disk is not asked for again, or hardly anything would be computed.
            fresh = [f"{text} of {round_ // 14}" for text in texts] if path else texts
            try:
                signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-5, 0.01))
                embedder.encode_documents(fresh)
                time.sleep(PATIENCE)
            except KeyboardInterrupt as error:
                kept[:] = [error]
            found = answer_from_another_thread(lambda: embedder.encode_documents(texts))
            assert np.array_equal(found.dense, expected)
            assert not embedder.cache._in_flight
            embedder.cache.close()
    finally:
        signal.signal(signal.SIGALRM, former)
