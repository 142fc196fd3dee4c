"""A collection with everything: three lists, stored ColBERT vectors, other names, explanations."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.core.vector_stores.types import VectorStoreQuery, VectorStoreQueryMode
from qdrant_client import QdrantClient
from qdrant_client import models as qm

from qdrant_server import running_server
from unified_embeddings import InputError, StoredColbert, UnifiedTextEmbedding, heads
from unified_embeddings.embedders.bm25 import Bm25Embedder
from unified_embeddings.embedders.fake import FakeEmbedder
from unified_embeddings.fusion import Method, fuse_lists
from unified_embeddings.llama.fingerprinted_store import FingerprintedStore
from unified_embeddings.llama.payloads import RETRIEVAL_KEY
from unified_embeddings.llama.vector_store import build_vector_store
from unified_embeddings.migration.added_vectors import add_vectors
from unified_embeddings.models.bm25 import KEYWORD_FUSION
from unified_embeddings.models.calibration import Calibration
from unified_embeddings.models.fusion import Fusion
from unified_embeddings.retrievers.hybrid import UnifiedHybridRetriever
from unified_embeddings.stores.edge.client import EdgeQdrantClient
from unified_embeddings.stores.keyword_list import KEYWORD_VECTOR
from unified_embeddings.stores.schema import record_model
from unified_embeddings.stores.stored_colbert import COLBERT_VECTOR

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


class Calibrated(FakeEmbedder):
    """A fake whose scores are calibrated."""

    @property
    def calibration(self) -> Calibration | None:
        return CALIBRATION


EMBEDDER = Calibrated(16)
COUNTER = Bm25Embedder("bm25:none")
TEXTS = [
    "The pump takes seal AB-1234C and no other seal.",
    "The pump takes seal AB-1234D; seals are counted.",
    "Call getUserById before getUserByName.",
    *(f"Filler sentence {number} about weather and seas" for number in range(20)),
]
QUESTION = "which seal has the pump 1234C?"
LISTS = ("text-dense", "text-sparse-new", KEYWORD_VECTOR)


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


def to_nodes() -> list[TextNode]:
    nodes = [TextNode(id_=str(uuid.UUID(int=row + 1)), text=text) for row, text in enumerate(TEXTS)]
    return list(UnifiedTextEmbedding(EMBEDDER)(nodes))  # type: ignore[arg-type]


def open_again(client: Any, colbert: Any = "pooled") -> FingerprintedStore:
    """Return a store over a collection that an earlier one made with all parts and filled."""
    first = build_vector_store(
        EMBEDDER, "docs", client=client, colbert=colbert, keywords="bm25:none"
    )
    first.add(to_nodes())
    return build_vector_store(EMBEDDER, "docs", client=client)


def by_id(found: Sequence[NodeWithScore]) -> dict[str, float]:
    return {hit.node.node_id: hit.score or 0.0 for hit in found}


def own_lists(client: Any, question: str) -> list[list[tuple[str, float]]]:
    """Return each list as Qdrant itself ranks it, best first."""
    encoded = EMBEDDER.encode_query(question)
    assert encoded.dense is not None
    assert encoded.sparse is not None
    counted = COUNTER.encode_query(question).sparse
    assert counted
    queries: list[Any] = [encoded.dense[0].tolist()]
    for vector in (encoded.sparse[0], counted[0]):
        queries.append(
            qm.SparseVector(indices=vector.indices.tolist(), values=vector.values.tolist())
        )
    rankings = []
    for name, query in zip(LISTS, queries, strict=True):
        points = client.query_points("docs", query=query, using=name, limit=100).points
        rankings.append([(str(point.id), point.score) for point in points])
    return rankings


def test_opened_again_it_has_all_parts(client: Any) -> None:
    store = open_again(client)
    assert store.keywords is not None
    assert store.keywords.model_name == "bm25:none"
    assert store.stored_colbert == StoredColbert()
    (record,) = client.retrieve("docs", [to_nodes()[2].node_id], with_vectors=True)
    assert set(record.vector) == {*LISTS, COLBERT_VECTOR}
    counted = COUNTER.encode_documents([TEXTS[2]]).sparse
    assert counted
    stored = record.vector[KEYWORD_VECTOR]
    assert dict(zip(stored.indices, stored.values, strict=True)) == pytest.approx(dict(counted[0]))
    (pooled,) = EMBEDDER.encode_pooled([TEXTS[2]], 2)
    assert np.shape(record.vector[COLBERT_VECTOR]) == pooled.shape


def test_three_lists_are_reranked_by_stored_rows_in_one_request(
    client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_again(client, StoredColbert(pool=2, quantisation=None))
    retriever = UnifiedHybridRetriever(store, EMBEDDER, rerank="colbert", similarity_top_k=20)
    assert retriever.fusion == KEYWORD_FUSION
    sent: list[list[str | None]] = []
    search = client.query_batch_points

    def note(collection: str, requests: Sequence[qm.QueryRequest], **options: Any) -> Any:
        sent.append([request.using for request in requests])
        return search(collection, requests, **options)

    monkeypatch.setattr(client, "query_batch_points", note)
    found = retriever.retrieve(QUESTION)
    assert sent == [[*LISTS, COLBERT_VECTOR]]
    (question,) = EMBEDDER.encode_query(QUESTION, colbert=True).colbert or []
    for hit in found:
        (rows,) = EMBEDDER.encode_pooled([hit.node.get_content()], 2)
        assert hit.score == pytest.approx(heads.colbert_score(question, rows), abs=1e-5)
    scores = list(by_id(found).values())
    assert scores == sorted(scores, reverse=True)
    candidates = fuse_lists(
        own_lists(client, QUESTION), "dbsf", weights=KEYWORD_FUSION.weights, tie_key=str
    )
    assert set(by_id(found)) == {point_id for point_id, _ in candidates[:20]}
    assert asyncio.run(retriever.aretrieve(QUESTION))[0].node.node_id == found[0].node.node_id
    assert set(found[0].node.metadata[RETRIEVAL_KEY]) >= {"dense", "sparse", "bm25", "fused"}


@pytest.mark.parametrize("method", ["rrf", "dbsf", "min_max", "z"])
def test_each_method_fuses_and_explains_three_lists(client: Any, method: Method) -> None:
    store = open_again(client)
    fusion = Fusion((0.5, 0.2, 0.3), candidates=100, method=method, source="by hand")
    retriever = UnifiedHybridRetriever(store, EMBEDDER, fusion=fusion, similarity_top_k=5)
    expected = dict(fuse_lists(own_lists(client, QUESTION), method, weights=fusion.weights))
    found = retriever.retrieve(QUESTION)
    for rank, hit in enumerate(found, 1):
        assert hit.score == pytest.approx(expected[hit.node.node_id], rel=1e-5)
        why = retriever.explain(QUESTION, hit)
        assert why.fused is not None
        assert [share.name for share in why.fused.lists] == ["dense", "sparse", "bm25"]
        assert sum(share.contribution for share in why.fused.lists) == pytest.approx(hit.score)
        assert why.ranks.fused == rank
        assert why.bm25 is not None
        assert sum(word.contribution for word in why.bm25.tokens) == pytest.approx(
            why.bm25.score, rel=1e-5
        )
        assert why.colbert is not None
        if method in ("min_max", "z"):
            assert sum(share.weight for share in why.fused.lists) == pytest.approx(1)


def test_a_reranked_passage_is_explained_with_its_rank_in_each_list(client: Any) -> None:
    store = open_again(client)
    retriever = UnifiedHybridRetriever(store, EMBEDDER, rerank="colbert")
    why = retriever.explain(QUESTION, to_nodes()[0])
    assert why.reranked
    assert why.colbert is not None
    assert why.score == why.colbert.score
    ranks = [
        [point_id for point_id, _ in ranking].index(to_nodes()[0].node_id) + 1
        for ranking in own_lists(client, QUESTION)
    ]
    assert [why.ranks.dense, why.ranks.sparse, why.ranks.bm25] == ranks
    assert why.ranks.bm25 == 1


def test_relevance_is_refused_where_the_keyword_list_is_fused(client: Any) -> None:
    store = open_again(client)
    with pytest.raises(InputError, match=r"has a keyword list too.*or fusion='model'"):
        UnifiedHybridRetriever(store, EMBEDDER, score="relevance")
    query = VectorStoreQuery(
        query_str=QUESTION,
        query_embedding=EMBEDDER.encode_query(QUESTION).dense[0].tolist(),  # type: ignore[index]
        mode=VectorStoreQueryMode.HYBRID,
        similarity_top_k=3,
    )
    with pytest.raises(InputError, match="has a keyword list too"):
        store.query(query, score="relevance")
    for hit in UnifiedHybridRetriever(store, EMBEDDER).retrieve(QUESTION):
        assert not {"relevance", "weak"} & hit.node.metadata[RETRIEVAL_KEY].keys()


def test_without_the_keyword_list_relevance_is_what_it_is_without_one(client: Any) -> None:
    store = open_again(client)
    plain = build_vector_store(EMBEDDER, "plain", client=QdrantClient(":memory:"))
    plain.add(to_nodes())
    options: list[dict[str, Any]] = [{"fusion": "model"}, {"fusion": Fusion((1.0, 0.5, 0.0))}]
    for option in options:
        ours = UnifiedHybridRetriever(store, EMBEDDER, score="relevance", **option)
        theirs = UnifiedHybridRetriever(plain, EMBEDDER, score="relevance", **option)
        found = by_id(ours.retrieve(QUESTION))
        assert found == pytest.approx(by_id(theirs.retrieve(QUESTION)), abs=1e-5)
        assert len(found) == 10
        assert "weak" in ours.retrieve(QUESTION)[0].node.metadata[RETRIEVAL_KEY]


def test_colbert_vectors_and_a_keyword_list_are_added_together(client: Any) -> None:
    build_vector_store(EMBEDDER, "docs", client=client).add(to_nodes())
    way = StoredColbert(pool=2, quantisation=None)
    report = add_vectors(client, "docs", EMBEDDER, ["colbert"], colbert=way, keywords="bm25:none")
    assert (report.added, report.heads, report.keywords) == (len(TEXTS), ("colbert",), "bm25:none")
    store = build_vector_store(EMBEDDER, "docs", client=client)
    assert store.stored_colbert == way
    added = UnifiedHybridRetriever(store, EMBEDDER, rerank="colbert").retrieve(QUESTION)
    made = open_elsewhere(way)
    expected = UnifiedHybridRetriever(made, EMBEDDER, rerank="colbert").retrieve(QUESTION)
    assert by_id(added) == pytest.approx(by_id(expected), abs=1e-5)
    copied = add_vectors(client, "docs", EMBEDDER, [], copy_to="copy")
    assert copied.total == len(TEXTS)
    copy = build_vector_store(EMBEDDER, "copy", client=client)
    assert (copy.stored_colbert, copy.keywords is not None) == (way, True)


def open_elsewhere(way: StoredColbert) -> FingerprintedStore:
    return open_again(QdrantClient(":memory:"), way)


def test_a_collection_that_is_gone_is_made_again_with_all_parts(client: Any) -> None:
    store = open_again(client)
    client.delete_collection("docs")
    store.clear()
    store.add(to_nodes())
    again = build_vector_store(EMBEDDER, "docs", client=client)
    assert again.stored_colbert == StoredColbert()
    assert again.keywords is not None
    retriever = UnifiedHybridRetriever(again, EMBEDDER, weights=(0, 0, 1), rerank="colbert")
    assert by_id(retriever.retrieve("getuserbyid")).keys() == {to_nodes()[2].node_id}


def test_names_of_other_software_and_all_parts_go_together(client: Any) -> None:
    client.create_collection(
        "theirs",
        vectors_config={"body": qm.VectorParams(size=16, distance=qm.Distance.COSINE)},
        sparse_vectors_config={"words": qm.SparseVectorParams()},
    )
    names: dict[str, Any] = {"dense_vector_name": "body", "sparse_vector_name": "words"}
    theirs = build_vector_store(EMBEDDER, "theirs", client=client, adopt="trust", **names)
    theirs.add(to_nodes())
    record_model(client, "theirs", EMBEDDER)
    added = add_vectors(
        client, "theirs", EMBEDDER, ["colbert"], colbert=StoredColbert(), keywords="bm25:none"
    )
    assert (added.added, added.is_in_place) == (len(TEXTS), True)
    store = build_vector_store(EMBEDDER, "theirs", client=client, **names)
    assert (store.vector_names.dense, store.vector_names.sparse) == ("body", "words")
    found = UnifiedHybridRetriever(store, EMBEDDER).retrieve(QUESTION)
    expected = UnifiedHybridRetriever(open_again(client), EMBEDDER).retrieve(QUESTION)
    assert by_id(found) == pytest.approx(by_id(expected), abs=1e-5)
    reranking = UnifiedHybridRetriever(store, EMBEDDER, rerank="colbert")
    why = reranking.explain(QUESTION, reranking.retrieve(QUESTION)[0])
    assert why.bm25 is not None
    assert why.sparse is not None
