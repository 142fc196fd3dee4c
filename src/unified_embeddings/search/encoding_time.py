"""Candidates encoded at query time: how long that takes, said before it starts.

What lives here: ColBERT vectors of texts whose points hold none, and the notice. What does not: the
scores and the order (`llama.reranking`).
"""

from __future__ import annotations

import logging
import shlex
import time
from collections.abc import Sequence

from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.stores.stored_colbert import StoredColbert
from unified_embeddings.types import FloatArray

_LOG = logging.getLogger(__name__)
_WORTH_A_WARNING = 1.0
"""Seconds from which a user should know beforehand."""


class CandidateEncoder:
    """Encodes candidates for reranking, and says beforehand how long that will take.

    The first text is encoded alone and timed, unless an earlier query has shown the model's speed.
    From then on the estimate goes by the candidates of the query before. The first estimate is a
    warning if it is above a second; all others are information. Texts whose vectors are in the
    cache cost nothing and are not counted.

    Args:
        embedder: Has the ColBERT head.
    """

    def __init__(self, embedder: TextEmbedder) -> None:
        self._embedder = embedder
        self._tokens_per_second: float | None = None
        self._has_announced = False

    def encode(
        self, texts: Sequence[str], collection: str, stored: StoredColbert | None
    ) -> list[FloatArray]:
        """Return the ColBERT vectors of texts, one array of unit rows (t_i, d) for each.

        Args:
            texts: n texts.
            collection: The collection's name, for the advice.
            stored: How its other points hold ColBERT vectors: these are pooled as those are, so
                that the scores compare. None if no point holds any.

        Raises:
            InputError: If a text cannot be embedded.
        """
        pool = 1 if stored is None else stored.pool
        rows: list[FloatArray] = []
        remaining = list(texts)
        if self._tokens_per_second is None and len(remaining) > 1:
            rows += self._encode_timed(remaining[:1], pool)
            remaining = remaining[1:]
        if self._tokens_per_second is not None:
            self._announce(remaining, collection, stored)
        return rows + self._encode_timed(remaining, pool)

    def _encode_timed(self, texts: Sequence[str], pool: int) -> list[FloatArray]:
        tokens, begun = self._embedder.stats().tokens, time.perf_counter()
        rows = self._embedder.encode_pooled(texts, pool)
        seconds = time.perf_counter() - begun
        tokens = self._embedder.stats().tokens - tokens
        if tokens > 0 and seconds > 0:
            self._tokens_per_second = tokens / seconds
        return rows

    def _announce(
        self, texts: Sequence[str], collection: str, stored: StoredColbert | None
    ) -> None:
        """Say how long texts take, before they are encoded."""
        if self._has_announced and not _LOG.isEnabledFor(logging.INFO):
            return  # Counting tokens takes a while too.
        assert self._tokens_per_second is not None
        tokens = sum(length.tokens for length in self._embedder.measure(texts))
        seconds = tokens / self._tokens_per_second
        is_warning = seconds >= _WORTH_A_WARNING and not self._has_announced
        self._has_announced = True
        way = stored or StoredColbert()
        _LOG.log(
            logging.WARNING if is_warning else logging.INFO,
            "Reranking encodes %d texts of about %s tokens, as their points hold no ColBERT "
            "vectors. That takes about %s on this machine unless the cache has them. To store them "
            "once: unified-embeddings add-vectors %s %s",
            len(texts),
            f"{_round(tokens):,}",
            _describe(seconds),
            shlex.quote(collection),
            way.flags,
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
