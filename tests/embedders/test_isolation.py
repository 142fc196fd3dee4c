"""Halving a group that fails: who is found at fault, and how often is computed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unified_embeddings.embedders.isolation import GroupSize, isolate_failures
from unified_embeddings.errors import InputError


class Engine:
    """Squares numbers; fails on a group with a bad one."""

    def __init__(self, bad: set[int], error: Exception | None = None) -> None:
        self.bad = bad
        self.error = error or RuntimeError("bad")
        self.groups: list[list[int]] = []

    def __call__(self, numbers: Sequence[int]) -> list[int]:
        self.groups.append(list(numbers))
        if self.bad & set(numbers):
            raise self.error
        return [number**2 for number in numbers]


@given(count=st.integers(0, 40), bad=st.sets(st.integers(0, 39)), most=st.integers(1, 50))
def test_exactly_the_bad_items_fail_whatever_the_groups(
    count: int, bad: set[int], most: int
) -> None:
    engine = Engine(bad)
    outcomes = isolate_failures(engine, range(count), size=GroupSize(most))
    for number, outcome in enumerate(outcomes):
        if number in bad:
            assert isinstance(outcome, RuntimeError)
        else:
            assert outcome == number**2
    assert all(len(group) <= most for group in engine.groups)
    bad_here = len({number for number in bad if number < count})
    if count and count <= most:
        assert len(engine.groups) <= 1 + 2 * bad_here * math.ceil(math.log2(max(2, count)))


def test_an_engine_that_fails_on_all_is_given_up() -> None:
    engine = Engine(set(range(64)))
    outcomes = isolate_failures(engine, range(64), hopeless=3)
    assert all(outcome is engine.error for outcome in outcomes)
    assert sum(len(group) == 1 for group in engine.groups) == 3


def test_bad_texts_do_not_make_an_engine_hopeless() -> None:
    engine = Engine({0, 1, 2, 3}, InputError("no text"))
    outcomes = isolate_failures(engine, range(8), hopeless=3)
    assert outcomes[4:] == [16, 25, 36, 49]


def test_what_is_no_items_fault_is_raised_at_once() -> None:
    engine = Engine({5}, OSError(28, "No space left on device"))
    with pytest.raises(OSError, match="No space"):
        isolate_failures(engine, range(8), is_fatal=lambda error: isinstance(error, OSError))
    assert len(engine.groups) == 1


def test_what_became_needless_is_not_computed() -> None:
    engine = Engine({0})
    failed: list[int] = []
    outcomes = isolate_failures(
        engine,
        range(4),
        is_needless=lambda number: bool(failed) and number % 2 == 0,
        note_failure=lambda number, _: failed.append(number),
    )
    assert outcomes == [engine.error, 1, None, 9]
