"""What a question is searched with."""

from __future__ import annotations

from dataclasses import dataclass

from unified_embeddings.types import FloatArray, SparseVector


@dataclass(frozen=True)
class QueryVectors:
    """A question's vectors.

    Attributes:
        dense: float32 (dimension,); None in the mode "sparse".
        sparse: Its lexical weights, possibly none; None in the mode "dense".
        colbert: For reranking, float32 (q, d); None without reranking.
        words: Its text, for a keyword list; None where none is searched.
        bm25: Its vector for the collection's keyword list, which `words` become once the
            collection is known; None without one.
    """

    dense: FloatArray | None = None
    sparse: SparseVector | None = None
    colbert: FloatArray | None = None
    words: str | None = None
    bm25: SparseVector | None = None
