"""DSPy adapters: an embedder as DSPy's Embedder, the hybrid retriever as its retrieval module."""
