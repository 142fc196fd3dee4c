"""How alike two ranked lists of the same question are, without any judgements.

What lives here: the overlap of two lists, and their rank-biased overlap. What does not: the overlap
of whole runs (`rankings`), and which list is better, which only judgements can tell.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from unified_embeddings.errors import InputError

PERSISTENCE = 0.9
"""RBO's p: the first ten places hold 86% of the weight (Webber, Moffat and Zobel 2010, 4.3)."""


def list_overlap(first: Sequence[Hashable], second: Sequence[Hashable], k: int) -> float:
    """Return the share of items that the first k places of two lists have in common.

    It is the number of common items over the length of the longer list, at most k. Two empty lists
    agree fully; an empty and another list do not agree at all.

    Args:
        first: Items, best first, all different.
        second: Items, best first, all different.
        k: How many places of each are compared, >= 1.

    Example:
        >>> from unified_embeddings.evaluation.ranked_lists import list_overlap
        >>> list_overlap(["a", "b", "c"], ["b", "a", "d"], 2)
        1.0
    """
    first_best, second_best = set(first[:k]), set(second[:k])
    longer = max(len(first_best), len(second_best))
    if not longer:
        return 1.0
    return len(first_best & second_best) / longer


def rank_biased_overlap(
    first: Sequence[Hashable], second: Sequence[Hashable], p: float = PERSISTENCE
) -> float:
    """Return the extrapolated rank-biased overlap of two ranked lists, from 0 to 1.

    Unlike Kendall's tau it allows items that are in one of the lists only, which is the rule for
    the best ten of two indexes, and it weighs the first places most. The formula is RBO_ext of
    Webber, Moffat and Zobel, "A similarity measure for indefinite rankings", ACM TOIS 28(4), 2010,
    equation 32: the agreement at each depth d, weighted by (1 - p) p^(d-1), and beyond the lists'
    ends the agreement seen last.

    Args:
        first: Items, best first, all different.
        second: Items, best first, all different.
        p: Persistence: how likely a reader goes on to the next place, between 0 and 1.

    Raises:
        InputError: If `p` is out of range, or an item is repeated.

    Example:
        >>> from unified_embeddings.evaluation.ranked_lists import rank_biased_overlap
        >>> round(rank_biased_overlap(["a", "b"], ["b", "a"]), 6)   # 0 at depth 1, then 1
        0.9
    """
    if not 0 < p < 1:
        raise InputError(f"p must be between 0 and 1, got {p}")
    shorter, longer = sorted((first, second), key=len)
    if len(set(shorter)) != len(shorter) or len(set(longer)) != len(longer):
        raise InputError("a ranked list names each item once; remove the repeated ones")
    if not shorter:
        return 0.0 if longer else 1.0
    s, l = len(shorter), len(longer)  # noqa: E741  # the paper's names
    common = _common_items(shorter, longer)
    common_at_s, common_at_l = common[s - 1], common[l - 1]
    total = 0.0
    for depth in range(1, l + 1):
        total += common[depth - 1] / depth * p**depth
        if depth > s:
            total += common_at_s * (depth - s) / (s * depth) * p**depth
    rest = ((common_at_l - common_at_s) / l + common_at_s / s) * p**l
    return (1 - p) / p * total + rest


def _common_items(shorter: Sequence[Hashable], longer: Sequence[Hashable]) -> list[int]:
    """Return how many items the two lists share down to each depth of the longer one."""
    shorter_seen: set[Hashable] = set()
    longer_seen: set[Hashable] = set()
    counts: list[int] = []
    for depth, item in enumerate(longer):
        longer_seen.add(item)
        if depth < len(shorter):
            shorter_seen.add(shorter[depth])
        counts.append(len(shorter_seen & longer_seen))
    return counts
