"""Reranking by stored ColBERT vectors: the scores of the other way, in one request."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.core.vector_stores import ExactMatchFilter, MetadataFilters
from qdrant_client import QdrantClient
from qdrant_client import models as qm

from unified_embeddings import StoredColbert, UnifiedTextEmbedding, heads
from unified_embeddings.embedders.fake import FakeEmbedder
from unified_embeddings.llama.fingerprinted_store import FingerprintedStore
from unified_embeddings.llama.vector_store import build_vector_store
from unified_embeddings.migration.added_vectors import add_vectors
from unified_embeddings.retrievers.hybrid import UnifiedHybridRetriever
from unified_embeddings.search.encoding_time import CandidateEncoder
from unified_embeddings.stores.edge.client import EdgeQdrantClient
from unified_embeddings.stores.opening import Client
from unified_embeddings.stores.stored_colbert import FULL

WORDS = [
    "fox",
    "dog",
    "owl",
    "elk",
    "sea",
    "sun",
    "moon",
    "tree",
    "leaf",
    "root",
    "rain",
    "snow",
    "wind",
    "fire",
    "stone",
    "river",
]
RANDOM = np.random.default_rng(7)
TEXTS = [" ".join(RANDOM.choice(WORDS, size=RANDOM.integers(3, 14))) for _ in range(60)]
QUESTIONS = [" ".join(RANDOM.choice(WORDS, size=4)) for _ in range(20)]


@pytest.fixture(params=["memory", "embedded"])
def client(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Client]:
    if request.param == "memory":
        yield QdrantClient(":memory:")
        return
    with EdgeQdrantClient(tmp_path / "store") as embedded:
        yield embedded


def fill(store: FingerprintedStore, embedder: FakeEmbedder, texts: list[str] = TEXTS) -> None:
    nodes = [
        TextNode(
            text=text, id_=f"00000000-0000-0000-0000-{number:012}", metadata={"odd": number % 2}
        )
        for number, text in enumerate(texts)
    ]
    for node in nodes:
        node.excluded_embed_metadata_keys = ["odd"]
    store.add(UnifiedTextEmbedding(embedder)(nodes))


def opened(client: Client, name: str, colbert: Any, embedder: FakeEmbedder) -> FingerprintedStore:
    store = build_vector_store(embedder, name, client=client, colbert=colbert)
    fill(store, embedder)
    return store


def answers(retriever: UnifiedHybridRetriever) -> list[list[tuple[str, float]]]:
    found = []
    for question in QUESTIONS:
        found.append([(hit.node_id, hit.get_score()) for hit in retriever.retrieve(question)])
    return found


@pytest.mark.parametrize("mode", ["hybrid", "dense", "sparse"])
def test_unpooled_it_is_what_encoding_the_candidates_gives(client: Client, mode: Any) -> None:
    embedder = FakeEmbedder()
    options: dict[str, Any] = {"mode": mode, "rerank": "colbert", "similarity_top_k": 8}
    stored = opened(client, "stored", "full", embedder)
    plain = opened(client, "plain", None, embedder)
    by_points = answers(UnifiedHybridRetriever(stored, embedder, **options))
    by_texts = answers(UnifiedHybridRetriever(plain, embedder, **options))
    for ours, theirs in zip(by_points, by_texts, strict=True):
        assert [node_id for node_id, _ in ours] == [node_id for node_id, _ in theirs]
        np.testing.assert_allclose(
            [score for _, score in ours], [score for _, score in theirs], atol=1e-5
        )


def test_pooled_scores_are_those_of_the_pooled_rows(client: Client) -> None:
    embedder = FakeEmbedder()
    way = StoredColbert(pool=2, quantisation=None)
    retriever = UnifiedHybridRetriever(
        opened(client, "docs", way, embedder), embedder, rerank="colbert"
    )
    for question in QUESTIONS:
        (rows,) = embedder.encode_query(question, colbert=True).colbert or []
        for hit in retriever.retrieve(question):
            (pooled,) = embedder.encode_pooled([hit.node.get_content()], 2)
            assert hit.score == pytest.approx(heads.colbert_score(rows, pooled), abs=1e-5)


def test_one_request_and_nothing_encoded_but_the_question(client: Client) -> None:
    embedder = FakeEmbedder(cache=None)
    store = opened(client, "docs", "pooled", embedder)
    retriever = UnifiedHybridRetriever(store, embedder, rerank="colbert", similarity_top_k=5)
    calls: list[str] = []
    inner = store.client
    original = inner.query_batch_points

    def count(name: str, requests: list[qm.QueryRequest], **options: Any) -> Any:
        calls.append(name)
        assert [request.using for request in requests] == [
            "text-dense",
            "text-sparse-new",
            "text-colbert",
        ]
        return original(name, requests, **options)

    inner.query_batch_points = count
    forwards = embedder.stats().forwards
    found = retriever.retrieve(QUESTIONS[0])
    assert calls == ["docs"]
    assert embedder.stats().forwards == forwards + 1
    assert len(found) == 5
    assert found == sorted(found, key=lambda hit: -(hit.score or 0))
    asyncio.run(retriever.aretrieve(QUESTIONS[1]))
    assert calls == ["docs", "docs"]


def test_async_gives_the_same(client: Client) -> None:
    embedder = FakeEmbedder()
    store = opened(client, "docs", "pooled", embedder)
    retriever = UnifiedHybridRetriever(store, embedder, rerank="colbert")
    for question in QUESTIONS[:5]:
        found = asyncio.run(retriever.aretrieve(question))
        expected = retriever.retrieve(question)
        assert [(hit.node_id, hit.score) for hit in found] == [
            (hit.node_id, hit.score) for hit in expected
        ]


def test_filters_hold_for_all_of_it(client: Client) -> None:
    embedder = FakeEmbedder()
    store = opened(client, "docs", "pooled", embedder)
    odd = MetadataFilters(filters=[ExactMatchFilter(key="odd", value=1)])
    retriever = UnifiedHybridRetriever(
        store, embedder, rerank="colbert", filters=odd, similarity_top_k=20
    )
    found = retriever.retrieve(QUESTIONS[0])
    assert len(found) == 20
    assert {hit.node.metadata["odd"] for hit in found} == {1}


def test_equal_texts_come_in_the_order_of_the_lists(client: Client) -> None:
    embedder = FakeEmbedder()
    store = build_vector_store(embedder, "docs", client=client, colbert="pooled")
    fill(store, embedder, ["alpha beta gamma"] * 12 + TEXTS[:20])
    retriever = UnifiedHybridRetriever(store, embedder, rerank="colbert", similarity_top_k=6)
    ids = [hit.node_id for hit in retriever.retrieve("alpha beta gamma")]
    assert ids == [f"00000000-0000-0000-0000-{number:012}" for number in range(6)]


def ranks(found: list[NodeWithScore]) -> dict[str, dict[str, int | None]]:
    """Return each hit's rank in each list, as its metadata tells it."""
    noted = {}
    for hit in found:
        places = hit.node.metadata["_retrieval"]
        noted[hit.node_id] = {name: place and place["rank"] for name, place in places.items()}
    return noted


def test_ranks_in_the_lists_are_told(client: Client) -> None:
    embedder = FakeEmbedder()
    store = opened(client, "docs", "pooled", embedder)
    options: dict[str, Any] = {"candidates": 20, "similarity_top_k": 20}
    plain = UnifiedHybridRetriever(store, embedder, **options)
    reranking = UnifiedHybridRetriever(store, embedder, rerank="colbert", **options)
    expected = ranks(plain.retrieve(QUESTIONS[2]))
    found = ranks(reranking.retrieve(QUESTIONS[2]))
    assert found == expected
    assert list(found) != list(expected)


# --- points without ---------------------------------------------------------------------------


def test_points_without_vectors_are_scored_by_their_texts(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    embedder = FakeEmbedder()
    store = opened(client, "docs", StoredColbert(pool=2, quantisation=None), embedder)
    whole = answers(UnifiedHybridRetriever(store, embedder, rerank="colbert"))
    some: list[Any] = [f"00000000-0000-0000-0000-{number:012}" for number in range(0, 60, 3)]
    client.delete_vectors("docs", ["text-colbert"], some)
    embedder.cache.clear()
    with caplog.at_level(logging.INFO, logger="unified_embeddings"):
        mixed = answers(UnifiedHybridRetriever(store, embedder, rerank="colbert"))
    for ours, theirs in zip(mixed, whole, strict=True):
        assert [node_id for node_id, _ in ours] == [node_id for node_id, _ in theirs]
        np.testing.assert_allclose(
            [score for _, score in ours], [score for _, score in theirs], atol=1e-5
        )
    messages = [record.getMessage() for record in caplog.records]
    assert any(message.endswith("add-vectors docs --colbert full --pool 2") for message in messages)


def test_vectors_added_later_are_found_by_a_new_retriever(client: Client) -> None:
    embedder = FakeEmbedder(cache=None)
    store = opened(client, "docs", None, embedder)
    before = answers(UnifiedHybridRetriever(store, embedder, rerank="colbert"))
    add_vectors(client, "docs", embedder, ["colbert"], colbert=FULL)
    retriever = UnifiedHybridRetriever(store, embedder, rerank="colbert")
    forwards = embedder.stats().forwards
    after = answers(retriever)
    assert embedder.stats().forwards == forwards + len(QUESTIONS)
    assert [[node_id for node_id, _ in found] for found in after] == [
        [node_id for node_id, _ in found] for found in before
    ]


# --- how long it takes ------------------------------------------------------------------------


class SlowEmbedder(FakeEmbedder):
    """Takes a while for each text, by a clock that the test turns."""

    def __init__(self, clock: Any) -> None:
        super().__init__()
        self._clock = clock

    def _run(self, texts: Any, role: Any, heads: Any) -> Any:
        for pair in super()._run(texts, role, heads):
            self._clock.now += 0.5
            yield pair


class Clock:
    """A clock that only moves when it is turned."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


def test_it_is_said_beforehand_how_long_encoding_takes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    monkeypatch.setattr("unified_embeddings.search.encoding_time.time", clock)
    encoder = CandidateEncoder(SlowEmbedder(clock))
    texts = [f"one two three {number}" for number in range(21)]
    with caplog.at_level(logging.INFO, logger="unified_embeddings"):
        rows = encoder.encode(texts, "my docs", None)
        encoder.encode([f"four five six {number}" for number in range(10)], "my docs", FULL)
    assert [len(each) for each in rows] == [5] * 21
    first, second = caplog.records
    # Six tokens in half a second; 20 texts are left.
    assert (first.levelname, second.levelname) == ("WARNING", "INFO")
    assert "encodes 20 texts of about 120 tokens" in first.getMessage()
    assert "takes about 10 s on this machine" in first.getMessage()
    assert first.getMessage().endswith("'my docs' --colbert pooled")
    assert "encodes 10 texts of about 60 tokens" in second.getMessage()
    assert "takes about 5 s" in second.getMessage()


def test_nothing_is_said_of_texts_in_the_cache(caplog: pytest.LogCaptureFixture) -> None:
    embedder = FakeEmbedder()
    embedder.encode_documents(TEXTS, colbert=True)
    with caplog.at_level(logging.INFO, logger="unified_embeddings"):
        CandidateEncoder(embedder).encode(TEXTS, "docs", None)
    assert not caplog.records
