"""The one way in which a collection is searched: by a store's queries and by the retriever.

What lives here: one round trip for all lists, their order, their fusion, and the nodes. What does
not: what a caller may ask for (`queries`, `retrievers.hybrid`), the requests (`search.plan`), and
the vectors of a question.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from llama_index.core.schema import NodeWithScore
from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import models as qm

from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.llama.collection_reader import CollectionReader
from unified_embeddings.llama.node_ranks import note_ranks
from unified_embeddings.llama.reranking import Reranker, TokenScores
from unified_embeddings.llama.stock_arguments import Adopt
from unified_embeddings.models.fusion import Fusion
from unified_embeddings.search.branches import Branch
from unified_embeddings.search.fusing import Ranking, fuse
from unified_embeddings.search.options import Mode
from unified_embeddings.search.plan import (
    SearchPlan,
    build_branches,
    build_diverse_request,
    build_requests,
    build_token_request,
)
from unified_embeddings.search.query_vectors import QueryVectors
from unified_embeddings.search.ranking import first_limit, next_limits, order_points
from unified_embeddings.stores.fusion_choice import read_choice
from unified_embeddings.stores.schema import check_collection, stored_colbert
from unified_embeddings.stores.stored_colbert import StoredColbert
from unified_embeddings.types import FloatArray


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
        self._reranker = Reranker(self.reader, embedder)
        self._info: qm.CollectionInfo | None = None
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
        known_modes = self._checked_modes if info is self._info else frozenset[Mode]()
        self._info = info
        self._checked_modes = known_modes | {mode}
        return info

    def read_choice(self) -> Fusion | None:
        """Return the fusion that was chosen for the collection; None if none was, or is known yet.

        Raises:
            StoreError: If its record cannot be read.
        """
        if self._info is None:
            return None
        return read_choice(self.reader.collection, self._info)

    @property
    def stored_colbert(self) -> StoredColbert | None:
        """How points hold ColBERT vectors; None if they hold none, or it is not known yet."""
        return None if self._info is None else stored_colbert(self._info)

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
        rankings, token_scores = self._search_all(branches, plan, self._stored_rows(query))
        return self._build_answer(query, plan, branches, rankings, token_scores)

    async def asearch(self, query: QueryVectors, plan: SearchPlan) -> SearchAnswer:
        """Like `search`, but without blocking the event loop."""
        if plan.diversity is not None:
            request = build_diverse_request(query, plan, dense_name=self.dense_name)
            (points,) = await self.reader.asearch([request])
            return await self._embedder.in_thread(partial(self._build_diverse_answer, points))
        branches = self.build_branches(query, plan)
        question = self._stored_rows(query)
        rankings, token_scores = await self._asearch_all(branches, plan, question)
        # Reranking may run the model, and reading many nodes takes a while.
        build_answer = partial(self._build_answer, query, plan, branches, rankings, token_scores)
        return await self._embedder.in_thread(build_answer)

    def build_branches(self, query: QueryVectors, plan: SearchPlan) -> list[Branch]:
        """Return the searches that the question's vectors allow, the dense one first."""
        return build_branches(query, plan, dense_name=self.dense_name, sparse_name=self.sparse_name)

    def search_lists(
        self, branches: Sequence[Branch], plan: SearchPlan
    ) -> list[list[qm.ScoredPoint]]:
        """Return what each search finds, deep enough that no tie is cut where it matters.

        That takes one round trip, and more only where many points tie.
        """
        rankings, _ = self._search_all(branches, plan, None)
        return rankings

    async def asearch_lists(
        self, branches: Sequence[Branch], plan: SearchPlan
    ) -> list[list[qm.ScoredPoint]]:
        """Like `search_lists`, but without blocking the event loop."""
        rankings, _ = await self._asearch_all(branches, plan, None)
        return rankings

    def _search_all(
        self, branches: Sequence[Branch], plan: SearchPlan, question: FloatArray | None
    ) -> tuple[list[list[qm.ScoredPoint]], TokenScores]:
        """Return what each search finds, and the ColBERT scores of all that may be in the answer.

        Args:
            branches: What is searched.
            plan: What is wanted.
            question: What stored ColBERT vectors are compared with; None for no such scores.
        """
        depths = [branch.depth for branch in branches]
        limits: list[int] | None = [first_limit(depth) for depth in depths]
        found: list[list[qm.ScoredPoint]] = []
        while limits:
            found = self.reader.search(_build_batch(branches, plan, limits, question))
            limits = next_limits(found[: len(branches)], depths, limits)
        return _split_batch(found, len(branches))

    async def _asearch_all(
        self, branches: Sequence[Branch], plan: SearchPlan, question: FloatArray | None
    ) -> tuple[list[list[qm.ScoredPoint]], TokenScores]:
        """Like `_search_all`, but without blocking the event loop."""
        depths = [branch.depth for branch in branches]
        limits: list[int] | None = [first_limit(depth) for depth in depths]
        found: list[list[qm.ScoredPoint]] = []
        while limits:
            found = await self.reader.asearch(_build_batch(branches, plan, limits, question))
            limits = next_limits(found[: len(branches)], depths, limits)
        return _split_batch(found, len(branches))

    def _stored_rows(self, query: QueryVectors) -> FloatArray | None:
        """Return what stored ColBERT vectors are compared with; None if nothing is."""
        return None if self.stored_colbert is None else query.colbert

    # --- the answer -----------------------------------------------------------------------------

    def _build_answer(
        self,
        query: QueryVectors,
        plan: SearchPlan,
        branches: Sequence[Branch],
        rankings: Sequence[Sequence[qm.ScoredPoint]],
        token_scores: TokenScores,
    ) -> SearchAnswer:
        ordered = order_lists(branches, rankings)
        best: Ranking = []
        if plan.mode == "hybrid":
            weights = [branch.weight for branch in branches]
            best = fuse(ordered, plan.fusion, weights)[: plan.answer_size]
        elif ordered:
            (best,) = ordered
        answer = best
        if query.colbert is not None and best:
            answer = self._reranker.rerank(query.colbert, best, self.stored_colbert, token_scores)
            answer = answer[: plan.top_k]
        nodes = self._to_nodes(answer)
        lists: dict[str, Ranking] = {
            branch.list_name: ranking for branch, ranking in zip(branches, ordered, strict=True)
        }
        note_ranks(nodes, answer, lists, fused=best if plan.mode == "hybrid" else None)
        return SearchAnswer(nodes, branches, rankings)

    def _build_diverse_answer(self, points: Sequence[qm.ScoredPoint]) -> SearchAnswer:
        # The points keep their order, which is not that of their scores.
        best = [(point, point.score) for point in points]
        nodes = self._to_nodes(best)
        note_ranks(nodes, best, {"mmr": best})
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


def _build_batch(
    branches: Sequence[Branch],
    plan: SearchPlan,
    limits: Sequence[int],
    question: FloatArray | None,
) -> list[qm.QueryRequest]:
    """Return the requests of one round trip: the lists' and, last, that for ColBERT scores."""
    requests = build_requests(branches, plan, limits)
    if question is not None:
        requests.append(build_token_request(question, branches, plan, limits))
    return requests


def _split_batch(
    found: Sequence[list[qm.ScoredPoint]], lists: int
) -> tuple[list[list[qm.ScoredPoint]], TokenScores]:
    """Return what was found for each list, and the ColBERT scores; see `_build_batch`."""
    token_scores = {point.id: point.score for points in found[lists:] for point in points}
    return list(found[:lists]), token_scores
