"""Which fusions there are to choose from, and how well each does on judged queries.

What lives here: the choices, and their scores. What does not: choosing between them (`tuning`), and
searching (`retrievers.both_lists`). The lists of a query are searched for once. Every choice
then fuses them with the arithmetic that the retriever uses.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from unified_embeddings.errors import InputError
from unified_embeddings.evaluation.corpora import Qrels
from unified_embeddings.evaluation.metrics import QueryScores
from unified_embeddings.evaluation.rankings import TOP_DOCUMENTS, ndcg_by_query
from unified_embeddings.fusion import Method, fuse_lists
from unified_embeddings.models.fusion import Fusion

ScoredPoints: TypeAlias = Sequence[tuple[Hashable, float]]
"""(point, score), best first; the highest score is the best."""

DEEPEST = 100
"""Depth to which the two lists are searched: the most that a choice fuses."""

_DEPTHS = (20, 50, DEEPEST)
_RRF_KS = (10, 20, 60)
_RRF_WEIGHTS = ((1.0, 0.3), (1.0, 0.6), (1.0, 1.0), (0.6, 1.0), (0.3, 1.0))
_DENSE_WEIGHTS: dict[Method, tuple[float, ...]] = {
    "dbsf": (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8),
    # Close to DBSF on all data at hand, so fewer of them: each choice is one more to be lucky.
    "z": (0.3, 0.5, 0.7),
    "min_max": (0.3, 0.5, 0.7),
}
"""Weight of the dense list in fusions by score; the sparse one has the rest of 1."""

DENSE_ALONE = Fusion(weights=(1.0, 0.0), candidates=50)
SPARSE_ALONE = Fusion(weights=(0.0, 1.0), candidates=50)
BM25_ALONE = Fusion(weights=(0.0, 0.0, 1.0), candidates=50)

SINGLE_LISTS = (DENSE_ALONE, SPARSE_ALONE, BM25_ALONE)

_THREE_RRF_WEIGHTS = ((1.0, 1.0, 1.0), (1.0, 0.5, 0.5), (1.0, 0.3, 0.6))
_TENTHS = range(1, 9)


@dataclass(frozen=True)
class SearchedQuery:
    """What the two searches for one query found.

    Attributes:
        dense: Points by their dense score.
        sparse: Points by their sparse score.
        bm25: Points by their score in the keyword list.
        document_of: Point → the document that it belongs to, as the judgements name it. Points
            without one belong to no judged document.
    """

    dense: ScoredPoints
    sparse: ScoredPoints
    document_of: Mapping[Hashable, str]
    bm25: ScoredPoints = ()


def list_choices(default: Fusion, *, keywords: bool = False) -> list[Fusion]:
    """Return the fusions to choose from: the default, one list alone, and each method, weighted.

    Args:
        default: The fusion to beat.
        keywords: Whether there is a keyword list, which adds choices with three weights.
    """
    choices = [default, DENSE_ALONE, SPARSE_ALONE]
    for weights, k, candidates in itertools.product(_RRF_WEIGHTS, _RRF_KS, _DEPTHS):
        choices.append(Fusion(weights=weights, k=k, candidates=candidates))
    for method, dense_weights in _DENSE_WEIGHTS.items():
        for dense_weight, candidates in itertools.product(dense_weights, _DEPTHS):
            weights = (dense_weight, round(1 - dense_weight, 2))
            choices.append(Fusion(weights=weights, candidates=candidates, method=method))
    if keywords:
        choices += _list_choices_of_three()
    return list(dict.fromkeys(choices))


def _list_choices_of_three() -> list[Fusion]:
    """Return the choices that fuse a keyword list too, or take it alone."""
    choices = [BM25_ALONE]
    for weights, k, candidates in itertools.product(_THREE_RRF_WEIGHTS, _RRF_KS, (50, DEEPEST)):
        choices.append(Fusion(weights=weights, k=k, candidates=candidates))
    for dense, sparse, candidates in itertools.product(_TENTHS, range(9), (50, DEEPEST)):
        # Two lists, the dense one and the keyword list, are among them: the sparse weight is 0.
        if dense + sparse < 10:
            shares = (dense / 10, sparse / 10, (10 - dense - sparse) / 10)
            choices.append(Fusion(weights=shares, candidates=candidates, method="dbsf"))
    return choices


def score_choices(
    searched: Mapping[str, SearchedQuery],
    qrels: Qrels,
    choices: Iterable[Fusion],
    *,
    tie_key: Callable[[Any], Any] = str,
    on_choice: Callable[[int], None] = lambda _: None,
) -> dict[Fusion, QueryScores]:
    """Return the nDCG@10 of each judged query with each choice.

    Args:
        searched: Query id → what its searches found, at least for every judged query.
        qrels: Relevance judgements.
        choices: Fusions, each once.
        tie_key: Orders points whose fused scores tie, as the retriever does.
        on_choice: Called with 1 after each choice.

    Raises:
        InputError: If a judged query was not searched for.
    """
    for query_id in qrels:
        if query_id not in searched:
            raise InputError(f"the judged query {query_id!r} was not searched for")
    scores: dict[Fusion, QueryScores] = {}
    for choice in choices:
        run = {}
        for query_id in qrels:
            documents = fuse_documents(searched[query_id], choice, tie_key=tie_key)
            run[query_id] = {name: -float(rank) for rank, name in enumerate(documents)}
        scores[choice] = ndcg_by_query(run, qrels)
        on_choice(1)
    return scores


def fuse_documents(
    query: SearchedQuery, fusion: Fusion, *, tie_key: Callable[[Any], Any] = str
) -> list[str]:
    """Return the ten best documents of a query; a document stands where its best point stands."""
    lists = (query.dense, query.sparse, query.bm25)[: len(fusion.weights)]
    rankings = [points[: fusion.candidates] for points in lists]
    fused = fuse_lists(rankings, fusion.method, k=fusion.k, weights=fusion.weights, tie_key=tie_key)
    documents: dict[str, None] = {}
    for point, _ in fused:
        document = query.document_of.get(point)
        if document is not None:
            documents.setdefault(document)
        if len(documents) == TOP_DOCUMENTS:
            break
    return list(documents)
