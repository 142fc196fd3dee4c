"""The benchmark of bulk jobs runs; what it measures means nothing here."""

from __future__ import annotations

from pathlib import Path

import pytest

import bulk


def test_kills_are_resumed_and_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bulk.measure_kills(tmp_path, 800, 1, "fake")
    assert capsys.readouterr().out.endswith("outputs byte-identical\n")


def test_memory_is_measured_by_size(tmp_path: Path) -> None:
    assert bulk.measure_memory(tmp_path, 10_000)


def test_a_job_that_fails_says_why(tmp_path: Path) -> None:
    bulk.write_rows(tmp_path / "rows.jsonl", 5, (3, 4))
    with pytest.raises(bulk.JobFailedError, match="there is no such folder"):
        bulk.run_job("ours", tmp_path / "rows.jsonl", tmp_path / "out", "./none", 1)
