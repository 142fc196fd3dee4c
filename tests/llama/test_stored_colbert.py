"""A store whose points hold ColBERT vectors: made, written, reopened, refused."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_index.core import Document, StorageContext, VectorStoreIndex
from llama_index.core.schema import TextNode
from qdrant_client import QdrantClient
from qdrant_client import models as qm

from unified_embeddings import StoredColbert, UnifiedTextEmbedding
from unified_embeddings.cache.embedding_cache import EmbeddingCache
from unified_embeddings.embedders.fake import FakeEmbedder
from unified_embeddings.errors import InputError, StoreError
from unified_embeddings.llama.indexing import index_paths
from unified_embeddings.llama.vector_store import build_vector_store
from unified_embeddings.migration.added_vectors import add_vectors
from unified_embeddings.stores.edge.client import EdgeQdrantClient
from unified_embeddings.stores.opening import Client
from unified_embeddings.stores.schema import dense_vectors, stored_colbert
from unified_embeddings.stores.stored_colbert import COLBERT_VECTOR, FULL

TEXTS = ["Foxes jump over dogs and cats at night, foxes and owls.", "The sea is calm today."]
WAYS: list[Any] = [
    "full",
    "pooled",
    StoredColbert(pool=3, quantisation="turbo8"),
    StoredColbert(pool=2, quantisation="float16", on_disk=True),
    StoredColbert(pool=1, quantisation="int8"),
    StoredColbert(pool=4, quantisation="binary", on_disk=False),
]
TOLERANCES = {None: 1e-6, "float16": 1e-3, "turbo8": 0.02, "turbo4": 0.2}
"""Of one number of a unit row of 64, as it is read back."""


@pytest.fixture(params=["memory", "embedded"])
def client(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Client]:
    if request.param == "memory":
        yield QdrantClient(":memory:")
        return
    with EdgeQdrantClient(tmp_path / "store") as embedded:
        yield embedded


def nodes_of(embedder: FakeEmbedder, texts: list[str] = TEXTS) -> list[Any]:
    return list(UnifiedTextEmbedding(embedder)([TextNode(text=text) for text in texts]))


def stored_rows(client: Client) -> dict[str, np.ndarray[Any, Any]]:
    """Return each text's rows as the collection gives them."""
    records, _ = client.scroll("docs", limit=100, with_payload=True, with_vectors=True)
    rows = {}
    for record in records:
        assert isinstance(record.vector, dict)
        text = TextNode.from_json((record.payload or {})["_node_content"]).text
        text = text or (record.payload or {})["text"]
        rows[text] = np.array(record.vector.get(COLBERT_VECTOR, []))
    return rows


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_points_hold_rows_of_the_same_pass(client: Client, way: Any) -> None:
    embedder = FakeEmbedder()
    store = build_vector_store(embedder, "docs", client=client, colbert=way)
    colbert = store.stored_colbert
    assert colbert is not None
    nodes = nodes_of(embedder)
    passes = embedder.stats().forwards
    store.add(nodes)
    assert embedder.stats().forwards == passes  # dense, sparse and ColBERT from one pass
    expected = dict(zip(TEXTS, embedder.encode_pooled(TEXTS, colbert.pool), strict=True))
    found = stored_rows(client)
    tolerance = TOLERANCES.get(colbert.quantisation, 1e-6)
    for text in TEXTS:
        np.testing.assert_allclose(found[text], expected[text], atol=tolerance)
    params = dense_vectors(client.get_collection("docs"))[COLBERT_VECTOR]
    assert params.hnsw_config == qm.HnswConfigDiff(m=0)


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_reopened_it_goes_on_in_the_same_way(client: Client, way: Any) -> None:
    embedder = FakeEmbedder()
    first = build_vector_store(embedder, "docs", client=client, colbert=way)
    again = build_vector_store(embedder, "docs", client=client)
    assert again.stored_colbert is not None
    assert first.stored_colbert is not None
    assert again.stored_colbert.pool == first.stored_colbert.pool
    assert again.stored_colbert.quantisation == first.stored_colbert.quantisation
    build_vector_store(embedder, "docs", client=client, colbert=way)  # fits
    asyncio.run(again.async_add(nodes_of(embedder)))
    pool = again.stored_colbert.pool
    rows = embedder.encode_pooled(TEXTS, pool)
    assert [len(stored_rows(client)[text]) for text in TEXTS] == [len(each) for each in rows]


def test_another_way_is_refused(client: Client) -> None:
    embedder = FakeEmbedder()
    build_vector_store(embedder, "plain", client=client)
    with pytest.raises(
        StoreError, match=r"stores no ColBERT vectors; add them .* plain --colbert pooled"
    ):
        build_vector_store(embedder, "plain", client=client, colbert="pooled")
    build_vector_store(embedder, "docs", client=client, colbert=StoredColbert(pool=3))
    with pytest.raises(StoreError, match="stored pooled by 3, turbo4, and colbert= asks for poole"):
        build_vector_store(embedder, "docs", client=client, colbert="pooled")
    wanted = StoredColbert(pool=3, quantisation=None)
    with pytest.raises(StoreError, match="asks for pooled by 3, float32"):
        build_vector_store(embedder, "docs", client=client, colbert=wanted)


def test_what_is_no_way_is_refused() -> None:
    client, embedder = QdrantClient(":memory:"), FakeEmbedder()
    for wrong in ("half", 2, {"pool": 2}):
        with pytest.raises(InputError, match="takes 'pooled', 'full' or a StoredColbert"):
            build_vector_store(embedder, "docs", client=client, colbert=wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="pool must be from 1 to 4, got 5"):
        StoredColbert(pool=5)
    with pytest.raises(InputError, match="pool must be a whole number >= 1"):
        StoredColbert(pool=0)
    with pytest.raises(InputError, match="quantisation must be one of float16, int8, binary, tur"):
        StoredColbert(quantisation="int4")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="on_disk must be"):
        StoredColbert(on_disk=1)  # type: ignore[arg-type]
    dense_only = FakeEmbedder(heads=("dense", "sparse"))
    with pytest.raises(InputError, match="'fake' does not give; leave it out"):
        build_vector_store(dense_only, "docs", client=client, colbert="pooled")
    assert not client.collection_exists("docs")


def test_an_index_over_the_store(client: Client) -> None:
    embedder = FakeEmbedder()
    store = build_vector_store(embedder, "docs", client=client, colbert="pooled")
    documents = [Document(text=text) for text in TEXTS]
    VectorStoreIndex.from_documents(
        documents,
        storage_context=StorageContext.from_defaults(vector_store=store),
        embed_model=UnifiedTextEmbedding(embedder),
    )
    assert {len(rows) > 0 for rows in stored_rows(client).values()} == {True}
    store.clear()
    assert stored_colbert(client.get_collection("docs")) == StoredColbert()
    store.add(nodes_of(embedder))
    assert {len(rows) > 0 for rows in stored_rows(client).values()} == {True}


def test_files_are_indexed_with_them(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text(TEXTS[0])
    client, embedder = QdrantClient(":memory:"), FakeEmbedder()
    store = build_vector_store(embedder, "docs", client=client, colbert="pooled")
    index_paths([tmp_path / "notes"], store, embedder)
    ((_, rows),) = stored_rows(client).items()
    assert rows.shape[1] == 64


def test_many_long_texts_are_sent_in_requests_that_a_server_takes() -> None:
    client, wide = QdrantClient(":memory:"), FakeEmbedder(dimension=2048, max_length=400)
    store = build_vector_store(wide, "docs", client=client, colbert="full")
    texts = [" ".join(f"w{number}n{place}" for place in range(200)) for number in range(6)]
    sizes: list[int] = []
    original = client.upload_points

    def note(name: str, points: list[Any], **options: Any) -> None:
        sizes.append(sum(np.asarray(point.vector[COLBERT_VECTOR]).size for point in points))
        original(name, points, **options)

    client.upload_points = note  # type: ignore[method-assign, assignment]
    store.add(nodes_of(wide, texts))
    assert len(sizes) == 6
    assert max(sizes) <= 700_000


def test_what_the_cache_could_not_hold_costs_one_more_pass_and_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    client, embedder = QdrantClient(":memory:"), FakeEmbedder(cache=EmbeddingCache(600_000))
    store = build_vector_store(embedder, "docs", client=client, colbert="full")
    texts = [" ".join(f"w{number}n{place}" for place in range(30)) for number in range(128)]
    nodes = nodes_of(embedder, texts)  # 8 kB each, of which the cache holds about 70
    assert embedder.stats().forwards == 2  # one is for the width of the rows
    store.add(nodes)
    assert embedder.stats().forwards == 4  # two batches of 64, each once
    (record,) = caplog.records
    assert "insert_batch_size=128" in record.getMessage()
    assert {len(rows) for rows in stored_rows(client).values()} == {31}
    caplog.clear()
    store.add(nodes[:1])
    assert not caplog.records


def test_without_a_cache_adding_costs_one_pass(caplog: pytest.LogCaptureFixture) -> None:
    client, cached, embedder = QdrantClient(":memory:"), FakeEmbedder(), FakeEmbedder(cache=None)
    store = build_vector_store(embedder, "docs", client=client, colbert="pooled", keywords="bm25")
    nodes = nodes_of(embedder)
    passes = embedder.stats().forwards
    store.add(nodes)
    assert embedder.stats().forwards == passes + 1
    assert len(caplog.records) == 1
    rows = cached.encode_pooled(TEXTS, 2)
    for text, expected in zip(TEXTS, rows, strict=True):
        np.testing.assert_allclose(stored_rows(client)[text], expected, atol=1e-6)
    words = cached.encode_documents(TEXTS, sparse=True).sparse
    assert words is not None
    for node, weights in zip(nodes, words, strict=True):
        (record,) = client.retrieve("docs", [node.node_id], with_vectors=True)
        assert isinstance(record.vector, dict)
        assert len(record.vector) == 4  # the words' own vector as well
        assert record.vector["text-sparse-new"] == qm.SparseVector(
            indices=weights.indices.tolist(), values=weights.values.tolist()
        )


def test_nodes_of_the_cache_are_added_without_a_word(caplog: pytest.LogCaptureFixture) -> None:
    embedder = FakeEmbedder()
    store = build_vector_store(embedder, "docs", client=QdrantClient(":memory:"), colbert="pooled")
    store.add(nodes_of(embedder))
    assert not caplog.records


def test_a_record_of_a_later_version_says_what_to_do() -> None:
    client, embedder = QdrantClient(":memory:"), FakeEmbedder()
    build_vector_store(embedder, "docs", client=client, colbert="pooled")
    record = dict((client.get_collection("docs").config.metadata or {})["unified_embeddings"])
    changed = {"unified_embeddings": {**record, "colbert": {"pool": 2, "quantisation": "int2"}}}
    client.update_collection("docs", metadata=changed)
    with pytest.raises(InputError, match=r"records ColBERT vectors .*'int2'; upgrade unified-emb"):
        build_vector_store(embedder, "docs", client=client)


class Rowless(FakeEmbedder):
    """The same model, asked through something that gives no ColBERT vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = ("dense", "sparse")

    @property
    def fingerprint(self) -> str:
        """Return the whole model's."""
        return FakeEmbedder().fingerprint


def test_an_embedder_without_rows_says_that_it_adds_none(caplog: pytest.LogCaptureFixture) -> None:
    client = QdrantClient(":memory:")
    build_vector_store(FakeEmbedder(), "docs", client=client, colbert="pooled")
    assert not caplog.records
    store = build_vector_store(Rowless(), "docs", client=client)
    (record,) = caplog.records
    assert "'fake' gives none: nodes added here hold none" in record.getMessage()
    store.add(nodes_of(Rowless()))
    assert client.count("docs").count == 2


def test_a_node_without_an_embedding_stores_nothing(client: Client) -> None:
    embedder = FakeEmbedder()
    store = build_vector_store(embedder, "docs", client=client, colbert="pooled", batch_size=1)
    with pytest.raises(InputError, match="has no embedding"):
        store.add([*nodes_of(embedder), TextNode(text="bare")])
    assert client.count("docs").count == 0


def test_a_pickled_store_holds_them_too(tmp_path: Path) -> None:
    embedder = FakeEmbedder()
    store = build_vector_store(embedder, "docs", path=tmp_path / "store", colbert="pooled")
    copy = pickle.loads(pickle.dumps(store))
    assert copy.stored_colbert == StoredColbert()


# --- vectors added later ----------------------------------------------------------------------


def test_added_later_they_are_written_from_then_on(client: Client) -> None:
    embedder = FakeEmbedder()
    store = build_vector_store(embedder, "docs", client=client)
    store.add(nodes_of(embedder))
    wanted = StoredColbert(pool=2, quantisation="turbo8")
    report = add_vectors(client, "docs", embedder, ["colbert"], colbert=wanted)
    assert report.added == 2
    found = stored_colbert(client.get_collection("docs"))
    assert found is not None
    assert (found.pool, found.quantisation) == (2, "turbo8")
    rows = embedder.encode_pooled(TEXTS, 2)
    for text, expected in zip(TEXTS, rows, strict=True):
        np.testing.assert_allclose(stored_rows(client)[text], expected, atol=0.02)
    with pytest.raises(StoreError, match="stored pooled by 2, turbo8, and colbert= asks for not"):
        add_vectors(client, "docs", embedder, ["colbert"], colbert=FULL)
    again = build_vector_store(embedder, "docs", client=client)
    again.add(nodes_of(embedder, ["A third text about owls and dogs."]))
    assert len(stored_rows(client)["A third text about owls and dogs."]) == 4
    assert add_vectors(client, "docs", embedder, ["colbert"]).added == 0


def test_quantised_ones_are_added_later_too(tmp_path: Path) -> None:
    embedder = FakeEmbedder()
    with EdgeQdrantClient(tmp_path / "store") as client:
        build_vector_store(embedder, "docs", client=client).add(nodes_of(embedder))
        wanted = StoredColbert(pool=2, quantisation="int8")
        add_vectors(client, "docs", embedder, ["colbert"], colbert=wanted)
        found = stored_colbert(client.get_collection("docs"))
        assert found == StoredColbert(pool=2, quantisation="int8", on_disk=True)


def test_a_copy_holds_them_pooled(client: Client) -> None:
    embedder = FakeEmbedder()
    build_vector_store(embedder, "docs", client=client).add(nodes_of(embedder))
    wanted = StoredColbert(pool=2, quantisation="float16")
    add_vectors(client, "docs", embedder, ["colbert"], colbert=wanted, copy_to="copy")
    assert stored_colbert(client.get_collection("docs")) is None
    store = build_vector_store(embedder, "copy", client=client)
    assert store.stored_colbert is not None
    assert (store.stored_colbert.pool, store.stored_colbert.quantisation) == (2, "float16")
