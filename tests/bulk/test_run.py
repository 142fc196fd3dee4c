"""A whole job: what is killed, interrupted or starved of room goes on where it was."""

from __future__ import annotations

import hashlib
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import poisoned
import pytest
from qdrant_client import QdrantClient

from unified_embeddings.bulk.job import Journal, OtherJobError, PartLine
from unified_embeddings.bulk.options import (
    BulkOptions,
    CollectionTarget,
    InterruptedJobError,
    Progress,
    RowFailedError,
)
from unified_embeddings.bulk.parts import read_part
from unified_embeddings.bulk.rows import InputOptions
from unified_embeddings.bulk.run import embed_rows, estimate
from unified_embeddings.embedders.fake import FakeEmbedder
from unified_embeddings.errors import InputError, UnifiedEmbeddingsError
from unified_embeddings.llama.vector_store import build_vector_store
from unified_embeddings.retrievers.hybrid import UnifiedHybridRetriever

CHILD = Path(__file__).with_name("bulk_child.py")


def make_rows(count: int, *, repeats: int = 0) -> list[dict[str, Any]]:
    texts = [f"row {number} of words {number % 7}" for number in range(count - repeats)]
    texts += texts[:repeats]
    return [{"id": number, "text": text} for number, text in enumerate(texts)]


def options(**changes: Any) -> BulkOptions:
    values: dict[str, Any] = {"models": ["fake"], "checkpoint_interval": 10, **changes}
    return BulkOptions(**values)


def run(rows: Any, folder: Path, **changes: Any) -> Any:
    (report,) = embed_rows(rows, folder, options(**changes), make=poisoned.make_poisoned)
    return report


def digest_outputs(folder: Path) -> dict[str, str]:
    """Return the digest of each output, but of the metadata, which tell times."""
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.glob("*.*"))
        if file.is_file() and not file.name.endswith("metadata.json") and file.name != ".lock"
    }


def test_vectors_are_those_of_the_embedder_and_repeats_cost_nothing(tmp_path: Path) -> None:
    rows = make_rows(57, repeats=20)
    report = run(rows, tmp_path, heads=("dense", "sparse", "colbert"))
    assert (report.rows, report.computed, report.repeated, report.failed) == (57, 37, 20, 0)
    expected = FakeEmbedder(dimension=8).encode_documents([row["text"] for row in rows])
    assert expected.dense is not None
    assert expected.sparse is not None
    np.testing.assert_array_equal(np.load(tmp_path / "fake.npy"), expected.dense)
    lines = [json.loads(line) for line in (tmp_path / "fake.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == list(range(57))
    for line, vector in zip(lines, expected.sparse, strict=True):
        assert line["model"] == "fake"
        assert line["sparse"]["indices"] == vector.indices.tolist()
    metadata = json.loads((tmp_path / "fake.metadata.json").read_text())
    assert metadata["model_name"] == "fake"
    assert metadata["embedding_dim"] == 8
    assert metadata["num_paragraphs"] == 57
    assert not (tmp_path / "parts").exists()


@pytest.mark.parametrize("kills", [4, pytest.param(20, marks=pytest.mark.endurance)])
def test_a_job_that_is_killed_again_and_again_gives_the_same_bytes(
    tmp_path: Path, kills: int
) -> None:
    source = tmp_path / "rows.jsonl"
    rows = make_rows(800 * kills // 4, repeats=100)
    source.write_text("\n".join(json.dumps(row) for row in rows))
    arguments = [sys.executable, str(CHILD), str(source)]
    whole = tmp_path / "whole"
    first = subprocess.run([*arguments, whole, "20"], check=True, capture_output=True, text=True)
    killed = tmp_path / "killed"
    rng = random.Random(7)
    for _ in range(kills):
        process = subprocess.Popen([*arguments, killed, "20"], stdout=subprocess.DEVNULL)
        time.sleep(rng.uniform(0.6, 2.0))
        process.kill()
        process.wait()
    last = subprocess.run([*arguments, killed, "20"], check=True, capture_output=True, text=True)
    assert digest_outputs(killed) == digest_outputs(whole)
    # Nothing was computed twice but what was in hand: the parts' own counts are those of one run.
    assert last.stdout.split()[:2] == first.stdout.split()[:2]
    assert last.stdout.split()[3] == first.stdout.split()[3]


def test_ctrl_c_finishes_what_is_in_hand_and_says_how_to_resume(tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text("\n".join(json.dumps(row) for row in make_rows(3000)))
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, str(CHILD), str(source), str(out), "20"],
        stdout=subprocess.PIPE,
        text=True,
    )
    manifest = out / "parts" / "fake" / "manifest.jsonl"
    while not manifest.exists() or manifest.read_text().count("\n") < 3:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "run the same command again" in output
    lines = [json.loads(line) for line in manifest.read_text().splitlines()]
    again = subprocess.run(
        [sys.executable, str(CHILD), str(source), str(out), "20"],
        check=True,
        capture_output=True,
        text=True,
    )
    rows, computed, resumed, _ = again.stdout.split()
    assert (rows, computed) == ("3000", "3000")
    assert int(resumed) == sum(line["rows"] for line in lines)
    # No finished part was computed again, which would change how long it took.
    assert [json.loads(line) for line in manifest.read_text().splitlines()][: len(lines)] == lines


@pytest.mark.parametrize("before", [True, False])
def test_ctrl_c_around_a_line_of_the_manifest_loses_no_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: bool
) -> None:
    real_add = Journal.add
    added: list[int] = []

    def add(self: Journal, line: PartLine) -> None:
        if before and not added:
            signal.raise_signal(signal.SIGINT)
        real_add(self, line)
        added.append(line.rows)
        if not before and len(added) == 1:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Journal, "add", add)
    with pytest.raises(InterruptedJobError, match="run the same command again"):
        run(make_rows(500), tmp_path)
    finished = sum(added)
    assert 10 <= finished < 500
    assert run(make_rows(500), tmp_path).resumed == finished


def test_ctrl_c_while_rows_are_waited_for_is_not_held_back(tmp_path: Path) -> None:
    def rows() -> Iterator[dict[str, Any]]:
        yield from make_rows(200)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError

    with pytest.raises(InterruptedJobError, match="are finished and kept"):
        run(rows(), tmp_path)


def test_poison_rows_are_listed_with_their_reasons(tmp_path: Path) -> None:
    rows: list[Any] = make_rows(60)
    rows[3]["text"] = "KILL"
    rows[14]["text"] = "FAIL"
    rows[25]["text"] = 7
    rows[26]["text"] = "half \ud83d a character"
    rows[37]["text"] = "HANG"
    rows[48] = {"id": 48}
    rows[59]["text"] = "word " * 400_000
    report = run(rows, tmp_path, hang_seconds=2.0)
    assert report.failed == 6
    failed = [json.loads(line) for line in (tmp_path / "failed.jsonl").read_text().splitlines()]
    assert [line["row"] for line in failed] == [3, 14, 25, 26, 37, 48]
    dense = np.load(tmp_path / "fake.npy")
    assert np.flatnonzero(np.isnan(dense[:, 0])).tolist() == [3, 14, 25, 26, 37, 48]
    with pytest.raises(RowFailedError, match="fail-fast"):
        run(rows, tmp_path / "fast", hang_seconds=2.0, fail_fast=True)


def test_rows_that_failed_are_tried_again(tmp_path: Path) -> None:
    rows = make_rows(30)
    rows[12]["text"] = "FAIL"
    assert run(rows, tmp_path).failed == 1
    # Whatever made it fail is mended: the same row, another embedder.
    (report,) = embed_rows(rows, tmp_path, options(retry_failed=True), make=poisoned.make_slow)
    assert (report.failed, report.resumed) == (0, 20)
    assert not np.isnan(np.load(tmp_path / "fake.npy")).any()
    assert (tmp_path / "failed.jsonl").read_text() == ""


def test_memory_of_the_device_is_found_out(tmp_path: Path) -> None:
    rows = [{"text": f"MEMORY {number}"} for number in range(40)]
    report = run(rows, tmp_path)
    assert report.failed == 0


def test_another_input_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    rows = make_rows(30)
    run(rows, tmp_path, keep_parts=True)
    rows[15]["text"] = "another"
    with pytest.raises(OtherJobError, match="rows 10 to 19"):
        run(rows, tmp_path, keep_parts=True)
    with pytest.raises(OtherJobError, match="heads"):
        run(rows, tmp_path, heads=("sparse",), keep_parts=True)


def test_wrong_options_are_refused_before_a_model_is_loaded(tmp_path: Path) -> None:
    def never(**_: Any) -> FakeEmbedder:
        raise AssertionError

    with pytest.raises(InputError, match="missing"):
        embed_rows(tmp_path / "missing.jsonl", tmp_path / "out", options(), make=never)
    rows = [{"words": "a"}]
    with pytest.raises(InputError, match="words"):
        embed_rows(
            rows, tmp_path / "out", options(input=InputOptions(text_field="text")), make=never
        )
    with pytest.raises(InputError, match="one model"):
        options(models=["a", "b"], collection=CollectionTarget(name="notes", path=tmp_path))
    with pytest.raises(InputError, match="same files"):
        options(models=["a", "a"])
    assert not (tmp_path / "out").exists()


def test_progress_is_told(tmp_path: Path) -> None:
    told: list[Progress] = []
    embed_rows(
        make_rows(35), tmp_path, options(), on_progress=told.append, make=poisoned.make_poisoned
    )
    assert [progress.rows for progress in told if progress.phase == "computing"] == [10, 20, 30, 35]
    assert told[-1].phase == "writing"


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text("\n".join(json.dumps(row) for row in make_rows(2000)))
    (estimated,) = estimate(source, tmp_path / "out", options(), make=poisoned.make_poisoned)
    assert estimated.rows is not None
    assert 1800 < estimated.rows < 2200
    assert estimated.tokens is not None
    assert estimated.tokens > 2000
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("formats", [("npy",), ("jsonl",), ("npy", "jsonl", "parquet")])
def test_the_disk_that_a_dry_run_foretells_is_the_disk_that_is_taken(
    formats: Any, tmp_path: Path
) -> None:
    pytest.importorskip("pyarrow")
    given = options(
        formats=formats,
        heads=("dense", "sparse", "colbert"),
        keep_parts=True,
        checkpoint_interval=500,
    )
    rows = make_rows(2000)
    (estimated,) = estimate(rows, tmp_path / "out", given, make=poisoned.make_poisoned)
    (report,) = embed_rows(rows, tmp_path / "out", given, make=poisoned.make_poisoned)
    parts = [path for path in (tmp_path / "out").rglob("part-*.npz") if path.is_file()]
    assert parts
    outputs = [Path(file) for file in report.files[:-1]]
    taken = sum(file.stat().st_size for file in [*parts, *outputs])
    assert estimated.bytes is not None
    assert 0.9 * taken < estimated.bytes < 1.25 * taken


def test_an_output_in_a_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a-file"
    file.touch()
    for output in (file, file / "inside"):
        with pytest.raises(InputError, match="a-file is a file, and the outputs go into a folder"):
            embed_rows(make_rows(1), output, options(), make=poisoned.make_poisoned)


def test_rows_go_into_a_collection_once(tmp_path: Path) -> None:
    rows = make_rows(45, repeats=10)
    rows[7]["text"] = "FAIL"
    client = QdrantClient(":memory:")
    target = CollectionTarget(name="notes", client=client)
    changes = {"heads": ("dense", "sparse"), "collection": target, "keep_parts": True}
    given = InputOptions(id_field="id")
    run(rows, tmp_path / "a", input=given, **changes)
    assert client.count("notes").count == 44
    run(rows, tmp_path / "a", input=given, **changes)
    # Another job over the same rows writes the same points.
    run(rows, tmp_path / "b", input=given, **changes)
    assert client.count("notes").count == 44
    embedder = FakeEmbedder(dimension=8, model_name="fake")
    store = build_vector_store(embedder, "notes", client=client)
    retriever = UnifiedHybridRetriever(store, embedder, similarity_top_k=1)
    (found,) = retriever.retrieve("row 20 of words 6")
    assert found.node.get_content() == "row 20 of words 6"
    assert found.node.metadata["id"] == 20


def test_a_full_disk_stops_the_job_and_room_lets_it_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from unified_embeddings.bulk.job import Journal

    real_add = Journal.add
    added: list[int] = []

    def add(self: Journal, line: Any) -> None:
        if len(added) == 2:
            raise OSError(28, "No space left on device")
        added.append(line.part)
        real_add(self, line)

    monkeypatch.setattr(Journal, "add", add)
    with pytest.raises(UnifiedEmbeddingsError, match="Make room"):
        run(make_rows(50), tmp_path)
    monkeypatch.undo()
    report = run(make_rows(50), tmp_path)
    assert (report.rows, report.resumed) == (50, 20)


def test_parts_hold_what_was_computed(tmp_path: Path) -> None:
    run(make_rows(15), tmp_path, keep_parts=True, dtype="float16")
    part = read_part(tmp_path / "parts" / "fake" / "part-00000001.npz")
    assert part.dense is not None
    assert part.dense.dtype == np.float16
    assert part.first_row == 10


def test_an_interruption_is_an_error_of_its_own() -> None:
    assert issubclass(InterruptedJobError, UnifiedEmbeddingsError)
