"""What this machine's processor can do, read once, without any model library."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_TELLING_FLAGS = (
    "avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_tile", "amx_bf16", "amx_int8",
    "amx_fp16", "asimd", "sve", "bf16", "i8mm",
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


@cache
def cpu() -> Cpu:
    """Read the processor's name, cores and flags; flags stay empty where the system hides them."""
    name, flags = platform.processor() or platform.machine(), ""
    fields: dict[str, str] = {}
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text("utf-8", "replace").splitlines():
            key, _, value = line.partition(":")
            fields[key.strip()] = value.strip()
        name = fields.get("model name", name)
        flags = fields.get("flags", fields.get("Features", ""))
    has = set(flags.split())
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    return Cpu(name, cores, tuple(flag for flag in _TELLING_FLAGS if flag in has))
