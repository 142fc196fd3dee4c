"""Rows into a collection: each once, with its fields, whatever was killed."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import poisoned
import pytest
from qdrant_client import QdrantClient
from qdrant_client import models as qm

import command
from unified_embeddings.bulk.options import BulkOptions, CollectionTarget
from unified_embeddings.bulk.rows import InputOptions
from unified_embeddings.bulk.run import embed_rows
from unified_embeddings.embedders.bm25 import Bm25Embedder
from unified_embeddings.embedders.fake import FakeEmbedder
from unified_embeddings.errors import InputError
from unified_embeddings.llama.vector_store import build_vector_store
from unified_embeddings.migration.added_vectors import add_vectors
from unified_embeddings.retrievers.hybrid import UnifiedHybridRetriever

CHILD = Path(__file__).with_name("collection_child.py")


def make_rows(count: int) -> list[dict[str, Any]]:
    rows = []
    for number in range(count):
        text = f"row {number % (count - count // 10)} of words"  # The last tenth repeats.
        rows.append({"id": f"note-{number}", "text": text, "place": number})
    return rows


def read_points(client: QdrantClient) -> list[Any]:
    points, _ = client.scroll("notes", limit=100_000, with_payload=True)
    return points


def run(rows: Any, folder: Path, client: Any, **changes: Any) -> Any:
    values: dict[str, Any] = {
        "models": ["fake"],
        "heads": ("dense", "sparse"),
        "checkpoint_interval": 10,
        "collection": CollectionTarget(name="notes", client=client),
        "input": InputOptions(id_field="id"),
        **changes,
    }
    (report,) = embed_rows(rows, folder, BulkOptions(**values), make=poisoned.make_poisoned)
    return report


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.endurance)])
def test_a_job_that_is_killed_again_and_again_writes_each_row_once(
    tmp_path: Path, kills: int
) -> None:
    rows = make_rows(250 * kills)
    source = tmp_path / "rows.jsonl"
    source.write_text("\n".join(json.dumps(row) for row in rows))
    store = tmp_path / "store"
    arguments = [sys.executable, str(CHILD), str(source), str(tmp_path / "out"), str(store)]
    rng = random.Random(3)
    for _ in range(kills):
        process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL)
        time.sleep(rng.uniform(1.5, 4.0))
        process.kill()
        process.wait()
    last = subprocess.run(arguments, check=True, capture_output=True, text=True)
    assert last.stdout.split()[0] == str(len(rows))
    embedder = FakeEmbedder(dimension=8, model_name="fake")
    vector_store = build_vector_store(embedder, "notes", path=store)
    points = read_points(vector_store.client)
    assert sorted(point.payload["place"] for point in points) == list(range(len(rows)))
    assert all(point.payload["id"] == f"note-{point.payload['place']}" for point in points)
    retriever = UnifiedHybridRetriever(vector_store, embedder, similarity_top_k=1)
    (found,) = retriever.retrieve("row 77 of words")
    assert found.node.get_content() == "row 77 of words"
    vector_store.client.close()


def test_two_rows_with_one_id_are_refused_before_the_second_is_written(tmp_path: Path) -> None:
    rows = make_rows(40)
    rows[33]["id"] = "note-5"
    client = QdrantClient(":memory:")
    with pytest.raises(InputError, match="rows 5 and 33 have the same id, 'note-5'"):
        run(rows, tmp_path, client)
    places = [point.payload["place"] for point in read_points(client)]
    assert 33 not in places
    rows[33]["id"] = "note-33"
    assert run(rows, tmp_path, client).rows == 40
    assert len(read_points(client)) == 40
    # Without a collection an id need not be one row's own.
    rows[33]["id"] = "note-5"
    assert run(rows, tmp_path / "files", None, collection=None).rows == 40


def test_a_second_job_over_the_same_rows_writes_the_same_points(tmp_path: Path) -> None:
    client = QdrantClient(":memory:")
    run(make_rows(45), tmp_path, client)
    assert not (tmp_path / "parts").exists()
    first = {point.id: point.payload for point in read_points(client)}
    report = run(make_rows(45), tmp_path, client)
    assert report.resumed == 0
    assert {point.id: point.payload for point in read_points(client)} == first
    assert len(first) == 45


class Server:
    """A client that looks like a server's, and holds the threshold from which it indexes."""

    def __init__(self, threshold: int | None) -> None:
        self.client = QdrantClient(":memory:")
        self.threshold = threshold
        self.history: list[int | None] = []
        self.real_get = self.client.get_collection
        self.client.get_collection = self.get_collection  # type: ignore[method-assign]
        self.client.update_collection = self.update_collection  # type: ignore[method-assign]

    def get_collection(self, name: str, **options: Any) -> Any:
        info = self.real_get(name, **options)
        info.config.optimizer_config.indexing_threshold = self.threshold
        return info

    def update_collection(
        self, name: str, *, optimizers_config: qm.OptimizersConfigDiff, **_: Any
    ) -> bool:
        assert name == "notes"
        self.threshold = optimizers_config.indexing_threshold
        self.history.append(self.threshold)
        return True


@pytest.fixture
def as_server(monkeypatch: pytest.MonkeyPatch) -> None:
    from unified_embeddings.bulk.collection import CollectionWriter

    monkeypatch.setattr(CollectionWriter, "_is_server", property(lambda _: True))


@pytest.mark.usefixtures("as_server")
def test_a_server_indexes_again_at_the_end_of_any_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from unified_embeddings.bulk.collection import CollectionWriter

    server = Server(7000)
    rows = make_rows(40)
    run(rows, tmp_path / "whole", server.client)
    assert server.history == [0, 7000]
    rows[33]["id"] = "note-5"
    with pytest.raises(InputError):
        run(rows, tmp_path / "failed", server.client)
    assert server.threshold == 7000
    # A killed run restores nothing; the one after it knows what was there before.
    rows[33]["id"] = "note-33"
    monkeypatch.setattr(CollectionWriter, "restore_indexing", lambda _: None)
    run(rows, tmp_path / "killed", server.client, keep_parts=True)
    assert server.threshold == 0
    monkeypatch.undo()
    monkeypatch.setattr(CollectionWriter, "_is_server", property(lambda _: True))
    run(rows, tmp_path / "killed", server.client, keep_parts=True)
    assert server.threshold == 7000


def test_search_finds_what_embed_put_into_a_collection(tmp_path: Path) -> None:
    source = tmp_path / "notes.jsonl"
    texts = ["The ferry leaves at nine.", "Bread needs salt and time.", "Foxes sleep by day."]
    source.write_text("\n".join(json.dumps({"id": i, "text": t}) for i, t in enumerate(texts)))
    embedded = subprocess.run(
        [
            sys.executable, "-m", "unified_embeddings", "embed", "notes.jsonl", "-o", "out",
            "-m", "mini-m3", "--heads", "dense,sparse", "--to-collection", "notes",
            "--path", "store", "--id-field", "id",
        ],
        cwd=tmp_path, env=command.environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert embedded.returncode == 0, embedded.stderr
    found = subprocess.run(
        [
            sys.executable, "-m", "unified_embeddings", "search", "when does the boat go?",
            "--path", "store", "--collection", "notes", "--model", "mini-m3",
        ],
        cwd=tmp_path, env=command.environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    assert "The ferry leaves at nine." in found.stdout


def test_rows_go_into_a_collection_that_holds_colbert_vectors(tmp_path: Path) -> None:
    client, embedder = QdrantClient(":memory:"), FakeEmbedder(dimension=8, model_name="fake")
    build_vector_store(embedder, "notes", client=client, colbert="pooled")
    rows = make_rows(30)
    with pytest.raises(InputError, match=r"holds ColBERT vectors \(pooled by 2, turbo4\)"):
        run(rows, tmp_path / "refused", client)
    run(rows, tmp_path / "out", client, heads=("dense", "sparse", "colbert"))
    points, _ = client.scroll("notes", limit=100, with_payload=True, with_vectors=["text-colbert"])
    assert len(points) == 30
    for point in points:
        text = rows[(point.payload or {})["place"]]["text"]
        (expected,) = embedder.encode_pooled([text], 2)
        assert isinstance(point.vector, dict)
        assert point.vector["text-colbert"] == pytest.approx(expected, abs=1e-6)


def test_a_collections_keyword_list_is_filled(tmp_path: Path) -> None:
    client = QdrantClient(":memory:")
    run(make_rows(45), tmp_path / "first", client)
    embedder = poisoned.make_poisoned(model="fake")
    assert add_vectors(client, "notes", embedder, [], keywords="bm25:none").added == 45
    rows = [{"id": "part-1", "text": "Part AB-1234C", "place": 99}]
    run(rows, tmp_path / "second", client)
    vector = Bm25Embedder("bm25:none").encode_query("1234c").sparse[0]  # type: ignore[index]
    query = qm.SparseVector(indices=vector.indices.tolist(), values=vector.values.tolist())
    (found,) = client.query_points("notes", query=query, using="text-bm25").points
    assert found.payload is not None
    assert found.payload["place"] == 99
    client.close()
