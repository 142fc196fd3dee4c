"""A question's vectors, as many as a search needs.

What lives here: what a bundle's own embedding, or strings to embed instead of the question, stand
in for. What does not: the model (`embedders`), and searching (`hybrid`).
"""

from __future__ import annotations

from llama_index.core.callbacks import CallbackManager
from llama_index.core.schema import QueryBundle

from unified_embeddings import heads
from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.errors import InputError
from unified_embeddings.retrievers.embedding_events import embedding_events
from unified_embeddings.search.options import Mode
from unified_embeddings.search.query_vectors import QueryVectors
from unified_embeddings.types import FloatArray
from unified_embeddings.validation import require_vector


def embed_question(
    embedder: TextEmbedder,
    bundle: QueryBundle,
    *,
    mode: Mode,
    rerank: bool,
    callback_manager: CallbackManager,
) -> QueryVectors:
    """Return the question's vectors, as many as the mode and the reranking need.

    A bundle's own embedding, and strings to embed instead of the question (as HyDE gives them),
    replace the dense vector only. The sparse vector, and a keyword list, stay with the user's own
    words.

    Args:
        embedder: Embeds the question.
        bundle: The question.
        mode: Which vectors are searched.
        rerank: Whether the ColBERT vectors are needed.
        callback_manager: Told of each embedding.

    Raises:
        InputError: If a text is needed and blank, or the bundle's embedding has another length.
    """
    text = bundle.query_str
    needs_text = mode != "dense" or rerank or bundle.embedding is None
    if not isinstance(text, str) or (needs_text and not text.strip()):
        raise InputError(f"a query must be a str that is not blank, got {text!r}")
    dense = None
    if mode != "sparse":
        dense = _embed_substitute(embedder, bundle, callback_manager)
    needs_dense = mode != "sparse" and dense is None
    needs_sparse = mode != "dense"
    if not (needs_dense or needs_sparse or rerank):
        return QueryVectors(dense=dense)
    with embedding_events(
        callback_manager, embedder.model_name, [text], dense=needs_dense, sparse=needs_sparse
    ) as embedded:
        encoded = embedder.encode_query(
            text, dense=needs_dense, sparse=needs_sparse, colbert=rerank
        )
        embedded.dense, embedded.sparse = encoded.dense, encoded.sparse
    if encoded.dense is not None:
        dense = encoded.dense[0]
    sparse = encoded.sparse[0] if encoded.sparse else None
    colbert = encoded.colbert[0] if encoded.colbert else None
    words = text if mode == "hybrid" else None
    return QueryVectors(dense=dense, sparse=sparse, colbert=colbert, words=words)


def _embed_substitute(
    embedder: TextEmbedder, bundle: QueryBundle, callback_manager: CallbackManager
) -> FloatArray | None:
    """Return the dense vector that stands in for the question's own, (dimension,).

    It is the bundle's embedding, or else the mean of its `custom_embedding_strs`, at unit length.
    Without either it is None.
    """
    if bundle.embedding is not None:
        return require_vector(
            bundle.embedding, embedder.dimension, subject="the query's own embedding"
        )
    if not bundle.custom_embedding_strs:
        return None
    texts = bundle.custom_embedding_strs
    with embedding_events(callback_manager, embedder.model_name, texts, dense=True) as embedded:
        vectors = embedded.dense = embedder.encode_queries(texts, sparse=False).dense
    assert vectors is not None
    mean: FloatArray = heads.normalise(vectors.mean(axis=0, keepdims=True))[0]
    return mean
