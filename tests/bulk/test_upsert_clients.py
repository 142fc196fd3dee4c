"""Batches are taken in by each store's own client, and give back what brute force gives.

Those of Chroma and Pinecone are large, and installed by hand: `pip install chromadb pinecone`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from moving_texts import DIMENSION, make_fake, move, read_batches, rows_of, vectors_of
from pinecone_server import Recorded, running_pinecone
from qdrant_client import QdrantClient
from qdrant_client import models as qm

from unified_embeddings.embedders.fake import FakeEmbedder
from unified_embeddings.llama.vector_store import build_vector_store
from unified_embeddings.retrievers.hybrid import UnifiedHybridRetriever
from unified_embeddings.stores.edge.client import EdgeQdrantClient

QUERIES = ["words about 3 foxes", "row 77", "of words", "row 350 of words about 0 foxes"]


def nearest(query: str, vectors: Any, count: int) -> list[int]:
    """Return the rows with the largest cosine, by brute force."""
    dense = make_fake(model="fake").encode_query(query).dense
    assert dense is not None
    (dense,) = dense
    lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(dense)
    return np.argsort(-(vectors @ dense) / lengths, kind="stable")[:count].tolist()


class TestChroma:
    @pytest.fixture
    def collection(self, tmp_path: Path) -> Any:
        chromadb = pytest.importorskip("chromadb", reason="Chroma's client is not installed")
        client = chromadb.PersistentClient(
            str(tmp_path / "chroma"), chromadb.config.Settings(anonymized_telemetry=False)
        )
        return client.create_collection("notes", configuration={"hnsw": {"space": "cosine"}})

    def test_the_neighbours_are_those_of_brute_force(self, collection: Any, tmp_path: Path) -> None:
        rows = rows_of(700)
        move(rows, tmp_path / "a.jsonl", "chroma")
        batches = read_batches(tmp_path / "a.jsonl")
        assert len(batches) == 3
        for _ in range(2):  # Again makes no difference.
            for batch in batches:
                collection.upsert(**batch)
        assert collection.count() == 700
        vectors = vectors_of(rows)
        for query in QUERIES:
            dense = make_fake(model="fake").encode_query(query).dense
            found = collection.query(query_embeddings=dense.tolist(), n_results=5)
            expected = nearest(query, vectors, 5)
            assert found["ids"][0] == [rows[row]["id"] for row in expected]
            assert found["documents"][0] == [rows[row]["text"] for row in expected]
            for row, metadata in zip(expected, found["metadatas"][0], strict=True):
                assert metadata == {"year": rows[row]["year"], "tags": rows[row]["tags"]}

    def test_odd_values_and_rows_without_metadata(self, collection: Any, tmp_path: Path) -> None:
        rows: list[dict[str, Any]] = [
            {"id": "", "text": "empty id"},
            {"id": 2, "text": "numbers", "big": 2**70, "small": -(2**63), "none": None},
            {"id": "ä\0", "text": "letters", "list": [1, "a"], "nested": {"x": []}, "empty": []},
            {"id": "lists", "text": "lists", "flags": [True], "floats": [0.5, 1.0]},
        ]
        move(rows, tmp_path / "a.jsonl", "chroma")
        for batch in read_batches(tmp_path / "a.jsonl"):
            collection.upsert(**batch)
        found = collection.get()
        by_text = dict(zip(found["documents"], found["metadatas"], strict=True))
        assert by_text["empty id"] == {"id": ""}
        assert by_text["numbers"] == {"big": str(2**70), "small": -(2**63)}
        assert by_text["letters"] == {"list": '[1, "a"]', "nested": '{"x": []}'}
        assert by_text["lists"] == {"flags": [True], "floats": [0.5, 1.0]}


class TestPinecone:
    @pytest.fixture
    def index(self) -> Iterator[Any]:
        """Pinecone's client of an index on a server that records, and the record."""
        pinecone = pytest.importorskip("pinecone", reason="Pinecone's client is not installed")
        with running_pinecone() as recorded:
            yield pinecone.Pinecone(api_key="none").index(host=recorded.host), recorded

    def test_vectors(self, index: tuple[Any, Recorded], tmp_path: Path) -> None:
        client, recorded = index
        rows = [*rows_of(1200), {"id": "ä", "text": "odd", "big": 2**60, "nested": {"x": None}}]
        move(rows, tmp_path / "a.jsonl", "pinecone", heads=("dense", "sparse"))
        for batch in read_batches(tmp_path / "a.jsonl"):
            client.upsert(vectors=batch["vectors"], namespace="notes")
        assert {path for path, _ in recorded.requests} == {"/vectors/upsert"}
        sent = recorded.sent("vectors")
        assert [vector["id"] for vector in sent[:1200]] == [row["id"] for row in rows[:1200]]
        found = np.float32([vector["values"] for vector in sent])
        np.testing.assert_array_equal(found, vectors_of(rows))
        sparse = make_fake(model="fake").encode_documents([rows[3]["text"]]).sparse
        assert sparse is not None
        assert sent[3]["sparseValues"] == {
            "indices": sparse[0].indices.tolist(),
            "values": pytest.approx(sparse[0].values.tolist()),
        }
        assert sent[3]["metadata"] == {
            "year": rows[3]["year"],
            "tags": rows[3]["tags"],
            "text": rows[3]["text"],
        }
        assert sent[-1]["metadata"] == {
            "id": "ä",
            "big": str(2**60),
            "nested": '{"x": null}',
            "text": "odd",
        }

    def test_their_own_models_read_a_batch(self, tmp_path: Path) -> None:
        pinecone = pytest.importorskip("pinecone", reason="Pinecone's client is not installed")
        rows = rows_of(20)
        move(rows, tmp_path / "a.jsonl", "pinecone", heads=("dense", "sparse"))
        (batch,) = read_batches(tmp_path / "a.jsonl")
        vectors = [pinecone.Vector.from_dict(each) for each in batch["vectors"]]
        assert [vector.id for vector in vectors] == [row["id"] for row in rows]
        assert all(len(vector.values) == DIMENSION for vector in vectors)
        assert all(vector.sparse_values.indices for vector in vectors)

    def test_documents(self, index: tuple[Any, Recorded], tmp_path: Path) -> None:
        client, recorded = index
        rows = rows_of(1200)
        move(rows, tmp_path / "a.jsonl", "pinecone-documents", heads=("dense", "sparse"))
        for batch in read_batches(tmp_path / "a.jsonl"):
            client.documents.upsert(namespace="notes", documents=batch["documents"])
        sent = recorded.sent("documents")
        assert [document["_id"] for document in sent] == [row["id"] for row in rows]
        assert sent[3]["tags"] == rows[3]["tags"]


class TestQdrant:
    @pytest.fixture(params=["memory", "edge"])
    def client(self, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
        client = QdrantClient(":memory:")
        if request.param == "edge":
            client = EdgeQdrantClient(tmp_path / "store")  # type: ignore[assignment]
        yield client
        client.close()

    def test_the_retriever_answers_from_the_points(self, client: Any, tmp_path: Path) -> None:
        rows = [*rows_of(400), {"id": 5, "text": "a number"}, {"id": "x" * 600, "text": "long id"}]
        move(rows, tmp_path / "a.jsonl", "qdrant")
        body = json.loads((tmp_path / "a.jsonl.collection.json").read_text())
        client.create_collection(
            "notes",
            vectors_config={
                name: qm.VectorParams.model_validate(each) for name, each in body["vectors"].items()
            },
            sparse_vectors_config={
                name: qm.SparseVectorParams.model_validate(each)
                for name, each in body["sparse_vectors"].items()
            },
            metadata=body["metadata"],
        )
        for batch in read_batches(tmp_path / "a.jsonl"):
            client.upsert("notes", [qm.PointStruct.model_validate(p) for p in batch["points"]])
        embedder = FakeEmbedder(dimension=DIMENSION, model_name="fake")
        # The fingerprint in the collection is the embedder's: it is not adopted, but recognised.
        store = build_vector_store(embedder, "notes", client=client)
        assert client.count("notes").count == 402
        retriever = UnifiedHybridRetriever(store, embedder, similarity_top_k=5, mode="dense")
        vectors = vectors_of(rows)
        for query in QUERIES:
            hits = retriever.retrieve(query)
            expected = nearest(query, vectors, 5)
            assert [hit.node.metadata["id"] for hit in hits] == [rows[n]["id"] for n in expected]
            assert [hit.node.get_content() for hit in hits] == [rows[n]["text"] for n in expected]
            assert hits[0].node.metadata.get("year") == rows[expected[0]].get("year")
        hybrid = UnifiedHybridRetriever(store, embedder, similarity_top_k=5)
        (hit, *_) = hybrid.retrieve("a number")
        assert (hit.node.metadata["id"], hit.node.node_id) == (5, "5")

    def test_the_bodies_are_requests_of_the_rest_interface(self, tmp_path: Path) -> None:
        move(rows_of(300), tmp_path / "a.jsonl", "qdrant")
        for batch in read_batches(tmp_path / "a.jsonl"):
            assert qm.PointsList.model_validate(batch).points
        body = json.loads((tmp_path / "a.jsonl.collection.json").read_text())
        vectors = qm.CreateCollection.model_validate(body).vectors
        assert isinstance(vectors, dict)
        assert vectors["text-dense"].size == DIMENSION
