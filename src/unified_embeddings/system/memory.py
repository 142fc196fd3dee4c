"""What loaded models cost in memory, measured, and giving back what is not needed.

What lives here: asking the operating system. What does not: which models there are (`config`).
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
"""Bytes two models may take by the decision to unify them: 3.6 GB (ADR-002 of the documents)."""
BASELINE = 4_200_000_000
"""Bytes the same document puts the three models at that came before: 4.2 GB."""

_PAGE = mmap.PAGESIZE
_PAGEMAP = Path("/proc/self/pagemap")
_MAPS = Path("/proc/self/smaps")
_MAPPING = re.compile(r"(?P<start>[0-9a-f]+)-(?P<end>[0-9a-f]+) \S+ \S+ \S+ \d+ *(?P<path>.*)")
"""The first line of each entry there (Linux, Documentation/filesystems/proc)."""
_PRESENT = np.uint64(1 << 63)
"""The bit of a page's 8 bytes that says it is in memory (Linux, Documentation/mm/pagemap)."""


@dataclass(frozen=True)
class ModelMemory:
    """One loaded model.

    Attributes:
        model: Its name.
        runs_on: Engine, device and precision.
        weights: Bytes of its weights in this process's address space; those on a GPU do not count.
        resident: Bytes of them in physical memory: weights mapped from a file come in when they
            are first used. None where the system does not tell.
    """

    model: str
    runs_on: str
    weights: int
    resident: int | None


@dataclass(frozen=True)
class MemoryReport:
    """What the loaded models of a config take.

    Attributes:
        models: Each loaded model; those not yet loaded are left out.
        process: Resident bytes of the whole process, libraries and caches included.
        budget: `BUDGET`.
        baseline: `BASELINE`.
    """

    models: tuple[ModelMemory, ...]
    process: int
    budget: int = BUDGET
    baseline: int = BASELINE

    @property
    def weights(self) -> int:
        """Bytes of all models' weights."""
        return sum(model.weights for model in self.models)


def measure(model: str, runs_on: str, stretches: Iterable[tuple[int, int]]) -> ModelMemory:
    """Measure a model whose weights lie in these stretches of memory, (address, bytes) each."""
    parts = list(stretches)
    return ModelMemory(model, runs_on, sum(size for _, size in parts), resident_bytes(parts))


def process_bytes() -> int:
    """Resident bytes of this process."""
    return int(psutil.Process().memory_info().rss)


def peak_bytes() -> int | None:
    """The most resident bytes this process has had; None where the system does not tell."""
    if sys.platform == "linux":
        # getrusage's number begins with that of the process that started this one.
        status = Path("/proc/self/status").read_text("utf-8")
        found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
        return int(found[1]) * 1024 if found else None
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return getattr(psutil.Process().memory_info(), "peak_wset", None)


def resident_bytes(stretches: Iterable[tuple[int, int]]) -> int | None:
    """How many bytes of these stretches are in physical memory; None where that is not told.

    A page that two stretches share counts once.
    """
    spans = _joined((start // _PAGE, (start + size - 1) // _PAGE + 1) for start, size in stretches)
    try:
        with _PAGEMAP.open("rb", buffering=0) as pagemap:
            pages = 0
            for first, last in spans:
                pagemap.seek(first * 8)
                entries = np.frombuffer(pagemap.read((last - first) * 8), dtype=np.uint64)
                pages += int(np.count_nonzero(entries & _PRESENT))
    except OSError:
        return None
    return pages * _PAGE


def mapped_spans(path: Path) -> list[tuple[int, int]]:
    """Where this process has mapped a file without having changed it, (first, past last address).

    Empty where the system does not say so.
    """
    try:
        lines = _MAPS.read_text("utf-8", "surrogateescape").splitlines()
    except OSError:
        return []
    spans: list[tuple[int, int]] = []
    span = None
    for line in lines:
        if found := _MAPPING.match(line):
            ends = int(found["start"], 16), int(found["end"], 16)
            span = ends if found["path"] == str(path) else None
        elif span and line.startswith("Anonymous:") and line.split()[1] == "0":
            spans.append(span)
    return spans


def give_back(start: int, size: int) -> None:
    """Let the system drop the whole pages of a stretch within `mapped_spans` of a file.

    Their content stays in the file: a later look at them reads it again. Other memory would be
    wiped. Nothing happens where the system has no such call.
    """
    first = -(-start // _PAGE) * _PAGE
    length = (start + size - first) // _PAGE * _PAGE
    libc = _libc()
    if length > 0 and libc and hasattr(mmap, "MADV_DONTNEED"):
        libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(length), mmap.MADV_DONTNEED)


def give_back_file(path: Path) -> None:
    """`give_back` all of a file, for a library that maps it and copies what it needs."""
    for start, end in mapped_spans(path):
        give_back(start, end - start)


def trim() -> None:
    """Give memory that was freed within the heap back to the system, where the C library can."""
    if (libc := _libc()) and hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


@cache
def _libc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if sys.platform != "win32" else None


def _joined(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same pages in spans that do not overlap."""
    joined: list[tuple[int, int]] = []
    for first, last in sorted(spans):
        if joined and first <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(last, joined[-1][1]))
        else:
            joined.append((first, last))
    return joined
