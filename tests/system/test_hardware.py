"""How many cores a process may use, and its share of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from unified_embeddings.system import hardware


@pytest.fixture
def sixteen_cores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A machine with 16 cores; yields a folder for the files that tell a container's limits."""
    monkeypatch.setattr(hardware, "_visible_cores", lambda: 16)
    for name in ("_QUOTA_V2", "_QUOTA_V1", "_PERIOD_V1"):
        monkeypatch.setattr(hardware, name, tmp_path / name)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    hardware.cpu.cache_clear()
    yield tmp_path
    hardware.share_machine(1)
    hardware.cpu.cache_clear()


@pytest.mark.parametrize(
    ("limit", "cores"),
    [
        ("max 100000", 16),
        ("200000 100000", 2),
        ("150000 100000", 2),  # Half a core more is worth a second thread.
        ("50000 100000", 1),
        ("6400000 100000", 16),
        ("nonsense", 16),
    ],
)
def test_a_containers_limit_counts(sixteen_cores: Path, limit: str, cores: int) -> None:
    (sixteen_cores / "_QUOTA_V2").write_text(f"{limit}\n")
    assert hardware.cpu().cores == cores


@pytest.mark.parametrize(("quota", "cores"), [("-1", 16), ("300000", 3)])
def test_an_older_kernels_limit_counts_too(sixteen_cores: Path, quota: str, cores: int) -> None:
    (sixteen_cores / "_QUOTA_V1").write_text(f"{quota}\n")
    (sixteen_cores / "_PERIOD_V1").write_text("100000\n")
    assert hardware.cpu().cores == cores


def test_processes_share_the_cores(sixteen_cores: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not hardware.is_shared()
    assert hardware.thread_count() == 16
    hardware.share_machine(5)
    assert hardware.is_shared()
    assert hardware.thread_count() == 3
    hardware.share_machine(40)
    assert hardware.thread_count() == 1

    assert hardware.thread_variables(1) == {}  # Libraries find the 16 themselves.
    assert hardware.thread_variables(5)["OMP_NUM_THREADS"] == "3"
    monkeypatch.setitem(os.environ, "OMP_NUM_THREADS", "7")
    assert "OMP_NUM_THREADS" not in hardware.thread_variables(5)  # The user's word counts.
    assert hardware.thread_variables(5)["RAYON_NUM_THREADS"] == "3"


def test_one_process_is_told_of_its_containers_limit(sixteen_cores: Path) -> None:
    (sixteen_cores / "_QUOTA_V2").write_text("400000 100000\n")
    assert set(hardware.thread_variables(1).values()) == {"4"}


def test_variables_that_restrict_kernels_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in hardware._KERNEL_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert hardware.kernel_variables() == ()
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")
    assert set(hardware.kernel_variables()) == {
        "ONEDNN_MAX_CPU_ISA=AVX2",
        "ATEN_CPU_CAPABILITY=avx2",
    }
