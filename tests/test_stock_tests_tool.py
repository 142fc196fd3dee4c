"""The tool that runs LlamaIndex's own tests of its store: how it counts, and what it replaces."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from command import environment
from docs_page import read_page

TOOL = Path(__file__).resolve().parents[1] / "tools" / "run_stock_store_tests.py"
FIXTURES = """
import pytest
from llama_index.core.schema import TextNode
from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import AsyncQdrantClient, QdrantClient

@pytest.fixture
def filled():
    place = {"client": QdrantClient(":memory:"), "aclient": AsyncQdrantClient(":memory:")}
    store = QdrantVectorStore("test", **place, enable_hybrid=True, fastembed_sparse_model="x/y")
    store.add([TextNode(text="a fox", embedding=[1.0, 0.0])])
    return store
"""
GOOD = """
import pytest
from unittest.mock import MagicMock
from llama_index.vector_stores.qdrant import QdrantVectorStore

def test_that_it_is_ours(filled):
    assert type(filled).__module__.startswith("unified_embeddings")
    assert [node.text for node in filled.get_nodes()] == ["a fox"]

def test_a_mock_becomes_a_collection_in_memory():
    assert QdrantVectorStore("test", client=MagicMock()).get_nodes() == []

@pytest.mark.skip(reason="no cluster")
def test_of_a_cluster():
    pass
"""
CLEARED = """
def test_clear(filled):
    filled.clear()
    with pytest.raises(ValueError):
        filled.get_nodes()
"""
BROKEN = """
def test_what_nobody_expects(filled):
    assert filled.get_nodes() == ["two foxes"]
"""


def run(folder: Path, tests: str) -> tuple[int, str]:
    """Return the tool's exit status, and what it prints after pytest's own lines."""
    (folder / "conftest.py").write_text(FIXTURES)
    (folder / "test_vector_stores_qdrant.py").write_text(tests)
    ended = subprocess.run(
        [sys.executable, TOOL, folder], env=environment(), capture_output=True, text=True
    )
    return ended.returncode, ended.stdout[ended.stdout.find("\npassed: ") :]


def test_tests_that_pass_or_state_what_is_replaced_are_in_order(tmp_path: Path) -> None:
    status, told = run(tmp_path, GOOD + CLEARED)
    assert status == 0
    assert "passed: 2\n" in told
    assert "replaced here: 1\n  test_clear: clear() leaves the collection" in told
    assert "skipped: 1\n  test_of_a_cluster: no cluster\n" in told
    assert "unexpected: 0" in told


def test_surprises_of_either_kind_are_told_and_fail(tmp_path: Path) -> None:
    status, told = run(tmp_path, GOOD + BROKEN + "def test_clear(): pass")
    assert status == 1
    assert "unexpected: 2\n  test_what_nobody_expects fails: E " in told
    assert "  test_clear passes, and is listed as replaced\n" in told


def test_a_folder_without_the_tests_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(TOOL.parent)
    from run_stock_store_tests import main

    assert main([str(tmp_path)]) == 2
    assert "has no conftest.py and no test_vector_stores_qdrant.py" in capsys.readouterr().out


def test_the_docs_say_what_is_replaced_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(TOOL.parent)
    from run_stock_store_tests import REPLACED

    page = " ".join(read_page("coming-from.md").text.replace("`", "").split()).lower()
    for reason in set(REPLACED.values()):
        assert f"{reason}.".lower() in page, reason
