"""Both lists of many questions: what they hold, and that fusing them is what the retriever does."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from llama_index.core.schema import TextNode
from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import QdrantClient

from unified_embeddings.embedders.fake import FakeEmbedder
from unified_embeddings.errors import InputError
from unified_embeddings.evaluation.documents import POINT_ID
from unified_embeddings.evaluation.fusion_choices import fuse_documents, list_choices
from unified_embeddings.llama.text import UnifiedTextEmbedding
from unified_embeddings.llama.vector_store import build_vector_store
from unified_embeddings.retrievers.both_lists import search_both_lists
from unified_embeddings.retrievers.hybrid import UnifiedHybridRetriever
from unified_embeddings.search.ranking import id_order
from unified_embeddings.stores.edge.client import EdgeQdrantClient

EMBEDDER = FakeEmbedder(dimension=16)
WORDS = [f"word{number}" for number in range(9)]
TEXTS = [f"{a} {b} {a if ord(b[-1]) % 2 else b}" for a in WORDS for b in WORDS]
QUERIES = {f"q{i}": f"{WORDS[i]} {WORDS[-i]}" for i in range(1, 8)}
PAPERS = [f"paper {number // 2}" for number in range(len(TEXTS))]
"""Two chunks of each paper."""


@pytest.fixture(scope="module", params=["memory", "embedded"])
def store(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[QdrantVectorStore]:
    client: QdrantClient | EdgeQdrantClient = QdrantClient(":memory:")
    if request.param == "embedded":
        client = EdgeQdrantClient(tmp_path_factory.mktemp("store"))
    store = build_vector_store(EMBEDDER, "docs", client=client)
    dense = EMBEDDER.encode_documents(TEXTS).dense
    assert dense is not None
    store.add(
        [
            TextNode(
                id_=str(uuid.UUID(int=i + 1)),
                text=text,
                metadata={"source": {"paper": paper}},
                excluded_embed_metadata_keys=["source"],
                embedding=vector.tolist(),
            )
            for i, (text, paper, vector) in enumerate(zip(TEXTS, PAPERS, dense, strict=True))
        ]
    )
    yield store
    client.close()


def test_fusing_them_gives_what_the_retriever_gives(store: QdrantVectorStore) -> None:
    searched = search_both_lists(store, EMBEDDER, QUERIES, {"paper 1"}, depth=100)
    for choice in list_choices(EMBEDDER.fusion)[::4]:
        retriever = UnifiedHybridRetriever(store, EMBEDDER, similarity_top_k=50, fusion=choice)
        for query_id, text in QUERIES.items():
            papers = [node.node.metadata["source"]["paper"] for node in retriever.retrieve(text)]
            expected = list(dict.fromkeys(papers))[:10]
            found = fuse_documents(searched[query_id], choice, tie_key=id_order)
            # The retriever fuses at least as deep as the nodes asked for.
            if choice.candidates >= 50:
                assert found == expected


def test_the_field_is_found_or_given(store: QdrantVectorStore) -> None:
    found = search_both_lists(store, EMBEDDER, QUERIES, {"paper 1", "paper 9"}, depth=100)
    given = search_both_lists(
        store, EMBEDDER, QUERIES, (), depth=100, document_field="source.paper"
    )
    assert found == given
    assert set(found) == set(QUERIES)
    assert found["q1"].document_of[str(uuid.UUID(int=4))] == "paper 1"


def test_points_may_be_the_judged_documents_themselves(store: QdrantVectorStore) -> None:
    judged = {str(uuid.UUID(int=7))}
    searched = search_both_lists(store, EMBEDDER, QUERIES, judged, depth=5)
    assert searched == search_both_lists(
        store, EMBEDDER, QUERIES, judged, depth=5, document_field=POINT_ID
    )
    for query in searched.values():
        assert len(query.dense) == 5
        assert all(name == str(point) for point, name in query.document_of.items())


def test_a_question_without_lexical_weights_has_an_empty_sparse_list(
    store: QdrantVectorStore,
) -> None:
    queries = {"q": "?!"}
    (query,) = search_both_lists(
        store, EMBEDDER, queries, (), depth=5, document_field=POINT_ID
    ).values()
    assert len(query.dense) == 5
    assert not query.sparse


def test_judgements_of_other_documents_are_refused(store: QdrantVectorStore) -> None:
    with pytest.raises(InputError, match="'paper x'"):
        search_both_lists(store, EMBEDDER, QUERIES, {"paper x"}, depth=5)


def test_a_blank_question_is_named(store: QdrantVectorStore) -> None:
    with pytest.raises(InputError, match="'q2' is blank"):
        search_both_lists(store, EMBEDDER, {"q1": "word1", "q2": " "}, {"paper 1"}, depth=5)


def test_each_question_is_one_round_trip(
    store: QdrantVectorStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls = []
    search = store.client.query_batch_points
    monkeypatch.setattr(
        store.client,
        "query_batch_points",
        lambda name, requests, **more: calls.append(len(requests)) or search(name, requests),
    )
    search_both_lists(store, EMBEDDER, QUERIES, {"paper 1"}, depth=100)
    assert calls == [2] * len(QUERIES)


def test_keys_may_hold_dots_of_their_own() -> None:
    store = build_vector_store(EMBEDDER, "dotted", client=QdrantClient(":memory:"))
    nodes = [TextNode(text=TEXTS[i], metadata={"a.b": f"d{i}"}) for i in range(60)]
    store.add(UnifiedTextEmbedding(EMBEDDER)(nodes))
    queries = {f"q{i}": TEXTS[i] for i in range(52)}  # More than the field is found by.
    for field in (None, "a.b"):
        searched = search_both_lists(
            store, EMBEDDER, queries, {"d1"}, depth=10, document_field=field
        )
        assert all(len(query.document_of) >= 10 for query in searched.values())
