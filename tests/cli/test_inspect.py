"""`inspect`: the page is there, on this machine alone, until Ctrl-C."""

from __future__ import annotations

import re
import signal
import subprocess
import urllib.request
from pathlib import Path

import pytest
from llama_index.core.schema import TextNode

import command
from unified_embeddings.config.pipeline import UnifiedEmbeddingConfig


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    """A folder with two collections of one passage each."""
    config = UnifiedEmbeddingConfig("mini-m3", precision="fp32", device="cpu")
    for name in ("animals", "sea"):
        store = config.vector_store(name, path=tmp_path / "qdrant_data")
        store.add(config.text_model([TextNode(text=f"Foxes jump: {name}.")]))
        store.client.close()
    return tmp_path


def read_address(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    for line in process.stderr:
        found = re.search(r"http://127\.0\.0\.1:\d+/", line)
        if found is not None:
            return found[0]
    pytest.fail("the command ended without an address")


def test_the_page_is_shown_until_ctrl_c(shelf: Path) -> None:
    # No --model: the collection records its own.
    process = command.start("inspect", "--no-open", "-c", "sea", cwd=shelf)
    try:
        address = read_address(process)
        with urllib.request.urlopen(f"{address}search?q=foxes", timeout=60) as answer:
            page = answer.read().decode()
        assert "Foxes" in page
        assert '<option value="sea" selected>' in page
        process.send_signal(signal.SIGINT)
        ended = command.finish(process)
    finally:
        process.kill()
    assert ended.code == 0, ended.err


def test_without_a_collection_the_first_by_name_is_shown(shelf: Path) -> None:
    process = command.start("inspect", "--no-open", cwd=shelf)
    try:
        with urllib.request.urlopen(read_address(process), timeout=60) as answer:
            assert answer.url.endswith("/search")
            assert '<option value="animals" selected>' in answer.read().decode()
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("-c", "nothing"), "there are: 'animals', 'sea'"),
        (("--path", "nowhere"), "there is no such folder"),
        (("--qrels", "qrels.txt"), "--queries"),
        (("--queries", "nowhere"), "nowhere"),
        (("-c", "sea", "--port", "70000"), "65535"),
    ],
)
def test_what_cannot_be_shown_is_told(shelf: Path, arguments: tuple[str, ...], words: str) -> None:
    ended = command.finish(command.start("inspect", "--no-open", *arguments, cwd=shelf))
    assert ended.code != 0
    assert words in " ".join(ended.err.split())
