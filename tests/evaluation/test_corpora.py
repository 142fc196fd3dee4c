"""Reading texts to measure on, and what is wrong with a folder of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from unified_embeddings import InputError
from unified_embeddings.evaluation.corpora import (
    Corpus,
    read_beir,
    read_python_reference,
    spread_positions,
)


@pytest.fixture
def beir(tmp_path: Path) -> Path:
    (tmp_path / "qrels").mkdir()
    rows = [{"_id": "d1", "title": "Foxes", "text": "jump"}, {"_id": "d2", "text": "sleep"}]
    (tmp_path / "corpus.jsonl").write_text("\n".join(map(json.dumps, rows)))
    rows = [{"_id": "q1", "text": "who jumps?"}, {"_id": "q2", "text": "not judged"}]
    (tmp_path / "queries.jsonl").write_text("\n\n".join(map(json.dumps, rows)))
    (tmp_path / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t2\n")
    return tmp_path


class TestCorpora:
    def test_beir(self, beir: Path) -> None:
        assert read_beir(beir) == Corpus(
            beir.name,
            {"d1": "Foxes\njump", "d2": "sleep"},
            {"q1": "who jumps?"},
            {"q1": {"d1": 2}},
        )

    @pytest.mark.parametrize(
        ("name", "content", "problem"),
        [
            ("corpus.jsonl", None, "corpus.jsonl does not exist"),
            ("corpus.jsonl", "", "is empty"),
            (
                "corpus.jsonl",
                '{"_id": "a", "text": "b"}\n{"_id"',
                "line 2 is not valid JSON",
            ),
            ("corpus.jsonl", "\n[1]", "line 2 should be an object"),
            ("queries.jsonl", '{"_id": 1, "text": "b"}', "queries.jsonl, line 1 should be"),
            ("queries.jsonl", '{"_id": "a", "text": "b"}\n' * 2, "line 2 repeats the"),
            ("qrels/test.tsv", "query-id\tcorpus-id\tscore\n", "contains no judgements"),
            ("qrels/test.tsv", "q\td\ts\nq1\td1\tmuch", "test.tsv, line 2 .*whole number"),
            ("qrels/test.tsv", "q1 d1 1\nq1 d1 1", "test.tsv, line 2 .*tabs"),
            (
                "qrels/test.tsv",
                "q1\td1\t1\nq1\td2\t1\nq1\td1\t0",
                "line 3 judges document 'd1' for 'q1' again",
            ),
            ("qrels/test.tsv", "q9\td1\t1", "line 1 judges the query 'q9'"),
            ("qrels/test.tsv", f"q\td\ts\nq1\td1\t{10**400}", "line 2 .*whole number"),
            ("qrels/test.tsv", "q\td\ts\nq1\td1\t1_0", "line 2 .*whole number"),
        ],
    )
    def test_what_is_wrong_is_said(
        self, beir: Path, name: str, content: str | None, problem: str
    ) -> None:
        (beir / name).unlink()
        if content is not None:
            (beir / name).write_text(content)
        with pytest.raises(InputError, match=problem):
            read_beir(beir)

    def test_files_as_windows_writes_them(self, beir: Path) -> None:
        expected = read_beir(beir)
        (beir / "qrels" / "test.tsv").write_text("q1\td1\t2\n")  # without column names
        for file in (beir / "corpus.jsonl", beir / "queries.jsonl", beir / "qrels" / "test.tsv"):
            content = file.read_bytes().replace(b"\n", b"\r\n")
            file.write_bytes(b"\xef\xbb\xbf" + content)
        assert read_beir(beir) == expected

    def test_bytes_that_are_no_text(self, beir: Path) -> None:
        (beir / "corpus.jsonl").write_bytes(b"\xff\xfe")
        with pytest.raises(InputError, match="cannot be read as text"):
            read_beir(beir)

    def test_the_python_reference(self) -> None:
        corpus = read_python_reference()
        assert len(corpus.documents) == 120
        assert len(set(corpus.queries.values())) >= 20
        assert corpus.qrels is None

    def test_even_spread_positions(self) -> None:
        assert spread_positions(10, 4) == [0, 2, 5, 7]
        assert spread_positions(2, 4) == [0, 1]
