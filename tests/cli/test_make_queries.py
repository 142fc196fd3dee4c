"""The command `make-queries`: what it writes, prints and refuses."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from qdrant_client import models as qm

from unified_embeddings import EdgeQdrantClient
from unified_embeddings.cli import app as cli
from unified_embeddings.evaluation.corpora import read_beir

Make = Callable[..., tuple[int, str, str]]


@pytest.fixture
def make(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Make:
    """Runs the command in a folder whose default store has a collection of ten texts."""
    monkeypatch.chdir(tmp_path)
    with EdgeQdrantClient("qdrant_data") as client:
        client.create_collection("docs", qm.VectorParams(size=2, distance=qm.Distance.DOT))
        client.upsert(
            "docs",
            [
                qm.PointStruct(
                    id=number,
                    vector=[1.0, 0.0],
                    payload={
                        "text": f"Report {number} begins with these words. "
                        f"Foxes were counted {number} times at station {number + 40}. "
                        f"The weather at harbour {number + 70} stayed dry until evening.",
                        "paper": f"paper {number // 2}",
                    },
                )
                for number in range(10)
            ],
        )

    def run(*arguments: object) -> tuple[int, str, str]:
        line = ["unified-embeddings", "make-queries", *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", line)
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return int(ended.value.code or 0), out, err

    return run


def test_a_folder_that_evaluation_reads(make: Make) -> None:
    code, out, err = make("docs", "--output", "made", "--queries", 12)
    assert (code, err) == (0, "")
    assert out.startswith("made: 12 queries from 10 passages\n")
    assert "rare-phrase: " in out
    assert "favour lexical matches" in out
    corpus = read_beir(Path("made"))
    assert len(corpus.queries) == 12
    assert set(corpus.documents) == {str(number) for number in range(10)}
    assert "favour lexical matches" in Path("made", "README.md").read_text()


def test_documents_by_a_field_and_json(make: Make) -> None:
    code, out, _ = make(
        "docs", "-o", "made", "--document-field", "paper", "--json", "--queries", 5, "--seed", 3
    )
    summary = json.loads(out)
    assert code == 0
    assert (summary["queries"], summary["seed"], summary["document_field"]) == (5, 3, "paper")
    assert sum(summary["kinds"].values()) == 5
    corpus = read_beir(Path("made"))
    assert set(corpus.documents) == {f"paper {number}" for number in range(5)}


def test_the_same_call_writes_the_same_bytes(make: Make) -> None:
    make("docs", "-o", "first")
    make("docs", "-o", "second")
    for name in ("corpus.jsonl", "queries.jsonl", "qrels/test.tsv", "generated.json"):
        assert Path("first", name).read_bytes() == Path("second", name).read_bytes()


def test_fewer_than_asked_for_is_said(make: Make) -> None:
    _, out, _ = make("docs", "-o", "made", "--queries", 500)
    assert "Fewer than the 500 asked for" in out


def test_refusals(make: Make) -> None:
    code, _, err = make("papers", "-o", "made")
    assert code == 1
    assert "existing collections: 'docs'" in err
    code, _, err = make("docs", "-o", "made", "--document-field", "title")
    assert code == 1
    assert "no point has a text in its payload, together with 'title'" in err
    assert not Path("made").exists()
    Path("notes").mkdir()
    Path("notes", "mine.txt").write_text("mine")
    code, _, err = make("docs", "-o", "notes")
    assert code == 1
    assert "not an empty folder" in err
    Path("file").write_text("")
    code, _, err = make("docs", "-o", "file/made")
    assert code == 1
    assert "cannot be written" in err
    code, _, err = make("docs", "-o", "made", "--queries", 0)
    assert code == 2
