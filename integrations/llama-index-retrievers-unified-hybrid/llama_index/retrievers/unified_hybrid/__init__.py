"""The hybrid retriever of unified-embeddings, where LlamaIndex's own packages have theirs."""

from unified_embeddings import UnifiedHybridRetriever

__all__ = ["UnifiedHybridRetriever"]
