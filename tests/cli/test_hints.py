"""Commands that messages suggest can be pasted: they repeat the place and the model given."""

from __future__ import annotations

import gc
import logging
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from command import Ended
from unified_embeddings import FingerprintMismatchError, StoreError
from unified_embeddings.cli import app as cli
from unified_embeddings.cli.hints import CompletedHints, complete_hints

Command = Callable[..., Ended]


@pytest.fixture
def run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Command:
    """Run the command in this process, in a folder with two notes."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.md").write_text("Foxes jump over dogs.")
    (tmp_path / "notes" / "b.md").write_text("Owls watch them.")

    def run(*arguments: str | Path) -> Ended:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["unified-embeddings", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        gc.collect()  # a store is closed now, and its folder free
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return Ended(int(ended.value.code or 0), out, err)

    return run


@pytest.mark.parametrize(
    ("given", "text", "completed"),
    [
        (
            "search q --path 'my store' -m mini-m3 -c docs",
            "none; index some files first: unified-embeddings index PATH",
            "none; index some files first: unified-embeddings index PATH --collection docs "
            "--path 'my store' --model mini-m3",
        ),
        (
            "search q --path p -m mini-m3",
            "run: unified-embeddings adopt docs --model ./mini.m3. If you know, do.",
            "run: unified-embeddings adopt docs --model ./mini.m3 --path p. If you know, do.",
        ),
        (
            "search q --model=mini-m3 --sparse-model bm25:german",
            "first (unified-embeddings add-vectors docs --sparse), then",
            "first (unified-embeddings add-vectors docs --sparse --model mini-m3 --sparse-model "
            "bm25:german), then",
        ),
        (
            "search q --url http://localhost:6333",
            "unified-embeddings tune docs --reset",
            "unified-embeddings tune docs --reset --url http://localhost:6333",
        ),
        (  # a key is a secret
            "add-vectors docs --sparse --api-key secret",
            "unified-embeddings add-vectors docs --copy-to NEW",
            "unified-embeddings add-vectors docs --copy-to NEW",
        ),
        (  # there, --model is the one to move to, not the one that made the collection
            "migrate plan docs --alias a --path p --model new",
            "unified-embeddings adopt docs",
            "unified-embeddings adopt docs --path p",
        ),
        (
            "search q --path p --model old",
            "unified-embeddings migrate plan docs --alias ALIAS",
            "unified-embeddings migrate plan docs --alias ALIAS --path p",
        ),
        ("search q --path p", "as `unified-embeddings index PATH` does", None),
        ("search q --path p", "unified-embeddings check /data", None),
        ("search q --path p", "unified-embeddings 0.1.0 is too old", None),
        (  # a name may hold what ends a clause
            "search q --path p",
            "run: unified-embeddings add-vectors 'a (b), c; d. e' --colbert pooled. Or not",
            "run: unified-embeddings add-vectors 'a (b), c; d. e' --colbert pooled --path p. Or "
            "not",
        ),
        (
            "search q --path p",
            """unified-embeddings add-vectors 'it'"'"'s, mine' --sparse, as said""",
            """unified-embeddings add-vectors 'it'"'"'s, mine' --sparse --path p, as said""",
        ),
        ("search q --path p", "there is no folder /data/unified-embeddings index/old", None),
        ("nothing --path p", "unified-embeddings index PATH", None),
        ("--version", "unified-embeddings index PATH", None),
    ],
)
def test_options_that_were_given_are_repeated(
    monkeypatch: pytest.MonkeyPatch, given: str, text: str, completed: str | None
) -> None:
    monkeypatch.setattr(sys, "argv", ["unified-embeddings", *shlex.split(given)])
    assert complete_hints(text) == (completed or text)
    record = logging.makeLogRecord({"msg": "%s", "args": (text,)})
    assert CompletedHints().filter(record)
    assert record.getMessage() == (completed or text)


def test_a_message_that_does_not_fit_its_arguments_is_no_error() -> None:
    record = logging.makeLogRecord({"msg": "%d passages", "args": ("no",)})
    assert CompletedHints().filter(record)
    assert (record.msg, record.args) == ("%d passages", ("no",))


def suggestion(message: str) -> list[str]:
    """Return the words of the one command that a message suggests."""
    (command,) = re.findall(r"(?<!`)unified-embeddings ([^,;\n]*)", message)
    return shlex.split(command.rstrip("."))


def test_what_a_search_suggests_can_be_pasted(run: Command, xlmr: Path) -> None:
    place = ("--path", "my store", "--collection", "birds", "--model", str(xlmr))
    ended = run("search", "owls", *place)
    assert ended.code == 1
    assert ended.err.startswith("error: Store my store: opening failed: there is no such folder")
    words = suggestion(ended.err)
    assert run(*[{"PATH": "notes"}.get(word, word) for word in words]).code == 0
    found = run("search", "owls", *place, "--json")
    assert found.names() == {"a.md", "b.md"}


def test_adding_vectors_as_suggested(run: Command, xlmr: Path) -> None:
    place = ("--path", "mine", "--model", str(xlmr))
    assert run("index", "notes", *place).code == 0
    ended = run("index", "notes", *place, "--colbert", "pooled")
    words = suggestion(ended.err)
    assert words[:4] == ["add-vectors", "documents", "--colbert", "pooled"]
    ended = run(*words)
    assert "colbert vectors added to 2 of 2 points" in ended.out, ended.err
    assert run("index", "notes", *place, "--colbert", "pooled").code == 0


def test_a_forgotten_sparse_model_is_named(run: Command, xlmr: Path) -> None:
    model = ("--model", str(xlmr))
    assert run("index", "notes", *model, "--sparse-model", "bm25").code == 0
    ended = run("search", "owls", *model)
    assert ended.code == 1
    assert "Its sparse vectors are those of 'bm25': give sparse_model='bm25'" in ended.err
    assert "(--sparse-model bm25) too" in ended.err
    assert "do not compare" not in ended.err
    assert run("search", "owls", *model, "--sparse-model", "bm25").code == 0
    other = run("search", "owls", *model, "--sparse-model", "bm25:german")
    assert "Its sparse vectors are those of 'bm25'" in other.err


def test_the_default_model_is_told_both_names(
    run: Command, xlmr: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "empty"))
    assert run("index", "notes", "--model", xlmr, "--sparse-model", "bm25").code == 0
    ended = run("search", "owls")
    assert f"to take that model: --model {xlmr} --sparse-model bm25" in ended.err


@pytest.mark.parametrize(
    ("found", "given", "words"),
    [
        ("a + bm25", "a", "give sparse_model='bm25' (--sparse-model bm25) too."),
        ("a + my bm25", "a", "(--sparse-model 'my bm25') too."),
        ("a", "a + bm25", "leave sparse_model='bm25' out."),
        ("a + b", "a + c", "Its sparse vectors are those of 'b'"),
        ("a + bm25", "b", "Vectors of different models do not compare."),
        ("a", "a", "the same name, but other files, prefixes or pooling"),
    ],
)
def test_models_that_differ_in_their_sparse_vectors(found: str, given: str, words: str) -> None:
    error = FingerprintMismatchError(
        "docs", expected="1", found="2", model=given, found_model=found
    )
    assert words in str(error)


@pytest.mark.parametrize(
    "arguments",
    [
        ("search", "owls", "--path", "none"),
        ("list", "--path", "none"),
        ("info", "docs", "--path", "none"),
        ("drop", "docs", "--yes", "--path", "none"),
        ("check", "none"),
        ("copy", "--from", "none", "--to", "new"),
        ("check", "notes"),
        ("copy", "--from", "notes", "--to", "new"),
        ("list", "--path", "notes/a.md"),
        ("index", "notes", "--path", "notes/a.md", "--model", "mini-m3"),
    ],
)
def test_an_error_about_a_folder_names_no_collection(
    run: Command, arguments: tuple[str, ...]
) -> None:
    ended = run(*arguments)
    assert ended.code == 1
    assert "Collection" not in ended.err
    assert re.search(r"error: Store \S*(none|notes)\S*: \w+ failed: ", ended.err), ended.err


def test_an_error_of_a_place_keeps_its_kind() -> None:
    error = StoreError.of_place("data", "opening", "it is a file")
    assert (error.collection, error.operation) == ("data", "opening")
    assert str(error) == "Store data: opening failed: it is a file"
