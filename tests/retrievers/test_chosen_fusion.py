"""The retriever fuses as it is told, or as was chosen for its collection, or as its model does."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import AsyncQdrantClient, QdrantClient
from qdrant_client import models as qm

from qdrant_server import running_server
from unified_embeddings.embedders.fake import FakeEmbedder
from unified_embeddings.errors import InputError, StoreError
from unified_embeddings.llama.vector_store import build_vector_store
from unified_embeddings.models.fusion import Fusion
from unified_embeddings.retrievers.hybrid import UnifiedHybridRetriever
from unified_embeddings.search.options import choose_fusion
from unified_embeddings.stores.edge.client import EdgeQdrantClient
from unified_embeddings.stores.fusion_choice import FUSION_KEY, write_choice

EMBEDDER = FakeEmbedder(dimension=16)
TEXTS = ["quick brown fox", "lazy dog", "two rankings", "the quick dog", "a fox and a dog"]
QUERY = "quick fox"
DBSF = Fusion((0.6, 0.4), candidates=100, source="our judgements", method="dbsf")
DENSE_ALONE = Fusion((1.0, 0.0), source="our judgements")
SPARSE_ALONE = Fusion((0.0, 1.0), source="our judgements")


def fill(client: Any, texts: Sequence[str] = TEXTS) -> QdrantVectorStore:
    store = build_vector_store(EMBEDDER, "docs", client=client)
    dense = EMBEDDER.encode_documents(texts).dense
    assert dense is not None
    store.add(
        [
            TextNode(id_=str(uuid.UUID(int=i + 1)), text=text, embedding=vector.tolist())
            for i, (text, vector) in enumerate(zip(texts, dense, strict=True))
        ]
    )
    return store


@pytest.fixture
def client() -> Iterator[QdrantClient]:
    client = QdrantClient(":memory:")
    yield client
    client.close()


@pytest.fixture
def store(client: QdrantClient) -> QdrantVectorStore:
    return fill(client)


def shown(nodes: Sequence[NodeWithScore]) -> list[tuple[str, float]]:
    return [(scored.node.get_content(), round(float(scored.score or 0), 6)) for scored in nodes]


class TestPrecedence:
    OWN = Fusion((1.0, 0.5), k=20, candidates=50, source="the model's")

    @pytest.mark.parametrize(
        ("options", "chosen", "expected"),
        [
            ({}, None, OWN),
            ({}, DBSF, DBSF),
            ({"fusion": "model"}, DBSF, OWN),
            ({"fusion": SPARSE_ALONE}, DBSF, SPARSE_ALONE),
            ({"candidates": 7}, DBSF, Fusion((0.6, 0.4), candidates=7, method="dbsf")),
            ({"candidates": 7, "fusion": "model"}, DBSF, Fusion((1, 0.5), 20, 7)),
            ({"candidates": 7, "fusion": DENSE_ALONE}, None, Fusion((1, 0), candidates=7)),
            ({"weights": (1, 1)}, DBSF, Fusion((1, 1), k=60, candidates=20)),
            ({"weights": (1, 1), "rrf_k": 9}, DBSF, Fusion((1, 1), k=9)),
            ({"rrf_k": 9}, Fusion((1, 0.8), candidates=100), Fusion((1, 0.8), 9, 100)),
            # A caller who names RRF's k does not want DBSF.
            ({"rrf_k": 9}, DBSF, Fusion((1, 0.5), 9, 50)),
        ],
    )
    def test_explicit_wins_over_the_collection_and_that_over_the_model(
        self, options: dict[str, Any], chosen: Fusion | None, expected: Fusion
    ) -> None:
        given = {"candidates": "auto", "rrf_k": "auto", "weights": "auto", **options}
        fusion = choose_fusion(self.OWN, chosen=chosen, **given)
        assert (fusion.weights, fusion.candidates, fusion.method) == (
            expected.weights,
            expected.candidates,
            expected.method,
        )
        if fusion.method == "rrf":
            assert fusion.k == expected.k

    @pytest.mark.parametrize("option", [{"weights": (1, 1)}, {"rrf_k": 9}])
    def test_a_fusion_takes_no_weights_or_k_beside_it(
        self, store: QdrantVectorStore, option: dict[str, Any]
    ) -> None:
        with pytest.raises(InputError, match="leave weights= and rrf_k= out"):
            UnifiedHybridRetriever(store, EMBEDDER, fusion=DBSF, **option)


class TestACollectionsChoice:
    @pytest.mark.parametrize("place", ["memory", "embedded", "server"])
    async def test_is_honoured_and_named(
        self, place: str, client: QdrantClient, tmp_path: Path
    ) -> None:
        if place == "server":
            with running_server() as (url, _):
                remote = QdrantClient(url=url, check_compatibility=False)
                await self.check(remote)
                remote.close()
        elif place == "embedded":
            with EdgeQdrantClient(tmp_path / "store") as edge:
                await self.check(edge)
        else:
            await self.check(client)

    async def check(self, client: Any) -> None:
        store = fill(client)
        before = UnifiedHybridRetriever(store, EMBEDDER)
        assert before.fusion == EMBEDDER.fusion
        write_choice(client, "docs", DBSF)
        retriever = UnifiedHybridRetriever(store, EMBEDDER)
        assert retriever.fusion == DBSF
        assert retriever.fusion.source == "our judgements"
        expected = UnifiedHybridRetriever(store, EMBEDDER, fusion=DBSF).retrieve(QUERY)
        assert shown(retriever.retrieve(QUERY)) == shown(expected) != shown(before.retrieve(QUERY))
        assert shown(await retriever.aretrieve(QUERY)) == shown(expected)
        explicit = UnifiedHybridRetriever(store, EMBEDDER, fusion="model")
        assert shown(explicit.retrieve(QUERY)) == shown(before.retrieve(QUERY))

    def test_costs_no_further_round_trip(
        self, store: QdrantVectorStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_choice(store.client, "docs", DBSF)
        calls: list[str] = []
        for name in ("get_collection", "query_batch_points"):
            original = getattr(store.client, name)

            def counted(*args: Any, _name: str = name, _call: Any = original, **more: Any) -> Any:
                calls.append(_name)
                return _call(*args, **more)

            monkeypatch.setattr(store.client, name, counted)
        retriever = UnifiedHybridRetriever(store, EMBEDDER)
        retriever.retrieve(QUERY)
        retriever.retrieve("lazy dog")
        assert calls == ["get_collection", "query_batch_points", "query_batch_points"]

    async def test_of_a_collection_that_came_later(self, client: QdrantClient) -> None:
        stock = QdrantVectorStore("docs", client=client, enable_hybrid=True, sparse_doc_fn=len,
                                  sparse_query_fn=len)  # fmt: skip  # opens without creating
        retriever = UnifiedHybridRetriever(stock, EMBEDDER)
        assert retriever.fusion == EMBEDDER.fusion
        fill(client)
        write_choice(client, "docs", DENSE_ALONE)
        assert retriever.retrieve(QUERY)
        assert retriever.fusion == DENSE_ALONE

    async def test_over_an_async_client_alone(self) -> None:
        with running_server() as (url, client):
            fill(client)
            write_choice(client, "docs", DBSF)
            asynchronous = AsyncQdrantClient(url=url, check_compatibility=False)
            stock = QdrantVectorStore("docs", aclient=asynchronous, enable_hybrid=True,
                                      sparse_doc_fn=len, sparse_query_fn=len)  # fmt: skip
            retriever = UnifiedHybridRetriever(stock, EMBEDDER)
            assert await retriever.aretrieve(QUERY)
            assert retriever.fusion == DBSF
            await asynchronous.close()

    @pytest.mark.parametrize(
        "options", [{"fusion": "model"}, {"weights": (1, 1)}, {"mode": "dense"}], ids=str
    )
    def test_one_that_cannot_be_read_is_an_error_unless_it_is_not_needed(
        self, store: QdrantVectorStore, options: dict[str, Any]
    ) -> None:
        store.client.update_collection("docs", metadata={FUSION_KEY: {"weights": "many"}})
        with pytest.raises(StoreError, match="tune docs --reset"):
            UnifiedHybridRetriever(store, EMBEDDER)
        assert UnifiedHybridRetriever(store, EMBEDDER, **options).retrieve(QUERY)


class TestOneListAlone:
    @pytest.mark.parametrize(
        ("fusion", "mode"), [(DENSE_ALONE, "dense"), (SPARSE_ALONE, "sparse")], ids=str
    )
    @pytest.mark.parametrize("method", ["rrf", "dbsf", "min_max", "z"])
    def test_is_searched_for_alone_and_keeps_its_order(
        self,
        store: QdrantVectorStore,
        fusion: Fusion,
        mode: Any,
        method: Any,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        write_choice(store.client, "docs", Fusion(fusion.weights, method=method))
        asked: list[str | None] = []
        search = store.client.query_batch_points

        def noted(name: str, requests: Sequence[qm.QueryRequest], **options: Any) -> Any:
            asked.extend(request.using for request in requests)
            return search(name, requests, **options)

        monkeypatch.setattr(store.client, "query_batch_points", noted)
        found = UnifiedHybridRetriever(store, EMBEDDER).retrieve(QUERY)
        assert asked == [f"text-{mode}" + ("-new" if mode == "sparse" else "")]
        alone = UnifiedHybridRetriever(store, EMBEDDER, mode=mode).retrieve(QUERY)
        assert [text for text, _ in shown(found)] == [text for text, _ in shown(alone)]
        assert len(found) >= 3


class TestByScore:
    def test_scores_are_the_weighted_sums_of_normalised_scores(
        self, store: QdrantVectorStore
    ) -> None:
        """By NumPy, from the scores of the two modes."""
        expected: dict[str, float] = {}
        for mode, weight in (("dense", 0.6), ("sparse", 0.4)):
            alone = UnifiedHybridRetriever(store, EMBEDDER, mode=mode)  # type: ignore[arg-type]
            nodes = alone.retrieve(QUERY)
            scores = np.array([scored.score for scored in nodes])
            shares = 0.5 + (scores - scores.mean()) / (6 * scores.std(ddof=1))
            for scored, share in zip(nodes, shares.tolist(), strict=True):
                text = scored.node.get_content()
                expected[text] = expected.get(text, 0.0) + weight * share
        nodes = UnifiedHybridRetriever(store, EMBEDDER, fusion=DBSF).retrieve(QUERY)
        assert dict(shown(nodes)) == pytest.approx(expected, abs=1e-5)

    def test_of_distances_the_smallest_is_the_best(self, client: QdrantClient) -> None:
        """A collection of another software's, whose dense vectors are compared by distance."""
        client.create_collection(
            "docs",
            vectors_config={"text-dense": qm.VectorParams(size=16, distance=qm.Distance.EUCLID)},
            sparse_vectors_config={"text-sparse-new": qm.SparseVectorParams()},
        )
        embeddings = EMBEDDER.encode_documents(TEXTS)
        assert embeddings.dense is not None
        assert embeddings.sparse is not None
        client.upsert(
            "docs",
            [
                qm.PointStruct(
                    id=i,
                    vector={
                        "text-dense": vector.tolist(),
                        "text-sparse-new": qm.SparseVector(**sparse.to_qdrant()),
                    },
                    payload={"text": text},
                )
                for i, (text, vector, sparse) in enumerate(
                    zip(TEXTS, embeddings.dense, embeddings.sparse, strict=True)
                )
            ],
        )
        stock = QdrantVectorStore("docs", client=client, enable_hybrid=True, sparse_doc_fn=len,
                                  sparse_query_fn=len)  # fmt: skip
        retriever = UnifiedHybridRetriever(stock, EMBEDDER, adopt="trust", fusion=DBSF)
        nodes = retriever.retrieve("quick brown fox")
        assert nodes[0].node.get_content() == "quick brown fox"
