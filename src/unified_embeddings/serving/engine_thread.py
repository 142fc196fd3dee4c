"""One thread that runs an engine's calls, one after the other, for an event loop.

What lives here: the way of a call to the thread and of its result back. What does not: which texts
make a call (`batcher`).
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable
from typing import TypeVar, cast

T = TypeVar("T")


class EngineThread:
    """A daemon thread beside an event loop.

    A daemon, unlike a ThreadPoolExecutor's: an engine that hangs must not keep the process from
    ending.

    Example:
        >>> import asyncio
        >>> async def add() -> int:
        ...     thread = EngineThread()
        ...     try:
        ...         return await thread.run(lambda: 1 + 1)
        ...     finally:
        ...         thread.stop()
        >>> asyncio.run(add())
        2
    """

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._unfinished = 0
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    @property
    def is_busy(self) -> bool:
        """Tell whether a call is at work or waits, also one whose result nobody awaits."""
        return self._unfinished > 0

    @property
    def unfinished(self) -> int:
        """Return how many calls wait or run, those that nobody waits for included."""
        return self._unfinished

    def run(self, function: Callable[[], T]) -> asyncio.Future[T]:
        """Run a function in the thread; the result is a future of the calling event loop.

        Whatever the function raises, even what ends a thread, becomes the future's exception, and
        the thread lives on.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def call() -> None:
            result: T | None = None
            error: BaseException | None = None
            try:
                result = function()
            except Exception as problem:
                error = problem
            except BaseException as problem:
                # A future must not carry SystemExit and the like: they would end the event loop.
                error = RuntimeError(f"the engine raised {type(problem).__name__}")

            def settle() -> None:
                self._unfinished -= 1
                if future.done():  # Nobody waits for it any longer.
                    return
                if error is not None:
                    future.set_exception(error)
                else:
                    future.set_result(cast("T", result))

            # The loop may be closed by now, and nobody waits.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(settle)

        self._unfinished += 1
        self._calls.put(call)
        return future

    def stop(self) -> None:
        """End the thread after the calls that were given before."""
        self._calls.put(None)

    def _work(self) -> None:
        while True:
            call = self._calls.get()
            if call is None:
                return
            call()
            del call  # It holds the texts and the result, until the next one comes.
