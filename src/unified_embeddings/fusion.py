"""Merging rankings by rank or by score, in one order: pure Python, without a model or a store."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from unified_embeddings.errors import InputError
from unified_embeddings.validation import check_is_list

Item = TypeVar("Item", bound=Hashable)
Ranked = TypeVar("Ranked")

_ROUNDING = 1e-12
"""Relative difference below which two sums are the same sum, rounded differently."""


def rrf(
    rankings: Sequence[Iterable[Item]],
    k: int = 60,
    weights: Sequence[float] | None = None,
    *,
    tie_key: Callable[[Item], Any] | None = None,
) -> list[tuple[Item, float]]:
    """Fuse rankings by reciprocal rank: an item scores Σ over rankings of weight / (k + rank + 1).

    Cormack, Clarke and Büttcher 2009, with k = 60, which they found best. Ranks count from 0, so
    the top of two lists of weight 1 scores 2/61.

    Args:
        rankings: Items of each ranking, best first. An item that occurs twice in one ranking
            counts where it comes first.
        k: Damping, >= 0. The larger it is, the less the first ranks stand out.
        weights: One for each ranking, >= 0; None makes all of them 1. An item whose weights are
            all 0 is left out.
        tie_key: Orders items that tie in score and in their best rank, as `sorted` takes it. None
            leaves them in the order in which they first appear.

    Returns:
        (item, score), best first. Of equal scores, the item with the better single rank comes
        first.

    Raises:
        InputError: If k or a weight is negative, or their number is not that of the rankings. If
            a ranking is not a list (a text or a dict, for example).
    """
    return _add_up(rrf_terms(rankings, k, weights), tie_key)


def rrf_terms(
    rankings: Sequence[Iterable[Item]], k: int = 60, weights: Sequence[float] | None = None
) -> list[list[tuple[Item, float]]]:
    """Return what each ranking adds to each item's score in `rrf`.

    Args:
        rankings: As in `rrf`.
        k: As in `rrf`.
        weights: As in `rrf`.

    Returns:
        For each ranking whose weight is above 0, (item, its term of the sum), best first.

    Raises:
        InputError: As in `rrf`.
    """
    if not k >= 0:
        raise InputError(f"k must be >= 0, got {k}")
    terms = []
    for ranking, weight in _weighted(rankings, weights):
        items = dict.fromkeys(ranking)
        terms.append([(item, weight / (k + rank + 1)) for rank, item in enumerate(items)])
    return terms


def dbsf(
    rankings: Sequence[Iterable[tuple[Item, float]]],
    weights: Sequence[float] | None = None,
    *,
    tie_key: Callable[[Item], Any] | None = None,
) -> list[tuple[Item, float]]:
    """Fuse rankings by score: an item scores Σ over rankings of weight · normalised score.

    This is Mazzeschi's distribution-based score fusion (2023), as Qdrant computes it, with weights.
    In each ranking, the mean less three standard deviations becomes 0 and the mean plus three
    becomes 1. Scores beyond are not clipped, so that an outlier keeps its lead. The deviation is
    the sample's, with n - 1. All scores become 0.5 where they are equal, or where there is one
    only. An item that a ranking lacks gets 0 from it.

    Args:
        rankings: (item, score) of each ranking, best first; the higher the score, the better. An
            item that occurs twice in one ranking counts where it comes first.
        weights: One for each ranking, >= 0; None makes all of them 1, as in Qdrant. A ranking of
            weight 0 is left out.
        tie_key: Orders items that tie in score and in their best rank, as `sorted` takes it. None
            leaves them in the order in which they first appear.

    Returns:
        (item, score), best first. Of equal scores, the item with the better single rank comes
        first.

    Raises:
        InputError: If a score is not finite, a weight is negative, or the number of weights is not
            that of the rankings. If a ranking is not a list (a text or a dict, for example).

    Example:
        >>> from unified_embeddings.fusion import dbsf
        >>> dense, sparse = [("a", 3.0), ("b", 1.0)], [("b", 7.0)]
        >>> [(item, round(score, 3)) for item, score in dbsf([dense, sparse], [0.6, 0.4])]
        [('b', 0.429), ('a', 0.371)]
    """
    return _add_up(dbsf_terms(rankings, weights), tie_key)


def dbsf_terms(
    rankings: Sequence[Iterable[tuple[Item, float]]], weights: Sequence[float] | None = None
) -> list[list[tuple[Item, float]]]:
    """Return what each ranking adds to each item's score in `dbsf`.

    Args:
        rankings: As in `dbsf`.
        weights: As in `dbsf`.

    Returns:
        For each ranking whose weight is above 0, (item, its term of the sum), best first.

    Raises:
        InputError: As in `dbsf`.
    """
    terms = []
    for ranking, weight in _weighted(rankings, weights):
        scores: dict[Item, float] = {}
        for item, score in ranking:
            scores.setdefault(item, score)
        shares = _normalise(list(scores.values()))
        terms.append([(item, weight * share) for item, share in zip(scores, shares, strict=True)])
    return terms


def _normalise(scores: Sequence[float]) -> list[float]:
    """Map scores so that their mean becomes 0.5, and three standard deviations around it 0 and 1.

    Raises:
        InputError: If a score is not finite.
    """
    if any(not math.isfinite(score) for score in scores):
        raise InputError(f"scores must be finite numbers, got {list(scores)}")
    if not scores or max(scores) == min(scores):
        return [0.5] * len(scores)
    # A power of two changes no digit, and squares of the largest and smallest floats stay floats.
    exponent = math.frexp(max(map(abs, scores)))[1]
    scores = [math.ldexp(score, -exponent) for score in scores]
    mean = math.fsum(scores) / len(scores)
    variance = math.fsum((score - mean) ** 2 for score in scores) / (len(scores) - 1)
    reach = 3 * math.sqrt(variance)
    return [(score - mean + reach) / (2 * reach) for score in scores]


def _weighted(
    rankings: Sequence[Iterable[Ranked]], weights: Sequence[float] | None
) -> Iterator[tuple[Iterable[Ranked], float]]:
    """Yield each ranking with its weight, without those of weight 0.

    Raises:
        InputError: If a weight is negative, their number is not that of the rankings, or a ranking
            is not a list.
    """
    check_is_list(rankings, "rankings")
    for ranking in rankings:
        check_is_list(ranking, "items")
    if weights is None:
        weights = [1.0] * len(rankings)
    if len(weights) != len(rankings):
        raise InputError(f"{len(rankings)} rankings need as many weights, got {len(weights)}")
    if any(not 0 <= weight < math.inf for weight in weights):
        raise InputError(f"weights must be >= 0 and finite, got {list(weights)}")
    for ranking, weight in zip(rankings, weights, strict=True):
        if weight > 0:
            yield ranking, weight


def _add_up(
    rankings: Iterable[Sequence[tuple[Item, float]]], tie_key: Callable[[Item], Any] | None
) -> list[tuple[Item, float]]:
    """Return each item with the sum of its terms, best first.

    Args:
        rankings: (item, its term of the sum) of each ranking, best first, each item once.
        tie_key: Orders items that tie in their sum and in their best rank.
    """
    terms_of: dict[Item, list[float]] = {}
    best_ranks: dict[Item, int] = {}
    for ranking in rankings:
        for rank, (item, term) in enumerate(ranking):
            terms_of.setdefault(item, []).append(term)
            best_ranks[item] = min(rank, best_ranks.get(item, rank))
    # fsum rounds once, so that the score does not depend on the order of the rankings.
    scores = {item: math.fsum(terms) for item, terms in terms_of.items()}
    places = {item: place for place, item in enumerate(scores)}
    last_key = places.__getitem__ if tie_key is None else tie_key

    def order_of_tie(item: Item) -> tuple[int, Any]:
        return best_ranks[item], last_key(item)

    # Equal sums of different fractions, such as 1/63 + 1/126 and 1/84 + 1/84, differ in their bits.
    return sort_by_score(scores.items(), order_of_tie, relative=_ROUNDING)


def sort_by_score(
    scored: Iterable[tuple[Item, float]],
    tie_key: Callable[[Item], Any],
    *,
    relative: float = 0.0,
    absolute: float = 0.0,
) -> list[tuple[Item, float]]:
    """Sort items by score, best first, and items whose scores tie by a key of their own.

    Scores tie with the best of their group, which they differ from by rounding alone, and get that
    score. So sorting the result by score again changes nothing.

    Args:
        scored: (item, score), in any order.
        tie_key: Orders the items of a tie, as `sorted` takes it.
        relative: Difference below which scores tie, as a share of the group's best.
        absolute: Difference below which scores tie, whatever their size.
    """
    by_score = sorted(scored, key=lambda pair: -pair[1])
    ordered: list[tuple[Item, float]] = []
    start = 0
    while start < len(by_score):
        best_score = by_score[start][1]
        tolerance = max(relative * abs(best_score), absolute)
        end = start + 1
        while end < len(by_score) and best_score - by_score[end][1] <= tolerance:
            end += 1
        tied_items = [item for item, _ in by_score[start:end]]
        ordered += [(item, best_score) for item in sorted(tied_items, key=tie_key)]
        start = end
    return ordered
