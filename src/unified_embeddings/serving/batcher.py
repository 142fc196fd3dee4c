"""Texts of many requests into forward passes.

What lives here: the queue, which texts share a pass, and how results and errors find their
requests. What does not: HTTP (`routes`), counting tokens (`service`), the vectors (`embedders`).

All methods run on one event loop, so the queue needs no lock; only `encode` runs in another thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from unified_embeddings.errors import InputError, OverloadedError, UnifiedEmbeddingsError
from unified_embeddings.serving.engine_thread import EngineThread
from unified_embeddings.types import (
    Embeddings,
    FloatArray,
    HeadName,
    Role,
    SparseVector,
    Text,
)

Encode: TypeAlias = Callable[[Sequence[Text], Role, tuple[HeadName, ...]], Embeddings]

_SHARE = 8
"""A request gets an eighth of a pass at a time, so that eight take part if as many wait."""
_HOPELESS = 3
"""Texts that fail alone, one after the other, before the rest of a failed pass is given up."""
_STALL_FLOOR = 4.0
"""Seconds that a pass may take in any case before the engine counts as hanging."""
_STALL_FACTOR = 20
"""How many times longer than predicted a pass may take before the engine counts as hanging."""
_LATEST = 0.2
"""Weight of the latest pass in the running mean of the seconds per token."""


class EngineStalledError(UnifiedEmbeddingsError):
    """The engine has not answered for far longer than a pass takes."""


class DeadlineError(UnifiedEmbeddingsError):
    """A request was not answered within its deadline."""


@dataclass(frozen=True)
class Batched:
    """The vectors of one request, and where its time went.

    Attributes:
        embeddings: In the order of the request's texts.
        queue_seconds: Until its first text entered a pass.
        compute_seconds: Of the passes that its texts were in.
    """

    embeddings: Embeddings
    queue_seconds: float
    compute_seconds: float


@dataclass(eq=False)
class _Request:
    """One request in the queue, with what is computed of it so far."""

    texts: Sequence[Text]
    tokens: Sequence[int]
    role: Role
    heads: tuple[HeadName, ...]
    future: asyncio.Future[Batched]
    arrived: float
    started: float | None = None
    compute_seconds: float = 0.0
    next_text: int = 0
    rows: dict[int, Embeddings] = field(default_factory=dict)

    @property
    def kind(self) -> tuple[Role, tuple[HeadName, ...]]:
        """What texts must share to be in one pass."""
        return self.role, self.heads

    @property
    def waiting_tokens(self) -> int:
        return sum(self.tokens[self.next_text :])

    @property
    def is_taken(self) -> bool:
        """Tell whether each of its texts is in a pass, or was."""
        return self.next_text == len(self.texts)


@dataclass(frozen=True)
class _Place:
    """One text of a pass: whose it is, and which of its texts."""

    request: _Request
    index: int


Outcome: TypeAlias = "Embeddings | Exception"
"""What became of one text: its vectors (n = 1), or what is wrong."""


class Batcher:
    """Compute the texts of many requests in passes of a bounded number of tokens.

    An idle engine starts at once with what is there; while it works, requests gather. Requests take
    turns by an eighth of a pass, so a long one neither blocks the others nor waits for ever. Texts
    of a request whose task was cancelled are not computed any more.

    Args:
        encode: Computes vectors; runs in one thread, one call at a time.
        batch_tokens: The most tokens of a pass. A longer text makes a pass of its own.
        max_waiting_tokens: How many tokens may wait. The request that passes this mark is still
            taken, whatever its size; the next one is refused.

    Example:
        >>> import asyncio
        >>> from unified_embeddings.embedders.fake import FakeEmbedder
        >>> embedder = FakeEmbedder(dimension=8)
        >>> def encode(texts, role, heads):
        ...     return embedder.encode(texts, role=role, heads=heads)
        >>> async def ask():
        ...     batcher = Batcher(encode, batch_tokens=512, max_waiting_tokens=10_000)
        ...     async with batcher:
        ...         return await batcher.submit(
        ...             ["Foxes jump."], [4], role="query", heads=("dense",), timeout=10)
        >>> asyncio.run(ask()).embeddings
        Embeddings(n=1, dense=float32(1, 8), sparse=None, colbert=None)
    """

    def __init__(self, encode: Encode, *, batch_tokens: int, max_waiting_tokens: int) -> None:
        self._encode = encode
        self.batch_tokens = batch_tokens
        self._max_waiting_tokens = max_waiting_tokens
        self._queue: deque[_Request] = deque()
        self._waiting_tokens = 0
        self._in_pass: list[_Place] = []
        self._pass_started: float | None = None
        self._pass_limit = math.inf
        self._seconds_per_token = 0.0
        self._slowest: float | None = None
        self._failures_in_a_row = 0
        self.passes = 0
        self._has_work = asyncio.Event()
        self._thread = EngineThread()
        self._tasks: list[asyncio.Task[None]] = []

    # --- what it tells --------------------------------------------------------------------------

    @property
    def waiting_tokens(self) -> int:
        """Return the tokens that wait for a pass."""
        return self._waiting_tokens

    @property
    def waiting_requests(self) -> int:
        """Return the requests with texts that wait for a pass."""
        return len(self._queue)

    @property
    def is_idle(self) -> bool:
        """Tell whether nothing waits and nothing is being computed."""
        return not self._queue and not self._in_pass

    @property
    def is_stalled(self) -> bool:
        """Tell whether the engine hangs: a pass takes far longer than was predicted."""
        return (
            self._pass_started is not None
            and time.monotonic() - self._pass_started > self._pass_limit
        )

    @property
    def has_failed(self) -> bool:
        """Tell whether the last passes failed, none of their texts computed."""
        return self._failures_in_a_row >= _HOPELESS

    def retry_after(self) -> int:
        """Return the seconds after which the queue will have been worked off, at least 1."""
        return max(1, math.ceil(self._waiting_tokens * self._seconds_per_token))

    def require_room(self) -> None:
        """Refuse work where as much is waiting as was agreed.

        Raises:
            OverloadedError: If the queue is full.
            EngineStalledError: If the engine hangs.
        """
        if self.is_stalled:
            raise EngineStalledError("the engine does not answer; the service needs a restart")
        if self._waiting_tokens >= self._max_waiting_tokens:
            raise OverloadedError(
                f"{self._waiting_tokens} tokens are waiting, and the limit is "
                f"{self._max_waiting_tokens}; try again in {self.retry_after()} s"
            )

    # --- requests -------------------------------------------------------------------------------

    async def submit(
        self,
        texts: Sequence[Text],
        tokens: Sequence[int],
        *,
        role: Role,
        heads: tuple[HeadName, ...],
        timeout: float,
    ) -> Batched:
        """Wait for the vectors of n >= 1 texts.

        Args:
            texts: What to embed.
            tokens: How many tokens each is.
            role: Of all of them.
            heads: What to compute.
            timeout: Seconds to wait.

        Raises:
            OverloadedError: If the queue is full.
            DeadlineError: If the time is over.
            EngineStalledError: If the engine hangs.
            UnifiedEmbeddingsError: What the embedder raised for these texts.
        """
        self.require_room()
        request = _Request(
            texts=texts,
            tokens=tokens,
            role=role,
            heads=heads,
            future=asyncio.get_running_loop().create_future(),
            arrived=time.perf_counter(),
        )
        self._queue.append(request)
        self._waiting_tokens += request.waiting_tokens
        self._has_work.set()
        try:
            return await asyncio.wait_for(request.future, timeout)
        except asyncio.TimeoutError:
            raise DeadlineError(
                f"not answered within {timeout:g} s; send fewer texts, or raise the deadline"
            ) from None
        finally:
            self._withdraw(request)

    def _withdraw(self, request: _Request) -> None:
        """Take a request's remaining texts out of the queue, if there are any."""
        if not request.is_taken:
            self._waiting_tokens -= request.waiting_tokens
            request.next_text = len(request.texts)
            with contextlib.suppress(ValueError):
                self._queue.remove(request)

    # --- passes ---------------------------------------------------------------------------------

    async def __aenter__(self) -> Batcher:
        self._tasks = [
            asyncio.create_task(self._run_passes()),
            asyncio.create_task(self._watch()),
        ]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._thread.stop()
        self._fail_all(UnifiedEmbeddingsError("the service is shutting down"))

    async def _run_passes(self) -> None:
        while True:
            await self._has_work.wait()
            places = self._take_places()
            if places:
                await self._run_pass(places)
            else:
                self._has_work.clear()

    def _take_places(self) -> list[_Place]:
        """Choose the texts of the next pass: of the oldest request and of those of its kind.

        Requests take turns; what is left of one goes to the end of the queue.
        """
        if not self._queue:
            return []
        kind = self._queue[0].kind
        turn = deque(request for request in self._queue if request.kind == kind)
        places: list[_Place] = []
        room = self.batch_tokens
        share = max(1, self.batch_tokens // _SHARE)
        while turn and room > 0:
            request = turn.popleft()
            taken = self._take_from(request, min(share, room), must_take=not places)
            if not taken:
                break  # Its next text does not fit; it will be the first of a later pass.
            places += [_Place(request, index) for index in taken]
            room -= sum(request.tokens[index] for index in taken)
            self._queue.remove(request)
            if not request.is_taken:
                self._queue.append(request)
                turn.append(request)
        return places

    def _take_from(self, request: _Request, room: int, *, must_take: bool) -> list[int]:
        """Take the request's next texts that fit into `room` tokens; at least one if it must."""
        taken: list[int] = []
        while not request.is_taken:
            cost = request.tokens[request.next_text]
            fits = cost <= room or (must_take and not taken)
            if not fits:
                break
            taken.append(request.next_text)
            room -= cost
            self._waiting_tokens -= cost
            request.next_text += 1
        if taken and request.started is None:
            request.started = time.perf_counter()
        return taken

    async def _run_pass(self, places: list[_Place]) -> None:
        first = places[0].request
        texts = [place.request.texts[place.index] for place in places]
        tokens = sum(place.request.tokens[place.index] for place in places)
        self._in_pass = places
        self._pass_limit = self._predict_limit(tokens)
        self._pass_started = time.monotonic()
        self.passes += 1
        begun = time.perf_counter()
        try:
            outcomes = await self._thread.run(
                lambda: encode_each(self._encode, texts, first.role, first.heads)
            )
        finally:
            self._pass_started = None
            self._in_pass = []
        seconds = time.perf_counter() - begun
        self._note_time(tokens, seconds)
        has_result = any(isinstance(outcome, Embeddings) for outcome in outcomes)
        is_callers_fault = all(isinstance(outcome, InputError) for outcome in outcomes)
        if has_result or is_callers_fault:
            self._failures_in_a_row = 0
        else:
            self._failures_in_a_row += 1
        _hand_out(places, outcomes, seconds)

    def _predict_limit(self, tokens: int) -> float:
        """Return the seconds after which a pass of that many tokens counts as hanging."""
        if self._slowest is None:
            return math.inf  # The first pass loads the model.
        # The slowest pass so far and not the mean: one of cached texts takes no time at all.
        return max(_STALL_FLOOR, _STALL_FACTOR * tokens * self._slowest)

    def _note_time(self, tokens: int, seconds: float) -> None:
        if self.passes == 1:
            self._slowest = 0.0  # The first pass loaded the model, which says nothing.
            return
        per_token = seconds / max(tokens, 1)
        self._slowest = max(self._slowest or 0.0, per_token)
        self._seconds_per_token += _LATEST * (per_token - self._seconds_per_token)

    async def _watch(self) -> None:
        """Give all who wait an error once the engine hangs, rather than let them hang too."""
        while True:
            await asyncio.sleep(0.25)
            if self.is_stalled:
                self._fail_all(EngineStalledError("the engine does not answer"))

    def _fail_all(self, error: Exception) -> None:
        waiting = [place.request for place in self._in_pass]
        waiting += self._queue
        for request in waiting:
            if not request.future.done():
                request.future.set_exception(error)


def encode_each(
    encode: Encode, texts: Sequence[Text], role: Role, heads: tuple[HeadName, ...]
) -> list[Outcome]:
    """Compute the texts of a pass, and find out which of them are at fault if it fails.

    A pass that fails is halved until the bad text is alone, so that the others are answered. If
    several texts in a row fail alone, the fault is not theirs, and the rest gets the same error.

    Returns:
        n outcomes.
    """
    outcomes: list[Outcome] = []
    failed_alone = 0
    last_error: Exception | None = None
    waiting = [(0, len(texts))]
    while waiting:
        start, stop = waiting.pop()
        if failed_alone >= _HOPELESS and last_error is not None:
            outcomes += [last_error] * (stop - start)
            continue
        try:
            embeddings = encode(texts[start:stop], role, heads)
            if len(embeddings) != stop - start:
                raise RuntimeError(f"{len(embeddings)} vectors for {stop - start} texts")
        except Exception as error:
            if stop - start > 1:
                middle = (start + stop) // 2
                waiting += [(middle, stop), (start, middle)]  # The first half is next.
                continue
            failed_alone += 1
            last_error = error
            outcomes.append(error)
        else:
            failed_alone = 0
            outcomes += [embeddings[i : i + 1] for i in range(len(embeddings))]
    return outcomes


def _hand_out(places: Sequence[_Place], outcomes: Sequence[Outcome], seconds: float) -> None:
    """Give each request its outcomes, and its answer if it is complete."""
    for request in dict.fromkeys(place.request for place in places):
        request.compute_seconds += seconds
    for place, outcome in zip(places, outcomes, strict=True):
        request = place.request
        if request.future.done():
            continue
        if isinstance(outcome, Embeddings):
            request.rows[place.index] = outcome
        else:
            request.future.set_exception(_at_index(outcome, place.index))
            continue
        if len(request.rows) == len(request.texts):
            request.future.set_result(_complete(request))


def _at_index(error: Exception, index: int) -> Exception:
    """Return an InputError that names the text's place in its request, not in its pass."""
    if isinstance(error, InputError):
        return InputError(error.problem, index=index)
    return error


def _complete(request: _Request) -> Batched:
    started = request.started or request.arrived
    rows = [request.rows[index] for index in range(len(request.texts))]
    return Batched(
        embeddings=_join(rows, request.heads),
        queue_seconds=started - request.arrived,
        compute_seconds=request.compute_seconds,
    )


def _join(rows: Sequence[Embeddings], heads: tuple[HeadName, ...]) -> Embeddings:
    """Put the vectors of single texts together."""
    dense: list[FloatArray] = []
    sparse: list[SparseVector] = []
    colbert: list[FloatArray] = []
    for row in rows:
        if row.dense is not None:
            dense.append(row.dense)
        sparse += row.sparse or ()
        colbert += row.colbert or ()
    return Embeddings(
        dense=np.concatenate(dense) if "dense" in heads else None,
        sparse=sparse if "sparse" in heads else None,
        colbert=colbert if "colbert" in heads else None,
    )
