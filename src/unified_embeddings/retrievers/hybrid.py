"""The hybrid retriever: one forward pass, one round trip to Qdrant, two rankings fused.

What lives here: LlamaIndex's BaseRetriever over a QdrantVectorStore. What does not: the question's
vectors (`questions`), and the search (`llama.hybrid_search`), which the store's own queries share.
"""

from __future__ import annotations

import asyncio
import copy
from functools import partial
from typing import Literal

from llama_index.core.callbacks import CallbackManager
from llama_index.core.schema import NodeWithScore, QueryBundle, QueryType
from llama_index.core.vector_stores.types import MetadataFilters
from llama_index.vector_stores.qdrant import QdrantVectorStore

from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.errors import InputError
from unified_embeddings.llama.filters import translate_filters
from unified_embeddings.llama.fingerprinted_store import FingerprintedStore
from unified_embeddings.llama.hybrid_search import SearchAnswer
from unified_embeddings.llama.known_keys import warn_of_unknown_keys
from unified_embeddings.llama.stock_arguments import RETRIEVER_ADVICE, Adopt, refuse_unknown
from unified_embeddings.llama.store_settings import fields_of, open_search
from unified_embeddings.models.fusion import PLAIN_CANDIDATES, Fusion
from unified_embeddings.retrievers.explain import Explaining
from unified_embeddings.retrievers.options import check_callbacks, check_store
from unified_embeddings.retrievers.questions import embed_question
from unified_embeddings.retrievers.timing import (
    SearchCounters,
    SearchStats,
    atimed,
    note_points,
    timed,
)
from unified_embeddings.search.options import (
    Auto,
    FusionOption,
    Mode,
    Score,
    check_heads,
    check_mode,
    check_score,
    choose_fusion,
    is_auto,
)
from unified_embeddings.search.plan import SearchPlan
from unified_embeddings.search.query_vectors import QueryVectors
from unified_embeddings.stores.schema import check_adopt
from unified_embeddings.validation import require_whole_number


class UnifiedHybridRetriever(Explaining):
    """Retrieve by dense and sparse vectors, fused, as a LlamaIndex retriever.

    A query costs one forward pass (or a cache hit) and one round trip to Qdrant, which returns the
    two rankings. They are fused here: a node's score is Σ weight / (rrf_k + rank + 1) over the
    rankings that contain it, rank from 0. Such scores are small, below 0.08 with mini-m3's weights
    and k and below 0.04 with (1, 1) and 60, so the cutoff of a SimilarityPostprocessor has to be of
    that size. With DBSF it is Σ weight · normalised score (`fusion.dbsf`). In the modes "dense" and
    "sparse" the score is the vectors' own similarity, or their distance where another software's
    collection measures that: the smallest is the best then. After reranking it is the ColBERT
    score.

    A node's ranks and scores in the lists are in its metadata under "_retrieval", which is neither
    embedded nor stored nor shown to an LLM. `explain` tells where they come from. Where relevance
    is calibrated, it has "relevance" and "weak" too, whichever `score` is asked for: a weak
    question has, more likely than not, no relevant node among the first ten.

    The same question to an unchanged collection gets the same answer. Nodes with equal scores are
    ordered by the better of their two ranks, then by id; in one ranking, scores that differ by less
    than 1e-6 are equal, and ordered by id. This holds for ties of up to 1,000 points in a ranking;
    which of more come first is up to Qdrant. A larger `similarity_top_k` only appends nodes, as
    long as it is not above `candidates`.

    Args:
        vector_store: A store made by `UnifiedEmbeddingConfig.vector_store`, or any other
            QdrantVectorStore that holds vectors of this embedder's model.
        embedder: Embeds the questions.
        similarity_top_k: Maximum number of nodes returned.
        candidates: Depth of each ranking that is fused, and number of nodes that are reranked; at
            least `similarity_top_k`. "auto" fuses as deep as `fusion` says, or 20 deep if you give
            weights, and reranks 20 nodes.
        rrf_k: RRF's damping, >= 0. "auto" takes that of `fusion`, or 60 if you give weights.
        weights: Weights of the dense and the sparse ranking in RRF, and of the collection's keyword
            list, which two weights leave out. "auto" takes those of `fusion`; (1, 1) is plain RRF.
        fusion: How the rankings are fused. "auto" takes what was chosen for the collection
            (`unified-embeddings tune`), or what suits its keyword list, or else the model's own,
            `embedder.fusion`; "model" takes the model's own. A `Fusion` of yours takes neither
            weights nor rrf_k beside it.
        mode: "hybrid", "dense" or "sparse".
        rerank: "colbert" scores the candidates against the question token by token: in the same
            request where the points hold ColBERT vectors (`vector_store(colbert=...)`), or else by
            encoding their texts, and the log says beforehand how long that takes.
        score: "rrf" gives the fused score, whatever the fusion. "relevance" gives how likely a node
            is relevant, from 0 to 1, in the same order; docs/scores.md says what that counts. It
            needs the mode "hybrid", a fusion without a keyword list, and a calibration: the
            collection's own (`unified-embeddings tune --calibrate`) or the model's,
            `embedder.calibration`.
        filters: LlamaIndex's metadata filters, applied to both rankings; `llama.filters` says what
            each means. Where nothing is found, a key that no passage has is logged, once.
        adopt: "trust" accepts a collection that does not record which model made it, as one that
            was made with this model. None takes over what the store was opened with.
        callback_manager: LlamaIndex's, passed to BaseRetriever.

    Raises:
        InputError: If an option is out of range, or a filter cannot be translated.
        FingerprintMismatchError: If the collection was made with another model. It is checked
            here, or at the first query if it does not exist yet.
        StoreError: If Qdrant cannot be reached, or the collection lacks the vectors that the mode
            needs, or it does not record its model and `adopt` is not given, or the fusion chosen
            for it cannot be read.

    Example:
        >>> from llama_index.core.schema import TextNode
        >>> from qdrant_client import QdrantClient
        >>> from unified_embeddings import UnifiedHybridRetriever, UnifiedTextEmbedding
        >>> from unified_embeddings.embedders.fake import FakeEmbedder
        >>> from unified_embeddings.llama.vector_store import build_vector_store
        >>> embedder = FakeEmbedder()
        >>> store = build_vector_store(embedder, "docs", client=QdrantClient(":memory:"))
        >>> nodes = [TextNode(text="Foxes jump over dogs."), TextNode(text="The sea is calm.")]
        >>> ids = store.add(UnifiedTextEmbedding(embedder)(nodes))
        >>> retriever = UnifiedHybridRetriever(
        ...     store, embedder, similarity_top_k=1, weights=(1, 1)
        ... )
        >>> best = retriever.retrieve("Which foxes jump?")[0]
        >>> best.text, round(best.score, 4)    # first in both rankings: 2/61
        ('Foxes jump over dogs.', 0.0328)
    """

    @refuse_unknown(RETRIEVER_ADVICE)
    def __init__(
        self,
        vector_store: QdrantVectorStore,
        embedder: TextEmbedder,
        *,
        similarity_top_k: int = 10,
        candidates: int | Auto = "auto",
        rrf_k: int | Auto = "auto",
        weights: tuple[float, ...] | Auto = "auto",
        fusion: FusionOption = "auto",
        mode: Mode = "hybrid",
        rerank: Literal["colbert"] | None = None,
        score: Score = "rrf",
        filters: MetadataFilters | None = None,
        adopt: Adopt | None = None,
        callback_manager: CallbackManager | None = None,
    ) -> None:
        self._top_k = require_whole_number("similarity_top_k", similarity_top_k)
        self._choose_fusion = partial(
            choose_fusion,
            embedder.fusion,
            candidates=candidates,
            rrf_k=rrf_k,
            weights=weights,
            fusion=fusion,
        )
        unchosen = self._choose_fusion()  # rejects options out of range
        self._takes_choice = mode == "hybrid" and is_auto(fusion) and is_auto(weights)
        check_mode(mode, rerank)
        check_score(score, mode, rerank)
        check_store(vector_store)
        check_heads(embedder, mode, rerank)
        check_adopt(adopt)
        check_callbacks(callback_manager)
        self._store = vector_store
        self._search = open_search(vector_store, embedder, adopt)
        self._embedder = embedder
        self._mode = mode
        self._rerank = rerank
        self._score = score
        # Reranking may run the model over each text, which costs far more than searching deeper,
        # and deeper reranking is no better (docs/late-interaction.md).
        self._reranked = PLAIN_CANDIDATES if is_auto(candidates) else unchosen.candidates
        self._fields = fields_of(vector_store)
        self._filters = filters
        self._filter = translate_filters(filters, self._fields)
        self.searches = SearchCounters(mode)
        super().__init__(callback_manager=callback_manager)
        if self._search.reader.has_sync_client and self._search.reader.exists():
            self._search.collection.check(mode)
            _ = self._plan()  # rejects a choice or a calibration that cannot be read, or is missing

    @property
    def fusion(self) -> Fusion:
        """Return how rankings are fused, and where that comes from.

        A collection's own choice is known once the collection was looked at: when the retriever is
        made, or at the first query if the collection did not exist yet or the store has only an
        async client.

        Raises:
            StoreError: If the collection's own choice cannot be read.
        """
        if self._takes_choice:
            return self._choose_fusion(chosen=self._search.collection.read_choice())
        return self._choose_fusion()

    def stats(self) -> tuple[SearchStats, ...]:
        """Return how many searches there were since it was made, and how long they took."""
        return self.searches.stats()

    def __deepcopy__(self, memo: dict[int, object]) -> UnifiedHybridRetriever:
        """Return a copy over the same store and embedder, which can be shared but not copied."""
        return copy.copy(self)

    def __copy__(self) -> UnifiedHybridRetriever:
        """Return a copy over the same search."""
        retriever = object.__new__(type(self))
        retriever.__dict__.update(self.__dict__)
        return retriever

    def __getstate__(self) -> dict[str, object]:
        """Return what is pickled.

        Raises:
            InputError: If the store is a stock one, which loses its clients when it is pickled.
        """
        if not isinstance(self._store, FingerprintedStore):
            raise InputError(
                f"a retriever over a {type(self._store).__name__} cannot be pickled, since its "
                "client cannot; open the store with UnifiedEmbeddingConfig.vector_store()"
            )
        return self.__dict__

    # --- searching ------------------------------------------------------------------------------

    def retrieve(
        self,
        str_or_query_bundle: QueryType,
        *,
        similarity_top_k: int | None = None,
        filters: MetadataFilters | None = None,
    ) -> list[NodeWithScore]:
        """Return the nodes that answer a question best, best first.

        Args:
            str_or_query_bundle: The question.
            similarity_top_k: For this question, in place of the retriever's own.
            filters: For this question, in place of the retriever's own.

        Raises:
            InputError: If the question is not a text, or blank, or an option is out of range.
            FingerprintMismatchError: If the collection was made with another model.
            StoreError: If Qdrant fails, or the collection does not exist.
        """
        retriever = self._for_call(similarity_top_k, filters)
        return super(UnifiedHybridRetriever, retriever).retrieve(
            _require_question(str_or_query_bundle)
        )

    async def aretrieve(
        self,
        str_or_query_bundle: QueryType,
        *,
        similarity_top_k: int | None = None,
        filters: MetadataFilters | None = None,
    ) -> list[NodeWithScore]:
        """Like `retrieve`, but without blocking the event loop."""
        retriever = self._for_call(similarity_top_k, filters)
        return await super(UnifiedHybridRetriever, retriever).aretrieve(
            _require_question(str_or_query_bundle)
        )

    def _for_call(
        self, similarity_top_k: int | None, filters: MetadataFilters | None
    ) -> UnifiedHybridRetriever:
        """Return the retriever with the options of one call, over the same search."""
        if similarity_top_k is None and filters is None:
            return self
        retriever = copy.copy(self)
        if similarity_top_k is not None:
            retriever._top_k = require_whole_number("similarity_top_k", similarity_top_k)
        if filters is not None:
            retriever._filters = filters
            retriever._filter = translate_filters(filters, self._fields)
        return retriever

    @timed
    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        self._search.collection.check(self._mode)
        query = self._embed(query_bundle)
        answer = self._search.search(query, self._plan())
        if not answer.nodes and isinstance(self._store, FingerprintedStore):
            warn_of_unknown_keys(self._store, self._filters)
        return _note_answer(query, answer)

    @atimed
    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        await self._search.collection.acheck(self._mode)
        # The model can take seconds, so it runs in a worker thread.
        query = await self._embedder.in_thread(partial(self._embed, query_bundle))
        answer = await self._search.asearch(query, self._plan())
        if not answer.nodes and isinstance(self._store, FingerprintedStore):
            await asyncio.to_thread(warn_of_unknown_keys, self._store, self._filters)
        return _note_answer(query, answer)

    def _embed(self, bundle: QueryBundle) -> QueryVectors:
        return embed_question(
            self._embedder,
            bundle,
            mode=self._mode,
            rerank=self._rerank is not None,
            callback_manager=self.callback_manager,
        )

    def _plan(self) -> SearchPlan:
        """Return what a question is to find."""
        fusion = self.fusion
        calibration = None
        if self._mode == "hybrid":
            calibration = self._search.collection.find_calibration(self._score, fusion)
        return SearchPlan(
            mode=self._mode,
            top_k=self._top_k,
            fusion=fusion,
            reranked=None if self._rerank is None else self._reranked,
            filter=self._filter,
            score=self._score,
            calibration=calibration,
        )


def _require_question(query: QueryType) -> QueryType:
    if not isinstance(query, str | QueryBundle):
        raise InputError(f"a query must be one str or QueryBundle, got {type(query).__name__}")
    return query


def _note_answer(query: QueryVectors, answer: SearchAnswer) -> list[NodeWithScore]:
    """Return the nodes found, and note the dense list's best score for those who watch."""
    if answer.branches and answer.branches[0].list_name == "dense":
        note_points(query.dense, answer.rankings[0])
    return answer.nodes
