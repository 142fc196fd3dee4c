"""Rank documents, and rate rankings against relevance judgements.

What lives here: rankings by dense, sparse and fused score, nDCG, and the overlap of two rankings.
What does not: reading judgements (`corpora`), and comparing vectors (`agreement`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from unified_embeddings.evaluation.corpora import Qrels
from unified_embeddings.fusion import rrf
from unified_embeddings.types import Embeddings, FloatArray, SparseVector

Run: TypeAlias = dict[str, dict[str, float]]
"""Query id → document id → score; the higher, the better. "Run" is TREC's word."""

TOP_DOCUMENTS = 10
"""Number of best documents that are compared and judged."""

_DEPTH = 20
"""Documents of each ranking that are fused: as many as the retriever asks for by default."""

_QUERIES_PER_BLOCK = 64
"""Queries scored in one matrix product, so that a large corpus needs little memory."""


@dataclass(frozen=True)
class Retrieval:
    """How well a candidate retrieves with one kind of ranking.

    Attributes:
        overlap: Share of the reference's ten best documents that are among the candidate's ten
            best, mean over the queries for which the reference finds any.
        ndcg: nDCG@10; None without relevance judgements.
        ndcg_loss: Share of the reference's nDCG@10 that is lost, negative if the candidate's is
            higher; None without judgements, or if the reference's is 0.
    """

    overlap: float
    ndcg: float | None = None
    ndcg_loss: float | None = None


def rank_documents(
    queries: Embeddings,
    documents: Embeddings,
    query_ids: Sequence[str],
    document_ids: Sequence[str],
) -> dict[str, Run]:
    """Return the best documents for each query by each kind of ranking.

    The kinds are "dense" (by cosine), "sparse" (by dot product, without documents that share no
    word with the query) and, for a model with both, "fused" (by reciprocal rank fusion). The 20
    best documents of the first two are kept, and their union is fused.

    Args:
        queries: Vectors of n queries.
        documents: Vectors of m documents from the same model.
        query_ids: n names.
        document_ids: m names, all different.
    """
    runs: dict[str, Run] = {}
    if queries.dense is not None and documents.dense is not None:
        score_rows = _dense_scores(queries.dense, documents.dense)
        runs["dense"] = _best_documents(score_rows, query_ids, document_ids)
    if queries.sparse is not None and documents.sparse is not None:
        score_rows = _sparse_scores(queries.sparse, documents.sparse)
        runs["sparse"] = _best_documents(score_rows, query_ids, document_ids, above=0)
    if "dense" in runs and "sparse" in runs:
        runs["fused"] = {}
        for query_id in query_ids:
            dense_ranking = sort_by_score(runs["dense"][query_id])
            sparse_ranking = sort_by_score(runs["sparse"][query_id])
            runs["fused"][query_id] = dict(rrf([dense_ranking, sparse_ranking]))
    return runs


def sort_by_score(scores: Mapping[str, float]) -> list[str]:
    """Return the document ids, best first; documents with equal scores by descending id.

    This is the order of trec_eval, which compares scores in single precision.
    """

    def sort_key(document_id: str) -> tuple[np.float32, str]:
        return np.float32(scores[document_id]), document_id

    return sorted(scores, key=sort_key, reverse=True)


def ndcg(run: Run, qrels: Qrels, k: int = TOP_DOCUMENTS) -> float:
    """Return the mean nDCG@k over the judged queries, with trec_eval's linear gain.

    DCG is the sum of grade / log2(rank + 1), with ranks from 1 (Järvelin and Kekäläinen 2002);
    nDCG divides it by the best possible DCG. A query counts 0 if the run lacks it, or if nothing
    is relevant to it. Grades below 0 count as 0.
    """
    query_scores = ndcg_by_query(run, qrels, k)
    # fsum makes the mean independent of the order of the queries.
    return math.fsum(query_scores.values()) / len(query_scores)


def ndcg_by_query(run: Run, qrels: Qrels, k: int = TOP_DOCUMENTS) -> dict[str, float]:
    """Return each judged query's nDCG@k; see `ndcg`."""
    query_scores = {}
    for query_id, grades in qrels.items():
        ranking = sort_by_score(run.get(query_id, {}))
        query_scores[query_id] = _query_ndcg(ranking[:k], grades, k)
    return query_scores


def overlap(reference: Run, candidate: Run, k: int = TOP_DOCUMENTS) -> float:
    """Return the share of the reference's k best documents that are among the candidate's k best.

    It is the mean over the queries for which the reference finds any, and 1 if there are none.
    """
    shares = []
    for query_id, scores in reference.items():
        reference_best = set(sort_by_score(scores)[:k])
        candidate_best = set(sort_by_score(candidate.get(query_id, {}))[:k])
        if reference_best:
            shares.append(len(reference_best & candidate_best) / len(reference_best))
    if not shares:
        return 1.0
    return math.fsum(shares) / len(shares)


def compare_retrieval(reference: Run, candidate: Run, qrels: Qrels | None) -> Retrieval:
    """Compare a candidate's ranking with the reference's of the same kind."""
    common_share = overlap(reference, candidate)
    if qrels is None:
        return Retrieval(overlap=common_share)
    reference_ndcg = ndcg(reference, qrels)
    candidate_ndcg = ndcg(candidate, qrels)
    ndcg_loss = None
    # A share of 0 is undefined.
    if reference_ndcg:
        ndcg_loss = (reference_ndcg - candidate_ndcg) / reference_ndcg
    return Retrieval(overlap=common_share, ndcg=candidate_ndcg, ndcg_loss=ndcg_loss)


class _Postings:
    """An inverted index over the sparse vectors of n documents: their weights by vocabulary id."""

    def __init__(self, documents: Sequence[SparseVector]) -> None:
        ids = np.concatenate([vector.indices for vector in documents])
        weights = np.concatenate([vector.values for vector in documents])
        lengths = [len(vector) for vector in documents]
        rows = np.repeat(np.arange(len(documents)), lengths)
        order = np.argsort(ids, kind="stable")
        self._size = len(documents)
        self._ids = ids[order]
        self._rows = rows[order]
        self._weights = weights[order]

    def scores(self, query: SparseVector) -> FloatArray:
        """Return the query's dot product with each document, float32 (n,)."""
        scores = np.zeros(self._size, dtype=np.float32)
        # The postings of an id are the slice in which the sorted ids equal it.
        starts = np.searchsorted(self._ids, query.indices, "left")
        ends = np.searchsorted(self._ids, query.indices, "right")
        for start, end, query_weight in zip(starts, ends, query.values, strict=True):
            # An id occurs once in a document, so no row is repeated within this slice.
            scores[self._rows[start:end]] += query_weight * self._weights[start:end]
        return scores


def _dense_scores(queries: FloatArray, documents: FloatArray) -> Iterator[FloatArray]:
    """Yield each query's cosine with every document, float32 (documents,)."""
    for start in range(0, len(queries), _QUERIES_PER_BLOCK):
        yield from queries[start : start + _QUERIES_PER_BLOCK] @ documents.T


def _sparse_scores(
    queries: Sequence[SparseVector], documents: Sequence[SparseVector]
) -> Iterator[FloatArray]:
    """Yield each query's dot product with every document, float32 (documents,)."""
    postings = _Postings(documents)
    for query in queries:
        yield postings.scores(query)


def _best_documents(
    score_rows: Iterable[FloatArray],
    query_ids: Sequence[str],
    document_ids: Sequence[str],
    *,
    above: float = -math.inf,
) -> Run:
    """Return the 20 best documents of each query, ranked as by `sort_by_score`.

    Args:
        score_rows: For each query, the scores of all documents, float32 (documents,).
        query_ids: Names of the queries.
        document_ids: Names of the documents.
        above: Documents with this score or a lower one are left out.
    """
    # With the documents in descending order of their ids, a stable sort by score leaves equally
    # good ones in that order, which is trec_eval's.
    positions = range(len(document_ids))
    descending = sorted(positions, key=document_ids.__getitem__, reverse=True)
    id_order = np.array(descending, dtype=np.intp)
    run: Run = {}
    for query_id, scores in zip(query_ids, score_rows, strict=True):
        best_places = np.argsort(-scores[id_order], kind="stable")[:_DEPTH]
        best_scores: dict[str, float] = {}
        for position in id_order[best_places]:
            if scores[position] > above:
                best_scores[document_ids[position]] = float(scores[position])
        run[query_id] = best_scores
    return run


def _query_ndcg(ranking: Sequence[str], grades: Mapping[str, int], k: int) -> float:
    """Return the nDCG of one query's ranking of at most k documents."""
    ideal_grades = sorted(grades.values(), reverse=True)[:k]
    ideal_dcg = _dcg(ideal_grades)
    if not ideal_dcg:
        return 0.0
    ranked_grades = [grades.get(document_id, 0) for document_id in ranking]
    return _dcg(ranked_grades) / ideal_dcg


def _dcg(grades: Sequence[int]) -> float:
    gains = []
    for rank, grade in enumerate(grades, start=1):
        gains.append(max(grade, 0) / math.log2(rank + 1))
    return math.fsum(gains)
