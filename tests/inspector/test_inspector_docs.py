"""docs/inspector.md: its commands start what they say, its example runs, its pictures are there."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from llama_index.core.schema import TextNode

import command
from docs_page import DOCS, read_page, run_example
from unified_embeddings.config.pipeline import UnifiedEmbeddingConfig

PAGE = read_page("inspector.md")
PICTURES = DOCS / "inspector"
COLLECTION = "python-reference-demo"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store as the demo leaves one, but small, and judged questions."""
    folder = tmp_path_factory.mktemp("docs")
    config = UnifiedEmbeddingConfig("mini-m3", precision="fp32", device="cpu")
    store = config.vector_store(COLLECTION, path=folder / "qdrant_data")
    node = TextNode(text="Foxes jump.", metadata={"topic": "foxes"})
    store.add(config.text_model([node]))
    store.client.close()
    (folder / "judged" / "qrels").mkdir(parents=True)
    question = json.dumps({"_id": "q", "text": "Which foxes jump?"})
    (folder / "judged" / "queries.jsonl").write_text(question, "utf-8")
    rows = "query-id\tcorpus-id\tscore\nq\tfoxes\t1\n"
    (folder / "judged" / "qrels" / "test.tsv").write_text(rows, "utf-8")
    return folder


def start(line: str, place: Path, *more: str) -> tuple[subprocess.Popen[str], str]:
    """Start a command of the page; return it with the address that it tells."""
    words = shlex.split(line, comments=True)
    assert words[0] == "unified-embeddings"
    process = subprocess.Popen(
        [sys.executable, "-m", "unified_embeddings", *words[1:], *more],
        cwd=place,
        env=command.environment(XDG_CACHE_HOME=str(place / "cache"), UNIFIED_EMBEDDINGS_PORT="0"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    lines = []
    for line_out in process.stderr:
        lines.append(line_out)
        found = re.search(r"(?:shown|ready) at (http://127\.0\.0\.1:\d+)", line_out)
        if found is not None:
            return process, found[1]
    pytest.fail("".join(lines))


def fetch(url: str) -> str:
    with urllib.request.urlopen(url, timeout=120) as answer:
        return str(answer.read().decode())


@pytest.mark.parametrize(
    ("words", "more", "path", "shown"),
    [
        ("inspect                ", ("--no-open",), "/search?q=foxes", "Foxes"),
        ("inspect --collection", (), "/compare?set=1", "nDCG@10 of A"),
        ("serve", (), "/inspect/search?q=foxes", "Foxes"),
    ],
)
def test_a_command_shows_what_the_page_says(
    place: Path, words: str, more: tuple[str, ...], path: str, shown: str
) -> None:
    (line,) = [line for line in PAGE.commands if line.startswith(f"unified-embeddings {words}")]
    process, address = start(line, place, *more)
    try:
        assert shown in fetch(address + path)
    finally:
        process.kill()
        process.communicate()


def test_every_command_of_the_page_is_known() -> None:
    known = [line for line in PAGE.commands if line.startswith(("pip install", "unified-"))]
    assert known == PAGE.commands
    assert len(known) == 6


def test_the_example_gives_what_it_says(tmp_path: Path) -> None:
    (example,) = PAGE.examples
    expected = [
        line.partition("# ")[2] for line in example.splitlines() if line.startswith("print")
    ]
    assert run_example(example, tmp_path).splitlines() == expected


def test_every_picture_is_there_and_small() -> None:
    named = set(re.findall(r"\(inspector/([^)]+)\)", PAGE.text))
    taken = {file.name for file in PICTURES.glob("*.png")}
    assert named <= taken
    views = {"search", "passage", "tokens", "collection", "compare"}
    assert taken == {
        f"{view}-{width}-{scheme}.png"
        for view in views
        for width in (1280, 390)
        for scheme in ("light", "dark")
    }
    for name in taken:
        assert (PICTURES / name).stat().st_size < 150_000


def test_the_extras_of_the_page_exist() -> None:
    text = (DOCS.parent / "pyproject.toml").read_text("utf-8")
    for extras in re.findall(r"'\.\[([a-z,]+)\]'", PAGE.text):
        for extra in extras.split(","):
            assert re.search(rf"^{extra} = \[", text, re.MULTILINE)
