"""Readings of GPUs, as NVIDIA's driver and torch would give them."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from unified_embeddings.engines import gpu
from unified_embeddings.engines.gpu import GpuReading, read_gpus


class NVMLError(Exception):
    """What the driver's library raises."""


def driver(*, fails_at: str = "") -> Any:
    """A stand-in for nvidia-ml-py, of two GPUs."""
    made: Any = ModuleType("pynvml")
    answers = {
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlDeviceGetCount": lambda: 2,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetMemoryInfo": lambda handle: SimpleNamespace(used=handle + 1, total=80),
        "nvmlDeviceGetUtilizationRates": lambda handle: SimpleNamespace(gpu=25),
    }

    def fail(*_: object) -> None:
        raise NVMLError

    for name, answer in answers.items():
        setattr(made, name, fail if name == fails_at else answer)
    made.NVMLError = NVMLError
    return made


def torch(*, is_initialised: bool) -> Any:
    cuda = SimpleNamespace(
        is_available=lambda: True,
        is_initialized=lambda: is_initialised,
        device_count=lambda: 1,
        mem_get_info=lambda index: (30, 80),
    )
    return SimpleNamespace(cuda=cuda)


@pytest.fixture(autouse=True)
def _a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "may_have_gpu", lambda: True)


def test_the_driver_tells_memory_and_utilisation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", driver())
    assert read_gpus() == [GpuReading(0, 1, 80, 0.25), GpuReading(1, 2, 80, 0.25)]


def test_a_slice_of_a_gpu_tells_no_utilisation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", driver(fails_at="nvmlDeviceGetUtilizationRates"))
    assert read_gpus()[0] == GpuReading(0, 1, 80, None)


@pytest.mark.parametrize("fails_at", ["nvmlInit", "nvmlDeviceGetCount", "nvmlDeviceGetMemoryInfo"])
def test_torch_is_asked_where_the_driver_cannot_be(
    fails_at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", driver(fails_at=fails_at))
    monkeypatch.setitem(sys.modules, "torch", torch(is_initialised=True))
    assert read_gpus() == [GpuReading(0, 50, 80, None)]


def test_torch_is_asked_only_if_it_computes_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setitem(sys.modules, "torch", torch(is_initialised=False))
    assert read_gpus() == []
    monkeypatch.delitem(sys.modules, "torch")
    assert read_gpus() == []
    monkeypatch.setitem(sys.modules, "torch", torch(is_initialised=True))
    assert len(read_gpus()) == 1


def test_nothing_is_asked_on_a_machine_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", driver())
    monkeypatch.setattr(gpu, "may_have_gpu", lambda: False)
    assert read_gpus() == []


def test_the_readings_become_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    from unified_embeddings.embedders.fake import FakeEmbedder
    from unified_embeddings.monitoring.reading import read_metrics
    from unified_embeddings.monitoring.registry import watch

    monkeypatch.setitem(sys.modules, "pynvml", driver())
    metrics = read_metrics(watch(FakeEmbedder()).text())
    assert metrics.total("unified_embeddings_gpu_memory_used_bytes", gpu="1") == 2
    assert metrics.total("unified_embeddings_gpu_memory_total_bytes") == 160
    assert metrics.total("unified_embeddings_gpu_utilisation_ratio", gpu="0") == 0.25
