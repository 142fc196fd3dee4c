"""Work that an answer must not wait for, and work that an answer waits for only so long.

What lives here: a bounded queue with its threads, and a call with a time limit. What does not: what
is done in them (`transition`).
"""

from __future__ import annotations

import atexit
import contextvars
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from unified_embeddings.errors import OverloadedError
from unified_embeddings.validation import require_whole_number

T = TypeVar("T")

_EXIT_SECONDS = 1.0
"""How long the interpreter waits for running jobs when it ends."""


class BackgroundQueue:
    """Jobs that run in a few threads of their own, or are refused when too many wait.

    A thread lives as long as there are jobs. The threads are daemons, so a job that hangs does not
    keep the process alive; when the interpreter ends, jobs that wait are dropped.

    Args:
        threads: How many jobs run at once.
        waiting: How many may wait for a thread.

    Raises:
        InputError: If one is not a whole number >= 1.

    Example:
        >>> from unified_embeddings.retrievers.background import BackgroundQueue
        >>> done = []
        >>> queue = BackgroundQueue(threads=1, waiting=8)
        >>> queue.submit(lambda: done.append("asked"))
        True
        >>> queue.flush(timeout=10), done
        (True, ['asked'])
    """

    def __init__(self, *, threads: int, waiting: int) -> None:
        self._threads = require_whole_number("threads", threads)
        self._waiting = require_whole_number("waiting", waiting)
        self._reset()
        _QUEUES.add(self)

    def submit(self, job: Callable[[], object]) -> bool:
        """Let a job run soon; False if too many wait, and then it never runs.

        Args:
            job: Takes care of its own exceptions; one that it raises ends up in the thread's hook.
        """
        self._reset_after_fork()
        with self._changed:
            if len(self._jobs) >= self._waiting:
                return False
            self._jobs.append(job)
            if self._running < self._threads:
                thread = threading.Thread(target=self._run, name="shadow-query", daemon=True)
                try:
                    thread.start()
                except RuntimeError:  # the system has no more threads, or the interpreter ends
                    self._jobs.pop()
                    return False
                self._running += 1
        return True

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until no job waits or runs; False if `timeout` seconds were not enough."""
        self._reset_after_fork()
        with self._changed:
            return self._changed.wait_for(lambda: not (self._jobs or self._running), timeout)

    def discard(self) -> None:
        """Drop the jobs that wait."""
        with self._changed:
            self._jobs.clear()
            self._changed.notify_all()

    def _run(self) -> None:
        # A thread starts within `submit`, which counts it before it lets go of the lock.
        try:
            while (job := self._next_job()) is not None:
                job()
        except BaseException:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()
            raise

    def _next_job(self) -> Callable[[], object] | None:
        """Return the next job, or None where the thread is to end; it no longer counts then."""
        with self._changed:
            if self._jobs:
                return self._jobs.popleft()
            self._running -= 1
            self._changed.notify_all()
            return None

    def _reset(self) -> None:
        self._changed = threading.Condition()
        self._jobs: deque[Callable[[], object]] = deque()
        self._running = 0
        self._process = os.getpid()

    def _reset_after_fork(self) -> None:
        """Forget the parent's threads: a forked process has none of them."""
        if self._process != os.getpid():
            self._reset()


class TimedCalls:
    """Calls that are waited for only so long.

    A call whose time is up goes on in its thread, since Python cannot end one, and its result is
    thrown away. So that calls that hang do not pile up, there is a limit to how many run.

    Args:
        at_once: How many calls may run at once.

    Example:
        >>> from unified_embeddings.retrievers.background import TimedCalls
        >>> TimedCalls(at_once=4).run(lambda: "answer", seconds=10)
        'answer'
    """

    def __init__(self, at_once: int) -> None:
        self._slots = threading.BoundedSemaphore(require_whole_number("at_once", at_once))

    def run(self, call: Callable[[], T], seconds: float) -> T:
        """Return what a call returns.

        It runs in another thread, with this one's context variables.

        Raises:
            TimeoutError: If it takes longer than `seconds`.
            OverloadedError: If as many calls as allowed are still running.
            Exception: Whatever the call raises.
        """
        if not self._slots.acquire(blocking=False):
            raise OverloadedError("too many earlier calls have not come back")
        future: Future[T] = Future()
        context = contextvars.copy_context()

        def work() -> None:
            try:
                future.set_result(context.run(call))
            except BaseException as error:  # it is raised in the caller's thread
                future.set_exception(error)
            finally:
                self._slots.release()

        try:
            threading.Thread(target=work, name="new-index", daemon=True).start()
        except RuntimeError as error:
            self._slots.release()
            raise OverloadedError(f"no thread could be started: {error}") from error
        try:
            return future.result(seconds)
        except TimeoutError:
            raise
        except Exception as error:
            if not future.done():  # Python 3.10 has a TimeoutError of its own for futures
                raise TimeoutError from error
            raise


_QUEUES: weakref.WeakSet[BackgroundQueue] = weakref.WeakSet()


@atexit.register
def _finish() -> None:
    """Let running jobs end before the interpreter takes away what they use."""
    end = time.monotonic() + _EXIT_SECONDS
    for queue in list(_QUEUES):
        queue.discard()
        queue.flush(max(0.0, end - time.monotonic()))
