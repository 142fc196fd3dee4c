"""A sync client's methods as coroutines, each run in a worker thread.

An AsyncQdrantClient keeps connections open that belong to one event loop. A sync client belongs to
none: its connections are shared by all threads, so its methods can be awaited in any number of
loops, one after the other or at once, and nothing has to be closed when a loop ends.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import Any, TypeVar

Result = TypeVar("Result")

_PLAIN_METHODS = frozenset(("upload_points", "upload_collection"))
"""AsyncQdrantClient has these as plain methods: its callers do not await them."""
_READ_PREFIXES = ("get_", "query_", "collection_exists", "retrieve", "scroll", "count", "facet")
_WRITER_THREADS = 4
_SERVER_THREADS = 32
"""How many requests may wait for servers at once."""
_SEARCH_THREADS = 4
"""How many searches in this process run at once: they share Python's interpreter lock."""


class AsyncView:
    """AsyncQdrantClient's methods over a sync client.

    Over a client that runs in this process, reads run in the event loop's own threads, everything
    else in a few others: a write may wait for minutes while a collection is optimised, and must not
    keep reads waiting. Requests to a server do nothing but wait, and have threads of their own.

    Args:
        client: The sync client; it has to be thread-safe.
        is_remote: Whether it talks to a server.
    """

    def __init__(self, client: object, *, is_remote: bool = False) -> None:
        self._client = client
        self._is_remote = is_remote

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        method = getattr(self._client, name)
        if name in _PLAIN_METHODS or not callable(method):
            return method

        async def call(*args: object, **kwargs: object) -> object:
            executor = None  # the event loop's own threads
            if self._is_remote:
                executor = _server_threads()
            elif not name.startswith(_READ_PREFIXES):
                executor = _writer_threads()
            # Context variables do not reach an executor's threads by themselves.
            context = contextvars.copy_context()
            return await asyncio.get_running_loop().run_in_executor(
                executor, partial(context.run, method, *args, **kwargs)
            )

        return call


async def in_search_thread(function: Callable[[], Result]) -> Result:
    """Await a search in this process, in one of a few threads for that.

    In the event loop's own threads searches queue behind calls of a model. They then run all at
    once, and the loop waits for Python's interpreter lock behind each of them (docs/adr/0029).
    """
    context = contextvars.copy_context()
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(_search_threads(), partial(context.run, function))


@cache
def _search_threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_SEARCH_THREADS, thread_name_prefix="store-search")


@cache
def _writer_threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_WRITER_THREADS, thread_name_prefix="store-write")


@cache
def _server_threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_SERVER_THREADS, thread_name_prefix="store-server")


if hasattr(os, "register_at_fork"):  # not on Windows
    # A forked process has none of its parent's threads, although the pools would believe so.
    os.register_at_fork(after_in_child=_writer_threads.cache_clear)
    os.register_at_fork(after_in_child=_server_threads.cache_clear)
    os.register_at_fork(after_in_child=_search_threads.cache_clear)
