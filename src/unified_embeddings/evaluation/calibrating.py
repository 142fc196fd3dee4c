"""Fit a calibration of relevance to judged queries, and measure how far it can be believed.

What lives here: the evidence of judged hits, the fit, and its error on queries that it was not
fitted to. What does not: the value (`models.calibration`), and searching (`retrievers`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from unified_embeddings.errors import InputError
from unified_embeddings.evaluation.corpora import Qrels
from unified_embeddings.evaluation.fusion_choices import SearchedQuery
from unified_embeddings.evaluation.rankings import TOP_DOCUMENTS
from unified_embeddings.evaluation.tuning import deal_folds, require_queries
from unified_embeddings.fusion import fuse_lists
from unified_embeddings.models.calibration import Calibration, log_odds, logistic
from unified_embeddings.models.fusion import Fusion
from unified_embeddings.relevance import Evidence, level_in_order, weigh_evidence

DEPTH = 50
"""Items of each list that are read, unless a calibration says otherwise."""

_BINS = 10
_FEWEST = 5
"""Hits or queries of either kind below which nothing is fitted to them, or said about them."""
_CLOSE = 1e-9
_STEPS = 100

Numbers: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True)
class JudgedHits:
    """The hits of one query, in the order of the answer.

    Attributes:
        evidence: One row for each hit, (n, 4), in the order of `Evidence`'s fields.
        relevant: Whether the judgements name its document as relevant, (n,). What they do not name
            is not relevant, as in trec_eval.
    """

    evidence: Numbers
    relevant: NDArray[np.bool_]


@dataclass(frozen=True)
class CalibrationError:
    """How a calibration does on queries that it was not fitted to.

    Attributes:
        queries: How many there were.
        relevant: Share of their first ten hits that is relevant.
        mean: Mean relevance of those hits.
        ece: Expected calibration error over those hits: in ten bins of equal width, the difference
            between mean relevance and share of relevant hits, weighted by the hits of the bin.
        first_ece: The same, of the first hit of each query alone.
        weak: Share of the queries without a relevant hit among the ten.
        weak_auc: How well the best hit's relevance tells them from the others; None with fewer than
            five of either.
    """

    queries: int
    relevant: float
    mean: float
    ece: float
    first_ece: float
    weak: float
    weak_auc: float | None


def weigh_hits(
    searched: Mapping[str, SearchedQuery],
    query_weights: Mapping[str, float],
    qrels: Qrels,
    fusion: Fusion,
    *,
    background: float,
    depth: int = DEPTH,
    tie_key: Callable[[Any], Any] = str,
) -> dict[str, JudgedHits]:
    """Return the evidence of each query's hits, and which are relevant.

    Args:
        searched: Query id → what its searches found.
        query_weights: Query id → sum of its sparse weights.
        qrels: Relevance judgements; a query that they lack has nothing relevant.
        fusion: Orders the hits; without a weight for a keyword list.
        background: As in `relevance.weigh_evidence`.
        depth: The same.
        tie_key: Orders points whose fused scores tie, as the retriever does.
    """
    judged = {}
    for query_id, query in searched.items():
        evidence = weigh_evidence(
            query.dense,
            query.sparse,
            query_weight=query_weights[query_id],
            depth=depth,
            background=background,
        )
        lists = [query.dense[: fusion.candidates], query.sparse[: fusion.candidates]]
        fused = fuse_lists(
            lists, fusion.method, k=fusion.k, weights=fusion.weights[:2], tie_key=tie_key
        )
        points = [point for point, _ in fused if point in evidence]
        grades = qrels.get(query_id, {})
        rows = [evidence[point] for point in points]
        judged[query_id] = JudgedHits(
            evidence=np.array(rows, dtype=np.float64).reshape(len(rows), len(Evidence._fields)),
            relevant=np.array([_is_relevant(point, query, grades) for point in points], dtype=bool),
        )
    return judged


def find_background(searched: Iterable[SearchedQuery], depth: int = DEPTH) -> float:
    """Return the median, over queries, of the dense score at a depth, or of the list's last.

    Raises:
        InputError: If no query has a dense list.
    """
    scores = [query.dense[:depth][-1][1] for query in searched if query.dense]
    if not scores:
        raise InputError("no question has a dense list; relevance is calibrated on both lists")
    return float(np.median(scores))


def fit_calibration(
    hits: Mapping[str, JudgedHits],
    *,
    base: Calibration | None,
    background: float,
    depth: int = DEPTH,
    source: str = "",
) -> Calibration:
    """Return the calibration that fits the first ten hits of each query best.

    Args:
        hits: Query id → its hits.
        base: One that is right but for slope and offset, such as the model's own; two numbers are
            fitted then, for which few queries are enough. None fits all five.
        background: As in `relevance.weigh_evidence`; `base` has its own.
        depth: The same.
        source: Where the numbers come from.

    Raises:
        InputError: If fewer than five of the hits are relevant, or fewer than five are not.
    """
    evidence, relevant = _join_first(hits.values())
    _require_both(relevant)
    if base is not None:
        base_odds = (base.intercept + evidence @ np.array(base.coefficients))[:, None]
        offset, (slope,) = fit_logistic(base_odds, relevant)
        return replace(base.adjust(slope, offset), source=source, ece=None, weak_auc=None)
    intercept, coefficients = fit_logistic(evidence, relevant)
    named = dict(zip(Evidence._fields, coefficients, strict=True))
    calibration = Calibration(
        intercept=intercept, background=background, depth=depth, source=source, **named
    )
    return replace(calibration, weak_below=find_weak_bound(calibration, hits))


def cross_validate(
    hits: Mapping[str, JudgedHits], fit: Callable[[Mapping[str, JudgedHits]], Calibration]
) -> CalibrationError:
    """Return how calibrations do on queries that they are not fitted to, by ten folds.

    Args:
        hits: Query id → its hits, of ten queries or more.
        fit: Fits a calibration to some of them.

    Raises:
        InputError: If there are too few queries, or too few relevant hits without one of the folds.
    """
    require_queries(len(hits))
    relevances: dict[str, Numbers] = {}
    for fold in deal_folds(hits):
        others = {query_id: of_query for query_id, of_query in hits.items() if query_id not in fold}
        calibration = fit(others)
        relevances.update({query_id: judge(calibration, hits[query_id]) for query_id in fold})
    return assess(hits, relevances)


def judge(calibration: Calibration, hits: JudgedHits) -> Numbers:
    """Return the relevance of each hit of a query, (n,), before it is put in order."""
    rows = [calibration.relevance(Evidence(*row)) for row in hits.evidence.tolist()]
    return np.array(rows, dtype=np.float64)


def assess(hits: Mapping[str, JudgedHits], relevances: Mapping[str, Numbers]) -> CalibrationError:
    """Return how far relevances are from what was judged.

    Args:
        hits: Query id → its hits, at least one query.
        relevances: Query id → the relevance of each, as `judge` gives it.
    """
    shown, first, relevant, first_relevant, best, is_answered = [], [], [], [], [], []
    for query_id, of_query in hits.items():
        level = level_in_order(relevances[query_id].tolist())[:TOP_DOCUMENTS]
        grades = of_query.relevant[:TOP_DOCUMENTS].tolist()
        shown += level
        relevant += grades
        first += level[:1]
        first_relevant += grades[:1]
        best.append(max(relevances[query_id][:TOP_DOCUMENTS], default=0.0))
        is_answered.append(any(grades))
    return CalibrationError(
        queries=len(hits),
        relevant=float(np.mean(relevant)),
        mean=float(np.mean(shown)),
        ece=expected_error(shown, relevant),
        first_ece=expected_error(first, first_relevant),
        weak=1 - float(np.mean(is_answered)),
        weak_auc=area_under_curve(best, is_answered),
    )


def expected_error(probabilities: Sequence[float], outcomes: Sequence[bool]) -> float:
    """Return the expected calibration error (Naeini, Cooper and Hauskrecht 2015), ten bins.

    Args:
        probabilities: From 0 to 1, at least one.
        outcomes: Whether each came true.
    """
    values, truths = np.array(probabilities), np.array(outcomes, dtype=np.float64)
    bins = np.minimum((values * _BINS).astype(int), _BINS - 1)
    # A bin's share of the hits times the difference of its means is the difference of its sums.
    differences = np.bincount(bins, weights=values - truths, minlength=_BINS)
    return float(np.abs(differences).sum() / len(values))


def area_under_curve(scores: Sequence[float], outcomes: Sequence[bool]) -> float | None:
    """Return how often one that came true scores above one that did not; ties count one half.

    That is the area under the ROC curve. None with fewer than five of either.
    """
    values, truths = np.array(scores), np.array(outcomes, dtype=bool)
    positive, negative = values[truths], np.sort(values[~truths])
    if min(len(positive), len(negative)) < _FEWEST:
        return None
    below = np.searchsorted(negative, positive, side="left")
    not_above = np.searchsorted(negative, positive, side="right")
    return float((below + not_above).mean() / 2 / len(negative))


def fit_logistic(features: Numbers, outcomes: NDArray[np.bool_]) -> tuple[float, tuple[float, ...]]:
    """Return intercept and coefficients >= 0 of the logistic regression that fits best.

    The best fit with no negative coefficient is the best of some subset of the features, fitted as
    if there were no such rule. So every subset is tried. Coefficients of features scaled to
    deviation 1 have a normal prior of deviation 1, without which they would grow without end where
    a feature tells the outcomes apart perfectly.

    Args:
        features: (n, m), for a small m.
        outcomes: (n,), both kinds.
    """
    deviations = features.std(axis=0)
    usable = [column for column in range(features.shape[1]) if deviations[column] > 0]
    scaled = features / np.where(deviations > 0, deviations, 1.0)
    best_loss, best_fit = np.inf, np.zeros(1)
    best_columns: tuple[int, ...] = ()
    for size in range(len(usable) + 1):
        for columns in itertools.combinations(usable, size):
            fitted, loss = _fit_freely(scaled[:, columns], outcomes)
            if loss < best_loss and (fitted[1:] >= 0).all():
                best_loss, best_fit, best_columns = loss, fitted, columns
    coefficients = np.zeros(features.shape[1])
    for column, coefficient in zip(best_columns, best_fit[1:], strict=True):
        coefficients[column] = coefficient / deviations[column]
    return float(best_fit[0]), tuple(coefficients.tolist())


def _fit_freely(features: Numbers, outcomes: NDArray[np.bool_]) -> tuple[Numbers, float]:
    """Return intercept and coefficients of any sign by Newton's method, and the loss."""
    columns = np.column_stack([np.ones(len(features)), features])
    prior = np.diag([0.0] + [1.0] * features.shape[1])
    share = outcomes.mean()
    fitted = np.zeros(columns.shape[1])
    fitted[0] = np.log(share / (1 - share))
    loss = _loss(columns, outcomes, fitted)
    for _ in range(_STEPS):
        probabilities = 1 / (1 + np.exp(-columns @ fitted))
        gradient = columns.T @ (probabilities - outcomes) + prior @ fitted
        weights = probabilities * (1 - probabilities)
        step = np.linalg.solve((columns.T * weights) @ columns + prior, gradient)
        # Newton's full step may overshoot; half of it often enough does not.
        while True:
            next_loss = _loss(columns, outcomes, fitted - step)
            if next_loss <= loss or np.abs(step).max() < _CLOSE:
                break
            step = step / 2
        fitted, loss = fitted - step, next_loss
        if np.abs(step).max() < _CLOSE:
            break
    return fitted, loss


def _loss(columns: Numbers, outcomes: NDArray[np.bool_], fitted: Numbers) -> float:
    log_odds_of = columns @ fitted
    likelihoods = np.logaddexp(0, log_odds_of) - outcomes * log_odds_of
    return float(likelihoods.sum() + (fitted[1:] ** 2).sum() / 2)


def find_weak_bound(calibration: Calibration, hits: Mapping[str, JudgedHits]) -> float | None:
    """Return the relevance of the best hit at which one query of two has a relevant hit.

    That is among its first ten, and depends on how many of the queries have one at all.

    Args:
        calibration: Judges the hits.
        hits: Query id → its hits, of queries such as users ask.

    Returns:
        A relevance; None if it cannot be told, as with fewer than five queries of either kind.
    """
    best_odds, is_answered = [], []
    for of_query in hits.values():
        best = max(judge(calibration, of_query)[:TOP_DOCUMENTS], default=0.0)
        best_odds.append(log_odds(min(max(best, _CLOSE), 1 - _CLOSE)))
        is_answered.append(bool(of_query.relevant[:TOP_DOCUMENTS].any()))
    if min(sum(is_answered), len(is_answered) - sum(is_answered)) < _FEWEST:
        return None
    offset, (slope,) = fit_logistic(np.array(best_odds)[:, None], np.array(is_answered))
    return None if slope == 0 else logistic(-offset / slope)


def _join_first(hits: Iterable[JudgedHits]) -> tuple[Numbers, NDArray[np.bool_]]:
    """Return the first ten hits of each query as one array."""
    all_hits = list(hits)
    evidence = [of_query.evidence[:TOP_DOCUMENTS] for of_query in all_hits]
    relevant = [of_query.relevant[:TOP_DOCUMENTS] for of_query in all_hits]
    return np.concatenate(evidence), np.concatenate(relevant)


def _require_both(relevant: NDArray[np.bool_]) -> None:
    count = int(relevant.sum())
    if min(count, len(relevant) - count) < _FEWEST:
        raise InputError(
            f"calibration needs at least {_FEWEST} relevant hits and as many others among the "
            f"first ten of each question, got {count} of {len(relevant)}. Judge more questions, "
            "or documents"
        )


def _is_relevant(point: Hashable, query: SearchedQuery, grades: Mapping[str, int]) -> bool:
    document = query.document_of.get(point)
    return document is not None and grades.get(document, 0) > 0
