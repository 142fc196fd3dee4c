"""A first search with mini-m3 imports no torch, and finds what the retriever finds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from command import environment
from unified_embeddings import UnifiedEmbeddingConfig
from unified_embeddings.llama.indexing import index_paths

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

QUESTION = "Who sleeps at noon?"
SEARCH = """
import json, sys
from unified_embeddings.cli.entry import main

sys.argv[0] = "unified-embeddings"
try:
    main()
except SystemExit as error:
    assert not error.code, error.code
print(json.dumps(sorted(sys.modules)), file=sys.stderr)
"""
ASSISTANT = """
import json, sys
from pathlib import Path
from unified_embeddings import UnifiedEmbeddingConfig
from unified_embeddings.serving.mcp import WarmUp
from unified_embeddings.serving.mcp_place import Place
from unified_embeddings.serving.mcp_tools import make_tools

place = Place(UnifiedEmbeddingConfig("mini-m3"), path=Path(sys.argv[1]))
search, explain, *_ = make_tools(place)
warm_up = WarmUp(place)
warm_up.start()
warm_up.wait(for_model=True)
loaded = set(sys.modules)
answer = search.call({"query": sys.argv[2], "top_k": 3})
explain.call({"query": sys.argv[2], "id": answer["results"][0]["id"]})
print(json.dumps(answer["results"]))
late = {name for name in set(sys.modules) - loaded if name.startswith("llama_index")}
assert not late, f"imported by a call, not ahead: {late}"
print(json.dumps(sorted(sys.modules)), file=sys.stderr)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("first")
    for name, text in {
        "foxes.md": "Foxes jump over dogs.",
        "dogs.md": "Dogs sleep at noon, and nobody wakes them.",
        "sea.md": "The sea is blue.",
        "owls.md": "Owls sleep all day in the tower.",
    }.items():
        (folder / name).write_text(text)
    config = UnifiedEmbeddingConfig("mini-m3")
    store = config.vector_store("documents", path=folder / "store")
    index_paths([folder], store, config.embedder, exclude=[folder / "store"])
    store.client.close()
    return folder


@pytest.fixture(scope="module")
def expected(folder: Path) -> list[Any]:
    """What the retriever finds in this process."""
    config = UnifiedEmbeddingConfig("mini-m3")
    store = config.vector_store("documents", path=folder / "store")
    found = config.retriever(store, similarity_top_k=3).retrieve(QUESTION)
    store.client.close()
    assert found[0].metadata["file_name"] == "dogs.md"
    return found


def run(program: str, *arguments: str | Path) -> tuple[Any, set[str]]:
    """Return what a program prints, as JSON, and the modules that it says are imported."""
    ended = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout), set(json.loads(ended.stderr.splitlines()[-1]))


def test_the_command_finds_the_same(folder: Path, expected: list[Any]) -> None:
    rows, modules = run(
        SEARCH, "search", QUESTION, "--path", folder / "store", "--model", "mini-m3",
        "--filter", "file_size>1", "-k", "3", "--explain", "--json",
    )  # fmt: skip
    assert "torch" not in modules
    assert [row["id"] for row in rows] == [scored.node.node_id for scored in expected]
    assert [row["score"] for row in rows] == pytest.approx([scored.score for scored in expected])
    assert [row["text"] for row in rows] == [scored.node.get_content() for scored in expected]


def test_an_assistant_finds_the_same(folder: Path, expected: list[Any]) -> None:
    pytest.importorskip("mcp")
    rows, modules = run(ASSISTANT, folder / "store", QUESTION)
    assert "torch" not in modules
    notes = [scored.metadata["_retrieval"] for scored in expected]
    assert [row["id"] for row in rows] == [scored.node.node_id for scored in expected]
    assert [row["score"] for row in rows] == pytest.approx([scored.score for scored in expected])
    assert [row["relevance"] for row in rows] == pytest.approx(
        [note["relevance"] for note in notes], abs=1e-5
    )
    assert [row["weak"] for row in rows] == [note["weak"] for note in notes]
