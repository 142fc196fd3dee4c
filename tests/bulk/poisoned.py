"""Embedders for workers in child processes, with rows that fail in different ways."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

from unified_embeddings.embedders.cached import Vectors
from unified_embeddings.embedders.fake import FakeEmbedder
from unified_embeddings.types import HeadName, Role, Text


class PoisonedEmbedder(FakeEmbedder):
    """Ends, hangs or fails where a text says so."""

    def _run(
        self, texts: Sequence[Text], role: Role, heads: frozenset[HeadName]
    ) -> Iterator[tuple[Text, Vectors]]:
        for text in texts:
            if "KILL" in text:
                os.kill(os.getpid(), 9)
            if "HANG" in text:
                time.sleep(3600)
            if "FAIL" in text:
                raise RuntimeError("a product of the wrong shape")
            if "MEMORY" in text and len(texts) > 3:
                raise RuntimeError("CUDA out of memory")
        yield from super()._run(texts, role, heads)


def make_poisoned(**options: Any) -> PoisonedEmbedder:
    return PoisonedEmbedder(dimension=8, model_name=str(options["model"]), cache=None)


def make_broken(**options: Any) -> PoisonedEmbedder:
    raise RuntimeError("no such model")


def make_never(**_: Any) -> PoisonedEmbedder:
    """Load for an hour."""
    time.sleep(3600)
    raise AssertionError


class SlowEmbedder(FakeEmbedder):
    """Takes a millisecond for a text."""

    def _run(
        self, texts: Sequence[Text], role: Role, heads: frozenset[HeadName]
    ) -> Iterator[tuple[Text, Vectors]]:
        time.sleep(0.001 * len(texts))
        yield from super()._run(texts, role, heads)


def make_slow(**options: Any) -> SlowEmbedder:
    return SlowEmbedder(dimension=8, model_name=str(options["model"]), cache=None)
