"""Drift by numbers worked out by hand."""

from __future__ import annotations

import math
import threading
from typing import Any

import numpy as np
import pytest

from unified_embeddings.errors import InputError
from unified_embeddings.monitoring.drift import DriftMonitor, centre_of

EAST = np.array([1.0, 0.0], dtype=np.float32)
NORTH = np.array([0.0, 1.0], dtype=np.float32)
NORTH_EAST = np.array([1.0, 1.0], dtype=np.float32)


def test_the_centre_is_the_mean_direction_whatever_the_lengths() -> None:
    assert centre_of(np.stack([EAST, 100 * NORTH])) == pytest.approx([math.sqrt(0.5)] * 2)
    assert centre_of(np.stack([EAST, EAST, NORTH])) == pytest.approx(
        [2 / math.sqrt(5), 1 / math.sqrt(5)]
    )
    assert centre_of(np.stack([EAST, np.zeros(2)])) == pytest.approx(EAST)


def test_there_is_no_centre_of_nothing_or_of_opposites() -> None:
    with pytest.raises(InputError, match="at least one vector"):
        centre_of(np.zeros((0, 2), dtype=np.float32))
    with pytest.raises(InputError, match="cancel each other out"):
        centre_of(np.stack([EAST, -EAST]))


def test_the_mean_cosine_is_of_the_window() -> None:
    monitor = DriftMonitor(3 * EAST, threshold=0.5, window=3)
    assert monitor.report().cosine is None
    assert monitor.report().weak_share is None
    monitor.observe(EAST, 0.9)  # cosine 1
    monitor.observe(5 * NORTH_EAST, 0.5)  # √½; a score at the threshold is not weak
    monitor.observe(NORTH, 0.2)  # 0, weak
    report = monitor.report()
    assert report.queries == 3
    assert report.cosine == pytest.approx((1 + math.sqrt(0.5)) / 3)
    assert report.weak_share == pytest.approx(1 / 3)
    monitor.observe(-EAST, 0.1)  # -1, weak; the first one leaves the window
    assert monitor.report().cosine == pytest.approx((math.sqrt(0.5) - 1) / 3)
    assert monitor.report().weak_share == pytest.approx(2 / 3)


def test_the_threshold_is_learned_from_the_first_queries_and_stays() -> None:
    monitor = DriftMonitor(EAST, window=4, reference=21)
    for step in range(20):
        monitor.observe(EAST, 0.5 + step / 100)
        assert monitor.report().threshold is None
        assert monitor.report().reference_cosine is None
    monitor.observe(NORTH, 0.7)
    # Of the 21 scores 0.50, 0.51 ... 0.70 the quantile 0.05 is the second.
    assert monitor.report().threshold == pytest.approx(0.51)
    assert monitor.report().reference_cosine == pytest.approx(20 / 21)
    for score in (0.5, 0.505, 0.9, 0.1):
        monitor.observe(NORTH, score)
    report = monitor.report()
    assert report.threshold == pytest.approx(0.51)
    assert report.weak_share == pytest.approx(3 / 4)
    assert report.reference_cosine == pytest.approx(20 / 21)
    assert report.cosine == 0


def test_a_query_without_an_answer_counts_for_the_cosine_alone() -> None:
    monitor = DriftMonitor(EAST, threshold=0.5)
    monitor.observe(EAST, None)
    report = monitor.report()
    assert (report.queries, report.cosine, report.weak_share) == (1, 1, None)
    monitor.observe(np.zeros(2, dtype=np.float32), 0.1)  # it points nowhere
    assert monitor.report() == report


@pytest.mark.parametrize(
    ("centre", "options", "message"),
    [
        (np.zeros(2), {}, "not 0"),
        (np.array([1.0, np.nan]), {}, "finite numbers"),
        (np.ones((2, 2)), {}, "must be one vector"),
        (EAST, {"threshold": 2}, "threshold must be a cosine from -1 to 1, got 2"),
        (EAST, {"window": 0}, "window must be a whole number >= 1, got 0"),
        (EAST, {"reference": 1.5}, "reference must be"),
    ],
)
def test_options_out_of_range_are_refused(centre: Any, options: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        DriftMonitor(centre, **options)


def test_a_query_of_another_dimension_is_refused() -> None:
    with pytest.raises(InputError, match="the query"):
        DriftMonitor(EAST).observe(np.ones(3, dtype=np.float32), 0.5)


def test_threads_lose_nothing() -> None:
    monitor = DriftMonitor(EAST, threshold=0.5, window=4000)

    def observe() -> None:
        for _ in range(500):
            monitor.observe(EAST, 0.9)
            monitor.observe(NORTH, 0.1)
            monitor.report()

    threads = [threading.Thread(target=observe) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    report = monitor.report()
    assert (report.queries, report.cosine, report.weak_share) == (4000, 0.5, 0.5)


def test_numbers_that_are_not_finite_are_refused_and_leave_no_trace() -> None:
    monitor = DriftMonitor(np.array([1.0, 0.0]), reference=1)
    for score in (math.nan, math.inf):
        with pytest.raises(InputError, match="best_score must be a finite cosine, got"):
            monitor.observe(np.array([1, 0], dtype=np.float32), score)
    assert (monitor.report().queries, monitor.report().threshold) == (0, None)
    with pytest.raises(InputError, match="not finite; embed their texts anew"):
        centre_of(np.array([[math.nan, 1.0]], dtype=np.float32))
