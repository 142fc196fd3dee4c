"""`embed` as people and scripts use it: document 004, bad input, events, and how it ends."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import checkpoints
from command import FORGET, Ended, Run, environment, finish, run_here
from unified_embeddings.bulk import run as bulk_run
from unified_embeddings.bulk.options import BulkOptions, ModelReport
from unified_embeddings.bulk.run import embed_rows

ROWS = [
    {
        "paper_id": f"astro-ph/{number // 3}",
        "paragraph_index": number % 3,
        "text": f"Paragraph {number} is about dust, and about {'stars ' * (number % 4)}too.",
    }
    for number in range(30)
]
BASIC = """
    --input_file data/methodology_labels/labeled_paragraphs.jsonl
    --output_dir results/embeddings
    --models {first} {second}
    --batch_size 32
"""
ADVANCED = """
    --input_file data/methodology_labels/labeled_paragraphs.jsonl
    --output_dir results/embeddings
    --models {first} {second} {third}
    --batch_size 32
    --max_workers 4
    --checkpoint_interval 1000
    --device {device}
"""


@pytest.fixture
def run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, work: Path
) -> Callable[..., Ended]:
    """Run the command in this process; it must never print a traceback."""
    for name in os.environ:
        if name.startswith("UNIFIED_EMBEDDINGS_") or name in FORGET:
            monkeypatch.delenv(name)
    monkeypatch.chdir(work)

    return lambda *arguments: run_here(["embed", *arguments], capsys, monkeypatch)


@pytest.fixture
def work(tmp_path: Path, models: Path) -> Path:
    """A folder with document 004's input, and models to be named from there."""
    data = tmp_path / "data" / "methodology_labels"
    data.mkdir(parents=True)
    write_lines(data / "labeled_paragraphs.jsonl", ROWS)
    write_lines(tmp_path / "rows.jsonl", ROWS)
    (tmp_path / "models").symlink_to(models)
    return tmp_path


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny checkpoints: BGE-M3's layout, E5's and a sentence-transformers model."""
    folder = tmp_path_factory.mktemp("models")
    checkpoints.xlm_roberta(folder / "xlmr")
    checkpoints.sentence_model(folder / "e5", "bert")
    checkpoints.sentence_model(folder / "mpnet", "mpnet")
    (folder / "e5.toml").write_text('like = "e5-small-v2"\nmodel_id = "e5"\ndimension = 32\n')
    (folder / "mpnet.toml").write_text(
        'like = "all-mpnet-base-v2"\nmodel_id = "mpnet"\ndimension = 32\n'
    )
    return folder


def start(*arguments: str | Path, cwd: Path) -> subprocess.Popen[str]:
    """Start the command in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "unified_embeddings", *map(str, arguments)],
        cwd=cwd,
        env=environment(XDG_CACHE_HOME=str(cwd / "cache"), COLUMNS="200"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )


def write_lines(path: Path, rows: list[Any]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def read_lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def files_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.startswith(".")}


class TestDocument004:
    def test_its_basic_command_line(self, run: Run, work: Path) -> None:
        line = BASIC.format(first="./models/xlmr", second="./models/mpnet.toml")
        ended = run(*shlex.split(line))
        assert ended.code == 0
        folder = work / "results" / "embeddings"
        names = {"models--xlmr", "models--mpnet.toml"}
        expected = {f"{n}.{end}" for n in names for end in ("npy", "jsonl", "metadata.json")}
        assert files_in(folder) == expected | {"failed.jsonl"}
        embeddings = np.load(folder / "models--xlmr.npy")
        assert embeddings.shape == (30, 32)
        first = read_lines(folder / "models--xlmr.jsonl")[5]
        assert list(first) == ["paper_id", "paragraph_index", "embedding", "model"]
        assert first["paper_id"] == "astro-ph/1"
        assert first["paragraph_index"] == 2
        assert first["model"] == "./models/xlmr"
        np.testing.assert_allclose(first["embedding"], embeddings[5], rtol=1e-6)
        metadata = json.loads((folder / "models--mpnet.toml.metadata.json").read_text())
        assert metadata["model_name"] == "./models/mpnet.toml"
        assert metadata["embedding_dim"] == 32
        assert metadata["num_paragraphs"] == 30
        assert metadata["batch_size"] == 32
        assert metadata["processing_time"] > 0

    def test_its_advanced_command_line(
        self, run: Run, work: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        given: list[BulkOptions] = []

        def embed_with_fewer_workers(
            source: str, output: str, options: BulkOptions, **more: Any
        ) -> list[ModelReport]:
            given.append(options)
            # Four processes for each of three models take long on a small machine.
            return embed_rows(source, output, replace(options, max_workers=1), **more)

        monkeypatch.setattr(bulk_run, "embed_rows", embed_with_fewer_workers)
        line = ADVANCED.format(
            first="./models/xlmr",
            second="./models/e5.toml",
            third="./models/mpnet.toml",
            device="cpu",
        )
        ended = run(*shlex.split(line))
        assert ended.code == 0
        assert len(list((work / "results" / "embeddings").glob("*.npy"))) == 3
        (options,) = given
        assert options.batch_size == 32
        assert options.max_workers == 4
        assert options.checkpoint_interval == 1000
        assert options.devices == ("cpu",)

    def test_hyphens_and_underscores_mean_the_same(self, run: Run, work: Path) -> None:
        line = (
            BASIC.format(first="./models/xlmr", second="./models/mpnet.toml")
            + " --keep_fields paper_id"
        )
        assert run(*shlex.split(line)).code == 0
        again = line.replace("_dir results/embeddings", "_dir hyphens")
        flags = [arg.replace("_", "-") if arg[:2] == "--" else arg for arg in shlex.split(again)]
        assert run(*flags).code == 0
        for name in ("models--xlmr.npy", "models--xlmr.jsonl", "models--mpnet.toml.npy"):
            one, other = work / "results" / "embeddings" / name, work / "hyphens" / name
            assert one.read_bytes() == other.read_bytes()
        assert "paragraph_index" not in read_lines(work / "hyphens" / "models--xlmr.jsonl")[0]

    def test_each_model_has_its_own_prefix(self, run: Run, work: Path, models: Path) -> None:
        sentence_transformers = pytest.importorskip("sentence_transformers")
        arguments = (
            "rows.jsonl",
            "-o",
            "out",
            "--models",
            "./models/mpnet.toml",
            "./models/e5.toml",
        )
        assert run(*arguments).code == 0
        texts = [row["text"] for row in ROWS]
        for name, file, prefix in (
            ("e5", "models--e5.toml.npy", "passage: "),
            ("mpnet", "models--mpnet.toml.npy", ""),
        ):
            oracle = sentence_transformers.SentenceTransformer(str(models / name), device="cpu")
            expected = oracle.encode(
                [f"{prefix}{text}" for text in texts], normalize_embeddings=True
            )
            np.testing.assert_allclose(np.load(work / "out" / file), expected, atol=1e-5)
        assert (
            run("rows.jsonl", "-o", "own", "-m", "./models/e5.toml", "--prefix", "say: ").code == 0
        )
        oracle = sentence_transformers.SentenceTransformer(str(models / "e5"), device="cpu")
        expected = oracle.encode([f"say: {text}" for text in texts], normalize_embeddings=True)
        found = np.load(work / "own" / "models--e5.toml.npy")
        np.testing.assert_allclose(found, expected, atol=1e-5)


class TestBadInput:
    """Each is told before a model is loaded: the model named is not there."""

    @pytest.mark.parametrize(
        ("arguments", "told"),
        [
            (("missing.jsonl", "-o", "out"), "no file or folder 'missing.jsonl'"),
            (("rows.jsonl",), "--output"),
            (("-o", "out"), "name an input"),
            (("rows.jsonl", "--input-file", "rows.jsonl", "-o", "out"), "the same"),
            (("rows.jsonl", "-o", "out", "--text-field", "words"), "'paper_id'"),
            (("rows.jsonl", "-o", "out", "--id_field", "doi"), "no field 'doi' for the id"),
            (("rows.jsonl", "-o", "out", "--keep-fields", "year"), "no field 'year' to keep"),
            (("rows.jsonl", "-o", "out", "--heads", "dense,dance"), "'dance'"),
            (("rows.jsonl", "-o", "out", "--format", "hdf5"), "npy, jsonl, parquet"),
            (("rows.jsonl", "-o", "out", "--format", ","), "names nothing"),
            (("rows.jsonl", "-o", "out", "--path", "store"), "--to-collection"),
            (("numbers.jsonl", "-o", "out"), "which field holds the text?"),
            (("mixed.jsonl", "-o", "out", "--text-field", "text"), "is not a text but a number"),
            (("cut.jsonl.gz", "-o", "out"), "cut"),
            (("empty.jsonl", "-o", "out"), "holds no rows"),
            (("rows.xyz", "-o", "out"), "does not tell its format"),
            ((".", "-o", "."), "folder of the input"),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
    )
    def test_it_is_told_before_a_model_is_loaded(
        self, run: Run, work: Path, arguments: tuple[str, ...], told: str
    ) -> None:
        write_lines(work / "numbers.jsonl", [{"value": 1}, {"value": 2}])
        write_lines(work / "mixed.jsonl", [{"text": 1}, {"text": 2.5}, ["a list"]])
        (work / "empty.jsonl").write_text("")
        (work / "rows.xyz").write_text("text")
        content = "\n".join(json.dumps(row) for row in ROWS[:5])
        (work / "cut.jsonl.gz").write_bytes(gzip.compress(content.encode())[:-20])
        ended = run(*arguments, "--models", "./models/none")
        assert ended.code == 1
        assert ended.out == ""
        assert ended.err.startswith("error: ")
        assert told in ended.err
        assert not (work / "out").exists()

    @pytest.mark.parametrize(
        "arguments",
        [
            ("--bogus",),
            ("--models",),
            ("--batch-size", "0"),
            ("--dtype", "float8"),
            ("--checkpoint_interval", "many"),
        ],
    )
    def test_a_wrong_flag_is_wrong_usage(self, run: Run, arguments: tuple[str, ...]) -> None:
        assert run("rows.jsonl", "-o", "out", *arguments).code == 2

    def test_the_input_after_the_models_is_taken_for_one_and_that_is_told(self, run: Run) -> None:
        ended = run("-o", "out", "--models", "./models/xlmr", "rows.jsonl")
        assert ended.code == 1
        assert "'rows.jsonl' was taken for a model" in ended.err

    def test_a_folder_that_cannot_be_written_to(self, run: Run, work: Path) -> None:
        (work / "file").write_text("")
        ended = run("rows.jsonl", "-o", "file/out", "--models", "./models/xlmr")
        assert ended.code == 1
        assert "file is a file, and the outputs go into a folder" in ended.err

    def test_two_models_into_one_collection(self, run: Run) -> None:
        into = ("--to-collection", "notes", "--path", "store")
        ended = run(
            "rows.jsonl", "-o", "out", *into, "--models", "./models/xlmr", "./models/mpnet.toml"
        )
        assert ended.code == 1
        assert "one model" in ended.err

    def test_the_last_of_several_models_is_missing(self, run: Run, work: Path) -> None:
        ended = run("rows.jsonl", "-o", "out", "--models", "./models/xlmr", "./models/none")
        assert ended.code == 1
        assert "./models/none" in ended.err
        assert not (work / "out").exists()  # The first has not begun.

    def test_a_head_that_a_model_does_not_have(self, run: Run, work: Path) -> None:
        ended = run(
            "rows.jsonl", "-o", "out", "--heads", "sparse", "--models", "./models/mpnet.toml"
        )
        assert ended.code == 1
        assert "no sparse" in ended.err
        assert not (work / "out").exists()

    def test_a_gzip_file_that_breaks_far_behind_its_beginning(self, run: Run, work: Path) -> None:
        rows = [{"text": os.urandom(40_000).hex()[:60] + " x" * 40_000} for _ in range(120)]
        for row in rows:
            row["noise"] = os.urandom(40_000).hex()
        whole = gzip.compress("\n".join(json.dumps(row) for row in rows).encode())
        (work / "cut.jsonl.gz").write_bytes(whole[:-100])
        arguments = (
            "cut.jsonl.gz",
            "-o",
            "out",
            "-m",
            "./models/xlmr",
            "--checkpoint-interval",
            "4",
        )
        ended = run(*arguments)
        assert ended.code == 1
        assert "cut.jsonl.gz" in ended.err
        (work / "cut.jsonl.gz").write_bytes(whole)
        again = run(*arguments, "--json")
        assert again.code == 0
        assert json.loads(again.out.splitlines()[-1])["resumed"] >= 60

    def test_an_input_that_the_outputs_would_replace(self, run: Run, work: Path) -> None:
        (work / "out").mkdir()
        write_lines(work / "out" / "failed.jsonl", ROWS)
        ended = run("out/failed.jsonl", "-o", "out", "--models", "./models/xlmr")
        assert ended.code == 1
        assert "would replace it" in ended.err


class TestEvents:
    def test_every_line_is_an_event(self, run: Run) -> None:
        arguments = (
            "rows.jsonl",
            "-o",
            "out",
            "-m",
            "./models/xlmr",
            "--checkpoint-interval",
            "10",
        )
        ended = run(*arguments, "--json")
        assert (ended.code, ended.err) == (0, "")
        events = [json.loads(line) for line in ended.out.splitlines()]
        assert [event["event"] for event in events] == [*["progress"] * 4, "finished"]
        assert [event["rows"] for event in events] == [10, 20, 30, 30, 30]
        assert [event["phase"] for event in events[:4]] == [*["computing"] * 3, "writing"]
        assert events[-1]["files"][0] == "out/models--xlmr.npy"
        again = run(*arguments, "--json")
        (event,) = [json.loads(line) for line in again.out.splitlines()]
        assert event["was_finished"]
        assert event["rows"] == event["resumed"] == 30

    def test_a_pipe_gets_plain_lines(self, run: Run) -> None:
        ended = run("rows.jsonl", "-o", "out", "-m", "./models/xlmr")
        assert "\x1b" not in ended.out + ended.err
        lines = ended.out.splitlines()
        assert lines[0].startswith("./models/xlmr: 30 rows in ")
        assert lines[1:] == [
            f"  out/models--xlmr.{end}" for end in ("npy", "jsonl", "metadata.json")
        ]
        assert "writing the outputs" in ended.err
        again = run("rows.jsonl", "-o", "out", "-m", "./models/xlmr")
        assert again.out.startswith("./models/xlmr: nothing to do, 30 rows were finished before")

    def test_a_row_that_fails_is_told_and_the_rest_is_done(self, run: Run, work: Path) -> None:
        write_lines(work / "bad.jsonl", [*ROWS, {"id": "x", "text": None}])
        ended = run("bad.jsonl", "-o", "out", "-m", "./models/xlmr")
        assert ended.code == 1
        assert ended.out.startswith("./models/xlmr: 31 rows in ")
        assert "1 failed, listed in out/failed.jsonl" in ended.out
        lines = (work / "out" / "models--xlmr.jsonl").read_text("utf-8").splitlines()
        assert [json.loads(line)["embedding"] is None for line in lines] == [False] * 30 + [True]

    def test_a_dry_run_writes_nothing(self, run: Run, work: Path) -> None:
        before = files_in(work)
        arguments = (
            "rows.jsonl",
            "-o",
            "out",
            "--dry-run",
            "--models",
            "./models/xlmr",
            "./models/mpnet.toml",
        )
        ended = run(*arguments, "--json")
        assert ended.code == 0
        events = [json.loads(line) for line in ended.out.splitlines()]
        assert [event["event"] for event in events] == ["estimate"] * 2
        assert [event["rows"] for event in events] == [30, 30]
        assert events[0]["tokens"] > 30
        assert run(*arguments).out.startswith("./models/xlmr: about 30 rows, ")
        assert files_in(work) == before


class TestStandardInput:
    def test_rows_come_through_it_once(
        self, run: Run, work: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def pipe() -> None:
            content = io.BytesIO((work / "rows.jsonl").read_bytes())
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(content))

        pipe()
        assert run("-", "-o", "out", "-m", "./models/xlmr").code == 0
        assert run("rows.jsonl", "-o", "other", "-m", "./models/xlmr").code == 0
        name = "models--xlmr.jsonl"
        assert (work / "out" / name).read_bytes() == (work / "other" / name).read_bytes()
        pipe()
        ended = run("-", "-o", "two", "--models", "./models/xlmr", "./models/mpnet.toml")
        assert ended.code == 1
        assert "can be read once" in ended.err
        assert not (work / "two").exists()


class TestInstalledCommand:
    @pytest.mark.skipif(os.name != "posix", reason="sends SIGINT as a terminal does")
    def test_control_c_ends_with_130_and_the_same_command_resumes(self, work: Path) -> None:
        write_lines(work / "many.jsonl", [{"text": f"row {n} " * 30} for n in range(20_000)])
        arguments = ("embed", "many.jsonl", "-o", "out", "-m", "./models/xlmr", "--format", "npy")
        process = start(*arguments, cwd=work)
        manifest = work / "out" / "parts" / "models--xlmr" / "manifest.jsonl"
        while not manifest.exists() or manifest.read_text().count("\n") < 2:
            assert process.poll() is None
            time.sleep(0.05)
        other = finish(start(*arguments, cwd=work))
        assert other.code == 1
        assert "another run is working in out" in other.err
        process.send_signal(signal.SIGINT)
        ended = finish(process)
        assert ended.code == 130
        assert "run the same command again" in ended.err
        lines = read_lines(manifest)
        write_lines(work / "many.jsonl", [{"text": f"row {n} " * 30} for n in range(2_000)])
        # The input must be the same; fewer rows are another one.
        shorter = finish(start(*arguments, cwd=work))
        if len(lines) * 256 > 2_000:
            assert shorter.code == 1
            assert "the input has changed" in shorter.err

    def test_a_closed_pipe_is_not_an_error(self, work: Path) -> None:
        process = start(
            "embed", "rows.jsonl", "-o", "out", "-m", "./models/xlmr", "--json", cwd=work
        )
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        err = process.stderr.read()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=120)
        assert "Traceback" not in err
        assert "Broken pipe" not in err

    def test_help_names_every_spelling(self, work: Path) -> None:
        ended = finish(start("embed", "--help", cwd=work))
        assert ended.code == 0
        assert environment()["HF_HUB_OFFLINE"] == "1"
        for flag in ("--input_file", "--output_dir", "--models", "--max_workers", "--dry-run"):
            assert flag in ended.out
