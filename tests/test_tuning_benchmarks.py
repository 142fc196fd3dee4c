"""The benchmarks of tuning run on a tiny checkpoint, and their arithmetic is right."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import generated_queries
import stored_colbert
import tuning

TOPICS = ["fox", "heron", "otter", "badger", "lynx", "stoat", "marten", "hare", "vole", "shrew",
          "mole", "bat"]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve documents, each the answer to one question."""
    folder = tmp_path / "animals"
    (folder / "qrels").mkdir(parents=True)
    documents, queries, grades = [], [], ["query-id\tcorpus-id\tscore"]
    for number, topic in enumerate(TOPICS):
        text = (
            f"The {topic} was seen in spring {number}. It stayed near station {number + 50}. "
            f"Observers of group {number + 90} heard the {topic} every evening."
        )
        documents.append({"_id": f"d{number}", "title": f"About the {topic}", "text": text})
        queries.append({"_id": f"q{number}", "text": f"Where was the {topic} seen?"})
        grades.append(f"q{number}\td{number}\t1")
    for name, rows in (("corpus", documents), ("queries", queries)):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines)
    (folder / "qrels" / "test.tsv").write_text("\n".join(grades) + "\n")
    return folder


def test_tuning_prints_what_is_gained_held_out(
    folder: Path, xlmr: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tuning.main([str(folder), "--model", str(xlmr)])
    lines = capsys.readouterr().out.splitlines()
    assert "its own fusion: RRF, k 60, weights 1 : 0.3, 50 candidates" in lines[0]
    (row,) = [line for line in lines if line.startswith("| animals | 12 |")]
    assert len(row.split(" | ")) == 8
    assert "### Tuned on n queries" in "\n".join(lines)


def test_stored_colbert_prints_quality_bytes_and_times(
    folder: Path, xlmr: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored_colbert.main([str(folder), "--model", str(xlmr), "--points", "20", "--queries", "2"])
    out = capsys.readouterr().out
    quality, times = out.split("### Time of a query")
    rows = {line.split(" | ")[0].strip("| "): line.split(" | ") for line in quality.splitlines()}
    assert set(map(str, stored_colbert.WAYS)) <= rows.keys()
    full = rows["not pooled, float32"]
    assert float(full[2].strip(" %")) == pytest.approx(0, abs=1e-6)  # as encoded at each query
    # A row of 32 numbers in float32, and its share of a file's last block.
    assert float(full[3].replace(",", "")) >= 4 * 32
    assert {str(way) in times for way in stored_colbert.TIMED} == {True}


def test_generated_queries_prints_correlations(
    folder: Path, xlmr: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generated_queries.main([str(folder), "--model", str(xlmr), "--queries", "40"])
    out = capsys.readouterr().out
    first, second = [line for line in out.splitlines() if line.startswith("| animals |")]
    mixes, cuts = (float(cell) for cell in first.split(" | ")[1:3])
    assert -1 <= mixes <= 1 or np.isnan(mixes)
    assert -1 <= cuts <= 1
    assert "title" in first
    assert len(second.split(" | ")) == 5


class TestDraws:
    def test_a_choice_that_is_always_better_gains_its_lead(self) -> None:
        table = np.array([[0.5] * 30, [0.6] * 30])
        assert tuning.draw_gains(table, 10, 1.5, draws=20) == pytest.approx(0.1)

    def test_the_default_gains_nothing(self) -> None:
        table = np.array([[0.5] * 30, [0.4] * 30])
        assert tuning.draw_gains(table, 10, 0.0, draws=20).tolist() == [0.0] * 20

    def test_a_higher_threshold_changes_less_often(self) -> None:
        draw = np.random.default_rng(0)
        table = np.vstack([np.full(60, 0.5), draw.uniform(size=(20, 60))])
        changes = [
            int(np.count_nonzero(tuning.draw_gains(table, 30, threshold, draws=60)))
            for threshold in (0.0, 1.5, 3.0)
        ]
        assert changes[0] > changes[1] > changes[2]
