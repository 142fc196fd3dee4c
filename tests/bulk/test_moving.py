"""Texts moved to a new model's vectors: one file, never mixed with old ones, whatever is killed."""

from __future__ import annotations

import gzip
import hashlib
import json
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import poisoned
import pytest
from moving_texts import (
    DIMENSION,
    make_fake,
    move,
    names_in,
    read_batches,
    rows_of,
    vectors_of,
    write_json,
)

from unified_embeddings.bulk import moving
from unified_embeddings.bulk.job import OtherJobError
from unified_embeddings.bulk.old_vectors import OldVectors, compare_vectors, read_old_vectors
from unified_embeddings.bulk.options import BulkOptions
from unified_embeddings.bulk.rows import InputOptions
from unified_embeddings.errors import InputError, UnifiedEmbeddingsError

CHILD = Path(__file__).with_name("moving_child.py")


class TestOutputs:
    def test_an_array_has_its_rows_and_its_model_beside_it(self, tmp_path: Path) -> None:
        rows = rows_of(45)
        moved = move(write_json(tmp_path / "texts.json", rows), tmp_path / "new.npy", "npy")
        np.testing.assert_array_equal(np.load(tmp_path / "new.npy"), vectors_of(rows))
        lines = read_batches(tmp_path / "new.npy.rows.jsonl")
        assert [line["row"] for line in lines] == list(range(45))
        assert [line["fields"]["id"] for line in lines] == [row["id"] for row in rows]
        assert lines[3]["fields"] == {key: rows[3][key] for key in rows[3] if key != "text"}
        metadata = json.loads((tmp_path / "new.npy.metadata.json").read_text())
        assert metadata["model_name"] == "fake"
        assert metadata["embedding_dim"] == DIMENSION == moved.dimension
        assert metadata["fingerprint"] == make_fake(model="fake").fingerprint
        assert (metadata["format"], metadata["id_field"]) == ("npy", "id")
        assert metadata["files"] == {
            name: (tmp_path / name).stat().st_size for name in ("new.npy", "new.npy.rows.jsonl")
        }
        assert names_in(tmp_path) == {
            "texts.json",
            "new.npy",
            "new.npy.rows.jsonl",
            "new.npy.metadata.json",
        }
        assert [Path(file).name for file in moved.report.files] == [
            "new.npy",
            "new.npy.rows.jsonl",
            "new.npy.metadata.json",
        ]

    def test_json_lines_and_parquet_are_those_of_bulk(self, tmp_path: Path) -> None:
        pyarrow_parquet = pytest.importorskip("pyarrow.parquet")
        rows = rows_of(30)
        move(rows, tmp_path / "new.jsonl", "jsonl")
        move(rows, tmp_path / "new.parquet", "parquet")
        lines = read_batches(tmp_path / "new.jsonl")
        table = pyarrow_parquet.read_table(tmp_path / "new.parquet").to_pylist()
        for line, record, row, vector in zip(lines, table, rows, vectors_of(rows), strict=True):
            assert line["id"] == record["id"] == row["id"]
            np.testing.assert_array_equal(np.float32(line["embedding"]), vector)
            np.testing.assert_array_equal(np.float32(record["embedding"]), vector)

    @pytest.mark.parametrize("shape", ["list", "texts", "map", "one line", "fields", "gz", "csv"])
    def test_shapes_that_people_have(self, tmp_path: Path, shape: str) -> None:
        rows = rows_of(30)
        file = tmp_path / "texts.json"
        texts_by_id = {row["id"]: row["text"] for row in rows}
        if shape == "list":
            write_json(file, rows)
        elif shape == "texts":
            write_json(file, [row["text"] for row in rows])
        elif shape == "map":
            file.write_text(json.dumps(texts_by_id, indent=2))
        elif shape == "one line":
            write_json(file, texts_by_id)
        elif shape == "fields":
            write_json(file, {row["id"]: {"text": row["text"], "year": 1} for row in rows})
        elif shape == "gz":
            file = tmp_path / "texts.json.gz"
            file.write_bytes(gzip.compress(json.dumps(texts_by_id).encode()))
        else:
            file = tmp_path / "texts.csv"
            lines = [f"{row['id']},{row['text']}" for row in rows]
            file.write_text("\n".join(["id,text", *lines]))
        moved = move(file, tmp_path / "new.chroma.jsonl", "chroma")
        (batch,) = read_batches(tmp_path / "new.chroma.jsonl")
        assert batch["documents"] == [row["text"] for row in rows]
        expected = [row["id"] for row in rows]
        if shape == "texts":
            expected = [str(number) for number in range(30)]
        assert batch["ids"] == expected
        assert moved.id_field == (None if shape == "texts" else "id")

    def test_rows_that_fail_are_named_and_left_out(self, tmp_path: Path) -> None:
        rows = rows_of(10)
        rows[4]["text"] = "FAIL"
        rows[7]["text"] = None
        options = BulkOptions(models=["fake"], input=InputOptions(id_field="id"))
        moved = moving.move_vectors(
            rows, tmp_path / "a.jsonl", "chroma", options, make=poisoned.make_poisoned
        )
        assert moved.report.failed == 2
        (batch,) = read_batches(tmp_path / "a.jsonl")
        assert batch["ids"] == [f"note {number}" for number in (0, 1, 2, 3, 5, 6, 8, 9)]
        failed = read_batches(tmp_path / "a.jsonl.failed.jsonl")
        assert [line["row"] for line in failed] == [4, 7]
        assert [line["fields"]["id"] for line in failed] == ["note 4", "note 7"]


class TestNeverMixed:
    def test_an_output_that_is_not_ours_is_left_alone(self, tmp_path: Path) -> None:
        old = tmp_path / "old.npy"
        np.save(old, np.ones((3, 384), np.float32))
        before = old.read_bytes()
        with pytest.raises(InputError, match="exists, and is neither added to nor replaced"):
            move(rows_of(3), old, "npy")
        assert old.read_bytes() == before
        assert names_in(tmp_path) == {"old.npy"}

    def test_another_models_output_is_named(self, tmp_path: Path) -> None:
        move(rows_of(3), tmp_path / "a.npy", "npy", models=["former"])
        with pytest.raises(
            InputError, match=r"3 vectors of former, 16 numbers each, .*model is 'fake', was 'for"
        ):
            move(rows_of(3), tmp_path / "a.npy", "npy")

    def test_the_same_move_again_has_nothing_to_do(self, tmp_path: Path) -> None:
        file = write_json(tmp_path / "texts.json", rows_of(30))
        first = move(file, tmp_path / "a.npy", "npy")
        before = (tmp_path / "a.npy").stat().st_mtime_ns
        again = move(file, tmp_path / "a.npy", "npy")
        assert again.report.was_finished
        assert again.report.rows == 30
        assert again.report.files == first.report.files
        assert (tmp_path / "a.npy").stat().st_mtime_ns == before
        write_json(file, rows_of(31))
        with pytest.raises(InputError, match="its input was another, or has changed"):
            move(file, tmp_path / "a.npy", "npy")
        with pytest.raises(InputError, match="format is 'jsonl', was 'npy'"):
            move(file, tmp_path / "a.npy", "jsonl")

    def test_old_vectors_are_told_apart_in_words(self, tmp_path: Path) -> None:
        np.save(tmp_path / "old.npy", np.zeros((12, 384)))
        old = read_old_vectors(tmp_path / "old.npy", tmp_path / "new.npy")
        assert old == OldVectors(rows=12, dimension=384)
        words = compare_vectors(tmp_path / "old.npy", old, rows=11, dimension=1024, fingerprint="f")
        assert "12 vectors with 384 numbers; now 11 with 1,024" in words
        assert "replace all the old ones" in words
        assert "not of exactly this input" in words
        same = compare_vectors(Path("old.npy"), old, rows=12, dimension=384, fingerprint="f")
        assert "the models are not known to be: never mix them" in same
        move(rows_of(3), tmp_path / "former.npy", "npy", models=["former"])
        former = read_old_vectors(tmp_path / "former.npy", tmp_path / "new.npy")
        assert (former.rows, former.dimension, former.model) == (3, DIMENSION, "former")

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (None, "there is no file"),
            (b"nothing", "is not a NumPy array that can be read"),
            (np.zeros(4), r"expected an array \(rows, dimension\) in .* got \(4,\)"),
        ],
    )
    def test_what_is_no_array_is_refused(self, tmp_path: Path, content: Any, message: str) -> None:
        file = tmp_path / "old.npy"
        if isinstance(content, bytes):
            file.write_bytes(content)
        elif content is not None:
            np.save(file, content)
        with pytest.raises(InputError, match=message):
            read_old_vectors(file, tmp_path / "new.npy")
        with pytest.raises(InputError, match="cannot go into it"):
            read_old_vectors(file, file)

    def test_outputs_that_would_be_read_as_input(self, tmp_path: Path) -> None:
        folder = tmp_path / "texts"
        folder.mkdir()
        file = write_json(folder / "a.json", rows_of(3))
        with pytest.raises(InputError, match="is in the folder of the input"):
            move(folder, folder / "new.jsonl", "jsonl")
        with pytest.raises(InputError, match="is the input"):
            move(file, file, "jsonl")
        with pytest.raises(InputError, match="is a folder"):
            move(file, tmp_path, "jsonl")


class TestIds:
    def test_two_rows_with_one_id_are_refused_with_both_places(self, tmp_path: Path) -> None:
        rows = rows_of(50)
        rows[41]["id"] = "note 3"
        file = write_json(tmp_path / "texts.json", rows)
        for output_format in ("npy", "chroma"):
            with pytest.raises(
                InputError,
                match=r"rows 3 and 41 have the same id, 'note 3' \(texts.json, element 4; "
                r"texts.json, element 42\)",
            ):
                move(file, tmp_path / "a.out", output_format)  # type: ignore[arg-type]
        assert names_in(tmp_path) == {"texts.json"}

    def test_a_number_and_its_digits_are_one_id_where_ids_are_texts(self, tmp_path: Path) -> None:
        rows = [{"id": 1, "text": "one"}, {"id": "1", "text": "other"}]
        move(rows, tmp_path / "a.npy", "npy")
        move(rows, tmp_path / "a.qdrant", "qdrant")
        for output_format in ("chroma", "pinecone"):
            with pytest.raises(InputError, match=r"rows 0 and 1 have the same id, '1' \(item 0"):
                move(rows, tmp_path / "b", output_format)  # type: ignore[arg-type]

    def test_a_row_that_a_store_cannot_hold_is_refused_before_anything_is_computed(
        self, tmp_path: Path
    ) -> None:
        rows = rows_of(500)
        rows[499]["text"] = "long " * 9000
        file = write_json(tmp_path / "texts.json", rows)
        with pytest.raises(
            InputError,
            match=r"texts.json, element 500: the metadata are 45,0\d\d bytes .*--no-text",
        ):
            move(file, tmp_path / "a.jsonl", "pinecone")
        assert names_in(tmp_path) == {"texts.json"}
        move(file, tmp_path / "b.jsonl", "pinecone", with_texts=False)

    def test_a_field_named_id_is_the_id_only_if_all_rows_have_it(self, tmp_path: Path) -> None:
        rows = rows_of(5)
        del rows[2]["id"]
        assert move(rows, tmp_path / "a.npy", "npy").id_field is None
        for row in rows:
            row["_id"] = row["text"]
        assert move(rows, tmp_path / "c.npy", "npy").id_field == "_id"
        moved = move(rows_of(5), tmp_path / "b.npy", "npy", input=InputOptions(id_field="year"))
        assert moved.id_field == "year"

    def test_heads_that_a_layout_cannot_hold(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="chroma holds no sparse vectors here"):
            move(rows_of(3), tmp_path / "a", "chroma", heads=("dense", "sparse"))


class TestCrashes:
    @pytest.mark.parametrize("output_format", ["npy", "pinecone"])
    def test_a_move_that_is_killed_again_and_again_gives_the_same_bytes(
        self, tmp_path: Path, output_format: str
    ) -> None:
        source = write_json(tmp_path / "texts.json", rows_of(1500))
        command = [sys.executable, str(CHILD), str(source)]
        whole = tmp_path / "whole" / "new"
        subprocess.run([*command, whole, output_format], check=True, capture_output=True)
        killed = tmp_path / "killed" / "new"
        rng = random.Random(5)
        for _ in range(4):
            process = subprocess.Popen([*command, killed, output_format])
            time.sleep(rng.uniform(1.0, 2.5))
            process.kill()
            process.wait()
        subprocess.run([*command, killed, output_format], check=True, capture_output=True)
        assert names_in(killed.parent) == names_in(whole.parent)
        for file in whole.parent.iterdir():
            if not file.name.endswith("metadata.json"):
                other = (killed.parent / file.name).read_bytes()
                assert hashlib.sha256(other).digest() == hashlib.sha256(file.read_bytes()).digest()

    @pytest.mark.parametrize("step", range(4))
    def test_a_crash_while_the_outputs_are_published(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
    ) -> None:
        file = write_json(tmp_path / "texts.json", rows_of(45))
        calls = 0

        def count(name: str, real: Any) -> Any:
            def call(*arguments: Any) -> Any:
                nonlocal calls
                calls += 1
                if calls == step + 1:
                    raise KeyError(f"crash before {name}")
                return real(*arguments)

            return call

        with monkeypatch.context() as patch:
            for name in ("publish_file", "replace_file"):
                patch.setattr(moving, name, count(name, getattr(moving, name)))
            patch.setattr(
                moving._Move,
                "_remove_work_folder",
                count("removing", moving._Move._remove_work_folder),
            )
            with pytest.raises(KeyError, match="crash"):
                move(file, tmp_path / "a.npy", "npy")
        move(file, tmp_path / "a.npy", "npy")
        np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), vectors_of(rows_of(45)))
        assert names_in(tmp_path) == {
            "texts.json",
            "a.npy",
            "a.npy.rows.jsonl",
            "a.npy.metadata.json",
        }

    def test_a_full_disk_is_told_and_resumed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        file = write_json(tmp_path / "texts.json", rows_of(45))

        def fail(*_: Any) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(moving, "publish_file", fail)
            with pytest.raises(UnifiedEmbeddingsError, match=r"a\.npy\.work is full; .*resume"):
                move(file, tmp_path / "a.npy", "npy")
        assert not (tmp_path / "a.npy").exists()
        assert move(file, tmp_path / "a.npy", "npy").report.resumed == 45

    def test_parts_of_another_model_are_not_resumed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        file = write_json(tmp_path / "texts.json", rows_of(45))
        with monkeypatch.context() as patch:
            patch.setattr(moving._Move, "publish", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                move(file, tmp_path / "a.npy", "npy", model_options={"precision": "fp32"})
        with pytest.raises(OtherJobError, match=r"holds parts of another job: model_options"):
            move(file, tmp_path / "a.npy", "npy")
