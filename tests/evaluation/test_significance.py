"""The randomisation test and the bootstrap, against numbers counted by hand and known theory."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unified_embeddings.errors import InputError
from unified_embeddings.evaluation.significance import (
    bootstrap_interval,
    compare_scores,
    randomisation_test,
)

few_differences = st.lists(
    st.integers(-8, 8).map(lambda eighths: eighths / 8), min_size=1, max_size=7
)


def p_by_definition(differences: list[float]) -> float:
    """The share of all sign choices whose sum is as far from 0; sums of eighths are exact."""
    observed = abs(sum(differences))
    ways = list(itertools.product((-1, 1), repeat=len(differences)))
    sums = [abs(sum(s * d for s, d in zip(signs, differences, strict=True))) for signs in ways]
    return sum(value >= observed for value in sums) / len(ways)


class TestRandomisationTest:
    @pytest.mark.parametrize(
        ("differences", "expected"),
        [
            ([0.5], 1.0),  # +0.5 and -0.5 are equally far from 0
            ([0.5, 0.25], 2 / 4),  # of the four sums, only +0.75 and -0.75
            ([0.5, -0.25], 1.0),  # all four sums are 0.25 or 0.75 from 0
            ([1, 1, 1], 2 / 8),
            ([1, 1, 1, -1], 10 / 16),  # 2 with four equal signs, 8 with three
            ([1] * 10, 2 / 1024),
            ([0, 0, 0], 1.0),
            ([0, 0.5, 0, 0.25, 0], 2 / 4),  # zeros change nothing
        ],
    )
    def test_by_hand(self, differences: list[float], expected: float) -> None:
        assert randomisation_test(differences) == expected

    @given(few_differences)
    def test_few_queries_are_counted_exactly(self, differences: list[float]) -> None:
        assert randomisation_test(differences) == p_by_definition(differences)

    def test_rounding_does_not_hide_an_equal_sum(self) -> None:
        # In floating point 0.1 + 0.2 + 0.3 and 0.3 + 0.2 + 0.1 differ in the last bit.
        assert randomisation_test([0.1, 0.2, 0.3]) == 2 / 8

    def test_many_queries_are_estimated_close_to_the_exact_share(self) -> None:
        differences = [1.0] * 14 + [-1.0] * 6
        # Sums of 20 signs are at least 8 from 0 where at most 6 are of one kind: binomial tails.
        exact = 2 * sum(math.comb(20, k) for k in range(7)) / 2**20
        assert randomisation_test(differences) == pytest.approx(exact, abs=0.02)

    def test_it_is_never_zero(self) -> None:
        assert randomisation_test([1.0] * 100) == 1 / 10_001

    @given(few_differences)
    def test_the_sign_and_the_scale_change_nothing(self, differences: list[float]) -> None:
        p_value = randomisation_test(differences)
        assert randomisation_test([-4 * value for value in differences]) == p_value

    def test_equal_systems_are_seldom_told_apart(self) -> None:
        """Of 200 comparisons of equally good systems, about one in twenty has p < 0.05."""
        generator = np.random.default_rng(1)
        samples = generator.standard_normal((200, 40))
        found = [randomisation_test(list(sample), rounds=500) < 0.05 for sample in samples]
        assert 2 <= sum(found) <= 20

    def test_the_seed_decides(self) -> None:
        differences = list(np.random.default_rng(2).standard_normal(50) + 0.2)
        assert randomisation_test(differences) == randomisation_test(differences)
        assert randomisation_test(differences) != randomisation_test(differences, seed=1)


class TestBootstrap:
    def test_equal_differences_leave_no_doubt(self) -> None:
        assert bootstrap_interval([0.25] * 9) == (0.25, 0.25)

    def test_two_values(self) -> None:
        """Of two queries drawn twice, a quarter of the means is 0, half 0.5, a quarter 1."""
        assert bootstrap_interval([0.0, 1.0]) == (0.0, 1.0)
        assert bootstrap_interval([0.0, 1.0], confidence=0.4) == (0.5, 0.5)

    def test_many_normal_values_give_the_textbook_interval(self) -> None:
        values = np.random.default_rng(3).standard_normal(1000)
        low, high = bootstrap_interval(list(values))
        margin = 1.96 * values.std() / math.sqrt(1000)
        assert low == pytest.approx(values.mean() - margin, abs=0.006)
        assert high == pytest.approx(values.mean() + margin, abs=0.006)

    def test_it_holds_the_true_mean_about_as_often_as_it_says(self) -> None:
        samples = np.random.default_rng(4).standard_normal((200, 40))
        intervals = [bootstrap_interval(list(sample), rounds=500) for sample in samples]
        assert 0.88 <= np.mean([low <= 0 <= high for low, high in intervals]) <= 0.99

    def test_the_seed_decides(self) -> None:
        values = list(np.random.default_rng(5).standard_normal(30))
        assert bootstrap_interval(values) == bootstrap_interval(values)
        assert bootstrap_interval(values) != bootstrap_interval(values, seed=1)

    @pytest.mark.parametrize("confidence", [0, 1, -0.5, 95, float("nan")])
    def test_a_confidence_out_of_range_is_refused(self, confidence: float) -> None:
        with pytest.raises(InputError, match="between 0 and 1"):
            bootstrap_interval([1.0], confidence=confidence)


class TestCompareScores:
    def test_queries_are_paired_by_id_not_by_order(self) -> None:
        reference = {"a": 0.0, "b": 1.0, "c": 0.5}
        candidate = {"c": 0.75, "b": 1.0, "a": 0.25}
        result = compare_scores(reference, candidate)
        assert result.mean == pytest.approx(0.5 / 3)
        assert result.p_value == 2 / 4
        assert result.queries == 3
        assert 0 <= result.low <= result.mean <= result.high <= 0.25

    def test_queries_that_only_one_has_are_refused(self) -> None:
        with pytest.raises(InputError, match="2 are in one of the two only, such as 'a'"):
            compare_scores({"a": 1.0, "b": 1.0}, {"b": 1.0, "c": 1.0})

    def test_no_queries_are_refused(self) -> None:
        with pytest.raises(InputError, match="a difference for each query"):
            compare_scores({}, {})

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    def test_a_score_that_is_not_a_number_is_named(self, bad: float) -> None:
        with pytest.raises(InputError, match="finite") as caught:
            compare_scores({"a": 1.0, "b": 1.0}, {"a": 1.0, "b": bad})
        assert caught.value.index == 1
