"""The hybrid retriever over real local Qdrant, against brute force and fractions worked by hand."""

from __future__ import annotations

import asyncio
import copy
import itertools
import logging
import random
import threading
import uuid
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from llama_index.core.callbacks import (
    CallbackManager,
    CBEventType,
    LlamaDebugHandler,
    TokenCountingHandler,
)
from llama_index.core.callbacks.schema import EventPayload
from llama_index.core.chat_engine import CondensePlusContextChatEngine, ContextChatEngine
from llama_index.core.indices.query.query_transform import HyDEQueryTransform
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.instrumentation.events.embedding import (
    EmbeddingEndEvent,
    EmbeddingStartEvent,
    SparseEmbeddingEndEvent,
    SparseEmbeddingStartEvent,
)
from llama_index.core.instrumentation.events.retrieval import (
    RetrievalEndEvent,
    RetrievalStartEvent,
)
from llama_index.core.llms import MockLLM
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle, TextNode
from llama_index.core.vector_stores.types import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
)
from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import AsyncQdrantClient, QdrantClient, models
from qdrant_client.common.client_exceptions import ResourceExhaustedResponse
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from unified_embeddings.embedders import lazy
from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.embedders.bge_m3 import BGE_M3_Embedder
from unified_embeddings.embedders.cached import Vectors
from unified_embeddings.embedders.fake import FakeEmbedder
from unified_embeddings.errors import (
    FingerprintMismatchError,
    InputError,
    StoreError,
    UnifiedEmbeddingsError,
)
from unified_embeddings.llama.payloads import own_metadata
from unified_embeddings.llama.vector_store import build_vector_store
from unified_embeddings.models.fusion import Fusion
from unified_embeddings.retrievers.hybrid import UnifiedHybridRetriever
from unified_embeddings.stores.edge.client import EdgeQdrantClient
from unified_embeddings.types import HeadName, SparseVector

WORDS = ["quick", "brown", "fox", "jumps", "over", "lazy", "dog", "band", "plays", "documents;",
         "ranking", "orders", "fusion", "merges", "two", "rankings", "into", "finds"]  # fmt: skip
CORPUS = [
    "quick brown fox",
    "lazy dog jumps over the fox",
    "band plays on and on",
    "fusion merges two rankings",
    "ranking orders documents;",
    "Retrieval finds the brown band",
    "two dog two fox",
    "while the quick dog plays",
]
_draw = random.Random(1)
POOL = sorted({" ".join(_draw.choices(WORDS, k=1 + i % 5)) for i in range(90)})
"""Some 80 texts of one to five words, for corpora drawn from them."""
QUERIES = sorted({" ".join(_draw.sample(WORDS, k=2 + i % 2)) for i in range(60)})
QUERY = "brown fox orders two"
PLAIN: dict[str, Any] = {"weights": (1, 1)}
HYBRIDS: dict[str, dict[str, Any]] = {
    "auto": {},
    "equal": PLAIN,
    "weighted": {"weights": (2.0, 1.0)},
    "by score": {"fusion": Fusion((0.6, 0.4), method="dbsf")},
    "by z-scores": {"fusion": Fusion((0.6, 0.4), method="z")},
    "dense": {"mode": "dense"},
    "sparse": {"mode": "sparse"},
    "rerank": {"rerank": "colbert"},
    "weighted rerank": {"rerank": "colbert", "weights": (1.0, 2.0)},
}
ways = pytest.mark.parametrize("options", HYBRIDS.values(), ids=HYBRIDS.keys())
sync_and_async = pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])


# --- what the tests stand on ------------------------------------------------------------------


class FakeInContext(FakeEmbedder):
    """A FakeEmbedder whose words have other vectors in another text, as a model's have.

    Texts that share a word with the query would otherwise all have the same score.
    """

    def _embed(self, words: list[str], heads: frozenset[HeadName]) -> Vectors:
        vectors = super()._embed(words, heads)
        for head, vector in vectors.items():
            context = np.random.default_rng(zlib.crc32(" ".join([head, *words]).encode()))
            if isinstance(vector, SparseVector):
                factors = context.uniform(0.8, 1.2, len(vector)).astype(np.float32)
                vectors[head] = SparseVector(vector.indices, vector.values * factors)
            else:
                moved = vector + context.normal(scale=0.05, size=vector.shape)
                lengths = np.linalg.norm(moved, axis=-1, keepdims=True)
                vectors[head] = (moved / lengths).astype(np.float32)
        return vectors


def new_embedder(name: str = "one") -> FakeEmbedder:
    return FakeInContext(dimension=32, model_name=name)


@pytest.fixture(scope="module")
def embedder() -> TextEmbedder:
    embedder = new_embedder()
    assert is_clear(embedder, CORPUS, QUERY)
    return embedder


@pytest.fixture(scope="module")
def another() -> TextEmbedder:
    """An embedder of the same dimension, but of another model."""
    return new_embedder("two")


@pytest.fixture
def client() -> Iterator[QdrantClient]:
    client = QdrantClient(":memory:")
    yield client
    client.close()


@pytest.fixture
def store(embedder: TextEmbedder, client: QdrantClient) -> QdrantVectorStore:
    """The eight texts of CORPUS."""
    return filled(embedder, client, CORPUS)


def assert_same(nodes: Sequence[NodeWithScore], others: Sequence[NodeWithScore]) -> None:
    """Assert the same nodes in the same order. Local Qdrant's cosines vary in the seventh digit."""
    assert [found_id for found_id, _ in shown(nodes)] == [found_id for found_id, _ in shown(others)]
    assert [s for _, s in shown(nodes)] == pytest.approx([s for _, s in shown(others)], abs=1e-6)


def node_id(number: int) -> str:
    return str(uuid.UUID(int=number + 1))


def filled(
    embedder: TextEmbedder,
    client: QdrantClient | EdgeQdrantClient,
    texts: Sequence[str],
    *,
    metadata: Sequence[dict[str, Any]] | None = None,
    name: str = "docs",
) -> QdrantVectorStore:
    """Return a store of ours that holds the texts. Their metadata is stored, but not embedded."""
    store = build_vector_store(embedder, name, client=client)
    store.add(embedded(embedder, texts, metadata))
    return store


def embedded(
    embedder: TextEmbedder,
    texts: Sequence[str],
    metadata: Sequence[dict[str, Any]] | None = None,
) -> list[TextNode]:
    dense = embedder.encode_documents(texts).dense
    assert dense is not None
    return [
        TextNode(
            id_=node_id(i),
            text=text,
            metadata=fields,
            excluded_embed_metadata_keys=list(fields),
            embedding=vector.tolist(),
        )
        for i, (text, fields, vector) in enumerate(
            zip(texts, metadata or [{} for _ in texts], dense, strict=True)
        )
    ]


def stock_store(
    embedder: TextEmbedder, name: str, client: Any = None, **options: Any
) -> QdrantVectorStore:
    """Return LlamaIndex's own store with this embedder's sparse vectors."""

    def sparse(texts: list[str]) -> tuple[list[list[int]], list[list[float]]]:
        vectors = embedder.encode_documents(texts, dense=False).sparse
        assert vectors is not None
        return [v.indices.tolist() for v in vectors], [v.values.tolist() for v in vectors]

    return QdrantVectorStore(
        name, client=client, enable_hybrid=True, sparse_doc_fn=sparse, sparse_query_fn=sparse,
        **options,
    )  # fmt: skip


async def answer(
    retriever: UnifiedHybridRetriever, query: Any, *, is_async: bool
) -> list[NodeWithScore]:
    return await retriever.aretrieve(query) if is_async else retriever.retrieve(query)


def shown(nodes: Sequence[NodeWithScore]) -> list[tuple[str, float]]:
    return [(scored.node.node_id, float(scored.score or 0.0)) for scored in nodes]


# --- the oracle: every document scored, in double precision, without Qdrant -------------------


def dense_scores(
    embedder: TextEmbedder, texts: Sequence[str], query: np.ndarray | str
) -> dict[str, float]:
    """Return the cosine of the query with each text."""
    documents = embedder.encode_documents(texts, sparse=False).dense
    if isinstance(query, str):
        rows = embedder.encode_query(query, sparse=False).dense
        assert rows is not None
        query = rows[0]
    assert documents is not None
    wide, narrow = documents.astype(np.float64), np.asarray(query, dtype=np.float64)
    cosines = wide @ narrow / np.linalg.norm(wide, axis=1) / np.linalg.norm(narrow)
    return {node_id(i): float(cosine) for i, cosine in enumerate(cosines)}


def sparse_scores(embedder: TextEmbedder, texts: Sequence[str], query: str) -> dict[str, float]:
    """Return the dot products over common tokens, without texts that share no token."""
    documents = embedder.encode_documents(texts, dense=False).sparse
    (weights,) = embedder.encode_query(query, dense=False).sparse or []
    scores: dict[str, float] = {}
    for i, document in enumerate(documents or []):
        common = [token for token in weights if token in document]
        if common:
            scores[node_id(i)] = sum(weights[token] * document[token] for token in common)
    return scores


def ranked(scores: dict[str, float], limit: int) -> list[str]:
    return sorted(scores, key=lambda item: -scores[item])[:limit]


def has_ties(scores: dict[str, float]) -> bool:
    """Tell whether two scores are so close that single precision may swap them."""
    values = sorted(scores.values())
    return any(b - a < 1e-5 for a, b in itertools.pairwise(values))


def is_clear(embedder: TextEmbedder, texts: Sequence[str], query: str) -> bool:
    """Tell whether both rankings are the same however scores are rounded."""
    return not has_ties(dense_scores(embedder, texts, query)) and not has_ties(
        sparse_scores(embedder, texts, query)
    )


def fused(
    dense: dict[str, float],
    sparse: dict[str, float],
    *,
    candidates: int,
    k: int = 60,
    weights: tuple[float, float] = (1.0, 1.0),
) -> dict[str, float]:
    """Return the scores of ADR 4: Σ weight / (k + rank + 1), rank from 0."""
    scores: dict[str, float] = {}
    for ranking_scores, weight in zip((dense, sparse), weights, strict=True):
        for rank, item in enumerate(ranked(ranking_scores, candidates)):
            if weight:
                scores[item] = scores.get(item, 0.0) + weight / (k + rank + 1)
    return scores


def assert_best(
    nodes: Sequence[NodeWithScore], expected: dict[str, float], top_k: int, tolerance: float = 1e-6
) -> None:
    """Assert that the nodes are the best of `expected`, best first, ties in any order."""
    got = shown(nodes)
    best = sorted(expected.values(), reverse=True)[:top_k]
    assert [score for _, score in got] == pytest.approx(best, abs=tolerance, rel=0)
    assert len({found_id for found_id, _ in got}) == len(got)
    assert dict(got) == pytest.approx(
        {found_id: expected[found_id] for found_id, _ in got}, abs=tolerance, rel=0
    )


texts_from_pool = st.lists(st.sampled_from(POOL), min_size=1, max_size=12, unique=True)
queries_from_pool = st.sampled_from(QUERIES)
many = settings(
    max_examples=30,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


# --- scores -----------------------------------------------------------------------------------


class TestScoresByHand:
    """The other text shares no token with the query: it is in the dense list only, second."""

    @pytest.mark.parametrize(
        ("options", "top", "second"),
        [
            ({"weights": (1, 1)}, 2 / 61, 1 / 62),
            ({"weights": "auto"}, (1 + 0.5) / 61, 1 / 62),
            ({"weights": "auto", "candidates": "auto", "rrf_k": "auto"}, (1 + 0.5) / 61, 1 / 62),
            ({}, (1 + 0.5) / 61, 1 / 62),
            ({"weights": (3, 3)}, 6 / 61, 3 / 62),
            ({"weights": (2.0, 1.0)}, 3 / 61, 2 / 62),
            ({"weights": (1.0, 2.0)}, 3 / 61, 1 / 62),
            ({"weights": (1.0, 0.0)}, 1 / 61, 1 / 62),
            ({"weights": (0.0, 1.0)}, 1 / 61, None),
            ({"rrf_k": 0}, 1.5, 1 / 2),
            ({"rrf_k": 0, "weights": (1, 1)}, 2 / 1, 1 / 2),
            ({"rrf_k": 0, "weights": (2.0, 1.0)}, 3 / 1, 2 / 2),
            ({"rrf_k": 1, "weights": (1, 1)}, 2 / 2, 1 / 3),
            ({"rrf_k": 9, "weights": (0.5, 0.5)}, 1 / 10, 0.5 / 11),
        ],
    )
    def test_two_texts(
        self,
        embedder: TextEmbedder,
        client: QdrantClient,
        options: dict[str, Any],
        top: float,
        second: float | None,
    ) -> None:
        store = filled(embedder, client, ["quick brown fox", "two rankings"])
        nodes = UnifiedHybridRetriever(store, embedder, **options).retrieve("quick brown fox")
        expected = [(node_id(0), top)] + ([] if second is None else [(node_id(1), second)])
        assert [found_id for found_id, _ in shown(nodes)] == [found_id for found_id, _ in expected]
        assert [score for _, score in shown(nodes)] == pytest.approx(
            [score for _, score in expected], abs=1e-6, rel=0
        )

    def test_one_text_tops_both_lists(self, embedder: TextEmbedder, client: QdrantClient) -> None:
        store = filled(embedder, client, ["lazy dog jumps"])
        nodes = UnifiedHybridRetriever(store, embedder, **PLAIN).retrieve("lazy fox")
        assert shown(nodes) == [(node_id(0), pytest.approx(2 / 61, abs=1e-6))]

    @pytest.mark.parametrize("weights", [(1.0, 1.0), (2.0, 1.0)])
    def test_equal_texts_share_the_first_two_ranks(
        self, embedder: TextEmbedder, client: QdrantClient, weights: tuple[float, float]
    ) -> None:
        store = filled(embedder, client, ["quick fox", "quick fox", "two rankings"])
        nodes = UnifiedHybridRetriever(store, embedder, weights=weights).retrieve("quick fox")
        assert {found_id for found_id, _ in shown(nodes)[:2]} == {node_id(0), node_id(1)}
        total = sum(score for _, score in shown(nodes)[:2])
        assert total == pytest.approx(sum(weights) * (1 / 61 + 1 / 62), abs=1e-6)
        assert shown(nodes)[2] == (node_id(2), pytest.approx(weights[0] / 63, abs=1e-6))

    def test_a_query_without_sparse_weights_falls_back_on_the_dense_list(
        self, store: QdrantVectorStore, embedder: TextEmbedder
    ) -> None:
        only_special = "?!"  # no word
        (weights,) = embedder.encode_query(only_special, dense=False).sparse or []
        assert not len(weights)
        for options in ({}, PLAIN, {"weights": (1.0, 2.0)}):
            nodes = UnifiedHybridRetriever(store, embedder, **options).retrieve(only_special)
            assert [score for _, score in shown(nodes)] == pytest.approx(
                [1 / (61 + rank) for rank in range(len(CORPUS))], abs=1e-6
            )
        assert UnifiedHybridRetriever(store, embedder, mode="sparse").retrieve(only_special) == []


class TestScoresByBruteForce:
    @many
    @given(
        texts=texts_from_pool,
        query=queries_from_pool,
        weights=st.sampled_from(
            [(1.0, 1.0), (3.0, 3.0), (2.0, 1.0), (1.0, 2.0), (0.0, 1.0), (1.0, 0.0), (0.1, 0.7)]
        ),
        k=st.sampled_from([0, 1, 2, 60, 1000]),
        top_k=st.integers(1, 14),
        candidates=st.integers(1, 14),
    )
    def test_hybrid(
        self,
        embedder: TextEmbedder,
        texts: list[str],
        query: str,
        weights: tuple[float, float],
        k: int,
        top_k: int,
        candidates: int,
    ) -> None:
        dense = dense_scores(embedder, texts, query)
        sparse = sparse_scores(embedder, texts, query)
        assume(not has_ties(dense) and not has_ties(sparse))
        nodes = UnifiedHybridRetriever(
            filled(embedder, QdrantClient(":memory:"), texts),
            embedder,
            similarity_top_k=top_k,
            candidates=candidates,
            rrf_k=k,
            weights=weights,
        ).retrieve(query)
        expected = fused(dense, sparse, candidates=max(candidates, top_k), k=k, weights=weights)
        assert_best(nodes, expected, top_k)

    @many
    @given(texts=texts_from_pool, query=queries_from_pool, top_k=st.integers(1, 14))
    def test_dense_mode_scores_by_cosine_and_sparse_mode_by_dot_product(
        self, embedder: TextEmbedder, texts: list[str], query: str, top_k: int
    ) -> None:
        store = filled(embedder, QdrantClient(":memory:"), texts)
        for mode, expected in (
            ("dense", dense_scores(embedder, texts, query)),
            ("sparse", sparse_scores(embedder, texts, query)),
        ):
            nodes = UnifiedHybridRetriever(
                store, embedder, mode=mode, similarity_top_k=top_k
            ).retrieve(query)
            assert_best(nodes, expected, top_k, tolerance=1e-4)

    @many
    @given(
        texts=texts_from_pool,
        query=queries_from_pool,
        weights=st.sampled_from([(1.0, 1.0), (2.0, 1.0)]),
        candidates=st.integers(1, 8),
    )
    def test_reranking_orders_the_best_fused_candidates_by_colbert(
        self,
        embedder: TextEmbedder,
        texts: list[str],
        query: str,
        weights: tuple[float, float],
        candidates: int,
    ) -> None:
        dense = dense_scores(embedder, texts, query)
        sparse = sparse_scores(embedder, texts, query)
        assume(not has_ties(dense) and not has_ties(sparse))
        top_k = min(3, candidates)
        first_stage = fused(dense, sparse, candidates=candidates, weights=weights)
        ordered = sorted(first_stage.values(), reverse=True)
        cut = ordered[candidates - 1 : candidates + 1]
        assume(len(cut) < 2 or cut[0] - cut[1] > 1e-9)  # else either may be the last candidate
        kept = ranked(first_stage, candidates)
        nodes = UnifiedHybridRetriever(
            filled(embedder, QdrantClient(":memory:"), texts),
            embedder,
            similarity_top_k=top_k,
            candidates=candidates,
            weights=weights,
            rerank="colbert",
        ).retrieve(query)
        scores = {
            node_id(i): late_interaction(embedder, query, text)
            for i, text in enumerate(texts)
            if node_id(i) in kept
        }
        assert_best(nodes, scores, top_k, tolerance=1e-5)

    def test_reranking_scores_the_text_that_was_embedded_metadata_included(
        self, embedder: TextEmbedder, client: QdrantClient
    ) -> None:
        store = build_vector_store(embedder, "docs", client=client)
        node = TextNode(text="lazy dog", metadata={"fox": "quick"}, id_=node_id(0))
        text = node.get_content(MetadataMode.EMBED)
        assert "fox" in text
        dense = embedder.encode_documents([text]).dense
        assert dense is not None
        node.embedding = dense[0].tolist()
        store.add([node])
        (found,) = UnifiedHybridRetriever(store, embedder, rerank="colbert").retrieve("quick fox")
        assert found.score == pytest.approx(late_interaction(embedder, "quick fox", text), abs=1e-5)


def late_interaction(embedder: TextEmbedder, query: str, text: str) -> float:
    """Return the mean, over the query's rows, of the best dot product with a row of the text."""
    (question,) = (
        embedder.encode_query(query, dense=False, sparse=False, colbert=True).colbert or []
    )
    (rows,) = (
        embedder.encode_documents([text], dense=False, sparse=False, colbert=True).colbert or []
    )
    best = [max(float(np.dot(q, row)) for row in rows) for q in question]
    return sum(best) / len(best)


class TestHowManyNodes:
    def test_ten_by_default(self, embedder: TextEmbedder, client: QdrantClient) -> None:
        texts = [f"{a} {b}" for a, b in itertools.islice(itertools.combinations(WORDS, 2), 30)]
        nodes = UnifiedHybridRetriever(filled(embedder, client, texts), embedder).retrieve(QUERY)
        assert len(nodes) == 10

    @ways
    def test_more_asked_for_than_candidates_fetches_as_many_as_asked_for(
        self, embedder: TextEmbedder, client: QdrantClient, options: dict[str, Any]
    ) -> None:
        texts = [f"fox {a} {b}" for a, b in itertools.islice(itertools.combinations(WORDS, 2), 30)]
        assert len(sparse_scores(embedder, texts, "fox")) == 30
        nodes = UnifiedHybridRetriever(
            filled(embedder, client, texts),
            embedder,
            similarity_top_k=25,
            candidates=5,
            **options,
        ).retrieve("fox")
        assert len(nodes) == 25

    @ways
    def test_more_asked_for_than_there_are_gives_all_that_match(
        self, store: QdrantVectorStore, embedder: TextEmbedder, options: dict[str, Any]
    ) -> None:
        nodes = UnifiedHybridRetriever(store, embedder, similarity_top_k=100, **options).retrieve(
            QUERY
        )
        sparse = sparse_scores(embedder, CORPUS, QUERY)
        assert len(nodes) == (len(sparse) if options.get("mode") == "sparse" else len(CORPUS))

    @ways
    @sync_and_async
    async def test_an_empty_collection_gives_none(
        self,
        embedder: TextEmbedder,
        client: QdrantClient,
        options: dict[str, Any],
        is_async: bool,
    ) -> None:
        store = build_vector_store(embedder, "empty", client=client)
        retriever = UnifiedHybridRetriever(store, embedder, **options)
        assert await answer(retriever, QUERY, is_async=is_async) == []


class TestNodes:
    @ways
    def test_text_metadata_and_source_come_back(
        self, embedder: TextEmbedder, client: QdrantClient, options: dict[str, Any]
    ) -> None:
        store = filled(
            embedder, client, ["quick brown fox"], metadata=[{"page": 7, "tags": ["a", "b"]}]
        )
        (found,) = UnifiedHybridRetriever(store, embedder, **options).retrieve("brown fox")
        assert found.node.get_content(MetadataMode.NONE) == "quick brown fox"
        assert own_metadata(found.node) == {"page": 7, "tags": ["a", "b"]}
        assert found.node.node_id == node_id(0)

    def test_points_of_other_software_are_read_by_their_text(
        self, embedder: TextEmbedder, client: QdrantClient, store: QdrantVectorStore
    ) -> None:
        dense = embedder.encode_documents(["quick dog"]).dense
        assert dense is not None
        client.upsert(
            "docs",
            [
                models.PointStruct(
                    id=7, vector={"text-dense": dense[0].tolist()}, payload={"text": "quick dog"}
                )
            ],
        )
        nodes = UnifiedHybridRetriever(store, embedder, mode="dense").retrieve("quick dog")
        assert nodes[0].node.get_content() == "quick dog"
        assert nodes[0].score == pytest.approx(1.0, abs=1e-5)

    @pytest.mark.parametrize("payload", [None, {"title": "no text here"}])
    @sync_and_async
    async def test_points_without_any_text_are_a_store_error_not_a_traceback_of_pydantic(
        self,
        embedder: TextEmbedder,
        client: QdrantClient,
        store: QdrantVectorStore,
        payload: dict[str, Any] | None,
        is_async: bool,
    ) -> None:
        point = models.PointStruct(id=7, vector={"text-dense": [1.0] * 32}, payload=payload)
        client.upsert("docs", [point])
        retriever = UnifiedHybridRetriever(store, embedder)
        with pytest.raises(StoreError, match="docs"):
            await answer(retriever, QUERY, is_async=is_async)


# --- what a query costs -----------------------------------------------------------------------


@pytest.fixture
def calls(client: QdrantClient, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each public method of the client has been called."""
    counted: Counter[str] = Counter()

    def counting(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            counted[name] += 1
            return method(*args, **kwargs)

        return call

    for name in dir(QdrantClient):
        if not name.startswith("_") and callable(getattr(QdrantClient, name)):
            monkeypatch.setattr(client, name, counting(name, getattr(client, name)))
    return counted


class TestCost:
    @ways
    @sync_and_async
    async def test_a_query_is_one_call_to_qdrant(
        self,
        store: QdrantVectorStore,
        embedder: TextEmbedder,
        calls: Counter[str],
        options: dict[str, Any],
        is_async: bool,
    ) -> None:
        retriever = UnifiedHybridRetriever(store, embedder, **options)
        calls.clear()
        assert await answer(retriever, QUERY, is_async=is_async)
        assert calls == {"query_batch_points": 1}
        assert await answer(retriever, "lazy dog", is_async=is_async)
        assert calls == {"query_batch_points": 2}

    @sync_and_async
    async def test_a_query_with_filters_is_one_call_too(
        self,
        store: QdrantVectorStore,
        embedder: TextEmbedder,
        calls: Counter[str],
        is_async: bool,
    ) -> None:
        not_first = MetadataFilter(key="page", value=1, operator=FilterOperator.NE)
        retriever = UnifiedHybridRetriever(
            store, embedder, filters=MetadataFilters(filters=[not_first])
        )
        calls.clear()
        assert await answer(retriever, QUERY, is_async=is_async)
        assert calls == {"query_batch_points": 1}

    @sync_and_async
    async def test_a_collection_not_there_at_first_is_looked_at_once(
        self,
        embedder: TextEmbedder,
        client: QdrantClient,
        calls: Counter[str],
        is_async: bool,
    ) -> None:
        retriever = UnifiedHybridRetriever(stock_store(embedder, "docs", client), embedder)
        filled(embedder, client, CORPUS)
        calls.clear()
        for _ in range(3):
            await answer(retriever, QUERY, is_async=is_async)
        assert calls == {"get_aliases": 1, "get_collection": 1, "query_batch_points": 3}

    @pytest.mark.parametrize(
        "options",
        [{}, {"weights": (2.0, 1.0)}, {"mode": "dense"}, {"mode": "sparse"}],
        ids=["equal", "weighted", "dense", "sparse"],
    )
    @sync_and_async
    async def test_a_new_query_is_one_forward_pass_and_a_repeated_one_none(
        self, client: QdrantClient, options: dict[str, Any], is_async: bool
    ) -> None:
        embedder = new_embedder()
        retriever = UnifiedHybridRetriever(filled(embedder, client, CORPUS), embedder, **options)
        before = embedder.stats()
        first = await answer(retriever, QUERY, is_async=is_async)
        after_first = embedder.stats()
        again = await answer(retriever, QUERY, is_async=is_async)
        after_second = embedder.stats()
        assert after_first.forwards - before.forwards == 1
        assert after_first.tokenised - before.tokenised == 1
        assert after_second.forwards == after_first.forwards
        assert after_second.tokenised == after_first.tokenised
        assert_same(again, first)

    def test_reranking_runs_the_question_once(self, client: QdrantClient) -> None:
        embedder = new_embedder()
        store = filled(embedder, client, CORPUS)
        embedder.encode_documents(CORPUS, colbert=True)  # so that only the question is new
        retriever = UnifiedHybridRetriever(store, embedder, rerank="colbert")
        before = embedder.stats()
        retriever.retrieve(QUERY)
        after = embedder.stats()
        assert after.forwards - before.forwards == 1
        retriever.retrieve(QUERY)
        assert embedder.stats().forwards == after.forwards

    def test_making_a_retriever_runs_no_text(self, client: QdrantClient) -> None:
        embedder = new_embedder()
        UnifiedHybridRetriever(build_vector_store(embedder, "docs", client=client), embedder)
        assert embedder.stats().forwards == 0


class TestEmbeddedStore:
    @ways
    @sync_and_async
    async def test_it_answers_as_local_mode_does(
        self,
        store: QdrantVectorStore,
        embedder: TextEmbedder,
        tmp_path: Path,
        options: dict[str, Any],
        is_async: bool,
    ) -> None:
        expected = UnifiedHybridRetriever(store, embedder, **options).retrieve(QUERY)
        with EdgeQdrantClient(tmp_path / "store") as client:
            embedded_store = filled(embedder, client, CORPUS)
            retriever = UnifiedHybridRetriever(embedded_store, embedder, **options)
            nodes = await answer(retriever, QUERY, is_async=is_async)
        assert_best(nodes, dict(shown(expected)), len(expected), tolerance=1e-5)


# --- which collections are accepted -----------------------------------------------------------


class TestCollections:
    @sync_and_async
    async def test_a_missing_one_is_a_store_error_at_the_query(
        self, embedder: TextEmbedder, client: QdrantClient, is_async: bool
    ) -> None:
        retriever = UnifiedHybridRetriever(stock_store(embedder, "nowhere", client), embedder)
        with pytest.raises(StoreError, match="nowhere") as caught:
            await answer(retriever, QUERY, is_async=is_async)
        assert caught.value.collection == "nowhere"

    @sync_and_async
    async def test_one_made_after_the_retriever_works(
        self, embedder: TextEmbedder, client: QdrantClient, is_async: bool
    ) -> None:
        store = stock_store(embedder, "docs", client)
        retriever = UnifiedHybridRetriever(store, embedder, **PLAIN)
        filled(embedder, client, ["quick fox"])
        nodes = await answer(retriever, "quick fox", is_async=is_async)
        assert shown(nodes) == [(node_id(0), pytest.approx(2 / 61, abs=1e-6))]

    @sync_and_async
    async def test_one_deleted_after_the_retriever_was_made_is_a_store_error(
        self,
        store: QdrantVectorStore,
        embedder: TextEmbedder,
        client: QdrantClient,
        is_async: bool,
    ) -> None:
        retriever = UnifiedHybridRetriever(store, embedder)
        client.delete_collection("docs")
        with pytest.raises(StoreError, match="docs"):
            await answer(retriever, QUERY, is_async=is_async)

    def test_another_models_is_refused_when_the_retriever_is_made(
        self, store: QdrantVectorStore, another: TextEmbedder
    ) -> None:
        with pytest.raises(FingerprintMismatchError, match="migrate") as caught:
            UnifiedHybridRetriever(store, another)
        assert caught.value.collection == "docs"
        assert caught.value.expected == another.fingerprint

    @sync_and_async
    async def test_another_models_is_refused_at_the_query_if_it_came_later(
        self,
        embedder: TextEmbedder,
        another: TextEmbedder,
        client: QdrantClient,
        is_async: bool,
    ) -> None:
        retriever = UnifiedHybridRetriever(stock_store(another, "docs", client), another)
        filled(embedder, client, CORPUS)
        for _ in range(2):  # not only the first time
            with pytest.raises(FingerprintMismatchError) as caught:
                await answer(retriever, QUERY, is_async=is_async)
        assert caught.value.found == embedder.fingerprint

    @sync_and_async
    async def test_one_that_does_not_record_its_model_is_refused_unless_it_is_trusted(
        self, embedder: TextEmbedder, client: QdrantClient, is_async: bool
    ) -> None:
        store = stock_store(embedder, "theirs", client)
        store.add(embedded(embedder, CORPUS))
        with pytest.raises(StoreError, match=r"theirs.*does not record.*adopt='trust'"):
            UnifiedHybridRetriever(store, embedder)
        retriever = UnifiedHybridRetriever(store, embedder, adopt="trust", **PLAIN)
        expected = fused(
            dense_scores(embedder, CORPUS, QUERY),
            sparse_scores(embedder, CORPUS, QUERY),
            candidates=20,
        )
        assert_best(await answer(retriever, QUERY, is_async=is_async), expected, 10)

    @pytest.mark.parametrize("distance", list(models.Distance))
    def test_one_that_measures_distances_is_ordered_from_the_nearest(
        self, embedder: TextEmbedder, client: QdrantClient, distance: models.Distance
    ) -> None:
        size = embedder.dimension
        stock_store(
            embedder, "far", client, dense_config=models.VectorParams(size=size, distance=distance)
        ).add(embedded(embedder, CORPUS))
        store = stock_store(embedder, "far", client)
        retriever = UnifiedHybridRetriever(
            store, embedder, mode="dense", adopt="trust", similarity_top_k=3
        )
        text = CORPUS[1]
        assert retriever.retrieve(text)[0].text == text

    def test_what_a_store_was_opened_to_trust_a_retriever_over_it_trusts(
        self, embedder: TextEmbedder, client: QdrantClient
    ) -> None:
        stock_store(embedder, "theirs", client).add(embedded(embedder, CORPUS))
        with pytest.raises(StoreError, match="adopt='trust'"):
            build_vector_store(embedder, "theirs", client=client)
        store = build_vector_store(embedder, "theirs", client=client, adopt="trust")
        assert UnifiedHybridRetriever(store, embedder).retrieve(QUERY)

    def test_trust_is_for_the_unknown_only(
        self, store: QdrantVectorStore, another: TextEmbedder, client: QdrantClient
    ) -> None:
        with pytest.raises(FingerprintMismatchError):
            UnifiedHybridRetriever(store, another, adopt="trust")
        make_collection(client, "narrow", dense={"text-dense": 16}, sparse=["text-sparse-new"])
        with pytest.raises(StoreError, match=r"narrow.*16.*32"):
            build_vector_store(another, "narrow", client=client, adopt="trust")

    @pytest.mark.parametrize("adopt", ["Trust", "yes", True, ""])
    def test_trust_is_said_in_one_word(
        self, store: QdrantVectorStore, embedder: TextEmbedder, adopt: Any
    ) -> None:
        with pytest.raises(InputError, match="adopt must be 'trust' or None"):
            UnifiedHybridRetriever(store, embedder, adopt=adopt)
        with pytest.raises(InputError, match="adopt must be 'trust' or None"):
            build_vector_store(embedder, "new", client=QdrantClient(":memory:"), adopt=adopt)

    def test_ours_gives_no_warning(
        self,
        store: QdrantVectorStore,
        embedder: TextEmbedder,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        with caplog.at_level(logging.WARNING, logger="unified_embeddings"):
            UnifiedHybridRetriever(store, embedder).retrieve(QUERY)
        assert not [r for r in caplog.records if r.name.startswith("unified_embeddings")]

    @pytest.mark.parametrize("mode", ["hybrid", "dense"])
    def test_a_wrong_dimension_is_a_store_error_that_names_both(
        self, embedder: TextEmbedder, client: QdrantClient, mode: Any
    ) -> None:
        make_collection(client, "narrow", dense={"text-dense": 16}, sparse=["text-sparse-new"])
        with pytest.raises(StoreError, match=r"narrow.*16.*32"):
            UnifiedHybridRetriever(stock_store(embedder, "narrow", client), embedder, mode=mode)

    @pytest.mark.parametrize("mode", ["hybrid", "sparse"])
    def test_no_sparse_vectors_is_a_store_error_that_suggests_dense_mode(
        self, embedder: TextEmbedder, client: QdrantClient, mode: Any
    ) -> None:
        make_collection(client, "dense-only", dense={"text-dense": 32}, sparse=[])
        store = stock_store(embedder, "dense-only", client)
        with pytest.raises(StoreError, match=r"dense-only.*mode=.dense.*add-vectors dense-only"):
            UnifiedHybridRetriever(store, embedder, mode=mode, adopt="trust")

    def test_dense_mode_needs_no_sparse_vectors_and_reads_unnamed_ones(
        self, embedder: TextEmbedder, client: QdrantClient
    ) -> None:
        plain = QdrantVectorStore("plain", client=client)  # LlamaIndex's own, not hybrid
        plain.add(embedded(embedder, CORPUS))
        for store in (plain, QdrantVectorStore("plain", client=client)):
            nodes = trusting(store, embedder, mode="dense").retrieve(QUERY)
            assert_best(nodes, dense_scores(embedder, CORPUS, QUERY), 10, tolerance=1e-4)

    @sync_and_async
    async def test_unnamed_vectors_are_read_where_the_collection_came_later(
        self, embedder: TextEmbedder, client: QdrantClient, is_async: bool
    ) -> None:
        early = QdrantVectorStore("plain", client=client)  # finds no collection to look at
        retriever = trusting(early, embedder, mode="dense")
        QdrantVectorStore("plain", client=client).add(embedded(embedder, CORPUS))
        nodes = await answer(retriever, QUERY, is_async=is_async)
        assert_best(nodes, dense_scores(embedder, CORPUS, QUERY), 10, tolerance=1e-4)

    def test_sparse_mode_needs_no_dense_vectors(
        self, embedder: TextEmbedder, client: QdrantClient
    ) -> None:
        make_collection(client, "sparse-only", dense={}, sparse=["text-sparse-new"])
        store = stock_store(embedder, "sparse-only", client)
        assert trusting(store, embedder, mode="sparse").retrieve(QUERY) == []

    def test_vectors_of_other_names_are_found_under_the_stores_names(
        self, embedder: TextEmbedder, client: QdrantClient
    ) -> None:
        store = stock_store(
            embedder, "custom", client, dense_vector_name="meaning", sparse_vector_name="words"
        )
        store.add(embedded(embedder, CORPUS))
        expected = fused(
            dense_scores(embedder, CORPUS, QUERY),
            sparse_scores(embedder, CORPUS, QUERY),
            candidates=20,
        )
        assert_best(trusting(store, embedder).retrieve(QUERY), expected, 10)


def trusting(
    store: QdrantVectorStore, embedder: TextEmbedder, mode: Any = "hybrid"
) -> UnifiedHybridRetriever:
    """Return a retriever over a collection that other software made."""
    return UnifiedHybridRetriever(store, embedder, mode=mode, adopt="trust", **PLAIN)


def make_collection(
    client: QdrantClient, name: str, *, dense: dict[str, int], sparse: list[str]
) -> None:
    client.create_collection(
        name,
        vectors_config={
            vector: models.VectorParams(size=size, distance=models.Distance.COSINE)
            for vector, size in dense.items()
        },
        sparse_vectors_config={vector: models.SparseVectorParams() for vector in sparse},
    )


class TestAsyncClientOnly:
    """A store with an async client and no sync one, as in a server of one event loop."""

    async def test_aretrieve_works_and_retrieve_says_what_is_missing(
        self, embedder: TextEmbedder
    ) -> None:
        store = stock_store(embedder, "docs", aclient=AsyncQdrantClient(":memory:"))
        await store.async_add(embedded(embedder, CORPUS))
        retriever = UnifiedHybridRetriever(store, embedder, adopt="trust", **PLAIN)
        expected = fused(
            dense_scores(embedder, CORPUS, QUERY),
            sparse_scores(embedder, CORPUS, QUERY),
            candidates=20,
        )
        assert_best(await retriever.aretrieve(QUERY), expected, 10)
        with pytest.raises(StoreError, match="aretrieve"):
            retriever.retrieve(QUERY)

    async def test_another_models_collection_is_refused(
        self, embedder: TextEmbedder, another: TextEmbedder, client: QdrantClient
    ) -> None:
        ours = filled(embedder, client, CORPUS)
        store = stock_store(another, "docs", aclient=ours._aclient)
        with pytest.raises(FingerprintMismatchError):
            await UnifiedHybridRetriever(store, another).aretrieve(QUERY)

    async def test_unnamed_vectors_are_read(self, embedder: TextEmbedder) -> None:
        aclient = AsyncQdrantClient(":memory:")
        await QdrantVectorStore("plain", aclient=aclient).async_add(embedded(embedder, CORPUS))
        store = QdrantVectorStore("plain", aclient=aclient)  # has not looked at the collection yet
        nodes = await UnifiedHybridRetriever(
            store, embedder, mode="dense", adopt="trust"
        ).aretrieve(QUERY)
        assert_best(nodes, dense_scores(embedder, CORPUS, QUERY), 10, tolerance=1e-4)


# --- filters ----------------------------------------------------------------------------------

LIBRARY: list[dict[str, Any]] = [
    {"lang": "en", "year": 2019, "rating": 4.5, "draft": False, "title": "alpha beta"},
    {"lang": "en", "year": 2020, "rating": 3.0, "draft": True, "title": "beta gamma"},
    {"lang": "de", "year": 2021, "rating": 2.5, "draft": False, "title": "gamma delta"},
    {"lang": "de", "year": 2021, "rating": 4.5, "draft": True},
    {"lang": "fr", "year": 2022, "tags": []},
    {"lang": "fr", "tags": ["x"]},
]
Op = FilterOperator


def where(key: str, operator: FilterOperator, value: Any) -> MetadataFilter:
    return MetadataFilter(key=key, operator=operator, value=value)


def every(*filters: Any) -> MetadataFilters:
    return MetadataFilters(filters=list(filters), condition=FilterCondition.AND)


def some(*filters: Any) -> MetadataFilters:
    return MetadataFilters(filters=list(filters), condition=FilterCondition.OR)


def none_of(*filters: Any) -> MetadataFilters:
    return MetadataFilters(filters=list(filters), condition=FilterCondition.NOT)


def nested(depth: int) -> MetadataFilters:
    filters = every(where("lang", Op.EQ, "en"))
    for _ in range(depth):
        filters = none_of(filters)
    return filters


FILTERS: dict[str, tuple[MetadataFilters, set[int]]] = {
    "no filters": (every(), {0, 1, 2, 3, 4, 5}),
    "EQ str": (every(where("lang", Op.EQ, "en")), {0, 1}),
    "EQ int": (every(where("year", Op.EQ, 2021)), {2, 3}),
    "EQ float": (every(where("rating", Op.EQ, 4.5)), {0, 3}),
    # MetadataFilter itself rejects a bool. One built without validation is translated as it is.
    "EQ bool": (
        every(MetadataFilter.model_construct(key="draft", operator=Op.EQ, value=True)),
        {1, 3},
    ),
    "EQ nothing": (every(where("lang", Op.EQ, "it")), set()),
    "NE": (every(where("lang", Op.NE, "en")), {2, 3, 4, 5}),
    "NE float": (every(where("rating", Op.NE, 4.5)), {1, 2, 4, 5}),
    "NE int": (every(where("year", Op.NE, 2021)), {0, 1, 4, 5}),
    "NE of a list": (every(where("tags", Op.NE, "x")), {0, 1, 2, 3, 4}),
    "EQ int as a float": (every(where("year", Op.EQ, 2021.0)), {2, 3}),
    "EQ float as an int": (every(where("rating", Op.EQ, 3)), {1}),
    "EQ text is no number": (every(where("year", Op.EQ, "2021")), set()),
    "EQ a bool is no number": (every(where("draft", Op.EQ, 1)), set()),
    "GT": (every(where("year", Op.GT, 2020)), {2, 3, 4}),
    "GT float": (every(where("rating", Op.GT, 3.0)), {0, 3}),
    "GTE": (every(where("year", Op.GTE, 2020)), {1, 2, 3, 4}),
    "LT": (every(where("year", Op.LT, 2021)), {0, 1}),
    "LTE": (every(where("year", Op.LTE, 2021)), {0, 1, 2, 3}),
    "IN str": (every(where("lang", Op.IN, ["en", "fr"])), {0, 1, 4, 5}),
    "IN int": (every(where("year", Op.IN, [2019, 2022])), {0, 4}),
    "IN a list in the payload": (every(where("tags", Op.IN, ["x", "y"])), {5}),
    "IN none": (every(where("lang", Op.IN, [])), set()),
    "IN a text is one value": (every(where("lang", Op.IN, "en,fr")), set()),
    "IN a text": (every(where("lang", Op.IN, "en")), {0, 1}),
    "IN float": (every(where("rating", Op.IN, [4.5, 3])), {0, 1, 3}),
    "IN of several types": (
        every(MetadataFilter.model_construct(key="year", operator=Op.IN, value=["x", 2019, True])),
        {0},
    ),
    "ANY": (every(where("tags", Op.ANY, ["x", "y"])), {5}),
    "ALL": (every(where("tags", Op.ALL, ["x"])), {5}),
    "ALL of two": (every(where("tags", Op.ALL, ["x", "y"])), set()),
    "CONTAINS": (every(where("tags", Op.CONTAINS, "x")), {5}),
    "CONTAINS in OR": (every(some(where("tags", Op.CONTAINS, "x"))), {5}),
    "NIN str": (every(where("lang", Op.NIN, ["en", "fr"])), {2, 3}),
    "NIN int": (every(where("year", Op.NIN, [2021, 2022])), {0, 1, 5}),
    "NIN none": (every(where("lang", Op.NIN, [])), {0, 1, 2, 3, 4, 5}),
    "NIN a text": (every(where("lang", Op.NIN, "en")), {2, 3, 4, 5}),
    "TEXT_MATCH": (every(where("title", Op.TEXT_MATCH, "gamma")), {1, 2}),
    "TEXT_MATCH two words": (every(where("title", Op.TEXT_MATCH, "gamma beta")), {1}),
    "TEXT_MATCH_INSENSITIVE": (every(where("title", Op.TEXT_MATCH_INSENSITIVE, "GAMMA")), {1, 2}),
    "IS_EMPTY": (every(where("title", Op.IS_EMPTY, None)), {3, 4, 5}),
    "IS_EMPTY list": (every(where("tags", Op.IS_EMPTY, None)), {0, 1, 2, 3, 4}),
    "AND": (every(where("lang", Op.EQ, "de"), where("rating", Op.GT, 3.0)), {3}),
    "OR": (some(where("lang", Op.EQ, "en"), where("year", Op.EQ, 2022)), {0, 1, 4}),
    "NOT": (none_of(where("lang", Op.EQ, "en"), where("year", Op.EQ, 2021)), {4, 5}),
    "OR in AND": (
        every(
            some(where("lang", Op.EQ, "en"), where("lang", Op.EQ, "de")),
            where("year", Op.GTE, 2020),
        ),
        {1, 2, 3},
    ),
    "AND in OR": (
        some(
            every(where("lang", Op.EQ, "en"), where("year", Op.EQ, 2019)),
            where("lang", Op.EQ, "fr"),
        ),
        {0, 4, 5},
    ),
    "NOT in AND": (every(none_of(where("lang", Op.EQ, "en")), where("rating", Op.GT, 0)), {2, 3}),
    "AND in NOT in OR": (
        some(
            none_of(every(where("lang", Op.EQ, "de"), where("rating", Op.LT, 3.0))),
            where("title", Op.EQ, "gamma delta"),
        ),
        {0, 1, 2, 3, 4, 5},
    ),
    "none of no filters": (none_of(), {0, 1, 2, 3, 4, 5}),
}


class TestFilters:
    @pytest.fixture(scope="class")
    def library(self, embedder: TextEmbedder) -> QdrantVectorStore:
        texts = [f"fox {word}" for word in WORDS[: len(LIBRARY)]]
        assert len(sparse_scores(embedder, texts, "fox")) == len(texts)
        return filled(embedder, QdrantClient(":memory:"), texts, metadata=LIBRARY)

    @pytest.mark.parametrize(("filters", "expected"), FILTERS.values(), ids=FILTERS.keys())
    @ways
    def test_only_what_matches_comes_back_from_both_lists(
        self,
        library: QdrantVectorStore,
        embedder: TextEmbedder,
        filters: MetadataFilters,
        expected: set[int],
        options: dict[str, Any],
    ) -> None:
        retriever = UnifiedHybridRetriever(library, embedder, filters=filters, **options)
        nodes = retriever.retrieve("fox")
        assert {found_id for found_id, _ in shown(nodes)} == {node_id(i) for i in expected}

    def test_ranks_count_within_what_matches(
        self, library: QdrantVectorStore, embedder: TextEmbedder
    ) -> None:
        for i, fields in enumerate(LIBRARY[:3]):
            filters = every(where("title", Op.EQ, fields["title"]))
            retriever = UnifiedHybridRetriever(library, embedder, filters=filters, **PLAIN)
            nodes = retriever.retrieve("fox")
            assert shown(nodes) == [(node_id(i), pytest.approx(2 / 61, abs=1e-6))]

    @pytest.mark.parametrize(
        "filters",
        [
            some(),
            some(every(), where("lang", Op.EQ, "en")),
            every(where("tags", Op.ALL, [])),
            every(where("tags", Op.EQ, ["x"])),
            every(where("tags", Op.CONTAINS, ["x"])),
            every(where("tags", Op.IS_EMPTY, "x")),
            every(where("year", Op.EQ, 2**63)),
            every(where("year", Op.GT, float("inf"))),
            every(where("rating", Op.EQ, float("nan"))),
            every(where("title", Op.TEXT_MATCH, "?!")),
            every(where("title", Op.EQ, "\ud800")),
            every(where('a "title"', Op.EQ, "x")),
            every(where("C:\\title", Op.EQ, "x")),
            every(where("\ud800", Op.EQ, "x")),
            nested(40),
            MetadataFilters(filters=[where("lang", Op.EQ, "en")], condition=None),
            every(MetadataFilters(filters=[where("lang", Op.EQ, "en")], condition=None)),
            every(where("year", Op.IN, 2021)),
            every(where("year", Op.NIN, 2021)),
            every(none_of(where("year", Op.IN, 20.5))),
            every(where("year", Op.IN, None)),
            every(MetadataFilter.model_construct(key="a", operator=Op.IN, value=[1, None])),
            every(MetadataFilter.model_construct(key="a", operator=Op.EQ, value={"b": 1})),
            every(MetadataFilter.model_construct(key=7, operator=Op.EQ, value=1)),
            every(MetadataFilter.model_construct(key="year", operator=Op.GT, value=True)),
            every(where("year", Op.GT, "late")),
            every(where("year", Op.LTE, "late")),
            every(where("year", Op.EQ, None)),
            every(where("title", Op.TEXT_MATCH, 3)),
            # Without a bound, Qdrant would read the condition as "is any number".
            every(where("year", Op.GT, None)),
            every(where("year", Op.GTE, None)),
            every(where("year", Op.LT, None)),
            every(where("year", Op.LTE, None)),
            {"lang": "en"},
            [where("lang", Op.EQ, "en")],
            "lang == 'en'",
        ],
        ids=str,
    )
    def test_what_cannot_be_translated_is_an_input_error_when_the_retriever_is_made(
        self, library: QdrantVectorStore, embedder: TextEmbedder, filters: Any
    ) -> None:
        with pytest.raises(InputError):
            UnifiedHybridRetriever(library, embedder, filters=filters)


# --- options and queries that cannot be used ----------------------------------------------------


class TestInvalidOptions:
    @pytest.mark.parametrize(
        "option",
        [
            *({"similarity_top_k": bad} for bad in (0, -1, True, 1.5, "10", None)),
            *({"candidates": bad} for bad in (0, -1, True, 1.5, "20", None)),
            *({"rrf_k": bad} for bad in (-1, True, 1.5, "60", None)),
            *(
                {"weights": bad}
                for bad in (
                    (),
                    (1.0,),
                    (1.0, 1.0, 1.0, 1.0),
                    (0.0, 0.0),
                    (-1.0, 1.0),
                    (1.0, -1.0),
                    (float("nan"), 1.0),
                    (float("inf"), 1.0),
                    ("1", "2"),
                    (None, 1.0),
                    "ab",
                    "Auto",
                    1.0,
                    None,
                )
            ),
            *({"fusion": bad} for bad in ("dbsf", "rrf", "", None, 1, {"weights": (1, 1)})),
            *({"mode": bad} for bad in ("HYBRID", "", None, "colbert", [])),
            *({"rerank": bad} for bad in ("ColBERT", True, False, "", [])),
        ],
        ids=str,
    )
    def test_is_an_input_error_that_names_the_option(
        self, store: QdrantVectorStore, embedder: TextEmbedder, option: dict[str, Any]
    ) -> None:
        (name,) = option
        with pytest.raises(InputError, match=name.removeprefix("similarity_")):
            UnifiedHybridRetriever(store, embedder, **option)

    def test_a_list_of_weights_is_as_good_as_a_tuple(
        self, store: QdrantVectorStore, embedder: TextEmbedder
    ) -> None:
        of_list = UnifiedHybridRetriever(store, embedder, weights=[2, 1])  # type: ignore[arg-type]
        of_tuple = UnifiedHybridRetriever(store, embedder, weights=(2.0, 1.0))
        assert shown(of_list.retrieve(QUERY)) == shown(of_tuple.retrieve(QUERY))

    def test_numpys_numbers_are_as_good_as_pythons(
        self, store: QdrantVectorStore, embedder: TextEmbedder
    ) -> None:
        of_numpy = UnifiedHybridRetriever(
            store,
            embedder,
            similarity_top_k=np.int64(5),
            candidates=np.uint8(7),
            rrf_k=np.int32(9),
            weights=np.array([1, 0.5], dtype=np.float32),  # type: ignore[arg-type]
        )
        of_python = UnifiedHybridRetriever(
            store, embedder, similarity_top_k=5, candidates=7, rrf_k=9, weights=(1, 0.5)
        )
        assert shown(of_numpy.retrieve(QUERY)) == shown(of_python.retrieve(QUERY))

    @pytest.mark.parametrize(
        ("option", "replacement"),
        [
            ("sparse_top_k", "candidates="),
            ("alpha", "weights="),
            ("vector_store_query_mode", "mode="),
            ("similarity_topk", "similarity_top_k="),
        ],
    )
    def test_an_option_of_another_retriever_says_what_replaces_it(
        self, store: QdrantVectorStore, embedder: TextEmbedder, option: str, replacement: str
    ) -> None:
        with pytest.raises(InputError, match=f"{option}=.*{replacement}"):
            UnifiedHybridRetriever(store, embedder, **{option: 5})  # type: ignore[arg-type]

    def test_another_kind_of_store_is_an_input_error(self, embedder: TextEmbedder) -> None:
        with pytest.raises(InputError, match="QdrantVectorStore"):
            UnifiedHybridRetriever(object(), embedder)  # type: ignore[arg-type]


class TestInvalidQueries:
    @ways
    @sync_and_async
    @pytest.mark.parametrize(
        "query",
        ["", "  \n\t", "fox \ud800", QueryBundle(query_str=None), QueryBundle(query_str=7)],  # type: ignore[arg-type]
        ids=["empty", "blank", "lone surrogate", "None", "a number"],
    )
    async def test_is_an_input_error(
        self,
        store: QdrantVectorStore,
        embedder: TextEmbedder,
        options: dict[str, Any],
        query: Any,
        is_async: bool,
    ) -> None:
        retriever = UnifiedHybridRetriever(store, embedder, **options)
        with pytest.raises(InputError):
            await answer(retriever, query, is_async=is_async)

    @sync_and_async
    async def test_none_itself_is_a_value_error(
        self, store: QdrantVectorStore, embedder: TextEmbedder, is_async: bool
    ) -> None:
        # LlamaIndex's own event rejects it before the retriever sees it, also with a ValueError.
        with pytest.raises(ValueError, match="QueryBundle"):
            await answer(UnifiedHybridRetriever(store, embedder), None, is_async=is_async)

    @pytest.mark.parametrize("bad", [["fox", "\ud800"], ["fox", None]])
    def test_a_bad_string_to_embed_instead_is_an_input_error_with_its_place(
        self, store: QdrantVectorStore, embedder: TextEmbedder, bad: list[Any]
    ) -> None:
        bundle = QueryBundle("fox", custom_embedding_strs=bad)
        with pytest.raises(InputError) as caught:
            UnifiedHybridRetriever(store, embedder).retrieve(bundle)
        assert caught.value.index == 1

    @pytest.mark.filterwarnings("error::RuntimeWarning")
    @pytest.mark.parametrize(
        "vector",
        [[], [1.0] * 31, [float("nan")] * 32, ["a"] * 32, {"a": 1.0}],
        ids=["empty", "short", "nan", "words", "a dict"],
    )
    def test_a_vector_of_the_bundles_own_that_does_not_fit_is_our_error(
        self, store: QdrantVectorStore, embedder: TextEmbedder, vector: Any
    ) -> None:
        with pytest.raises(UnifiedEmbeddingsError):
            UnifiedHybridRetriever(store, embedder).retrieve(QueryBundle("fox", embedding=vector))


# --- query bundles ------------------------------------------------------------------------------


class TestQueryBundles:
    @ways
    @sync_and_async
    async def test_are_not_written_to(
        self,
        store: QdrantVectorStore,
        embedder: TextEmbedder,
        options: dict[str, Any],
        is_async: bool,
    ) -> None:
        retriever = UnifiedHybridRetriever(store, embedder, **options)
        for bundle in (
            QueryBundle(QUERY),
            QueryBundle(QUERY, embedding=[0.5] * 32),
            QueryBundle(QUERY, custom_embedding_strs=["lazy dog", "quick fox"]),
        ):
            before = copy.deepcopy(bundle)
            await answer(retriever, bundle, is_async=is_async)
            assert bundle == before

    @pytest.mark.parametrize("form", ["list", "array"])
    def test_an_embedding_replaces_the_dense_vector_only(
        self, store: QdrantVectorStore, embedder: TextEmbedder, form: str
    ) -> None:
        rows = embedder.encode_query("lazy dog").dense
        assert rows is not None
        embedding: Any = rows[0].tolist() if form == "list" else rows[0]
        expected = fused(
            dense_scores(embedder, CORPUS, "lazy dog"),
            sparse_scores(embedder, CORPUS, QUERY),
            candidates=20,
        )
        plain = fused(
            dense_scores(embedder, CORPUS, QUERY),
            sparse_scores(embedder, CORPUS, QUERY),
            candidates=20,
        )
        assert expected != plain
        nodes = UnifiedHybridRetriever(store, embedder, **PLAIN).retrieve(
            QueryBundle(QUERY, embedding=embedding)
        )
        assert_best(nodes, expected, 10)

    def test_an_embedding_in_dense_mode_costs_no_forward_pass(
        self, store: QdrantVectorStore, embedder: TextEmbedder
    ) -> None:
        vector = np.linspace(-1.0, 1.0, 32)
        retriever = UnifiedHybridRetriever(store, embedder, mode="dense")
        before = embedder.stats().forwards
        nodes = retriever.retrieve(QueryBundle("never seen before", embedding=vector.tolist()))
        assert embedder.stats().forwards == before
        assert_best(nodes, dense_scores(embedder, CORPUS, vector), 10, tolerance=1e-4)

    def test_strings_to_embed_instead_replace_the_dense_vector_by_their_mean(
        self, store: QdrantVectorStore, embedder: TextEmbedder
    ) -> None:
        instead = ["lazy dog jumps", "band plays", "two two"]
        rows = embedder.encode_queries(instead).dense
        assert rows is not None
        mean = rows.astype(np.float64).mean(axis=0)
        expected = fused(
            dense_scores(embedder, CORPUS, mean),
            sparse_scores(embedder, CORPUS, QUERY),
            candidates=20,
        )
        bundle = QueryBundle(QUERY, custom_embedding_strs=instead)
        retriever = UnifiedHybridRetriever(store, embedder, **PLAIN)
        assert_best(retriever.retrieve(bundle), expected, 10)
        only_dense = UnifiedHybridRetriever(store, embedder, mode="dense").retrieve(bundle)
        assert_best(only_dense, dense_scores(embedder, CORPUS, mean), 10, tolerance=1e-4)
        only_sparse = UnifiedHybridRetriever(store, embedder, mode="sparse").retrieve(bundle)
        assert_best(only_sparse, sparse_scores(embedder, CORPUS, QUERY), 10, tolerance=1e-4)

    def test_llama_indexs_hyde_works(
        self, store: QdrantVectorStore, embedder: TextEmbedder
    ) -> None:
        bundle = HyDEQueryTransform(llm=MockLLM(max_tokens=3))(QUERY)
        assert len(bundle.embedding_strs) == 2  # the made-up answer and the question
        rows = embedder.encode_queries(bundle.embedding_strs).dense
        assert rows is not None
        expected = fused(
            dense_scores(embedder, CORPUS, rows.astype(np.float64).mean(axis=0)),
            sparse_scores(embedder, CORPUS, QUERY),
            candidates=20,
        )
        retriever = UnifiedHybridRetriever(store, embedder, **PLAIN)
        assert_best(retriever.retrieve(bundle), expected, 10)

    def test_reranking_scores_by_the_users_words_whatever_was_embedded_instead(
        self, store: QdrantVectorStore, embedder: TextEmbedder
    ) -> None:
        bundle = QueryBundle(QUERY, custom_embedding_strs=["lazy dog"])
        nodes = UnifiedHybridRetriever(store, embedder, rerank="colbert").retrieve(bundle)
        expected = {
            node_id(i): late_interaction(embedder, QUERY, text) for i, text in enumerate(CORPUS)
        }
        assert_best(nodes, expected, 10, tolerance=1e-5)


# --- threads and event loops --------------------------------------------------------------------


class Hold:
    """A place where a worker thread waits until the event loop releases it.

    A blocked event loop could not release it, and the wait would time out instead.
    """

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.release = threading.Event()
        self.was_released = False

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def held(*args: Any, **kwargs: Any) -> Any:
            self.entered.set()
            self.was_released = self.release.wait(timeout=10)
            return function(*args, **kwargs)

        return held

    async def let_go(self, task: asyncio.Task[Any]) -> None:
        """Wait for the worker to arrive, run the loop for some turns, then release it."""
        while not self.entered.is_set() and not task.done():
            await asyncio.sleep(0.001)
        for _ in range(10):
            await asyncio.sleep(0)
        self.release.set()


class TestConcurrency:
    @ways
    async def test_async_equals_sync(
        self, store: QdrantVectorStore, embedder: TextEmbedder, options: dict[str, Any]
    ) -> None:
        retriever = UnifiedHybridRetriever(store, embedder, **options)
        for query in (QUERY, "lazy dog", "fusion merges"):
            assert_same(await retriever.aretrieve(query), retriever.retrieve(query))

    @pytest.mark.parametrize("way", ["equal", "weighted", "rerank"])
    async def test_fifty_tasks_and_as_many_threads_beside_a_writer_get_the_same_answers(
        self, embedder: TextEmbedder, client: QdrantClient, way: str
    ) -> None:
        options, known = HYBRIDS[way], embedder
        embedder = new_embedder()  # whose cache is empty
        store = filled(embedder, client, CORPUS)
        retriever = UnifiedHybridRetriever(store, embedder, **options)
        queries = [query for query in QUERIES if is_clear(known, CORPUS, query)]
        assert len(queries) >= 50
        expected = [
            shown(UnifiedHybridRetriever(store, known, **options).retrieve(query))
            for query in queries
        ]
        nodes = embedded(embedder, CORPUS)
        with ThreadPoolExecutor(6) as pool:
            writing = pool.submit(lambda: [store.add(nodes) for _ in range(5)])
            in_threads = [pool.submit(retriever.retrieve, query) for query in queries]
            in_tasks = await asyncio.gather(*(retriever.aretrieve(query) for query in queries))
            from_threads = await asyncio.gather(*map(asyncio.wrap_future, in_threads))
            writing.result()
        for answers in (in_tasks, from_threads):
            for got, wanted in zip(answers, expected, strict=True):
                assert_best(got, dict(wanted), len(wanted), tolerance=1e-5)

    @pytest.mark.parametrize("options", [{}, {"weights": (2.0, 1.0)}], ids=["equal", "weighted"])
    async def test_the_event_loop_runs_while_the_question_is_encoded(
        self,
        store: QdrantVectorStore,
        options: dict[str, Any],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        embedder = new_embedder()
        retriever = UnifiedHybridRetriever(store, embedder, **options)
        hold = Hold()
        monkeypatch.setattr(embedder, "_run", hold.wrap(embedder._run))
        task = asyncio.create_task(retriever.aretrieve(QUERY))
        await hold.let_go(task)
        assert await task
        assert hold.was_released

    async def test_the_event_loop_runs_while_candidates_are_encoded_for_reranking(
        self, store: QdrantVectorStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        embedder = new_embedder()
        retriever = UnifiedHybridRetriever(store, embedder, rerank="colbert")
        embedder.encode_query(QUERY, colbert=True)
        hold = Hold()
        monkeypatch.setattr(embedder, "_run", hold.wrap(embedder._run))
        task = asyncio.create_task(retriever.aretrieve(QUERY))
        await hold.let_go(task)
        assert await task
        assert hold.was_released

    @pytest.mark.parametrize("options", [{}, {"weights": (2.0, 1.0)}], ids=["equal", "weighted"])
    async def test_the_event_loop_runs_while_a_local_qdrant_searches(
        self,
        store: QdrantVectorStore,
        embedder: TextEmbedder,
        client: QdrantClient,
        options: dict[str, Any],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        retriever = UnifiedHybridRetriever(store, embedder, **options)
        hold = Hold()
        monkeypatch.setattr(client, "query_batch_points", hold.wrap(client.query_batch_points))
        task = asyncio.create_task(retriever.aretrieve(QUERY))
        await hold.let_go(task)
        assert await task
        assert hold.was_released

    async def test_the_event_loop_runs_while_the_first_query_looks_the_model_up(
        self, client: QdrantClient, xlmr: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A fingerprint needs the model's files, which may have to be fetched and digested."""
        known = BGE_M3_Embedder(xlmr, precision="fp32", device="cpu")
        embedder = BGE_M3_Embedder(xlmr, precision="fp32", device="cpu")
        retriever = UnifiedHybridRetriever(stock_store(embedder, "docs", client), embedder)
        filled(known, client, CORPUS)
        hold = Hold()
        monkeypatch.setattr(lazy, "resolve", hold.wrap(lazy.resolve))
        task = asyncio.create_task(retriever.aretrieve(QUERY))
        await hold.let_go(task)
        assert await task
        assert hold.was_released


# --- LlamaIndex around it -----------------------------------------------------------------------


class _Recorder(BaseEventHandler):
    events: list[BaseEvent] = []  # noqa: RUF012 - a pydantic field, copied for each instance

    @classmethod
    def class_name(cls) -> str:
        return "Recorder"

    def handle(self, event: BaseEvent, **kwargs: Any) -> None:
        self.events.append(event)


@pytest.fixture
def recorder() -> Iterator[_Recorder]:
    dispatcher = get_dispatcher()
    handler = _Recorder()
    dispatcher.add_event_handler(handler)
    yield handler
    dispatcher.event_handlers.remove(handler)


class TestLlamaIndex:
    @sync_and_async
    async def test_the_callback_manager_sees_the_retrieval_with_query_and_nodes(
        self, store: QdrantVectorStore, embedder: TextEmbedder, is_async: bool
    ) -> None:
        debug = LlamaDebugHandler(print_trace_on_end=False)
        retriever = UnifiedHybridRetriever(
            store, embedder, callback_manager=CallbackManager([debug])
        )
        nodes = await answer(retriever, QUERY, is_async=is_async)
        ((start, end),) = debug.get_event_pairs(CBEventType.RETRIEVE)
        assert start.payload == {EventPayload.QUERY_STR: QUERY}
        assert end.payload is not None
        assert shown(end.payload[EventPayload.NODES]) == shown(nodes)

    @sync_and_async
    async def test_instrumentation_sees_start_and_end(
        self,
        store: QdrantVectorStore,
        embedder: TextEmbedder,
        recorder: _Recorder,
        is_async: bool,
    ) -> None:
        nodes = await answer(UnifiedHybridRetriever(store, embedder), QUERY, is_async=is_async)
        started = [e for e in recorder.events if isinstance(e, RetrievalStartEvent)]
        ended = [e for e in recorder.events if isinstance(e, RetrievalEndEvent)]
        assert [event.str_or_query_bundle for event in started] == [QUERY]
        assert [shown(event.nodes) for event in ended] == [shown(nodes)]

    @pytest.mark.parametrize(
        ("mode", "kinds"),
        [("hybrid", ["dense", "sparse"]), ("dense", ["dense"]), ("sparse", ["sparse"])],
    )
    @sync_and_async
    async def test_instrumentation_sees_what_is_embedded(
        self,
        store: QdrantVectorStore,
        embedder: TextEmbedder,
        recorder: _Recorder,
        mode: Any,
        kinds: list[str],
        is_async: bool,
    ) -> None:
        retriever = UnifiedHybridRetriever(store, embedder, mode=mode)
        await answer(retriever, QUERY, is_async=is_async)
        for kind, start_type, end_type in (
            ("dense", EmbeddingStartEvent, EmbeddingEndEvent),
            ("sparse", SparseEmbeddingStartEvent, SparseEmbeddingEndEvent),
        ):
            # Exactly: LlamaIndex's sparse start event is also a kind of the dense one.
            started: list[Any] = [e for e in recorder.events if type(e) is start_type]
            ended: list[Any] = [e for e in recorder.events if type(e) is end_type]
            assert len(started) == len(ended) == (kind in kinds)
            if not ended:
                continue
            assert started[0].model_dict["model_name"] == embedder.model_name
            assert ended[0].chunks == [QUERY]
            vectors = embedder.encode_query(QUERY, dense=True, sparse=True)
            assert vectors.dense is not None
            assert vectors.sparse is not None
            expected = vectors.dense.tolist() if kind == "dense" else [dict(vectors.sparse[0])]
            assert ended[0].embeddings == expected

    @sync_and_async
    async def test_the_callback_manager_sees_what_is_embedded(
        self, store: QdrantVectorStore, embedder: TextEmbedder, is_async: bool
    ) -> None:
        debug, counter = (
            LlamaDebugHandler(print_trace_on_end=False),
            TokenCountingHandler(str.split),
        )
        retriever = UnifiedHybridRetriever(
            store, embedder, callback_manager=CallbackManager([debug, counter])
        )
        bundle = QueryBundle(QUERY, custom_embedding_strs=["one two", "three"])
        await answer(retriever, bundle, is_async=is_async)
        pairs = debug.get_event_pairs(CBEventType.EMBEDDING)
        ends = [end.payload for _, end in pairs if end.payload is not None]
        assert [end[EventPayload.CHUNKS] for end in ends] == [["one two", "three"], [QUERY]]
        assert [len(end[EventPayload.EMBEDDINGS]) for end in ends] == [2, 0]
        assert counter.total_embedding_token_count == 3 + len(QUERY.split())

    def test_a_question_with_its_own_embedding_is_not_embedded(
        self, store: QdrantVectorStore, embedder: TextEmbedder, recorder: _Recorder
    ) -> None:
        vector = [1.0] * embedder.dimension
        retriever = UnifiedHybridRetriever(store, embedder, mode="dense")
        assert retriever.retrieve(QueryBundle(QUERY, embedding=vector))
        assert not [e for e in recorder.events if isinstance(e, EmbeddingStartEvent)]

    @sync_and_async
    async def test_a_query_engine_answers_from_its_nodes(
        self, store: QdrantVectorStore, embedder: TextEmbedder, is_async: bool
    ) -> None:
        retriever = UnifiedHybridRetriever(store, embedder, similarity_top_k=3)
        engine = RetrieverQueryEngine.from_args(retriever, llm=MockLLM())
        response = await engine.aquery(QUERY) if is_async else engine.query(QUERY)
        assert shown(response.source_nodes) == shown(retriever.retrieve(QUERY))
        assert len(response.source_nodes) == 3
        for scored in response.source_nodes:  # MockLLM echoes its prompt
            assert scored.node.get_content() in str(response)

    @pytest.mark.parametrize("kind", [CondensePlusContextChatEngine, ContextChatEngine])
    @sync_and_async
    async def test_a_chat_engine_answers_from_its_nodes(
        self, store: QdrantVectorStore, embedder: TextEmbedder, kind: Any, is_async: bool
    ) -> None:
        retriever = UnifiedHybridRetriever(store, embedder, similarity_top_k=3)
        # The default memory runs an SQL database in an event loop of its own, and is flaky there.
        engine = kind.from_defaults(
            retriever=retriever, llm=MockLLM(), memory=ChatMemoryBuffer.from_defaults()
        )
        first = await engine.achat(QUERY) if is_async else engine.chat(QUERY)
        assert shown(first.source_nodes) == shown(retriever.retrieve(QUERY))
        for scored in first.source_nodes:
            assert scored.node.get_content() in str(first)
        second = await engine.achat("and the dog") if is_async else engine.chat("and the dog")
        assert len(second.source_nodes) == 3


# --- a store that fails -------------------------------------------------------------------------


class _Broken(grpc.RpcError):
    pass


FAILURES: list[Exception] = [
    UnexpectedResponse(500, "Internal Server Error", b"boom", httpx.Headers()),
    ResponseHandlingException(httpx.ConnectError("no route")),  # type: ignore[arg-type]
    ResourceExhaustedResponse("too many requests", retry_after_s=3),
    ConnectionError("refused"),
    TimeoutError("too slow"),
    ValueError("local mode says no"),
    RuntimeError("closed"),
    _Broken(),
]
failures = pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: type(failure).__name__)


def failing(error: Exception) -> Callable[..., Any]:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise error

    return fail


class TestStoreFailures:
    @failures
    @ways
    @sync_and_async
    async def test_a_failing_search_is_a_store_error(
        self,
        store: QdrantVectorStore,
        embedder: TextEmbedder,
        client: QdrantClient,
        monkeypatch: pytest.MonkeyPatch,
        failure: Exception,
        options: dict[str, Any],
        is_async: bool,
    ) -> None:
        retriever = UnifiedHybridRetriever(store, embedder, **options)
        monkeypatch.setattr(client, "query_batch_points", failing(failure))
        with pytest.raises(StoreError, match="docs") as caught:
            await answer(retriever, QUERY, is_async=is_async)
        assert caught.value.collection == "docs"
        assert caught.value.operation == "query_batch_points"
        # asyncio copies a TimeoutError on its way out of a thread.
        assert type(caught.value.__cause__) is type(failure)
        assert str(failure) in str(caught.value)

    @failures
    def test_a_failing_look_up_when_the_retriever_is_made_is_a_store_error(
        self,
        store: QdrantVectorStore,
        embedder: TextEmbedder,
        client: QdrantClient,
        monkeypatch: pytest.MonkeyPatch,
        failure: Exception,
    ) -> None:
        monkeypatch.setattr(client, "collection_exists", failing(failure))
        with pytest.raises(StoreError, match="docs") as caught:
            UnifiedHybridRetriever(store, embedder)
        assert caught.value.__cause__ is failure

    @sync_and_async
    async def test_it_recovers_with_the_store(
        self,
        store: QdrantVectorStore,
        embedder: TextEmbedder,
        client: QdrantClient,
        monkeypatch: pytest.MonkeyPatch,
        is_async: bool,
    ) -> None:
        retriever = UnifiedHybridRetriever(store, embedder)
        before = await answer(retriever, QUERY, is_async=is_async)
        with monkeypatch.context() as broken:
            broken.setattr(client, "query_batch_points", failing(ConnectionError("gone")))
            with pytest.raises(StoreError):
                await answer(retriever, QUERY, is_async=is_async)
        assert_same(await answer(retriever, QUERY, is_async=is_async), before)
