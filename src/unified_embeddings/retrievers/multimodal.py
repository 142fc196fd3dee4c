"""Texts and images in one answer: hybrid text search and CLIP search, fused by rank.

What lives here: LlamaIndex's BaseRetriever over a store of texts and a store of images. What does
not: searching one store (`hybrid`), the vectors (`embedder`, `images`), the arithmetic (`fusion`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, Literal

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.callbacks import CallbackManager
from llama_index.core.schema import BaseNode, NodeWithScore, QueryBundle, QueryType
from llama_index.core.vector_stores.types import MetadataFilters
from llama_index.vector_stores.qdrant import QdrantVectorStore

from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.embedders.clip import ClipEmbedder
from unified_embeddings.embedders.clip_text import ClipTextEmbedder
from unified_embeddings.errors import InputError
from unified_embeddings.fusion import rrf
from unified_embeddings.retrievers.hybrid import (
    Mode,
    UnifiedHybridRetriever,
    are_weights,
    check_counts,
)


class UnifiedMultiModalRetriever(BaseRetriever):
    """Retrieve texts and images by a text, images by an image, or both by both.

    A text is searched for in the text store (dense and sparse, fused) and, through CLIP, in the
    image store. An image, given as `QueryBundle(query_str="", image_path=...)`, is searched for in
    the image store. The lists are fused by rank, since their scores do not compare: a node's score
    is the sum of weight / (rrf_k + rank + 1) over the lists it is in, rank from 0. An image with a
    caption stands in both stores under one id, and is found by either, or both.

    Args:
        vector_store: The texts, as `UnifiedEmbeddingConfig.vector_store` builds it.
        image_store: The images, as `UnifiedEmbeddingConfig.image_store` builds it.
        embedder: Embeds questions for the text store.
        clip: Embeds questions and images for the image store.
        similarity_top_k: Nodes returned at most.
        candidates: Nodes each list brings into the fusion; at least `similarity_top_k`.
        rrf_k: RRF's damping.
        weights: Of the texts and the images; 0 leaves one out.
        mode: How texts are searched: "hybrid", "dense" or "sparse"; None takes "hybrid" where the
            embedder gives sparse vectors.
        rerank: "colbert" reranks the texts found before they are fused.
        filters: LlamaIndex's metadata filters, applied to both stores.
        callback_manager: As every BaseRetriever has it.

    Raises:
        InputError: If an option is out of range or a filter cannot be translated.
        FingerprintMismatchError: If a collection was made with another model.
        StoreError: If Qdrant cannot be reached, or lacks the vectors needed.
    """

    def __init__(
        self,
        vector_store: QdrantVectorStore,
        image_store: QdrantVectorStore,
        embedder: TextEmbedder,
        clip: ClipEmbedder,
        *,
        similarity_top_k: int = 10,
        candidates: int = 20,
        rrf_k: int = 60,
        weights: tuple[float, float] = (1.0, 1.0),
        mode: Mode | None = None,
        rerank: Literal["colbert"] | None = None,
        filters: MetadataFilters | None = None,
        callback_manager: CallbackManager | None = None,
    ) -> None:
        if not are_weights(weights):
            raise InputError(
                f"weights must be two numbers >= 0, texts and images, not both 0; got {weights!r}"
            )
        if mode is None:
            mode = "hybrid" if "sparse" in embedder.heads else "dense"
        check_counts(similarity_top_k, candidates, rrf_k)
        shared: dict[str, Any] = {
            "similarity_top_k": max(candidates, similarity_top_k),
            "candidates": candidates,
            "rrf_k": rrf_k,
            "filters": filters,
        }
        self._texts = UnifiedHybridRetriever(
            vector_store, embedder, mode=mode, rerank=rerank, **shared
        )
        self._images = UnifiedHybridRetriever(
            image_store, ClipTextEmbedder(clip), mode="dense", **shared
        )
        self._clip = clip
        self._top_k = similarity_top_k
        self._rrf_k = rrf_k
        self._weights = weights
        super().__init__(callback_manager=callback_manager)

    def retrieve(self, str_or_query_bundle: QueryType) -> list[NodeWithScore]:
        """The nodes that answer best, texts and images, best first.

        Raises:
            InputError: If there is neither text nor image in the question, or the image cannot be
                read.
            FingerprintMismatchError: If a collection was made with another model.
            StoreError: If Qdrant fails, or a collection does not exist.
        """
        return super().retrieve(_question(str_or_query_bundle))

    async def aretrieve(self, str_or_query_bundle: QueryType) -> list[NodeWithScore]:
        """As `retrieve`, without blocking the event loop."""
        return await super().aretrieve(_question(str_or_query_bundle))

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        searches = self._searches(query_bundle)
        return self._fuse(
            [(weight, search._retrieve(bundle)) for weight, search, bundle in searches]
        )

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        searches = await asyncio.to_thread(self._searches, query_bundle)
        found = await asyncio.gather(*(search._aretrieve(bundle) for _, search, bundle in searches))
        weights = (weight for weight, _, _ in searches)
        return self._fuse(zip(weights, found, strict=True))

    def _searches(
        self, bundle: QueryBundle
    ) -> list[tuple[float, UnifiedHybridRetriever, QueryBundle]]:
        """What to search for, where, and how much it counts."""
        for_texts, for_images = self._weights
        searches = []
        if bundle.query_str.strip():
            words = QueryBundle(
                bundle.query_str, custom_embedding_strs=bundle.custom_embedding_strs
            )
            words.embedding = bundle.embedding
            searches += [
                (for_texts, self._texts, words),
                (for_images, self._images, QueryBundle(bundle.query_str)),
            ]
        if bundle.image_path and for_images > 0:
            (vector,) = self._encoded(bundle.image_path)
            searches.append((for_images, self._images, QueryBundle("", embedding=vector)))
        return [search for search in searches if search[0] > 0]

    def _encoded(self, image: str) -> list[list[float]]:
        try:
            rows: list[list[float]] = self._clip.encode_images([image]).dense.tolist()
        except InputError as error:
            problem = str(error).removeprefix("item 0: ")
            raise InputError(f"the question's image: {problem}") from error
        return rows

    def _fuse(self, found: Iterable[tuple[float, list[NodeWithScore]]]) -> list[NodeWithScore]:
        nodes: dict[str, BaseNode] = {}
        rankings, weights = [], []
        for weight, ranking in found:
            rankings.append([scored.node.node_id for scored in ranking])
            weights.append(weight)
            nodes |= {scored.node.node_id: scored.node for scored in ranking}
        fused = rrf(rankings, self._rrf_k, weights)[: self._top_k]
        return [NodeWithScore(node=nodes[node_id], score=score) for node_id, score in fused]


def _question(query: QueryType) -> QueryBundle:
    if isinstance(query, str):
        query = QueryBundle(query)
    if not isinstance(query, QueryBundle):
        raise InputError(f"a query must be one str or QueryBundle, got {type(query).__name__}")
    if not isinstance(query.query_str, str):
        raise InputError(f"a query's text must be a str, got {type(query.query_str).__name__}")
    if not query.query_str.strip() and not query.image_path:
        raise InputError(
            "a query needs a text or an image; give an image as "
            'QueryBundle(query_str="", image_path=...)'
        )
    return query
