"""Several processes behind one port, and the process that watches them.

What lives here: starting workers, noticing that one has died or does not work, replacing it, ending
all of them. What does not: what a worker does (`worker`), child processes (`system.processes`).

This process opens the port, loads no model and answers no request. Each worker inherits the socket
and accepts from it. What a worker has not accepted stays in the socket's queue when the worker
dies, and another one takes it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator

from unified_embeddings.errors import InputError, UnifiedEmbeddingsError
from unified_embeddings.serving.channel import Channel, WorkerOrder
from unified_embeddings.serving.listening import address_of
from unified_embeddings.serving.settings import ServiceSettings
from unified_embeddings.serving.worker import run_worker
from unified_embeddings.system.hardware import thread_variables
from unified_embeddings.system.processes import ChildFailedError, ChildProcess
from unified_embeddings.types import Options

_LOG = logging.getLogger("unified_embeddings.serving")
_SILENCE = 5.0
"""Seconds without a report after which a worker that was ready counts as hanging."""
_LOADING_SILENCE = 120.0
"""The same while it loads: libraries hold the interpreter's lock for long while they load."""
_GRACE = 1.0
"""Seconds in which a worker that does not work may still answer those who wait for it."""
_ENDING = 5.0
"""Seconds that a process takes to end at most, once its event loop has."""
_DRAIN_MARGIN = 5.0
"""Seconds beyond its own deadline that a worker gets to end before it is killed."""
_DELAYS = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
"""Seconds before a worker is replaced, by how many before it did not last."""
_LASTING = 60.0
"""Seconds of work after which an end no longer counts as one of a series."""
_HOPELESS = 3
"""Workers that die before any was ever ready, until the service gives up."""


def serve_with_workers(
    options: Options,
    settings: ServiceSettings,
    listener: socket.socket,
    *,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Serve with several processes until SIGTERM or SIGINT, then let them finish what is in hand.

    The first worker loads the model alone, which may write files that the others then share.

    Args:
        options: Of `UnifiedEmbeddingConfig`, which must be picklable.
        settings: Of the service; `workers` says how many processes.
        listener: The open socket; it is closed at the end.
        on_ready: Called once all workers are ready, with the service's address.

    Raises:
        InputError: On Windows, where processes cannot share a socket like this.
        UnifiedEmbeddingsError: If the model cannot be loaded.
    """
    if sys.platform == "win32":
        raise InputError(
            f"workers must be 1 on Windows, got {settings.workers}: its processes do not inherit "
            "an open port. Start several services on ports of their own instead"
        )
    supervisor = _Supervisor(options, settings, listener)
    asyncio.run(supervisor.run(on_ready))


class _Worker:
    """One worker process, seen from outside.

    Args:
        options: Of the model.
        settings: Of the service.
        listener: The socket that it accepts from.
        number: Its place.
        accepts_early: See `WorkerOrder`.
    """

    def __init__(
        self,
        options: Options,
        settings: ServiceSettings,
        listener: socket.socket,
        *,
        number: int,
        accepts_early: bool,
    ) -> None:
        own_end, its_end = socket.socketpair()
        order = WorkerOrder(
            number=number,
            workers=settings.workers,
            accepts_early=accepts_early,
            listener=listener.fileno(),
            channel=its_end.fileno(),
        )
        self.number = number
        self.is_ready = asyncio.Event()
        self.problem: str | None = None
        self.metrics = ""
        self.started = time.monotonic()
        self._channel = Channel(own_end)
        with its_end:  # The child has a copy of its own.
            self._process = ChildProcess(
                run_worker,
                [options, settings, order],
                handles=[order.listener, order.channel],
                variables=thread_variables(settings.workers),
            )

    async def watch(self, tell_metrics: Callable[[], dict[str, str]]) -> None:
        """Follow its reports until it has ended, or does not work."""
        await self._channel.open()
        while True:
            silence = _SILENCE if self.is_ready.is_set() else _LOADING_SILENCE
            try:
                message = await asyncio.wait_for(self._channel.receive(), silence)
            except asyncio.TimeoutError:
                self.problem = f"silent for {silence:g} s"
                return
            if message is None:
                return
            if "asks_for_metrics" in message:
                await self._channel.send({"metrics": tell_metrics()})
                continue
            self.metrics = str(message["metrics"])
            # A worker that cannot load its model ends by itself, and its error tells more.
            if message["problem"] is not None and self.is_ready.is_set():
                self.problem = str(message["problem"])
                return
            if message["is_ready"]:
                self.is_ready.set()

    def terminate(self) -> None:
        """Let it finish what it has in hand, and end."""
        self._process.terminate()

    def kill(self) -> None:
        """End it now."""
        self._process.kill()

    async def end(self, seconds: float) -> UnifiedEmbeddingsError | str | None:
        """Wait for its end, kill it if that takes too long, and return what it ended with.

        Returns:
            An error of ours that it raised; in words how it failed otherwise; None if it has ended
            in good order.
        """
        if not await asyncio.to_thread(self._process.wait, seconds):
            self._process.kill()
        try:
            await asyncio.to_thread(self._process.result)
        except UnifiedEmbeddingsError as error:
            return error
        except ChildFailedError as error:
            return str(error)
        return None

    def close(self) -> None:
        """Free what it took here; it is killed if it lives."""
        self._process.close()
        self._channel.close()


class _Supervisor:
    """Keeps a number of workers alive.

    Args:
        options: Of the model.
        settings: Of the service.
        listener: The socket that the workers accept from.
    """

    def __init__(
        self, options: Options, settings: ServiceSettings, listener: socket.socket
    ) -> None:
        self._options = options
        self._settings = settings
        self._listener = listener
        self._workers: dict[int, _Worker] = {}
        self._has_been_ready = False
        self._is_draining = asyncio.Event()
        self._first_is_ready = asyncio.Event()

    async def run(self, on_ready: Callable[[str], None] | None) -> None:
        """Keep the workers alive until a signal, and end them."""
        keeping = [
            asyncio.create_task(self._keep(number)) for number in range(self._settings.workers)
        ]
        announcing = asyncio.create_task(self._announce(on_ready))
        draining = asyncio.create_task(self._is_draining.wait())
        try:
            with self._handle_signals():
                await asyncio.wait([*keeping, draining], return_when=asyncio.FIRST_COMPLETED)
                self._drain()
                deadline = self._settings.drain_timeout + _DRAIN_MARGIN
                _, late = await asyncio.wait(keeping, timeout=deadline)
        finally:
            for task in (*keeping, announcing, draining):
                task.cancel()
            results = await asyncio.gather(*keeping, return_exceptions=True)
        if late:
            _LOG.warning("%d workers did not end in time and were killed", len(late))
        for result in results:
            if isinstance(result, Exception):
                raise result

    async def _announce(self, on_ready: Callable[[str], None] | None) -> None:
        """Say that the service is ready, once each worker is."""
        while len(self._ready_workers()) < self._settings.workers:
            await asyncio.sleep(0.05)
        if on_ready is not None:
            on_ready(address_of(self._listener))

    def _ready_workers(self) -> list[_Worker]:
        return [worker for worker in self._workers.values() if worker.is_ready.is_set()]

    async def _keep(self, number: int) -> None:
        """Keep one place filled: start a worker, and another whenever it ends."""
        if number > 0:
            await self._first_is_ready.wait()
        failures = 0
        while not self._is_draining.is_set():
            worker = self._start(number)
            try:
                outcome = await self._follow(worker)
            finally:
                worker.close()
                self._workers.pop(number, None)
            if self._is_draining.is_set():
                return
            lasted = worker.is_ready.is_set() and time.monotonic() - worker.started > _LASTING
            failures = 0 if lasted else failures + 1
            self._give_up_if_hopeless(outcome, failures)
            delay = _DELAYS[min(max(failures - 1, 0), len(_DELAYS) - 1)]
            reason = worker.problem or outcome or "it ended without a word"
            _LOG.error("worker %d is replaced in %g s: %s", number, delay, reason)
            await self._pause(delay)

    def _start(self, number: int) -> _Worker:
        worker = _Worker(
            self._options,
            self._settings,
            self._listener,
            number=number,
            accepts_early=not self._has_been_ready and number == 0,
        )
        self._workers[number] = worker
        return worker

    async def _follow(self, worker: _Worker) -> UnifiedEmbeddingsError | str | None:
        """Follow a worker to its end, and return what it ended with."""
        noting = asyncio.create_task(self._note_readiness(worker))
        try:
            await worker.watch(self._tell_metrics)
        finally:
            noting.cancel()
        if self._is_draining.is_set():
            return await worker.end(self._settings.drain_timeout + _DRAIN_MARGIN)
        if worker.problem is None:  # It is about to end by itself, perhaps with an error to tell.
            return await worker.end(_ENDING)
        worker.terminate()
        return await worker.end(_GRACE)

    async def _note_readiness(self, worker: _Worker) -> None:
        await worker.is_ready.wait()
        self._has_been_ready = True
        if worker.number == 0:
            self._first_is_ready.set()

    def _give_up_if_hopeless(
        self, outcome: UnifiedEmbeddingsError | str | None, failures: int
    ) -> None:
        """End the service if its model has never been loaded and it looks as if it never will.

        Raises:
            UnifiedEmbeddingsError: Then.
        """
        if self._has_been_ready:
            return
        if isinstance(outcome, UnifiedEmbeddingsError):
            raise outcome
        if failures >= _HOPELESS:
            raise UnifiedEmbeddingsError(
                f"the model could not be loaded: {failures} worker processes ended while loading "
                f"it, the last one so: {outcome}"
            )

    async def _pause(self, seconds: float) -> None:
        """Wait, but not for longer than the service is to go on."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._is_draining.wait(), seconds)

    def _tell_metrics(self) -> dict[str, str]:
        return {str(worker.number): worker.metrics for worker in self._ready_workers()}

    # --- the end --------------------------------------------------------------------------------

    def _drain(self) -> None:
        """Take no more connections, and let each worker finish."""
        self._is_draining.set()
        self._first_is_ready.set()
        self._listener.close()
        for worker in self._workers.values():
            if worker.is_ready.is_set():
                worker.terminate()
            else:
                worker.kill()  # It has nothing in hand, and would first load to the end.

    def _stop(self) -> None:
        """Drain at the first signal, end at the second."""
        if self._is_draining.is_set():
            for worker in self._workers.values():
                worker.kill()
        self._is_draining.set()

    @contextlib.contextmanager
    def _handle_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        kinds = (signal.SIGTERM, signal.SIGINT)
        for kind in kinds:
            loop.add_signal_handler(kind, self._stop)
        try:
            yield
        finally:
            for kind in kinds:
                loop.remove_signal_handler(kind)
