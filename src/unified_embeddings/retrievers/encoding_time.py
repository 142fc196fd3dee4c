"""Candidates encoded at query time: how long that takes, said before it starts.

What lives here: ColBERT vectors of texts whose points hold none, and the notice. What does not: the
scores and the order (`reranking`).
"""

from __future__ import annotations

import logging
import shlex
import time
from collections.abc import Sequence

from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.types import FloatArray

_LOG = logging.getLogger(__name__)
_WORTH_A_WARNING = 1.0
"""Seconds from which a user should know beforehand."""


class CandidateEncoder:
    """Encodes candidates for reranking, and says beforehand how long that will take.

    The first text is encoded alone and timed, unless an earlier query has shown the model's speed.
    From then on the estimate goes by the candidates of the query before. The first estimate above a
    second is a warning, all others are information. Texts whose vectors are in the cache cost
    nothing and count for nothing.

    Args:
        embedder: Has the ColBERT head.
        collection: The collection's name, for the advice.
    """

    def __init__(self, embedder: TextEmbedder, collection: str) -> None:
        self._embedder = embedder
        self._collection = collection
        self._tokens_per_second: float | None = None
        self._has_warned = False

    def encode(self, texts: Sequence[str], pool: int = 1) -> list[FloatArray]:
        """Return the ColBERT vectors of texts, one array of unit rows (t_i, d) for each.

        Args:
            texts: n texts.
            pool: How many rows become one, so that they compare with stored ones.

        Raises:
            InputError: If a text cannot be embedded.
        """
        rows: list[FloatArray] = []
        remaining = list(texts)
        if self._tokens_per_second is None and len(remaining) > 1:
            rows += self._encode_timed(remaining[:1], pool)
            remaining = remaining[1:]
        if self._tokens_per_second is not None:
            self._announce(remaining)
        return rows + self._encode_timed(remaining, pool)

    def _encode_timed(self, texts: Sequence[str], pool: int) -> list[FloatArray]:
        tokens, begun = self._embedder.stats().tokens, time.perf_counter()
        rows = self._embedder.encode_pooled(texts, pool)
        seconds = time.perf_counter() - begun
        tokens = self._embedder.stats().tokens - tokens
        if tokens > 0 and seconds > 0:
            self._tokens_per_second = tokens / seconds
        return rows

    def _announce(self, texts: Sequence[str]) -> None:
        """Say how long texts take, before they are encoded."""
        assert self._tokens_per_second is not None
        tokens = sum(length.tokens for length in self._embedder.measure(texts))
        seconds = tokens / self._tokens_per_second
        is_warning = seconds >= _WORTH_A_WARNING and not self._has_warned
        self._has_warned |= is_warning
        _LOG.log(
            logging.WARNING if is_warning else logging.INFO,
            "Reranking encodes %d texts of about %s tokens, which takes about %s on this machine "
            "unless they are in the cache. To store their vectors once: unified-embeddings "
            "add-vectors %s --colbert --pool 2 --quantisation turbo4",
            len(texts),
            f"{_round(tokens):,}",
            _describe(seconds),
            shlex.quote(self._collection),
        )


def _round(tokens: int) -> int:
    """Return a number of tokens with two digits that count."""
    digits = max(len(str(tokens)) - 2, 0)
    return round(tokens, -digits)


def _describe(seconds: float) -> str:
    if seconds < 1:
        return f"{max(round(seconds, 1), 0.1):.1f} s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min"
