"""An embedder's sparse vectors in the form in which QdrantVectorStore asks for them."""

from __future__ import annotations

from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.types import Options, Role

SparseLists = tuple[list[list[int]], list[list[float]]]
"""Of n texts: a list of vocabulary ids and a list of their weights for each."""


def sparse_options(embedder: TextEmbedder, vector_name: str | None) -> Options:
    """Return the stock store's options for its sparse half.

    Args:
        embedder: Gives sparse vectors.
        vector_name: Name of the collection's sparse vectors; None without any, for no options.
    """
    if vector_name is None:
        return {}
    return {
        "enable_hybrid": True,
        "sparse_doc_fn": _SparseFunction(embedder, "document"),
        "sparse_query_fn": _SparseFunction(embedder, "query"),
        "sparse_vector_name": vector_name,
    }


class _SparseFunction:
    """Sparse vectors of texts in the form in which QdrantVectorStore asks for them.

    After an insert through our text embedding the vectors are in the cache, and this is a look-up.
    If the cache could not hold the batch, the texts run through the model again.

    Args:
        embedder: Gives sparse vectors.
        role: Whether the texts are documents or queries.
    """

    def __init__(self, embedder: TextEmbedder, role: Role) -> None:
        self._embedder = embedder
        self._role = role

    def __call__(self, texts: list[str]) -> SparseLists:
        encode = self._embedder.encode_documents
        if self._role == "query":
            encode = self._embedder.encode_queries
        vectors = encode(texts, dense=False, sparse=True).sparse or []
        indices: list[list[int]] = [vector.indices.tolist() for vector in vectors]
        weights: list[list[float]] = [vector.values.tolist() for vector in vectors]
        return indices, weights
