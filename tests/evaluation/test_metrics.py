"""Measures of a run: by hand, and against trec_eval on random runs with ties."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pytrec_eval import RelevanceEvaluator

from unified_embeddings.errors import InputError
from unified_embeddings.evaluation.metrics import (
    average_precision_by_query,
    mean,
    precision_by_query,
    recall_by_query,
    reciprocal_rank_by_query,
    score_run,
)
from unified_embeddings.evaluation.rankings import ndcg_by_query

RUN = {"q1": {"a": 0.9, "b": 0.8, "c": 0.7, "d": 0.6}, "q2": {"a": 1.0}, "stray": {"a": 1.0}}
QRELS = {"q1": {"b": 2, "d": 1, "x": 1, "a": 0}, "q2": {"a": 0, "b": -1}, "q3": {"a": 1}}

DOCUMENTS = st.sampled_from([f"d{number}" for number in range(12)])
# Few distinct scores make ties; the last two are equal in single precision only.
SCORES = st.sampled_from([-1.0, 0.0, 0.25, 1.0, 1.0 + 1e-12, 0.1, 0.1 + 1e-10])
QUERY_IDS = st.sampled_from(["q1", "q2", "q3", "q4"])
RUNS = st.dictionaries(QUERY_IDS, st.dictionaries(DOCUMENTS, SCORES, min_size=1), min_size=1)
# Grades below -1 make pytrec-eval-terrier write outside its memory.
ALL_QRELS = st.dictionaries(
    QUERY_IDS, st.dictionaries(DOCUMENTS, st.integers(-1, 3), min_size=1), min_size=1
)


def test_by_hand() -> None:
    assert precision_by_query(RUN, QRELS, 2) == {"q1": 1 / 2, "q2": 0, "q3": 0}
    assert precision_by_query(RUN, QRELS, 10) == {"q1": 2 / 10, "q2": 0, "q3": 0}
    assert recall_by_query(RUN, QRELS, 3) == {"q1": 1 / 3, "q2": 0, "q3": 0}
    assert reciprocal_rank_by_query(RUN, QRELS) == {"q1": 1 / 2, "q2": 0, "q3": 0}
    assert reciprocal_rank_by_query(RUN, QRELS, 1) == {"q1": 0, "q2": 0, "q3": 0}
    # Relevant at the ranks 2 and 4, and one that was not found.
    average_precision = average_precision_by_query(RUN, QRELS)
    assert average_precision == pytest.approx({"q1": (1 / 2 + 2 / 4) / 3, "q2": 0, "q3": 0})
    assert average_precision_by_query(RUN, QRELS, 2)["q1"] == pytest.approx(1 / 2 / 3)


def test_all_measures_at_once() -> None:
    scores = score_run(RUN, QRELS, k=2, depth=4)
    assert scores.precision == precision_by_query(RUN, QRELS, 2)
    # Gains 0 and 2; at best 2 and 1.
    dcg, ideal = 2 / math.log2(3), 2 + 1 / math.log2(3)
    assert scores.means() == pytest.approx(
        {
            "nDCG@2": dcg / ideal / 3,
            "recall@2": 1 / 3 / 3,
            "precision@2": 1 / 2 / 3,
            "MRR@2": 1 / 2 / 3,
            "MAP@4": 1 / 3 / 3,
        }
    )


@pytest.mark.parametrize("k", [1, 3, 10])
@given(run=RUNS, qrels=ALL_QRELS)
def test_equal_to_trec_eval(k: int, run: dict, qrels: dict) -> None:
    """trec_eval leaves out what the run lacks; here those queries count 0."""
    names = {f"ndcg_cut.{k}", f"P.{k}", f"recall.{k}", f"map_cut.{k}", "map", "recip_rank"}
    judged = RelevanceEvaluator(qrels, names).evaluate(run)
    scores = score_run(run, qrels, k=k, depth=k)
    whole = {
        "map": average_precision_by_query(run, qrels),
        "recip_rank": reciprocal_rank_by_query(run, qrels),
    }
    for query_id in qrels:
        expected = judged.get(query_id, {})
        ours = {
            f"ndcg_cut_{k}": scores.ndcg,
            f"P_{k}": scores.precision,
            f"recall_{k}": scores.recall,
            f"map_cut_{k}": scores.average_precision,
            **whole,
        }
        for name, values in ours.items():
            assert values.keys() == qrels.keys()
            assert values[query_id] == pytest.approx(expected.get(name, 0.0), abs=1e-9), name


@given(run=RUNS, qrels=ALL_QRELS, k=st.integers(1, 4))
def test_reciprocal_rank_is_cut_where_precision_becomes_possible(
    run: dict, qrels: dict, k: int
) -> None:
    whole = reciprocal_rank_by_query(run, qrels)
    for query_id, value in reciprocal_rank_by_query(run, qrels, k).items():
        has_hit = precision_by_query(run, qrels, k)[query_id] > 0
        assert value == (whole[query_id] if has_hit else 0)


def test_every_grade_below_1_is_not_relevant() -> None:
    run = {"q": {"a": 3.0, "b": 2.0, "c": 1.0}}
    scores = score_run(run, {"q": {"a": -7, "b": 0, "c": 1}}, k=3, depth=3)
    assert scores.ndcg == {"q": pytest.approx(1 / math.log2(4))}
    assert (scores.precision, scores.mrr) == ({"q": 1 / 3}, {"q": 1 / 3})


def test_the_mean_is_that_of_the_measure_used_elsewhere() -> None:
    assert mean(ndcg_by_query(RUN, QRELS, 10)) == score_run(RUN, QRELS).means()["nDCG@10"]


def test_what_cannot_be_rated_is_refused() -> None:
    with pytest.raises(InputError, match="judgements of at least one query"):
        score_run(RUN, {})
    with pytest.raises(InputError, match="document 'a' for query 'q1' is not a number"):
        score_run({"q1": {"a": math.nan}}, QRELS)
    with pytest.raises(InputError, match="depth must be a whole number >= 10"):
        score_run(RUN, QRELS, depth=5)
    with pytest.raises(InputError, match="k must be"):
        score_run(RUN, QRELS, k=0)
