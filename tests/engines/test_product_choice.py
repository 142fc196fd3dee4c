"""Which product is taken for how many rows, and that the answer is remembered."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from unified_embeddings.engines import product_choice
from unified_embeddings.engines.product_choice import NEVER, first_faster, rows_for_plain
from unified_embeddings.system.hardware import Cpu

LARGE = (1024, 1024)


class Timed:
    """A product that takes so many seconds for each row, by a clock that it moves itself."""

    clock = 0.0

    def __init__(self, seconds: dict[int, float]) -> None:
        self.seconds = seconds
        self.calls = 0

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        Timed.clock += self.seconds[len(x)]
        return x


@pytest.fixture(autouse=True)
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Forget what is known, and remember in a folder of the test's own, which is returned."""
    monkeypatch.setattr("platformdirs.user_cache_path", lambda name: tmp_path / name)
    monkeypatch.setattr(product_choice, "_known_rows", {})
    monkeypatch.setattr(product_choice.time, "process_time", lambda: Timed.clock)
    return tmp_path / "unified-embeddings"


@pytest.mark.parametrize(
    ("packed", "plain", "expected"),
    [
        ({64: 1.0, 256: 4.0}, {64: 2.0, 256: 3.0}, 256),
        ({64: 1.0, 256: 4.0}, {64: 0.9, 256: 3.0}, 64),
        ({64: 1.0, 256: 4.0}, {64: 2.0, 256: 8.0}, NEVER),
        ({64: 1.0, 256: 4.0}, {64: 0.5, 256: 8.0}, NEVER),  # few rows do not speak for many
        ({64: 1.0, 256: 4.0}, {64: 1.0, 256: 3.9}, NEVER),  # within what timing can tell
    ],
)
def test_the_plain_product_is_taken_from_where_it_stays_faster(
    packed: dict[int, float], plain: dict[int, float], expected: int
) -> None:
    assert first_faster(packed, plain) == expected
    assert rows_for_plain(Timed(packed), Timed(plain), LARGE) == expected


def test_it_is_measured_once_in_a_process_and_read_in_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    packed, plain = Timed({64: 1.0, 256: 4.0}), Timed({64: 2.0, 256: 3.0})
    for _ in range(3):
        assert rows_for_plain(packed, plain, LARGE) == 256
    assert packed.calls == 6  # three rounds of two numbers of rows
    monkeypatch.setattr(product_choice, "_known_rows", {})  # as in another process
    slower = Timed({64: 9.0, 256: 9.0})
    assert rows_for_plain(packed, slower, LARGE) == 256
    assert slower.calls == 0
    assert rows_for_plain(packed, slower, (2048, 1024)) == NEVER  # another product


def test_another_processor_or_setting_is_measured_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = Timed({64: 1.0, 256: 4.0})
    assert rows_for_plain(packed, Timed({64: 2.0, 256: 3.0}), LARGE) == 256
    slower = Timed({64: 2.0, 256: 8.0})
    with monkeypatch.context() as other:
        other.setattr(product_choice, "cpu", lambda: Cpu("another", 2, ("avx2",)))
        assert rows_for_plain(packed, slower, LARGE) == NEVER
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert rows_for_plain(packed, slower, LARGE) == NEVER
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA")
    assert rows_for_plain(packed, slower, LARGE) == 256


@pytest.mark.parametrize("content", ["", "{", "[]", '{"rows": 256}', '{"measured": 1, "rows": 7}'])
def test_a_damaged_note_is_measured_again(
    content: str, fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed, plain = Timed({64: 1.0, 256: 4.0}), Timed({64: 2.0, 256: 3.0})
    rows_for_plain(packed, plain, LARGE)
    (note,) = fresh.glob("products-*.json")
    note.write_text(content)
    monkeypatch.setattr(product_choice, "_known_rows", {})
    assert rows_for_plain(packed, plain, LARGE) == 256
    assert json.loads(note.read_text())["rows"] == 256


def test_a_folder_that_cannot_be_written_costs_a_measurement_only(fresh: Path) -> None:
    fresh.write_text("a file in the folder's place")
    plain = Timed({64: 2.0, 256: 3.0})
    assert rows_for_plain(Timed({64: 1.0, 256: 4.0}), plain, LARGE) == 256


def test_small_products_are_not_measured(fresh: Path) -> None:
    plain = Timed({})
    assert rows_for_plain(Timed({}), plain, (1536, 384)) == NEVER
    assert plain.calls == 0
    assert not fresh.exists()
