"""From an old index to a new one, question by question: shadow, canary, fallback.

What lives here: which of two retrievers answers a question, asking the other one for comparison,
and falling back. What does not: whose a question is (`shares`), counting (`transition_report`),
threads (`background`), the switch itself and whether it may be made (`migration`).
"""

from __future__ import annotations

import asyncio
import contextvars
import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.callbacks import CallbackManager
from llama_index.core.schema import NodeWithScore, QueryBundle, QueryType

from unified_embeddings.errors import InputError, OverloadedError
from unified_embeddings.retrievers.background import BackgroundQueue, TimedCalls
from unified_embeddings.retrievers.options import check_callbacks
from unified_embeddings.retrievers.shares import place_of, require_share, to_bundle
from unified_embeddings.retrievers.transition_report import (
    Failure,
    Side,
    TransitionCounters,
    TransitionReport,
)
from unified_embeddings.validation import require_whole_number

_CALLS_AT_ONCE = 32
"""Timed calls to the new side that may be under way: as many as a busy server has threads."""


@dataclass(frozen=True)
class _Answer:
    """What a side answered.

    Attributes:
        nodes: The nodes, best first.
        seconds: How long it took.
    """

    nodes: list[NodeWithScore]
    seconds: float

    @property
    def node_ids(self) -> list[str]:
        """Their ids."""
        return [scored.node.node_id for scored in self.nodes]


class TransitionRetriever(BaseRetriever):
    """Answer a share of the questions from a new index, the others from the old one.

    Which side answers depends on a hash of the question's text, or of the tenant who asks, so a
    question gets the same side in every process and after every restart. A larger share only adds
    questions to the new side. An error or a time-out of the new side falls back to the old one,
    and is counted; errors of the old side are raised.

    With `shadow` the other side is asked the same question in the background, and the two answers
    are compared (see `report`). No answer waits for that, though it takes processor time. If too
    many comparisons are waiting, further ones are dropped and counted. Synchronous questions are
    compared in threads, asynchronous ones in tasks of their event loop; a loop that ends takes its
    tasks with it, which counts them as dropped.

    Nodes of the two sides are the same if their ids are: a migration keeps the ids.

    Args:
        old: The index that answers today; any LlamaIndex retriever.
        new: The index that is to replace it. Give it no callback manager that traces requests: what
            it is asked in the background would appear among them.
        share: The share of the questions that the new side answers, from 0 (none) to 1 (all). It
            can be changed at any time, or be a function that returns it.
        shadow: Whether both sides are asked and compared.
        timeout: Seconds after which the old side answers instead of the new one; None waits.
        depth: How many nodes of the two answers are compared.
        waiting: How many comparisons may wait.
        threads: How many comparisons of synchronous questions run at once.
        examples: How many of the questions whose answers have least in common are kept, with their
            text; 0 keeps none.
        callback_manager: LlamaIndex's, passed to BaseRetriever.

    Raises:
        InputError: If an option is out of range or a side is no retriever.

    Example:
        >>> from llama_index.core.schema import TextNode
        >>> from qdrant_client import QdrantClient
        >>> from unified_embeddings import UnifiedHybridRetriever, UnifiedTextEmbedding
        >>> from unified_embeddings.embedders.fake import FakeEmbedder
        >>> from unified_embeddings.llama.vector_store import build_vector_store
        >>> from unified_embeddings.retrievers.transition import TransitionRetriever
        >>> client, nodes = QdrantClient(":memory:"), [TextNode(text="Foxes jump.", id_="1")]
        >>> def index(name):
        ...     embedder = FakeEmbedder(model_name=name)
        ...     store = build_vector_store(embedder, name, client=client)
        ...     _ = store.add(UnifiedTextEmbedding(embedder)(nodes))
        ...     return UnifiedHybridRetriever(store, embedder)
        >>> retriever = TransitionRetriever(index("small"), index("large"), share=0)
        >>> retriever.retrieve("Which foxes jump?")[0].text
        'Foxes jump.'
        >>> retriever.flush(timeout=60)
        True
        >>> report = retriever.report()
        >>> report.answered_by_old, report.compared, report.mean_overlap
        (1, 1, 1.0)
        >>> retriever.share = 0.5    # the next step of the canary
    """

    def __init__(
        self,
        old: BaseRetriever,
        new: BaseRetriever,
        *,
        share: float | Callable[[], float] = 0.1,
        shadow: bool = True,
        timeout: float | None = 5.0,
        depth: int = 10,
        waiting: int = 64,
        threads: int = 2,
        examples: int = 10,
        callback_manager: CallbackManager | None = None,
    ) -> None:
        for name, side in (("old", old), ("new", new)):
            if not isinstance(side, BaseRetriever):
                raise InputError(
                    f"{name} must be a LlamaIndex retriever, not {type(side).__name__}"
                )
        check_callbacks(callback_manager)
        if timeout is not None and not (_is_number(timeout) and timeout > 0):
            raise InputError(f"timeout must be a number of seconds above 0, or None; got {timeout}")
        self._sides: dict[Side, BaseRetriever] = {"old": old, "new": new}
        self._shadow = bool(shadow)
        self._timeout = timeout
        self._waiting = require_whole_number("waiting", waiting)
        self._share: float | Callable[[], float] = 0.0
        self.share = share
        self._counters = TransitionCounters(
            depth=require_whole_number("depth", depth),
            examples=require_whole_number("examples", examples, least=0),
        )
        self._queue = BackgroundQueue(threads=threads, waiting=waiting)
        self._timed_calls = TimedCalls(_CALLS_AT_ONCE)
        self._tasks: set[asyncio.Task[None]] = set()
        super().__init__(callback_manager=callback_manager)

    @property
    def share(self) -> float:
        """The share of the questions that the new side answers now.

        Setting it takes effect with the next question.

        Raises:
            InputError: If it is not a number from 0 to 1.
        """
        if callable(self._share):
            return require_share(self._share())
        return self._share

    @share.setter
    def share(self, share: float | Callable[[], float]) -> None:
        """Set the share, or a function that returns it."""
        self._share = share if callable(share) else require_share(share)

    def __deepcopy__(self, memo: dict[int, object]) -> TransitionRetriever:
        """Return a copy over the same sides, which counts with this one."""
        return copy.copy(self)

    def retrieve(
        self, str_or_query_bundle: QueryType, *, tenant: str | None = None
    ) -> list[NodeWithScore]:
        """Return the nodes that answer a question best, best first.

        Args:
            str_or_query_bundle: The question.
            tenant: Who asks; see `shares.TenantQuery`.

        Raises:
            InputError: If the question is not a text.
            Exception: Whatever the old side raises.
        """
        return super().retrieve(to_bundle(str_or_query_bundle, tenant))

    async def aretrieve(
        self, str_or_query_bundle: QueryType, *, tenant: str | None = None
    ) -> list[NodeWithScore]:
        """Like `retrieve`, but without blocking the event loop."""
        return await super().aretrieve(to_bundle(str_or_query_bundle, tenant))

    def report(self) -> TransitionReport:
        """Return what was counted and compared so far."""
        return self._counters.report(self.share)

    def flush(self, timeout: float | None = None) -> bool:
        """Wait for the comparisons of synchronous questions; False if the time was not enough."""
        return self._queue.flush(timeout)

    async def aflush(self) -> None:
        """Wait for the comparisons of the questions of this event loop."""
        loop = asyncio.get_running_loop()
        await asyncio.gather(*(task for task in list(self._tasks) if task.get_loop() is loop))

    # --- who answers ----------------------------------------------------------------------------

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        failure: Failure | None = None
        if self._is_for_new(query_bundle):
            try:
                answer = self._ask_in_time(query_bundle)
            except Exception as error:  # whatever it is, the old side answers
                failure = self._note_failure(error)
            else:
                self._counters.count_answer("new", answer.seconds)
                self._compare_in_thread(query_bundle, "new", answer)
                return answer.nodes
        try:
            answer = _ask(self._sides["old"], query_bundle)
        except Exception:
            self._counters.count_unanswered(failure)
            raise
        self._counters.count_answer("old", answer.seconds, fallback=failure)
        if failure is None:
            self._compare_in_thread(query_bundle, "old", answer)
        return answer.nodes

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        failure: Failure | None = None
        if self._is_for_new(query_bundle):
            try:
                answer = await asyncio.wait_for(
                    _aask(self._sides["new"], query_bundle), self._timeout
                )
            except Exception as error:  # whatever it is, the old side answers
                failure = self._note_failure(error)
            else:
                self._counters.count_answer("new", answer.seconds)
                self._compare_in_task(query_bundle, "new", answer)
                return answer.nodes
        try:
            answer = await _aask(self._sides["old"], query_bundle)
        except Exception:
            self._counters.count_unanswered(failure)
            raise
        self._counters.count_answer("old", answer.seconds, fallback=failure)
        if failure is None:
            self._compare_in_task(query_bundle, "old", answer)
        return answer.nodes

    def _is_for_new(self, bundle: QueryBundle) -> bool:
        return place_of(bundle) < self.share

    def _ask_in_time(self, bundle: QueryBundle) -> _Answer:
        """Ask the new side, for as long as it may take."""
        call = partial(_ask, self._sides["new"], bundle)
        if self._timeout is None:
            return call()
        return self._timed_calls.run(call, self._timeout)

    def _note_failure(self, error: Exception) -> Failure:
        """Keep an error of the new side, and return what kind it is."""
        self._counters.note_error(error)
        if isinstance(error, TimeoutError | asyncio.TimeoutError):
            return "timeout"
        if isinstance(error, OverloadedError):
            return "busy"
        return "error"

    # --- comparing ------------------------------------------------------------------------------

    def _compare_in_thread(self, bundle: QueryBundle, side: Side, answer: _Answer) -> None:
        """Ask the other side in a background thread, and compare its answer with this one."""
        if not self._shadow:
            return

        def compare() -> None:
            other = _other(side)
            try:
                other_answer = _ask(self._sides[other], bundle)
            except Exception as error:  # the question has its answer already
                self._count_failed(other, error)
            else:
                self._compare(bundle, side, answer, other_answer)

        # An empty context, so that what is traced here does not join the answered request.
        job = partial(contextvars.Context().run, compare)
        if not self._queue.submit(job):
            self._counters.count_dropped()

    def _compare_in_task(self, bundle: QueryBundle, side: Side, answer: _Answer) -> None:
        """Like `_compare_in_thread`, in a task of the event loop."""
        if not self._shadow:
            return
        if len(self._tasks) >= self._waiting:
            self._counters.count_dropped()
            return

        async def compare() -> None:
            other = _other(side)
            try:
                other_answer = await _aask(self._sides[other], bundle)
            except Exception as error:  # the question has its answer already
                self._count_failed(other, error)
            else:
                self._compare(bundle, side, answer, other_answer)

        loop = asyncio.get_running_loop()
        # A task copies the context it is made in: an empty one, as above.
        task = contextvars.Context().run(loop.create_task, compare())
        self._tasks.add(task)
        task.add_done_callback(self._end_task)

    def _end_task(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            self._counters.count_dropped()

    def _compare(self, bundle: QueryBundle, side: Side, answer: _Answer, other: _Answer) -> None:
        self._counters.count_latency(_other(side), other.seconds)
        old, new = (answer, other) if side == "old" else (other, answer)
        self._counters.add_comparison(bundle.query_str, old.node_ids, new.node_ids)

    def _count_failed(self, side: Side, error: Exception) -> None:
        self._counters.count_failed(side)
        if side == "new":
            self._counters.note_error(error)


def _ask(retriever: BaseRetriever, bundle: QueryBundle) -> _Answer:
    started = time.perf_counter()
    nodes = retriever.retrieve(bundle)
    return _Answer(nodes=nodes, seconds=time.perf_counter() - started)


async def _aask(retriever: BaseRetriever, bundle: QueryBundle) -> _Answer:
    started = time.perf_counter()
    nodes = await retriever.aretrieve(bundle)
    return _Answer(nodes=nodes, seconds=time.perf_counter() - started)


def _other(side: Side) -> Side:
    return "new" if side == "old" else "old"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
