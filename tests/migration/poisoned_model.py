"""Embedders for worker processes; a module of their own, which the workers import."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unified_embeddings.embedders.fake import FakeEmbedder
from unified_embeddings.types import Embeddings


class Deadly(FakeEmbedder):
    """Fails on some texts, and ends the process at others."""

    def encode(self, texts: Sequence[Any], **options: Any) -> Embeddings:
        for text in texts:
            if "deadly" in text:
                os._exit(7)
            if "poison" in text:
                raise ValueError("not this one")
        return super().encode(texts, **options)


def make(**_: object) -> FakeEmbedder:
    """Make the embedder of a worker."""
    return Deadly(model_name="new", cache=None)


sys.path.insert(0, str(Path(__file__).parent))
