"""Overlap and rank-biased overlap, against values worked by hand and a slow definition."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unified_embeddings.errors import InputError
from unified_embeddings.evaluation.ranked_lists import list_overlap, rank_biased_overlap

LISTS = st.lists(st.integers(0, 12), max_size=10, unique=True)


def test_the_overlap_is_the_share_of_common_items_in_the_first_places() -> None:
    assert list_overlap(["a", "b", "c"], ["c", "a", "d"], 3) == pytest.approx(2 / 3)
    assert list_overlap(["a", "b", "c"], ["c", "a", "d"], 1) == 0
    # The longer list counts: an answer of one node agrees with half of an answer of two.
    assert list_overlap(["a"], ["a", "b"], 10) == 0.5
    assert list_overlap([], ["a"], 10) == 0
    assert list_overlap([], [], 10) == 1


def test_rank_biased_overlap_by_hand() -> None:
    # Agreement 0, 1, 2/3 at the depths 1, 2, 3; the last one goes on for ever.
    expected = (1 - 0.9) * (0 + 1 * 0.9 + 2 / 3 * 0.81) + 2 / 3 * 0.9**3
    assert rank_biased_overlap(["a", "b", "c"], ["b", "a", "d"]) == pytest.approx(expected)
    # Of unequal length: one item of two seen in common, and every item of the shorter list is, so
    # the agreement stays 1 beyond its end.
    assert rank_biased_overlap(["a"], ["a", "b"]) == pytest.approx(1)
    assert rank_biased_overlap([], []) == 1
    assert rank_biased_overlap([], ["a"]) == 0


@given(LISTS, LISTS, st.floats(0.05, 0.95))
def test_rank_biased_overlap_is_a_symmetric_share(
    first: list[int], second: list[int], p: float
) -> None:
    value = rank_biased_overlap(first, second, p)
    assert -1e-9 <= value <= 1 + 1e-9
    assert value == pytest.approx(rank_biased_overlap(second, first, p))
    assert rank_biased_overlap(first, first, p) == pytest.approx(1)
    if not set(first) & set(second) and (first or second):
        assert value == pytest.approx(0)


@given(st.permutations(range(8)), st.permutations(range(8)), st.floats(0.3, 0.9))
def test_lists_of_one_length_agree_with_the_infinite_sum(
    first: list[int], second: list[int], p: float
) -> None:
    """The definition: (1 - p) Σ p^(d-1) agreement(d), the agreement after the end as at the end."""
    total = 0.0
    for depth in range(1, 2000):
        end = min(depth, 8)
        total += p ** (depth - 1) * len(set(first[:end]) & set(second[:end])) / end
    assert rank_biased_overlap(first, second, p) == pytest.approx((1 - p) * total)


def test_bad_input_is_refused() -> None:
    with pytest.raises(InputError, match="between 0 and 1"):
        rank_biased_overlap(["a"], ["a"], 1.0)
    with pytest.raises(InputError, match="once"):
        rank_biased_overlap(["a", "a"], ["a"])
