"""The evidence of two rankings, worked out by hand, and relevance in the order of an answer."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unified_embeddings.relevance import Evidence, level_in_order, weigh_evidence

DENSE = [("a", 0.9), ("b", 0.7), ("c", 0.4)]
SPARSE = [("b", 6.0), ("d", 4.0), ("a", 1.0)]


def weigh(
    dense: list[tuple[str, float]] = DENSE,
    sparse: list[tuple[str, float]] = SPARSE,
    query_weight: float = 2.0,
    depth: int = 3,
) -> dict[str, Evidence]:
    return weigh_evidence(dense, sparse, query_weight=query_weight, depth=depth, background=0.3)


class TestByHand:
    def test_two_full_lists(self) -> None:
        """Gaps above c's 0.4; sparse scores over 2; half of 21/21, 21/22, 21/23 from each list."""
        evidence = weigh()
        assert evidence["a"] == pytest.approx((0.5, 0.5, -2.5, 0.5 * (1 + 21 / 23)))
        assert evidence["b"] == pytest.approx((0.3, 3.0, 1.0, 0.5 * (21 / 22 + 1)))
        # Neither list says more of c and d than that they are not above its last item.
        assert evidence["c"] == pytest.approx((0.0, 0.5, -2.5, 0.5 * 21 / 23))
        assert evidence["d"] == pytest.approx((0.0, 2.0, -1.0, 0.5 * 21 / 22))

    def test_short_lists_are_measured_from_the_background_and_from_no_word(self) -> None:
        evidence = weigh(depth=10)
        assert evidence["a"].dense_gap == pytest.approx(0.9 - 0.3)
        assert evidence["d"].dense_gap == 0.0
        assert evidence["c"].sparse_share == 0.0
        assert evidence["c"].sparse_lead == pytest.approx(-3.0)

    def test_a_short_list_below_the_background(self) -> None:
        evidence = weigh([("a", 0.2), ("b", 0.1)], depth=10)
        assert evidence["a"].dense_gap == pytest.approx(0.1)
        assert evidence["b"].dense_gap == 0.0

    def test_items_beyond_the_depth_are_as_if_missing(self) -> None:
        evidence = weigh([*DENSE, ("e", 0.1)], [*SPARSE, ("f", 0.5)])
        assert {item: evidence[item] for item in "abcd"} == weigh()
        assert evidence["e"] == evidence["f"] == pytest.approx((0.0, 0.5, -2.5, 0.0))

    def test_a_question_without_lexical_weights(self) -> None:
        evidence = weigh(sparse=[], query_weight=0.0)
        assert evidence["a"] == pytest.approx((0.5, 0.0, 0.0, 0.5))

    def test_first_in_both_agrees_fully(self) -> None:
        assert weigh([("a", 0.5)], [("a", 2.0)])["a"].agreement == pytest.approx(1.0)

    def test_two_first_items_lead_nobody(self) -> None:
        evidence = weigh(sparse=[("a", 4.0), ("b", 4.0)])
        assert evidence["a"].sparse_lead == evidence["b"].sparse_lead == 0.0

    def test_nothing_found(self) -> None:
        assert weigh([], []) == {}


scores = st.lists(st.integers(0, 40), min_size=1, max_size=6).map(
    lambda whole: [number / 40 for number in sorted(whole, reverse=True)]
)


@given(scores, scores, st.data())
def test_a_higher_score_never_lowers_any_evidence(
    dense_scores: list[float], sparse_scores: list[float], data: st.DataObject
) -> None:
    """Of any item, in either list; also of one that enters the list by it."""
    dense = list(zip("abcdef", dense_scores, strict=False))
    sparse = list(zip("fedcba", sparse_scores, strict=False))
    before = weigh(dense, sparse, depth=4)
    lists = {"dense": dense, "sparse": sparse}
    name = data.draw(st.sampled_from(sorted(lists)))
    item = data.draw(st.sampled_from(sorted(before)))
    others = [pair for pair in lists[name] if pair[0] != item]
    own = dict(lists[name]).get(item, min(score for _, score in lists[name]))
    raised = own + data.draw(st.integers(1, 40)) / 40
    place = sum(score >= raised for _, score in others)
    lists[name] = [*others[:place], (item, raised), *others[place:]]
    after = weigh(lists["dense"], lists["sparse"], depth=4)
    for now, then in zip(after[item], before[item], strict=True):
        assert now >= then - 1e-12


class TestLevel:
    def test_values_that_fall_stay(self) -> None:
        assert level_in_order([0.9, 0.5, 0.5, 0.1]) == [0.9, 0.5, 0.5, 0.1]

    def test_values_that_rise_become_their_mean(self) -> None:
        assert level_in_order([0.2, 0.6, 0.1]) == pytest.approx([0.4, 0.4, 0.1])
        # 0.5 and 0.7 pool to 0.6, which is above 0.3: all three are 0.5.
        assert level_in_order([0.3, 0.5, 0.7]) == pytest.approx([0.5] * 3)
        assert level_in_order([]) == []

    @given(st.lists(st.integers(0, 100), max_size=12))
    def test_falls_keeps_the_sum_and_changes_nothing_twice(self, values: list[int]) -> None:
        level = level_in_order(values)
        assert all(first >= second for first, second in itertools.pairwise(level))
        assert sum(level) == pytest.approx(sum(values))
        assert level_in_order(level) == pytest.approx(level)

    @given(st.lists(st.integers(0, 100), min_size=1, max_size=12), st.data())
    def test_a_higher_value_lowers_none(self, values: list[int], data: st.DataObject) -> None:
        at = data.draw(st.integers(0, len(values) - 1))
        raised = list(values)
        raised[at] += data.draw(st.integers(1, 50))
        for now, then in zip(level_in_order(raised), level_in_order(values), strict=True):
            assert now >= then - 1e-9
