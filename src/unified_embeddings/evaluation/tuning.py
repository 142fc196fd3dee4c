"""Choose how a collection's dense and sparse rankings are fused, by cross-validation.

What lives here: choosing on some queries, judging on others, and what came of it. What does not:
the choices and their scores (`fusion_choices`), and recording the choice (`stores.fusion_choice`).

The queries are dealt into ten folds. Each fold is judged by the choice that is made on the other
nine, so that no query has a say in the choice that it is judged by. Where queries are few, the best
of some ninety choices is likely the best by luck. Hence the default stays unless another choice
beats it by more than 1.5 standard errors of the difference, a stricter form of the rule of one
standard error (Breiman, Friedman, Olshen and Stone 1984). ADR 26 has what other thresholds do.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from unified_embeddings.errors import InputError
from unified_embeddings.evaluation.fusion_choices import SINGLE_LISTS
from unified_embeddings.evaluation.metrics import QueryScores
from unified_embeddings.evaluation.significance import (
    PairedDifference,
    compare_scores,
    half_width,
)
from unified_embeddings.models.fusion import Fusion

FEWEST_QUERIES = 10
"""Judged queries below which nothing is chosen: a fold would be less than a query."""

_FOLDS = 10
_STANDARD_ERRORS = 1.5
"""By how many standard errors a choice must beat the default in order to replace it.

Of ten independent choices that are no better than the default, the luckiest is expected to lie 1.54
standard errors above it.
"""
_TYPICAL_DEVIATION = 0.12
"""Of a query's difference in nDCG@10 between two fusions: 0.06 to 0.15 on the data at hand."""


@dataclass(frozen=True)
class FoldChoice:
    """What was chosen without one of the folds, and how it did on it.

    Attributes:
        choice: The choice made on the other folds.
        queries: Queries of the fold.
        ndcg: Its nDCG@10 on them.
        default_ndcg: The default's.
    """

    choice: Fusion
    queries: int
    ndcg: float
    default_ndcg: float


@dataclass(frozen=True)
class TuningReport:
    """What tuning chose, and what it gains on queries that it was not chosen on.

    Attributes:
        default: The fusion to beat, the model's own or its keyword list's.
        choice: What is chosen on all queries; the default if nothing beats it clearly.
        best_single: The better list alone, on all queries.
        means: Each choice's nDCG@10 on all queries.
        held_out: nDCG@10 of the choices made by cross-validation, each on its own fold.
        against_default: How much more that is than the default's.
        against_single: How much more that is than the best single list's.
        folds: The choices made by cross-validation.
        queries: Number of judged queries.
    """

    default: Fusion
    choice: Fusion
    best_single: Fusion
    means: dict[Fusion, float]
    held_out: float
    against_default: PairedDifference
    against_single: PairedDifference
    folds: tuple[FoldChoice, ...]
    queries: int

    @property
    def is_change(self) -> bool:
        """Whether something other than the default is chosen."""
        return self.choice != self.default

    @property
    def is_accepted(self) -> bool:
        """Whether there is a change, and held out it is not worse than the default."""
        return self.is_change and self.against_default.mean >= 0


def tune_fusion(scores: Mapping[Fusion, QueryScores], default: Fusion) -> TuningReport:
    """Choose a fusion by its scores, and judge the way of choosing on held-out queries.

    Args:
        scores: Each choice's nDCG@10 of the same queries, as `fusion_choices.score_choices` gives
            them: the default and both lists alone among them.
        default: The fusion to beat.

    Raises:
        InputError: If there are fewer than ten queries; the message says what so few can show.
    """
    default_scores = scores[default]
    require_queries(len(default_scores))
    held_out: QueryScores = {}
    folds = []
    for fold in deal_folds(default_scores):
        held = frozenset(fold)
        kept = [query_id for query_id in default_scores if query_id not in held]
        choice = choose(scores, default, kept)
        fold_scores = {query_id: scores[choice][query_id] for query_id in fold}
        held_out.update(fold_scores)
        folds.append(
            FoldChoice(
                choice=choice,
                queries=len(fold),
                ndcg=_mean(fold_scores.values()),
                default_ndcg=_mean(default_scores[query_id] for query_id in fold),
            )
        )
    means = {choice: _mean(query_scores.values()) for choice, query_scores in scores.items()}
    singles = [single for single in SINGLE_LISTS if single in means]
    best_single = max(singles, key=lambda single: means[single])
    return TuningReport(
        default=default,
        choice=choose(scores, default, list(default_scores)),
        best_single=best_single,
        means=means,
        held_out=_mean(held_out.values()),
        against_default=compare_scores(default_scores, held_out),
        against_single=compare_scores(scores[best_single], held_out),
        folds=tuple(folds),
        queries=len(default_scores),
    )


def require_queries(count: int) -> None:
    """Refuse to tune on so few queries that the choice would be luck.

    Raises:
        InputError: If there are fewer than ten; the message says what so few can show.
    """
    if count >= FEWEST_QUERIES:
        return
    reach = ""
    if count > 1:
        smallest = half_width(count, deviation=_TYPICAL_DEVIATION)
        reach = f": with {count}, a difference in nDCG@10 below about {smallest:.2f} is not seen"
    raise InputError(
        f"tuning needs at least {FEWEST_QUERIES} judged queries, got {count}{reach}. Judge more"
    )


def choose(
    scores: Mapping[Fusion, QueryScores], default: Fusion, query_ids: Iterable[str]
) -> Fusion:
    """Return the best choice on some queries, or the default where nothing beats it clearly.

    Of equally good choices, the first one is taken.

    Args:
        scores: Each choice's nDCG@10 by query.
        default: The fusion to beat by more than 1.5 standard errors.
        query_ids: The queries to choose by, at least two.
    """
    chosen_ids = list(query_ids)
    best = max(scores, key=lambda choice: _mean(scores[choice][name] for name in chosen_ids))
    differences = [scores[best][name] - scores[default][name] for name in chosen_ids]
    gain = _mean(differences)
    squares = math.fsum((difference - gain) ** 2 for difference in differences)
    error = math.sqrt(squares / (len(differences) - 1) / len(differences))
    return best if gain > _STANDARD_ERRORS * error else default


def deal_folds(query_ids: Iterable[str]) -> list[list[str]]:
    """Return the queries in ten folds of nearly equal size, the same at every call.

    They are dealt out in the order of their ids' SHA-256. So folds do not depend on the order in
    which queries are listed, and neighbours, which are often about the same text, are apart.
    """
    ordered = sorted(query_ids, key=lambda name: hashlib.sha256(name.encode()).digest())
    return [ordered[start::_FOLDS] for start in range(min(_FOLDS, len(ordered)))]


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return math.fsum(numbers) / len(numbers)
