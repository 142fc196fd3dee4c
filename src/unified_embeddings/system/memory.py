"""The memory that loaded models take, measured, and ways to release what they do not need.

What lives here: asking the operating system, and telling it. What does not: which models are loaded
(`config`).
"""

from __future__ import annotations

import ctypes
import mmap
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import psutil

BUDGET = 3_600_000_000
"""The goal for a text model and an image model together: 3.6 GB."""
BASELINE = 4_200_000_000
"""What they replace: bge-large (dense), SPLADE (sparse) and CLIP, taken to need 4.2 GB."""

_PAGE = mmap.PAGESIZE
_PAGEMAP = Path("/proc/self/pagemap")
_MAPS = Path("/proc/self/smaps")
_STATUS = Path("/proc/self/status")
_MAPPING = re.compile(r"(?P<start>[0-9a-f]+)-(?P<end>[0-9a-f]+) \S+ \S+ \S+ \d+ *(?P<path>.*)")
"""The first line of each entry in smaps (Linux, Documentation/filesystems/proc)."""
_PAGEMAP_ENTRY = 8
"""Bytes that pagemap has for each page (Linux, Documentation/admin-guide/mm/pagemap)."""
_PRESENT = np.uint64(1 << 63)
"""The bit of such an entry that is set if the page is in physical memory."""


@dataclass(frozen=True)
class ModelMemory:
    """The memory that one loaded model takes.

    Attributes:
        model: The model's name.
        runs_on: Its engine, device and precision.
        weights: Bytes of its weights in this process's address space. Weights on a GPU do not
            count.
        resident: Bytes of these in physical memory. Weights that are mapped from a file come in
            when they are first used. None if the system does not report it.

    Example:
        >>> memory = ModelMemory(
        ...     model="BAAI/bge-m3",
        ...     runs_on="torch, bf16, cpu",
        ...     weights=1_135_000_000,
        ...     resident=620_000_000,
        ... )
        >>> print(f"{memory.model}: {memory.resident / memory.weights:.0%} in physical memory")
        BAAI/bge-m3: 55% in physical memory
    """

    model: str
    runs_on: str
    weights: int
    resident: int | None


@dataclass(frozen=True)
class MemoryReport:
    """The memory that the loaded models of a config take, from `UnifiedEmbeddingConfig.memory()`.

    Attributes:
        models: Each loaded model. Models that are not loaded yet are left out.
        process: Resident bytes of the whole process, including libraries and caches.
        budget: Bytes that a text model and an image model together should stay within, `BUDGET`.
        baseline: Bytes that the three models before them take, `BASELINE`.

    Example:
        >>> text = ModelMemory("BAAI/bge-m3", "torch, bf16, cpu", 1_135_000_000, None)
        >>> image = ModelMemory("ViT-B/32", "clip, bf16, cpu", 303_000_000, None)
        >>> report = MemoryReport(models=(text, image), process=1_570_000_000)
        >>> report.weights
        1438000000
        >>> report.process < report.budget
        True
    """

    models: tuple[ModelMemory, ...]
    process: int
    budget: int = BUDGET
    baseline: int = BASELINE

    @property
    def weights(self) -> int:
        """Bytes of all models' weights."""
        return sum(model.weights for model in self.models)


def measure_model(
    model: str, runs_on: str, regions: Iterable[tuple[int, int]], *, hidden_bytes: int = 0
) -> ModelMemory:
    """Measure a loaded model.

    Args:
        model: Its name.
        runs_on: Its engine, device and precision.
        regions: The regions of memory that hold its weights, (address, bytes) each.
        hidden_bytes: Bytes of weights that are in none of them, at a place that is not known.
    """
    regions = list(regions)
    return ModelMemory(
        model=model,
        runs_on=runs_on,
        weights=sum(size for _, size in regions) + hidden_bytes,
        resident=None if hidden_bytes else resident_bytes(regions),
    )


def process_bytes() -> int:
    """Return the resident bytes of this process."""
    return int(psutil.Process().memory_info().rss)


def peak_bytes() -> int | None:
    """Return the most resident bytes this process has had; None if that is not reported."""
    if sys.platform == "linux":
        # getrusage is no use here: it starts from the peak of the process that started this one.
        line = re.search(r"^VmHWM:\s+(\d+) kB$", _STATUS.read_text("utf-8"), re.MULTILINE)
        return None if line is None else int(line[1]) * 1024
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return getattr(psutil.Process().memory_info(), "peak_wset", None)  # Windows


def resident_bytes(regions: Iterable[tuple[int, int]]) -> int | None:
    """Return how many bytes of some regions of memory are in physical memory.

    Whole pages count, and a page that two regions share counts once.

    Args:
        regions: (address, bytes) each.

    Returns:
        The bytes; None if the system does not report them (only Linux does).
    """
    page_spans = []
    for address, size in regions:
        page_spans.append((address // _PAGE, (address + size - 1) // _PAGE + 1))
    resident_pages = 0
    try:
        with _PAGEMAP.open("rb", buffering=0) as pagemap:
            for first, last in _merge_spans(page_spans):
                pagemap.seek(first * _PAGEMAP_ENTRY)
                content = pagemap.read((last - first) * _PAGEMAP_ENTRY)
                entries = np.frombuffer(content, dtype=np.uint64)
                resident_pages += int(np.count_nonzero(entries & _PRESENT))
    except OSError:
        return None
    return resident_pages * _PAGE


def mapped_spans(path: Path) -> list[tuple[int, int]]:
    """Return where this process has mapped a file and not changed the mapping's content.

    Args:
        path: The file, absolute and without links in it.

    Returns:
        (first address, address past the last one) of each mapping. Empty if the system does not
        report them (only Linux does).
    """
    try:
        lines = _MAPS.read_text("utf-8", "surrogateescape").splitlines()
    except OSError:
        return []
    spans: list[tuple[int, int]] = []
    current_span = None
    for line in lines:
        mapping = _MAPPING.match(line)
        if mapping is not None:
            current_span = None
            if mapping["path"] == str(path):
                current_span = int(mapping["start"], 16), int(mapping["end"], 16)
        # "Anonymous" counts the bytes that were changed and are no longer the file's.
        elif current_span and line.startswith("Anonymous:") and line.split()[1] == "0":
            spans.append(current_span)
    return spans


def release_pages(address: int, size: int) -> None:
    """Release the physical memory of a region inside `mapped_spans` of a file.

    The content stays in the file: the next access reads it again. Only whole pages are released.
    This must not be called on other memory, whose content would be lost. It does nothing on
    systems without `madvise`.

    Args:
        address: Where the region begins.
        size: Its bytes.
    """
    first = -(-address // _PAGE) * _PAGE  # Rounded up to a whole page.
    length = (address + size - first) // _PAGE * _PAGE
    libc = _load_libc()
    if length > 0 and libc and hasattr(mmap, "MADV_DONTNEED"):
        libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(length), mmap.MADV_DONTNEED)


def release_file_pages(path: Path) -> None:
    """Release the physical memory of a mapped file, after a library has copied what it needs."""
    for start, end in mapped_spans(path):
        release_pages(start, end - start)


def trim_heap() -> None:
    """Return freed heap memory to the system, if the C library can (glibc)."""
    libc = _load_libc()
    if libc is not None and hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


@cache
def _load_libc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if sys.platform != "win32" else None


def _merge_spans(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return spans that cover the same pages and do not overlap, sorted."""
    merged: list[tuple[int, int]] = []
    for first, last in sorted(spans):
        if merged and first <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return merged
