"""Hybrid search for the entities of a property graph.

What lives here: what LlamaIndex's retriever over a graph asks the vector store. What does not:
searching (`llama`), and the graph, which is LlamaIndex's.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.graph_stores.types import PropertyGraphStore
from llama_index.core.indices.property_graph import VectorContextRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle
from llama_index.core.vector_stores.types import VectorStoreQuery, VectorStoreQueryMode

from unified_embeddings.errors import InputError
from unified_embeddings.llama.fingerprinted_store import FingerprintedStore


class HybridContextRetriever(VectorContextRetriever):
    """A VectorContextRetriever that finds a graph's entities by dense and sparse vectors.

    LlamaIndex's own passes the question's embedding alone, so a name that the model does not know
    is found only by chance. Here the store gets the question's words as well. Pass it to
    `PropertyGraphIndex.as_retriever(sub_retrievers=[...])`, or use it by itself.

    A path's score is that of the entity in it that was found better: of the fused ranking, so that
    `similarity_score` is a bound on that. Where no entity is found, there is no path; LlamaIndex's
    own takes every path of a SimplePropertyGraphStore then.

    Args:
        graph_store: The graph.
        vector_store: The store that the index embedded its entities into.
        embed_model: The store's own text model.
        **options: Those of VectorContextRetriever: similarity_top_k (of the entities), path_depth,
            limit, include_text, include_properties, similarity_score, filters.

    Raises:
        InputError: If the store is another, or has no sparse vectors.

    Example:
        >>> from llama_index.core.graph_stores import SimplePropertyGraphStore
        >>> from qdrant_client import QdrantClient
        >>> from unified_embeddings import UnifiedTextEmbedding
        >>> from unified_embeddings.embedders.fake import FakeEmbedder
        >>> from unified_embeddings.llama.vector_store import build_vector_store
        >>> from unified_embeddings.retrievers.property_graph import HybridContextRetriever
        >>> embedder = FakeEmbedder()
        >>> store = build_vector_store(embedder, "entities", client=QdrantClient(":memory:"))
        >>> model = UnifiedTextEmbedding(embedder)
        >>> graph = SimplePropertyGraphStore()
        >>> retriever = HybridContextRetriever(graph, vector_store=store, embed_model=model)
        >>> retriever.retrieve("Which foxes jump?")    # the graph is empty
        []
    """

    def __init__(
        self,
        graph_store: PropertyGraphStore,
        *,
        vector_store: FingerprintedStore,
        embed_model: BaseEmbedding,
        **options: Any,
    ) -> None:
        if not isinstance(vector_store, FingerprintedStore):
            raise InputError(
                f"expected a store of UnifiedEmbeddingConfig.vector_store, got "
                f"{type(vector_store).__name__}"
            )
        if not vector_store.enable_hybrid:
            raise InputError(
                f"collection {vector_store.collection_name!r} has no sparse vectors; take "
                "VectorContextRetriever, or a model that gives them"
            )
        super().__init__(graph_store, vector_store=vector_store, embed_model=embed_model, **options)

    def retrieve_from_graph(
        self, query_bundle: QueryBundle, limit: int | None = None
    ) -> list[NodeWithScore]:
        """Return the paths through the entities that answer a question best, best first.

        Args:
            query_bundle: The question.
            limit: The most paths; None for the number given at the beginning.

        Raises:
            InputError: If the question is blank or not a text.
            StoreError: If Qdrant fails, or the collection does not exist.
        """
        return _through_entities(super().retrieve_from_graph(query_bundle, limit))

    async def aretrieve_from_graph(
        self, query_bundle: QueryBundle, limit: int | None = None
    ) -> list[NodeWithScore]:
        """Like `retrieve_from_graph`, but without blocking the event loop."""
        return _through_entities(await super().aretrieve_from_graph(query_bundle, limit))

    def _get_vector_store_query(self, query_bundle: QueryBundle) -> VectorStoreQuery:
        return _with_words(super()._get_vector_store_query(query_bundle), query_bundle)

    async def _aget_vector_store_query(self, query_bundle: QueryBundle) -> VectorStoreQuery:
        return _with_words(await super()._aget_vector_store_query(query_bundle), query_bundle)


def _through_entities(paths: list[NodeWithScore]) -> list[NodeWithScore]:
    """Return the paths if an entity was found.

    LlamaIndex asks the graph for no entities then, which a SimplePropertyGraphStore takes as asking
    for all. The paths have the score 0. One through an entity that was found has more.
    """
    if any(path.get_score() > 0 for path in paths):
        return paths
    return []


def _with_words(query: VectorStoreQuery, bundle: QueryBundle) -> VectorStoreQuery:
    return replace(query, query_str=bundle.query_str, mode=VectorStoreQueryMode.HYBRID)
