"""The rule of the gate, on evidence written by hand."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

import pytest

from unified_embeddings.errors import InputError
from unified_embeddings.evaluation.significance import PairedDifference, compare_scores
from unified_embeddings.migration.gate import GateOptions, Quality, judge
from unified_embeddings.migration.record import MigrationRecord
from unified_embeddings.retrievers.transition_report import Latency, TransitionReport

RECORD = MigrationRecord(
    alias="docs",
    place={"path": "/data"},
    source="docs-1",
    target="docs-2",
    model={"model_choice": "mini-m3"},
    model_name="mini-m3",
    fingerprint="f",
    state="verified",
    verify={"is_clean": True},
)
FAST, SLOW = Latency(0.01, 0.01, 0.02, 100), Latency(0.3, 0.3, 0.5, 100)
TRAFFIC = TransitionReport(
    depth=10,
    share=0,
    queries=100,
    compared=100,
    mean_overlap=0.6,
    old_latency=FAST,
    new_latency=FAST,
)


def quality(low: float, high: float, old: float = 0.5) -> Quality:
    mean = (low + high) / 2
    difference = PairedDifference(mean=mean, low=low, high=high, p_value=0.04, queries=300)
    return Quality(data="ours", old_ndcg=old, new_ndcg=old + mean, difference=difference)


@pytest.mark.parametrize(
    ("low", "high", "passed", "words"),
    [
        (0.01, 0.05, True, "ruled out"),
        (-0.019, 0.03, True, "ruled out"),
        (-0.021, 0.03, False, "not ruled out.*judge more queries"),
        (-0.02, 0.03, False, "not ruled out"),
        (-0.2, -0.1, False, "the new side is worse"),
        # Worse for certain, but by no more than the tolerance.
        (-0.01, -0.005, True, "ruled out"),
    ],
)
def test_the_interval_decides_not_the_mean(
    low: float, high: float, passed: bool, words: str
) -> None:
    report = judge(RECORD, quality=quality(low, high))
    assert report.passed is passed
    (check,) = [check for check in report.checks if check.name == "quality"]
    assert re.search(words, check.reason)


def test_the_goal_is_stated_and_no_condition() -> None:
    reached = judge(RECORD, quality=quality(0.02, 0.04))
    assert reached.goal == "a gain of 5% is reached: +6.0%"
    missed = judge(RECORD, quality=quality(-0.01, 0.03))
    assert missed.passed
    assert missed.goal == "a gain of 5% is not reached: +2.0%"
    nothing = judge(RECORD, quality=quality(0.1, 0.3, old=0.0))
    assert nothing.passed
    assert nothing.goal is not None
    assert "cannot be stated" in nothing.goal


@pytest.mark.parametrize(
    ("changes", "failed"),
    [
        ({}, None),
        ({"compared": 99}, "overlap"),
        ({"mean_overlap": 0.29}, "overlap"),
        ({"new_latency": SLOW}, "latency"),
        # Twice as slow is allowed, and so is whatever nobody notices.
        ({"new_latency": SLOW, "old_latency": dataclasses.replace(SLOW, p95=0.25)}, None),
        ({"new_latency": dataclasses.replace(FAST, p95=0.09)}, None),
        ({"new_latency": None}, "latency"),
        ({"failed": {"new": 1}}, None),
        ({"failed": {"new": 1}, "fallbacks": {"timeout": 1}}, "failures"),
        ({"failed": {"old": 50}}, None),
    ],
)
def test_without_judgements_traffic_decides(changes: dict[str, Any], failed: str | None) -> None:
    report = judge(RECORD, traffic=dataclasses.replace(TRAFFIC, **changes))
    assert [check.name for check in report.failed_checks] == ([failed] if failed else [])
    assert report.goal is None


def test_without_evidence_the_gate_is_closed_and_says_how_to_get_some() -> None:
    report = judge(RECORD)
    assert not report.passed
    assert "--data" in report.describe()
    assert "migrate shadow" in report.describe()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"verify": None}, "the migration is 'verified'; run `migrate start` and `migrate verify`"),
        ({"state": "backfilled"}, "the migration is 'backfilled'"),
        ({"state": "rolled_back"}, "the migration is 'rolled_back'"),
        ({"verify": {"is_clean": False, "problems": ["3 missing"]}}, "problems: 3 missing."),
        ({"verify": {"is_clean": "yes"}}, "found problems"),
    ],
)
def test_an_unverified_migration_stays_where_it_is(changes: dict[str, Any], words: str) -> None:
    report = judge(dataclasses.replace(RECORD, **changes), quality=quality(0.1, 0.2))
    assert [check.name for check in report.failed_checks] == ["verified"]
    assert words in report.describe()
    assert report.describe().startswith("the gate is closed")


def test_writes_that_the_new_side_lacks_close_the_gate() -> None:
    report = judge(RECORD, quality=quality(0.1, 0.2), unrepaired=3)
    assert [check.name for check in report.failed_checks] == ["verified"]
    assert "3 writes have reached the source only" in report.describe()


def test_the_report_is_json() -> None:
    report = judge(RECORD, quality=quality(0.01, 0.03))
    values = json.loads(json.dumps(report.to_dict()))
    assert values["passed"] is True
    assert values["quality"]["difference"]["p_value"] == 0.04
    assert json.loads(json.dumps(judge(RECORD, traffic=TRAFFIC).to_dict()))["passed"] is True


def test_limits_can_be_set_and_are_checked() -> None:
    strict = GateOptions(tolerance=0.005)
    assert not judge(RECORD, quality=quality(-0.01, 0.03), options=strict).passed
    with pytest.raises(InputError, match="min_overlap"):
        GateOptions(min_overlap=-1)


def test_an_interval_of_a_few_queries_opens_nothing() -> None:
    """Three queries that both sides answer alike have an interval of no width."""
    scores = {f"q{number}": 1.0 for number in range(3)}
    difference = compare_scores(scores, scores)
    assert (difference.low, difference.high) == (0, 0)
    few = Quality(data="ours", old_ndcg=1, new_ndcg=1, difference=difference)
    check = judge(RECORD, quality=few).failed_checks[0]
    assert re.search("3 queries; 30 are needed", check.reason)
    assert judge(RECORD, quality=few, options=GateOptions(min_judged=3)).passed


def test_two_sides_that_find_nothing_open_nothing() -> None:
    scores = {f"q{number}": 0.0 for number in range(50)}
    nothing = Quality("ours", old_ndcg=0, new_ndcg=0, difference=compare_scores(scores, scores))
    assert "finds nothing" in judge(RECORD, quality=nothing).failed_checks[0].reason
