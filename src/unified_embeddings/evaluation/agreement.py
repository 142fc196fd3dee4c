"""How far one model's vectors are from another's, and what that does to what is found.

What lives here: pure functions over two `Embeddings`, and the rows they are put into. What does
not: making the vectors (`measurement`), showing the rows (`cli`).

"Reference" is the model in fp32, "candidate" the same model in another precision or engine. A
reference compared with itself agrees fully: 1 for every share, 0 for every difference.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from unified_embeddings.engines.base import Runtime
from unified_embeddings.evaluation.corpora import Qrels
from unified_embeddings.fusion import rrf
from unified_embeddings.heads import colbert_score
from unified_embeddings.types import Embeddings, FloatArray, SparseVector

Run: TypeAlias = dict[str, dict[str, float]]
"""Query id → document id → score; the higher, the better."""

TOP_IDS = 5
"""Heaviest ids of a sparse vector that are compared."""
TOP_DOCUMENTS = 10
"""Documents of a ranking that are compared and judged."""
_DEPTH = 20
"""Documents of each ranking that are fused: as many as the retriever asks for by default."""
_ROWS = 64
"""Queries scored at once, so that a large corpus needs little memory."""


@dataclass(frozen=True)
class DenseAgreement:
    """Cosine similarity of each text's two dense vectors.

    Attributes:
        cosine_min: The smallest over the texts.
        cosine_mean: Their mean.
        cosine_p5: Their 5th percentile.
    """

    cosine_min: float
    cosine_mean: float
    cosine_p5: float


@dataclass(frozen=True)
class SparseAgreement:
    """How far each text's two sparse vectors name the same vocabulary ids.

    Attributes:
        jaccard: Ids in both over ids in either, mean over the texts.
        top_same: Share of the texts whose heaviest ids are the same set.
        top_common: Share of the reference's heaviest ids that are among the candidate's, mean over
            the texts that have any.
    """

    jaccard: float
    top_same: float
    top_common: float


@dataclass(frozen=True)
class ColbertAgreement:
    """Absolute difference of the ColBERT score (MaxSim over query rows, mean) of text pairs.

    Attributes:
        maxsim_largest: The largest over the pairs.
        maxsim_mean: Their mean.
    """

    maxsim_largest: float
    maxsim_mean: float


@dataclass(frozen=True)
class Agreement:
    """A candidate's vectors beside the reference's; None for a head the model has not."""

    dense: DenseAgreement | None = None
    sparse: SparseAgreement | None = None
    colbert: ColbertAgreement | None = None


@dataclass(frozen=True)
class Drift:
    """How far a text's vectors depend on its batch-mates; None for a head the model has not.

    Attributes:
        dense_cosine: Largest 1 - cosine of a text embedded alone and among others.
        dense: Largest absolute difference of a value of the dense vectors.
        sparse: Largest absolute difference of a weight; an id that is missing weighs 0.
        colbert: Largest absolute difference of a value of the ColBERT vectors.
    """

    dense_cosine: float | None = None
    dense: float | None = None
    sparse: float | None = None
    colbert: float | None = None


@dataclass(frozen=True)
class Cost:
    """What a model takes of one machine.

    Attributes:
        size: Bytes of the weights' files.
        resident: Resident bytes of a process of its own after loading and a first query.
        peak: The most resident bytes of it, all documents embedded; None where the system does not
            tell.
        load_s: Seconds from a process without a model library to the first query's vectors.
        query_ms_p50: Milliseconds for one query, median over different queries.
        query_ms_p99: The 99th percentile of them.
        queries: How many were timed.
        query_tokens: Their median length in tokens, special tokens included.
        tokens_per_s: Tokens embedded a second over all documents, median over the rounds.
        tokens_per_s_min: The slowest round.
        tokens_per_s_max: The fastest round.
        rounds: How many there were; one where it takes long.
    """

    size: int
    resident: int
    peak: int | None
    load_s: float
    query_ms_p50: float
    query_ms_p99: float
    queries: int
    query_tokens: float
    tokens_per_s: float
    tokens_per_s_min: float
    tokens_per_s_max: float
    rounds: int


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


@dataclass(frozen=True)
class Row:
    """One candidate.

    Attributes:
        name: For people.
        problem: Why it could not be measured; then there is nothing else.
        runtime: Engine, device and precision it ran on.
        cost: What it takes.
        drift: How far its vectors depend on batch-mates.
        agreement: None for another model than the reference's: their vectors do not compare.
        retrieval: "dense", "sparse" and "fused", those of them the model can do.
    """

    name: str
    problem: str | None = None
    runtime: Runtime | None = None
    cost: Cost | None = None
    drift: Drift | None = None
    agreement: Agreement | None = None
    retrieval: dict[str, Retrieval] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """Candidates beside their reference.

    Attributes:
        model: The model's name.
        machine: What it was measured on.
        corpus: Name and numbers of the texts.
        rows: The reference, then the candidates.
    """

    model: str
    machine: dict[str, Any]
    corpus: dict[str, Any]
    rows: tuple[Row, ...]


# --- vectors ------------------------------------------------------------------------------------


def dense_agreement(reference: FloatArray, candidate: FloatArray) -> DenseAgreement:
    """Compare unit vectors, float32 (n, d) each, row by row; n >= 1."""
    cosines = _cosines(reference, candidate)
    return DenseAgreement(
        float(cosines.min()), float(cosines.mean()), float(np.percentile(cosines, 5))
    )


def sparse_agreement(
    reference: Sequence[SparseVector], candidate: Sequence[SparseVector], k: int = TOP_IDS
) -> SparseAgreement:
    """Compare n sparse vectors each, text by text; n >= 1. Two empty vectors agree fully."""
    jaccard, same, common = [], [], []
    for one, other in zip(reference, candidate, strict=True):
        either = {*one} | {*other}
        jaccard.append(len({*one} & {*other}) / len(either) if either else 1.0)
        tops = _heaviest(one, k), _heaviest(other, k)
        same.append(tops[0] == tops[1])
        if tops[0]:
            common.append(len(tops[0] & tops[1]) / len(tops[0]))
    return SparseAgreement(
        float(np.mean(jaccard)), float(np.mean(same)), float(np.mean(common)) if common else 1.0
    )


def colbert_agreement(reference: FloatArray, candidate: FloatArray) -> ColbertAgreement:
    """Compare the scores of the same pairs, float (queries, documents) each."""
    differences = np.abs(np.subtract(reference, candidate, dtype=np.float64))
    return ColbertAgreement(float(differences.max()), float(differences.mean()))


def colbert_scores(queries: Sequence[FloatArray], documents: Sequence[FloatArray]) -> FloatArray:
    """The ColBERT score of every pair, float32 (queries, documents); 0 for a text without rows."""
    return np.array(
        [[colbert_score(q, d) if len(q) and len(d) else 0.0 for d in documents] for q in queries],
        dtype=np.float32,
    )


def drift(alone: Embeddings, together: Embeddings) -> Drift:
    """Compare the vectors of the same texts, embedded one by one and in one call."""
    dense_cosine = dense = sparse = colbert = None
    if alone.dense is not None and together.dense is not None:
        dense_cosine = float((1 - _cosines(alone.dense, together.dense)).max())
        dense = _largest_difference(alone.dense, together.dense)
    if alone.sparse is not None and together.sparse is not None:
        sparse = max(map(_largest_weight_difference, alone.sparse, together.sparse))
    if alone.colbert is not None and together.colbert is not None:
        colbert = max(map(_largest_difference, alone.colbert, together.colbert))
    return Drift(dense_cosine, dense, sparse, colbert)


def _cosines(one: FloatArray, other: FloatArray) -> NDArray[np.float64]:
    """Of each pair of rows; in float64, where 1 - cosine of near vectors is more than rounding."""
    first, second = one.astype(np.float64), other.astype(np.float64)
    norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    cosines = (first * second).sum(axis=1) / np.where(norms > 0, norms, 1)
    same = (first == second).all(axis=1)  # two zero vectors too
    return np.asarray(np.where(same, 1, np.clip(cosines, -1, 1)))


def _largest_difference(one: FloatArray, other: FloatArray) -> float:
    return float(np.abs(one - other).max(initial=0))


def _largest_weight_difference(one: SparseVector, other: SparseVector) -> float:
    return max((abs(one.get(i, 0.0) - other.get(i, 0.0)) for i in {*one} | {*other}), default=0.0)


def _heaviest(vector: SparseVector, k: int) -> set[int]:
    """The k ids of the largest weights; of equal weights the smaller id."""
    return set(vector.indices[np.argsort(-vector.values, kind="stable")[:k]].tolist())


# --- rankings -----------------------------------------------------------------------------------


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
