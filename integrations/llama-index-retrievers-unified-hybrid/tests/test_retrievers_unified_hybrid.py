"""The package gives unified-embeddings' own retriever, which LlamaIndex takes."""

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.schema import TextNode
from llama_index.retrievers import unified_hybrid
from llama_index.retrievers.unified_hybrid import UnifiedHybridRetriever
from qdrant_client import QdrantClient

import unified_embeddings
from unified_embeddings.embedders.fake import FakeEmbedder
from unified_embeddings.llama.text import UnifiedTextEmbedding
from unified_embeddings.llama.vector_store import build_vector_store


def test_the_name_is_the_class_itself() -> None:
    assert unified_hybrid.__all__ == ["UnifiedHybridRetriever"]
    assert UnifiedHybridRetriever is unified_embeddings.UnifiedHybridRetriever
    assert issubclass(UnifiedHybridRetriever, BaseRetriever)


def test_it_finds_by_both_rankings() -> None:
    embedder = FakeEmbedder(dimension=16)
    store = build_vector_store(embedder, "animals", client=QdrantClient(":memory:"))
    nodes = [TextNode(text="Foxes jump over dogs."), TextNode(text="Dogs sleep at noon.")]
    store.add(UnifiedTextEmbedding(embedder)(nodes))
    retriever = UnifiedHybridRetriever(store, embedder, similarity_top_k=1, weights=(1, 1))
    (best,) = retriever.retrieve("What do foxes jump over?")
    assert best.text == "Foxes jump over dogs."
    assert best.score is not None
    assert abs(best.score - 2 / 61) < 1e-9
