"""How alike two orders of the same items are: Kendall's rank correlation."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from unified_embeddings.errors import InputError


def kendall_tau(first: Sequence[float], second: Sequence[float]) -> float:
    """Return Kendall's τ-b of two scorings of the same items, from -1 to 1.

    Of all pairs of items, those that both scorings order alike count for it, and those that they
    order the other way round against it. Pairs that tie count for neither, and the sum is divided
    by the geometric mean of the numbers of pairs that do not tie in the one and in the other
    (Kendall 1945).

    Args:
        first: A score for each item, at least two, all finite.
        second: As many others.

    Returns:
        τ-b; NaN if all items tie in one of the two.

    Raises:
        InputError: If the two differ in length, are shorter than two, or a score is not finite.

    Example:
        >>> from unified_embeddings.evaluation.rank_correlation import kendall_tau
        >>> round(kendall_tau([1, 2, 3, 4], [1, 2, 4, 3]), 3)    # five pairs alike, one not
        0.667
    """
    if len(first) != len(second) or len(first) < 2:
        raise InputError(
            f"expected two scores for each of two items or more, got {len(first)} and {len(second)}"
        )
    if not all(map(math.isfinite, (*first, *second))):
        raise InputError("expected finite scores")
    balance = first_pairs = second_pairs = 0
    for (first_a, second_a), (first_b, second_b) in itertools.combinations(
        zip(first, second, strict=True), 2
    ):
        first_order = (first_a > first_b) - (first_a < first_b)
        second_order = (second_a > second_b) - (second_a < second_b)
        balance += first_order * second_order
        first_pairs += abs(first_order)
        second_pairs += abs(second_order)
    if not first_pairs or not second_pairs:
        return math.nan
    return balance / math.sqrt(first_pairs * second_pairs)
