"""Chunks into a store, with their vectors.

What lives here: how many are embedded at a time. What does not: which chunks (`indexing`,
`indexing_input`).
"""

from __future__ import annotations

from collections.abc import Sequence

from llama_index.core.schema import BaseNode, MetadataMode
from llama_index.vector_stores.qdrant import QdrantVectorStore

from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.llama.fingerprinted_store import FingerprintedStore
from unified_embeddings.stores.errors import store_errors

BATCH_CHUNKS = 256
"""How many chunks are embedded and stored at a time. It bounds the memory they take."""
_BATCH_CHUNKS_WITH_COLBERT = 64
"""The same where their ColBERT vectors are stored too: up to 2 MB each with BGE-M3."""


def add_chunks(
    store: QdrantVectorStore, embedder: TextEmbedder, chunks: Sequence[BaseNode]
) -> None:
    """Embed and store chunks. The store gets the sparse vectors from the cache.

    Args:
        store: The store of the collection.
        embedder: Embeds the chunks.
        chunks: The chunks; they get their dense vectors.

    Raises:
        StoreError: If Qdrant fails.
    """
    batch_size = BATCH_CHUNKS
    if isinstance(store, FingerprintedStore) and store.stored_colbert is not None:
        batch_size = _BATCH_CHUNKS_WITH_COLBERT  # the cache has to hold that many
    for start in range(0, len(chunks), batch_size):
        batch = list(chunks[start : start + batch_size])
        texts = [chunk.get_content(metadata_mode=MetadataMode.EMBED) for chunk in batch]
        dense = embedder.encode_documents(texts).dense
        assert dense is not None
        for chunk, vector in zip(batch, dense, strict=True):
            chunk.embedding = vector.tolist()
        with store_errors(store.collection_name, "adding chunks"):
            store.add(batch)
