"""The embedder as LlamaIndex's text embedding model and sparse embedding model.

Both are thin: every call is one call of the embedder, in a worker thread where it is async.
"""

from __future__ import annotations

import asyncio
from typing import Any

from llama_index.core.base.embeddings.base import BaseEmbedding, Embedding
from llama_index.core.base.embeddings.base_sparse import BaseSparseEmbedding, SparseEmbedding
from llama_index.core.bridge.pydantic import Field, PrivateAttr

from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.embedders.factory import make_embedder
from unified_embeddings.types import Embeddings
from unified_embeddings.validation import require_texts

_BATCH = 128
"""Texts LlamaIndex hands over at once; the embedder forms its own batches from them."""


class ValidatedTexts(BaseEmbedding):
    """A text embedding model whose errors name the bad text's place in the list it came in.

    LlamaIndex hands a list over in batches, within which an index would count otherwise.
    """

    def get_text_embedding_batch(
        self, texts: list[str], show_progress: bool = False, **kwargs: Any
    ) -> list[Embedding]:
        """Dense vectors of the texts; all are checked first, so that an error's index is theirs."""
        return super().get_text_embedding_batch(require_texts(texts), show_progress, **kwargs)

    async def aget_text_embedding_batch(
        self, texts: list[str], show_progress: bool = False, **kwargs: Any
    ) -> list[Embedding]:
        """As `get_text_embedding_batch`, without blocking the event loop."""
        return await super().aget_text_embedding_batch(
            require_texts(texts), show_progress, **kwargs
        )


class UnifiedTextEmbedding(ValidatedTexts):
    """Dense vectors for LlamaIndex; the sparse ones of the same pass wait in the cache.

    Args:
        embedder: Share this one; None makes one from the fields.
        **fields: The options of `make_embedder` and of LlamaIndex's BaseEmbedding.

    `to_dict` keeps the options, not the weights or the cache; `from_dict` gives an equal model that
    loads with its first text.

    Raises:
        As `make_embedder`.
    """

    model_name: str = Field(default="BAAI/bge-m3", description="Choice, hub id or folder.")
    embed_batch_size: int = Field(default=_BATCH, gt=0, le=2048)
    options: dict[str, Any] = Field(
        default_factory=dict, description="make_embedder's other options, without the cache."
    )
    _embedder: TextEmbedder = PrivateAttr()

    def __init__(self, embedder: TextEmbedder | None = None, **fields: Any) -> None:
        if embedder is not None:
            fields |= {"model_name": embedder.model_name, "options": embedder.options}
        super().__init__(**fields)
        self._embedder = embedder or make_embedder(self.model_name, **self.options)

    @classmethod
    def class_name(cls) -> str:
        """What LlamaIndex calls this class in serialised form."""
        return "UnifiedTextEmbedding"

    @property
    def embedder(self) -> TextEmbedder:
        """What does the work."""
        return self._embedder

    def _get_query_embedding(self, query: str) -> Embedding:
        return _rows(self._embedder.encode_query(query, dense=True).dense)[0]

    def _get_text_embedding(self, text: str) -> Embedding:
        return self._get_text_embeddings([text])[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        return _rows(self._embedder.encode_documents(texts, dense=True).dense)

    async def _aget_query_embedding(self, query: str) -> Embedding:
        return await asyncio.to_thread(self._get_query_embedding, query)

    async def _aget_text_embedding(self, text: str) -> Embedding:
        return await asyncio.to_thread(self._get_text_embedding, text)

    async def _aget_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        return await asyncio.to_thread(self._get_text_embeddings, texts)


class UnifiedSparseEmbedding(BaseSparseEmbedding):
    """Sparse vectors for LlamaIndex: vocabulary id → weight.

    Args:
        embedder: Share this one; None makes one from the fields.
        **fields: `model_name`, `options` as in UnifiedTextEmbedding.
    """

    model_name: str = Field(default="BAAI/bge-m3", description="Choice, hub id or folder.")
    embed_batch_size: int = Field(default=_BATCH, gt=0, le=2048)
    options: dict[str, Any] = Field(default_factory=dict)
    _embedder: TextEmbedder = PrivateAttr()

    def __init__(self, embedder: TextEmbedder | None = None, **fields: Any) -> None:
        if embedder is not None:
            fields |= {"model_name": embedder.model_name, "options": embedder.options}
        super().__init__(**fields)
        self._embedder = embedder or make_embedder(self.model_name, **self.options)

    @classmethod
    def class_name(cls) -> str:
        """What LlamaIndex calls this class in serialised form."""
        return "UnifiedSparseEmbedding"

    def _get_query_embedding(self, query: str) -> SparseEmbedding:
        return self._vectors(self._embedder.encode_query(query, sparse=True))[0]

    def _get_text_embedding(self, text: str) -> SparseEmbedding:
        return self._get_text_embeddings([text])[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[SparseEmbedding]:
        return self._vectors(self._embedder.encode_documents(texts, sparse=True))

    @staticmethod
    def _vectors(embeddings: Embeddings) -> list[SparseEmbedding]:
        return [dict(vector) for vector in embeddings.sparse or ()]

    async def _aget_query_embedding(self, query: str) -> SparseEmbedding:
        return await asyncio.to_thread(self._get_query_embedding, query)

    async def _aget_text_embedding(self, text: str) -> SparseEmbedding:
        return await asyncio.to_thread(self._get_text_embedding, text)

    async def _aget_text_embeddings(self, texts: list[str]) -> list[SparseEmbedding]:
        return await asyncio.to_thread(self._get_text_embeddings, texts)


def _rows(dense: Any) -> list[Embedding]:
    rows: list[Embedding] = dense.tolist()
    return rows
