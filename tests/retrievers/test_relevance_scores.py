"""Relevance as a node's score: its place, its order, whose calibration it is, and weak answers."""

from __future__ import annotations

import dataclasses
import itertools
import pickle
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from llama_index.core import VectorStoreIndex
from llama_index.core.postprocessor import SimilarityPostprocessor
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.core.vector_stores.types import VectorStoreQueryMode
from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import QdrantClient
from qdrant_client import models as qm

from unified_embeddings import UnifiedTextEmbedding
from unified_embeddings.embedders.factory import make_embedder
from unified_embeddings.embedders.fake import FakeEmbedder
from unified_embeddings.errors import InputError, StoreError
from unified_embeddings.fusion import Method
from unified_embeddings.llama.payloads import RETRIEVAL_KEY
from unified_embeddings.llama.vector_store import build_vector_store
from unified_embeddings.models.calibration import Calibration
from unified_embeddings.models.catalogue import MODELS
from unified_embeddings.models.fusion import Fusion
from unified_embeddings.models.spec import ModelSpec
from unified_embeddings.retrievers.hybrid import UnifiedHybridRetriever
from unified_embeddings.search.fusing import fuse
from unified_embeddings.search.ranking import order_points
from unified_embeddings.search.relevance_scores import judge_answer
from unified_embeddings.stores.calibration_record import (
    CALIBRATION_KEY,
    read_calibration,
    write_calibration,
)
from unified_embeddings.stores.edge.client import EdgeQdrantClient
from unified_embeddings.types import SparseVector

CALIBRATION = Calibration(
    intercept=-4.0,
    dense_gap=3.0,
    sparse_share=2.0,
    sparse_lead=1.0,
    agreement=2.0,
    background=0.1,
    weak_below=0.3,
    depth=50,
    source="by hand",
)
WORDS = ["quick", "brown", "fox", "lazy", "dog", "two", "rankings", "sea", "calm", "orders"]
TEXTS = [
    *("quick brown fox", "lazy dog", "two rankings", "the quick dog", "a fox and a dog"),
    *(f"{WORDS[i % 10]} {WORDS[(3 * i + 1) % 10]} number {i}" for i in range(75)),
]


class Calibrated(FakeEmbedder):
    """A fake whose scores are calibrated."""

    @property
    def calibration(self) -> Calibration | None:
        return CALIBRATION


EMBEDDER, PLAIN = Calibrated(64), FakeEmbedder(64)


def fill(client: Any, embedder: FakeEmbedder = EMBEDDER) -> QdrantVectorStore:
    store = build_vector_store(embedder, "docs", client=client)
    nodes = [TextNode(id_=str(uuid.UUID(int=i + 1)), text=text) for i, text in enumerate(TEXTS)]
    store.add(UnifiedTextEmbedding(embedder)(nodes))
    return store


@pytest.fixture(params=["memory", "embedded"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[QdrantVectorStore]:
    client: Any = QdrantClient(":memory:")
    if request.param == "embedded":
        client = EdgeQdrantClient(tmp_path / "store")
    yield fill(client)
    client.close()


def ids(nodes: list[NodeWithScore]) -> list[str]:
    return [node.node.node_id for node in nodes]


def notes(nodes: list[NodeWithScore]) -> list[dict[str, Any]]:
    return [node.node.metadata[RETRIEVAL_KEY] for node in nodes]


QUERIES = ["quick fox", "lazy dog", "calm sea orders", "unheard words", "rankings number 7"]


class TestRetriever:
    @pytest.mark.parametrize("query", QUERIES)
    def test_the_order_is_that_of_the_fused_score(
        self, store: QdrantVectorStore, query: str
    ) -> None:
        fused = UnifiedHybridRetriever(store, EMBEDDER).retrieve(query)
        judged = UnifiedHybridRetriever(store, EMBEDDER, score="relevance").retrieve(query)
        assert ids(judged) == ids(fused)
        scores = [node.score or 0.0 for node in judged]
        assert scores == sorted(scores, reverse=True)
        assert all(0 <= score <= 1 for score in scores)
        assert [note["relevance"] for note in notes(judged)] == scores
        for own, other, node in zip(notes(judged), notes(fused), fused, strict=True):
            assert own["relevance"] == pytest.approx(other["relevance"], abs=1e-6)
            assert own["fused"]["score"] == pytest.approx(node.score, abs=1e-6)
            assert own["weak"] == other["weak"]

    def test_the_value_is_that_of_the_calibration(self, store: QdrantVectorStore) -> None:
        """Of the first node, which is the most relevant, from both lists 50 deep."""
        fusion = Fusion((1.0, 1.0), candidates=50)
        retriever = UnifiedHybridRetriever(store, EMBEDDER, fusion=fusion, score="relevance")
        query = EMBEDDER.encode_query("quick brown fox")
        documents = EMBEDDER.encode_documents(TEXTS)
        assert query.dense is not None
        assert documents.dense is not None
        assert query.sparse is not None
        assert documents.sparse is not None
        dense = sorted((documents.dense @ query.dense[0]).tolist(), reverse=True)
        products = [
            sum(weight * document.get(token, 0.0) for token, weight in query.sparse[0].items())
            for document in documents.sparse
        ]
        sparse = sorted((product for product in products if product > 0), reverse=True)
        assert len(sparse) < 50
        unit = float(query.sparse[0].values.sum())
        odds = (
            -4 + 3 * (dense[0] - dense[49]) + 2 * sparse[0] / unit + (sparse[0] - sparse[1]) / unit
        )
        best = retriever.retrieve("quick brown fox")[0]
        assert best.text == "quick brown fox"
        assert best.score == pytest.approx(1 / (1 + 2.718281828 ** -(odds + 2)), abs=1e-5)

    def test_more_nodes_only_append(self, store: QdrantVectorStore) -> None:
        retriever = UnifiedHybridRetriever(store, EMBEDDER, score="relevance")
        many = retriever.retrieve("quick fox", similarity_top_k=30)
        few = retriever.retrieve("quick fox", similarity_top_k=4)
        assert ids(few) == ids(many)[:4]
        assert [n.score for n in few] == pytest.approx([n.score for n in many[:4]], abs=1e-6)

    def test_lists_are_read_as_deep_as_the_calibration_says(self, store: QdrantVectorStore) -> None:
        """Five candidates are fused, and relevance is what it is with fifty."""
        shallow = {"weights": (1, 1), "candidates": 5}
        judged = UnifiedHybridRetriever(
            store, EMBEDDER, similarity_top_k=3, score="relevance", **shallow
        ).retrieve("quick fox")
        fused = UnifiedHybridRetriever(store, EMBEDDER, similarity_top_k=3, **shallow)
        assert ids(judged) == ids(fused.retrieve("quick fox"))
        deep = UnifiedHybridRetriever(
            store, EMBEDDER, similarity_top_k=3, weights=(1, 1), candidates=50, score="relevance"
        ).retrieve("quick fox")
        assert judged[0].score == pytest.approx(deep[0].score)
        # Where only the fused score is asked for, nothing more is fetched, and nothing claimed.
        assert "weak" not in notes(fused.retrieve("quick fox"))[0]
        assert "relevance" not in notes(fused.retrieve("quick fox"))[0]

    async def test_async_says_the_same(self, store: QdrantVectorStore) -> None:
        retriever = UnifiedHybridRetriever(store, EMBEDDER, score="relevance")
        expected = retriever.retrieve("quick fox")
        found = await retriever.aretrieve("quick fox")
        assert ids(found) == ids(expected)
        assert [n.score for n in found] == pytest.approx([n.score for n in expected], abs=1e-6)
        assert notes(found)[0]["weak"] is False

    def test_a_similarity_cutoff_drops_what_is_rather_not_relevant(
        self, store: QdrantVectorStore
    ) -> None:
        found = UnifiedHybridRetriever(store, EMBEDDER, score="relevance").retrieve("quick fox")
        kept = SimilarityPostprocessor(similarity_cutoff=0.5).postprocess_nodes(found)
        assert 0 < len(kept) < len(found)
        assert all((node.score or 0) >= 0.5 for node in kept)
        assert ids(kept) == ids(found)[: len(kept)]

    def test_weak_says_that_the_best_are_not_better_than_chance(
        self, store: QdrantVectorStore
    ) -> None:
        for score in ("rrf", "relevance"):
            retriever = UnifiedHybridRetriever(store, EMBEDDER, score=score)  # type: ignore[arg-type]
            assert [note["weak"] for note in notes(retriever.retrieve("quick fox"))] == [False] * 10
            found = retriever.retrieve("entirely unheard")
            assert [note["weak"] for note in notes(found)] == [True] * 10

    def test_without_a_bound_nothing_is_said_of_weakness(self, store: QdrantVectorStore) -> None:
        write_calibration(store.client, "docs", dataclasses.replace(CALIBRATION, weak_below=None))
        found = UnifiedHybridRetriever(store, EMBEDDER).retrieve("quick fox")
        assert "weak" not in notes(found)[0]
        assert 0 <= notes(found)[0]["relevance"] <= 1


class TestWhoseCalibration:
    def test_a_collections_own_wins_and_needs_none_of_the_models(self) -> None:
        store = fill(QdrantClient(":memory:"), PLAIN)
        never = Calibration(-20.0, 0.0, 0.0, 0.0, 0.0, background=0.0, source="never")
        write_calibration(store.client, "docs", never)
        found = UnifiedHybridRetriever(store, PLAIN, score="relevance").retrieve("quick fox")
        assert [node.score for node in found] == pytest.approx([2.061153e-9] * 10, rel=1e-5)

    def test_without_any_the_way_to_one_is_told(self) -> None:
        store = fill(QdrantClient(":memory:"), PLAIN)
        with pytest.raises(InputError, match=r"none for 'fake'.*tune COLLECTION .* --calibrate"):
            UnifiedHybridRetriever(store, PLAIN, score="relevance")
        found = UnifiedHybridRetriever(store, PLAIN).retrieve("quick fox")
        assert {"weak", "relevance"}.isdisjoint(notes(found)[0])

    def test_a_collection_that_does_not_exist_yet_is_asked_at_the_first_query(self) -> None:
        client = QdrantClient(":memory:")
        other = build_vector_store(EMBEDDER, "elsewhere", client=client)
        retriever = UnifiedHybridRetriever(
            QdrantVectorStore("docs", client=client, enable_hybrid=True,
                              sparse_doc_fn=lambda _: ([], []), sparse_query_fn=lambda _: ([], [])),
            PLAIN,
            score="relevance",
        )  # fmt: skip
        assert other.collection_name == "elsewhere"
        fill(client, PLAIN)
        with pytest.raises(InputError, match="needs a calibration"):
            retriever.retrieve("quick fox")

    def test_a_collection_with_other_scores_does_not_get_the_models(self) -> None:
        """One with IDF, which the model's own collections do not have."""
        client = QdrantClient(":memory:")
        store = fill(client)
        client.update_collection(
            "docs",
            sparse_vectors_config={
                "text-sparse-new": qm.SparseVectorParams(modifier=qm.Modifier.IDF)
            },
        )
        info = client.get_collection("docs")
        assert (info.config.params.sparse_vectors or {})["text-sparse-new"].modifier is not None
        with pytest.raises(InputError, match="this collection's scores"):
            UnifiedHybridRetriever(store, EMBEDDER, score="relevance")

    def test_a_record_that_cannot_be_read_is_an_error_that_says_what_to_do(
        self, store: QdrantVectorStore
    ) -> None:
        store.client.update_collection("docs", metadata={CALIBRATION_KEY: {"depth": 3}})
        with pytest.raises(StoreError, match="tune docs --calibrate --reset"):
            UnifiedHybridRetriever(store, EMBEDDER)
        write_calibration(store.client, "docs", None)
        assert read_calibration("docs", store.client.get_collection("docs")) is None
        assert UnifiedHybridRetriever(store, EMBEDDER, score="relevance").retrieve("quick fox")


class TestOptions:
    @pytest.mark.parametrize(
        ("options", "problem"),
        [
            ({"mode": "dense"}, "mode='hybrid' without rerank, not mode='dense'"),
            ({"mode": "sparse"}, "not mode='sparse'"),
            ({"rerank": "colbert"}, "not rerank='colbert'"),
            ({"score": "probability"}, "score must be one of rrf, relevance, not 'probability'"),
            ({"score": None}, "score must be one of"),
            ({"weights": (1, 0)}, "needs both lists, and this fusion is dense alone"),
        ],
    )
    def test_what_relevance_is_not_for(self, options: dict[str, Any], problem: str) -> None:
        store = fill(QdrantClient(":memory:"))
        with pytest.raises(InputError, match=problem):
            UnifiedHybridRetriever(store, EMBEDDER, **{"score": "relevance", **options})

    def test_one_list_alone_says_nothing_of_relevance(self) -> None:
        store = fill(QdrantClient(":memory:"))
        for options in ({"weights": (1, 0)}, {"mode": "dense"}, {"mode": "sparse"}):
            found = UnifiedHybridRetriever(store, EMBEDDER, **options).retrieve("quick fox")  # type: ignore[arg-type]
            assert {"weak", "relevance"}.isdisjoint(notes(found)[0])


class TestStore:
    @pytest.fixture
    def index(self, store: QdrantVectorStore) -> VectorStoreIndex:
        return VectorStoreIndex.from_vector_store(store, embed_model=UnifiedTextEmbedding(EMBEDDER))

    def test_its_answers_tell_relevance_and_weakness(
        self, index: VectorStoreIndex, store: QdrantVectorStore
    ) -> None:
        asked = index.as_retriever(vector_store_query_mode="hybrid", similarity_top_k=10)
        expected = UnifiedHybridRetriever(store, EMBEDDER).retrieve("quick fox")
        found = asked.retrieve("quick fox")
        assert ids(found) == ids(expected)
        assert [note["weak"] for note in notes(found)] == [False] * 10
        assert [note["relevance"] for note in notes(found)] == pytest.approx(
            [note["relevance"] for note in notes(expected)]
        )

    def test_relevance_as_its_score(
        self, index: VectorStoreIndex, store: QdrantVectorStore
    ) -> None:
        asked = index.as_retriever(
            vector_store_query_mode="hybrid",
            similarity_top_k=10,
            vector_store_kwargs={"score": "relevance"},
        )
        retriever = UnifiedHybridRetriever(store, EMBEDDER, score="relevance")
        expected = retriever.retrieve("quick fox")
        found = asked.retrieve("quick fox")
        assert ids(found) == ids(expected)
        assert [n.score for n in found] == pytest.approx([n.score for n in expected])

    @pytest.mark.parametrize(
        "mode", [VectorStoreQueryMode.DEFAULT, VectorStoreQueryMode.SEMANTIC_HYBRID]
    )
    def test_modes_that_relevance_is_not_for(
        self, index: VectorStoreIndex, mode: VectorStoreQueryMode
    ) -> None:
        asked = index.as_retriever(
            vector_store_query_mode=mode, vector_store_kwargs={"score": "relevance"}
        )
        with pytest.raises(InputError, match="without rerank"):
            asked.retrieve("quick fox")


whole = st.integers(0, 30)


@given(
    st.dictionaries(st.integers(1, 12), whole, min_size=1, max_size=12),
    st.dictionaries(st.integers(1, 12), whole.filter(bool), max_size=12),
    st.sampled_from(get_args(Method)),
)
def test_of_two_points_one_that_is_better_in_both_lists_is_not_less_relevant(
    dense: dict[int, int], sparse: dict[int, int], method: Method
) -> None:
    lists = {}
    for name, scores in (("dense", dense), ("sparse", sparse)):
        points = [
            qm.ScoredPoint(id=point_id, version=0, score=score / 30)
            for point_id, score in sorted(scores.items(), key=lambda pair: -pair[1])
        ]
        lists[name] = order_points(points)
    fused = fuse(list(lists.values()), Fusion((1.0, 0.6), method=method), [1.0, 0.6])
    query = SparseVector(np.array([7], dtype=np.int32), np.array([0.9], dtype=np.float32))
    judged = judge_answer(dataclasses.replace(CALIBRATION, depth=8), lists, fused, query)
    assert [point.id for point, _ in judged.ranking] == [point.id for point, _ in fused]
    relevances = {int(point.id): relevance for point, relevance in judged.ranking}
    assert all(0 <= relevance <= 1 for relevance in relevances.values())
    for one, other in itertools.permutations(relevances, 2):
        is_better = True
        for scores in (dense, sparse):
            in_neither = one not in scores and other not in scores
            is_better &= in_neither or scores.get(one, -1) > scores.get(other, -1)
        if is_better:
            assert relevances[one] >= relevances[other] - 1e-12


def test_another_sparse_model_has_no_calibration_of_the_first() -> None:
    """Nothing is loaded: what is known of a model is its spec."""
    assert make_embedder("mini-m3").calibration is MODELS["mini-m3"].calibration
    assert make_embedder("mini-m3", sparse_model="bm25:none").calibration is None
    own = ModelSpec("pair", "me/dense", sparse_model="me/sparse", calibration=CALIBRATION)
    pair = make_embedder(own)
    assert pair.calibration == CALIBRATION
    assert pickle.loads(pickle.dumps(pair)).calibration == CALIBRATION
    assert make_embedder(own, sparse_model="bm25:none").calibration is None
