"""How long a retriever's searches take, and who sees them.

What lives here: counting searches, and the record of one for those who watch. What does not:
searching (`hybrid`, `multimodal`), what is made of the numbers (`monitoring`).
"""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from llama_index.core.schema import NodeWithScore, QueryBundle
from qdrant_client import models as qm

from unified_embeddings.system.durations import DurationCounter, Durations
from unified_embeddings.system.watching import Watchers
from unified_embeddings.types import FloatArray


@dataclass(frozen=True)
class SearchStats:
    """What a retriever has done in one mode.

    Attributes:
        mode: "hybrid", "dense", "sparse" or "multimodal".
        durations: How long the searches took that were answered.
        failed: Searches that raised an error.

    Example:
        >>> from unified_embeddings.retrievers.timing import SearchCounters
        >>> (stats,) = SearchCounters("hybrid").stats()
        >>> stats.mode, stats.durations.count, stats.failed
        ('hybrid', 0, 0)
    """

    mode: str
    durations: Durations
    failed: int

    def __add__(self, other: SearchStats) -> SearchStats:
        """Return the numbers of both together; they are of one mode."""
        return SearchStats(self.mode, self.durations + other.durations, self.failed + other.failed)


@dataclass
class Search:
    """One search, as those see it who watch a retriever.

    Attributes:
        mode: The retriever's mode.
        top_k: The most nodes it returns.
        query: The question's text; empty for an image.
        vector: The question's dense vector, float32 (dimension,), once it was searched with.
        similarity: The dense score of the nearest point; None without a dense search or a point.
        found: Nodes returned; None before the answer is there, and if the search fails.
    """

    mode: str
    top_k: int
    query: str
    vector: FloatArray | None = None
    similarity: float | None = None
    found: int | None = None


_CURRENT: ContextVar[Search | None] = ContextVar("current_search", default=None)


class SearchCounters:
    """Counts one retriever's searches; thread-safe.

    Args:
        mode: The retriever's.
    """

    def __init__(self, mode: str) -> None:
        self._mode = mode
        self._lock = threading.Lock()
        self._durations = DurationCounter()
        self._failed = 0
        self._watchers: Watchers[Search] = Watchers()

    def stats(self) -> tuple[SearchStats, ...]:
        """Return the counters since the retriever was made, one for each mode."""
        with self._lock:
            return (SearchStats(self._mode, self._durations.snapshot(), self._failed),)

    def watch(
        self, watcher: Callable[[Search], AbstractContextManager[None]]
    ) -> Callable[[], None]:
        """Let something see each search, as tracing does; return what ends that."""
        return self._watchers.add(watcher)

    @contextlib.contextmanager
    def searching(self, bundle: QueryBundle, top_k: int) -> Iterator[Search]:
        """Count the search that is made inside the context.

        Args:
            bundle: The question.
            top_k: The most nodes that it is to return.
        """
        search = Search(self._mode, top_k, bundle.query_str)
        begun = time.perf_counter()
        try:
            with self._watchers.around(search):
                token = _CURRENT.set(search)
                try:
                    yield search
                finally:
                    _CURRENT.reset(token)
        except BaseException:
            with self._lock:
                self._failed += 1
            raise
        with self._lock:
            self._durations.note(time.perf_counter() - begun)

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle the mode: a copy counts anew, and nobody watches it."""
        return SearchCounters, (self._mode,)


class _Counted(Protocol):
    """A retriever with counters."""

    searches: SearchCounters
    _top_k: int


Retriever = TypeVar("Retriever", bound=_Counted)


def timed(
    retrieve: Callable[[Retriever, QueryBundle], list[NodeWithScore]],
) -> Callable[[Retriever, QueryBundle], list[NodeWithScore]]:
    """Count the searches of a retriever's `_retrieve`."""

    @functools.wraps(retrieve)
    def count(self: Retriever, query_bundle: QueryBundle) -> list[NodeWithScore]:
        with self.searches.searching(query_bundle, self._top_k) as search:
            nodes = retrieve(self, query_bundle)
            search.found = len(nodes)
        return nodes

    return count


def atimed(
    retrieve: Callable[[Retriever, QueryBundle], Coroutine[Any, Any, list[NodeWithScore]]],
) -> Callable[[Retriever, QueryBundle], Coroutine[Any, Any, list[NodeWithScore]]]:
    """Count the searches of a retriever's `_aretrieve`."""

    @functools.wraps(retrieve)
    async def count(self: Retriever, query_bundle: QueryBundle) -> list[NodeWithScore]:
        with self.searches.searching(query_bundle, self._top_k) as search:
            nodes = await retrieve(self, query_bundle)
            search.found = len(nodes)
        return nodes

    return count


def note_points(vector: FloatArray | None, dense_points: Sequence[qm.ScoredPoint]) -> None:
    """Note in the record of the present search what its dense half has found.

    Args:
        vector: The question's dense vector.
        dense_points: The points that it found, the best first; none without a dense search.
    """
    search = _CURRENT.get()
    if search is None or not dense_points:
        return
    search.vector = vector
    search.similarity = dense_points[0].score
