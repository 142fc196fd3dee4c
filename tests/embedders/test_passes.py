"""Passes started ahead: their order, what is under way when, and windows of texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from unified_embeddings.embedders.batching import split_into_windows
from unified_embeddings.embedders.finishing import finish_vectors
from unified_embeddings.embedders.passes import Batch, run_passes
from unified_embeddings.engines.base import RawHeads, Runtime
from unified_embeddings.types import HeadName, IntArray, Role

DENSE: frozenset[HeadName] = frozenset(("dense",))


class Recording:
    """An engine that notes when its passes are started and waited for."""

    padded = False

    def __init__(self, device: str, fails_at: int | None = None) -> None:
        self.runtime = Runtime("torch", device, "fp16", "")
        self.events: list[str] = []
        self._fails_at = fails_at

    def run(
        self, batch: Sequence[IntArray], heads: frozenset[HeadName], role: Role = "document"
    ) -> RawHeads:
        return self.start(batch, heads, role)()

    def start(
        self, batch: Sequence[IntArray], heads: frozenset[HeadName], role: Role = "document"
    ) -> Callable[[], RawHeads]:
        number = int(batch[0][0])
        if number == self._fails_at:
            raise RuntimeError("out of memory")
        self.events.append(f"start {number}")

        def wait() -> RawHeads:
            self.events.append(f"wait {number}")
            return RawHeads(pooled=np.full((1, 2), number, dtype=np.float32))

        return wait

    def weights(self) -> list[tuple[int, int]]:
        return []


def batches(number: int) -> list[Batch]:
    return [Batch([str(i)], [np.array([i, 9], dtype=np.int32)]) for i in range(number)]


def events_of(engine: Recording, number: int) -> list[str]:
    for index, one in enumerate(run_passes(engine, batches(number), DENSE, "document")):
        engine.events.append(f"use {index}")
        assert one.batch.texts == [str(index)]
        assert one.raw.pooled is not None
        assert one.raw.pooled[0, 0] == index
        assert one.seconds >= 0
    return engine.events


def test_on_a_gpu_the_next_pass_is_under_way_while_one_is_used() -> None:
    assert events_of(Recording("cuda:0"), 3) == [
        "start 0", "start 1", "wait 0", "use 0", "start 2", "wait 1", "use 1", "wait 2", "use 2",
    ]  # fmt: skip


def test_on_a_cpu_one_pass_follows_the_other() -> None:
    assert events_of(Recording("cpu"), 2) == [
        "start 0", "wait 0", "use 0", "start 1", "wait 1", "use 1",
    ]  # fmt: skip


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_no_batch_makes_no_pass_and_one_makes_one(device: str) -> None:
    assert events_of(Recording(device), 0) == []
    assert events_of(Recording(device), 1) == ["start 0", "wait 0", "use 0"]


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_a_pass_that_fails_ends_the_call(device: str) -> None:
    with pytest.raises(RuntimeError, match="out of memory"):
        events_of(Recording(device, fails_at=1), 3)


def test_windows_grow_to_their_limit_and_hold_every_text_once() -> None:
    texts = list(range(5000))
    windows = split_into_windows(texts, growing=True)
    assert [len(window) for window in windows] == [128, 256, 512, 1024, 1024, 1024, 1024, 8]
    assert [text for window in windows for text in window] == texts
    equal = split_into_windows(texts, growing=False)
    assert [len(window) for window in equal] == [1024, 1024, 1024, 1024, 904]
    assert split_into_windows([], growing=True) == []


def test_rows_that_the_engine_scaled_are_copied_as_they_are() -> None:
    rows = np.array([[0.6, 0.8], [1.0, 0.0]], dtype=np.float32)
    raw = RawHeads(token_vectors=[rows], token_norms=np.array([3, 2, 4], dtype=np.float32))
    ids = [np.array([0, 7, 2], dtype=np.int32)]
    (vectors,) = finish_vectors(raw, ids, frozenset(), normalise=True, sum_repeats=False)
    np.testing.assert_array_equal(vectors["colbert"], rows)
    assert not np.shares_memory(vectors["colbert"], rows)
