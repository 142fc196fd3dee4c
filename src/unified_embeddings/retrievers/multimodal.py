"""Texts and images in one answer: hybrid text search and CLIP search, fused by rank.

What lives here: LlamaIndex's BaseRetriever over a store of texts and a store of images. What does
not: searching one store (`hybrid`), the vectors (`embedders`), the arithmetic (`fusion`).
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

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
from unified_embeddings.llama.stock_arguments import RETRIEVER_ADVICE, Adopt, refuse_unknown
from unified_embeddings.models.fusion import PLAIN_CANDIDATES
from unified_embeddings.retrievers.embedding_events import embedding_events
from unified_embeddings.retrievers.hybrid import UnifiedHybridRetriever
from unified_embeddings.retrievers.timing import SearchCounters, SearchStats, atimed, timed
from unified_embeddings.search.options import Auto, Mode, choose_fusion
from unified_embeddings.validation import require_weights, require_whole_number


@dataclass(frozen=True)
class _Search:
    """One of the searches that a question consists of.

    Attributes:
        retriever: Which store to search, and how.
        bundle: What to search it for.
        weight: Weight of its ranking in the fusion, > 0.
    """

    retriever: UnifiedHybridRetriever
    bundle: QueryBundle
    weight: float


class UnifiedMultiModalRetriever(BaseRetriever):
    """Retrieve texts and images by a text, images by an image, or both by both.

    A text is searched for in the text store (dense and sparse, fused) and, through CLIP, in the
    image store. An image, given as `QueryBundle(query_str="", image_path=...)`, is searched for in
    the image store. The rankings are fused by rank, since their scores are not comparable: a node's
    score is the sum of weight / (rrf_k + rank + 1) over the rankings that contain it, rank from 0.
    Nodes with equal scores are ordered by the better of their ranks, then by id. An image with a
    caption is in both stores under the same id, and can be found through either.

    Args:
        vector_store: The texts; a store made by `UnifiedEmbeddingConfig.vector_store`.
        image_store: The images; a store made by `UnifiedEmbeddingConfig.image_store`.
        embedder: Embeds questions for the text store.
        clip: Embeds questions and images for the image store.
        similarity_top_k: Maximum number of nodes returned.
        candidates: Depth of each ranking that is fused; at least `similarity_top_k`.
        rrf_k: RRF's damping, >= 0. "auto" fuses texts with images by 60, and the texts' own two
            rankings as their model does.
        weights: Weights of the texts and the images; 0 leaves one out. The texts' own two rankings
            are weighted as their model does.
        mode: How texts are searched: "hybrid", "dense" or "sparse". None means "hybrid" if the
            embedder gives sparse vectors, and "dense" otherwise.
        rerank: "colbert" reranks the texts before they are fused with the images.
        filters: LlamaIndex's metadata filters, applied to both stores.
        adopt: "trust" accepts collections that do not record which model made them.
        callback_manager: LlamaIndex's, passed to BaseRetriever.

    Raises:
        InputError: If an option is out of range, or a filter cannot be translated.
        FingerprintMismatchError: If a collection was made with another model.
        StoreError: If Qdrant cannot be reached, or a collection lacks the vectors needed.

    Example:
        Lines marked SKIP need a CLIP's weights.

        >>> from llama_index.core.schema import QueryBundle
        >>> from qdrant_client import QdrantClient
        >>> from unified_embeddings import ClipEmbedder, UnifiedMultiModalRetriever
        >>> from unified_embeddings.embedders.clip_text import ClipTextEmbedder
        >>> from unified_embeddings.embedders.fake import FakeEmbedder
        >>> from unified_embeddings.llama.vector_store import build_vector_store
        >>> client, embedder = QdrantClient(":memory:"), FakeEmbedder()
        >>> clip = ClipEmbedder("openai/clip-vit-base-patch32")
        >>> texts = build_vector_store(embedder, "texts", client=client)
        >>> images = build_vector_store(    # doctest: +SKIP
        ...     ClipTextEmbedder(clip), "images", client=client
        ... )
        >>> retriever = UnifiedMultiModalRetriever(    # doctest: +SKIP
        ...     texts, images, embedder, clip
        ... )
        >>> retriever.retrieve("Which foxes jump?")    # doctest: +SKIP
        >>> retriever.retrieve(QueryBundle("", image_path="fox.jpg"))    # doctest: +SKIP
    """

    @refuse_unknown(RETRIEVER_ADVICE)
    def __init__(
        self,
        vector_store: QdrantVectorStore,
        image_store: QdrantVectorStore,
        embedder: TextEmbedder,
        clip: ClipEmbedder,
        *,
        similarity_top_k: int = 10,
        candidates: int = PLAIN_CANDIDATES,
        rrf_k: int | Auto = "auto",
        weights: tuple[float, float] = (1.0, 1.0),
        mode: Mode | None = None,
        rerank: Literal["colbert"] | None = None,
        filters: MetadataFilters | None = None,
        adopt: Adopt | None = None,
        callback_manager: CallbackManager | None = None,
    ) -> None:
        self._text_weight, self._image_weight = require_weights(weights, of="texts and images")
        self._top_k = require_whole_number("similarity_top_k", similarity_top_k)
        fusion = choose_fusion(embedder.fusion, candidates=candidates, rrf_k=rrf_k, weights=weights)
        self._rrf_k = fusion.k
        if mode is None:
            mode = "hybrid" if "sparse" in embedder.heads else "dense"
        # Each store has to yield as many nodes as are fused, not as are returned.
        make_retriever = partial(
            UnifiedHybridRetriever,
            similarity_top_k=max(fusion.candidates, self._top_k),
            candidates=fusion.candidates,
            rrf_k=rrf_k,
            filters=filters,
            adopt=adopt,
            callback_manager=callback_manager,
        )
        self._text_retriever = make_retriever(vector_store, embedder, mode=mode, rerank=rerank)
        self._image_retriever = make_retriever(image_store, ClipTextEmbedder(clip), mode="dense")
        self._clip = clip
        self.searches = SearchCounters("multimodal")
        super().__init__(callback_manager=callback_manager)

    def stats(self) -> tuple[SearchStats, ...]:
        """Return how many searches there were since it was made, and how long they took.

        The searches of each half are counted by mode as well, after the whole ones.
        """
        halves = (self._text_retriever, self._image_retriever)
        return self.searches.stats() + tuple(stats for half in halves for stats in half.stats())

    def __deepcopy__(self, memo: dict[int, object]) -> UnifiedMultiModalRetriever:
        """Return a copy over the same stores and embedders."""
        return copy.copy(self)

    def retrieve(self, str_or_query_bundle: QueryType) -> list[NodeWithScore]:
        """Return the texts and images that answer a question best, best first.

        Raises:
            InputError: If the question has neither a text nor an image, or its image cannot be
                read.
            FingerprintMismatchError: If a collection was made with another model.
            StoreError: If Qdrant fails, or a collection does not exist.
        """
        return super().retrieve(_to_bundle(str_or_query_bundle))

    async def aretrieve(self, str_or_query_bundle: QueryType) -> list[NodeWithScore]:
        """Like `retrieve`, but without blocking the event loop."""
        return await super().aretrieve(_to_bundle(str_or_query_bundle))

    @timed
    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        searches = self._plan_searches(query_bundle)
        rankings = [search.retriever._retrieve(search.bundle) for search in searches]
        return self._fuse(searches, rankings)

    @atimed
    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        searches = await asyncio.to_thread(self._plan_searches, query_bundle)
        running = [search.retriever._aretrieve(search.bundle) for search in searches]
        return self._fuse(searches, await asyncio.gather(*running))

    def _plan_searches(self, bundle: QueryBundle) -> list[_Search]:
        """Return the searches for a question, without those of weight 0.

        The question's image is embedded here, and not even read if images have no weight.
        """
        has_text = bool(bundle.query_str.strip())
        searches = []
        if has_text and self._text_weight > 0:
            words = QueryBundle(
                bundle.query_str,
                custom_embedding_strs=bundle.custom_embedding_strs,
                embedding=bundle.embedding,
            )
            searches.append(_Search(self._text_retriever, words, self._text_weight))
        if has_text and self._image_weight > 0:
            # A bundle's own embedding belongs to the text model, so CLIP embeds the text itself.
            words = QueryBundle(bundle.query_str)
            searches.append(_Search(self._image_retriever, words, self._image_weight))
        if bundle.image_path and self._image_weight > 0:
            picture = QueryBundle("", embedding=self._embed_image(bundle.image_path))
            searches.append(_Search(self._image_retriever, picture, self._image_weight))
        return searches

    def _embed_image(self, image: str) -> list[float]:
        """Return the vector of a question's image, `dimension` numbers."""
        try:
            with embedding_events(
                self.callback_manager, self._clip.model_name, [str(image)], dense=True
            ) as embedded:
                vectors = embedded.dense = self._clip.encode_images([image]).dense
        except InputError as error:
            # The question has one image, so its position in a list would only confuse.
            raise InputError(f"the question's image: {error.problem}") from error
        vector: list[float] = vectors[0].tolist()
        return vector

    def _fuse(
        self, searches: Sequence[_Search], rankings: Sequence[list[NodeWithScore]]
    ) -> list[NodeWithScore]:
        """Return the best nodes of several rankings, fused by rank."""
        nodes_by_id: dict[str, BaseNode] = {}
        for ranking in rankings:
            # The image store comes last. An image with a caption is taken from there.
            nodes_by_id.update((scored.node.node_id, scored.node) for scored in ranking)
        ids_by_rank = [[scored.node.node_id for scored in ranking] for ranking in rankings]
        weights = [search.weight for search in searches]
        best = rrf(ids_by_rank, self._rrf_k, weights, tie_key=str)[: self._top_k]
        return [NodeWithScore(node=nodes_by_id[node_id], score=score) for node_id, score in best]


def _to_bundle(query: QueryType) -> QueryBundle:
    """Return a question as a bundle, and reject one with nothing to search for."""
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
