"""TREC's files: what is written is read back, by others too; what could not be is refused."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import pytrec_eval
from hypothesis import given
from hypothesis import strategies as st

from unified_embeddings.errors import InputError
from unified_embeddings.evaluation.trec import read_qrels, read_run, write_qrels, write_run

RUN = {"q1": {"d2": 0.1 + 0.2, "d1": 1e-30, "d3": 0.1 + 0.2}, "fräge-7": {"d1": -3.0}}
QRELS = {"q1": {"d2": 1, "d9": -2}, "q2": {"d1": 0}}

WORDS = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zs", "Zl", "Zp"]), min_size=1)


def test_a_run_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "new" / "mine.run"
    write_run(path, RUN, tag="mine")
    assert path.read_text("utf-8") == (
        "q1 Q0 d3 1 0.30000000000000004 mine\n"
        "q1 Q0 d2 2 0.30000000000000004 mine\n"
        "q1 Q0 d1 3 1e-30 mine\n"
        "fräge-7 Q0 d1 1 -3.0 mine\n"
    )
    assert read_run(path) == RUN
    with path.open(encoding="utf-8") as file:
        assert pytrec_eval.parse_run(file) == RUN


def test_judgements_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "qrels.txt"
    write_qrels(path, QRELS)
    assert path.read_text() == "q1 0 d2 1\nq1 0 d9 -2\nq2 0 d1 0\n"
    assert read_qrels(path) == QRELS
    with path.open() as file:
        assert pytrec_eval.parse_qrel(file) == QRELS


@given(
    run=st.dictionaries(
        WORDS,
        st.dictionaries(
            WORDS, st.floats(allow_nan=False, allow_infinity=False, width=32), min_size=1
        ),
        min_size=1,
    )
)
def test_any_run_is_read_back_or_refused(
    run: dict, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("trec") / "run"
    with contextlib.suppress(InputError):
        write_run(path, run, tag="mine")
    if path.exists():
        assert read_run(path) == run
    else:  # for what the next test shows
        names = [*run, *(name for scores in run.values() for name in scores)]
        assert any(name.split() != [name] or name[0] == "\ufeff" for name in names)


def test_columns_may_be_separated_by_tabs_and_begin_with_a_mark(tmp_path: Path) -> None:
    path = tmp_path / "run"
    path.write_text("\ufeffq1\tQ0\td1\t0\t7\ttag\r\n\r\nq1   Q0 d2 0 6 tag", "utf-8")
    assert read_run(path) == {"q1": {"d1": 7.0, "d2": 6.0}}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("q1 Q0 d1 1 0.5 x\nq1 Q0 d1 2 0.4 x\n", "line 2 names document 'd1' of 'q1' again"),
        ("q1 Q0 d1 1 0.5\n", "line 1 should be .* six words"),
        ("q1 Q0 d1 1 0.5 two words\n", "line 1 should be .* six words"),
        ("\nq1 Q0 d1 1 high x\n", "line 2 should have a finite number"),
        ("q1 Q0 d1 1 nan x\n", "line 1 should have a finite number"),
        ("q1 Q0 d1 1 inf x\n", "line 1 should have a finite number"),
        ("q1 Q0 d1 1 1_0 x\n", "line 1 should have a finite number"),
        (" \n", "is empty"),
    ],
)
def test_a_malformed_run_is_refused_with_its_line(
    tmp_path: Path, content: str, problem: str
) -> None:
    path = tmp_path / "bad.run"
    path.write_text(content)
    with pytest.raises(InputError, match=rf"bad\.run.*{problem}"):
        read_run(path)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("q1 0 d1 1\nq2 0 d1 1\nq1 0 d1 0\n", "line 3 judges document 'd1' for 'q1' again"),
        ("q1 0 d1\n", "line 1 should be .* four words"),
        ("q1 0 d1 1.5\n", "line 1 should end with a grade"),
        ("q1 0 d1 1_0\n", "line 1 should end with a grade"),
        ("", "is empty"),
    ],
)
def test_malformed_judgements_are_refused_with_their_line(
    tmp_path: Path, content: str, problem: str
) -> None:
    path = tmp_path / "bad.qrels"
    path.write_text(content)
    with pytest.raises(InputError, match=rf"bad\.qrels.*{problem}"):
        read_qrels(path)


def test_a_missing_file_and_one_that_is_no_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none does not exist; name a file in TREC's format"):
        read_run(tmp_path / "none")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot be read as text"):
        read_qrels(tmp_path / "binary")


@pytest.mark.parametrize("name", ["", "a b", "a\tb", "a\nb", "a\u00a0b", "a\x00b", "\ud800", " a"])
def test_ids_that_would_break_a_line_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "run"
    for run in ({name: {"d": 1.0}}, {"q": {name: 1.0}}):
        with pytest.raises(InputError, match="cannot be written to a TREC file"):
            write_run(path, run, tag="mine")
    with pytest.raises(InputError, match="the tag"):
        write_run(path, {"q": {"d": 1.0}}, tag=name)
    for qrels in ({name: {"d": 1}}, {"q": {name: 1}}):
        with pytest.raises(InputError, match="cannot be written to a TREC file"):
            write_qrels(path, qrels)
    assert not path.exists()


def test_an_infinite_score_and_a_bad_place_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'d' for 'q' is inf"):
        write_run(tmp_path / "run", {"q": {"d": float("inf")}}, tag="mine")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        write_run(tmp_path / "file" / "run", {"q": {"d": 1.0}}, tag="mine")
