"""Odd inputs and hard luck: what a job makes of them, and what it says."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sqlite3
import time
from pathlib import Path
from typing import Any

import numpy as np
import poisoned
import psutil
import pytest

from unified_embeddings.bulk import output, planning
from unified_embeddings.bulk.job import OtherJobError
from unified_embeddings.bulk.options import BulkOptions, Progress
from unified_embeddings.bulk.rows import InputOptions
from unified_embeddings.bulk.run import embed_rows
from unified_embeddings.embedders.fake import FakeEmbedder
from unified_embeddings.errors import InputError, UnifiedEmbeddingsError


def rows_of(count: int) -> list[dict[str, Any]]:
    return [{"id": number, "text": f"row {number} of words"} for number in range(count)]


def run(rows: Any, folder: Path, make: Any = poisoned.make_poisoned, **changes: Any) -> Any:
    values: dict[str, Any] = {"models": ["fake"], "checkpoint_interval": 10, **changes}
    on_progress = values.pop("on_progress", None)
    reports = embed_rows(rows, folder, BulkOptions(**values), make=make, on_progress=on_progress)
    return reports[0] if len(reports) == 1 else reports


def digests(folder: Path) -> dict[str, str]:
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in folder.iterdir()
        if file.suffix in (".npy", ".jsonl", ".npz")
    }


class TestOddRows:
    def test_none(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="holds no rows"):
            run([], tmp_path / "out")
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("interval", [1, 10_000])
    def test_parts_of_one_row_and_of_more_than_there_are(
        self, tmp_path: Path, interval: int
    ) -> None:
        for count in (1, 7):
            folder = tmp_path / str(count)
            assert run(rows_of(count), folder, checkpoint_interval=interval).rows == count
            run(rows_of(count), tmp_path / f"usual {count}")
            assert digests(folder) == digests(tmp_path / f"usual {count}")

    def test_all_fail_in_the_model(self, tmp_path: Path) -> None:
        rows = [{"text": f"FAIL {number}"} for number in range(12)]
        report = run(rows, tmp_path, heads=("dense", "sparse", "colbert"))
        assert (report.rows, report.failed, report.computed) == (12, 12, 0)
        assert np.isnan(np.load(tmp_path / "fake.npy")).all()
        assert len((tmp_path / "failed.jsonl").read_text().splitlines()) == 12

    def test_all_are_equal(self, tmp_path: Path) -> None:
        report = run([{"text": "the same"}] * 100, tmp_path)
        assert (report.computed, report.repeated) == (1, 99)
        dense = np.load(tmp_path / "fake.npy")
        assert (dense == dense[0]).all()

    def test_a_million_characters_ten_thousand_fields_and_odd_names(self, tmp_path: Path) -> None:
        odd = ["", "\x00", "\u202e", "e\u0301", "\U0001f98a", "a\nb", "\ufeff", '"\\']
        rows: list[dict[str, Any]] = [{"id": name, "text": f"row {name}"} for name in odd]
        rows.append({"id": "long", "text": "fox " * 250_000})
        rows.append({"id": "wide", "text": "wide"} | {f"f{n}": n for n in range(10_000)})
        name = "наш/модель 🦊 [/b]"
        report = run(rows, tmp_path, models=[name])
        assert report.failed == 0
        (file,) = tmp_path.glob("*.jsonl".replace("*", "*модель*"))
        lines = [json.loads(line) for line in file.read_bytes().split(b"\n") if line]
        assert [line["id"] for line in lines] == [*odd, "long", "wide"]
        assert {line["model"] for line in lines} == {name}
        assert lines[-1]["f9999"] == 9999


class TestPlaces:
    def test_outputs_inside_the_input_are_not_input(self, tmp_path: Path) -> None:
        (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row) for row in rows_of(5)))
        for _ in range(2):
            assert run(tmp_path, tmp_path / "out", keep_parts=True).rows == 5

    def test_the_input_folder_is_no_output_folder(self, tmp_path: Path) -> None:
        (tmp_path / "a.jsonl").write_text('{"text": "a"}')
        with pytest.raises(InputError, match="folder of the input"):
            run(tmp_path, tmp_path)

    def test_an_iterator_is_not_read_for_two_models(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="can be read once"):
            run(iter(rows_of(3)), tmp_path / "out", models=["a", "b"])

    @pytest.mark.parametrize(
        "wrong",
        [{"models": "fake"}, {"formats": ("csv",)}, {"heads": ("dance",)}, {"formats": ()}],
    )
    def test_wrong_options(self, tmp_path: Path, wrong: dict[str, Any]) -> None:
        with pytest.raises(InputError):
            run(rows_of(3), tmp_path / "out", **wrong)


class TestFinishedJobs:
    def test_there_is_nothing_to_do(self, tmp_path: Path) -> None:
        first = run(rows_of(25), tmp_path)
        before = {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
        again = run(rows_of(25), tmp_path, make=poisoned.make_poisoned)
        assert again.was_finished
        assert (again.rows, again.resumed, again.computed) == (25, 25, 25)
        assert again.files == first.files
        for file in first.files:
            assert file.stat().st_mtime_ns == before[file]
        assert not list(tmp_path.glob(".unified-*"))

    def test_other_rows_and_other_options_are_refused(self, tmp_path: Path) -> None:
        run(rows_of(25), tmp_path)
        with pytest.raises(OtherJobError, match="its input was another"):
            run(rows_of(26), tmp_path)
        with pytest.raises(OtherJobError, match="dtype is 'float16'"):
            run(rows_of(25), tmp_path, dtype="float16")

    def test_what_is_missing_is_made(self, tmp_path: Path) -> None:
        run(rows_of(25), tmp_path)
        whole = digests(tmp_path)
        (tmp_path / "fake.npy").unlink()
        assert not run(rows_of(25), tmp_path).was_finished
        assert digests(tmp_path) == whole
        assert not run(rows_of(25), tmp_path, formats=("parquet",)).was_finished
        assert (tmp_path / "fake.parquet").exists()

    def test_a_model_is_added_and_the_other_ones_failures_stay(self, tmp_path: Path) -> None:
        rows = rows_of(25)
        rows[3]["text"] = "FAIL"
        run(rows, tmp_path, models=["a"])
        first = (tmp_path / "a.npy").read_bytes()
        (report, added) = run(rows, tmp_path, models=["a", "b"], make=make_partly_poisoned)
        assert (report.failed, report.resumed, added.failed) == (1, 25, 0)
        run(rows, tmp_path, models=["b"], make=make_partly_poisoned)
        (failed,) = [json.loads(line) for line in (tmp_path / "failed.jsonl").open()]
        assert (failed["row"], failed["models"]) == (3, ["a"])
        assert (tmp_path / "a.npy").read_bytes() == first
        assert (tmp_path / "parts" / "a").is_dir()
        assert not (tmp_path / "parts" / "b").exists()

    def test_fewer_rows_are_another_input(self, tmp_path: Path) -> None:
        run(rows_of(30), tmp_path, keep_parts=True)
        with pytest.raises(OtherJobError, match="at least 30 rows, and has fewer now"):
            run(rows_of(20), tmp_path, keep_parts=True)


def make_partly_poisoned(**options: Any) -> FakeEmbedder:
    """A model that takes every text, unless it is "a"."""
    if options["model"] == "a":
        return poisoned.make_poisoned(**options)
    return poisoned.make_slow(**options)


class TestHardLuck:
    def test_workers_that_are_killed_again_and_again(self, tmp_path: Path) -> None:
        run(rows_of(1000), tmp_path / "whole")
        kills = []
        others = set(psutil.Process().children())  # Of earlier tests: multiprocessing's helpers.

        def kill(progress: Progress) -> None:
            if progress.rows % 200 == 0 and progress.phase == "computing":
                for child in set(psutil.Process().children()) - others:
                    child.send_signal(signal.SIGKILL)
                    kills.append(child.pid)

        report = run(rows_of(1000), tmp_path / "out", on_progress=kill)
        assert len(kills) >= 4
        assert (report.rows, report.failed) == (1000, 0)
        assert digests(tmp_path / "out") == digests(tmp_path / "whole")

    def test_a_worker_that_always_dies_while_it_loads_is_one_clear_error(
        self, tmp_path: Path
    ) -> None:
        with pytest.raises(UnifiedEmbeddingsError, match="3 workers in a row ended"):
            run(rows_of(5), tmp_path, make=make_deadly)

    def test_an_error_that_does_not_pickle_arrives(self, tmp_path: Path) -> None:
        with pytest.raises(UnifiedEmbeddingsError, match="StrangeError: odd weights"):
            run(rows_of(5), tmp_path, make=make_strange)

    def test_the_folder_is_removed_meanwhile(self, tmp_path: Path) -> None:
        folder = tmp_path / "out"

        def remove(progress: Progress) -> None:
            if progress.rows == 20:
                shutil.rmtree(folder)

        with pytest.raises(UnifiedEmbeddingsError, match="was removed while the job ran"):
            run(rows_of(500), folder, on_progress=remove)

    def test_a_disk_that_is_full_for_the_outputs(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(output, "publish_file", full)
        with pytest.raises(UnifiedEmbeddingsError, match="Make room"):
            run(rows_of(25), tmp_path)
        monkeypatch.undo()
        assert not list(tmp_path.glob(".unified-*"))
        assert run(rows_of(25), tmp_path).resumed == 25

    def test_a_disk_that_is_full_for_the_ids_and_texts_seen(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        connect = sqlite3.connect

        def connect_to_a_page(*arguments: Any) -> sqlite3.Connection:
            database = connect(*arguments)
            database.execute("PRAGMA max_page_count = 1")
            return database

        monkeypatch.setattr(sqlite3, "connect", connect_to_a_page)
        with pytest.raises(UnifiedEmbeddingsError, match=r"is full.*Make room"):
            run(rows_of(25), tmp_path)
        monkeypatch.undo()
        assert run(rows_of(25), tmp_path).failed == 0

    def test_what_a_killed_run_has_left_is_removed(self, tmp_path: Path) -> None:
        rows = rows_of(25)
        run(rows, tmp_path, keep_parts=True)
        parts = tmp_path / "parts" / "fake"
        child = os.fork() if hasattr(os, "fork") else None
        if child is None:
            pytest.skip("kills itself by a signal")
        if not child:
            occurrences = planning.FirstOccurrences(parts, str)
            assert occurrences.repeated == 0
            os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(child, 0)
        assert list(parts.glob(".unified-*"))
        run(rows, tmp_path, keep_parts=True)
        assert not list(parts.glob(".unified-*"))

    def test_a_clock_that_jumps(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        jumps = iter(range(10**6))
        monkeypatch.setattr(time, "time", lambda: float((-1) ** next(jumps) * 4e9))
        report = run(rows_of(50), tmp_path)
        assert report.failed == 0
        assert 0 <= report.seconds < 600


class StrangeError(Exception):
    """Takes an argument that its pickled form lacks."""

    def __init__(self, problem: str, *, where: str) -> None:
        super().__init__(f"odd weights: {problem} {where}")


class _FailsInTheChild(FakeEmbedder):
    """Is made everywhere and runs nowhere."""

    def encode(self, *_: Any, **__: Any) -> Any:
        if self.model_name == "deadly":
            os.kill(os.getpid(), 9)
        raise StrangeError("a", where="b")


def make_deadly(**_: Any) -> FakeEmbedder:
    return _FailsInTheChild(8, model_name="deadly")


def make_strange(**_: Any) -> FakeEmbedder:
    return _FailsInTheChild(8, model_name="strange")


def test_rows_may_come_from_one_file_by_any_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows_of(5)))
    run(tmp_path / "rows.jsonl", tmp_path / "out", input=InputOptions(id_field="id"))
    monkeypatch.chdir(tmp_path)
    assert run("rows.jsonl", Path("out"), input=InputOptions(id_field="id")).was_finished


def test_ten_bad_rows_of_ten_kinds_among_ten_thousand_fail_alone(tmp_path: Path) -> None:
    lines = [json.dumps(row) for row in rows_of(10_000)]
    bad = {
        17: '{"id": 17, "text": 5}',
        1_000: '{"id": 1000, "text": null}',
        1_001: '{"id": 1001, "text": "half \\ud800 a character"}',
        2_500: '{"id": 2500, "words": "no text"}',
        3_333: '{"id": 3333, "text": "cut off',
        4_096: "[1, 2]",
        5_000: json.dumps({"id": 5000, "text": "long " * 400_000}),
        6_400: '{"id": 6400, "text": "this one will FAIL"}',
        7_777: '{"id": 7777, "text": "KILL the worker"}',
        9_999: '{"id": 9999, "text": "HANG for an hour"}',
    }
    for number, line in bad.items():
        lines[number] = line
    source = tmp_path / "rows.jsonl"
    source.write_text("\n".join(lines), "utf-8")
    report = run(
        source,
        tmp_path / "out",
        checkpoint_interval=500,
        hang_seconds=2.0,
        input=InputOptions(text_field="text", max_row_bytes=2**20),
    )
    listed = (tmp_path / "out" / "failed.jsonl").read_text("utf-8").splitlines()
    failures = [json.loads(line) for line in listed]
    assert [failure["row"] for failure in failures] == sorted(bad)
    assert (report.rows, report.failed) == (10_000, 10)
    has_vector = np.isfinite(np.load(tmp_path / "out" / "fake.npy")).all(axis=1)
    assert np.flatnonzero(~has_vector).tolist() == sorted(bad)
