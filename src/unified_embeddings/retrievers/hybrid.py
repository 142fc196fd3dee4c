"""The hybrid retriever: dense and sparse from one pass, fused in one round trip.

What lives here: LlamaIndex's BaseRetriever over a QdrantVectorStore. What does not: the vectors
(`embedder`), the arithmetic of fusion (Qdrant, or `fusion` for unequal weights).
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.callbacks import CallbackManager
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle, QueryType
from llama_index.core.vector_stores.types import (
    FilterOperator,
    MetadataFilters,
    VectorStoreQuery,
)
from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import models

from unified_embeddings import heads
from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.errors import InputError, StoreError
from unified_embeddings.fusion import rrf
from unified_embeddings.stores.errors import store_errors
from unified_embeddings.stores.opening import make_thread_safe
from unified_embeddings.stores.schema import check_collection
from unified_embeddings.types import FloatArray, SparseVector

Mode = Literal["hybrid", "dense", "sparse"]

_ORDER = (FilterOperator.GT, FilterOperator.GTE, FilterOperator.LT, FilterOperator.LTE)


@dataclass(frozen=True)
class _Query:
    """A question's vectors, as Qdrant takes them; None where the mode or the text gives none.

    `colbert` is for reranking, float32 (q, d).
    """

    dense: list[float] | None
    sparse: models.SparseVector | None
    colbert: FloatArray | None


class UnifiedHybridRetriever(BaseRetriever):
    """Retrieve by dense and sparse vectors fused with RRF, as a LlamaIndex retriever.

    A query is one forward pass (or a cache hit) and one call to Qdrant, which fuses. A node's score
    is Σ weight / (rrf_k + rank + 1) over the two lists, rank from 0: about 0.016 to 0.033, so a
    SimilarityPostprocessor's cutoff has to be of that size. In the modes "dense" and "sparse" it is
    the vectors' own score, after reranking the ColBERT score.

    Args:
        vector_store: As `UnifiedEmbeddingConfig.vector_store` builds it; any QdrantVectorStore
            whose vectors this embedder's model made will do.
        embedder: Embeds the questions.
        similarity_top_k: Nodes returned at most.
        candidates: Nodes each list brings into the fusion, or reranking scores; at least
            `similarity_top_k` are fetched.
        rrf_k: RRF's damping.
        weights: Of the dense and the sparse list.
        mode: "hybrid", "dense" or "sparse".
        rerank: "colbert" scores the candidates' texts against the question token by token.
        filters: LlamaIndex's metadata filters, applied to both lists.
        callback_manager: As every BaseRetriever has it.

    Raises:
        InputError: If an option is out of range or a filter cannot be translated.
        FingerprintMismatchError: If the collection was made with another model. Checked here, or
            at the first query where the collection is not there yet.
        StoreError: If Qdrant cannot be reached, or lacks the vectors the mode needs.
    """

    def __init__(
        self,
        vector_store: QdrantVectorStore,
        embedder: TextEmbedder,
        *,
        similarity_top_k: int = 10,
        candidates: int = 20,
        rrf_k: int = 60,
        weights: tuple[float, float] = (1.0, 1.0),
        mode: Mode = "hybrid",
        rerank: Literal["colbert"] | None = None,
        filters: MetadataFilters | None = None,
        callback_manager: CallbackManager | None = None,
    ) -> None:
        _check_options(similarity_top_k, candidates, rrf_k, weights, mode, rerank)
        if not isinstance(vector_store, QdrantVectorStore):
            raise InputError(
                f"vector_store must be a QdrantVectorStore, not {type(vector_store).__name__}"
            )
        _check_heads(embedder, mode, rerank)
        self._store = vector_store
        self._embedder = embedder
        self._mode = mode
        self._rerank = rerank
        self._top_k = similarity_top_k
        self._candidates = max(candidates, similarity_top_k)
        self._rrf_k = rrf_k
        self._weights = weights
        self._filter = _translate(vector_store, filters)
        self._client = vector_store.client
        self._aclient = vector_store._aclient
        if self._client is not None:
            make_thread_safe(self._client)
        self._checked = False
        self._dense_name = vector_store.dense_vector_name
        super().__init__(callback_manager=callback_manager)
        if self._client is not None:
            with store_errors(self._collection, "looking the collection up"):
                exists = self._client.collection_exists(self._collection)
            if exists:
                self._check(self._call("get_collection", collection_name=self._collection))

    def retrieve(self, str_or_query_bundle: QueryType) -> list[NodeWithScore]:
        """The nodes that answer a question best, best first.

        Raises:
            InputError: If the question is no text, or blank.
            FingerprintMismatchError: If the collection was made with another model.
            StoreError: If Qdrant fails, or the collection does not exist.
        """
        return super().retrieve(_question(str_or_query_bundle))

    async def aretrieve(self, str_or_query_bundle: QueryType) -> list[NodeWithScore]:
        """As `retrieve`, without blocking the event loop."""
        return await super().aretrieve(_question(str_or_query_bundle))

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        if not self._checked:
            self._check(self._call("get_collection", collection_name=self._collection))
        query = self._embed(query_bundle)
        if query is None:
            return []
        method, request = self._request(query)
        nodes = self._nodes(self._call(method, collection_name=self._collection, **request))
        return self._finish(query, nodes)

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        if not self._checked:
            info = await self._acall("get_collection", collection_name=self._collection)
            await asyncio.to_thread(self._check, info)
        query = await asyncio.to_thread(self._embed, query_bundle)
        if query is None:
            return []
        method, request = self._request(query)
        response = await self._acall(method, collection_name=self._collection, **request)
        return await asyncio.to_thread(self._finish, query, self._nodes(response))

    @property
    def _collection(self) -> str:
        return str(self._store.collection_name)

    # --- the question ---------------------------------------------------------------------------

    def _embed(self, bundle: QueryBundle) -> _Query | None:
        """The question's vectors; None if it has none to search by (sparse mode, no known token).

        A bundle's own embedding, and strings to embed in the question's stead (as HyDE gives
        them), replace the dense vector only: the sparse one is about the user's words.
        """
        text = bundle.query_str
        needs_text = self._mode != "dense" or self._rerank or bundle.embedding is None
        if not isinstance(text, str) or (needs_text and not text.strip()):
            raise InputError(f"a query must be a text with something in it, got {text!r}")
        dense = self._own_dense(bundle) if self._mode != "sparse" else None
        wanted = {
            "dense": self._mode != "sparse" and dense is None,
            "sparse": self._mode != "dense",
            "colbert": self._rerank is not None,
        }
        sparse = colbert = None
        if any(wanted.values()):
            encoded = self._embedder.encode_query(text, **wanted)
            if encoded.dense is not None:
                dense = encoded.dense[0]
            if encoded.sparse is not None and len(encoded.sparse[0]):
                sparse = models.SparseVector(**_lists(encoded.sparse[0]))
            if encoded.colbert is not None:
                colbert = encoded.colbert[0]
        if dense is None and sparse is None:
            return None
        return _Query(None if dense is None else dense.tolist(), sparse, colbert)

    def _own_dense(self, bundle: QueryBundle) -> FloatArray | None:
        """The dense vector a bundle brings itself, (dimension,); None if it brings none."""
        if bundle.embedding is not None:
            try:
                vector = np.asarray(bundle.embedding, dtype=np.float32)
            except (TypeError, ValueError):
                vector = np.array(np.nan, dtype=np.float32)
            if vector.shape != (self._embedder.dimension,) or not np.isfinite(vector).all():
                raise InputError(
                    f"the query's own embedding must be {self._embedder.dimension} finite numbers, "
                    f"got {bundle.embedding!r:.80}"
                )
            return vector
        if not bundle.custom_embedding_strs:
            return None
        vectors = self._embedder.encode_queries(bundle.custom_embedding_strs, sparse=False).dense
        assert vectors is not None
        mean: FloatArray = heads.normalise(vectors.mean(axis=0, keepdims=True))[0]
        return mean

    # --- the one call to Qdrant -----------------------------------------------------------------

    def _request(self, query: _Query) -> tuple[str, dict[str, Any]]:
        """The client's method and its arguments."""
        limit = self._candidates if self._rerank else self._top_k
        lists = [
            (vector, name)
            for vector, name in (
                (query.dense, self._dense_name),
                (query.sparse, self._store.sparse_vector_name),
            )
            if vector is not None
        ]
        if self._mode != "hybrid":
            ((vector, name),) = lists
            return "query_points", {
                "query": vector,
                "using": name or None,
                "query_filter": self._filter,
                "limit": limit,
                "with_payload": True,
            }
        if self._weights[0] == self._weights[1] > 0:
            # Qdrant scores 1 / (k + rank) with rank from 0: its k is one more than ours.
            return "query_points", {
                "prefetch": [
                    models.Prefetch(
                        query=vector,
                        using=name or None,
                        filter=self._filter,
                        limit=self._candidates,
                    )
                    for vector, name in lists
                ],
                "query": models.RrfQuery(rrf=models.Rrf(k=self._rrf_k + 1)),
                "limit": limit,
                "with_payload": True,
            }
        # Qdrant's own weights divide the rank, so unequal ones are fused here, from one batch.
        return "query_batch_points", {
            "requests": [
                models.QueryRequest(
                    query=vector,
                    using=name or None,
                    filter=self._filter,
                    limit=self._candidates,
                    with_payload=True,
                )
                for vector, name in lists
            ]
        }

    def _nodes(self, response: Any) -> list[NodeWithScore]:
        """What Qdrant answered, as scored nodes, best first."""
        if isinstance(response, list):
            return self._fuse(response)
        scale = self._weights[0] if self._mode == "hybrid" else 1.0
        return [
            NodeWithScore(node=node, score=score * scale)
            for node, score in self._parse(response.points)
        ]

    def _fuse(self, responses: list[Any]) -> list[NodeWithScore]:
        weights = self._weights if len(responses) == 2 else self._weights[:1]
        points = {point.id: point for response in responses for point in response.points}
        fused = rrf([[p.id for p in r.points] for r in responses], self._rrf_k, weights)
        kept = fused[: self._candidates if self._rerank else self._top_k]
        nodes = self._parse([points[point_id] for point_id, _ in kept])
        return [
            NodeWithScore(node=node, score=score)
            for (node, _), (_, score) in zip(nodes, kept, strict=True)
        ]

    def _parse(self, points: list[Any]) -> list[tuple[Any, float]]:
        with store_errors(self._collection, "reading the points found"):
            result = self._store.parse_to_query_result(points)
        return list(zip(result.nodes or [], result.similarities or [], strict=True))

    def _finish(self, query: _Query, nodes: list[NodeWithScore]) -> list[NodeWithScore]:
        if query.colbert is None or not nodes:
            return nodes
        texts = [scored.node.get_content(metadata_mode=MetadataMode.EMBED) for scored in nodes]
        documents = self._embedder.encode_documents(
            texts, dense=False, sparse=False, colbert=True
        ).colbert
        assert documents is not None
        scored = [
            NodeWithScore(node=old.node, score=heads.colbert_score(query.colbert, rows))
            for old, rows in zip(nodes, documents, strict=True)
        ]
        return sorted(scored, key=lambda node: -(node.score or 0.0))[: self._top_k]

    def _check(self, info: models.CollectionInfo) -> None:
        vectors = info.config.params.vectors
        unnamed = isinstance(vectors, models.VectorParams) or "" in (vectors or {})
        self._dense_name = "" if unnamed else self._store.dense_vector_name
        check_collection(
            self._collection,
            info,
            self._embedder,
            dense=self._dense_name if self._mode != "sparse" else None,
            sparse=self._store.sparse_vector_name if self._mode != "dense" else None,
        )
        self._checked = True

    def _call(self, method: str, **arguments: Any) -> Any:
        if self._client is None:
            raise StoreError(
                self._collection, method, "the store has only an async client; use aretrieve"
            )
        with store_errors(self._collection, method):
            return getattr(self._client, method)(**arguments)

    async def _acall(self, method: str, **arguments: Any) -> Any:
        if self._aclient is None:
            return await asyncio.to_thread(self._call, method, **arguments)
        with store_errors(self._collection, method):
            return await getattr(self._aclient, method)(**arguments)


def _question(query: QueryType) -> QueryType:
    if not isinstance(query, str | QueryBundle):
        raise InputError(f"a query must be one str or QueryBundle, got {type(query).__name__}")
    return query


def _check_options(
    top_k: int,
    candidates: int,
    rrf_k: int,
    weights: Sequence[float],
    mode: str,
    rerank: str | None,
) -> None:
    check_counts(top_k, candidates, rrf_k)
    if not are_weights(weights):
        raise InputError(
            f"weights must be two numbers >= 0, dense and sparse, not both 0; got {weights!r}"
        )
    if mode not in get_args(Mode):
        raise InputError(f"mode must be one of {', '.join(get_args(Mode))}, not {mode!r}")
    if rerank not in (None, "colbert"):
        raise InputError(f"rerank must be 'colbert' or None, not {rerank!r}")


_ADVICE = {
    "dense": "which this mode needs; take a model that does",
    "sparse": "which this mode needs; search with mode='dense', or set a sparse_model beside it",
    "colbert": "which rerank='colbert' needs; leave it out, or take bge-m3",
}


def _check_heads(embedder: TextEmbedder, mode: str, rerank: str | None) -> None:
    needed = {"hybrid": ["dense", "sparse"], "dense": ["dense"], "sparse": ["sparse"]}[mode]
    for head in [*needed, rerank] if rerank else needed:
        if head not in embedder.heads:
            raise InputError(
                f"{embedder.model_name!r} gives {' and '.join(embedder.heads)} vectors, no {head} "
                f"ones, {_ADVICE[head]}"
            )


def check_counts(top_k: Any, candidates: Any, rrf_k: Any) -> None:
    """Refuse counts that are no whole numbers in range.

    Raises:
        InputError: If they are not; the first one is named.
    """
    for name, value, least in (
        ("similarity_top_k", top_k, 1),
        ("candidates", candidates, 1),
        ("rrf_k", rrf_k, 0),
    ):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise InputError(f"{name} must be a whole number >= {least}, got {value!r}")


def are_weights(weights: Any) -> bool:
    """Whether these are two finite weights >= 0, not both 0."""
    return (
        isinstance(weights, Sequence)
        and len(weights) == 2
        and all(isinstance(w, int | float) and 0 <= w < math.inf for w in weights)
        and sum(weights) > 0
    )


def _translate(store: QdrantVectorStore, filters: MetadataFilters | None) -> Any:
    """The filters as Qdrant's, by the store's own translation, minus what it would let slip."""
    if filters is None:
        return None
    _check_filters(filters)
    try:
        return store._build_query_filter(VectorStoreQuery(filters=filters))
    except (NotImplementedError, ValueError, TypeError) as error:
        raise InputError(
            f"the filter {filters} cannot be translated for Qdrant: {error}"
        ) from error


def _check_filters(filters: MetadataFilters) -> None:
    if not isinstance(filters, MetadataFilters):
        raise InputError(f"filters must be MetadataFilters, not {type(filters).__name__}")
    if filters.condition is None:
        raise InputError("filters need a condition (and, or, not); without one all would be lost")
    for index, one in enumerate(filters.filters):
        if isinstance(one, MetadataFilters):
            _check_filters(one)
        elif one.value is None and one.operator != FilterOperator.IS_EMPTY:
            raise InputError(
                f"operator {one.operator.value!r} on {one.key!r} needs a value; for fields without "
                "one use IS_EMPTY",
                index=index,
            )
        elif one.operator in _ORDER and not isinstance(one.value, int | float):
            raise InputError(
                f"operator {one.operator.value!r} on {one.key!r} compares numbers, got "
                f"{one.value!r}",
                index=index,
            )
        elif one.operator in (FilterOperator.IN, FilterOperator.NIN) and not isinstance(
            one.value, list | str
        ):
            raise InputError(
                f"operator {one.operator.value!r} on {one.key!r} needs a list of values, got "
                f"{one.value!r}",
                index=index,
            )


def _lists(vector: SparseVector) -> dict[str, Any]:
    return dict(vector.to_qdrant())
