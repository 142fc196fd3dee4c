"""A sync client's methods as coroutines, each run in a worker thread."""

from __future__ import annotations

import asyncio
import contextvars
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import Any

_NOT_COROUTINES = frozenset(("upload_points", "upload_collection"))
"""Which AsyncQdrantClient has as plain methods too: who calls them does not await them."""
_READS = ("get_", "query_", "collection_exists", "retrieve", "scroll", "count")
_WRITERS = 4


class AsyncView:
    """AsyncQdrantClient's methods over a sync client that runs in this process.

    Reads run in the event loop's own threads, everything else in a few others: writes may wait for
    minutes while a collection is optimized, and must not keep reads waiting.

    Args:
        client: Whose methods they are; it has to be thread-safe.
    """

    def __init__(self, client: Any) -> None:
        self._sync = client

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        method = getattr(self._sync, name)
        if name in _NOT_COROUTINES or not callable(method):
            return method

        async def call(*args: Any, **kwargs: Any) -> Any:
            loop = asyncio.get_running_loop()
            executor = None if name.startswith(_READS) else _writers()
            context = contextvars.copy_context()
            return await loop.run_in_executor(
                executor, partial(context.run, method, *args, **kwargs)
            )

        return call


@cache
def _writers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_WRITERS, thread_name_prefix="store-write")
