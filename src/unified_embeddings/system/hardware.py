"""This machine's processor, and what model libraries make of the machine when they are imported.

What lives here: facts that are read once, without any model library, the variables that such a
library must find at its import, and this process's share of the machine. What does not: which
precision or engine follows from the facts (`engines`).
"""

from __future__ import annotations

import contextlib
import math
import os
import platform
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_CPU_INFO = Path("/proc/cpuinfo")
_INT8_PRODUCTS = frozenset(("avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"))
"""Flags of instructions that multiply and add int8 in one step."""
_INT8_VECTORS = frozenset(("avx2", "avx512f", "asimd"))
"""Flags of the vector instructions that int8 kernels are written for."""
_REPORTED_FLAGS = (
    "sse2", "avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_tile", "amx_bf16",
    "amx_int8", "amx_fp16", "asimd", "asimddp", "sve", "bf16", "i8mm",
)  # fmt: skip
"""Flags that matter to speed, by their names in /proc/cpuinfo."""

_WAIT_VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""Variables that tell OpenMP how its idle threads wait: the standard's own, GCC's and Intel's."""
_SLEEP_SOON = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "1000"}
"""GCC's OpenMP spins for some microseconds, which is as long as the next operation takes to come,
and then sleeps: a query of 16 tokens takes 44 ms instead of 50, and 85 instead of 78 if another
program has one of two cores (ADR 15)."""
_torch_sleeps = False
"""Whether torch was first imported in `passive_wait_policy`, in this process."""
_ENVIRONMENT_LOCK = threading.RLock()
_GPU_DEVICES = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg", "/dev/kfd")
"""Device files of NVIDIA's driver, of Windows' for its Linux, and of AMD's."""
_NO_TELEMETRY = ("ORT_DISABLE_TELEMETRY", "ORT_TELEMETRY_DISABLED")
"""Variables that switch ONNX Runtime's telemetry off, in its present version and in another."""
_THREAD_VARIABLES = (
    "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS",
)  # fmt: skip
"""Variables that set the threads of torch, of matrix libraries and of tokenizers."""
_KERNEL_VARIABLES = (
    "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY", "MKL_ENABLE_INSTRUCTIONS",
    "MKL_CBWR", "ONEDNN_DEFAULT_FPMATH_MODE", "ORT_DISABLE_FLASH_ATTENTION",
)  # fmt: skip
"""Variables by which users restrict, or widen, what matrix libraries do with a processor."""
_QUOTA_V2 = Path("/sys/fs/cgroup/cpu.max")
_QUOTA_V1 = Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us")
_PERIOD_V1 = Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us")
"""Where Linux tells a container how much processor time it may have (control groups)."""
_processes = 1
"""How many processes like this one share the machine; see `share_machine`."""


@dataclass(frozen=True)
class Cpu:
    """A processor.

    Attributes:
        name: Its name, as the system reports it.
        cores: Number of logical processors that this process may run on, within what its container
            may use of them.
        flags: Its instruction sets that matter to speed. Empty if the system does not report them.
    """

    name: str
    cores: int
    flags: tuple[str, ...]

    @property
    def has_amx_bf16(self) -> bool:
        """Whether bf16 products run on matrix units, the one case in which bf16 pays on a CPU."""
        return "amx_bf16" in self.flags

    @property
    def has_int8_products(self) -> bool:
        """Whether it is known to multiply and add int8 in one instruction."""
        return not _INT8_PRODUCTS.isdisjoint(self.flags)

    @property
    def lacks_int8(self) -> bool:
        """Whether it is known to lack all vector instructions that int8 kernels are written for."""
        return bool(self.flags) and _INT8_VECTORS.isdisjoint(self.flags)


@cache
def cpu() -> Cpu:
    """Return this machine's processor."""
    fields = _read_cpu_info()
    # x86 and ARM use different keys.
    present_flags = set(fields.get("flags", fields.get("Features", "")).split())
    return Cpu(
        name=fields.get("model name") or platform.processor() or platform.machine(),
        cores=_usable_cores(),
        flags=tuple(flag for flag in _REPORTED_FLAGS if flag in present_flags),
    )


def _read_cpu_info() -> dict[str, str]:
    """Return the fields of /proc/cpuinfo; empty on systems without it.

    It has one block per logical processor. The last one counts: they differ in nothing used here.
    """
    if not _CPU_INFO.is_file():
        return {}
    fields = {}
    for line in _CPU_INFO.read_text("utf-8", "replace").splitlines():
        key, _, value = line.partition(":")
        fields[key.strip()] = value.strip()
    return fields


def _usable_cores() -> int:
    cores = _visible_cores()
    quota = _read_quota()
    return cores if quota is None else min(cores, max(1, math.ceil(quota)))


def _visible_cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # Only Linux can tie a process to some of the cores.
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _read_quota() -> float | None:
    """Return how many cores' time this process's container may use; None if it has no limit.

    `docker run --cpus 2` and Kubernetes' limits set it. The container still sees every core, and a
    library that starts a thread for each of them is stopped for most of the time.
    """
    try:
        if _QUOTA_V2.is_file():
            quota, period = _QUOTA_V2.read_text("utf-8").split()
        else:
            quota, period = _QUOTA_V1.read_text("utf-8"), _PERIOD_V1.read_text("utf-8")
        cores = float(quota) / float(period)
    except (OSError, ValueError, ZeroDivisionError):  # No such files, or "max".
        return None
    return cores if cores > 0 else None  # In version 1, -1 is no limit.


def share_machine(processes: int) -> None:
    """Note that this process is one of several alike, which share cores and weights.

    Call it before a model is loaded. Engines then take an equal share of the cores, and weights
    that can be shared are; the variables of `thread_variables` have to be in the environment.
    """
    global _processes
    _processes = processes


def is_shared() -> bool:
    """Tell whether this process is one of several alike; see `share_machine`."""
    return _processes > 1


def thread_count() -> int:
    """Return how many threads an engine should take: this process's share of the cores."""
    return max(1, cpu().cores // _processes)


def thread_variables(processes: int) -> dict[str, str]:
    """Return the variables with which each of several processes takes its share of the cores.

    For one process they are needed only where its container may use fewer cores than it sees.
    Libraries read them when they are imported. What is set already is left out.
    """
    if processes == 1 and cpu().cores == _visible_cores():
        return {}
    threads = str(max(1, cpu().cores // processes))
    return {name: threads for name in _THREAD_VARIABLES if name not in os.environ}


def kernel_variables() -> tuple[str, ...]:
    """Return "NAME=value" for each variable that is set and changes which kernels are used."""
    return tuple(f"{name}={os.environ[name]}" for name in _KERNEL_VARIABLES if name in os.environ)


def may_have_gpu() -> bool:
    """Tell whether there may be a GPU that torch could use, without importing torch.

    Only on Linux can it be ruled out.
    """
    return not sys.platform.startswith("linux") or any(map(os.path.exists, _GPU_DEVICES))


@contextlib.contextmanager
def no_telemetry() -> Iterator[None]:
    """Inside this context, importing ONNX Runtime starts no telemetry.

    Without it, the import alone creates a folder with an identifier in the user's home, and events
    are sent. ONNX Runtime decides once, when it is imported; a value that the user has set stays.
    """
    with _ENVIRONMENT_LOCK:
        added = dict.fromkeys((name for name in _NO_TELEMETRY if name not in os.environ), "1")
        os.environ.update(added)
        try:
            yield
        finally:
            for name in added:
                os.environ.pop(name, None)


@contextlib.contextmanager
def passive_wait_policy() -> Iterator[None]:
    """Inside this context, importing torch makes its idle worker threads sleep soon, not spin.

    By default they spin between two matrix products. If another process wants their core, each of
    a forward pass's hundred products then waits for the scheduler: a query of 16 tokens takes 2 s
    instead of 0.3 s (ADR 15).

    OpenMP reads its variables once, when it is loaded with torch, so they are set only inside the
    context. If the user has set one of them, they are left alone. If torch is already imported,
    this has no effect.
    """
    with _ENVIRONMENT_LOCK:
        if any(name in os.environ for name in _WAIT_VARIABLES):
            yield
            return
        global _torch_sleeps
        was_imported = "torch" in sys.modules
        os.environ.update(_SLEEP_SOON)
        try:
            yield
        finally:
            for name in _SLEEP_SOON:
                os.environ.pop(name, None)
            if "torch" in sys.modules and not was_imported:
                _torch_sleeps = True


def wait_settings() -> tuple[str, ...]:
    """Return what decides whether torch's idle threads sleep or spin, one item for each setting.

    Spinning threads on a busy machine make many small operations several times as slow.
    """
    settings = [f"{name}={os.environ[name]}" for name in _WAIT_VARIABLES if name in os.environ]
    if _torch_sleeps:
        settings.append("imported to sleep")
    return tuple(settings)
