"""What a retriever takes over from the store that it is over; a stock store says nothing."""

from __future__ import annotations

from llama_index.vector_stores.qdrant import QdrantVectorStore

from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.llama.fields import LLAMA_INDEX_FIELDS, Fields
from unified_embeddings.llama.fingerprinted_store import FingerprintedStore
from unified_embeddings.llama.hybrid_search import HybridSearch
from unified_embeddings.llama.stock_arguments import Adopt


def open_search(
    store: QdrantVectorStore, embedder: TextEmbedder, adopt: Adopt | None = None
) -> HybridSearch:
    """Return the search of a store's collection.

    Args:
        store: The store.
        embedder: Its model.
        adopt: "trust" accepts a collection that does not record its model; None takes over what the
            store was opened with.
    """
    if not isinstance(store, FingerprintedStore):
        return HybridSearch(store, embedder, adopt=adopt, doubts_sparse=True)
    why_no_sparse = store.vector_names.why_no_sparse
    return HybridSearch(store, embedder, adopt=adopt or store.adopt, why_no_sparse=why_no_sparse)


def fields_of(store: QdrantVectorStore) -> Fields:
    """Return where the payloads of a store's collection have the metadata."""
    fields = getattr(store, "fields", None)
    return fields if isinstance(fields, Fields) else LLAMA_INDEX_FIELDS
