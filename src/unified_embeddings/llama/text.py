"""An embedder as LlamaIndex's text embedding model and as its sparse embedding model.

What lives here: both adapters, and what the other adapters of texts share. What does not: the
vectors (`embedders`). Every call is one call of the embedder. Coroutines make it in a worker
thread, which one of them is the embedder's choice (`TextEmbedder.in_thread`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from llama_index.core.base.embeddings.base import BaseEmbedding, Embedding
from llama_index.core.base.embeddings.base_sparse import BaseSparseEmbedding, SparseEmbedding
from llama_index.core.bridge.pydantic import Field, PrivateAttr
from llama_index_instrumentation import get_dispatcher

from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.embedders.factory import make_embedder
from unified_embeddings.llama.pickling import WithEmbedder
from unified_embeddings.llama.unwatched import is_watched, spans_itself
from unified_embeddings.types import Embeddings, FloatArray
from unified_embeddings.validation import require_texts

TEXTS_PER_CALL = 128
"""How many texts LlamaIndex passes at once. The embedder forms its own batches from them."""


class ValidatedTexts(BaseEmbedding):
    """A text embedding model whose error indices refer to the caller's list.

    LlamaIndex splits a list into calls of `embed_batch_size` texts. An embedder that sees one such
    call would count from its beginning, so all texts are checked before the first.
    """

    def get_text_embedding_batch(
        self, texts: list[str], show_progress: bool = False, **kwargs: Any
    ) -> list[Embedding]:
        """Return the dense vectors of texts, in the same order.

        Raises:
            InputError: If an item is not a text; its index refers to `texts`.
        """
        return super().get_text_embedding_batch(require_texts(texts), show_progress, **kwargs)

    async def aget_text_embedding_batch(
        self, texts: list[str], show_progress: bool = False, **kwargs: Any
    ) -> list[Embedding]:
        """Like `get_text_embedding_batch`, but without blocking the event loop."""
        return await super().aget_text_embedding_batch(
            require_texts(texts), show_progress, **kwargs
        )

    def get_agg_embedding_from_queries(
        self, queries: list[str], agg_fn: Callable[..., Embedding] | None = None
    ) -> Embedding:
        """Return one vector for several queries, their mean unless `agg_fn` says otherwise.

        Raises:
            InputError: If an item is not a text.
        """
        texts = require_texts(queries)
        if len(texts) == 1 and agg_fn is None:  # the mean of one, as every retriever asks for it
            return self.get_query_embedding(texts[0])
        return super().get_agg_embedding_from_queries(texts, agg_fn)

    async def aget_agg_embedding_from_queries(
        self, queries: list[str], agg_fn: Callable[..., Embedding] | None = None
    ) -> Embedding:
        """Like `get_agg_embedding_from_queries`, but without blocking the event loop."""
        texts = require_texts(queries)
        if len(texts) == 1 and agg_fn is None:
            return await self.aget_query_embedding(texts[0])
        return await super().aget_agg_embedding_from_queries(texts, agg_fn)


class UnifiedTextEmbedding(WithEmbedder, ValidatedTexts):
    """Dense vectors for LlamaIndex, whose sparse counterparts are cached by the same pass.

    `to_dict` keeps the options, but neither the weights nor the cache. `from_dict` restores an
    equal model, which is loaded with its first text. It restores what `make_embedder` makes: one
    made over a FakeEmbedder, or over an embedder of your own, is refused there.

    Args:
        embedder: The embedder to share. None makes one from the fields.
        **fields: `model_name` and `options` as in `make_embedder`, and the fields of LlamaIndex's
            BaseEmbedding.

    Raises:
        InputError: As `make_embedder` does.

    Example:
        >>> from unified_embeddings import UnifiedSparseEmbedding, UnifiedTextEmbedding
        >>> from unified_embeddings.embedders.fake import FakeEmbedder
        >>> embedder = FakeEmbedder(dimension=64)
        >>> vectors = UnifiedTextEmbedding(embedder).get_text_embedding_batch(["Foxes jump."])
        >>> len(vectors[0])
        64
        >>> weights = UnifiedSparseEmbedding(embedder).get_text_embedding("Foxes jump.")
        >>> embedder.stats().forwards    # the sparse vector came from the cache
        1
    """

    model_name: str = Field(default="BAAI/bge-m3", description="Choice, hub id or folder.")
    embed_batch_size: int = Field(default=TEXTS_PER_CALL, gt=0, le=2048)
    options: dict[str, Any] = Field(
        default_factory=dict, description="make_embedder's other options, without the cache."
    )
    _embedder: TextEmbedder = PrivateAttr()

    def __init__(self, embedder: TextEmbedder | None = None, **fields: Any) -> None:
        if embedder is not None:
            fields |= {"model_name": embedder.model_name, "options": embedder.options}
        super().__init__(**fields)
        self._embedder = embedder or make_embedder(self.model_name, **self.options)
        self.options = without_key(self.options)

    @classmethod
    def class_name(cls) -> str:
        """Return LlamaIndex's name for this class in serialised form."""
        return "UnifiedTextEmbedding"

    @property
    def embedder(self) -> TextEmbedder:
        """The embedder that computes the vectors."""
        return self._embedder

    # Neither call says sparse=False: where the model has sparse vectors, the same pass caches them
    # for the store or the retriever, which ask for them next.

    @spans_itself
    def get_query_embedding(self, query: str) -> Embedding:
        """Return the dense vector of a query; a cached one in microseconds.

        Spans, events and callbacks are LlamaIndex's own as soon as anything listens to them.

        Raises:
            InputError: If it is not a text.
        """
        if not self._takes_short_way():
            return super().get_query_embedding(query)
        return to_lists(self._embedder.encode_query(query, dense=True).dense)[0]

    @spans_itself
    async def aget_query_embedding(self, query: str) -> Embedding:
        """Like `get_query_embedding`, but without blocking the event loop."""
        if not self._takes_short_way():
            return await super().aget_query_embedding(query)
        return await self._embedder.in_thread(partial(self.get_query_embedding, query))

    def _takes_short_way(self) -> bool:
        """Tell whether LlamaIndex's own methods would do nothing but call ours."""
        methods = type(self).__dict__
        for name, method in _QUERY_METHODS.items():
            if methods.get(name) is not method:
                return False
        return not is_watched(self, _DISPATCHER)

    def _get_query_embedding(self, query: str) -> Embedding:
        return to_lists(self._embedder.encode_query(query, dense=True).dense)[0]

    def _get_text_embedding(self, text: str) -> Embedding:
        return self._get_text_embeddings([text])[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        return to_lists(self._embedder.encode_documents(texts, dense=True).dense)

    async def _aget_query_embedding(self, query: str) -> Embedding:
        return await self._embedder.in_thread(partial(self._get_query_embedding, query))

    async def _aget_text_embedding(self, text: str) -> Embedding:
        return await self._embedder.in_thread(partial(self._get_text_embedding, text))

    async def _aget_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        return await self._embedder.in_thread(partial(self._get_text_embeddings, texts))


_DISPATCHER = get_dispatcher(__name__)
_QUERY_METHODS = {
    name: UnifiedTextEmbedding.__dict__[name]
    for name in ("_get_query_embedding", "_aget_query_embedding")
}
"""What the public methods shorten. Where a subclass or a test put another, that one is called."""


class UnifiedSparseEmbedding(BaseSparseEmbedding):
    """Sparse vectors for LlamaIndex, each a dict from vocabulary id to weight.

    Args:
        embedder: The embedder to share. None makes one from the fields.
        **fields: `model_name`, `options` and `embed_batch_size`, as in UnifiedTextEmbedding.

    Raises:
        InputError: As `make_embedder` does.

    Example:
        >>> from unified_embeddings import UnifiedSparseEmbedding
        >>> from unified_embeddings.embedders.fake import FakeEmbedder
        >>> model = UnifiedSparseEmbedding(FakeEmbedder())
        >>> weights = model.get_text_embedding("Foxes jump over foxes.")
        >>> len(weights)    # foxes, jump, over
        3
    """

    model_name: str = Field(default="BAAI/bge-m3", description="Choice, hub id or folder.")
    embed_batch_size: int = Field(default=TEXTS_PER_CALL, gt=0, le=2048)
    options: dict[str, Any] = Field(default_factory=dict)
    _embedder: TextEmbedder = PrivateAttr()

    def __init__(self, embedder: TextEmbedder | None = None, **fields: Any) -> None:
        if embedder is not None:
            fields |= {"model_name": embedder.model_name, "options": embedder.options}
        super().__init__(**fields)
        self._embedder = embedder or make_embedder(self.model_name, **self.options)
        self.options = without_key(self.options)

    @classmethod
    def class_name(cls) -> str:
        """Return LlamaIndex's name for this class in serialised form."""
        return "UnifiedSparseEmbedding"

    def get_text_embedding_batch(
        self, texts: list[str], show_progress: bool = False, **kwargs: Any
    ) -> list[SparseEmbedding]:
        """Return the sparse vectors of texts, in the same order.

        Raises:
            InputError: If an item is not a text; its index refers to `texts`.
        """
        return super().get_text_embedding_batch(require_texts(texts), show_progress, **kwargs)

    async def aget_text_embedding_batch(
        self, texts: list[str], show_progress: bool = False
    ) -> list[SparseEmbedding]:
        """Like `get_text_embedding_batch`, but without blocking the event loop."""
        return await super().aget_text_embedding_batch(require_texts(texts), show_progress)

    def get_agg_embedding_from_queries(
        self, queries: list[str], agg_fn: Callable[..., SparseEmbedding] | None = None
    ) -> SparseEmbedding:
        """Return one vector for several queries, their mean unless `agg_fn` says otherwise.

        Raises:
            InputError: If an item is not a text.
        """
        return super().get_agg_embedding_from_queries(require_texts(queries), agg_fn)

    async def aget_agg_embedding_from_queries(
        self, queries: list[str], agg_fn: Callable[..., SparseEmbedding] | None = None
    ) -> SparseEmbedding:
        """Like `get_agg_embedding_from_queries`, but without blocking the event loop."""
        return await super().aget_agg_embedding_from_queries(require_texts(queries), agg_fn)

    def _get_query_embedding(self, query: str) -> SparseEmbedding:
        return _to_dicts(self._embedder.encode_query(query, sparse=True))[0]

    def _get_text_embedding(self, text: str) -> SparseEmbedding:
        return self._get_text_embeddings([text])[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[SparseEmbedding]:
        return _to_dicts(self._embedder.encode_documents(texts, sparse=True))

    async def _aget_query_embedding(self, query: str) -> SparseEmbedding:
        return await self._embedder.in_thread(partial(self._get_query_embedding, query))

    async def _aget_text_embedding(self, text: str) -> SparseEmbedding:
        return await self._embedder.in_thread(partial(self._get_text_embedding, text))

    async def _aget_text_embeddings(self, texts: list[str]) -> list[SparseEmbedding]:
        return await self._embedder.in_thread(partial(self._get_text_embeddings, texts))


def without_key(options: dict[str, Any]) -> dict[str, Any]:
    """Return an embedder's options without a service's key, which `to_dict` must not store."""
    return {name: value for name, value in options.items() if name != "api_key"}


def to_lists(vectors: FloatArray | None) -> list[Embedding]:
    """Return dense vectors, (n, d), as LlamaIndex's n lists of numbers."""
    assert vectors is not None  # the embedder was asked for them
    rows: list[Embedding] = vectors.tolist()
    return rows


def _to_dicts(embeddings: Embeddings) -> list[SparseEmbedding]:
    return [dict(vector) for vector in embeddings.sparse or ()]
