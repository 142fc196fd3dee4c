"""The dense and the sparse ranking of many questions, and a keyword list's, before they are fused.

What lives here: searching for all of them, ordered as the retriever orders them, and naming the
judged document that each point belongs to. What does not: fusing them in many ways (`evaluation`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Hashable, Mapping
from dataclasses import replace
from typing import Any, TypeAlias

from llama_index.vector_stores.qdrant import QdrantVectorStore

from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.errors import InputError
from unified_embeddings.evaluation.corpora import require_questions
from unified_embeddings.evaluation.documents import (
    POINT_ID,
    SAMPLED_QUERIES,
    choose_document_field,
    read_document_id,
)
from unified_embeddings.evaluation.fusion_choices import SearchedQuery
from unified_embeddings.llama.hybrid_search import order_lists
from unified_embeddings.llama.store_settings import open_search
from unified_embeddings.models.fusion import Fusion
from unified_embeddings.search.branches import ListName
from unified_embeddings.search.fusing import Ranking, scored_ids
from unified_embeddings.search.options import check_heads
from unified_embeddings.search.plan import SearchPlan
from unified_embeddings.search.query_vectors import QueryVectors

Lists: TypeAlias = Mapping[ListName, Ranking]
"""The rankings of a question by name."""


def search_both_lists(
    store: QdrantVectorStore,
    embedder: TextEmbedder,
    queries: Mapping[str, str],
    judged_ids: Collection[str],
    *,
    depth: int,
    document_field: str | None = None,
    on_query: Callable[[int], None] = lambda _: None,
) -> dict[str, SearchedQuery]:
    """Search for the rankings of each question, in one round trip each.

    They are the dense and the sparse one, and a keyword list's where the collection has one.

    Args:
        store: Over the collection.
        embedder: Its model. The questions are embedded in batches first.
        queries: Id → question, at least one.
        judged_ids: The documents that judgements name.
        depth: Points of each ranking.
        document_field: Field of the payload that names a point's document, "metadata.source" for
            one within another, or `documents.POINT_ID`. None finds it in the first 50 answers.
        on_query: Called with 1 after each question.

    Raises:
        InputError: If a question is blank, which is named, or no field, or not the one given, names
            a judged document.
        FingerprintMismatchError: If the collection was made with another model.
        StoreError: If Qdrant fails, or the collection lacks dense or sparse vectors.
    """
    require_questions(queries)
    searcher = _ListSearcher(store, embedder, depth=depth)
    embedder.encode_queries(list(queries.values()))  # in batches; they are in the cache then
    pending = iter(queries.items())
    first_lists: dict[str, Lists] = {}
    if document_field is None:
        for query_id, text in itertools.islice(pending, SAMPLED_QUERIES):
            first_lists[query_id] = searcher.search(text)
            on_query(1)
        document_field = _find_document_field(first_lists.values(), judged_ids)
    searcher.read_only(_needed_payload(document_field))
    searched = {
        query_id: _name_documents(lists, document_field) for query_id, lists in first_lists.items()
    }
    for query_id, text in pending:
        searched[query_id] = _name_documents(searcher.search(text), document_field)
        on_query(1)
    _check_documents(searched.values(), judged_ids, document_field)
    return searched


def sum_query_weights(embedder: TextEmbedder, queries: Mapping[str, str]) -> dict[str, float]:
    """Return the sum of each question's sparse weights, by its id.

    Args:
        embedder: Has the questions in its cache, where they were searched for before.
        queries: Id → question.
    """
    sparse = embedder.encode_queries(list(queries.values()), dense=False, sparse=True).sparse
    assert sparse is not None
    sums = [float(vector.values.sum()) for vector in sparse]
    return dict(zip(queries, sums, strict=True))


class _ListSearcher:
    """Searches for the rankings of a question, as they are.

    Args:
        store: Over the collection.
        embedder: Its model.
        depth: Points of each ranking.
    """

    def __init__(self, store: QdrantVectorStore, embedder: TextEmbedder, *, depth: int) -> None:
        check_heads(embedder, "hybrid", None)
        self._embedder = embedder
        self._search = open_search(store, embedder)
        self._search.collection.check("hybrid")
        weights = (1.0, 1.0) if self._search.collection.keywords is None else (1.0, 1.0, 1.0)
        every = Fusion(weights=weights, candidates=depth)
        self._plan = SearchPlan(mode="hybrid", top_k=1, fusion=every)

    def read_only(self, payload: bool | list[str]) -> None:
        """Bring back no more than these fields of the payload from now on."""
        self._plan = replace(self._plan, payload=payload)

    def search(self, text: str) -> Lists:
        """Return the rankings of a question by name, best first; a list without words is empty."""
        encoded = self._embedder.encode_query(text, dense=True, sparse=True)
        assert encoded.dense is not None
        assert encoded.sparse is not None
        query = QueryVectors(dense=encoded.dense[0], sparse=encoded.sparse[0], words=text)
        branches = self._search.build_branches(query, self._plan)
        rankings = order_lists(branches, self._search.search_lists(branches, self._plan))
        return {
            branch.list_name: ranking for branch, ranking in zip(branches, rankings, strict=True)
        }


def _needed_payload(document_field: str) -> bool | list[str]:
    """Return which fields of the payload tell a point's document; True for all."""
    if document_field == POINT_ID:
        return False
    # Qdrant would take a dot for a step into an object, and some keys hold dots of their own.
    return True if "." in document_field else [document_field]


def _find_document_field(all_lists: Collection[Lists], judged_ids: Collection[str]) -> str:
    payloads: dict[Any, Mapping[str, object]] = {}
    for lists in all_lists:
        for ranking in lists.values():
            payloads.update((point.id, point.payload or {}) for point, _ in ranking)
    return choose_document_field(payloads.items(), judged_ids)


def _check_documents(
    searched: Collection[SearchedQuery], judged_ids: Collection[str], document_field: str
) -> None:
    """Refuse a field that names other things than the judgements do.

    Raises:
        InputError: If there are judgements, and nothing that was found is judged.
    """
    found_ids = {document for query in searched for document in query.document_of.values()}
    if judged_ids and found_ids.isdisjoint(judged_ids):
        has = f"such as {min(found_ids)!r}" if found_ids else "none at all"
        raise InputError(
            f"the field {document_field!r} names no judged document in any answer; it has {has}, "
            f"and the judgements name documents such as {min(judged_ids)!r}. Leave the field out "
            "to have it found"
        )


def _name_documents(lists: Lists, document_field: str) -> SearchedQuery:
    document_of: dict[Hashable, str] = {}
    for point, _ in itertools.chain.from_iterable(lists.values()):
        document = read_document_id(point.id, point.payload or {}, document_field)
        if document is not None:
            document_of[point.id] = document
    return SearchedQuery(
        dense=scored_ids(lists.get("dense", ())),
        sparse=scored_ids(lists.get("sparse", ())),
        bm25=scored_ids(lists.get("bm25", ())),
        document_of=document_of,
    )
