"""Running the inspector on this machine, for its command.

What lives here: the port, and the end. What does not: the application (`app`).
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable

import uvicorn
from starlette.applications import Starlette

from unified_embeddings.errors import InputError

HOST = "127.0.0.1"
"""The only address: what is shown here is for those who use this machine."""


def open_port(port: int) -> socket.socket:
    """Open a port on this machine's own address.

    Args:
        port: Its number; 0 takes a free one.

    Raises:
        InputError: If it is in use.
    """
    try:
        return socket.create_server((HOST, port))
    except OSError as error:
        raise InputError(
            f"cannot listen on {HOST}:{port}: {error.strerror or error}; choose another --port, or "
            "0 for a free one"
        ) from None


def address_of(listener: socket.socket) -> str:
    """Return the address that a browser opens."""
    return f"http://{HOST}:{listener.getsockname()[1]}/"


def run(
    app: Starlette, listener: socket.socket, *, on_ready: Callable[[str], None] | None = None
) -> None:
    """Answer requests until Ctrl-C or SIGTERM.

    Args:
        app: What answers.
        listener: An open port.
        on_ready: Called with the address once requests are answered.
    """
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        ws="none",
        lifespan="off",
        timeout_graceful_shutdown=2,
    )
    server = _Server(config, lambda: on_ready(address_of(listener)) if on_ready else None)
    with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises it again when it has ended
        server.run([listener])


class _Server(uvicorn.Server):
    """uvicorn's server, which tells when it answers."""

    def __init__(self, config: uvicorn.Config, on_started: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_started = on_started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and tell."""
        await super().startup(sockets)
        if self.started:
            self._on_started()
