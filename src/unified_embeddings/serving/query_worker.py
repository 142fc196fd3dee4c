"""The light endpoint's model: loaded in the background, and asked by one request at a time.

What lives here: the thread that loads and runs the model, and the requests that wait for it. What
does not: HTTP (`query_endpoint`). Nothing here imports a web library, so that the model loads while
those are imported.
"""

from __future__ import annotations

import json
import logging
import math
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.errors import InputError, OverloadedError, UnifiedEmbeddingsError
from unified_embeddings.serving.contracts import QueryRequest, health_answer, query_answer
from unified_embeddings.serving.jobs import embed_in_steps
from unified_embeddings.serving.json_fields import require_available

_LOG = logging.getLogger(__name__)
_WARM_UP = "warm-up"
_LONGEST_RETRY = 60
_NEW_MEAN = 0.2
"""Weight of the latest request in the mean time that a request takes."""


class NotReadyError(UnifiedEmbeddingsError):
    """The model is not loaded, cannot be loaded, or is being shut down."""


class AbandonedError(UnifiedEmbeddingsError):
    """Nobody waits for the answer any more."""


@dataclass(frozen=True)
class Answer:
    """What a request got.

    Attributes:
        body: The answer, JSON in UTF-8.
        fingerprint: The fingerprint of the model.
        waited: Seconds until its turn came.
        computed: Seconds that it then took.
    """

    body: bytes
    fingerprint: str
    waited: float
    computed: float


@dataclass(eq=False)
class Job:
    """A request that waits for its turn, or has it.

    Attributes:
        request: What is asked for.
        future: Gets the answer, or the error.
        is_abandoned: Set once nobody waits for it.
        arrived: When it came, on the monotonic clock.
        began: When its turn came; None before.
    """

    request: QueryRequest
    future: Future[Answer] = field(default_factory=Future)
    is_abandoned: threading.Event = field(default_factory=threading.Event)
    arrived: float = field(default_factory=time.monotonic)
    began: float | None = None

    def require_wanted(self) -> None:
        """Raise if nobody waits for the answer any more."""
        if self.is_abandoned.is_set():
            raise AbandonedError("nobody waits for the answer any more")


class QueryWorker:
    """A model that is loaded in the background and answers one request at a time.

    Args:
        load: Makes the embedder, in the worker's thread.
        capacity: The most requests that wait or are being answered.
        patience: Seconds of one request after which the model counts as stuck.

    Attributes:
        error: What kept the model from being loaded, or ended the thread; None if nothing did.
        on_failure: Called in the worker's thread when `error` is set.
        on_ready: Called in the worker's thread once the model is loaded.
    """

    def __init__(
        self, load: Callable[[], TextEmbedder], *, capacity: int = 32, patience: float = 60.0
    ) -> None:
        self.error: BaseException | None = None
        self.on_failure: Callable[[], None] = lambda: None
        self.on_ready: Callable[[], None] = lambda: None
        self._load = load
        self._capacity = capacity
        self._patience = patience
        self._embedder: TextEmbedder | None = None
        self._waiting: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._jobs: set[Job] = set()
        self._running: Job | None = None
        self._mean_seconds = 0.1
        self._is_stopping = False
        self._is_ready = False
        self._runtime = ("none", "cpu")
        # A daemon: a forward pass cannot be interrupted, and must not keep the process.
        self._thread = threading.Thread(target=self._work, name="query-worker", daemon=True)

    def start(self) -> None:
        """Begin to load the model, and to answer."""
        self._thread.start()

    def stop(self, seconds: float) -> bool:
        """Take no more requests, and wait for those that are waiting.

        Returns:
            Whether the thread has ended within the time.
        """
        with self._lock:
            self._is_stopping = True
        self._waiting.put(None)
        if self._thread.ident is not None:
            self._thread.join(seconds)
        return not self._thread.is_alive()

    def submit(self, request: QueryRequest) -> Job:
        """Let a request wait for its turn.

        Raises:
            OverloadedError: If as many are waiting as may.
            NotReadyError: If no answer will come.
        """
        job = Job(request)
        with self._lock:
            if self.error is not None or self._is_stopping:
                raise NotReadyError(self._why_not_ready())
            if len(self._jobs) >= self._capacity:
                raise OverloadedError(
                    f"{len(self._jobs)} requests are waiting, as many as may; try again later"
                )
            self._jobs.add(job)
        self._waiting.put(job)
        return job

    def abandon(self, job: Job) -> None:
        """Give a request up: its place is free at once, and its work ends with the next step."""
        job.is_abandoned.set()
        job.future.cancel()
        with self._lock:
            self._jobs.discard(job)

    def seconds_until_free(self) -> int:
        """Return in how many whole seconds a request is likely to find a place, at least one."""
        with self._lock:
            seconds = math.ceil(len(self._jobs) * self._mean_seconds)
        return min(max(seconds, 1), _LONGEST_RETRY)

    @property
    def is_loading(self) -> bool:
        """Tell whether the model is still being loaded."""
        return self.error is None and not self._is_ready

    def health(self) -> dict[str, object]:
        """Return the answer to a health check.

        Raises:
            NotReadyError: If requests would not be answered now; the message says why.
        """
        with self._lock:
            if self.error is not None or self._is_stopping or not self._is_ready:
                raise NotReadyError(self._why_not_ready())
            running = self._running
            if running is not None and running.began is not None:
                seconds = time.monotonic() - running.began
                if seconds > self._patience:
                    raise NotReadyError(f"the model has been busy with one request {seconds:.0f} s")
        return health_answer(*self._runtime)

    def _why_not_ready(self) -> str:
        if self._is_stopping:
            return "the endpoint is shutting down"
        if self.error is None:
            return "the model is still being loaded; try again in a moment"
        if not self._is_ready:
            return "the model could not be loaded"
        return "the model's thread has ended; restart the endpoint"

    # --- the thread -----------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            self._prepare()
            while (job := self._waiting.get()) is not None:
                self._answer(job)
        except BaseException as error:
            self.error = error
            self._refuse_all()
            self.on_failure()

    def _prepare(self) -> None:
        """Load the model. The first request that waits, if any, is the pass that proves it."""
        self._embedder = embedder = self._load()
        if embedder.models:
            runtime = embedder.models[0].runtime
            self._runtime = (runtime.engine, runtime.device)
        first = None
        if not self._waiting.empty():
            first = self._waiting.get()
            if first is None:  # stopped meanwhile
                self._waiting.put(None)
                return
        if first is not None:
            self._answer(first)
        if not embedder.stats().forwards:
            # No request came, or it was refused, empty or in the cache on disk; so may this be,
            # unless it is a text that was never asked for.
            embedder.encode_query(f"{_WARM_UP} {time.time_ns()}", sparse=False)
        self._is_ready = True
        self.on_ready()

    def _answer(self, job: Job) -> None:
        """Answer one request; what goes wrong is its own."""
        if not job.future.set_running_or_notify_cancel():
            return
        job.began = time.monotonic()
        self._running = job
        try:
            answer = self._compute(job)
        except Exception as error:
            self._finish(job)
            if not isinstance(error, InputError | AbandonedError):
                _LOG.error("a request failed: %s", type(error).__name__)
            job.future.set_exception(error)
            return
        self._finish(job)
        job.future.set_result(answer)

    def _compute(self, job: Job) -> Answer:
        embedder, request = self._embedder, job.request
        assert embedder is not None
        require_available(request.heads, embedder.heads)
        embeddings = embed_in_steps(
            embedder, request.texts, request.role, request.heads, job.require_wanted
        )
        content = query_answer(request, embeddings)
        assert job.began is not None
        return Answer(
            body=json.dumps(content, allow_nan=False, separators=(",", ":")).encode(),
            fingerprint=embedder.fingerprint,
            waited=job.began - job.arrived,
            computed=time.monotonic() - job.began,
        )

    def _finish(self, job: Job) -> None:
        assert job.began is not None
        seconds = time.monotonic() - job.began
        with self._lock:
            self._running = None
            self._jobs.discard(job)
            self._mean_seconds += _NEW_MEAN * (seconds - self._mean_seconds)

    def _refuse_all(self) -> None:
        """Tell all that wait, or come now, that no answer will come."""
        with self._lock:
            jobs, self._jobs = self._jobs, set()
            self._running = None
            reason = self._why_not_ready()
        for job in jobs:
            if not job.future.done():
                job.future.set_exception(NotReadyError(reason))
