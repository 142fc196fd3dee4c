"""A store in this process: opened once a folder, and safe to share between threads.

What lives here: which client a folder gets, and qdrant-client's own local mode, which users bring
as `client=QdrantClient(":memory:")`. That mode is not thread-safe (qdrant-client issue 1193) and
its async client neither shares data with the sync one nor yields to the event loop. Here: one lock
around each such client, and an async view of it.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import weakref
from pathlib import Path
from typing import Any

from qdrant_client import AsyncQdrantClient, QdrantClient
from qdrant_client.local.qdrant_local import QdrantLocal

from unified_embeddings.errors import StoreError
from unified_embeddings.stores.asynchronous import AsyncView
from unified_embeddings.stores.edge.client import EdgeQdrantClient

Client = QdrantClient | EdgeQdrantClient

_open_clients: weakref.WeakValueDictionary[Path, EdgeQdrantClient] = weakref.WeakValueDictionary()
_open_lock = threading.Lock()
_CLOSING = 60.0
"""Seconds that closing a store may take: its log is brought home."""


class _Locked:
    """A QdrantLocal whose methods run one at a time."""

    def __init__(self, inner: QdrantLocal) -> None:
        self.inner = inner
        self._lock = threading.RLock()

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self.inner, name)
        if not callable(attribute):
            return attribute

        def call(*args: Any, **kwargs: Any) -> Any:
            with self._lock:
                return attribute(*args, **kwargs)

        return call


def is_local_mode(client: Any) -> bool:
    """Whether this client is qdrant-client's local mode."""
    return isinstance(getattr(client, "_client", None), QdrantLocal | _Locked)


def is_in_process(client: Any) -> bool:
    """Whether Qdrant runs in this process, not on a server."""
    return isinstance(client, EdgeQdrantClient) or is_local_mode(client)


def make_thread_safe(client: Client) -> Client:
    """Put a lock around a client in local mode, in place; any other is left as it is."""
    if isinstance(client, QdrantClient) and isinstance(client._client, QdrantLocal):
        client._client = _Locked(client._client)  # type: ignore[assignment]
    return client


def async_view(client: Client) -> AsyncQdrantClient | None:
    """The async side of a client that runs in this process; None for a server's."""
    if isinstance(client, EdgeQdrantClient):
        return client.aclient  # type: ignore[return-value]
    return AsyncView(client) if is_local_mode(client) else None  # type: ignore[return-value]


def open_folder(path: str | os.PathLike[str]) -> EdgeQdrantClient:
    """The client of a folder, made with the first call and shared by all later ones.

    Raises:
        StoreError: If another process has the folder open, it cannot be written, or was made by
            newer or other software.
    """
    folder = Path(path).expanduser().resolve()
    with _open_lock:
        client = _open_clients.get(folder)
        if client is not None and client.closed and not client.forked:
            client.released.wait(_CLOSING)  # by another thread, which is not done with it
        if client is None or client.closed or client.forked:
            client = EdgeQdrantClient(folder)
            _open_clients[folder] = client
        return client


def open_old_folder(path: str | os.PathLike[str]) -> QdrantClient:
    """A folder of qdrant-client's local mode, which reads all of it into memory.

    Raises:
        StoreError: If another client has it open, or its files cannot be read.
    """
    folder = Path(path).expanduser().resolve()
    try:
        return QdrantClient(path=str(folder))
    except (RuntimeError, OSError, ValueError, LookupError, sqlite3.Error) as error:
        problem = str(error).strip() or type(error).__name__
        raise StoreError(str(folder), "opening", problem) from error
