"""The port of a service: opened before all else, and named as clients name it.

What lives here: the socket. What does not: what is served on it (`server`, `mcp`).
"""

from __future__ import annotations

import socket

from unified_embeddings.errors import InputError

BACKLOG = 2048
"""Connections that may wait to be accepted."""


def open_socket(host: str, port: int) -> socket.socket:
    """Open the port before anything is loaded, so that early clients wait and are not refused.

    Raises:
        InputError: If the address cannot be used.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol named, and inherited by each connection: else a small answer waits 40 ms,
    # its head sent and its body held back until the client confirms the head.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except (OSError, ValueError) as error:  # ValueError: no name of a host can look like that
        listener.close()
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(
            f"cannot listen on {host}:{port}: {reason}; choose another --host or --port"
        ) from None
    listener.setblocking(False)
    return listener


def address_of(listener: socket.socket) -> str:
    """Return the address that clients use."""
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{port}"
