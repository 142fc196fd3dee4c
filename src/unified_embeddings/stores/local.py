"""qdrant-client's in-process mode, made safe to share between threads and coroutines.

That mode is not thread-safe (qdrant-client issue 1193), lets a folder be opened once, and its async
client neither shares data with the sync one nor yields to the event loop. Here: one lock around
each client, one client per folder and process, and an async view of it.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
import weakref
from pathlib import Path
from typing import Any

from qdrant_client import QdrantClient
from qdrant_client.local.qdrant_local import QdrantLocal

from unified_embeddings.errors import StoreError

_open_clients: weakref.WeakValueDictionary[Path, QdrantClient] = weakref.WeakValueDictionary()
_open_lock = threading.Lock()


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


class AsyncLocalClient:
    """AsyncQdrantClient's methods over a sync client, each in a worker thread."""

    def __init__(self, client: QdrantClient) -> None:
        self._sync = client

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._sync, name)

        async def call(*args: Any, **kwargs: Any) -> Any:
            return await asyncio.to_thread(method, *args, **kwargs)

        return call


def is_local(client: Any) -> bool:
    """Whether this client runs Qdrant in this process."""
    inner = getattr(client, "_client", None)
    return isinstance(inner, QdrantLocal | _Locked)


def is_closed(client: QdrantClient) -> bool:
    """Whether a local client has been closed."""
    return bool(getattr(client._client, "closed", False))


def make_thread_safe(client: QdrantClient) -> QdrantClient:
    """Put a lock around a local client, in place; a client of a server is left as it is."""
    if isinstance(client._client, QdrantLocal):
        client._client = _Locked(client._client)  # type: ignore[assignment]
    return client


def open_folder(path: str | os.PathLike[str]) -> QdrantClient:
    """The client of a folder, made with the first call and shared by all later ones.

    Raises:
        StoreError: If another process has the folder open, or it cannot be written.
    """
    folder = Path(path).expanduser().resolve()
    if folder.exists() and not folder.is_dir():
        raise StoreError(str(folder), "opening", "it is a file; give a folder for the store")
    with _open_lock:
        client = _open_clients.get(folder)
        if client is None or is_closed(client):
            try:
                client = QdrantClient(path=str(folder), force_disable_check_same_thread=True)
            except (RuntimeError, OSError, ValueError, KeyError, sqlite3.Error) as error:
                problem = str(error).rstrip(".")
                if "already accessed" in problem:
                    problem += (
                        ". A folder serves one process at a time; close the other one, or run a "
                        "Qdrant server and use url="
                    )
                raise StoreError(str(folder), "opening", problem) from error
            # Closed while the interpreter is whole: QdrantClient.__del__ fails at its exit.
            weakref.finalize(client, client._client.close)
            _open_clients[folder] = make_thread_safe(client)
        return client
