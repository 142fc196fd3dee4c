"""Vectors that are being computed: by whom, and for how long that is so.

What lives here: a flight, which is a set of keys that one thread computes, and the lock that guards
the table of flights. What does not: the table itself (`embedding_cache`), and the caller's side of
a flight (`claims`).

A flight must not outlive the computation, or whoever waits for its keys waits for ever. Code that
ends it on the way out is not enough: Ctrl-C raises between any two instructions, those of an
`__exit__` included. So a flight is alive only as long as the generator that the computing loop
iterates over. The interpreter itself drops that generator when the loop is left, however that
happens, and an exception's traceback, which keeps all local variables, does not keep it.
"""

from __future__ import annotations

import inspect
import os
import queue
import threading
import time
import weakref
from collections.abc import Generator
from typing import TypeAlias

from unified_embeddings.cache.keys import Key, Value

Rounds: TypeAlias = "Generator[frozenset[Key], None, None]"
"""The loop of one computation; see `Claim.rounds`."""

_LOOK = 0.0005
"""Seconds between two looks at a lock that is taken."""


class Flight:
    """Keys that one thread is computing, and the values that are done.

    Args:
        rounds: The generator that the computing loop iterates over.

    Attributes:
        thread: Identifier of the thread.
        pending: The keys that have no value yet.
        values: The values that are done, for those who wait.
    """

    def __init__(self, rounds: weakref.ref[Rounds]) -> None:
        self.thread = threading.get_ident()
        self.pending: set[Key] = set()
        self.values: dict[Key, Value] = {}
        self._rounds = rounds
        # A forked child has a copy of this flight, but not the thread that computes.
        self._process = os.getpid()
        # A queue rather than an Event: `put` and `get` are single C calls, so that no interrupt can
        # leave a lock inside taken.
        self._landed: queue.SimpleQueue[None] = queue.SimpleQueue()

    def is_alive(self) -> bool:
        """Tell whether the computing loop is still running."""
        rounds = self._rounds()
        if rounds is None or inspect.getgeneratorstate(rounds) == inspect.GEN_CLOSED:
            return False
        return self._process == os.getpid()

    def land(self) -> None:
        """Wake whoever waits: no key is pending any more."""
        self._landed.put(None)

    def wait(self, seconds: float) -> None:
        """Return when the flight has landed, or after some seconds."""
        try:
            self._landed.get(timeout=seconds)
        except queue.Empty:
            return
        self._landed.put(None)  # for the next one who waits


class Guard:
    """A lock for short sections, which nobody waits for in vain.

    `with guard.lock():` is safe from Ctrl-C, since CPython delivers no signal between taking a lock
    and the body of a `with` statement, nor between the end of the body and the lock's release. An
    exception that a debugger or a tracer raises there would leave the lock taken for ever. So a
    lock that stays taken for `patience` seconds, where its sections take far less, is replaced. So
    is one in a forked process, at once: the thread that has taken it may not be there.

    Args:
        patience: Seconds; far more than any section takes.
    """

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._lock = threading.Lock()
        self._process = os.getpid()

    def lock(self) -> threading.Lock:
        """Return the lock, to be used in a `with` statement at once."""
        if self._process != os.getpid():
            self._process, self._lock = os.getpid(), threading.Lock()
        if self._lock.locked():
            self._replace_if_lost(self._lock)
        return self._lock

    def _replace_if_lost(self, lock: threading.Lock) -> None:
        # Looking, not taking: a signal between taking the lock here and giving it back would leave
        # it taken.
        give_up = time.monotonic() + self._patience
        while lock is self._lock and lock.locked():
            if time.monotonic() > give_up:
                self._lock = threading.Lock()
                return
            time.sleep(_LOOK)
