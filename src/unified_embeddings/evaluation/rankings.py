"""Rankings of documents, and how good they are against judgements."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from unified_embeddings.evaluation.corpora import Qrels
from unified_embeddings.fusion import rrf
from unified_embeddings.types import Embeddings, FloatArray, SparseVector

Run: TypeAlias = dict[str, dict[str, float]]
"""Query id → document id → score; the higher, the better."""


TOP_DOCUMENTS = 10
"""Documents of a ranking that are compared and judged."""


_DEPTH = 20
"""Documents of each ranking that are fused: as many as the retriever asks for by default."""


_ROWS = 64
"""Queries scored at once, so that a large corpus needs little memory."""


@dataclass(frozen=True)
class Retrieval:
    """One kind of ranking.

    Attributes:
        overlap: Share of the reference's ten best documents that are among the candidate's ten,
            mean over the queries for which the reference finds any.
        ndcg: nDCG@10; None without relevance judgements.
        ndcg_loss: Share of the reference's nDCG@10 that is lost, below 0 where there is more; None
            without judgements, or where the reference has none to lose.
    """

    overlap: float
    ndcg: float | None = None
    ndcg_loss: float | None = None


def rankings(
    queries: Embeddings,
    documents: Embeddings,
    query_ids: Sequence[str],
    document_ids: Sequence[str],
) -> dict[str, Run]:
    """The best documents for each query: "dense", "sparse" and, of a model with both, "fused".

    Dense by cosine; sparse by dot product, documents without a word of the query left out; fused by
    reciprocal rank fusion of the twenty best of each.
    """
    runs: dict[str, Run] = {}
    if queries.dense is not None and documents.dense is not None:
        table, vectors = documents.dense.T, queries.dense
        runs["dense"] = _best(
            (vectors[at] @ table for at in _blocks(len(vectors))), query_ids, document_ids
        )
    if queries.sparse is not None and documents.sparse is not None:
        postings, weights = _Postings(documents.sparse), queries.sparse
        runs["sparse"] = _best(
            (postings.scores(weights[at]) for at in _blocks(len(weights))), query_ids, document_ids,
            above=0,
        )  # fmt: skip
    if len(runs) == 2:
        runs["fused"] = {
            query: dict(rrf([ranked(runs[kind][query]) for kind in ("dense", "sparse")]))
            for query in query_ids
        }
    return runs


def ranked(scores: Mapping[str, float]) -> list[str]:
    """Document ids, best first; equal scores by id, descending.

    So does trec_eval, which holds scores in single precision.
    """
    return sorted(scores, key=lambda name: (np.float32(scores[name]), name), reverse=True)


def ndcg(run: Run, qrels: Qrels, k: int = TOP_DOCUMENTS) -> float:
    """Mean nDCG@k over the judged queries, with trec_eval's linear gain.

    DCG = Σ grade / log2(rank + 1), rank from 1 (Järvelin and Kekäläinen 2002). A query that the run
    lacks, or for which nothing is relevant, counts 0; grades below 0 count as 0.
    """
    return math.fsum(
        _ndcg(ranked(run.get(query, {}))[:k], grades, k) for query, grades in qrels.items()
    ) / len(qrels)


def overlap(reference: Run, candidate: Run, k: int = TOP_DOCUMENTS) -> float:
    """Share of the reference's k best documents that are among the candidate's k best.

    The mean over the queries for which the reference finds any; 1 if there is none.
    """
    shares = []
    for query, scores in reference.items():
        best = ranked(scores)[:k]
        if best:
            shares.append(len({*best} & {*ranked(candidate.get(query, {}))[:k]}) / len(best))
    return math.fsum(shares) / len(shares) if shares else 1.0


def retrieval(reference: Run, candidate: Run, qrels: Qrels | None) -> Retrieval:
    """Compare one kind of ranking."""
    common = overlap(reference, candidate)
    if qrels is None:
        return Retrieval(common)
    full, found = ndcg(reference, qrels), ndcg(candidate, qrels)
    return Retrieval(common, found, (full - found) / full if full else None)


class _Postings:
    """The sparse vectors of n documents by vocabulary id."""

    def __init__(self, documents: Sequence[SparseVector]) -> None:
        ids = np.concatenate([one.indices for one in documents])
        rows = np.repeat(np.arange(len(documents)), [len(one) for one in documents])
        order = np.argsort(ids, kind="stable")
        self._size = len(documents)
        self._ids, self._rows = ids[order], rows[order]
        self._values = np.concatenate([one.values for one in documents])[order]

    def scores(self, queries: Sequence[SparseVector]) -> FloatArray:
        """Dot product of each pair, float32 (queries, n)."""
        scores = np.zeros((len(queries), self._size), dtype=np.float32)
        for row, query in zip(scores, queries, strict=True):
            starts = np.searchsorted(self._ids, query.indices, "left")
            ends = np.searchsorted(self._ids, query.indices, "right")
            for start, end, weight in zip(starts, ends, query.values, strict=True):
                row[self._rows[start:end]] += weight * self._values[start:end]
        return scores


def _blocks(size: int) -> list[slice]:
    return [slice(start, start + _ROWS) for start in range(0, size, _ROWS)]


def _best(
    blocks: Any, query_ids: Sequence[str], document_ids: Sequence[str], above: float = -math.inf
) -> Run:
    """The twenty best of each row of scores, as `ranked` has them."""
    # Where ids descend, a stable sort by score leaves equal scores in the order of `ranked`.
    order = np.array(sorted(range(len(document_ids)), key=document_ids.__getitem__, reverse=True))
    run: Run = {}
    names = iter(query_ids)
    for block in blocks:
        for row in block:
            scores = row[order]
            best = np.argsort(-scores, kind="stable")[:_DEPTH]
            run[next(names)] = {
                document_ids[order[at]]: float(scores[at]) for at in best if scores[at] > above
            }
    return run


def _ndcg(found: Sequence[str], grades: Mapping[str, int], k: int) -> float:
    ideal = _dcg(sorted(grades.values(), reverse=True)[:k])
    return _dcg([grades.get(name, 0) for name in found]) / ideal if ideal else 0.0


def _dcg(grades: Sequence[int]) -> float:
    return math.fsum(max(grade, 0) / math.log2(at + 2) for at, grade in enumerate(grades))
