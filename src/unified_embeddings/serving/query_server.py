"""The light endpoint's process: the port, the model, the signals.

What lives here: starting in the order that answers soonest, and ending without losing a request.
What does not: the routes (`query_endpoint`). The web libraries are imported while the model loads.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from unified_embeddings.errors import InputError, MissingExtraError, UnifiedEmbeddingsError
from unified_embeddings.serving.query_settings import QuerySettings

if TYPE_CHECKING:
    import uvicorn

    from unified_embeddings.embedders.base import TextEmbedder
    from unified_embeddings.serving.query_worker import QueryWorker

_BACKLOG = 512


def serve(load: Callable[[], TextEmbedder], settings: QuerySettings) -> None:
    """Run the light endpoint until SIGTERM or Ctrl-C.

    The port is open before anything heavy is imported. After SIGTERM no more requests are taken,
    and those in hand are answered.

    Args:
        load: Makes the embedder, in another thread.
        settings: The endpoint's settings.

    Raises:
        InputError: If the port cannot be opened.
        MissingExtraError: If the web libraries are not installed.
        UnifiedEmbeddingsError: If the model cannot be loaded.
    """
    listener = listen(settings.host, settings.port)
    # This imports the embedders: the port is open before, and connections wait on it.
    from unified_embeddings.serving.query_worker import QueryWorker

    worker = QueryWorker(load, capacity=settings.queue_size, patience=settings.request_timeout)
    began = time.monotonic()
    worker.on_ready = lambda: _say(f"ready after {time.monotonic() - began:.1f} s")
    worker.start()
    host, port = listener.getsockname()[:2]
    _say(f"listening on http://{_in_url(host)}:{port}; the model is loading")
    server = _make_server(worker, settings)

    def stop_server() -> None:
        server.should_exit = True

    worker.on_failure = stop_server
    if worker.error is not None:
        stop_server()
    # uvicorn raises the signal again once it has drained; SIGTERM is then done with.
    signal.signal(signal.SIGTERM, lambda *_: None)
    server.run(sockets=[listener])
    has_ended = worker.stop(1.0)
    if worker.error is not None:
        raise _explain(worker.error)
    _say("stopped")
    if not has_ended:
        # A forward pass that nobody waits for cannot be interrupted, and ONNX Runtime does not
        # survive the end of the interpreter around it.
        os._exit(0)


def listen(host: str, port: int) -> socket.socket:
    """Open a port, on which connections wait until they are served.

    Args:
        host: An address, or a name of this machine.
        port: The port; 0 takes a free one.

    Raises:
        InputError: If it cannot be opened.
    """
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family = addresses[0][0]
        listener = socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        # `create_server` adds the address, which is named already.
        reason = reason.partition(" (while attempting")[0]
        raise InputError(
            f"cannot listen on {host}:{port}: {reason}; choose another --host or --port"
        ) from None
    # Connections inherit it. asyncio sets it only on sockets of its own making, and without it an
    # answer's second packet waits 40 ms for the client's acknowledgement of the first.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def _make_server(worker: QueryWorker, settings: QuerySettings) -> uvicorn.Server:
    try:
        import uvicorn

        from unified_embeddings.serving.query_endpoint import make_app
    except ImportError as error:
        raise MissingExtraError(
            "Starlette or uvicorn, which serve-query needs,", extra="serve"
        ) from error

    config = uvicorn.Config(
        make_app(worker, settings),
        # The pure-Python protocol: what is asked here takes a hundred times as long as parsing it.
        http="h11",
        loop="asyncio",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=_BACKLOG,
        timeout_graceful_shutdown=max(1, round(settings.drain_timeout)),
    )
    return uvicorn.Server(config)


def _explain(error: BaseException) -> UnifiedEmbeddingsError:
    """Return what kept the model from being loaded, in words for the user."""
    if isinstance(error, UnifiedEmbeddingsError):
        return error
    return UnifiedEmbeddingsError(f"the model's thread ended: {type(error).__name__}: {error}")


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _say(line: str) -> None:
    # Whoever read standard error may be gone, which must end neither the model's thread nor this.
    with contextlib.suppress(OSError, ValueError):
        print(line, file=sys.stderr, flush=True)
