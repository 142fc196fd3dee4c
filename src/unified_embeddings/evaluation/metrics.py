"""Rate a run against relevance judgements, as trec_eval does.

What lives here: precision, recall, reciprocal rank and average precision of each query, and all
measures of a run together. What does not: nDCG, which quantisation needs too (`rankings`); whether
a difference is more than luck (`significance`).

All measures share trec_eval's conventions. Documents with equal scores, compared in single
precision, are ordered by descending id. A grade of 1 or more is relevant; a document without a
grade is not. The mean is over all judged queries: one that the run lacks, or that has no relevant
document, counts 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

from unified_embeddings.errors import InputError
from unified_embeddings.evaluation.corpora import Qrels
from unified_embeddings.evaluation.rankings import Run, ndcg_by_query, sort_by_score
from unified_embeddings.validation import require_whole_number

QueryScores: TypeAlias = dict[str, float]
"""Query id → score."""

TOP_DOCUMENTS = 10
"""The k of nDCG@k and others, unless another is given."""

_Rating: TypeAlias = Callable[[Sequence[bool], int], float]
"""Rates a ranking: whether each of its documents is relevant, and how many relevant ones exist."""


@dataclass(frozen=True)
class RunScores:
    """A run's scores for each judged query.

    Attributes:
        k: How many documents of each ranking the first four count.
        depth: How many documents of each ranking MAP counts.
        ndcg: nDCG@k.
        recall: recall@k.
        precision: precision@k.
        mrr: Reciprocal rank of the first relevant document among the first k; its mean is MRR@k.
        average_precision: Average precision among the first `depth`; its mean is MAP@depth.
    """

    k: int
    depth: int
    ndcg: QueryScores
    recall: QueryScores
    precision: QueryScores
    mrr: QueryScores
    average_precision: QueryScores

    def means(self) -> dict[str, float]:
        """Return the mean of each measure by its name, such as "nDCG@10", nDCG first."""
        return {
            f"nDCG@{self.k}": mean(self.ndcg),
            f"recall@{self.k}": mean(self.recall),
            f"precision@{self.k}": mean(self.precision),
            f"MRR@{self.k}": mean(self.mrr),
            f"MAP@{self.depth}": mean(self.average_precision),
        }


def score_run(run: Run, qrels: Qrels, *, k: int = TOP_DOCUMENTS, depth: int = 100) -> RunScores:
    """Rate a run by every measure.

    Args:
        run: Query id → document id → score. Queries without judgements are ignored.
        qrels: The judgements, of at least one query.
        k: How many documents of each ranking are rated; MAP rates `depth`.
        depth: How many documents of each ranking MAP rates, at least `k`.

    Raises:
        InputError: If there are no judgements, a score is not a number, or a number is out of
            range.

    Example:
        >>> from unified_embeddings.evaluation.metrics import score_run
        >>> run = {"q1": {"d1": 0.9, "d2": 0.7, "d3": 0.1}}
        >>> scores = score_run(run, {"q1": {"d2": 1, "d9": 1}}, k=2)
        >>> scores.mrr, scores.precision, scores.recall
        ({'q1': 0.5}, {'q1': 0.5}, {'q1': 0.5})
    """
    require_whole_number("k", k)
    require_whole_number("depth", depth, least=k)
    _require_judgements(run, qrels)
    return RunScores(
        k=k,
        depth=depth,
        ndcg=ndcg_by_query(run, qrels, k),
        recall=recall_by_query(run, qrels, k),
        precision=precision_by_query(run, qrels, k),
        mrr=reciprocal_rank_by_query(run, qrels, k),
        average_precision=average_precision_by_query(run, qrels, depth),
    )


def mean(scores: Mapping[str, float]) -> float:
    """Return the mean over the queries, at least one."""
    # fsum makes the mean independent of the order of the queries.
    return math.fsum(scores.values()) / len(scores)


def precision_by_query(run: Run, qrels: Qrels, k: int = TOP_DOCUMENTS) -> QueryScores:
    """Return the share of relevant documents among the first k places, empty places included."""
    return _rate(run, qrels, k, partial(_precision, k=k))


def recall_by_query(run: Run, qrels: Qrels, k: int = TOP_DOCUMENTS) -> QueryScores:
    """Return the share of all relevant documents that is among the first k."""
    return _rate(run, qrels, k, _recall)


def reciprocal_rank_by_query(run: Run, qrels: Qrels, k: int | None = None) -> QueryScores:
    """Return 1 / rank of the first relevant document, 0 if there is none among the first k.

    Args:
        run: What was found.
        qrels: The judgements.
        k: How many documents are looked at; None looks at all.
    """
    return _rate(run, qrels, k, _reciprocal_rank)


def average_precision_by_query(run: Run, qrels: Qrels, k: int | None = None) -> QueryScores:
    """Return the mean, over all relevant documents, of the precision at their ranks.

    A relevant document that is not among the first k adds 0.

    Args:
        run: What was found.
        qrels: The judgements.
        k: How many documents are looked at; None looks at all.
    """
    return _rate(run, qrels, k, _average_precision)


def _rate(run: Run, qrels: Qrels, k: int | None, rating: _Rating) -> QueryScores:
    scores: QueryScores = {}
    for query_id, grades in qrels.items():
        relevant = {document_id for document_id, grade in grades.items() if grade > 0}
        scores[query_id] = 0.0
        if relevant:
            ranking = sort_by_score(run.get(query_id, {}))[:k]
            is_relevant = [document_id in relevant for document_id in ranking]
            scores[query_id] = rating(is_relevant, len(relevant))
    return scores


def _precision(is_relevant: Sequence[bool], relevant_count: int, *, k: int) -> float:  # noqa: ARG001
    return sum(is_relevant) / k


def _recall(is_relevant: Sequence[bool], relevant_count: int) -> float:
    return sum(is_relevant) / relevant_count


def _reciprocal_rank(is_relevant: Sequence[bool], relevant_count: int) -> float:  # noqa: ARG001
    for rank, hit in enumerate(is_relevant, start=1):
        if hit:
            return 1 / rank
    return 0.0


def _average_precision(is_relevant: Sequence[bool], relevant_count: int) -> float:
    precisions = []
    hits = 0
    for rank, hit in enumerate(is_relevant, start=1):
        if hit:
            hits += 1
            precisions.append(hits / rank)
    return math.fsum(precisions) / relevant_count


def _require_judgements(run: Run, qrels: Qrels) -> None:
    if not qrels:
        raise InputError("expected judgements of at least one query, got none")
    for query_id in qrels:
        for document_id, score in run.get(query_id, {}).items():
            if math.isnan(score):
                raise InputError(
                    f"the score of document {document_id!r} for query {query_id!r} is not a "
                    "number, so it has no place in a ranking"
                )
