"""Texts of many requests into forward passes.

What lives here: when a pass runs, deadlines, and an engine that hangs. What does not: HTTP
(`routes`), counting tokens (`service`), which texts share a pass (`turns`), how their results find
their requests (`passes`).

All methods run on one event loop, so the queue needs no lock; only `encode` runs in another thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Iterator, Sequence

from unified_embeddings.errors import InputError, OverloadedError, UnifiedEmbeddingsError
from unified_embeddings.serving.engine_thread import EngineThread
from unified_embeddings.serving.passes import Encode, Outcome, encode_each, hand_out
from unified_embeddings.serving.turns import Batched, Place, Request, Turns
from unified_embeddings.types import Embeddings, HeadName, Role, Text

_WATCH_INTERVAL = 0.25
"""Seconds between two looks at a pass."""
_STALL_FLOOR = 4.0
"""Seconds that a pass may take in any case before the engine counts as hanging."""
_STALL_FACTOR = 20
"""How many times longer than predicted a pass may take before the engine counts as hanging.

The prediction comes from short passes, whose fixed costs make a token dear; attention, which makes
it dearer in long texts, stays well below that.
"""
_LATEST = 0.2
"""Weight of the latest pass in the running mean of the seconds per token."""


class EngineStalledError(UnifiedEmbeddingsError):
    """The engine has not answered for far longer than a pass takes."""


class DeadlineError(UnifiedEmbeddingsError):
    """A request was not answered within its deadline."""


class ShutdownError(UnifiedEmbeddingsError):
    """The service ends, and this request was not finished in time."""


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
        self._turns = Turns()
        self._expected_tokens = 0
        self._in_pass: list[Place] = []
        self._pass_age = 0.0
        self._pass_limit = math.inf
        self._seconds_per_token = 0.0
        self._slowest: float | None = None
        self._has_ended = False
        self.passes = 0
        self.fruitless_passes = 0
        self._has_work = asyncio.Event()
        self._thread: EngineThread | None = None
        self._tasks: list[asyncio.Task[None]] = []

    # --- what it tells --------------------------------------------------------------------------

    @property
    def waiting_tokens(self) -> int:
        """Return the tokens that wait for a pass."""
        return self._turns.tokens

    @property
    def waiting_requests(self) -> int:
        """Return the requests with texts that wait for a pass."""
        return self._turns.requests

    @property
    def is_idle(self) -> bool:
        """Tell whether nothing waits and nothing is being computed."""
        return not self._turns.requests and not self._in_pass

    @property
    def is_stalled(self) -> bool:
        """Tell whether the engine hangs: a pass takes far longer than was predicted."""
        return self._pass_age > self._pass_limit

    def retry_after(self) -> int:
        """Return the seconds after which the queue will have been worked off, at least 1."""
        return max(1, math.ceil(self._waiting_or_expected * self._seconds_per_token))

    def require_room(self) -> None:
        """Refuse work where as much is waiting as was agreed.

        Raises:
            OverloadedError: If the queue is full.
            EngineStalledError: If the engine hangs.
            ShutdownError: If the batcher has ended.
        """
        if self._has_ended:
            raise ShutdownError("the service is shutting down")
        if self.is_stalled:
            raise EngineStalledError("the engine does not answer; the service needs a restart")
        if self._waiting_or_expected >= self._max_waiting_tokens:
            raise OverloadedError(
                f"{self._waiting_or_expected} tokens are waiting, and the limit is "
                f"{self._max_waiting_tokens}; try again in {self.retry_after()} s"
            )

    @contextlib.contextmanager
    def expect(self, tokens: int) -> Iterator[None]:
        """Count tokens as waiting while a request prepares to submit them.

        Otherwise any number of large requests would find room and be tokenised, only to be refused
        after that.

        Args:
            tokens: About how many they will be.

        Raises:
            OverloadedError: If the queue is full.
            EngineStalledError: If the engine hangs.
        """
        self.require_room()
        self._expected_tokens += tokens
        try:
            yield
        finally:
            self._expected_tokens -= tokens

    @property
    def _waiting_or_expected(self) -> int:
        return self._turns.tokens + self._expected_tokens

    # --- requests -------------------------------------------------------------------------------

    async def submit(
        self,
        texts: Sequence[Text],
        tokens: Sequence[int],
        *,
        role: Role,
        heads: tuple[HeadName, ...],
        timeout: float,
        spent: float = 0.0,
    ) -> Batched:
        """Wait for the vectors of n >= 1 texts.

        Args:
            texts: What to embed.
            tokens: How many tokens each is.
            role: Of all of them.
            heads: What to compute.
            timeout: Seconds that the request may take.
            spent: How many of them are over.

        Raises:
            OverloadedError: If the queue is full.
            DeadlineError: If the time is over.
            EngineStalledError: If the engine hangs.
            UnifiedEmbeddingsError: What the embedder raised for these texts.
        """
        self.require_room()
        request = Request(
            texts=texts,
            tokens=tokens,
            kind=(role, heads),
            future=asyncio.get_running_loop().create_future(),
        )
        self._turns.add(request)
        self._has_work.set()
        try:
            # Not wait_for: an engine's own TimeoutError is no deadline of ours.
            await asyncio.wait({request.future}, timeout=max(0.0, timeout - spent))
            if not request.future.done():
                raise DeadlineError(
                    f"not answered within {timeout:.3g} s; send fewer texts, or raise the deadline"
                )
            return request.future.result()
        finally:
            self._turns.withdraw(request)
            if not request.future.cancel() and not request.future.cancelled():
                request.future.exception()  # Known by now, so that asyncio logs nothing.

    # --- passes ---------------------------------------------------------------------------------

    async def __aenter__(self) -> Batcher:
        self._has_ended = False
        self._has_work = asyncio.Event()
        self._thread = EngineThread()
        self._tasks = [
            asyncio.create_task(self._run_passes(self._thread)),
            asyncio.create_task(self._watch()),
        ]
        return self

    async def __aexit__(self, *_: object) -> None:
        self.end()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._thread is not None:
            self._thread.stop()

    def end(self) -> None:
        """Give all who wait an error, and take no more work."""
        self._has_ended = True
        self._fail_all(ShutdownError("the service is shutting down; ask again elsewhere"))

    @property
    def is_working(self) -> bool:
        """Tell whether the engine is at work, even if nobody waits for it any more."""
        return self._thread is not None and self._thread.is_busy

    async def _run_passes(self, thread: EngineThread) -> None:
        while True:
            await self._has_work.wait()
            places = self._turns.take(self.batch_tokens)
            if places:
                await self._run_pass(places, thread)
            else:
                self._has_work.clear()

    async def _run_pass(self, places: list[Place], thread: EngineThread) -> None:
        tokens = sum(place.tokens for place in places)
        self._in_pass = places
        self._pass_age = 0.0
        self._pass_limit = self._predict_limit(tokens)
        self.passes += 1
        begun = time.perf_counter()
        outcomes: Sequence[Outcome]
        try:
            outcomes = await thread.run(lambda: encode_each(self._encode, places))
        except Exception as error:  # The passes must go on, whatever it is.
            outcomes = [error] * len(places)
        finally:
            was_stalled, self._pass_age = self.is_stalled, 0.0
            self._pass_limit = math.inf
            self._in_pass = []
        seconds = time.perf_counter() - begun
        self._note_time(tokens, seconds, was_stalled=was_stalled)
        # A bad text of a caller is no sign of a bad engine.
        if not any(isinstance(outcome, Embeddings | InputError) for outcome in outcomes):
            self.fruitless_passes += 1
        for request in hand_out(places, outcomes, seconds):
            self._turns.withdraw(request)  # Now: its task will run only after the next choice.

    def _predict_limit(self, tokens: int) -> float:
        """Return the seconds after which a pass of that many tokens counts as hanging."""
        if self._slowest is None:
            return math.inf  # The first pass loads the model, and the second is measured.
        # The slowest pass so far and not the mean: one of cached texts takes no time at all.
        return max(_STALL_FLOOR, _STALL_FACTOR * tokens * self._slowest)

    def _note_time(self, tokens: int, seconds: float, *, was_stalled: bool) -> None:
        if self.passes == 1:
            return  # It loaded the model, which tells nothing about a pass.
        per_token = seconds / max(tokens, 1)
        self._seconds_per_token += _LATEST * (per_token - self._seconds_per_token)
        slowest = self._slowest or 0.0
        if was_stalled and slowest > 0:
            # Learnt in steps: one hang must not hide the next, a slow text is met again.
            per_token = min(per_token, 2 * slowest)
        self._slowest = max(slowest, per_token)

    async def _watch(self) -> None:
        """Give all who wait an error once the engine hangs, rather than let them hang too."""
        last_look = time.monotonic()
        while True:
            await asyncio.sleep(_WATCH_INTERVAL)
            now = time.monotonic()
            if self._in_pass:
                # While this process was stopped, or slept with its machine, nothing hung.
                self._pass_age += min(now - last_look, 4 * _WATCH_INTERVAL)
            last_look = now
            if self.is_stalled:
                self._fail_all(EngineStalledError("the engine does not answer"))

    def _fail_all(self, error: Exception) -> None:
        waiting = [place.request for place in self._in_pass]
        waiting += self._turns.waiting()
        for request in waiting:
            if not request.future.done():
                request.future.set_exception(error)
            self._turns.withdraw(request)
