"""What a store's own queries find in each of LlamaIndex's modes, and what each number means.

The oracle is brute force over the fake embedder's vectors, and the retriever, which has its own.
"""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_index.core import VectorStoreIndex
from llama_index.core.llms import MockLLM
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.core.vector_stores.types import (
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
    VectorStoreQueryResult,
)
from qdrant_client import QdrantClient
from qdrant_client import models as qm

from unified_embeddings import UnifiedHybridRetriever, UnifiedTextEmbedding
from unified_embeddings.embedders.fake import FakeEmbedder
from unified_embeddings.errors import InputError
from unified_embeddings.fusion import rrf
from unified_embeddings.llama.fingerprinted_store import FingerprintedStore
from unified_embeddings.llama.payloads import RETRIEVAL_KEY
from unified_embeddings.llama.vector_store import build_vector_store
from unified_embeddings.models.fusion import Fusion
from unified_embeddings.stores.edge.client import EdgeQdrantClient
from unified_embeddings.stores.fusion_choice import write_choice

EMBEDDER = FakeEmbedder(dimension=16)
MODEL = UnifiedTextEmbedding(EMBEDDER)
WORDS = [f"word{number}" for number in range(40)]
COUNT = 120

_draw = random.Random(7)
TEXTS = [" ".join(_draw.sample(WORDS, _draw.randint(2, 6))) for _ in range(COUNT)]
IDS = [str(uuid.UUID(int=_draw.getrandbits(128), version=4)) for _ in range(COUNT)]
QUESTIONS = [" ".join(_draw.sample(WORDS, 3)) for _ in range(20)]


@pytest.fixture(scope="module", params=["embedded", "memory"])
def store(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[FingerprintedStore]:
    if request.param == "memory":
        yield fill(build_vector_store(EMBEDDER, "docs", client=QdrantClient(":memory:")))
        return
    with EdgeQdrantClient(tmp_path_factory.mktemp("queries")) as client:
        yield fill(build_vector_store(EMBEDDER, "docs", client=client))


def fill(store: FingerprintedStore) -> FingerprintedStore:
    nodes = [
        TextNode(
            id_=node_id,
            text=text,
            metadata={"parity": place % 2},
            excluded_embed_metadata_keys=["parity"],
        )
        for place, (node_id, text) in enumerate(zip(IDS, TEXTS, strict=True))
    ]
    store.add(MODEL(nodes))
    return store


def ask(
    store: FingerprintedStore, question: str, mode: str, *, way: str = "sync", **changes: Any
) -> VectorStoreQueryResult:
    options = changes.pop("options", {})
    query = VectorStoreQuery(
        query_str=question,
        query_embedding=MODEL.get_query_embedding(question),
        mode=VectorStoreQueryMode(mode),
        **{"similarity_top_k": 5, **changes},
    )
    if way == "async":
        return asyncio.run(store.aquery(query, **options))
    return store.query(query, **options)


def dense_order(question: str) -> list[str]:
    vectors = EMBEDDER.encode_documents(TEXTS).dense
    query = EMBEDDER.encode_query(question).dense
    assert vectors is not None
    assert query is not None
    scores = dict(zip(IDS, (vectors @ query[0]).tolist(), strict=True))
    return sorted(IDS, key=lambda node_id: (-round(scores[node_id], 5), node_id))


def sparse_scores(question: str) -> dict[str, float]:
    documents = EMBEDDER.encode_documents(TEXTS, dense=False, sparse=True).sparse
    query = EMBEDDER.encode_query(question, dense=False, sparse=True).sparse
    assert documents is not None
    assert query is not None
    scores = {}
    for node_id, vector in zip(IDS, documents, strict=True):
        shared = vector.keys() & query[0].keys()
        if shared:
            scores[node_id] = sum(vector[token] * query[0][token] for token in shared)
    return scores


def sparse_order(question: str) -> list[str]:
    scores = sparse_scores(question)
    return sorted(scores, key=lambda node_id: (-round(scores[node_id], 5), node_id))


@pytest.mark.parametrize("way", ["sync", "async"])
class TestModes:
    def test_default_is_dense(self, store: FingerprintedStore, way: str) -> None:
        for question in QUESTIONS[:5]:
            result = ask(store, question, "default", way=way)
            assert result.ids == dense_order(question)[:5]
            assert result.similarities == sorted(result.similarities or [], reverse=True)

    @pytest.mark.parametrize("mode", ["sparse", "text_search"])
    def test_sparse_is_sparse(self, store: FingerprintedStore, way: str, mode: str) -> None:
        for question in QUESTIONS[:5]:
            result = ask(store, question, mode, way=way)
            assert result.ids == sparse_order(question)[:5]
            scores = sparse_scores(question)
            expected = [scores[node_id] for node_id in result.ids or []]
            assert result.similarities == pytest.approx(expected, abs=1e-5)

    def test_hybrid_is_the_retrievers_own_answer(self, store: FingerprintedStore, way: str) -> None:
        retriever = UnifiedHybridRetriever(store, EMBEDDER, similarity_top_k=5)
        for question in QUESTIONS:
            result = ask(store, question, "hybrid", way=way)
            expected = retriever.retrieve(question)
            assert result.ids == [scored.node_id for scored in expected]
            assert result.similarities == [scored.score for scored in expected]
            notes = [node.metadata[RETRIEVAL_KEY] for node in result.nodes or []]
            assert notes == [scored.node.metadata[RETRIEVAL_KEY] for scored in expected]

    def test_semantic_hybrid_is_reranked(self, store: FingerprintedStore, way: str) -> None:
        retriever = UnifiedHybridRetriever(store, EMBEDDER, similarity_top_k=5, rerank="colbert")
        for question in QUESTIONS[:3]:
            result = ask(store, question, "semantic_hybrid", way=way)
            expected = retriever.retrieve(question)
            assert result.ids == [scored.node_id for scored in expected]
            assert result.similarities == [scored.score for scored in expected]

    def test_mmr_trades_nearness_for_difference(self, store: FingerprintedStore, way: str) -> None:
        for question in QUESTIONS[:5]:
            nearest = ask(store, question, "mmr", way=way, mmr_threshold=1)
            expected = ask(store, question, "default", way=way)
            assert nearest.similarities == pytest.approx(expected.similarities, abs=1e-6)
            result = ask(store, question, "mmr", way=way, options={"mmr_threshold": 0.3})
            assert result.ids == diverse_order(question, 5, threshold=0.3)

    def test_mmr_takes_more_nodes_than_there_are(self, store: FingerprintedStore, way: str) -> None:
        result = ask(store, QUESTIONS[0], "mmr", way=way, similarity_top_k=5000)
        assert sorted(result.ids or []) == sorted(IDS)


def diverse_order(question: str, count: int, *, threshold: float) -> list[str]:
    """Choose by maximal marginal relevance among the 4 · count nearest."""
    vectors = EMBEDDER.encode_documents(TEXTS).dense
    query = EMBEDDER.encode_query(question).dense
    assert vectors is not None
    assert query is not None
    at = {node_id: vectors[place] for place, node_id in enumerate(IDS)}
    left = dense_order(question)[: 4 * count]
    chosen: list[str] = []
    while len(chosen) < count:

        def worth(node_id: str) -> float:
            nearness = float(at[node_id] @ query[0])
            overlap = max((float(at[node_id] @ at[other]) for other in chosen), default=0.0)
            return threshold * nearness - (1 - threshold) * overlap

        best = max(left, key=worth)
        left.remove(best)
        chosen.append(best)
    return chosen


class TestNumbers:
    def test_alpha_weighs_the_lists(self, store: FingerprintedStore) -> None:
        for question in QUESTIONS[:5]:
            result = ask(store, question, "hybrid", alpha=0.8)
            lists = [dense_order(question)[:20], sparse_order(question)[:20]]
            expected = dict(rrf(lists, 60, (0.8, 0.2)))
            best = sorted(expected.values(), reverse=True)[:5]
            assert result.similarities == pytest.approx(best, abs=1e-12)

    @pytest.mark.parametrize("way", ["sync", "async"])
    @pytest.mark.parametrize(("alpha", "order"), [(0, sparse_order), (1, dense_order)])
    def test_an_alpha_of_0_or_1_leaves_one_list(
        self, store: FingerprintedStore, way: str, alpha: float, order: Any
    ) -> None:
        for question in QUESTIONS[:5]:
            result = ask(store, question, "hybrid", way=way, alpha=alpha)
            assert result.ids == order(question)[:5]

    def test_hybrid_top_k_is_how_many_return(self, store: FingerprintedStore) -> None:
        result = ask(store, QUESTIONS[0], "hybrid", hybrid_top_k=3, similarity_top_k=8)
        assert len(result.ids or []) == 3

    def test_given_depths_are_the_lists(self, store: FingerprintedStore) -> None:
        question = QUESTIONS[0]
        result = ask(store, question, "hybrid", similarity_top_k=4, sparse_top_k=2, hybrid_top_k=50)
        expected = {*dense_order(question)[:4], *sparse_order(question)[:2]}
        assert set(result.ids or []) == expected

    def test_sparse_top_k_is_how_many_a_sparse_search_returns(
        self, store: FingerprintedStore
    ) -> None:
        result = ask(store, QUESTIONS[0], "sparse", sparse_top_k=2)
        assert result.ids == sparse_order(QUESTIONS[0])[:2]

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"alpha": 1.5}, "alpha must be a number from 0 to 1"),
            ({"alpha": "half"}, "alpha must be a number from 0 to 1"),
            ({"similarity_top_k": 0}, "similarity_top_k"),
            ({"hybrid_top_k": -1}, "hybrid_top_k"),
            ({"mmr_threshold": 2}, "mmr_threshold must be a number from 0 to 1"),
            ({"options": {"scor": "relevance"}}, "there is no option scor=; did you mean score="),
            ({"options": {"search_params": {"hnsw_ef": "many"}}}, "search_params= cannot be"),
            ({"options": {"qdrant_filters": {"must": []}}}, "qdrant_filters= takes"),
        ],
    )
    def test_what_is_out_of_range_is_refused(
        self, store: FingerprintedStore, changes: dict[str, Any], words: str
    ) -> None:
        with pytest.raises(InputError, match=words):
            ask(store, QUESTIONS[0], "hybrid", **changes)

    @pytest.mark.parametrize("question", ["", "  "])
    def test_a_blank_question_is_refused(self, store: FingerprintedStore, question: str) -> None:
        query = VectorStoreQuery(
            query_str=question,
            query_embedding=MODEL.get_query_embedding("a"),
            mode=VectorStoreQueryMode.HYBRID,
        )
        with pytest.raises(InputError, match="a text that is not blank"):
            store.query(query)

    @pytest.mark.parametrize("mode", ["svm", "logistic_regression", "linear_regression"])
    def test_modes_of_other_stores_are_refused(self, store: FingerprintedStore, mode: str) -> None:
        with pytest.raises(InputError, match="not one that Qdrant answers; take one of default"):
            ask(store, QUESTIONS[0], mode)

    def test_a_mode_may_be_a_text(self, store: FingerprintedStore) -> None:
        vector = MODEL.get_query_embedding(QUESTIONS[0])
        expected = ask(store, QUESTIONS[0], "hybrid").ids
        query = VectorStoreQuery(query_str=QUESTIONS[0], query_embedding=vector, similarity_top_k=5)
        query.mode = "hybrid"  # type: ignore[assignment]
        assert store.query(query).ids == expected
        query.mode = "best"  # type: ignore[assignment]
        with pytest.raises(InputError, match="there is no mode 'best'; take one of default"):
            store.query(query)


@pytest.mark.parametrize("mode", ["default", "sparse", "hybrid", "semantic_hybrid", "mmr"])
class TestFilters:
    def test_metadata_filters(self, store: FingerprintedStore, mode: str) -> None:
        filters = MetadataFilters(filters=[MetadataFilter(key="parity", value=1)])
        result = ask(store, QUESTIONS[1], mode, filters=filters)
        assert result.nodes
        assert {node.metadata["parity"] for node in result.nodes} == {1}

    def test_node_ids(self, store: FingerprintedStore, mode: str) -> None:
        wanted = sparse_order(QUESTIONS[1])[3:6]
        result = ask(store, QUESTIONS[1], mode, node_ids=wanted)
        assert set(result.ids or []) == set(wanted)

    def test_qdrants_own_filter_comes_first(self, store: FingerprintedStore, mode: str) -> None:
        filters = MetadataFilters(filters=[MetadataFilter(key="parity", value=1)])
        even = qm.Filter(must=[qm.FieldCondition(key="parity", match=qm.MatchValue(value=0))])
        options = {"qdrant_filters": even, "search_params": {"exact": True}}
        result = ask(store, QUESTIONS[1], mode, filters=filters, options=options)
        assert result.nodes
        assert {node.metadata["parity"] for node in result.nodes} == {0}


class TestRequests:
    # Sparse scores of the fake embedder tie so often that a shallow list is fetched twice.
    @pytest.mark.parametrize("mode", ["default", "hybrid", "semantic_hybrid", "mmr"])
    def test_a_query_is_one_request(
        self, store: FingerprintedStore, mode: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ask(store, QUESTIONS[0], mode)  # looks the collection up
        calls = count_calls(store, monkeypatch)
        for question in QUESTIONS:
            ask(store, question, mode)
        assert calls == ["query_batch_points"] * len(QUESTIONS)

    def test_search_params_reach_each_list(
        self, store: FingerprintedStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sent: list[qm.QueryRequest] = []
        search = store.client.query_batch_points

        def watched(name: str, requests: list[qm.QueryRequest], **options: Any) -> Any:
            sent.extend(requests)
            return search(name, requests, **options)

        monkeypatch.setattr(store.client, "query_batch_points", watched)
        params = qm.SearchParams(hnsw_ef=99)
        ask(store, QUESTIONS[0], "hybrid", options={"search_params": params})
        assert [request.params for request in sent] == [params, params]


def count_calls(store: FingerprintedStore, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    calls: list[str] = []
    for name in ("query_batch_points", "query_points", "get_collection", "scroll", "retrieve"):
        method = getattr(store.client, name)

        def counted(*args: Any, _name: str = name, _method: Any = method, **options: Any) -> Any:
            calls.append(_name)
            return _method(*args, **options)

        monkeypatch.setattr(store.client, name, counted)
    return calls


def test_a_collections_own_fusion_is_honoured(tmp_path: Path) -> None:
    with EdgeQdrantClient(tmp_path) as client:
        fill(build_vector_store(EMBEDDER, "docs", client=client))
        write_choice(client, "docs", Fusion(weights=(0, 1), source="a test"))
        store = build_vector_store(EMBEDDER, "docs", client=client)
        for question in QUESTIONS[:3]:
            assert ask(store, question, "hybrid").ids == sparse_order(question)[:5]
            # A query that weighs the lists itself is not changed by it.
            assert ask(store, question, "hybrid", alpha=1).ids == dense_order(question)[:5]


def test_a_function_of_the_callers_fuses_as_in_the_stock_store() -> None:
    asked: list[tuple[int, int, float, int]] = []

    def take_dense(
        dense: VectorStoreQueryResult,
        sparse: VectorStoreQueryResult,
        alpha: float = 0.5,
        top_k: int = 2,
    ) -> VectorStoreQueryResult:
        asked.append((len(dense.ids or []), len(sparse.ids or []), alpha, top_k))
        return dense

    store = fill(
        build_vector_store(
            EMBEDDER, "docs", client=QdrantClient(":memory:"), hybrid_fusion_fn=take_dense
        )
    )
    for way in ("sync", "async"):
        result = ask(store, QUESTIONS[0], "hybrid", way=way, sparse_top_k=7, hybrid_top_k=4)
        assert result.ids == dense_order(QUESTIONS[0])[:5]
    assert asked == [(5, 7, 0.5, 4)] * 2
    with pytest.raises(InputError, match="the store has a hybrid_fusion_fn"):
        ask(store, QUESTIONS[0], "hybrid", options={"score": "relevance"})


@pytest.mark.parametrize("questions", [40, pytest.param(1000, marks=pytest.mark.endurance)])
def test_a_query_engine_finds_what_the_retriever_finds(tmp_path: Path, questions: int) -> None:
    draw = random.Random(questions)
    with EdgeQdrantClient(tmp_path) as client:
        store = fill(build_vector_store(EMBEDDER, "docs", client=client))
        index = VectorStoreIndex.from_vector_store(store, embed_model=MODEL)
        engine = index.as_query_engine(
            llm=MockLLM(), vector_store_query_mode="hybrid", similarity_top_k=6
        )
        retriever = UnifiedHybridRetriever(store, EMBEDDER, similarity_top_k=6)
        for _ in range(questions):
            question = " ".join(draw.choices(WORDS, k=draw.randint(1, 5)))
            expected = retriever.retrieve(question)
            found: list[NodeWithScore] = engine.query(question).source_nodes
            assert [scored.node_id for scored in found] == [each.node_id for each in expected]
            assert np.allclose(
                [scored.get_score() for scored in found],
                [each.get_score() for each in expected],
                atol=0,
            )
