"""Parts through child processes: what dies, hangs or fails costs its own row and no other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import poisoned
import pytest

from unified_embeddings.bulk.parts import FAILED, read_part
from unified_embeddings.bulk.planning import PartTask, plan_parts
from unified_embeddings.bulk.pool import WorkerPool
from unified_embeddings.bulk.rows import Row
from unified_embeddings.bulk.worker import MakeEmbedder, WorkerSettings
from unified_embeddings.embedders.fake import FakeEmbedder
from unified_embeddings.errors import UnifiedEmbeddingsError


def rows_of(*texts: str) -> list[Row]:
    return [Row(number, text, None, {}) for number, text in enumerate(texts)]


def settings_in(
    folder: Path, make: MakeEmbedder = poisoned.make_poisoned, slice_rows: int = 4
) -> WorkerSettings:
    return WorkerSettings(
        make_embedder=make,
        options={"model": "fake"},
        heads=("dense", "sparse", "colbert"),
        role="document",
        dtype="float32",
        folder=folder,
        slice_rows=slice_rows,
    )


@pytest.mark.parametrize("workers", [1, 2])
def test_each_bad_row_fails_alone(tmp_path: Path, workers: int) -> None:
    texts = [f"text {number}" for number in range(60)]
    bad = {7: "FAIL here", 21: "KILL here", 33: "HANG here", 34: "FAIL too"}
    for number, text in bad.items():
        texts[number] = text
    texts[50] = "MEMORY MEMORY"
    tasks = list(plan_parts(rows_of(*texts), 10, None))
    with WorkerPool([settings_in(tmp_path)] * workers, hang_seconds=1.0) as pool:
        finished = {part.part: part for part in pool.compute(iter(tasks))}
    assert sorted(finished) == [0, 1, 2, 3, 4, 5]
    expected = FakeEmbedder(dimension=8).encode_documents(texts, colbert=True)
    problems = {}
    for number in range(6):
        part = read_part(tmp_path / f"part-{number:08d}.npz")
        for place, record in enumerate(part.records):
            if record.problem is not None:
                problems[part.first_row + place] = record.problem
                assert part.sources[place] == FAILED
        assert expected.dense is not None
        assert part.dense is not None
        np.testing.assert_array_equal(part.dense, expected.dense[part.own_rows])
    assert sorted(problems) == sorted(bad)
    assert "wrong shape" in problems[7]
    assert "exit code -9" in problems[21]
    assert "no answer" in problems[33]


def test_a_model_that_cannot_be_made_ends_the_job_at_once(tmp_path: Path) -> None:
    tasks = plan_parts(rows_of("a"), 10, None)
    with (
        WorkerPool([settings_in(tmp_path, poisoned.make_broken)]) as pool,
        pytest.raises(UnifiedEmbeddingsError, match="no such model"),
    ):
        list(pool.compute(tasks))


@pytest.mark.parametrize("make", [poisoned.make_poisoned, poisoned.make_never])
def test_a_pool_that_waits_asks_whether_to_stop(tmp_path: Path, make: MakeEmbedder) -> None:
    """The text hangs, or the model loads, for an hour; nothing but the check ends this."""
    asked = 0

    def check() -> None:
        nonlocal asked
        asked += 1
        if asked > 20:
            raise KeyboardInterrupt

    tasks = plan_parts(rows_of("HANG"), 10, None)
    with (
        WorkerPool([settings_in(tmp_path, make)]) as pool,
        pytest.raises(KeyboardInterrupt),
    ):
        list(pool.compute(tasks, check))


def test_stopping_does_not_wait_for_a_model_that_loads(tmp_path: Path) -> None:
    taken: list[PartTask] = []

    def tasks() -> Iterator[PartTask]:
        for task in plan_parts(rows_of("never computed"), 10, None):
            taken.append(task)
            yield task

    def check() -> None:
        if taken:
            raise KeyboardInterrupt

    with WorkerPool([settings_in(tmp_path, poisoned.make_never)]) as pool:
        with pytest.raises(KeyboardInterrupt):
            list(pool.compute(tasks(), check))
        assert list(pool.stop_after_parts_in_hand()) == []


def test_stopping_finishes_one_part_for_each_worker(tmp_path: Path) -> None:
    tasks = plan_parts(rows_of(*[f"text {number}" for number in range(2000)]), 10, None)
    finished: list[int] = []

    def check() -> None:
        if finished:
            raise KeyboardInterrupt

    def compute() -> None:
        for part in pool.compute(tasks, check):
            finished.append(part.part)

    with WorkerPool([settings_in(tmp_path, poisoned.make_slow)] * 2) as pool:
        with pytest.raises(KeyboardInterrupt):
            compute()
        finished += [part.part for part in pool.stop_after_parts_in_hand()]
    assert len(set(finished)) == len(finished)
    # A worker may be done with its next one before the last of the others has finished.
    assert 2 <= len(finished) <= 10
    for number in finished:
        assert read_part(tmp_path / f"part-{number:08d}.npz").first_row == 10 * number
