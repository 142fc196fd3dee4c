"""Choosing a fusion: what is chosen, on which queries, and what is claimed for it."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from unified_embeddings.errors import InputError
from unified_embeddings.evaluation.fusion_choices import (
    BM25_ALONE,
    DENSE_ALONE,
    SPARSE_ALONE,
    SearchedQuery,
    fuse_documents,
    list_choices,
    score_choices,
)
from unified_embeddings.evaluation.tuning import (
    choose,
    deal_folds,
    require_queries,
    tune_fusion,
)
from unified_embeddings.models.fusion import Fusion

DEFAULT = Fusion((1.0, 0.5), source="the model's own")
OTHER = Fusion((0.6, 0.4), method="dbsf")
IDS = [f"q{number}" for number in range(40)]


def constant(value: float) -> dict[str, float]:
    return dict.fromkeys(IDS, value)


def table(**more: dict[str, float]) -> dict[Fusion, dict[str, float]]:
    """Scores of the default, 0.5 everywhere, of both lists alone, and of one more choice."""
    return {
        DEFAULT: constant(0.5),
        DENSE_ALONE: constant(0.4),
        SPARSE_ALONE: constant(0.3),
        OTHER: more["other"],
    }


class TestChoosing:
    def test_a_clear_gain_replaces_the_default(self) -> None:
        scores = table(other=constant(0.6))
        assert choose(scores, DEFAULT, IDS) == OTHER

    @pytest.mark.parametrize(("lucky", "chosen"), [(1, DEFAULT), (2, DEFAULT), (3, OTHER)])
    def test_a_gain_within_one_and_a_half_standard_errors_does_not(
        self, lucky: int, chosen: Fusion
    ) -> None:
        """Of 40 differences, n are 0.3 and the rest 0.

        The mean is 0.3 n/40 and its standard error 0.3 √(n/40 (1 - n/40) / 39), so they are in the
        proportion √(39 n / (40 - n)): 1, 1.43 and 1.78 for n of 1, 2 and 3.
        """
        other = constant(0.5) | dict.fromkeys(IDS[:lucky], 0.8)
        assert choose(table(other=other), DEFAULT, IDS) == chosen

    def test_only_the_queries_given_count(self) -> None:
        other = {query_id: 0.9 if number < 20 else 0.1 for number, query_id in enumerate(IDS)}
        scores = table(other=other)
        assert choose(scores, DEFAULT, IDS[:20]) == OTHER
        assert choose(scores, DEFAULT, IDS[20:]) == DEFAULT

    def test_of_equals_the_default_stays(self) -> None:
        assert choose(table(other=constant(0.5)), DEFAULT, IDS) == DEFAULT


class TestFolds:
    def test_each_query_is_in_one_and_their_sizes_differ_by_one_at_most(self) -> None:
        for count in (10, 14, 40):
            folds = deal_folds(IDS[:count])
            assert Counter(name for fold in folds for name in fold) == Counter(IDS[:count])
            assert len(folds) == 10
            sizes = [len(fold) for fold in folds]
            assert max(sizes) - min(sizes) <= 1

    def test_they_do_not_depend_on_the_order_of_the_queries(self) -> None:
        shuffled = random.Random(0).sample(IDS, len(IDS))
        assert deal_folds(shuffled) == deal_folds(IDS)
        assert deal_folds(IDS)[0] != IDS[::10]


class TestReport:
    def test_a_better_choice_is_accepted_with_what_it_gains(self) -> None:
        report = tune_fusion(table(other=constant(0.6)), DEFAULT)
        assert report.choice == OTHER
        assert report.is_accepted
        assert report.held_out == pytest.approx(0.6)
        assert report.against_default.mean == pytest.approx(0.1)
        assert report.against_single.mean == pytest.approx(0.2)
        assert report.best_single == DENSE_ALONE
        assert report.against_default.half_width == pytest.approx(0)
        assert [fold.choice for fold in report.folds] == [OTHER] * 10
        assert sum(fold.queries for fold in report.folds) == report.queries == 40

    def test_where_nothing_is_better_the_default_stays_and_nothing_is_accepted(self) -> None:
        report = tune_fusion(table(other=constant(0.5)), DEFAULT)
        assert report.choice == DEFAULT
        assert not report.is_change
        assert not report.is_accepted
        assert report.against_default.mean == 0

    def test_each_query_is_judged_by_a_choice_made_without_it(self) -> None:
        """Each choice is perfect on the queries of one fold, and useless elsewhere.

        Chosen and judged on the same queries, it would look good. It is never chosen for the fold
        on which it is perfect.
        """
        scores = {DEFAULT: constant(0.05)} | {
            single: constant(0.0) for single in (DENSE_ALONE, SPARSE_ALONE)
        }
        for number, fold in enumerate(deal_folds(IDS)):
            choice = Fusion((1.0, 0.1 * (number + 1)))
            scores[choice] = constant(0.0) | dict.fromkeys(fold, 1.0)
        report = tune_fusion(scores, DEFAULT)
        assert max(report.means.values()) == pytest.approx(0.1)
        assert report.held_out <= 0.05

    def test_pure_noise_gains_nothing_on_average(self) -> None:
        """The held-out gain of 60 random choices, over 30 draws of the scores."""
        gains = []
        for seed in range(30):
            draw = np.random.default_rng(seed)
            choices = [DEFAULT, DENSE_ALONE, SPARSE_ALONE, *list_choices(DEFAULT)[3:60]]
            scores = {
                choice: dict(zip(IDS, draw.uniform(size=40).tolist(), strict=True))
                for choice in choices
            }
            report = tune_fusion(scores, DEFAULT)
            gains.append(report.against_default.mean)
        assert abs(float(np.mean(gains))) < 0.03  # the best choice's own mean is 0.12 higher

    def test_too_few_queries_are_refused_with_what_they_could_show(self) -> None:
        with pytest.raises(InputError, match=r"at least 10.*got 6: with 6.*below about 0\.13"):
            require_queries(6)
        with pytest.raises(InputError, match=r"got 0\. Judge more"):
            require_queries(0)
        few = {choice: {"q1": 0.5} for choice in (DEFAULT, DENSE_ALONE, SPARSE_ALONE)}
        with pytest.raises(InputError, match="got 1"):
            tune_fusion(few, DEFAULT)


class TestScores:
    QUERY = SearchedQuery(
        dense=[("a1", 0.9), ("a2", 0.8), ("b1", 0.7), ("stray", 0.65), ("c1", 0.6)],
        sparse=[("c1", 5.0), ("b1", 4.0)],
        document_of={"a1": "a", "a2": "a", "b1": "b", "c1": "c"},
    )

    def test_a_document_stands_where_its_best_point_stands(self) -> None:
        assert fuse_documents(self.QUERY, DENSE_ALONE) == ["a", "b", "c"]
        assert fuse_documents(self.QUERY, SPARSE_ALONE) == ["c", "b"]

    def test_by_rank(self) -> None:
        """k = 0: c1 has 1/5 + 1, b1 1/3 + 1/2, a1 1, a2 1/2."""
        assert fuse_documents(self.QUERY, Fusion((1, 1), k=0)) == ["c", "a", "b"]

    def test_as_deep_as_the_choice_says(self) -> None:
        """One of each list: a1 and c1 tie, and their names decide."""
        assert fuse_documents(self.QUERY, Fusion((1, 1), candidates=1)) == ["a", "c"]

    def test_a_keyword_list_is_the_third(self) -> None:
        """k = 0: d1 has 1, and c1 1/2 + 1 with a weight of 1 for two lists."""
        query = replace(self.QUERY, bm25=[("d1", 9.0), ("c1", 8.0)])
        query = replace(query, document_of={**query.document_of, "d1": "d"})
        assert fuse_documents(query, BM25_ALONE) == ["d", "c"]
        assert fuse_documents(query, Fusion((0, 1, 1), k=0)) == ["c", "d", "b"]
        assert fuse_documents(query, SPARSE_ALONE) == ["c", "b"]

    def test_ndcg_of_each_choice(self) -> None:
        """Only b is relevant: second by the dense list and second by the sparse one."""
        qrels = {"q": {"b": 1}}
        scores = score_choices({"q": self.QUERY}, qrels, [DENSE_ALONE, SPARSE_ALONE])
        assert scores[DENSE_ALONE] == pytest.approx({"q": 1 / np.log2(3)})
        assert scores[SPARSE_ALONE] == pytest.approx({"q": 1 / np.log2(3)})

    def test_a_judged_query_that_was_not_searched_for_is_named(self) -> None:
        with pytest.raises(InputError, match="'q2'"):
            score_choices({"q": self.QUERY}, {"q2": {"b": 1}}, [DENSE_ALONE])

    def test_the_choices_hold_the_default_and_each_list_alone_and_no_two_are_the_same(self) -> None:
        choices = list_choices(DEFAULT)
        assert choices[:3] == [DEFAULT, DENSE_ALONE, SPARSE_ALONE]
        assert len(set(choices)) == len(choices)
        assert max(choice.candidates for choice in choices) == 100
        with_keywords = list_choices(DEFAULT, keywords=True)
        assert with_keywords[: len(choices)] == choices
        assert len(set(with_keywords)) == len(with_keywords)
        added = with_keywords[len(choices) :]
        assert added[0] == BM25_ALONE
        assert all(choice.keyword_weight > 0 for choice in added)
