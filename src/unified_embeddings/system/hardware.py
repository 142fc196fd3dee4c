"""What this machine's processor can do, read once, without any model library."""

from __future__ import annotations

import contextlib
import os
import platform
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_INT8_PRODUCTS = frozenset(("avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"))
_INT8_VECTORS = frozenset(("avx2", "avx512f", "asimd"))
_ENVIRONMENT = threading.RLock()
_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""What tells OpenMP, once, when it is loaded with torch, how its threads wait."""

_TELLING_FLAGS = (
    "sse2", "avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_tile", "amx_bf16",
    "amx_int8", "amx_fp16", "asimd", "asimddp", "sve", "bf16", "i8mm",
)  # fmt: skip


@dataclass(frozen=True)
class Cpu:
    """The processor.

    Attributes:
        name: As the system names it.
        cores: Logical processors this process may run on.
        flags: Those of its instruction sets that matter to speed, sorted.
    """

    name: str
    cores: int
    flags: tuple[str, ...]

    @property
    def has_amx_bf16(self) -> bool:
        """Whether bf16 products run on matrix units: the one case in which bf16 pays on a CPU."""
        return "amx_bf16" in self.flags

    @property
    def has_int8_products(self) -> bool:
        """Whether it is known to multiply and add int8 in one instruction."""
        return not _INT8_PRODUCTS.isdisjoint(self.flags)

    @property
    def lacks_int8(self) -> bool:
        """Whether it is known to have no vector instructions that int8 kernels are written for."""
        return bool(self.flags) and _INT8_VECTORS.isdisjoint(self.flags)


@cache
def cpu() -> Cpu:
    """Read the processor's name, cores and flags; flags stay empty where the system hides them."""
    name, flags = "", ""
    fields: dict[str, str] = {}
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text("utf-8", "replace").splitlines():
            key, _, value = line.partition(":")
            fields[key.strip()] = value.strip()
        name = fields.get("model name", "")
        flags = fields.get("flags", fields.get("Features", ""))
    name = name or platform.processor() or platform.machine()
    has = set(flags.split())
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    return Cpu(name, cores, tuple(flag for flag in _TELLING_FLAGS if flag in has))


@contextlib.contextmanager
def threads_that_sleep() -> Iterator[None]:
    """Within, an import of torch gets worker threads that sleep between two products.

    By default they spin, and where another process wants their core each of a forward pass's
    hundred products waits for the scheduler: a query of 16 tokens takes 2 s instead of 0.3 s (ADR
    15). The variable is read as torch is first imported, so it is set for that long; what the user
    has set stands, and torch that is already imported stays as it is.
    """
    with _ENVIRONMENT:
        if any(name in os.environ for name in _WAITING):
            yield
            return
        os.environ[_WAITING[0]] = "passive"
        try:
            yield
        finally:
            os.environ.pop(_WAITING[0], None)
