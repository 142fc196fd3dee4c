"""Embeddings and hybrid retrieval for LlamaIndex and Qdrant, on your own hardware.

One BGE-M3 in memory gives dense, sparse and ColBERT vectors in one forward pass; Qdrant fuses dense
and sparse in one round trip. The names below are loaded when they are first used (PEP 562):
importing this package loads neither torch nor LlamaIndex.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from unified_embeddings._version import __version__ as __version__

if TYPE_CHECKING:
    from unified_embeddings.cache.embedding_cache import CacheStats, EmbeddingCache
    from unified_embeddings.config.pipeline import UnifiedEmbeddingConfig
    from unified_embeddings.embedders.base import TextEmbedder
    from unified_embeddings.embedders.bge_m3 import BGE_M3_Embedder
    from unified_embeddings.embedders.clip import ClipEmbedder, ClipStats
    from unified_embeddings.embedders.factory import make_embedder
    from unified_embeddings.embedders.paired import PairedEmbedder
    from unified_embeddings.embedders.remote import RemoteEmbedder
    from unified_embeddings.embedders.single_model import ModelEmbedder
    from unified_embeddings.embedders.values import EmbedderStats
    from unified_embeddings.errors import (
        FingerprintMismatchError,
        InputError,
        MissingExtraError,
        ModelLoadError,
        OverloadedError,
        ServiceError,
        StoreError,
        UnifiedEmbeddingsError,
    )
    from unified_embeddings.fusion import rrf
    from unified_embeddings.heads import colbert_score, dense_score, sparse_score
    from unified_embeddings.llama.huggingface import UnifiedHuggingFaceEmbedding
    from unified_embeddings.llama.images import UnifiedImageEmbedding
    from unified_embeddings.llama.multimodal_index import UnifiedMultiModalIndex
    from unified_embeddings.llama.splitter import UnifiedSentenceSplitter
    from unified_embeddings.llama.text import UnifiedSparseEmbedding, UnifiedTextEmbedding
    from unified_embeddings.models.spec import ModelSpec
    from unified_embeddings.retrievers.hybrid import UnifiedHybridRetriever
    from unified_embeddings.retrievers.multimodal import UnifiedMultiModalRetriever
    from unified_embeddings.retrievers.transition import TransitionRetriever
    from unified_embeddings.stores.edge.client import EdgeQdrantClient
    from unified_embeddings.stores.stored_colbert import StoredColbert
    from unified_embeddings.system.memory import MemoryReport, ModelMemory
    from unified_embeddings.types import Embeddings, ImageEmbeddings, SparseVector

_HOMES = {
    "cache.embedding_cache": ("CacheStats", "EmbeddingCache"),
    "config.pipeline": ("UnifiedEmbeddingConfig",),
    "embedders.base": ("EmbedderStats", "TextEmbedder"),
    "embedders.bge_m3": ("BGE_M3_Embedder",),
    "embedders.clip": ("ClipEmbedder", "ClipStats"),
    "embedders.factory": ("make_embedder",),
    "embedders.paired": ("PairedEmbedder",),
    "embedders.remote": ("RemoteEmbedder",),
    "embedders.single_model": ("ModelEmbedder",),
    "errors": (
        "FingerprintMismatchError",
        "InputError",
        "MissingExtraError",
        "ModelLoadError",
        "OverloadedError",
        "ServiceError",
        "StoreError",
        "UnifiedEmbeddingsError",
    ),
    "fusion": ("rrf",),
    "heads": ("colbert_score", "dense_score", "sparse_score"),
    "llama.huggingface": ("UnifiedHuggingFaceEmbedding",),
    "llama.images": ("UnifiedImageEmbedding",),
    "llama.multimodal_index": ("UnifiedMultiModalIndex",),
    "llama.splitter": ("UnifiedSentenceSplitter",),
    "llama.text": ("UnifiedSparseEmbedding", "UnifiedTextEmbedding"),
    "models.spec": ("ModelSpec",),
    "retrievers.hybrid": ("UnifiedHybridRetriever",),
    "retrievers.multimodal": ("UnifiedMultiModalRetriever",),
    "retrievers.transition": ("TransitionRetriever",),
    "stores.edge.client": ("EdgeQdrantClient",),
    "stores.stored_colbert": ("StoredColbert",),
    "system.memory": ("MemoryReport", "ModelMemory"),
    "types": ("Embeddings", "ImageEmbeddings", "SparseVector"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "BGE_M3_Embedder",
    "CacheStats",
    "ClipEmbedder",
    "ClipStats",
    "EdgeQdrantClient",
    "EmbedderStats",
    "EmbeddingCache",
    "Embeddings",
    "FingerprintMismatchError",
    "ImageEmbeddings",
    "InputError",
    "MemoryReport",
    "MissingExtraError",
    "ModelEmbedder",
    "ModelLoadError",
    "ModelMemory",
    "ModelSpec",
    "OverloadedError",
    "PairedEmbedder",
    "RemoteEmbedder",
    "ServiceError",
    "SparseVector",
    "StoreError",
    "StoredColbert",
    "TextEmbedder",
    "TransitionRetriever",
    "UnifiedEmbeddingConfig",
    "UnifiedEmbeddingsError",
    "UnifiedHuggingFaceEmbedding",
    "UnifiedHybridRetriever",
    "UnifiedImageEmbedding",
    "UnifiedMultiModalIndex",
    "UnifiedMultiModalRetriever",
    "UnifiedSentenceSplitter",
    "UnifiedSparseEmbedding",
    "UnifiedTextEmbedding",
    "colbert_score",
    "dense_score",
    "make_embedder",
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
