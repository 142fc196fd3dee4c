"""The figures of a comparison, worked out by hand on four queries, and their picture."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from unified_embeddings.errors import InputError
from unified_embeddings.evaluation.corpora import Corpus
from unified_embeddings.evaluation.plots import draw_evaluation
from unified_embeddings.evaluation.reports import WeakQuery, evaluate_runs
from unified_embeddings.evaluation.significance import half_width

SECOND = 1 / math.log2(3)
"""nDCG of a ranking whose only relevant document is second."""
CORPUS = Corpus(
    name="four",
    documents=dict.fromkeys("abcd", "text"),
    queries={"q1": "one", "q2": "two", "q3": "three", "q4": "four"},
    qrels={"q1": {"a": 1}, "q2": {"b": 1}, "q3": {"c": 1}, "q4": {"d": 1}},
)
FIRST = {"a": 2.0, "x": 1.0}
OLD = {"q1": FIRST, "q2": {"x": 2.0, "b": 1.0}, "q3": {"c": 1.0}, "q4": {}}
NEW = {"q1": {"x": 2.0, "a": 1.0}, "q2": {"b": 2.0}, "q3": {"c": 1.0}, "q4": {"d": 1.0}}


def test_systems_and_their_differences() -> None:
    evaluation = evaluate_runs(CORPUS, {"old": OLD, "new": NEW})
    assert (evaluation.data, evaluation.documents, evaluation.queries) == ("four", 4, 4)
    assert [system.name for system in evaluation.systems] == ["old", "new"]
    old, new = evaluation.systems
    assert old.query_scores == pytest.approx({"q1": 1, "q2": SECOND, "q3": 1, "q4": 0})
    assert old.ndcg == old.measures["nDCG@10"] == pytest.approx((2 + SECOND) / 4)
    assert new.measures["MRR@10"] == pytest.approx((0.5 + 1 + 1 + 1) / 4)
    assert (old.unanswered, new.unanswered) == (1, 0)
    assert old.low <= old.ndcg <= old.high
    (contrast,) = evaluation.contrasts
    assert (contrast.better, contrast.worse, contrast.equal) == (2, 1, 1)
    # Gains of SECOND - 1, 1 - SECOND, 0 and 1: their sum is 1.
    assert contrast.difference.mean == pytest.approx(1 / 4)
    # Of ±x ± x ± 1, with x < 0.5, only ±(1 - 2x) are nearer to 0 than 1.
    assert contrast.difference.p_value == 6 / 8
    gains = [SECOND - 1, 1 - SECOND, 0, 1]
    assert evaluation.resolution == pytest.approx(half_width(gains))


def test_losses_are_named_the_largest_first() -> None:
    evaluation = evaluate_runs(CORPUS, {"old": OLD, "new": NEW})
    assert evaluation.weak_queries == [
        WeakQuery(
            query_id="q1",
            text="one",
            system="new",
            score=pytest.approx(SECOND),
            baseline_score=1.0,
            rank=2,
            baseline_rank=1,
        )
    ]
    other_way = evaluate_runs(CORPUS, {"old": OLD, "new": NEW}, baseline="new", weak_queries=1)
    assert [system.name for system in other_way.systems] == ["new", "old"]
    (weak,) = other_way.weak_queries
    assert (weak.query_id, weak.system, weak.rank, weak.baseline_rank) == ("q4", "old", None, 1)


def test_a_single_system_names_what_it_answers_worst() -> None:
    evaluation = evaluate_runs(CORPUS, {"old": OLD}, weak_queries=3)
    assert [(weak.query_id, weak.baseline_score) for weak in evaluation.weak_queries] == [
        ("q4", None),
        ("q2", None),
    ]
    scores = list(evaluation.systems[0].query_scores.values())
    assert evaluation.resolution == half_width(scores)
    assert evaluate_runs(CORPUS, {"old": OLD}, weak_queries=0).weak_queries == []


def test_a_single_query_has_no_resolution() -> None:
    corpus = Corpus("one", {"a": "x"}, {"q1": "one"}, {"q1": {"a": 1}})
    evaluation = evaluate_runs(corpus, {"old": OLD, "new": NEW})
    assert evaluation.resolution is None
    assert evaluation.contrasts[0].difference.t_test is None
    json.dumps(asdict(evaluation), allow_nan=False)


def test_scores_that_are_all_alike_do_not_promise_to_show_any_difference() -> None:
    perfect = {query_id: dict.fromkeys(grades, 1.0) for query_id, grades in CORPUS.qrels.items()}
    for runs in ({"perfect": perfect}, {"old": OLD, "same": OLD}):
        assert evaluate_runs(CORPUS, runs).resolution == half_width(4)


def test_everything_is_json() -> None:
    evaluation = evaluate_runs(CORPUS, {"old": OLD, "new": NEW, "same": OLD})
    values = json.loads(json.dumps(asdict(evaluation), allow_nan=False))
    assert values["systems"][0]["measures"]["nDCG@10"] == evaluation.systems[0].ndcg
    same = evaluation.contrasts[1].difference
    assert (same.mean, same.p_value, same.half_width) == (0, 1, 0)


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(InputError, match="at least one system"):
        evaluate_runs(CORPUS, {})
    with pytest.raises(InputError, match="baseline 'best' is none of the systems: old, new"):
        evaluate_runs(CORPUS, {"old": OLD, "new": NEW}, baseline="best")
    with pytest.raises(InputError, match="judgements"):
        evaluate_runs(Corpus("none", {"a": "x"}, {"q": "x"}), {"old": OLD})


def test_drawing_leaves_the_applications_own_plots_alone(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    with matplotlib.rc_context({"backend": "svg"}):
        draw_evaluation(evaluate_runs(CORPUS, {"\u65e5\u672c": OLD}), tmp_path / "plot.png")
        assert matplotlib.rcParams["backend"] == "svg"
    assert [str(warning.message) for warning in recwarn if "Glyph" in str(warning.message)] == []


def test_more_systems_than_a_picture_can_show_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    evaluation = evaluate_runs(CORPUS, {"old": OLD, "new": NEW})
    many = replace(evaluation, contrasts=evaluation.contrasts * 101)
    with pytest.raises(InputError, match="at most 100 systems beside the baseline, got 101"):
        draw_evaluation(many, tmp_path / "plot.png")


def test_the_picture_is_a_picture_whatever_the_names(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    runs = {"old $x_{$": OLD, "a very long name, of more than one line of a label": NEW}
    path = tmp_path / "new" / "plot.png"
    draw_evaluation(evaluate_runs(CORPUS, runs), path)
    draw_evaluation(evaluate_runs(CORPUS, {"old": OLD}), path)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert [file.name for file in path.parent.iterdir()] == ["plot.png"]
    with pytest.raises(InputError, match="cannot be written"):
        draw_evaluation(evaluate_runs(CORPUS, {"old": OLD}), path / "inside.png")
