"""Embeddings and hybrid retrieval for LlamaIndex and Qdrant, on your own hardware.

One BGE-M3 in memory gives dense, sparse and ColBERT vectors in one forward pass; Qdrant fuses dense
and sparse in one round trip. The names below are loaded when they are first used (PEP 562):
importing this package loads neither torch nor LlamaIndex.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from unified_embeddings.cache import CacheStats, EmbeddingCache
    from unified_embeddings.config import UnifiedEmbeddingConfig
    from unified_embeddings.embedder import BGE_M3_Embedder, EmbedderStats
    from unified_embeddings.errors import (
        FingerprintMismatchError,
        InputError,
        MissingExtraError,
        ModelLoadError,
        OverloadedError,
        StoreError,
        UnifiedEmbeddingsError,
    )
    from unified_embeddings.heads import colbert_score, dense_score, sparse_score
    from unified_embeddings.llama.text import UnifiedSparseEmbedding, UnifiedTextEmbedding
    from unified_embeddings.retrievers.fusion import rrf
    from unified_embeddings.retrievers.hybrid import UnifiedHybridRetriever
    from unified_embeddings.types import Embeddings, SparseVector

_HOMES = {
    "cache": ("CacheStats", "EmbeddingCache"),
    "config": ("UnifiedEmbeddingConfig",),
    "embedder": ("BGE_M3_Embedder", "EmbedderStats"),
    "errors": (
        "FingerprintMismatchError",
        "InputError",
        "MissingExtraError",
        "ModelLoadError",
        "OverloadedError",
        "StoreError",
        "UnifiedEmbeddingsError",
    ),
    "heads": ("colbert_score", "dense_score", "sparse_score"),
    "llama.text": ("UnifiedSparseEmbedding", "UnifiedTextEmbedding"),
    "retrievers.fusion": ("rrf",),
    "retrievers.hybrid": ("UnifiedHybridRetriever",),
    "types": ("Embeddings", "SparseVector"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "BGE_M3_Embedder",
    "CacheStats",
    "EmbedderStats",
    "EmbeddingCache",
    "Embeddings",
    "FingerprintMismatchError",
    "InputError",
    "MissingExtraError",
    "ModelLoadError",
    "OverloadedError",
    "SparseVector",
    "StoreError",
    "UnifiedEmbeddingConfig",
    "UnifiedEmbeddingsError",
    "UnifiedHybridRetriever",
    "UnifiedSparseEmbedding",
    "UnifiedTextEmbedding",
    "colbert_score",
    "dense_score",
    "rrf",
    "sparse_score",
]


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_HOME_OF[name]}")
    value = globals()[name] = getattr(module, name)
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
