"""What is put together from parts, against plain NumPy."""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unified_embeddings.bulk.array_files import ArrayFile
from unified_embeddings.bulk.file_names import require_different_names, safe_file_name
from unified_embeddings.bulk.output import (
    OutputPlan,
    write_failures,
    write_metadata,
    write_outputs,
)
from unified_embeddings.bulk.parts import (
    FAILED,
    PartFileError,
    Record,
    build_part,
    part_to_bytes,
)
from unified_embeddings.errors import InputError
from unified_embeddings.types import Embeddings, SparseVector

VOCABULARY = 50
HEADS = ("dense", "sparse", "colbert")


@dataclass
class Job:
    """Rows with all their vectors, and the same cut into parts."""

    sources: list[int]
    records: list[Record]
    embeddings: Embeddings
    own_rows: list[int]
    cuts: list[int]
    dtype: str = "float32"

    def write_parts(self, folder: Path) -> list[Path]:
        paths = []
        for start, stop in zip([0, *self.cuts], [*self.cuts, len(self.sources)], strict=True):
            mine = [i for i, row in enumerate(self.own_rows) if start <= row < stop]
            vectors = None
            if mine:
                vectors = self.embeddings[mine[0] : mine[-1] + 1]
            part = build_part(
                start,
                self.records[start:stop],
                np.array(self.sources[start:stop], dtype=np.int64),
                vectors,
                self.dtype,
            )
            path = folder / f"part-{start:05}.npz"
            path.write_bytes(part_to_bytes(part))
            paths.append(path)
        return paths

    def expected(self, row: int) -> tuple[Any, Any, Any] | None:
        """The dense, sparse and ColBERT vectors of a row, None if it failed."""
        source = self.sources[row]
        if source == FAILED:
            return None
        place = self.own_rows.index(source)
        emb = self.embeddings
        assert emb.dense is not None
        assert emb.sparse is not None
        assert emb.colbert is not None
        dtype = np.dtype(self.dtype)
        return emb.dense[place].astype(dtype), emb.sparse[place], emb.colbert[place].astype(dtype)


def make_job(
    kinds: list[int], cuts: list[int], dtype: str = "float32", width: int = 6, seed: int = 0
) -> Job:
    """Rows from kinds: -1 failed, 0 own, k > 0 a copy of the k-th own row before (if any)."""
    rng = np.random.default_rng(seed)
    sources: list[int] = []
    own: list[int] = []
    for row, kind in enumerate(kinds):
        if kind == -1:
            sources.append(FAILED)
        elif kind > 0 and own:
            sources.append(own[(kind - 1) % len(own)])
        else:
            sources.append(row)
            own.append(row)
    sparse = []
    colbert = []
    for _ in own:
        ids = rng.choice(VOCABULARY, rng.integers(0, 6), replace=False)
        weights = rng.random(len(ids)).astype(np.float32) + np.float32(0.01)
        sparse.append(SparseVector.from_dict(dict(zip(ids.tolist(), weights, strict=True))))
        colbert.append(rng.standard_normal((rng.integers(0, 4), width)).astype(np.float32))
    embeddings = Embeddings(
        dense=rng.standard_normal((len(own), width)).astype(np.float32),
        sparse=sparse,
        colbert=colbert,
    )
    records = [
        Record({"paper_id": f"p{row}", "paragraph_index": row}, None if s != FAILED else "broken")
        for row, s in enumerate(sources)
    ]
    return Job(sources, records, embeddings, own, sorted(cuts), dtype)


def make_plan(job: Job, **changes: Any) -> OutputPlan:
    plan = OutputPlan(
        model="BAAI/bge-m3",
        heads=HEADS,
        dimension=6,
        vocabulary_size=VOCABULARY,
        dtype=job.dtype,
        formats=("npy", "jsonl"),
        colbert_in_rows=True,
    )
    return replace(plan, **changes)


@st.composite
def jobs(draw: st.DrawFn) -> Job:
    kinds = draw(st.lists(st.integers(-1, 5), min_size=1, max_size=25))
    cuts = draw(st.sets(st.integers(1, max(len(kinds) - 1, 1)), max_size=4))
    cuts = {cut for cut in cuts if cut < len(kinds)}
    dtype = draw(st.sampled_from(["float32", "float16"]))
    return make_job(kinds, list(cuts), dtype, seed=draw(st.integers(0, 99)))


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@settings(max_examples=60)
@given(job=jobs())
def test_all_files_hold_what_the_rows_have(
    job: Job, tmp_path_factory: pytest.TempPathFactory
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    sparse_module = pytest.importorskip("scipy.sparse")
    folder = tmp_path_factory.mktemp("job")
    paths = job.write_parts(folder)
    plan = make_plan(job, formats=("npy", "jsonl", "parquet"))
    write_outputs(paths, folder / "out", plan)
    stem = folder / "out" / "BAAI--bge-m3"
    dense = np.load(f"{stem}.npy", mmap_mode="r")
    matrix = sparse_module.load_npz(f"{stem}.sparse.npz")
    colbert = np.load(f"{stem}.colbert.npy", mmap_mode="r")
    offsets = np.load(f"{stem}.colbert.offsets.npy")
    lines = read_lines(Path(f"{stem}.jsonl"))
    rows = parquet.read_table(f"{stem}.parquet").to_pylist()
    count = len(job.sources)
    assert dense.shape == (count, 6)
    assert dense.dtype == job.dtype == colbert.dtype
    assert matrix.shape == (count, VOCABULARY)
    assert matrix.format == "csr"
    assert len(offsets) == count + 1
    assert offsets[0] == 0
    assert offsets[-1] == len(colbert)
    assert len(lines) == len(rows) == count
    for row in range(count):
        expected = job.expected(row)
        tokens = colbert[offsets[row] : offsets[row + 1]]
        known = {"paper_id": f"p{row}", "paragraph_index": row, "model": "BAAI/bge-m3"}
        for record in (lines[row], rows[row]):
            assert {name: record[name] for name in known} == known
        if expected is None:
            assert np.isnan(dense[row]).all()
            assert matrix[row].nnz == 0
            assert len(tokens) == 0
            for record in (lines[row], rows[row]):
                assert record["embedding"] is record["sparse"] is record["colbert"] is None
                assert record["error"] == "broken"
            continue
        assert "error" not in lines[row]
        assert rows[row]["error"] is None
        np.testing.assert_array_equal(dense[row], expected[0])
        stored = matrix[row].tocoo()
        assert dict(zip(stored.col.tolist(), stored.data, strict=True)) == dict(expected[1])
        np.testing.assert_array_equal(tokens, expected[2])
        for record in (lines[row], rows[row]):
            # The text of a number is enough to bring back the number.
            embedding = np.array(record["embedding"], dtype=job.dtype)
            np.testing.assert_array_equal(embedding, expected[0])
            assert record["sparse"]["indices"] == list(expected[1])
            values = np.array(record["sparse"]["values"], np.float32)
            np.testing.assert_array_equal(values, expected[1].values)
            vectors = np.array(record["colbert"], dtype=job.dtype).reshape(-1, 6)
            np.testing.assert_array_equal(vectors, expected[2])


@settings(max_examples=20)
@given(job=jobs())
def test_how_the_rows_are_cut_into_parts_leaves_no_trace(
    job: Job, tmp_path_factory: pytest.TempPathFactory
) -> None:
    pytest.importorskip("pyarrow")
    folder = tmp_path_factory.mktemp("job")
    (folder / "other").mkdir()
    plan = make_plan(job, formats=("npy", "jsonl", "parquet"))
    first = write_outputs(job.write_parts(folder), folder / "out", plan)
    again = write_outputs(job.write_parts(folder), folder / "again", plan)
    job.cuts = []
    whole = write_outputs(job.write_parts(folder / "other"), folder / "whole", plan)
    assert [path.name for path in first] == [path.name for path in whole]
    for one, two, three in zip(first, again, whole, strict=True):
        assert one.read_bytes() == two.read_bytes()
        assert one.read_bytes() == three.read_bytes()


def test_a_line_reads_as_document_004_writes_it(tmp_path: Path) -> None:
    part = build_part(
        0,
        [
            Record({"paper_id": "astro-ph/1234567", "paragraph_index": 5}),
            Record({}, "papers.jsonl, line 2: is not JSON"),
        ],
        np.array([0, FAILED]),
        Embeddings(dense=np.array([[0.5, -0.25]], np.float32)),
        "float32",
    )
    path = tmp_path / "part.npz"
    path.write_bytes(part_to_bytes(part))
    plan = OutputPlan(model="bge-large-en-v1.5", heads=("dense",), dimension=2, formats=("jsonl",))
    (file,) = write_outputs([path], tmp_path / "out", plan)
    assert file.name == "bge-large-en-v1.5.jsonl"
    assert file.read_text("utf-8").splitlines() == [
        '{"paper_id": "astro-ph/1234567", "paragraph_index": 5, "embedding": [0.5, -0.25], '
        '"model": "bge-large-en-v1.5"}',
        '{"embedding": null, "model": "bge-large-en-v1.5", '
        '"error": "papers.jsonl, line 2: is not JSON"}',
    ]
    assert [path.name for path in (tmp_path / "out").iterdir()] == [file.name]


def test_fields_of_the_inputs_own_are_not_lost(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    fields: list[dict[str, object]] = [
        {"model": "old", "input_model": 1, "half": "a\ud800", "n": 1, "mixed": 1, "big": 2**70},
        {"embedding": [1], "half": "ü", "n": 1.5, "mixed": "a", "flag": True, "none": None},
    ]
    part = build_part(
        0,
        [Record(record) for record in fields],
        np.array([0, 0]),
        Embeddings(dense=np.ones((1, 2), np.float32)),
        "float32",
    )
    path = tmp_path / "part.npz"
    path.write_bytes(part_to_bytes(part))
    plan = OutputPlan(model="m", heads=("dense",), dimension=2, formats=("jsonl", "parquet"))
    lines_file, table_file = write_outputs([path], tmp_path / "out", plan)
    lines = read_lines(lines_file)
    assert lines[0] == {
        "input_input_model": "old", "input_model": 1, "half": "a\ud800", "n": 1, "mixed": 1,
        "big": 2**70, "embedding": [1.0, 1.0], "model": "m",
    }  # fmt: skip
    assert lines[1]["input_embedding"] == [1]
    rows = parquet.read_table(table_file).to_pylist()
    assert rows[0] == {
        "input_input_model": "old", "input_model": 1, "half": "a\ufffd", "n": 1.0, "mixed": "1",
        "big": str(2**70), "input_embedding": None, "flag": None, "none": None,
        "embedding": [1.0, 1.0], "model": "m", "error": None,
    }  # fmt: skip
    assert rows[1]["mixed"] == '"a"'
    assert rows[1]["input_embedding"] == "[1]"


def test_without_a_single_vector_the_files_are_whole(tmp_path: Path) -> None:
    job = make_job([-1, -1, -1], [2])
    files = write_outputs(job.write_parts(tmp_path), tmp_path / "out", make_plan(job))
    arrays = {file.name.removeprefix("BAAI--bge-m3"): file for file in files}
    assert np.isnan(np.load(arrays[".npy"])).all()
    assert np.load(arrays[".colbert.npy"]).shape == (0, 6)
    assert np.load(arrays[".colbert.offsets.npy"]).tolist() == [0, 0, 0, 0]


def test_rows_in_order_are_required(tmp_path: Path) -> None:
    job = make_job([0] * 6, [2, 4])
    first, second, third = job.write_parts(tmp_path)
    out = tmp_path / "out"
    with pytest.raises(PartFileError, match="begins with row 4, but row 2 is next"):
        write_outputs([first, third], out, make_plan(job))
    assert list(out.iterdir()) == []
    second.write_bytes(second.read_bytes()[:-30])
    with pytest.raises(PartFileError, match="cannot be read"):
        write_outputs([first, second, third], out, make_plan(job))
    with pytest.raises(PartFileError, match=r"dense vectors \(2, 6\), expected \(2, 7\)"):
        write_outputs([first], out, make_plan(job, dimension=7, colbert_dimension=6))
    bad = build_part(0, [Record({})], np.array([5]), None, "float32")
    first.write_bytes(part_to_bytes(bad))
    with pytest.raises(PartFileError, match="without vectors"):
        write_outputs([first], out, make_plan(job))


def test_a_head_that_the_parts_lack_is_named(tmp_path: Path) -> None:
    part = build_part(
        0, [Record({})], np.array([0]), Embeddings(dense=np.ones((1, 6), np.float32)), "float32"
    )
    path = tmp_path / "part.npz"
    path.write_bytes(part_to_bytes(part))
    with pytest.raises(PartFileError, match="no sparse vectors"):
        write_outputs([path], tmp_path / "out", make_plan(make_job([0], [])))


def test_a_full_disk_leaves_the_old_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_job([0] * 4, [])
    parts = job.write_parts(tmp_path)
    out = tmp_path / "out"
    files = write_outputs(parts, out, make_plan(job))
    before = [file.read_bytes() for file in files]

    def append(self: ArrayFile, rows: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ArrayFile, "append", append)
    with pytest.raises(OSError, match="No space left"):
        write_outputs(parts, out, make_plan(job))
    assert [file.read_bytes() for file in files] == before
    assert sorted(out.iterdir()) == sorted(files)


def test_failures_are_listed_once_for_all_models(tmp_path: Path) -> None:
    one, two = make_job([0, -1, 0, -1], [2]), make_job([0, -1, -1, 0], [1])
    two.records[2] = Record(two.records[2].fields, "the worker died")
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    parts = {"a": one.write_parts(tmp_path / "a"), "b": two.write_parts(tmp_path / "b")}
    assert write_failures(parts, tmp_path) == 3
    assert read_lines(tmp_path / "failed.jsonl") == [
        {"row": row, "problem": problem, "models": models,
         "fields": {"paper_id": f"p{row}", "paragraph_index": row}}
        for row, problem, models in (
            (1, "broken", ["a", "b"]), (2, "the worker died", ["b"]), (3, "broken", ["a"])
        )
    ]  # fmt: skip
    assert write_failures({"a": []}, tmp_path) == 0
    assert (tmp_path / "failed.jsonl").read_bytes() == b""


def test_the_metadata_are_document_004s(tmp_path: Path) -> None:
    path = write_metadata(
        tmp_path,
        "BAAI/bge-large-en-v1.5",
        embedding_dim=1024,
        num_paragraphs=10000,
        processing_time=120.5,
        batch_size=32,
        more={"fingerprint": "abc"},
    )
    assert path.name == "BAAI--bge-large-en-v1.5.metadata.json"
    assert json.loads(path.read_text("utf-8")) == {
        "model_name": "BAAI/bge-large-en-v1.5",
        "embedding_dim": 1024,
        "num_paragraphs": 10000,
        "processing_time": 120.5,
        "batch_size": 32,
        "fingerprint": "abc",
    }


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("bge-large-en-v1.5", "bge-large-en-v1.5"),
        ("sentence-transformers/all-MiniLM-L6-v2", "sentence-transformers--all-MiniLM-L6-v2"),
        ("/home/me/my model", "home--me--my_model"),
        (r"C:\models\m3", "C_--models--m3"),
        ("../m3", "m3"),
        ("NUL", "_NUL"),
    ],
)
def test_names_are_safe(model: str, name: str) -> None:
    assert safe_file_name(model) == name


def test_long_names_stay_different() -> None:
    names = {safe_file_name(f"{i}/{'x' * 300}") for i in range(3)}
    assert len(names) == 3
    assert all(len(name) <= 120 for name in names)
    with pytest.raises(InputError, match="leaves nothing"):
        safe_file_name("..")
    with pytest.raises(InputError, match="would write the same files"):
        require_different_names(["BAAI/bge-m3", "baai--BGE-m3"])


def test_an_unknown_format_is_named() -> None:
    with pytest.raises(InputError, match=r"npy, jsonl, parquet, .*got pickle"):
        OutputPlan(model="m", heads=("dense",), dimension=2, formats=("pickle",))  # type: ignore[arg-type]


@pytest.mark.parametrize("formats", [("npy",), ("jsonl",), ("npy", "jsonl", "parquet")])
def test_memory_does_not_grow_with_the_parts(formats: Any, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    peaks = []
    for count in (4, 4, 24):  # the first one imports and compiles
        folder = tmp_path / f"{count}"
        folder.mkdir(exist_ok=True)
        rows = 100
        kinds = ([0] * 9 + [1]) * (rows * count // 10)
        cuts = list(range(rows, rows * count, rows))
        job = make_job(kinds, cuts, width=64)
        parts = job.write_parts(folder)
        plan = make_plan(job, formats=formats, dimension=64)
        del job
        tracemalloc.start()
        write_outputs(parts, folder / "out", plan)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] < 1.3 * peaks[1] + 2**18
