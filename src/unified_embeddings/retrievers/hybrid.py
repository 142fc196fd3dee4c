"""The hybrid retriever: one forward pass, one round trip to Qdrant, two rankings fused.

What lives here: LlamaIndex's BaseRetriever over a QdrantVectorStore. What does not: the checks of
its options (`options`), the question's vectors (`questions`), the order of equal scores
(`ranking`), and fusing (`fusing`).
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Sequence
from functools import partial
from typing import Literal

from llama_index.core.callbacks import CallbackManager
from llama_index.core.schema import NodeWithScore, QueryBundle, QueryType
from llama_index.core.vector_stores.types import MetadataFilters
from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import models as qm

from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.errors import InputError
from unified_embeddings.llama.filters import translate_filters
from unified_embeddings.llama.fingerprinted_store import FingerprintedStore
from unified_embeddings.llama.stock_arguments import RETRIEVER_ADVICE, Adopt, refuse_unknown
from unified_embeddings.models.fusion import PLAIN_CANDIDATES, Fusion
from unified_embeddings.retrievers.branches import Branch
from unified_embeddings.retrievers.collection_reader import CollectionReader
from unified_embeddings.retrievers.explain import Explaining
from unified_embeddings.retrievers.fusing import fuse
from unified_embeddings.retrievers.node_ranks import note_ranks
from unified_embeddings.retrievers.options import (
    Auto,
    FusionOption,
    Mode,
    check_callbacks,
    check_heads,
    check_mode,
    check_store,
    choose_fusion,
    is_auto,
)
from unified_embeddings.retrievers.questions import QueryVectors, embed_question
from unified_embeddings.retrievers.ranking import (
    first_limit,
    next_limit,
    order_points,
)
from unified_embeddings.retrievers.reranking import rerank_nodes
from unified_embeddings.retrievers.timing import (
    SearchCounters,
    SearchStats,
    atimed,
    note_points,
    timed,
)
from unified_embeddings.stores.fusion_choice import read_choice
from unified_embeddings.stores.schema import check_adopt, check_collection
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
    embedded nor stored nor shown to an LLM. `explain` tells where they come from.

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
        weights: Weights of the dense and the sparse ranking in RRF. "auto" takes those of `fusion`;
            (1, 1) is plain RRF.
        fusion: How the two rankings are fused. "auto" takes what was chosen for the collection
            (`unified-embeddings tune`), or else the model's own, `embedder.fusion`; "model" takes
            the model's own. A `Fusion` of yours takes neither weights nor rrf_k beside it.
        mode: "hybrid", "dense" or "sparse".
        rerank: "colbert" scores the candidates' texts against the question token by token.
        filters: LlamaIndex's metadata filters, applied to both rankings; `llama.filters` says what
            each means.
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
        weights: tuple[float, float] | Auto = "auto",
        fusion: FusionOption = "auto",
        mode: Mode = "hybrid",
        rerank: Literal["colbert"] | None = None,
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
        self._fusion = self._choose_fusion()
        self._takes_choice = mode == "hybrid" and is_auto(fusion) and is_auto(weights)
        check_mode(mode, rerank)
        check_store(vector_store)
        check_heads(embedder, mode, rerank)
        check_adopt(adopt)
        check_callbacks(callback_manager)
        self._adopt = adopt or _adopt_of(vector_store)
        self._store = vector_store
        self._embedder = embedder
        self._mode = mode
        self._rerank = rerank
        # Reranking runs the model over each text, which costs far more than searching deeper.
        reranked = PLAIN_CANDIDATES if is_auto(candidates) else self._fusion.candidates
        self._reranked = max(reranked, self._top_k)
        self._filter = translate_filters(filters)
        self._reader = CollectionReader(vector_store)
        self._dense_name = vector_store.dense_vector_name
        self.searches = SearchCounters(mode, self._top_k)
        self._collection_is_checked = False
        super().__init__(callback_manager=callback_manager)
        if self._reader.has_sync_client and self._reader.exists():
            self._check_collection(self._reader.look_up())

    @property
    def fusion(self) -> Fusion:
        """Return how rankings are fused, and where that comes from.

        A collection's own choice is known once the collection was looked at: when the retriever is
        made, or at the first query if the collection did not exist yet or the store has only an
        async client.
        """
        return self._fusion

    def stats(self) -> tuple[SearchStats, ...]:
        """Return how many searches there were since it was made, and how long they took."""
        return self.searches.stats()

    def __deepcopy__(self, memo: dict[int, object]) -> UnifiedHybridRetriever:
        """Return a copy over the same store and embedder, which can be shared but not copied."""
        return copy.copy(self)

    def retrieve(self, str_or_query_bundle: QueryType) -> list[NodeWithScore]:
        """Return the nodes that answer a question best, best first.

        Raises:
            InputError: If the question is not a text, or blank.
            FingerprintMismatchError: If the collection was made with another model.
            StoreError: If Qdrant fails, or the collection does not exist.
        """
        return super().retrieve(_require_question(str_or_query_bundle))

    async def aretrieve(self, str_or_query_bundle: QueryType) -> list[NodeWithScore]:
        """Like `retrieve`, but without blocking the event loop."""
        return await super().aretrieve(_require_question(str_or_query_bundle))

    @timed
    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        if not self._collection_is_checked:
            self._check_collection(self._reader.look_up())
        query = self._embed(query_bundle)
        branches = self._build_branches(query)
        return self._build_answer(query, branches, self._search(branches))

    @atimed
    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        # The check may resolve the model's files, and the other two steps may run the model. Each
        # can take seconds, so they run in worker threads.
        if not self._collection_is_checked:
            info = await self._reader.alook_up()
            await asyncio.to_thread(self._check_collection, info)
        query = await self._embedder.in_thread(partial(self._embed, query_bundle))
        branches = self._build_branches(query)
        rankings = await self._asearch(branches)
        build_answer = partial(self._build_answer, query, branches, rankings)
        return await self._embedder.in_thread(build_answer)

    def _embed(self, bundle: QueryBundle) -> QueryVectors:
        return embed_question(
            self._embedder,
            bundle,
            mode=self._mode,
            rerank=self._rerank is not None,
            callback_manager=self.callback_manager,
        )

    # --- the round trip to Qdrant ---------------------------------------------------------------

    @property
    def _answer_size(self) -> int:
        """How many nodes the search has to yield: those returned, or those to rerank."""
        return self._top_k if self._rerank is None else self._reranked

    @property
    def _depth(self) -> int:
        """How many points of each ranking are needed."""
        if self._mode == "hybrid":
            return max(self._fusion.candidates, self._answer_size)
        return self._answer_size

    def _build_branches(self, query: QueryVectors) -> list[Branch]:
        """Return the searches that the question's vectors allow, the dense one first.

        A ranking of weight 0 would add nothing, so it is not searched for.
        """
        dense_weight, sparse_weight = 1.0, 1.0
        if self._mode == "hybrid":
            dense_weight, sparse_weight = self._fusion.weights
        branches = []
        if query.dense is not None and dense_weight > 0:
            branches.append(
                Branch(
                    vector=query.dense.tolist(),
                    vector_name=self._dense_name or None,
                    weight=dense_weight,
                )
            )
        # A question made of unknown or special tokens alone has no lexical weights.
        if query.sparse is not None and len(query.sparse) > 0 and sparse_weight > 0:
            branches.append(
                Branch(
                    vector=qm.SparseVector(
                        indices=query.sparse.indices.tolist(), values=query.sparse.values.tolist()
                    ),
                    vector_name=self._store.sparse_vector_name,
                    weight=sparse_weight,
                )
            )
        return branches

    def _build_requests(self, branches: Sequence[Branch], limit: int) -> list[qm.QueryRequest]:
        """Return the requests to send in one batch, one for each ranking.

        Each asks for payloads, which a batch leaves out otherwise.
        """
        return [
            qm.QueryRequest(
                query=branch.vector,
                using=branch.vector_name,
                filter=self._filter,
                limit=limit,
                with_payload=True,
            )
            for branch in branches
        ]

    def _search(self, branches: Sequence[Branch]) -> list[list[qm.ScoredPoint]]:
        """Return what each search finds, deep enough that no tie is cut where it matters."""
        limit = first_limit(self._depth) if branches else None
        rankings: list[list[qm.ScoredPoint]] = []
        while limit is not None:
            rankings = self._reader.search(self._build_requests(branches, limit))
            limit = next_limit(rankings, self._depth, limit)
        return rankings

    async def _asearch(self, branches: Sequence[Branch]) -> list[list[qm.ScoredPoint]]:
        """Like `_search`, but without blocking the event loop."""
        limit = first_limit(self._depth) if branches else None
        rankings: list[list[qm.ScoredPoint]] = []
        while limit is not None:
            rankings = await self._reader.asearch(self._build_requests(branches, limit))
            limit = next_limit(rankings, self._depth, limit)
        return rankings

    # --- the answer -----------------------------------------------------------------------------

    def _build_answer(
        self,
        query: QueryVectors,
        branches: Sequence[Branch],
        rankings: Sequence[Sequence[qm.ScoredPoint]],
    ) -> list[NodeWithScore]:
        """Return the nodes found, best first, reranked if that was asked for."""
        if branches and branches[0].list_name == "dense":
            note_points(query.dense, rankings[0])
        ordered = [order_points(points)[: self._depth] for points in rankings]
        best: list[tuple[qm.ScoredPoint, float]] = []
        if self._mode == "hybrid":
            weights = [branch.weight for branch in branches]
            best = fuse(ordered, self._fusion, weights)[: self._answer_size]
        elif ordered:
            (best,) = ordered
        nodes = self._reader.to_nodes([point for point, _ in best], [score for _, score in best])
        lists = {
            branch.list_name: ranking for branch, ranking in zip(branches, ordered, strict=True)
        }
        note_ranks(nodes, best, lists, fused=self._mode == "hybrid")
        if query.colbert is None or not nodes:
            return nodes
        return rerank_nodes(self._embedder, query.colbert, nodes)[: self._top_k]

    # --- the collection -------------------------------------------------------------------------

    def _check_collection(self, info: qm.CollectionInfo) -> None:
        """Reject a collection whose vectors do not fit, and note the name of its dense ones."""
        vectors = info.config.params.vectors
        # LlamaIndex's older collections, and its stores without a hybrid mode, name no vectors.
        is_unnamed = isinstance(vectors, qm.VectorParams) or "" in (vectors or {})
        self._dense_name = "" if is_unnamed else self._store.dense_vector_name
        needed_dense = needed_sparse = None
        if self._mode != "sparse":
            needed_dense = self._dense_name
        if self._mode != "dense":
            needed_sparse = self._store.sparse_vector_name
        check_collection(
            self._reader.collection,
            info,
            self._embedder,
            dense=needed_dense,
            sparse=needed_sparse,
            adopt=self._adopt,
        )
        if self._takes_choice:
            choice = read_choice(self._reader.collection, info)
            self._fusion = self._choose_fusion(chosen=choice)
        self._collection_is_checked = True


def _adopt_of(vector_store: QdrantVectorStore) -> Adopt | None:
    """Return the `adopt` that a store was opened with; a store of other software has none."""
    if isinstance(vector_store, FingerprintedStore):
        return vector_store.adopt
    return None


def _require_question(query: QueryType) -> QueryType:
    if not isinstance(query, str | QueryBundle):
        raise InputError(f"a query must be one str or QueryBundle, got {type(query).__name__}")
    return query
