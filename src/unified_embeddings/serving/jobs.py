"""Embedding what a checked request asks for, in steps between which it can be given up.

What lives here: the calls of an embedder. What does not: what requests and answers look like
(`contracts`), and whose turn it is (`query_worker`, RunPod's queue).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.serving.contracts import Usage
from unified_embeddings.types import Embeddings, HeadName, Role

_STEP = 16
"""Texts that are embedded without looking whether the answer is still wanted."""


def embed(
    embedder: TextEmbedder,
    texts: Sequence[str],
    role: Role,
    heads: Sequence[HeadName],
    *,
    step: int | None = None,
    before_step: Callable[[], None] = lambda: None,
) -> Embeddings:
    """Return the vectors of some texts.

    Args:
        embedder: Whose vectors.
        texts: n texts.
        role: What they are embedded as.
        heads: The vectors asked for, which the embedder gives.
        step: Texts that are embedded at a time; None embeds all at once.
        before_step: Called before each step; what it raises ends the work.

    Raises:
        UnifiedEmbeddingsError: As `TextEmbedder.encode_documents`.
    """
    encode = embedder.encode_documents if role == "document" else embedder.encode_queries
    step = step or max(len(texts), 1)
    parts = []
    for start in range(0, max(len(texts), 1), step):
        before_step()
        parts.append(
            encode(
                texts[start : start + step],
                dense="dense" in heads,
                sparse="sparse" in heads,
                colbert="colbert" in heads,
            )
        )
    return Embeddings.join(parts)


def embed_in_steps(
    embedder: TextEmbedder,
    texts: Sequence[str],
    role: Role,
    heads: Sequence[HeadName],
    before_step: Callable[[], None],
) -> Embeddings:
    """Return the vectors of some texts, a few at a time; see `embed`."""
    return embed(embedder, texts, role, heads, step=_STEP, before_step=before_step)


def count_usage(embedder: TextEmbedder, texts: Sequence[str], role: Role) -> Usage:
    """Return how many tokens of some texts the model reads, and how many texts it cuts."""
    lengths = embedder.measure(texts, role=role)
    return Usage(
        prompt_tokens=sum(length.tokens for length in lengths),
        truncated=sum(length.truncated for length in lengths),
    )
