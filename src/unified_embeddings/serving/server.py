"""Running the application: the socket, signals, and the end.

What lives here: one process that serves, from its open port to its exit. What does not: the
application (`app`); several processes (`workers`).
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib.util
import math
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from types import FrameType
from typing import Any, Literal

import uvicorn
from fastapi import FastAPI

from unified_embeddings.config.pipeline import UnifiedEmbeddingConfig
from unified_embeddings.serving.app import make_app
from unified_embeddings.serving.listening import BACKLOG, address_of, open_socket
from unified_embeddings.serving.logs import LOG
from unified_embeddings.serving.service import EmbeddingService
from unified_embeddings.serving.settings import ServiceSettings

_SHARED_BACKLOG = 1
"""What the event loop is told for a socket that processes share. It accepts as many connections at
a time, so one process would take them all. The socket's own queue is set by `listen`."""
_KEEP_ALIVE = 75
"""Seconds that an idle connection stays open: longer than the pools of common clients keep one."""


def serve(
    config: UnifiedEmbeddingConfig,
    settings: ServiceSettings,
    *,
    listener: socket.socket | None = None,
    on_ready: Callable[[str], None] | None = None,
    accepts_early: bool = True,
    is_shared: bool = False,
    companion: Callable[[FastAPI], Coroutine[None, None, None]] | None = None,
) -> None:
    """Serve a config's model until SIGTERM or SIGINT, then finish what is in hand.

    Args:
        config: Of the model.
        settings: Of the service.
        listener: An open socket to serve on; None opens the settings' address.
        on_ready: Called once the model is loaded, with the service's address.
        accepts_early: Whether connections are taken while the model is loaded, and answered 503.
        is_shared: Whether other processes accept from the same socket.
        companion: Runs beside the application until the end, from before the model is loaded.

    Raises:
        InputError: If the address cannot be used.
        UnifiedEmbeddingsError: If the model cannot be loaded.
    """
    if listener is None:
        listener = open_socket(settings.host, settings.port)
    app = make_app(config, settings)
    backlog = _SHARED_BACKLOG if is_shared else BACKLOG

    async def run() -> None:
        service: EmbeddingService = app.state.service
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(service)
            if companion is not None:
                task = asyncio.create_task(companion(app))
                stack.callback(task.cancel)
            if not accepts_early:
                await service.loaded()
            await _serve(app, settings, listener, on_ready, backlog)
        _end_with(service)

    # uvloop accepts all connections that wait, which would leave none to other processes.
    factory = None if is_shared else _loop_factory()
    if sys.version_info >= (3, 11):
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(run())
    else:
        asyncio.run(run())


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return what makes uvloop's event loop, an eighth cheaper per request, where it is there."""
    if importlib.util.find_spec("uvloop") is None:
        return None
    import uvloop

    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


async def _serve(
    app: FastAPI,
    settings: ServiceSettings,
    listener: socket.socket,
    on_ready: Callable[[str], None] | None,
    backlog: int,
) -> None:
    service: EmbeddingService = app.state.service
    # The service is entered already.
    server = make_server(app, settings, backlog=backlog, lifespan="off")
    running = asyncio.create_task(server.serve(sockets=[listener]))
    with _handle_signals(server):
        while not server.started and not running.done():
            await asyncio.sleep(0.01)
        if server.started:
            listener.listen(BACKLOG)
            watching = asyncio.create_task(_announce(service, listener, on_ready))
            watching.add_done_callback(lambda task: _stop_if_failed(task, server))
            await running
            if not watching.done():
                watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
    await running


def _end_with(service: EmbeddingService) -> None:
    """Raise what kept the model from being loaded; end the process if a pass is still running."""
    if service.load_error is not None:
        raise service.load_error
    if service.is_at_work:
        # A pass that hangs, or a model that is being loaded: its thread would outlive the drain.
        LOG.warning("Ended with work unfinished")
        _exit_now(0)


def make_server(
    app: FastAPI,
    settings: ServiceSettings,
    *,
    backlog: int = BACKLOG,
    lifespan: Literal["on", "off"] = "on",
) -> Server:
    """Return the HTTP server of an application; its `serve` runs it.

    Args:
        app: The application.
        settings: Of the service.
        backlog: Connections that are accepted at a time.
        lifespan: Whether the server enters the application's service, or its caller has.
    """
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        ws="none",
        timeout_keep_alive=_KEEP_ALIVE,
        # Those who wait have been answered by then; this is for whoever does not read the answer.
        timeout_graceful_shutdown=math.ceil(settings.drain_timeout) + 1,
        lifespan=lifespan,
        backlog=backlog,
    )
    return Server(config, app.state.service)


class Server(uvicorn.Server):
    """uvicorn's server, which also tells the service that it is about to end.

    Args:
        config: uvicorn's.
        service: Behind the application.
    """

    def __init__(self, config: uvicorn.Config, service: EmbeddingService) -> None:
        super().__init__(config)
        self._service = service
        self._silent_since: dict[object, float] = {}

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to `_handle_signals`."""
        yield

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain at the first signal, end at the second."""
        if self._service.is_draining:
            LOG.warning("Ended at the second signal")
            _exit_now(1)
        self.drain()
        super().handle_exit(sig, frame)

    def drain(self) -> None:
        """Take no more connections, finish what is in hand, and end."""
        self._service.is_draining = True
        self.should_exit = True
        seconds = self._service.settings.drain_timeout
        asyncio.get_running_loop().call_later(seconds, self._service.batcher.end)

    async def on_tick(self, counter: int) -> bool:
        """Do what uvicorn does ten times a second, and close connections that never ask."""
        if counter % 10 == 0:
            self._close_silent(time.monotonic())
        return await super().on_tick(counter)

    def _close_silent(self, now: float) -> None:
        """Close connections whose request's head does not arrive: uvicorn waits without end."""
        silent = [
            connection for connection in self.server_state.connections if _is_silent(connection)
        ]
        self._silent_since = {
            connection: self._silent_since.get(connection, now) for connection in silent
        }
        for connection in silent:
            if now - self._silent_since[connection] > self._service.settings.receive_timeout:
                connection.transport.close()


def _is_silent(connection: Any) -> bool:
    """Tell whether nothing but a part of a request's head has come, in uvicorn's protocols."""
    cycle = connection.cycle
    # After an answer, uvicorn's own timer runs until the first byte of the next request.
    return cycle is None or (cycle.response_complete and connection.timeout_keep_alive_task is None)


@contextlib.contextmanager
def _handle_signals(server: Server) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    kinds = (signal.SIGTERM, signal.SIGINT)
    if sys.platform == "win32":
        previous = {kind: signal.signal(kind, server.handle_exit) for kind in kinds}
        try:
            yield
        finally:
            for kind, handler in previous.items():
                signal.signal(kind, handler)
        return
    for kind in kinds:
        loop.add_signal_handler(kind, server.handle_exit, kind, None)
    try:
        yield
    finally:
        for kind in kinds:
            loop.remove_signal_handler(kind)


async def _announce(
    service: EmbeddingService,
    listener: socket.socket,
    on_ready: Callable[[str], None] | None,
) -> None:
    await service.loaded()
    # What is in memory now stays: looking through all of it while a large request is read would
    # make that three times as slow.
    gc.collect()
    gc.freeze()
    if on_ready is not None:
        on_ready(address_of(listener))


def _stop_if_failed(task: asyncio.Task[None], server: Server) -> None:
    """End the server if the model could not be loaded: nothing would ever be answered."""
    if not task.cancelled() and task.exception() is not None:
        server.drain()


def _exit_now(code: int) -> None:
    """End the process although a thread still works."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
