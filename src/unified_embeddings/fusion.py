"""Merging rankings by rank alone: pure Python, without a model or a store."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from typing import TypeVar

from unified_embeddings.errors import InputError

Item = TypeVar("Item", bound=Hashable)


def rrf(
    rankings: Sequence[Iterable[Item]], k: int = 60, weights: Sequence[float] | None = None
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

    Returns:
        (item, score), best first; equal scores in the order the items first appear.

    Raises:
        InputError: If k or a weight is negative, or their number is not that of the rankings.
    """
    if not k >= 0:
        raise InputError(f"k must be >= 0, got {k}")
    if weights is None:
        weights = [1.0] * len(rankings)
    if len(weights) != len(rankings):
        raise InputError(f"{len(rankings)} rankings need as many weights, got {len(weights)}")
    if any(not weight >= 0 for weight in weights):
        raise InputError(f"weights must be >= 0, got {list(weights)}")
    terms_of: dict[Item, list[float]] = {}
    for ranking, weight in zip(rankings, weights, strict=True):
        if weight == 0:
            continue
        for rank, item in enumerate(dict.fromkeys(ranking)):
            terms_of.setdefault(item, []).append(weight / (k + rank + 1))
    # fsum rounds once, so that the score does not depend on the order of the rankings.
    scores = {item: math.fsum(terms) for item, terms in terms_of.items()}
    return sorted(scores.items(), key=lambda scored: -scored[1])
