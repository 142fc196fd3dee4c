"""Sparse scores multiplied by IDF, where the model asks for it, on both local cores."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
from llama_index.core.schema import TextNode
from qdrant_client import QdrantClient
from qdrant_client import models as qm

from unified_embeddings.embedders.fake import FakeEmbedder
from unified_embeddings.llama.vector_store import build_vector_store
from unified_embeddings.retrievers.hybrid import UnifiedHybridRetriever
from unified_embeddings.stores.edge.client import EdgeQdrantClient
from unified_embeddings.stores.schema import SPARSE_VECTOR, sparse_vectors

TEXTS = ["fox", "fox dog", "dog owl", "dog elk"]
NAMES = [f"00000000-0000-0000-0000-00000000000{number}" for number in range(4)]


class IdfEmbedder(FakeEmbedder):
    """Its vectors are made for IDF, and it has the same fingerprint."""

    @property
    def sparse_idf(self) -> bool:
        """Tell that collections multiply by IDF."""
        return True


@pytest.fixture(params=["memory", "embedded"])
def client(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[QdrantClient | EdgeQdrantClient]:
    if request.param == "memory":
        yield QdrantClient(":memory:")
        return
    with EdgeQdrantClient(tmp_path / "store") as embedded:
        yield embedded


def fill(client: QdrantClient | EdgeQdrantClient, embedder: FakeEmbedder) -> UnifiedHybridRetriever:
    store = build_vector_store(embedder, "docs", client=client)
    dense = embedder.encode_documents(TEXTS).dense
    assert dense is not None
    store.add(
        [
            TextNode(id_=name, text=text, embedding=vector.tolist())
            for name, text, vector in zip(NAMES, TEXTS, dense, strict=True)
        ]
    )
    return UnifiedHybridRetriever(store, embedder, mode="sparse")


def modifier(client: QdrantClient | EdgeQdrantClient) -> qm.Modifier | None:
    return sparse_vectors(client.get_collection("docs"))[SPARSE_VECTOR].modifier


def test_scores_by_hand(client: QdrantClient | EdgeQdrantClient) -> None:
    embedder = IdfEmbedder()
    found = fill(client, embedder).retrieve("owl dog")
    assert modifier(client) == qm.Modifier.IDF
    (query,) = embedder.encode_query("owl dog").sparse or []
    (text,) = embedder.encode_documents(["dog owl"]).sparse or []
    (owl,) = (embedder.encode_query("owl").sparse or [])[0]
    (dog,) = (embedder.encode_query("dog").sparse or [])[0]
    # Four texts: one has the owl, three the dog.
    idf = {owl: math.log1p((4 - 1 + 0.5) / 1.5), dog: math.log1p((4 - 3 + 0.5) / 3.5)}
    expected = sum(query[token] * text[token] * idf[token] for token in (owl, dog))
    assert found[0].node.get_content() == "dog owl"
    assert found[0].score == pytest.approx(expected, rel=1e-5)
    assert {scored.node.get_content() for scored in found} == {"dog owl", "fox dog", "dog elk"}


def test_another_models_collection_has_no_idf(client: QdrantClient | EdgeQdrantClient) -> None:
    fill(client, FakeEmbedder())
    assert modifier(client) in (None, qm.Modifier.NONE)


@pytest.mark.parametrize(
    ("maker", "reader", "warnings"),
    [
        (FakeEmbedder, FakeEmbedder, 0),
        (IdfEmbedder, IdfEmbedder, 0),
        (FakeEmbedder, IdfEmbedder, 1),
        (IdfEmbedder, FakeEmbedder, 1),
    ],
)
def test_a_collection_that_scores_otherwise_is_searched_with_a_warning(
    maker: type[FakeEmbedder],
    reader: type[FakeEmbedder],
    warnings: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    client = QdrantClient(":memory:")
    fill(client, maker())
    store = build_vector_store(maker(), "docs", client=client)
    with caplog.at_level(logging.WARNING, logger="unified_embeddings"):
        UnifiedHybridRetriever(store, reader(), mode="dense")
        assert not caplog.records  # the sparse vectors are not used
        UnifiedHybridRetriever(store, reader())
    assert len(caplog.records) == warnings
    assert all("modifier" in record.getMessage() for record in caplog.records)
