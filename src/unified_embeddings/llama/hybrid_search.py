"""The one way in which a collection is searched: by a store's queries and by the retriever.

What lives here: one round trip for all lists, their order, their fusion, and the nodes. What does
not: what a caller may ask for (`queries`, `retrievers.hybrid`), the requests (`search.plan`), and
the vectors of a question.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from llama_index.core.schema import NodeWithScore
from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import models as qm

from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.errors import InputError, StoreError
from unified_embeddings.llama.collection_reader import CollectionReader
from unified_embeddings.llama.node_ranks import note_ranks, note_relevance
from unified_embeddings.llama.reranking import Reranker, TokenScores
from unified_embeddings.llama.sparse_proof import gives_sparse_vectors
from unified_embeddings.llama.stock_arguments import Adopt
from unified_embeddings.models.bm25 import KEYWORD_FUSION
from unified_embeddings.models.calibration import Calibration
from unified_embeddings.models.fusion import Fusion
from unified_embeddings.search.branches import Branch, ListName
from unified_embeddings.search.fusing import Ranking, fuse
from unified_embeddings.search.keywords import read_keywords
from unified_embeddings.search.options import (
    Mode,
    Score,
    refuse_keyword_list,
    require_calibration,
)
from unified_embeddings.search.plan import (
    SearchPlan,
    build_branches,
    build_diverse_request,
    build_requests,
    build_token_request,
)
from unified_embeddings.search.query_vectors import QueryVectors
from unified_embeddings.search.ranking import first_limit, next_limits, order_points
from unified_embeddings.search.relevance_scores import can_judge, has_usual_scores, judge_answer
from unified_embeddings.stores.asynchronous import in_search_thread
from unified_embeddings.stores.calibration_record import read_calibration
from unified_embeddings.stores.fusion_choice import read_choice
from unified_embeddings.stores.keyword_list import KEYWORD_VECTOR
from unified_embeddings.stores.schema import (
    check_collection,
    dense_vectors,
    recorded_model,
    stored_colbert,
)
from unified_embeddings.stores.stored_colbert import StoredColbert
from unified_embeddings.types import FloatArray, Options


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
        why_no_sparse: Why no sparse vectors are to be searched though the model gives them, in
            words; "" if they are.
        doubts_sparse: Whether sparse vectors of a collection that records no model are compared
            with the model's for a few texts, before they are searched.
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
        self.reader = CollectionReader(store)
        self._store = store
        self._embedder = embedder
        self._adopt = adopt
        self._why_no_sparse = why_no_sparse
        self._reranker = Reranker(self.reader, embedder)
        self._doubts_sparse = doubts_sparse
        self._info: qm.CollectionInfo | None = None
        self._keywords: TextEmbedder | None = None
        self._checked_modes: frozenset[Mode] = frozenset()

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle store and model: a copy looks the collection up again."""
        options: Options = {
            "adopt": self._adopt,
            "why_no_sparse": self._why_no_sparse,
            "doubts_sparse": self._doubts_sparse,
        }
        return partial(HybridSearch, **options), (self._store, self._embedder)

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
        info = self._info
        if info is None or anew:
            info = self.reader.look_up()
        self.check_info(info, mode)
        if self._needs_proof(info, mode):
            self._prove_sparse(self.reader.sample(self.sparse_name))
        return info

    async def acheck(self, mode: Mode, *, anew: bool = False) -> qm.CollectionInfo:
        """Like `check`, but without blocking the event loop."""
        info = self._info
        if info is None or anew:
            info = await self.reader.alook_up()
        if info is not self._info or mode not in self._checked_modes:
            # The model's fingerprint may read its files, which can take seconds.
            await asyncio.to_thread(self.check_info, info, mode)
        if self._needs_proof(info, mode):
            points = await self.reader.asample(self.sparse_name)
            await self._embedder.in_thread(partial(self._prove_sparse, points))
        return info

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
            sparse=None if self._why_no_sparse else needed_sparse,
            adopt=self._adopt,
        )
        if needed_sparse is not None and self._why_no_sparse:
            raise StoreError(
                self.reader.collection,
                "choosing its vectors",
                f"search it with mode='dense'; {self._why_no_sparse}",
            )
        if mode == "hybrid":
            self._keywords = read_keywords(self.reader.collection, info)
        known_modes = self._checked_modes if info is self._info else frozenset[Mode]()
        self._info = info
        self._checked_modes = known_modes | {mode}
        return info

    def _needs_proof(self, info: qm.CollectionInfo, mode: Mode) -> bool:
        """Tell whether nothing says yet that the sparse vectors to be searched are the model's."""
        return mode != "dense" and self._doubts_sparse and recorded_model(info) is None

    def _prove_sparse(self, points: Sequence[qm.Record]) -> None:
        """Reject sparse vectors that the model does not give for a few of the texts.

        Raises:
            StoreError: If it does not.
        """
        probes = []
        for point in points:
            with contextlib.suppress(StoreError):  # a point without a text proves nothing
                (scored,) = self.reader.to_nodes([point], [0.0])
                probes.append((point, scored.node))
        if points and not gives_sparse_vectors(self._embedder, self.sparse_name, probes):
            raise StoreError(
                self.reader.collection,
                "checking",
                f"search it with mode='dense'; its sparse vectors ({self.sparse_name!r}) are not "
                f"those of {self._embedder.model_name!r} for a few of its texts: other software "
                "fills them with another model's (SPLADE, BM25). If this model made them, open it "
                "by UnifiedEmbeddingConfig.vector_store(..., sparse_vector_name=...)",
            )
        self._doubts_sparse = False

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

    def find_calibration(self, score: Score, fusion: Fusion) -> Calibration | None:
        """Return by what relevance is computed: the collection's own calibration, or the model's.

        Args:
            score: What the nodes' score is to be.
            fusion: How the lists are fused.

        Returns:
            The calibration; None if there is none, the collection has not been looked up, or its
            keyword list is fused too: relevance is calibrated on the two others.

        Raises:
            InputError: If relevance is wanted, and the collection is known to have none, or its
                keyword list is fused too.
            StoreError: If the collection's own cannot be read.
        """
        if self._info is None:
            return None
        if self._keywords is not None and fusion.keyword_weight > 0:
            if score == "relevance":
                refuse_keyword_list(fusion)
            return None
        calibration = read_calibration(self.reader.collection, self._info)
        if calibration is None and has_usual_scores(
            self._info,
            dense_name=self.dense_name,
            sparse_name=self.sparse_name,
            sparse_idf=self._embedder.sparse_idf,
        ):
            calibration = self._embedder.calibration
        if score == "relevance":
            return require_calibration(calibration, fusion, self._embedder.model_name)
        return calibration

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
        name = str(self._store.dense_vector_name)
        vectors = dense_vectors(info)
        # LlamaIndex's older collections, and its stores without a hybrid mode, name no vectors.
        return "" if name not in vectors and "" in vectors else name

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
        if self.reader.runs_in_process and query.colbert is None:
            return await in_search_thread(partial(self.search, query, plan))
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
            answer = self._reranker.rerank(query.colbert, answer, self.stored_colbert, token_scores)
            answer = answer[: plan.top_k]
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
