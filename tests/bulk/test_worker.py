"""One loaded model: groups shrink where a device runs out of memory, and grow again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unified_embeddings.bulk.parts import FAILED
from unified_embeddings.bulk.planning import plan_parts
from unified_embeddings.bulk.rows import Row
from unified_embeddings.bulk.worker import Assignment, PartComputer, WorkerSettings
from unified_embeddings.embedders.cached import Vectors
from unified_embeddings.embedders.fake import FakeEmbedder
from unified_embeddings.types import HeadName, Role, Text


class SmallDevice(FakeEmbedder):
    """Runs out of memory above some texts, and on one that is too long even alone."""

    def __init__(self, room: int, error: Exception) -> None:
        super().__init__(dimension=8, model_name="fake", cache=None)
        self.room = room
        self.error = error
        self.tried: list[int] = []

    def _run(
        self, texts: Sequence[Text], role: Role, heads: frozenset[HeadName]
    ) -> Iterator[tuple[Text, Vectors]]:
        self.tried.append(len(texts))
        if len(texts) > self.room or "HUGE" in texts:
            raise self.error
        yield from super()._run(texts, role, heads)


def compute(device: SmallDevice, texts: list[str], folder: Path, slice_rows: int = 16) -> Any:
    settings = WorkerSettings(
        make_embedder=lambda: device,
        options={},
        heads=("dense",),
        role="document",
        dtype="float32",
        folder=folder,
        slice_rows=slice_rows,
    )
    computer = PartComputer(settings)
    device.tried.clear()
    rows = [Row(number, text, None, {}) for number, text in enumerate(texts)]
    (task,) = plan_parts(rows, len(rows), None)
    return computer.compute(Assignment(task), lambda _: None)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[ONNXRuntimeError] Failed to allocate memory for requested buffer"),
    ],
)
def test_a_device_that_is_too_small_is_learned_and_no_row_is_lost(
    tmp_path: Path, error: Exception
) -> None:
    device = SmallDevice(5, error)
    finished, _ = compute(device, [f"text {number}" for number in range(64)], tmp_path)
    assert (finished.computed, finished.failed) == (64, 0)
    # 16 and 8 are too many; 4 fits. From then on it goes up one by one, and back after a failure.
    assert device.tried[:3] == [16, 8, 4]
    assert 16 not in device.tried[1:]
    assert max(device.tried[2:]) <= 8


def test_after_a_shortage_groups_grow_again(tmp_path: Path) -> None:
    device = SmallDevice(3, MemoryError())
    texts = [f"text {number}" for number in range(200)]
    compute(device, texts[:16], tmp_path)
    settings_room = device.tried[-1]
    device.room = 1000
    finished, _ = compute(device, texts, tmp_path)
    assert finished.computed == 200
    assert settings_room <= 3
    assert max(device.tried) == 16


def test_a_text_that_is_too_large_even_alone_fails_alone(tmp_path: Path) -> None:
    device = SmallDevice(8, MemoryError("no room"))
    texts = [f"text {number}" for number in range(20)]
    texts[11] = "HUGE"
    finished, content = compute(device, texts, tmp_path)
    assert (finished.computed, finished.failed) == (19, 1)
    part_file = tmp_path / "part.npz"
    part_file.write_bytes(content)
    with np.load(part_file) as arrays:
        assert np.flatnonzero(arrays["sources"] == FAILED).tolist() == [11]
