"""Durations in buckets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unified_embeddings.system.durations import BOUNDS, DurationCounter, Durations


def count(*seconds: float) -> Durations:
    counter = DurationCounter()
    for one in seconds:
        counter.note(one)
    return counter.snapshot()


def test_a_bound_belongs_to_its_own_bucket() -> None:
    counts = count(0.0, 0.001, 0.0011, 60.0, 60.1).counts
    assert counts[:2] == (2, 1)
    assert counts[-2:] == (1, 1)
    assert len(counts) == len(BOUNDS) + 1


@given(st.lists(st.floats(0, 100)), st.lists(st.floats(0, 100)))
def test_sums_are_those_of_all_together(first: list[float], second: list[float]) -> None:
    both = count(*first) + count(*second)
    together = count(*first, *second)
    assert both.counts == together.counts
    assert both.count == len(first) + len(second)
    assert both.seconds == pytest.approx(together.seconds)


def test_a_snapshot_stays_as_it_was() -> None:
    counter = DurationCounter()
    before = counter.snapshot()
    counter.note(1.0)
    assert before.count == 0
    assert counter.snapshot().count == 1
