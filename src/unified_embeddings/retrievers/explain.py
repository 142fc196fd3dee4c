"""Why a passage has the score and the rank that it has for a question.

What lives here: asking Qdrant for each part of a passage's score, and putting the parts together.
What does not: the values returned (`explanation`), and the names of tokens (`embedders.labels`).

Qdrant itself is asked what each token adds, by a question of that token alone to that point alone.
So the parts add up to its score whatever the collection does to it: an IDF over the points that
it counts, or vectors of lower precision in its index.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, TypeAlias

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.schema import BaseNode, MetadataMode, NodeWithScore, QueryBundle
from qdrant_client import models as qm

from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.embedders.labels import label_indices
from unified_embeddings.errors import InputError
from unified_embeddings.llama.fields import Fields
from unified_embeddings.llama.hybrid_search import HybridSearch, order_lists
from unified_embeddings.models.fusion import Fusion
from unified_embeddings.retrievers.explanation import (
    DensePart,
    Explanation,
    Ranks,
    SparsePart,
)
from unified_embeddings.retrievers.score_parts import (
    explain_colbert,
    explain_fusion,
    explain_sparse,
    rank_of,
)
from unified_embeddings.search.branches import Branch, ListName
from unified_embeddings.search.plan import SearchPlan
from unified_embeddings.search.query_vectors import QueryVectors
from unified_embeddings.stores.keyword_list import KEYWORD_VECTOR
from unified_embeddings.types import SparseVector

NodeOrId: TypeAlias = NodeWithScore | BaseNode | str | int
"""A passage: as the retriever returns it, its node, or the id of that."""

_Probe: TypeAlias = Literal["filters"] | ListName | tuple[ListName, int]
"""What is asked about the passage; a list's name with a number asks for the share of one token."""


@dataclass(frozen=True)
class _WordList:
    """A list that is searched by words.

    Attributes:
        name: What it is called.
        vector_name: Which of the points' vectors it has.
        query: The question's vector.
        embedder: Knows what the vector's numbers stand for.
        has_idf: Whether the collection multiplies its scores by IDF.
    """

    name: ListName
    vector_name: str
    query: SparseVector
    embedder: TextEmbedder
    has_idf: bool


@dataclass(frozen=True)
class _Question:
    """A question's text and vectors, and what its searches found.

    Attributes:
        text: The question.
        plan: What it is to find.
        vectors: Its vectors.
        branches: The searches.
        rankings: The points that each found, as Qdrant returned them.
        word_lists: The lists that are searched by words.
    """

    text: str
    plan: SearchPlan
    vectors: QueryVectors
    branches: Sequence[Branch]
    rankings: Sequence[Sequence[qm.ScoredPoint]]
    word_lists: Sequence[_WordList]


class Explaining(BaseRetriever):
    """What makes a hybrid retriever able to explain its scores."""

    _search: HybridSearch
    _fields: Fields
    _embedder: TextEmbedder

    # --- what the retriever does -----------------------------------------------------------------

    @property
    @abstractmethod
    def fusion(self) -> Fusion:
        """Return how rankings are fused."""

    @abstractmethod
    def _embed(self, bundle: QueryBundle) -> QueryVectors: ...

    @abstractmethod
    def _plan(self) -> SearchPlan: ...

    # --- what it can do then ---------------------------------------------------------------------

    def explain(
        self, query: str | QueryBundle, node_or_id: NodeOrId, *, colbert: bool | None = None
    ) -> Explanation:
        """Return why a passage has the score and the rank that it has for a question.

        The passage need not be among those found. It costs three round trips more than the search.

        Args:
            query: The question.
            node_or_id: The passage: a node that was found, or its id.
            colbert: Whether to compare the texts token by token, which runs the model over the
                passage. None does so where the model can.

        Raises:
            InputError: If the question is blank, the collection has no such passage, or the model
                gives no ColBERT vectors and they are asked for.
            FingerprintMismatchError: If the collection was made with another model.
            StoreError: If Qdrant fails, or the collection does not exist.
        """
        point_id = _to_point_id(node_or_id, self._fields)
        info = self._search.collection.check(self._plan().mode, anew=True)
        # The collection's own fusion may be another one now. Relevance is not explained.
        plan = replace(self._plan(), score="rrf")
        bundle = _to_bundle(query)
        vectors = self._search.count_words(self._embed(bundle))
        branches = self._search.build_branches(vectors, plan)
        rankings = self._search.search_lists(branches, plan)
        question = self._to_question(bundle, plan, vectors, branches, rankings, info)
        point = self._require_point(
            point_id, self._search.reader.fetch(point_id, _vector_names(question))
        )
        probes = self._build_probes(question, point)
        scores = _read_scores(probes, self._search.reader.search(list(probes.values())))
        return self._put_together(question, point, scores, colbert)

    async def aexplain(
        self, query: str | QueryBundle, node_or_id: NodeOrId, *, colbert: bool | None = None
    ) -> Explanation:
        """Like `explain`, but without blocking the event loop."""
        point_id = _to_point_id(node_or_id, self._fields)
        info = await self._search.collection.acheck(self._plan().mode, anew=True)
        plan = replace(self._plan(), score="rrf")
        bundle = _to_bundle(query)
        embedded = await self._embedder.in_thread(partial(self._embed, bundle))
        vectors = self._search.count_words(embedded)
        branches = self._search.build_branches(vectors, plan)
        rankings = await self._search.asearch_lists(branches, plan)
        question = self._to_question(bundle, plan, vectors, branches, rankings, info)
        fetched = await self._search.reader.afetch(point_id, _vector_names(question))
        point = self._require_point(point_id, fetched)
        probes = self._build_probes(question, point)
        scores = _read_scores(probes, await self._search.reader.asearch(list(probes.values())))
        return await self._embedder.in_thread(
            partial(self._put_together, question, point, scores, colbert)
        )

    # --- what is asked ---------------------------------------------------------------------------

    def _to_question(
        self,
        bundle: QueryBundle,
        plan: SearchPlan,
        vectors: QueryVectors,
        branches: Sequence[Branch],
        rankings: Sequence[Sequence[qm.ScoredPoint]],
        info: qm.CollectionInfo,
    ) -> _Question:
        return _Question(
            text=bundle.query_str,
            plan=plan,
            vectors=vectors,
            branches=branches,
            rankings=rankings,
            word_lists=self._find_word_lists(vectors, info),
        )

    def _find_word_lists(self, vectors: QueryVectors, info: qm.CollectionInfo) -> list[_WordList]:
        """Return the lists that a question searches by words."""
        settings = info.config.params.sparse_vectors or {}
        asked: list[tuple[ListName, str, SparseVector | None, TextEmbedder | None]] = [
            ("sparse", self._search.collection.sparse_name, vectors.sparse, self._embedder),
            ("bm25", KEYWORD_VECTOR, vectors.bm25, self._search.collection.keywords),
        ]
        word_lists = []
        for name, vector_name, query, embedder in asked:
            if query is None or embedder is None:
                continue
            params = settings.get(vector_name)
            has_idf = params is not None and params.modifier == qm.Modifier.IDF
            word_lists.append(_WordList(name, vector_name, query, embedder, has_idf))
        return word_lists

    def _require_point(self, point_id: qm.ExtendedPointId, point: qm.Record | None) -> qm.Record:
        if point is None:
            raise InputError(
                f"collection {self._search.reader.collection!r} has no passage {point_id!r}; give "
                "a node that the retriever returned, or its id"
            )
        return point

    def _build_probes(self, question: _Question, point: qm.Record) -> dict[_Probe, qm.QueryRequest]:
        """Return what to ask Qdrant about one point, in one round trip."""
        only_this = qm.HasIdCondition(has_id=[point.id])
        alone = qm.Filter(must=[only_this])
        among_filtered = alone
        if question.plan.filter is not None:
            among_filtered = qm.Filter(must=[only_this, question.plan.filter])
        query = question.vectors
        probes: dict[_Probe, qm.QueryRequest] = {
            "filters": qm.QueryRequest(filter=among_filtered, limit=1)
        }
        if query.dense is not None:
            probes["dense"] = qm.QueryRequest(
                query=query.dense.tolist(),
                using=self._search.collection.dense_name or None,
                filter=alone,
                limit=1,
            )
        for word_list in question.word_lists:
            for probe, vector in _word_probes(word_list, point).items():
                probes[probe] = qm.QueryRequest(
                    query=qm.SparseVector(
                        indices=vector.indices.tolist(), values=vector.values.tolist()
                    ),
                    using=word_list.vector_name,
                    filter=alone,
                    limit=1,
                )
        return probes

    # --- what the answers mean -------------------------------------------------------------------

    def _put_together(
        self,
        question: _Question,
        point: qm.Record,
        scores: dict[_Probe, float],
        colbert: bool | None,
    ) -> Explanation:
        names = [branch.list_name for branch in question.branches]
        for name, found in zip(names, question.rankings, strict=True):
            # Where vectors are quantised, a single point's score may be another than the one that
            # gave the rank.
            scores.update((name, scored.score) for scored in found if scored.id == point.id)
        plan = question.plan
        rankings = order_lists(question.branches, question.rankings)
        ranks = {
            name: rank_of(point.id, ranking) for name, ranking in zip(names, rankings, strict=True)
        }
        fused, fused_rank = None, None
        if plan.mode == "hybrid":
            weights = [branch.weight for branch in question.branches]
            fused, fused_rank = explain_fusion(point.id, names, rankings, weights, plan.fusion)
        dense = DensePart(scores["dense"]) if "dense" in scores else None
        word_parts = {
            word_list.name: _explain_words(word_list, question.text, point, scores)
            for word_list in question.word_lists
        }
        (passage,) = self._search.reader.to_nodes([point], [0.0])
        text = passage.node.get_content(metadata_mode=MetadataMode.EMBED)
        matches = None
        if colbert or (colbert is None and "colbert" in self._embedder.heads):
            matches = explain_colbert(self._embedder, question.text, text)
        return Explanation(
            query=question.text,
            node_id=passage.node.node_id,
            text=text,
            sparse=word_parts.get("sparse"),
            dense=dense,
            colbert=matches,
            ranks=Ranks(
                dense=ranks.get("dense"),
                sparse=ranks.get("sparse"),
                fused=fused_rank,
                bm25=ranks.get("bm25"),
            ),
            fused=fused,
            candidates=plan.depth_of("sparse" if plan.mode == "sparse" else "dense"),
            matches_filters="filters" in scores,
            reranked=plan.reranked is not None,
            bm25=word_parts.get("bm25"),
        )


def _vector_names(question: _Question) -> list[str]:
    """Return the names of the passage's stored vectors that are needed."""
    return [word_list.vector_name for word_list in question.word_lists]


def _word_probes(word_list: _WordList, point: qm.Record) -> dict[_Probe, SparseVector]:
    """Return what to search a point's words with: all of the question's, and each shared one."""
    query = word_list.query
    shared = _stored_words(word_list, point).keys() & query.keys()
    asked: dict[_Probe, SparseVector] = {}
    if shared:
        asked[word_list.name] = query
    for token_id in sorted(shared):
        asked[word_list.name, token_id] = SparseVector.from_dict({token_id: query[token_id]})
    return asked


def _stored_words(word_list: _WordList, point: qm.Record) -> dict[int, float]:
    """Return a point's vector of a list; it has none where its text has no lexical weights."""
    vectors = point.vector
    stored = vectors.get(word_list.vector_name) if isinstance(vectors, dict) else None
    if not isinstance(stored, qm.SparseVector):
        return {}
    return dict(zip(stored.indices, stored.values, strict=True))


def _explain_words(
    word_list: _WordList, text: str, point: qm.Record, scores: Mapping[_Probe, float]
) -> SparsePart:
    """Return the parts of a point's score in a list that is searched by words."""
    contributions = {
        token_id: scores[word_list.name, token_id]
        for token_id in word_list.query
        if (word_list.name, token_id) in scores
    }
    return explain_sparse(
        label_indices(word_list.embedder, text, "query", word_list.query),
        word_list.query,
        _stored_words(word_list, point),
        contributions,
        score=scores.get(word_list.name, 0.0),
        has_idf=word_list.has_idf,
    )


def _read_scores(
    probes: dict[_Probe, qm.QueryRequest], answers: Sequence[Sequence[qm.ScoredPoint]]
) -> dict[_Probe, float]:
    """Return the score that each question found for the point, without those that found nothing."""
    return {probe: points[0].score for probe, points in zip(probes, answers, strict=True) if points}


def _to_bundle(query: str | QueryBundle) -> QueryBundle:
    return query if isinstance(query, QueryBundle) else QueryBundle(query)


def _to_point_id(node_or_id: NodeOrId, fields: Fields) -> qm.ExtendedPointId:
    """Return a passage's id as Qdrant writes it: a number, or a UUID in lower case.

    Raises:
        InputError: If it is neither.
    """
    node = node_or_id.node if isinstance(node_or_id, NodeWithScore) else node_or_id
    node_id = node.node_id if isinstance(node, BaseNode) else node
    try:
        return fields.to_point_id(str(node_id).strip(), 0)
    except InputError:
        raise InputError(
            f"a passage is a node or its id, a UUID or a whole number; got {node_id!r:.80}"
        ) from None
