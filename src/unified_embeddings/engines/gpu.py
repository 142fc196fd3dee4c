"""What the GPUs of this machine hold and do, where there are some.

What lives here: asking NVIDIA's driver, or torch where it runs already. What does not: choosing a
device (`torch_device`), telling the numbers (`monitoring`).
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from unified_embeddings.system.hardware import may_have_gpu


@dataclass(frozen=True)
class GpuReading:
    """One GPU at one moment.

    Attributes:
        index: Its number.
        used: Bytes in use on it, by all processes.
        total: Bytes it has.
        utilisation: Share of the time, 0 to 1, in which it was at work lately; None if unknown.

    Example:
        >>> GpuReading(index=0, used=3 * 2**30, total=80 * 2**30, utilisation=0.4).total
        85899345920
    """

    index: int
    used: int
    total: int
    utilisation: float | None


def read_gpus() -> list[GpuReading]:
    """Return a reading of each GPU; none where there is no GPU, or nothing to ask.

    NVIDIA's driver is asked through nvidia-ml-py if that is installed. Otherwise torch is asked, if
    this process computes on a GPU already: asking it first would take memory on the GPU. torch does
    not know the utilisation.
    """
    if not may_have_gpu():
        return []
    readings = _ask_driver()
    return _ask_torch() if readings is None else readings


def _ask_driver() -> list[GpuReading] | None:
    """Return what NVIDIA's driver says; None if it cannot be asked."""
    try:
        import pynvml as nvml
    except ImportError:
        return None
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:  # no driver, or another vendor's GPU
        return None
    try:
        return [_ask_device(index) for index in range(nvml.nvmlDeviceGetCount())]
    except nvml.NVMLError:
        return None
    finally:
        nvml.nvmlShutdown()


def _ask_device(index: int) -> GpuReading:
    import pynvml as nvml

    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    utilisation = None
    try:
        utilisation = nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100
    except nvml.NVMLError:  # not told for a slice of a GPU (MIG)
        utilisation = None
    return GpuReading(index, int(memory.used), int(memory.total), utilisation)


def _ask_torch() -> list[GpuReading]:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return []
    readings = []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        readings.append(GpuReading(index, total - free, total, None))
    return readings
