"""Arguments that are easily given wrongly: empty ones, and ones that begin with a dash."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from command import Ended, run_here

Command = Callable[..., Ended]


@pytest.fixture
def call(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Command:
    """Run the command in this process, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")

    return lambda *arguments: run_here(arguments, capsys, monkeypatch)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (("index", ""), "'paths'"),
        (("index", "docs", " "), "'paths'"),
        (("index", "docs", "--path", ""), "'--path'"),
        (("search", "foxes", "--path", ""), "'--path'"),
        (("list", "--path", ""), "'--path'"),
        (("drop", "documents", "--path", ""), "'--path'"),
        (("check", ""), "'path'"),
        (("embed", "rows.jsonl", "--to-collection", "c", "--path", ""), "'--path'"),
        (("serve", "--collection", "c", "--path", ""), "'--path'"),
        (("mcp", "--allow-writes", "--root", ""), "'--root'"),
    ],
)
def test_an_empty_path_is_not_the_current_folder(
    call: Command, tmp_path: Path, arguments: tuple[str, ...], name: str
) -> None:
    """It comes from a variable of a script that is not set: --path "$STORE"."""
    (tmp_path / "note.md").write_text("Foxes jump.")
    ended = call(*arguments)
    assert (ended.code, ended.out) == (2, "")
    assert f"Invalid value for {name}: it is empty; the current folder is ." in ended.err
    assert [path.name for path in tmp_path.iterdir()] == ["note.md"]


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("search", "-x"), "as QUERY, put -- before it: unified-embeddings search [OPTIONS] --"),
        (("index", "-dash"), "as PATHS, put -- before it: unified-embeddings index [OPTIONS] --"),
        (("migrate", "status", "-x"), "unified-embeddings migrate status [OPTIONS] -- ALIAS"),
    ],
)
def test_an_argument_that_looks_like_an_option_goes_behind_two_dashes(
    call: Command, arguments: tuple[str, ...], hint: str
) -> None:
    ended = call(*arguments)
    assert (ended.code, ended.out) == (2, "")
    assert "No such option: " in ended.err
    assert hint in ended.err


def test_without_an_argument_or_with_a_similar_option_there_is_no_such_hint(call: Command) -> None:
    assert "put --" not in call("list", "-x").err
    ended = call("search", "foxes", "--pth", "here")
    assert "--path" in ended.err
    assert "put --" not in ended.err


def test_the_hint_works(call: Command, tmp_path: Path, xlmr: Path) -> None:
    (tmp_path / "-dash").mkdir()
    (tmp_path / "-dash" / "note.md").write_text("Foxes jump over -x.")
    ended = call("index", "--model", xlmr, "--", "-dash")
    assert ended.code == 0, ended.err
    assert "1 files indexed" in ended.out
    found = call("search", "--model", xlmr, "--json", "--", "-x")
    assert found.names() == {"note.md"}
