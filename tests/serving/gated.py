"""An engine that tests hold still and let go."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Sequence

from unified_embeddings.embedders.fake import FakeEmbedder
from unified_embeddings.types import Embeddings, HeadName, Role, Text

PATIENCE = 60
"""Seconds after which a test that waits for something has failed."""


class GatedEmbedder(FakeEmbedder):
    """A FakeEmbedder whose passes wait until the test lets them go.

    Attributes:
        calls: The texts of each call, in the order of the calls.
        before: Called with a call's texts once it may go on; what it raises, the engine raises.
    """

    def __init__(self, dimension: int = 16) -> None:
        super().__init__(dimension, cache=None)
        self.calls: list[list[Text]] = []
        self.before: Callable[[Sequence[Text]], None] = lambda texts: None
        self._entered: queue.SimpleQueue[list[Text]] = queue.SimpleQueue()
        self._permits = threading.Semaphore(0)
        self._is_free = False

    def encode(self, texts: Sequence[Text], *, role: Role, heads: Sequence[HeadName]) -> Embeddings:
        self.calls.append(list(texts))
        self._entered.put(list(texts))
        if not self._is_free:
            assert self._permits.acquire(timeout=PATIENCE)
        self.before(texts)
        return super().encode(texts, role=role, heads=heads)

    async def entered(self) -> list[Text]:
        """Wait until the next call has begun, and return its texts."""
        return await asyncio.to_thread(self._entered.get, timeout=PATIENCE)

    def let_go(self, passes: int = 1) -> None:
        """Let a call end, the present one or the next."""
        self._permits.release(passes)

    def set_free(self) -> None:
        """Let all calls end, from now on."""
        self._is_free = True
        self._permits.release(1000)
