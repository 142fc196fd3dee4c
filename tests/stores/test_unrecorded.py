"""A collection that records no model is refused wherever one is read or written."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import AsyncQdrantClient, QdrantClient
from qdrant_client import models as qm

from foreign import fill, make_nodes, make_texts
from unified_embeddings.cli import app
from unified_embeddings.config.pipeline import UnifiedEmbeddingConfig
from unified_embeddings.embedders.clip import ClipEmbedder
from unified_embeddings.embedders.fake import FakeEmbedder
from unified_embeddings.embedders.single_model import ModelEmbedder
from unified_embeddings.errors import StoreError
from unified_embeddings.llama.vector_store import build_vector_store
from unified_embeddings.migration.adoption import adopt_collection
from unified_embeddings.retrievers.hybrid import UnifiedHybridRetriever
from unified_embeddings.retrievers.multimodal import UnifiedMultiModalRetriever
from unified_embeddings.serving.searching import Search
from unified_embeddings.serving.settings import ServiceSettings
from unified_embeddings.stores.edge.client import EdgeQdrantClient
from unified_embeddings.stores.opening import open_folder
from unified_embeddings.stores.schema import METADATA_KEY, recorded_model

NODES = make_nodes(make_texts(20))
METADATA: list[Any] = [
    None,
    {"owner": "other software", "embedding_model": "fake"},
    {METADATA_KEY: "not a record"},
    {METADATA_KEY: {"fusion": "no model in it"}},
]
REFUSED = "does not record which model made it.*unified-embeddings adopt theirs --model"


@pytest.fixture
def embedder() -> FakeEmbedder:
    return FakeEmbedder()


@pytest.mark.parametrize("metadata", METADATA)
def test_by_stores_and_retrievers(metadata: Any, embedder: FakeEmbedder, clip: Path) -> None:
    client = QdrantClient(":memory:")
    fill(client, "theirs", embedder, NODES, sparse_by=embedder, metadata=metadata)
    stock = QdrantVectorStore("theirs", client=client, dense_vector_name="text-dense")
    build_vector_store(embedder, "texts", client=client)
    ours = build_vector_store(embedder, "texts", client=client)
    images = ClipEmbedder(clip)
    params = qm.VectorParams(size=images.dimension, distance=qm.Distance.COSINE)
    client.create_collection("pictures", {"text-dense": params}, metadata=metadata)
    pictures = QdrantVectorStore("pictures", client=client, dense_vector_name="text-dense")
    openings: list[Callable[[], object]] = [
        lambda: build_vector_store(embedder, "theirs", client=client),
        lambda: UnifiedHybridRetriever(stock, embedder),
        lambda: UnifiedHybridRetriever(stock, embedder, mode="dense"),
        lambda: UnifiedMultiModalRetriever(stock, pictures, embedder, images),
    ]
    for opening in openings:
        with pytest.raises(StoreError, match=REFUSED):
            opening()
    with pytest.raises(StoreError, match=r"'pictures'.*does not record which model"):
        UnifiedMultiModalRetriever(ours, pictures, embedder, images)
    assert adopt_collection(client, "theirs", embedder).outcome == "recorded"
    recorded = client.get_collection("theirs").config.metadata or {}
    if metadata:
        assert recorded.keys() == {METADATA_KEY} | metadata.keys()
    if isinstance((metadata or {}).get(METADATA_KEY), dict):
        assert recorded[METADATA_KEY]["fusion"] == "no model in it"
    for opening in openings[:3]:
        opening()


def test_by_a_retriever_that_meets_it_at_its_first_question(embedder: FakeEmbedder) -> None:
    client = QdrantClient(":memory:")
    stock = QdrantVectorStore("theirs", client=client, dense_vector_name="text-dense")
    retriever = UnifiedHybridRetriever(stock, embedder)  # it does not exist yet
    fill(client, "theirs", embedder, NODES, sparse_by=embedder)
    with pytest.raises(StoreError, match=REFUSED):
        retriever.retrieve("fox")

    async def ask() -> None:
        aclient = AsyncQdrantClient(":memory:")
        store = QdrantVectorStore("theirs", aclient=aclient, dense_vector_name="text-dense")
        dense = qm.VectorParams(size=64, distance=qm.Distance.COSINE)
        sparse = {"text-sparse-new": qm.SparseVectorParams()}
        await aclient.create_collection("theirs", {"text-dense": dense}, sparse)
        await UnifiedHybridRetriever(store, embedder).aretrieve("fox")

    with pytest.raises(StoreError, match=REFUSED):
        asyncio.run(ask())


def test_by_the_service_and_the_commands(
    tmp_path: Path,
    xlmr: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with EdgeQdrantClient("qdrant_data") as client, ModelEmbedder(str(xlmr)) as embedder:
        fill(client, "theirs", embedder, NODES, sparse_by=embedder)
    settings = ServiceSettings(collection="theirs", store_path=str(tmp_path / "qdrant_data"))
    with pytest.raises(StoreError, match=REFUSED):
        Search(UnifiedEmbeddingConfig(model_choice=str(xlmr)), settings)
    Path("a.txt").write_text("A fox.")
    Path("rows.jsonl").write_text(json.dumps({"text": "A fox."}) + "\n")
    for arguments in (
        ("search", "fox", "--collection", "theirs"),
        ("index", "a.txt", "--collection", "theirs"),
        ("embed", "rows.jsonl", "--output", "vectors", "--to-collection", "theirs"),
    ):
        monkeypatch.setattr("sys.argv", ["unified-embeddings", *arguments, "--model", str(xlmr)])
        with pytest.raises(SystemExit) as ended:
            app.main()
        errors = capsys.readouterr().err
        assert ended.value.code == 1, arguments
        assert f"unified-embeddings adopt theirs --model {xlmr}" in errors, (arguments, errors)
    reading = open_folder("qdrant_data")
    assert reading.count("theirs").count == 20
    assert recorded_model(reading.get_collection("theirs")) is None


@pytest.mark.parametrize(
    ("payload", "software"),
    [
        ({"page_content": "Foxes jump.", "metadata": {"page": 3}}, "LangChain"),
        ({"id": "1", "content": "Foxes jump.", "meta": {}}, "Haystack"),
    ],
)
def test_a_retriever_over_other_softwares_payloads_says_whose_they_are(
    payload: dict[str, Any], software: str
) -> None:
    client, embedder = QdrantClient(":memory:"), FakeEmbedder()
    store = build_vector_store(embedder, "my docs", client=client)
    vector = embedder.encode_query("foxes").dense
    assert vector is not None
    vectors = {"text-dense": vector[0].tolist()}
    client.upsert("my docs", [qm.PointStruct(id=1, vector=vectors, payload=payload)])
    stock = QdrantVectorStore("my docs", client=client, dense_vector_name="text-dense")
    retriever = UnifiedHybridRetriever(stock, embedder, mode="dense")
    expected = rf"{software}'s.*\.vector_store\('my docs'.*add-vectors 'my docs' --copy-to"
    with pytest.raises(StoreError, match=expected):
        retriever.retrieve("foxes")
    (found,) = UnifiedHybridRetriever(store, embedder, mode="dense").retrieve("foxes")
    assert found.text == "Foxes jump."
