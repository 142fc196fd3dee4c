"""The collector of cycles is paused for a block, and not for longer."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from unified_embeddings.system.collector import paused_collector


@pytest.fixture(autouse=True)
def running() -> Iterator[None]:
    """Leave the collector running, as it was."""
    gc.enable()
    yield
    gc.enable()


def test_it_runs_again_afterwards_even_if_that_fails() -> None:
    was_running = []

    @paused_collector()
    def fail() -> None:
        was_running.append(gc.isenabled())
        raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert was_running == [False]
    assert gc.isenabled()


def test_one_that_was_off_stays_off() -> None:
    gc.disable()
    with paused_collector():
        pass
    assert not gc.isenabled()


def test_it_is_paused_each_time_that_a_function_is_called() -> None:
    @paused_collector()
    def is_running() -> bool:
        return gc.isenabled()

    assert [is_running(), is_running()] == [False, False]
    assert gc.isenabled()
