"""Parts to workers and their results back, whatever happens to a worker.

What lives here: starting workers, giving each its parts, and replacing those that die or hang. What
does not: what a worker does (`worker`), and what follows from its death (`attempts`).
"""

from __future__ import annotations

import contextlib
import queue
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, Listener, wait

from unified_embeddings.bulk.attempts import (
    FAILED_STARTS,
    PartAttempt,
    Patience,
    deadly_reason,
    do_nothing,
    hanging_reason,
)
from unified_embeddings.bulk.planning import PartTask
from unified_embeddings.bulk.worker import (
    Begun,
    Broken,
    Finished,
    Ready,
    WorkerSettings,
    work,
)
from unified_embeddings.errors import UnifiedEmbeddingsError
from unified_embeddings.system.hardware import thread_variables
from unified_embeddings.system.processes import ChildFailedError, ChildProcess

_AHEAD = 2
"""Parts that a worker holds: one to compute, and the next, so that it never waits."""
_POLL = 0.25


@dataclass(eq=False)
class _Worker:
    """One child process and what it holds."""

    number: int
    child: ChildProcess[None]
    connection: Connection
    parts: deque[PartAttempt] = field(default_factory=deque)
    begun: Begun | None = None
    begun_at: float = 0.0
    is_ready: bool = False


class WorkerPool:
    """Child processes that compute parts.

    Args:
        settings: Of each worker.
        hang_seconds: After how many seconds without a word in the middle of a slice a worker counts
            as hanging. None predicts it from the slices before.

    Attributes:
        runtime: What the workers run on, once one is ready.
        deaths: Workers that died or were stopped because they hung.
    """

    def __init__(
        self, settings: list[WorkerSettings], *, hang_seconds: float | None = None
    ) -> None:
        self._settings = settings
        self._patience = Patience(hang_seconds)
        self._key = secrets.token_bytes(32)
        self._listener = Listener(authkey=self._key)
        self._accepted: queue.SimpleQueue[Connection] = queue.SimpleQueue()
        self._is_closed = False
        self._check: Callable[[], None] = do_nothing
        threading.Thread(target=self._accept, name="accept", daemon=True).start()
        self._workers: list[_Worker] = []
        self._failed_starts = 0
        self.runtime: Mapping[str, str] = {}
        self.deaths = 0

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *_: object) -> None:
        self._is_closed = True
        for worker in self._workers:
            self._end(worker)
        self._workers.clear()
        self._listener.close()

    def compute(
        self, tasks: Iterable[PartTask], check: Callable[[], None] = do_nothing
    ) -> Iterator[Finished]:
        """Compute parts.

        Args:
            tasks: Taken one by one, as workers have room for them.
            check: Called several times a second where work may stop; what it raises is raised.

        Yields:
            The parts as they are published, in any order.

        Raises:
            UnifiedEmbeddingsError: If the model cannot be loaded.
            OSError: If the disk is full.
        """
        waiting = iter(tasks)
        retries: deque[PartAttempt] = deque()
        is_exhausted = False
        self._check = check
        while True:
            check()
            while not is_exhausted or retries:
                worker = self._find_room()
                if worker is None:
                    break
                if retries:
                    part = retries.popleft()
                else:
                    task = next(waiting, None)
                    if task is None:
                        is_exhausted = True
                        continue
                    part = PartAttempt(task)
                self._give(worker, part)
            if is_exhausted and not retries and not any(worker.parts for worker in self._workers):
                return
            yield from self._receive(retries)
            self._stop_hanging(retries)

    def stop_after_parts_in_hand(self) -> Iterator[Finished]:
        """Let each worker finish the part it computes, and yield those parts."""
        lost: deque[PartAttempt] = deque()
        for worker in self._workers:
            in_hand = 1 if worker.is_ready else 0
            while len(worker.parts) > in_hand:
                worker.parts.pop()
        while any(worker.parts for worker in self._workers):
            yield from self._receive(lost)
            self._stop_hanging(lost)

    # --- workers --------------------------------------------------------------------------------

    def _find_room(self) -> _Worker | None:
        """Return the worker with the fewest parts, if it may have one more; start missing ones."""
        running = {worker.number for worker in self._workers}
        for number in range(len(self._settings)):
            if number not in running:
                self._workers.append(self._start(number))
        worker = min(self._workers, key=lambda worker: len(worker.parts))
        return worker if len(worker.parts) < _AHEAD else None

    def _start(self, number: int) -> _Worker:
        arguments = (self._listener.address, self._key, number, self._settings[number])
        variables = thread_variables(len(self._settings))
        while True:
            child = ChildProcess(work, arguments, show_stderr=False, variables=variables)
            try:
                connection = self._connect(child)
            except BaseException:
                child.close()
                raise
            if connection is not None:
                return _Worker(number, child, connection)
            reason = _reason(child)
            child.__exit__()
            self._count_failed_start(reason)

    def _connect(self, child: ChildProcess[None]) -> Connection | None:
        """Wait until a child that was started calls; None if it ends before."""
        while True:
            self._check()
            has_ended = child.has_ended
            with contextlib.suppress(queue.Empty):
                connection = self._accepted.get(timeout=_POLL)
                with contextlib.suppress(EOFError, OSError):
                    connection.recv()  # Its number: one child is started at a time.
                    return connection
                connection.close()  # It died as soon as it had called.
            if has_ended:
                return None

    def _count_failed_start(self, reason: str) -> None:
        """Count a worker that ended before it was ready.

        Raises:
            UnifiedEmbeddingsError: If that happens again and again.
        """
        self.deaths += 1
        self._failed_starts += 1
        if self._failed_starts >= FAILED_STARTS:
            raise UnifiedEmbeddingsError(
                f"{FAILED_STARTS} workers in a row ended while they were starting or loading the "
                f"model: {reason}"
            )

    def _accept(self) -> None:
        while not self._is_closed:
            try:
                self._accepted.put(self._listener.accept())
            except Exception:
                # A stranger who knows no key, or the listener was closed.
                time.sleep(0.01)

    def _end(self, worker: _Worker) -> None:
        with contextlib.suppress(OSError, ValueError):
            worker.connection.close()
        worker.child.__exit__()

    # --- parts ----------------------------------------------------------------------------------

    def _give(self, worker: _Worker, part: PartAttempt) -> None:
        worker.parts.append(part)
        with contextlib.suppress(OSError):  # It died; `_receive` finds out.
            worker.connection.send(part.assignment)

    def _receive(self, retries: deque[PartAttempt]) -> Iterator[Finished]:
        """Take what workers say, and yield the parts that they have finished."""
        by_connection = {worker.connection: worker for worker in self._workers}
        for ready in wait(list(by_connection), timeout=_POLL):
            assert isinstance(ready, Connection)
            worker = by_connection[ready]
            try:
                message = ready.recv()
            except (EOFError, OSError):
                self._bury(worker, retries, _reason(worker.child))
                continue
            if isinstance(message, Broken):
                raise message.error
            if isinstance(message, Ready):
                worker.is_ready = True
                self.runtime = message.runtime
                self._failed_starts = 0
            elif isinstance(message, Begun):
                self._note_slice(worker)
                worker.begun, worker.begun_at = message, time.monotonic()
            elif isinstance(message, Finished):
                self._note_slice(worker)
                worker.begun = None
                if worker.parts:  # While the pool stops, a worker may finish one more than asked.
                    worker.parts.popleft()
                yield message

    def _bury(self, worker: _Worker, retries: deque[PartAttempt], reason: str) -> None:
        """Take a dead worker's parts back.

        Raises:
            UnifiedEmbeddingsError: If workers die again and again before they are ready.
        """
        self._workers.remove(worker)
        self._end(worker)
        if not worker.is_ready:
            self._count_failed_start(reason)
        else:
            self.deaths += 1
        if worker.begun is not None and worker.parts:
            worker.parts[0].note_death(worker.begun.places, deadly_reason(reason))
        retries.extendleft(reversed(worker.parts))

    def _stop_hanging(self, retries: deque[PartAttempt]) -> None:
        for worker in list(self._workers):
            if worker.begun is None:
                continue
            seconds = time.monotonic() - worker.begun_at
            if seconds > self._patience.limit(worker.begun):
                worker.child.kill()
                self._bury(worker, retries, hanging_reason(seconds))

    def _note_slice(self, worker: _Worker) -> None:
        if worker.begun is not None:
            self._patience.note(worker.begun, time.monotonic() - worker.begun_at)


def _reason(child: ChildProcess[None]) -> str:
    try:
        child.result()
    except (ChildFailedError, UnifiedEmbeddingsError) as error:
        return str(error)
    return "it ended"
