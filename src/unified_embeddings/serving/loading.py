"""The model behind the service, from its first warm-up to its last pass.

What lives here: loading, the queue, and whether requests can be answered. What does not: the work
on a request (`service`).
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.errors import InputError, OverloadedError, UnifiedEmbeddingsError
from unified_embeddings.serving.batcher import Batcher, DeadlineError, EngineStalledError
from unified_embeddings.serving.settings import ServiceSettings
from unified_embeddings.types import Embeddings, HeadName, Role, Text

if TYPE_CHECKING:
    from typing_extensions import Self

    from unified_embeddings.config.pipeline import UnifiedEmbeddingConfig

_CPU_TOKENS = 1024
"""Of a pass on a CPU, where a short query waits for the pass before it."""
_ACCELERATOR_TOKENS = 16_384
"""Of a pass elsewhere."""
_PROBE_INTERVAL = 0.5
"""Seconds between two looks at whether the engine fails on everything."""
_WARM_UP = "Foxes jump over lazy dogs."


class NotReadyError(UnifiedEmbeddingsError):
    """The model is not loaded yet, or the service is about to end."""


class LoadedModel:
    """A config's model that is loaded in the background, and the queue in front of it.

    Args:
        config: Of the model.
        settings: The limits.
        prepare: Called in another thread once the model is loaded, before the service is ready.
    """

    def __init__(
        self,
        config: UnifiedEmbeddingConfig,
        settings: ServiceSettings,
        *,
        prepare: Callable[[], None] | None = None,
    ) -> None:
        self.config = config
        self._prepare = prepare
        self.settings = settings
        self.started = time.time()
        self.load_error: UnifiedEmbeddingsError | None = None
        self.fingerprint: str | None = None
        self.is_draining = False
        self._engine_fails = False
        self._is_loaded = asyncio.Event()
        self._tokeniser_turn = asyncio.Lock()
        self._loading: asyncio.Task[None] | None = None
        self._probing: asyncio.Task[None] | None = None
        self.batcher = Batcher(
            self._encode,
            batch_tokens=settings.batch_tokens or _CPU_TOKENS,
            max_waiting_tokens=settings.max_waiting_tokens,
        )

    @property
    def embedder(self) -> TextEmbedder:
        """Return the embedder of texts."""
        return self.config.embedder

    @property
    def problem(self) -> str | None:
        """Return why the service cannot answer, or None if it can."""
        if self.load_error is not None:
            return str(self.load_error)
        if self.batcher.is_stalled:
            return "the engine does not answer"
        if self._engine_fails:
            return "the engine fails on every text"
        return None

    @property
    def is_ready(self) -> bool:
        """Tell whether requests are answered: loaded, not draining, nothing wrong."""
        return self._is_loaded.is_set() and not self.is_draining and self.problem is None

    @property
    def is_at_work(self) -> bool:
        """Tell whether a thread loads or computes, also for nobody."""
        is_loading = not self._is_loaded.is_set() and self.load_error is None
        return is_loading or self.batcher.is_working

    def require_ready(self) -> None:
        """Refuse work that cannot be done.

        Raises:
            NotReadyError: If the model is loading, or failed to load.
        """
        if self.load_error is not None:
            raise NotReadyError(f"the model could not be loaded: {self.load_error}")
        if not self._is_loaded.is_set():
            raise NotReadyError("the model is being loaded; try again in a moment")

    async def loaded(self) -> None:
        """Wait until the model is loaded.

        Raises:
            UnifiedEmbeddingsError: If that fails.
        """
        assert self._loading is not None, "enter the service first"
        await asyncio.shield(self._loading)
        if self.load_error is not None:
            raise self.load_error

    async def __aenter__(self) -> Self:
        await self.batcher.__aenter__()
        self._loading = asyncio.create_task(self._load())
        self._probing = asyncio.create_task(self._probe())
        return self

    async def __aexit__(self, *_: object) -> None:
        tasks = [task for task in (self._loading, self._probing) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.batcher.__aexit__()

    async def _load(self) -> None:
        """Load the model with a first forward pass, and measure a second."""
        heads = self.embedder.heads
        try:
            self.fingerprint = await asyncio.to_thread(lambda: self.embedder.fingerprint)
            for number in range(2):
                # Two texts: a cached one would tell nothing about the engine's speed.
                texts = [f"{_WARM_UP} {number}"]
                await self.batcher.submit(
                    texts, [16], role="document", heads=heads, timeout=24 * 3600
                )
            if self.settings.batch_tokens is None and self._is_on_accelerator():
                self.batcher.batch_tokens = _ACCELERATOR_TOKENS
            if self._prepare is not None:
                await asyncio.to_thread(self._prepare)
        except InputError as error:
            # Without its index, which counts the texts of the warm-up.
            self.load_error = InputError(error.problem)
        except UnifiedEmbeddingsError as error:
            self.load_error = error
        except Exception as error:
            self.load_error = UnifiedEmbeddingsError(
                f"loading {self.config.model_choice!r} failed: {type(error).__name__}: {error}"
            )
        else:
            self._is_loaded.set()

    def _is_on_accelerator(self) -> bool:
        return any(model.runtime.device != "cpu" for model in self.embedder.models)

    async def _probe(self) -> None:
        """Find out, after a pass that gave nothing, whether the text or the engine was at fault.

        A text of our own tells: one client with a bad text must not make the service unhealthy. It
        is asked again until the engine works, since an unhealthy service gets no other requests.
        """
        await self._is_loaded.wait()
        fruitless_passes = self.batcher.fruitless_passes
        for number in itertools.count():
            await asyncio.sleep(_PROBE_INTERVAL)
            if fruitless_passes == self.batcher.fruitless_passes and not self._engine_fails:
                continue
            try:
                await self.batcher.submit(
                    [f"{_WARM_UP} Again {number}."],
                    [16],
                    role="document",
                    heads=self.embedder.heads,
                    timeout=self.settings.request_timeout,
                )
            except (OverloadedError, EngineStalledError, DeadlineError):
                continue  # Nothing was found out.
            except Exception:
                self._engine_fails = True
            else:
                self._engine_fails = False
            fruitless_passes = self.batcher.fruitless_passes

    def _encode(self, texts: Sequence[Text], role: Role, heads: tuple[HeadName, ...]) -> Embeddings:
        return self.embedder.encode(texts, role=role, heads=heads)
