"""One call to an embedder, as those see it who watch the embedder.

What lives here: the record of a call, and which call a thread is working for. What does not: who
watches (`monitoring`).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass

from unified_embeddings.types import Embeddings, HeadName, Role, Text


@dataclass
class EncodeCall:
    """One call to an embedder.

    Attributes:
        model: The embedder's name.
        texts: What is to be embedded.
        role: "document" or "query".
        heads: The vectors asked for.
        tokens: Tokens run through a model for this call; none for texts found in the cache.
        embeddings: The answer; None before it is there, and if the call fails.
    """

    model: str
    texts: Sequence[Text]
    role: Role
    heads: tuple[HeadName, ...]
    tokens: int = 0
    embeddings: Embeddings | None = None


CURRENT_CALL: ContextVar[EncodeCall | None] = ContextVar("current_call", default=None)
"""The call that this thread is working for; None unless somebody watches."""
