"""A sync client's methods as coroutines, each run in a worker thread."""

from __future__ import annotations

import asyncio
from typing import Any

_NOT_COROUTINES = frozenset(("upload_points", "upload_collection"))
"""Which AsyncQdrantClient has as plain methods too: who calls them does not await them."""


class AsyncView:
    """AsyncQdrantClient's methods over a sync client that runs in this process.

    Args:
        client: Whose methods they are; it has to be thread-safe.
    """

    def __init__(self, client: Any) -> None:
        self._sync = client

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._sync, name)
        if name in _NOT_COROUTINES or not callable(method):
            return method

        async def call(*args: Any, **kwargs: Any) -> Any:
            return await asyncio.to_thread(method, *args, **kwargs)

        return call
