"""Which way to compute is taken from which size on, and that the answer is remembered."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from unified_embeddings.engines import timed_choice
from unified_embeddings.engines.timed_choice import NEVER, Trial, first_faster, first_faster_size
from unified_embeddings.system import hardware
from unified_embeddings.system.hardware import Cpu


class Timed:
    """Work that takes so many seconds for each size, by a clock that it moves itself."""

    clock = 0.0

    def __init__(self, seconds: dict[int, float]) -> None:
        self.seconds = seconds
        self.calls = 0

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        Timed.clock += self.seconds[len(x)]
        return x


def trial(usual: Timed, other: Timed, name: str = "product 1024x1024") -> Trial:
    """Return a trial at 64 and 256 rows."""
    return Trial(name, (64, 256), torch.ones, usual, other)


@pytest.fixture(autouse=True)
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Forget what is known, and remember in a folder of the test's own, which is returned."""
    monkeypatch.setattr("platformdirs.user_cache_path", lambda name: tmp_path / name)
    monkeypatch.setattr(timed_choice, "_known_sizes", {})
    monkeypatch.setattr(timed_choice.time, "process_time", lambda: Timed.clock)
    return tmp_path / "unified-embeddings"


@pytest.mark.parametrize(
    ("usual", "other", "expected"),
    [
        ({64: 1.0, 256: 4.0}, {64: 2.0, 256: 3.0}, 256),
        ({64: 1.0, 256: 4.0}, {64: 0.9, 256: 3.0}, 64),
        ({64: 1.0, 256: 4.0}, {64: 2.0, 256: 8.0}, NEVER),
        ({64: 1.0, 256: 4.0}, {64: 0.5, 256: 8.0}, NEVER),  # few rows do not speak for many
        ({64: 1.0, 256: 4.0}, {64: 1.0, 256: 3.9}, NEVER),  # within what timing can tell
    ],
)
def test_the_other_way_is_taken_from_where_it_stays_faster(
    usual: dict[int, float], other: dict[int, float], expected: int
) -> None:
    assert first_faster(usual, other) == expected
    assert first_faster_size(trial(Timed(usual), Timed(other))) == expected


def test_it_is_measured_once_in_a_process_and_read_in_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    usual, other = Timed({64: 1.0, 256: 4.0}), Timed({64: 2.0, 256: 3.0})
    for _ in range(3):
        assert first_faster_size(trial(usual, other)) == 256
    assert usual.calls == 16  # seven rounds and an untimed call, at two sizes
    monkeypatch.setattr(timed_choice, "_known_sizes", {})  # as in another process
    slower = Timed({64: 9.0, 256: 9.0})
    assert first_faster_size(trial(usual, slower)) == 256
    assert slower.calls == 0
    assert first_faster_size(trial(usual, slower, "product 2048x1024")) == NEVER  # another product


def test_short_work_is_repeated_until_its_turn_is_long_enough_to_be_timed() -> None:
    usual, other = Timed({64: 0.015, 256: 0.03}), Timed({64: 0.015, 256: 0.02})
    assert first_faster_size(trial(usual, other)) == 256
    # An untimed call for each size, and seven turns: of two calls of 15 ms, and of one of 30.
    assert usual.calls == 1 + 7 * 2 + 1 + 7


def test_a_clock_that_jumps_before_the_work_begins_is_no_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def jump() -> float:
        Timed.clock += 1.0
        return Timed.clock

    monkeypatch.setattr(timed_choice.time, "process_time", jump)
    usual, other = Timed({64: 1.0, 256: 4.0}), Timed({64: 2.0, 256: 3.0})
    assert first_faster_size(trial(usual, other)) == 256


def test_what_threads_have_used_is_counted_though_the_system_adds_it_late(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    late = 0.0

    def work_of_two_threads(x: torch.Tensor) -> torch.Tensor:
        """Use 4 s, half of which is added when the second thread sleeps."""
        nonlocal late
        Timed.clock += 2.0
        late += 2.0
        return x

    def sleep(seconds: float) -> None:
        nonlocal late
        Timed.clock += late
        late = 0.0

    monkeypatch.setattr(timed_choice.time, "sleep", sleep)
    work_of_one = Timed({64: 3.0, 256: 3.0})
    trial_of_threads = Trial("product", (64, 256), torch.ones, work_of_two_threads, work_of_one)
    assert first_faster_size(trial_of_threads) == 64


def test_another_processor_or_setting_is_measured_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = Timed({64: 1.0, 256: 4.0})
    assert first_faster_size(trial(usual, Timed({64: 2.0, 256: 3.0}))) == 256
    slower = Timed({64: 2.0, 256: 8.0})
    with monkeypatch.context() as other:
        other.setattr(timed_choice, "cpu", lambda: Cpu("another", 2, ("avx2",)))
        assert first_faster_size(trial(usual, slower)) == NEVER
    with monkeypatch.context() as later:
        later.setattr(timed_choice, "__version__", "99")
        assert first_faster_size(trial(usual, slower)) == NEVER
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert first_faster_size(trial(usual, slower)) == NEVER
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA")
    assert first_faster_size(trial(usual, slower)) == 256


def test_sleeping_and_spinning_threads_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.setattr(hardware, "_torch_sleeps", True)
    usual = Timed({64: 1.0, 256: 4.0})
    assert first_faster_size(trial(usual, Timed({64: 2.0, 256: 3.0}))) == 256
    spinning = Timed({64: 9.0, 256: 30.0})
    with monkeypatch.context() as other:
        other.setattr(hardware, "_torch_sleeps", False)
        assert first_faster_size(trial(usual, spinning)) == NEVER
        other.setenv("OMP_WAIT_POLICY", "passive")
        assert first_faster_size(trial(usual, Timed({64: 0.5, 256: 2.0}))) == 64
    assert first_faster_size(trial(usual, spinning)) == 256  # as remembered


@pytest.mark.parametrize(
    "content", ["", "{", "[" * 100_000, "[]", '{"size": 256}', '{"measured": 1, "size": 7}']
)
def test_a_damaged_note_is_measured_again(
    content: str, fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual, other = Timed({64: 1.0, 256: 4.0}), Timed({64: 2.0, 256: 3.0})
    first_faster_size(trial(usual, other))
    (note,) = fresh.glob("timed-*.json")
    note.write_text(content)
    monkeypatch.setattr(timed_choice, "_known_sizes", {})
    assert first_faster_size(trial(usual, other)) == 256
    assert json.loads(note.read_text())["size"] == 256


def test_a_folder_that_cannot_be_written_costs_a_measurement_only(fresh: Path) -> None:
    fresh.write_text("a file in the folder's place")
    other = Timed({64: 2.0, 256: 3.0})
    assert first_faster_size(trial(Timed({64: 1.0, 256: 4.0}), other)) == 256
