"""Rows from an object store, and outputs to one: the bytes of a local run, uploaded once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import poisoned
import pytest

from unified_embeddings.bulk import object_store
from unified_embeddings.bulk.job import OtherJobError
from unified_embeddings.bulk.object_store import UploadError
from unified_embeddings.bulk.options import BulkOptions
from unified_embeddings.bulk.rows import InputOptions
from unified_embeddings.bulk.run import embed_rows, estimate
from unified_embeddings.errors import InputError

LINES = "".join(json.dumps({"id": n, "text": f"row {n} of words"}) + "\n" for n in range(40))


@pytest.fixture
def memory() -> Iterator[Any]:
    system = fsspec.filesystem("memory")
    yield system
    for path in system.find("/", withdirs=False):
        system.rm(path)


def run(source: Any, output: Any, **changes: Any) -> Any:
    values: dict[str, Any] = {"models": ["fake"], "checkpoint_interval": 10, **changes}
    make = values.pop("make", poisoned.make_poisoned)
    (report,) = embed_rows(source, output, BulkOptions(**values), make=make)
    return report


@pytest.fixture
def local(tmp_path: Path) -> Path:
    (tmp_path / "rows.jsonl").write_text(LINES)
    run(tmp_path / "rows.jsonl", tmp_path / "local")
    return tmp_path / "local"


def test_a_job_from_one_store_to_another_gives_the_same_bytes(
    memory: Any, local: Path, tmp_path: Path
) -> None:
    memory.pipe("/in/a.jsonl", LINES.encode())
    memory.pipe("/in/.hidden.jsonl", b"no JSON")
    report = run("memory://in", (tmp_path / "far").as_uri(), work_dir=tmp_path / "work")
    far = tmp_path / "far"
    for name in ("fake.npy", "fake.jsonl", "failed.jsonl"):
        assert (far / name).read_bytes() == (local / name).read_bytes()
    assert json.loads((far / "fake.metadata.json").read_text())["num_paragraphs"] == 40
    assert report.files[0] == (tmp_path / "far").as_uri() + "/fake.npy"
    # Nothing large stays on this machine.
    assert [path.name for path in (tmp_path / "work").glob("fake*")] == ["fake.metadata.json"]
    assert not (tmp_path / "work" / "parts").exists()


def test_a_single_file_by_its_url_and_parquet(memory: Any, local: Path, tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [json.loads(line) for line in LINES.splitlines()]
    with memory.open("/rows.parquet", "wb") as file:
        parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    run("memory://rows.parquet", tmp_path / "out")
    assert (tmp_path / "out" / "fake.npy").read_bytes() == (local / "fake.npy").read_bytes()
    run((tmp_path / "rows.jsonl").as_uri(), tmp_path / "again")
    assert (tmp_path / "again" / "fake.jsonl").read_bytes() == (local / "fake.jsonl").read_bytes()


def test_an_upload_that_was_cut_off_goes_on_where_it_was(
    memory: Any, local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_put = type(memory).put_file
    sent: list[str] = []

    def put(self: Any, source: str, target: str, **options: Any) -> None:
        sent.append(target)
        if len(sent) == 2:
            raise ConnectionError("the line is dead")
        real_put(self, source, target, **options)

    monkeypatch.setattr(type(memory), "put_file", put)
    where = {"output": "memory://out", "work_dir": tmp_path / "work"}
    with pytest.raises(UploadError, match=r"the line is dead.*run the same command again"):
        run(tmp_path / "rows.jsonl", **where)
    report = run(tmp_path / "rows.jsonl", **where)
    assert report.resumed == 40
    assert sent == [
        "/out/fake.npy",
        "/out/fake.jsonl",
        "/out/fake.jsonl",
        "/out/fake.metadata.json",
        "/out/failed.jsonl",
    ]
    assert memory.cat("/out/fake.npy") == (local / "fake.npy").read_bytes()


def test_what_arrives_damaged_is_noticed(
    memory: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def put(self: Any, source: str, target: str, **_: Any) -> None:
        self.pipe(target, Path(source).read_bytes()[:-1])

    monkeypatch.setattr(type(memory), "put_file", put)
    with pytest.raises(UploadError, match="bytes on the store"):
        run([{"text": "a"}], "memory://out", work_dir=tmp_path)


@pytest.mark.parametrize("name", ["md5Hash", "content_settings"])
def test_a_checksum_that_the_store_gives_is_compared(
    memory: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    wrong: Any = "1B2M2Y8AsgTpgAmY7PhCfg=="  # Of an empty file.
    told = {name: {"content_md5": wrong} if name == "content_settings" else wrong}
    real_info = type(memory).info
    monkeypatch.setattr(
        type(memory), "info", lambda self, path, **_: {**real_info(self, path), **told}
    )
    with pytest.raises(UploadError, match="damaged"):
        run([{"text": "a"}], "memory://out", work_dir=tmp_path)


def test_the_work_folder_follows_from_the_places(monkeypatch: pytest.MonkeyPatch) -> None:
    first = object_store.default_work_folder("s3://a/rows.jsonl", "s3://a/out")
    assert first == object_store.default_work_folder("s3://a/rows.jsonl", "s3://a/out")
    assert first != object_store.default_work_folder("s3://a/rows.jsonl", "s3://a/out2")
    assert first != object_store.default_work_folder("s3://b/rows.jsonl", "s3://a/out")
    with pytest.raises(InputError, match="--work-dir"):
        object_store.default_work_folder([{"text": "a"}], "s3://a/out")


def test_bad_places_are_refused_before_a_model_is_loaded(memory: Any, tmp_path: Path) -> None:
    def never(**_: Any) -> Any:
        raise AssertionError

    rows = [{"text": "a"}]
    with pytest.raises(InputError, match="Protocol not known"):
        run(rows, "nowhere://out", work_dir=tmp_path, make=never)
    with pytest.raises(InputError, match="no file or folder"):
        run("memory://missing.jsonl", tmp_path / "out", make=never)
    with pytest.raises(InputError, match="leave it out"):
        run(rows, tmp_path / "out", work_dir=tmp_path, make=never)
    memory.pipe("/in/a.jsonl", b"")
    with pytest.raises(InputError, match="no rows"):
        run("memory://in", tmp_path / "out", make=never)


def test_outputs_within_the_input_are_not_read(memory: Any, tmp_path: Path) -> None:
    memory.pipe("/in/a.jsonl", b'{"text": "a"}\n')
    memory.pipe("/in/old/fake.jsonl", b'{"text": "b"}\n')
    memory.pipe("/in/out/fake.jsonl", b'{"text": "c"}\n')
    given = InputOptions(leave_out=("memory://in/old",))
    report = run("memory://in", "memory://in/out", work_dir=tmp_path, input=given)
    assert report.rows == 1
    with pytest.raises(InputError, match="is the folder of the input"):
        run("memory://in", "memory://in/", work_dir=tmp_path)


def test_a_finished_job_is_recognised_by_what_is_on_the_store(
    memory: Any, local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = {"output": "memory://out", "work_dir": tmp_path / "work"}
    first = run(tmp_path / "rows.jsonl", **where)
    sent: list[str] = []
    real_put = type(memory).put_file

    def put(self: Any, source: str, target: str, **options: Any) -> None:
        sent.append(target)
        real_put(self, source, target, **options)

    monkeypatch.setattr(type(memory), "put_file", put)
    again = run(tmp_path / "rows.jsonl", **where)
    assert (again.was_finished, again.files, sent) == (True, first.files, [])
    memory.rm("/out/fake.npy")
    mended = run(tmp_path / "rows.jsonl", **where)
    assert not mended.was_finished
    assert memory.cat("/out/fake.npy") == (local / "fake.npy").read_bytes()
    (tmp_path / "rows.jsonl").write_text(LINES.replace("row 3 ", "row three "))
    with pytest.raises(OtherJobError, match="its input was another, or has changed"):
        run(tmp_path / "rows.jsonl", **where)


def test_a_dry_run_writes_nothing_on_the_store(memory: Any, tmp_path: Path) -> None:
    memory.pipe("/in/a.jsonl", LINES.encode())
    given = BulkOptions(models=["fake"], work_dir=tmp_path / "work")
    (estimated,) = estimate("memory://in", "memory://far", given, make=poisoned.make_poisoned)
    assert estimated.rows is not None
    assert not memory.exists("/far")
    assert not (tmp_path / "work").exists()
