"""BM25 over a model's own tokens: the baseline that a learned sparse vector has to beat.

What lives here: the ranking function. What does not: tokenising (the model's tokenizer does it, so
that both see the same words) and what is compared (`retrieval`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

K1 = 1.2
"""How slowly repetitions of a token in a document stop counting; Lucene's default."""
B = 0.75
"""How much long documents are discounted, from 0 to 1; Lucene's default."""


class Bm25:
    """An index of tokenised documents.

    A document scores, over the query's tokens, Σ idf · tf · (k1 + 1) / (tf + k1 · (1 - b + b · its
    length / the mean length)), with idf = ln(1 + (n - df + 0.5) / (df + 0.5)): Robertson and
    Zaragoza 2009, with Lucene's idf, which is never negative. It is also Qdrant's. A token that the
    query repeats counts as often.

    Args:
        documents: Token ids of n documents, without special tokens.
        k1: See `K1`.
        b: See `B`.
    """

    def __init__(self, documents: Sequence[Sequence[int]], *, k1: float = K1, b: float = B) -> None:
        self._size = len(documents)
        lengths = np.array([len(tokens) for tokens in documents], dtype=np.float64)
        mean_length = lengths.mean() if lengths.any() else 1.0
        rows: defaultdict[int, list[int]] = defaultdict(list)
        weights: defaultdict[int, list[float]] = defaultdict(list)
        for row, tokens in enumerate(documents):
            damping = k1 * (1 - b + b * lengths[row] / mean_length)
            ids, frequencies = np.unique(np.asarray(tokens, dtype=np.int64), return_counts=True)
            for token, frequency in zip(ids.tolist(), frequencies.tolist(), strict=True):
                rows[token].append(row)
                weights[token].append(frequency * (k1 + 1) / (frequency + damping))
        self._rows = {token: np.array(found) for token, found in rows.items()}
        self._weights = {token: np.array(found) for token, found in weights.items()}

    def scores(self, query: Sequence[int]) -> NDArray[np.float64]:
        """Return each document's score, (n,); 0 for documents that share no token."""
        scores = np.zeros(self._size)
        for token in query:
            if token in self._rows:
                rows = self._rows[token]
                idf = np.log1p((self._size - len(rows) + 0.5) / (len(rows) + 0.5))
                # A document occurs once in a token's list, so no row is repeated here.
                scores[rows] += idf * self._weights[token]
        return scores
