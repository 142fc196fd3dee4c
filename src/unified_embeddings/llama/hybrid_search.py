"""The one way in which a collection is searched: by a store's queries and by the retriever.

What lives here: one round trip for all lists, their order, their fusion, and the nodes. What does
not: what a caller may ask for (`queries`, `retrievers.hybrid`), the requests (`search.plan`), and
the vectors of a question.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from llama_index.core.schema import NodeWithScore
from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import models as qm

from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.errors import InputError
from unified_embeddings.llama.collection_reader import CollectionReader
from unified_embeddings.llama.node_ranks import note_ranks
from unified_embeddings.llama.reranking import rerank_nodes
from unified_embeddings.llama.stock_arguments import Adopt
from unified_embeddings.models.bm25 import KEYWORD_FUSION
from unified_embeddings.models.fusion import Fusion
from unified_embeddings.search.branches import Branch, ListName
from unified_embeddings.search.fusing import Ranking, fuse
from unified_embeddings.search.keywords import read_keywords
from unified_embeddings.search.options import Mode
from unified_embeddings.search.plan import (
    SearchPlan,
    build_branches,
    build_diverse_request,
    build_requests,
)
from unified_embeddings.search.query_vectors import QueryVectors
from unified_embeddings.search.ranking import first_limit, next_limits, order_points
from unified_embeddings.stores.fusion_choice import read_choice
from unified_embeddings.stores.keyword_list import KEYWORD_VECTOR
from unified_embeddings.stores.schema import check_collection


@dataclass(frozen=True)
class SearchAnswer:
    """What a search found.

    Attributes:
        nodes: The nodes, best first.
        branches: What was searched.
        rankings: The points of each list, as Qdrant returned them.
    """

    nodes: list[NodeWithScore]
    branches: Sequence[Branch] = ()
    rankings: Sequence[Sequence[qm.ScoredPoint]] = ()


class HybridSearch:
    """Search the lists of a collection in one round trip, and fuse them.

    The collection is looked up once, before the first search.

    Args:
        store: Over the collection, with a sync client, an async one, or both.
        embedder: Its model; it reranks.
        adopt: "trust" accepts a collection that does not record its model.
    """

    def __init__(
        self, store: QdrantVectorStore, embedder: TextEmbedder, *, adopt: Adopt | None = None
    ) -> None:
        self.reader = CollectionReader(store)
        self._store = store
        self._embedder = embedder
        self._adopt = adopt
        self._info: qm.CollectionInfo | None = None
        self._keywords: TextEmbedder | None = None
        self._checked_modes: frozenset[Mode] = frozenset()

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle store and model: a copy looks the collection up again."""
        return partial(HybridSearch, adopt=self._adopt), (self._store, self._embedder)

    # --- the collection -------------------------------------------------------------------------

    def check(self, mode: Mode, *, anew: bool = False) -> qm.CollectionInfo:
        """Look the collection up, unless that was done, and reject one that does not fit.

        Args:
            mode: Which of its vectors are needed.
            anew: Whether to look it up again.

        Raises:
            FingerprintMismatchError: If it was made with another model.
            StoreError: If it does not exist, lacks the vectors that the mode needs, or does not
                record its model, or Qdrant fails.
        """
        if self._info is None or anew:
            return self.check_info(self.reader.look_up(), mode)
        return self.check_info(self._info, mode)

    async def acheck(self, mode: Mode, *, anew: bool = False) -> qm.CollectionInfo:
        """Like `check`, but without blocking the event loop."""
        info = self._info
        if info is None or anew:
            info = await self.reader.alook_up()
        elif mode in self._checked_modes:
            return info
        # The model's fingerprint may read its files, which can take seconds.
        return await asyncio.to_thread(self.check_info, info, mode)

    def check_info(self, info: qm.CollectionInfo, mode: Mode) -> qm.CollectionInfo:
        """Reject a collection whose vectors do not fit, and keep what is known about it.

        Raises:
            FingerprintMismatchError, StoreError: Like `check`.
        """
        if info is self._info and mode in self._checked_modes:
            return info
        needed_dense = needed_sparse = None
        if mode != "sparse":
            needed_dense = self._find_dense_name(info)
        if mode != "dense":
            needed_sparse = self.sparse_name
        check_collection(
            self.reader.collection,
            info,
            self._embedder,
            dense=needed_dense,
            sparse=needed_sparse,
            adopt=self._adopt,
        )
        if mode == "hybrid":
            self._keywords = read_keywords(self.reader.collection, info)
        known_modes = self._checked_modes if info is self._info else frozenset[Mode]()
        self._info = info
        self._checked_modes = known_modes | {mode}
        return info

    def read_choice(self) -> Fusion | None:
        """Return the fusion that was chosen for the collection, or that suits its keyword list.

        None if nothing was chosen and there is no such list, or neither is known yet.

        Raises:
            StoreError: If its record cannot be read.
        """
        if self._info is None:
            return None
        own = None if self._keywords is None else KEYWORD_FUSION
        return read_choice(self.reader.collection, self._info) or own

    @property
    def keywords(self) -> TextEmbedder | None:
        """What counts words for the keyword list; None without one, or before the mode "hybrid"."""
        return self._keywords

    @property
    def dense_name(self) -> str:
        """Name of the dense vectors; "" for unnamed ones."""
        if self._info is None:
            return str(self._store.dense_vector_name)
        return self._find_dense_name(self._info)

    @property
    def sparse_name(self) -> str:
        """Name of the sparse vectors."""
        return str(self._store.sparse_vector_name)

    def _find_dense_name(self, info: qm.CollectionInfo) -> str:
        vectors = info.config.params.vectors
        # LlamaIndex's older collections, and its stores without a hybrid mode, name no vectors.
        is_unnamed = isinstance(vectors, qm.VectorParams) or "" in (vectors or {})
        return "" if is_unnamed else str(self._store.dense_vector_name)

    # --- searching ------------------------------------------------------------------------------

    def search(self, query: QueryVectors, plan: SearchPlan) -> SearchAnswer:
        """Return the nodes that a search finds, best first.

        Args:
            query: The vectors that the plan's mode needs.
            plan: What is wanted.

        Raises:
            StoreError: If Qdrant fails, or a point found holds no node.
        """
        if plan.diversity is not None:
            request = build_diverse_request(query, plan, dense_name=self.dense_name)
            (points,) = self.reader.search([request])
            return self._build_diverse_answer(points)
        branches = self.build_branches(query, plan)
        return self._build_answer(query, plan, branches, self.search_lists(branches, plan))

    async def asearch(self, query: QueryVectors, plan: SearchPlan) -> SearchAnswer:
        """Like `search`, but without blocking the event loop."""
        if plan.diversity is not None:
            request = build_diverse_request(query, plan, dense_name=self.dense_name)
            (points,) = await self.reader.asearch([request])
            return await self._embedder.in_thread(partial(self._build_diverse_answer, points))
        branches = self.build_branches(query, plan)
        rankings = await self.asearch_lists(branches, plan)
        # Reranking runs the model, and reading many nodes takes a while.
        build_answer = partial(self._build_answer, query, plan, branches, rankings)
        return await self._embedder.in_thread(build_answer)

    def build_branches(self, query: QueryVectors, plan: SearchPlan) -> list[Branch]:
        """Return the searches that the question's vectors allow, the dense one first.

        Raises:
            InputError: If the plan weighs a keyword list, and the collection has none.
        """
        if self._keywords is None and plan.weight_of("bm25") > 0:
            raise InputError(
                f"collection {self.reader.collection!r} has no keyword list, which the third of "
                f"the weights {plan.fusion.weights} is for; give two numbers, or add the list: "
                f"unified-embeddings add-vectors {self.reader.collection} --keywords bm25"
            )
        vector_names: dict[ListName, str] = {
            "dense": self.dense_name,
            "sparse": self.sparse_name,
            "bm25": KEYWORD_VECTOR,
        }
        return build_branches(self.count_words(query), plan, vector_names=vector_names)

    def count_words(self, query: QueryVectors) -> QueryVectors:
        """Return a question's vectors with the one for the keyword list, where there is one."""
        if self._keywords is None or query.words is None or query.bm25 is not None:
            return query
        counted = self._keywords.encode_query(query.words).sparse
        assert counted is not None
        return replace(query, bm25=counted[0])

    def search_lists(
        self, branches: Sequence[Branch], plan: SearchPlan
    ) -> list[list[qm.ScoredPoint]]:
        """Return what each search finds, deep enough that no tie is cut where it matters.

        That takes one round trip, and more only where many points tie.
        """
        depths = [branch.depth for branch in branches]
        limits: list[int] | None = [first_limit(depth) for depth in depths]
        rankings: list[list[qm.ScoredPoint]] = []
        while limits:
            rankings = self.reader.search(build_requests(branches, plan, limits))
            limits = next_limits(rankings, depths, limits)
        return rankings

    async def asearch_lists(
        self, branches: Sequence[Branch], plan: SearchPlan
    ) -> list[list[qm.ScoredPoint]]:
        """Like `search_lists`, but without blocking the event loop."""
        depths = [branch.depth for branch in branches]
        limits: list[int] | None = [first_limit(depth) for depth in depths]
        rankings: list[list[qm.ScoredPoint]] = []
        while limits:
            rankings = await self.reader.asearch(build_requests(branches, plan, limits))
            limits = next_limits(rankings, depths, limits)
        return rankings

    # --- the answer -----------------------------------------------------------------------------

    def _build_answer(
        self,
        query: QueryVectors,
        plan: SearchPlan,
        branches: Sequence[Branch],
        rankings: Sequence[Sequence[qm.ScoredPoint]],
    ) -> SearchAnswer:
        ordered = order_lists(branches, rankings)
        best: Ranking = []
        if plan.mode == "hybrid":
            weights = [branch.weight for branch in branches]
            best = fuse(ordered, plan.fusion, weights)[: plan.answer_size]
        elif ordered:
            (best,) = ordered
        nodes = self._to_nodes(best)
        lists: dict[str, Ranking] = {
            branch.list_name: ranking for branch, ranking in zip(branches, ordered, strict=True)
        }
        note_ranks(nodes, best, lists, fused=plan.mode == "hybrid")
        if query.colbert is not None and nodes:
            nodes = rerank_nodes(self._embedder, query.colbert, nodes)[: plan.top_k]
        return SearchAnswer(nodes, branches, rankings)

    def _build_diverse_answer(self, points: Sequence[qm.ScoredPoint]) -> SearchAnswer:
        # The points keep their order, which is not that of their scores.
        best = [(point, point.score) for point in points]
        nodes = self._to_nodes(best)
        note_ranks(nodes, best, {"mmr": best}, fused=False)
        return SearchAnswer(nodes)

    def _to_nodes(self, best: Ranking) -> list[NodeWithScore]:
        return self.reader.to_nodes([point for point, _ in best], [score for _, score in best])


def order_lists(
    branches: Sequence[Branch], rankings: Sequence[Sequence[qm.ScoredPoint]]
) -> list[Ranking]:
    """Return the points of each list with their scores, in one order, as deep as is wanted.

    Args:
        branches: What was searched.
        rankings: What each found.
    """
    return [
        order_points(points)[: branch.depth]
        for branch, points in zip(branches, rankings, strict=True)
    ]
