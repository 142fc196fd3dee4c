"""Clients of a Qdrant in this process: one per folder, and safe to share between threads.

What lives here: which client a folder gets, and qdrant-client's own local mode, which users bring
as `client=QdrantClient(":memory:")`. Local mode is not thread-safe (qdrant-client issue 1193), and
its async client neither shares data with the sync one nor yields to the event loop. So each such
client gets a lock around it, and an async view of itself.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias, cast

from qdrant_client import AsyncQdrantClient, QdrantClient
from qdrant_client.local.qdrant_local import QdrantLocal

from unified_embeddings.errors import StoreError
from unified_embeddings.stores.asynchronous import AsyncView
from unified_embeddings.stores.edge.client import EdgeQdrantClient

Client: TypeAlias = QdrantClient | EdgeQdrantClient
"""A client with qdrant-client's interface: a server's, local mode's or an embedded store's."""

# Weak: a client that nobody holds is closed, and its folder is free for another process.
_open_clients: weakref.WeakValueDictionary[Path, EdgeQdrantClient] = weakref.WeakValueDictionary()
_open_lock = threading.Lock()
_CLOSING_SECONDS = 60.0
"""How long to wait for another thread that is closing the store: its log is being flushed."""


class _LockedLocalClient:
    """A QdrantLocal whose methods run one at a time."""

    def __init__(self, inner: QdrantLocal) -> None:
        self.inner = inner
        self._lock = threading.RLock()

    def __getattr__(self, name: str) -> object:
        attribute = getattr(self.inner, name)
        if not callable(attribute):
            return attribute

        def call(*args: object, **kwargs: object) -> object:
            with self._lock:
                return attribute(*args, **kwargs)

        return call


def is_local_mode(client: object) -> bool:
    """Tell whether a client is qdrant-client's local mode."""
    return isinstance(getattr(client, "_client", None), QdrantLocal | _LockedLocalClient)


def is_in_process(client: object) -> bool:
    """Tell whether a client's Qdrant runs in this process, not on a server."""
    return isinstance(client, EdgeQdrantClient) or is_local_mode(client)


def make_thread_safe(client: Client) -> Client:
    """Put a lock around a client in local mode, in place; any other is left unchanged."""
    if isinstance(client, QdrantClient) and isinstance(client._client, QdrantLocal):
        client._client = _LockedLocalClient(client._client)  # type: ignore[assignment]  # acts as it
    return client


def async_view(client: Client) -> AsyncQdrantClient:
    """Return the async side of a client, which works in any number of event loops."""
    view = AsyncView(client, is_remote=not is_in_process(client))
    if isinstance(client, EdgeQdrantClient):
        view = client.aclient
    return cast("AsyncQdrantClient", view)  # it has the same methods


def open_folder(path: str | os.PathLike[str]) -> EdgeQdrantClient:
    """Return the client of a folder; all callers in this process share one.

    Raises:
        StoreError: If another process has the folder open, it cannot be written, or was made by
            newer or other software.
    """
    folder = Path(path).expanduser().resolve()
    with _open_lock:
        client = _open_clients.get(folder)
        if client is not None and client.closed and not client.forked:
            client.released.wait(_CLOSING_SECONDS)  # another thread may still be closing it
        if client is None or client.closed or client.forked:
            client = EdgeQdrantClient(folder)
            _open_clients[folder] = client
        return client


def missing_folders(folder: Path) -> list[Path]:
    """Return the folder and those above it that do not exist yet, the innermost first."""
    return [place for place in (folder, *folder.parents) if not os.path.lexists(place)]


def discard_unused(client: Client, new_folders: Sequence[Path]) -> None:
    """Remove the folders that opening a store made, if no collection came to be in it.

    Args:
        client: The store's client; it is closed.
        new_folders: The store's folder and those above it that did not exist before; none if the
            store existed.
    """
    if not new_folders or not isinstance(client, EdgeQdrantClient):
        return
    # The caller is about to raise what went wrong; a folder that cannot be removed stays, empty.
    with _open_lock, contextlib.suppress(OSError, StoreError):
        if client.closed or client.get_collections().collections:
            return
        client.close()
        # Another thread may have made a collection through the same client until now.
        if any(new_folders[0].glob("shards/*")):
            return
        shutil.rmtree(new_folders[0])
        for folder in new_folders[1:]:
            folder.rmdir()


def open_local_mode_folder(path: str | os.PathLike[str]) -> QdrantClient:
    """Return a client of a folder that qdrant-client's local mode made.

    Local mode reads the whole folder into memory.

    Raises:
        StoreError: If another client has it open, or its files cannot be read.
    """
    folder = Path(path).expanduser().resolve()
    try:
        return QdrantClient(path=str(folder))
    except (RuntimeError, OSError, ValueError, LookupError, sqlite3.Error) as error:
        problem = str(error).strip() or type(error).__name__
        raise StoreError.of_place(str(folder), "opening", problem) from error
