"""Merging rankings by rank or by score, in one order: pure Python, without a model or a store."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any, Literal, TypeVar

from unified_embeddings.errors import InputError
from unified_embeddings.score_scales import (
    count_deviations,
    spread_by_deviation,
    spread_by_range,
)
from unified_embeddings.validation import check_is_list

Item = TypeVar("Item", bound=Hashable)
Ranked = TypeVar("Ranked")

Normalisation = Literal["min_max", "z"]
"""How `convex` makes the scores of different rankings comparable."""
Method = Literal["rrf", "dbsf", "min_max", "z"]
"""By rank (`rrf`), or by score (`dbsf`, and `convex` with either normalisation)."""

_ROUNDING = 1e-12
"""Relative difference below which two sums are the same sum, rounded differently."""


def fuse_lists(
    rankings: Sequence[Sequence[tuple[Item, float]]],
    method: Method,
    *,
    k: int = 60,
    weights: Sequence[float] | None = None,
    tie_key: Callable[[Item], Any] | None = None,
) -> list[tuple[Item, float]]:
    """Fuse rankings in the way that is named; see the function of that way.

    Args:
        rankings: (item, score) of each ranking, best first; the higher the score, the better.
        method: "rrf" takes the ranks alone, the others the scores.
        k: RRF's damping; without effect on the others.
        weights: One for each ranking, >= 0; None makes all of them 1.
        tie_key: Orders items that tie in score and in their best rank.

    Raises:
        InputError: If a score is not finite and the method takes it, a weight is negative, or the
            number of weights is not that of the rankings.
    """
    return _add_up(list_terms(rankings, method, k=k, weights=weights), tie_key)


def list_terms(
    rankings: Sequence[Sequence[tuple[Item, float]]],
    method: Method,
    *,
    k: int = 60,
    weights: Sequence[float] | None = None,
) -> list[list[tuple[Item, float]]]:
    """Return what each ranking adds to each item's score in `fuse_lists`.

    Args:
        rankings: As in `fuse_lists`.
        method: As in `fuse_lists`.
        k: As in `fuse_lists`.
        weights: As in `fuse_lists`.

    Returns:
        For each ranking whose weight is above 0, (item, its term of the sum), best first.

    Raises:
        InputError: As in `fuse_lists`.
    """
    if method == "rrf":
        items_by_rank = [[item for item, _ in ranking] for ranking in rankings]
        return rrf_terms(items_by_rank, k, weights)
    if method == "dbsf":
        return dbsf_terms(rankings, weights)
    return convex_terms(rankings, method, weights)


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
    return _score_terms(rankings, weights, spread_by_deviation)


def convex(
    rankings: Sequence[Iterable[tuple[Item, float]]],
    normalisation: Normalisation,
    weights: Sequence[float] | None = None,
    *,
    tie_key: Callable[[Item], Any] | None = None,
) -> list[tuple[Item, float]]:
    """Fuse rankings by a convex combination: Σ over rankings of share · normalised score.

    The shares are the weights divided by their sum, so that they add up to 1; see Bruch, Gai and
    Ingber (2023) for such combinations beside RRF. In each ranking the lowest score becomes 0.
    "min_max" makes the highest 1, so that fused scores lie in 0 to 1. "z" counts in standard
    deviations (the sample's, with n - 1). That orders items as z-scores do, which would all be
    lower by the same sum.

    An item that a ranking lacks gets 0 from it, as the last of the ranking does: all that is known
    of its score is that it is not above the lowest. Where scores are equal, or there is one only,
    they become 1: to be in the ranking is better than not to be.

    Args:
        rankings: (item, score) of each ranking, best first; the higher the score, the better. An
            item that occurs twice in one ranking counts where it comes first.
        normalisation: "min_max" or "z".
        weights: One for each ranking, >= 0; None makes all of them alike. A ranking of weight 0 is
            left out.
        tie_key: Orders items that tie in score and in their best rank, as `sorted` takes it. None
            leaves them in the order in which they first appear.

    Returns:
        (item, score), best first. Of equal scores, the item with the better single rank comes
        first.

    Raises:
        InputError: As in `dbsf`, or if the normalisation is unknown.

    Example:
        >>> from unified_embeddings.fusion import convex
        >>> dense, sparse = [("a", 0.9), ("b", 0.8), ("c", 0.7)], [("b", 7.0), ("d", 1.0)]
        >>> [(item, round(score, 3)) for item, score in convex([dense, sparse], "min_max", [3, 1])]
        [('a', 0.75), ('b', 0.625), ('d', 0.0), ('c', 0.0)]
    """
    return _add_up(convex_terms(rankings, normalisation, weights), tie_key)


def convex_terms(
    rankings: Sequence[Iterable[tuple[Item, float]]],
    normalisation: Normalisation,
    weights: Sequence[float] | None = None,
) -> list[list[tuple[Item, float]]]:
    """Return what each ranking adds to each item's score in `convex`.

    Args:
        rankings: As in `convex`.
        normalisation: As in `convex`.
        weights: As in `convex`.

    Returns:
        For each ranking whose weight is above 0, (item, its term of the sum), best first.

    Raises:
        InputError: As in `convex`.
    """
    normalise_with = {"min_max": spread_by_range, "z": count_deviations}
    if normalisation not in normalise_with:
        raise InputError(f"normalisation must be 'min_max' or 'z', not {normalisation!r}")
    if weights is None:
        weights = [1.0] * len(rankings)
    return _score_terms(rankings, convex_shares(weights), normalise_with[normalisation])


def convex_shares(weights: Sequence[float]) -> list[float]:
    """Return the weights of a convex combination: divided by their sum, unless all are 0."""
    largest = max(weights, default=0.0)
    if not 0 < largest < math.inf:
        return list(weights)
    # Divided by the largest first, as their sum may be beyond the largest float.
    relative = [weight / largest for weight in weights]
    total = math.fsum(relative)
    return [weight / total for weight in relative]


def _score_terms(
    rankings: Sequence[Iterable[tuple[Item, float]]],
    weights: Sequence[float] | None,
    normalise: Callable[[Sequence[float]], list[float]],
) -> list[list[tuple[Item, float]]]:
    """Return weight · normalised score of each item of each ranking whose weight is above 0."""
    terms = []
    for ranking, weight in _weighted(rankings, weights):
        scores: dict[Item, float] = {}
        for item, score in ranking:
            scores.setdefault(item, score)
        shares = normalise(list(scores.values()))
        terms.append([(item, weight * share) for item, share in zip(scores, shares, strict=True)])
    return terms


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
