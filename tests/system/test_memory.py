"""Memory is measured, not reckoned: pages that were touched count, others do not."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from unified_embeddings.system import memory

PAGE = mmap.PAGESIZE
linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells which pages are there")


def address(buffer: mmap.mmap) -> int:
    return int(np.frombuffer(buffer, dtype=np.uint8).ctypes.data)


@linux
@pytest.mark.parametrize("touched", [0, 1, 7, 64])
def test_only_touched_pages_are_resident(touched: int) -> None:
    buffer = mmap.mmap(-1, 64 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        buffer.madvise(mmap.MADV_NOHUGEPAGE)
    for page in range(touched):
        buffer[page * PAGE] = 1
    assert memory.resident_bytes([(address(buffer), 64 * PAGE)]) == touched * PAGE


@linux
def test_pages_that_two_regions_share_count_once() -> None:
    buffer = mmap.mmap(-1, 4 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    buffer[:] = b"x" * (4 * PAGE)
    start = address(buffer)
    regions = [(start, 10), (start + 100, PAGE), (start, 2 * PAGE), (start + 3 * PAGE, 1)]
    assert memory.resident_bytes(regions) == 3 * PAGE
    assert memory.resident_bytes([]) == 0


@linux
def test_a_file_mapped_and_not_read_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"x" * (256 * PAGE))
    mapped = np.memmap(path, dtype=np.uint8, mode="r")
    region = [(int(mapped.ctypes.data), mapped.nbytes)]
    assert memory.resident_bytes(region) == 0
    assert mapped.sum() == 256 * PAGE * ord("x")
    assert memory.resident_bytes(region) == 256 * PAGE


@linux
def test_released_pages_are_read_again_from_their_file(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(bytes(range(256)) * 16 * 64)
    mapped = np.memmap(path, dtype=np.uint8, mode="r")
    start = int(mapped.ctypes.data)
    expected = mapped.sum()
    memory.release_pages(start + 1, mapped.nbytes - 1)
    assert memory.resident_bytes([(start, mapped.nbytes)]) == PAGE  # the first, not a whole one
    memory.release_pages(start, 10)
    assert memory.resident_bytes([(start, mapped.nbytes)]) == PAGE
    assert mapped.sum() == expected


def test_where_the_system_does_not_tell_nothing_is_made_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "_PAGEMAP", tmp_path / "missing")
    assert memory.measure_model("it", "torch, fp32, cpu", [(0, 5)]).resident is None


def test_the_process_takes_more_than_an_array_it_holds() -> None:
    before = memory.process_bytes()
    held = np.ones(50_000_000, dtype=np.uint8)
    assert memory.process_bytes() - before > 40_000_000
    assert held.sum() == 50_000_000


@linux
class TestMappedFiles:
    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        path = tmp_path / "with a space" / "weights"
        path.parent.mkdir()
        path.write_bytes(bytes(range(256)) * 1024)
        return path

    @pytest.mark.parametrize("mode", ["r", "c"])
    def test_what_is_released_is_read_again(self, file: Path, mode: Literal["r", "c"]) -> None:
        mapped = np.memmap(file, dtype=np.uint8, mode=mode)
        before = mapped.copy()
        ((start, end),) = memory.mapped_spans(file)
        assert start == mapped.ctypes.data
        assert end - start == file.stat().st_size
        assert memory.resident_bytes([(start, end - start)]) == end - start
        memory.release_file_pages(file)
        assert memory.resident_bytes([(start, end - start)]) < end - start
        np.testing.assert_array_equal(mapped, before)

    def test_what_was_changed_is_kept(self, file: Path) -> None:
        mapped = np.memmap(file, dtype=np.uint8, mode="c")  # changes stay in memory
        mapped[5000] = 7
        assert memory.mapped_spans(file) == []
        memory.release_file_pages(file)
        assert mapped[5000] == 7

    def test_a_file_that_is_not_mapped(self, file: Path) -> None:
        assert memory.mapped_spans(file) == []
        memory.release_file_pages(file)
