"""A sync client's methods as coroutines, each run in a worker thread."""

from __future__ import annotations

import asyncio
import contextvars
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import Any

_PLAIN_METHODS = frozenset(("upload_points", "upload_collection"))
"""AsyncQdrantClient has these as plain methods: its callers do not await them."""
_READ_PREFIXES = ("get_", "query_", "collection_exists", "retrieve", "scroll", "count")
_WRITER_THREADS = 4


class AsyncView:
    """AsyncQdrantClient's methods over a sync client that runs in this process.

    Reads run in the event loop's own threads, everything else in a few others: a write may wait for
    minutes while a collection is optimised, and must not keep reads waiting.

    Args:
        client: The sync client; it has to be thread-safe.
    """

    def __init__(self, client: object) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        method = getattr(self._client, name)
        if name in _PLAIN_METHODS or not callable(method):
            return method

        async def call(*args: object, **kwargs: object) -> object:
            executor = None  # the event loop's own threads
            if not name.startswith(_READ_PREFIXES):
                executor = _writer_threads()
            # Context variables do not reach an executor's threads by themselves.
            context = contextvars.copy_context()
            return await asyncio.get_running_loop().run_in_executor(
                executor, partial(context.run, method, *args, **kwargs)
            )

        return call


@cache
def _writer_threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_WRITER_THREADS, thread_name_prefix="store-write")
