"""The one way in which a collection is searched: by a store's queries and by the retriever.

What lives here: one round trip for all lists, their order, their fusion, and the nodes. What does
not: what a caller may ask for (`queries`, `retrievers.hybrid`), the requests (`search.plan`), and
the vectors of a question.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from llama_index.core.schema import NodeWithScore
from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import models as qm

from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.errors import InputError
from unified_embeddings.llama.collection_reader import CollectionReader
from unified_embeddings.llama.node_ranks import note_ranks, note_relevance
from unified_embeddings.llama.reranking import Reranker, TokenScores
from unified_embeddings.llama.searched_collection import SearchedCollection
from unified_embeddings.llama.stock_arguments import Adopt
from unified_embeddings.search.branches import Branch, ListName
from unified_embeddings.search.fusing import Ranking, fuse
from unified_embeddings.search.plan import (
    SearchPlan,
    build_branches,
    build_diverse_request,
    build_requests,
    build_token_request,
)
from unified_embeddings.search.query_vectors import QueryVectors
from unified_embeddings.search.ranking import first_limit, next_limits, order_points
from unified_embeddings.search.relevance_scores import can_judge, judge_answer
from unified_embeddings.stores.asynchronous import in_search_thread
from unified_embeddings.stores.keyword_list import KEYWORD_VECTOR
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

    Args:
        store: Over the collection, with a sync client, an async one, or both.
        embedder: Its model; it reranks.
        adopt: "trust" accepts a collection that does not record its model.
        why_no_sparse: See SearchedCollection.
        doubts_sparse: See SearchedCollection.

    Attributes:
        collection: The collection, as far as it is known.
    """

    def __init__(
        self,
        store: QdrantVectorStore,
        embedder: TextEmbedder,
        *,
        adopt: Adopt | None = None,
        why_no_sparse: str = "",
        doubts_sparse: bool = False,
    ) -> None:
        self.collection = SearchedCollection(
            store,
            embedder,
            adopt=adopt,
            why_no_sparse=why_no_sparse,
            doubts_sparse=doubts_sparse,
        )
        self._embedder = embedder
        self._reranker = Reranker(self.reader, embedder)

    @property
    def reader(self) -> CollectionReader:
        """What reads the collection."""
        return self.collection.reader

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
            request = build_diverse_request(query, plan, dense_name=self.collection.dense_name)
            (points,) = self.reader.search([request])
            return self._build_diverse_answer(points)
        branches = self.build_branches(query, plan)
        rankings, token_scores = self.search_with_rows(query, branches, plan)
        return self._build_answer(query, plan, branches, rankings, token_scores)

    async def asearch(self, query: QueryVectors, plan: SearchPlan) -> SearchAnswer:
        """Like `search`, but without blocking the event loop."""
        if self.reader.runs_in_process and query.colbert is None:
            return await in_search_thread(partial(self.search, query, plan))
        if plan.diversity is not None:
            request = build_diverse_request(query, plan, dense_name=self.collection.dense_name)
            (points,) = await self.reader.asearch([request])
            return await self._embedder.in_thread(partial(self._build_diverse_answer, points))
        branches = self.build_branches(query, plan)
        question = self._stored_rows(query)
        rankings, token_scores = await self._asearch_all(branches, plan, question)
        # Reranking may run the model, and reading many nodes takes a while.
        build_answer = partial(self._build_answer, query, plan, branches, rankings, token_scores)
        return await self._embedder.in_thread(build_answer)

    def build_branches(self, query: QueryVectors, plan: SearchPlan) -> list[Branch]:
        """Return the searches that the question's vectors allow, the dense one first.

        Raises:
            InputError: If the plan weighs a keyword list, and the collection has none.
        """
        if self.collection.keywords is None and plan.weight_of("bm25") > 0:
            raise InputError(
                f"collection {self.reader.collection!r} has no keyword list, which the third of "
                f"the weights {plan.fusion.weights} is for; give two numbers, or add the list: "
                f"unified-embeddings add-vectors {shlex.quote(self.reader.collection)} "
                "--keywords bm25"
            )
        vector_names: dict[ListName, str] = {
            "dense": self.collection.dense_name,
            "sparse": self.collection.sparse_name,
            "bm25": KEYWORD_VECTOR,
        }
        return build_branches(self.count_words(query), plan, vector_names=vector_names)

    def count_words(self, query: QueryVectors) -> QueryVectors:
        """Return a question's vectors with the one for the keyword list, where there is one."""
        if self.collection.keywords is None or query.words is None or query.bm25 is not None:
            return query
        counted = self.collection.keywords.encode_query(query.words).sparse
        assert counted is not None
        return replace(query, bm25=counted[0])

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

    def search_with_rows(
        self, query: QueryVectors, branches: Sequence[Branch], plan: SearchPlan
    ) -> tuple[list[list[qm.ScoredPoint]], TokenScores]:
        """Return what each search finds, and the scores of stored ColBERT vectors, for `rerank`."""
        return self._search_all(branches, plan, self._stored_rows(query))

    def rerank(
        self, question: FloatArray, candidates: Ranking, token_scores: TokenScores
    ) -> list[tuple[qm.ScoredPoint, float]]:
        """Return points ordered by their ColBERT scores, best first; see `Reranker`."""
        stored = self.collection.stored_colbert
        return self._reranker.rerank(question, candidates, stored, token_scores)

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
        return None if self.collection.stored_colbert is None else query.colbert

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
        lists: dict[str, Ranking] = {
            branch.list_name: ranking for branch, ranking in zip(branches, ordered, strict=True)
        }
        judged = None
        if plan.mode == "hybrid":
            fused = _fuse_branches(branches, ordered, plan)
            best = fused[: plan.answer_size]
            calibration = plan.calibration
            if calibration and can_judge(calibration, branches, rankings, query.sparse):
                judged = judge_answer(calibration, lists, fused, query.sparse)
        elif ordered:
            (best,) = ordered
        answer = best
        if judged is not None and plan.score == "relevance":
            answer = judged.ranking[: len(best)]
        if query.colbert is not None and answer:
            answer = self.rerank(query.colbert, answer, token_scores)[: plan.top_k]
        nodes = self._to_nodes(answer)
        note_ranks(nodes, answer, lists, fused=best if plan.mode == "hybrid" else None)
        if judged is not None:
            note_relevance(nodes, answer, judged)
        return SearchAnswer(nodes, branches, rankings)

    def _build_diverse_answer(self, points: Sequence[qm.ScoredPoint]) -> SearchAnswer:
        # The points keep their order, which is not that of their scores.
        best = [(point, point.score) for point in points]
        nodes = self._to_nodes(best)
        note_ranks(nodes, best, {"mmr": best})
        return SearchAnswer(nodes)

    def _to_nodes(self, best: Ranking) -> list[NodeWithScore]:
        return self.reader.to_nodes([point for point, _ in best], [score for _, score in best])


def _fuse_branches(
    branches: Sequence[Branch], ordered: Sequence[Ranking], plan: SearchPlan
) -> Ranking:
    """Return all points of the lists, fused; a list is fused no deeper than the plan says."""
    weights = [branch.weight for branch in branches]
    lists = [
        ranking[: plan.depth_of(branch.list_name)]
        for branch, ranking in zip(branches, ordered, strict=True)
    ]
    return fuse(lists, plan.fusion, weights)


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
