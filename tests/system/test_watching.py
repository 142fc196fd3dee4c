"""Those who watch a piece of work."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from unified_embeddings.system.watching import Watchers


def recorder(name: str, seen: list[str]) -> object:
    @contextlib.contextmanager
    def watch(work: str) -> Iterator[None]:
        seen.append(f"{name} before {work}")
        try:
            yield
        finally:
            seen.append(f"{name} after {work}")

    return watch


def test_watchers_are_around_the_work_the_first_outermost() -> None:
    seen: list[str] = []
    watchers: Watchers[str] = Watchers()
    watchers.add(recorder("a", seen))  # type: ignore[arg-type]
    stop = watchers.add(recorder("b", seen))  # type: ignore[arg-type]
    with watchers.around("work"):
        seen.append("work")
    assert seen == ["a before work", "b before work", "work", "b after work", "a after work"]
    stop()
    stop()
    seen.clear()
    with watchers.around("work"):
        pass
    assert seen == ["a before work", "a after work"]


def test_an_error_passes_through_all_of_them() -> None:
    seen: list[str] = []
    watchers: Watchers[str] = Watchers()
    watchers.add(recorder("a", seen))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no good"), watchers.around("work"):
        raise ValueError("no good")
    assert seen == ["a before work", "a after work"]


def test_one_that_ends_meanwhile_sees_the_work_to_its_end() -> None:
    seen: list[str] = []
    watchers: Watchers[str] = Watchers()
    stop = watchers.add(recorder("a", seen))  # type: ignore[arg-type]
    with watchers.around("work"):
        stop()
        assert not watchers
    assert seen == ["a before work", "a after work"]
