"""The text embedding models of unified-embeddings, where LlamaIndex's own packages have theirs."""

from unified_embeddings import UnifiedSparseEmbedding, UnifiedTextEmbedding

__all__ = ["UnifiedSparseEmbedding", "UnifiedTextEmbedding"]
