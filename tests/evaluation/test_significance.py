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
    TYPICAL_DEVIATION,
    bootstrap_interval,
    compare_scores,
    half_width,
    randomisation_test,
    t_test,
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


several_differences = st.lists(
    st.integers(-8, 8).map(lambda eighths: eighths / 8), min_size=2, max_size=30
)


class TestTTest:
    def test_by_hand(self) -> None:
        # Mean 2, deviation 1, error 1/√3: t = 2√3 with two degrees of freedom, for which
        # p = 1 - t/√(2 + t²). The interval's t is √(2·0.95²/(1 - 0.95²)) = 4.3027.
        result = t_test([1, 2, 3])
        assert result.p_value == pytest.approx(1 - math.sqrt(12 / 14))
        reach = math.sqrt(2 * 0.95**2 / (1 - 0.95**2)) / math.sqrt(3)
        assert (result.low, result.high) == pytest.approx((2 - reach, 2 + reach))

    @given(several_differences)
    def test_equal_to_scipys(self, differences: list[float]) -> None:
        from scipy.stats import ttest_rel

        if len(set(differences)) == 1:  # undefined there
            return
        expected = ttest_rel(differences, [0] * len(differences))
        interval = expected.confidence_interval(0.95)
        result = t_test(differences)
        assert result.p_value == pytest.approx(expected.pvalue, rel=1e-9, abs=1e-12)
        assert (result.low, result.high) == pytest.approx((interval.low, interval.high), abs=1e-9)

    def test_equal_differences_have_no_deviation(self) -> None:
        assert t_test([0, 0]).p_value == 1
        # The mean of ten tenths is not exactly a tenth.
        same = t_test([0.1] * 10)
        assert (same.p_value, same.low, same.high) == pytest.approx((0, 0.1, 0.1))

    def test_rounding_is_no_difference(self) -> None:
        # 0.1 + 0.2 is not exactly 0.3.
        compared = compare_scores({"a": 0.3, "b": 0.2}, {"a": 0.1 + 0.2, "b": 0.2})
        assert compared.mean > 0
        assert compared.t_test is not None
        assert (compared.p_value, compared.t_test.p_value) == (1, 1)

    def test_a_single_query_has_no_deviation(self) -> None:
        with pytest.raises(InputError, match="at least two queries"):
            t_test([0.5])
        single = compare_scores({"q": 0.5}, {"q": 0.75})
        assert (single.t_test, single.half_width) == (None, None)

    def test_it_agrees_with_the_randomisation_test_for_many_queries(self) -> None:
        differences = np.random.default_rng(5).normal(0.02, 0.15, 300).tolist()
        assert t_test(differences).p_value == pytest.approx(
            randomisation_test(differences), abs=0.01
        )


class TestHalfWidth:
    def test_of_differences_it_is_half_the_interval(self) -> None:
        differences = [0.5, -0.25, 0.25, 0.75]
        result = t_test(differences)
        assert half_width(differences) == pytest.approx((result.high - result.low) / 2)
        compared = compare_scores(
            dict.fromkeys("abcd", 0.0), dict(zip("abcd", differences, strict=True))
        )
        assert compared.t_test == result
        assert compared.half_width == half_width(differences)

    def test_of_a_number_of_queries(self) -> None:
        # t's 97.5% quantile: 12.706 with one degree of freedom, nearly 1.96 with many.
        assert half_width(2) == pytest.approx(12.7062 * TYPICAL_DEVIATION / math.sqrt(2), rel=1e-5)
        assert half_width(10**6) == pytest.approx(1.95996 * TYPICAL_DEVIATION / 1000, rel=1e-5)

    def test_another_deviation_than_the_usual_one(self) -> None:
        assert half_width(9, deviation=0.12) == pytest.approx(2.306 * 0.12 / 3, rel=1e-4)

    def test_four_times_the_queries_halve_it(self) -> None:
        assert half_width(4000) / half_width(1000) == pytest.approx(0.5, rel=1e-3)

    def test_a_difference_of_that_size_is_found_about_half_of_the_time(self) -> None:
        generator = np.random.default_rng(3)
        found = 0
        for _ in range(400):
            differences = generator.normal(half_width(40), TYPICAL_DEVIATION, 40)
            found += t_test(differences.tolist()).p_value < 0.05
        assert found / 400 == pytest.approx(0.5, abs=0.08)

    @pytest.mark.parametrize("scores", [1, 0, [0.5], [], [0.5, math.nan]])
    def test_too_little_is_refused(self, scores: list[float] | int) -> None:
        with pytest.raises(InputError):
            half_width(scores)

    def test_a_confidence_of_nonsense_is_refused(self) -> None:
        with pytest.raises(InputError, match="confidence"):
            half_width(50, confidence=95)
