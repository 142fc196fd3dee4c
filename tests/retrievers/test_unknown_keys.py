"""A filter on a key that no passage has: an empty answer, and one warning that says why."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from llama_index.core.schema import TextNode
from llama_index.core.vector_stores.types import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
)
from qdrant_client import QdrantClient

from unified_embeddings import UnifiedHybridRetriever
from unified_embeddings.embedders.fake import FakeEmbedder
from unified_embeddings.llama import known_keys
from unified_embeddings.llama.fingerprinted_store import FingerprintedStore
from unified_embeddings.llama.vector_store import build_vector_store

EMBEDDER = FakeEmbedder(16)


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_keys, "_told", set())


@pytest.fixture(params=["embedded", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FingerprintedStore]:
    if request.param == "embedded":
        store = build_vector_store(EMBEDDER, "birds", path=tmp_path / "data")
    else:
        store = build_vector_store(EMBEDDER, "birds", client=QdrantClient(":memory:"))
    texts = ["Owls watch.", "Ducks swim."]
    nodes = [
        TextNode(text=text, metadata={"year": 2020 + number, "author": "Ann"})
        for number, text in enumerate(texts)
    ]
    dense = EMBEDDER.encode_documents(texts).dense
    assert dense is not None
    for node, vector in zip(nodes, dense, strict=True):
        node.embedding = vector.tolist()
    store.add(nodes)
    yield store
    store.client.close()


def equals(key: str, value: str | int) -> MetadataFilter:
    return MetadataFilter(key=key, value=value)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_the_retriever_warns_once(
    store: FingerprintedStore, caplog: pytest.LogCaptureFixture
) -> None:
    filters = MetadataFilters(filters=[equals("autor", "Ann")])
    retriever = UnifiedHybridRetriever(store, EMBEDDER, filters=filters)
    assert retriever.retrieve("owls") == []
    assert warnings(caplog) == [
        "A filter on collection 'birds' finds nothing: no passage has metadata 'autor'; nearest "
        "are 'author'"
    ]
    assert retriever.retrieve("owls") == []
    assert asyncio.run(retriever.aretrieve("owls")) == []
    assert len(warnings(caplog)) == 1


def test_a_call_with_filters_of_its_own(
    store: FingerprintedStore, caplog: pytest.LogCaptureFixture
) -> None:
    retriever = UnifiedHybridRetriever(store, EMBEDDER)
    filters = MetadataFilters(filters=[equals("Jahr", 2020)])
    assert asyncio.run(retriever.aretrieve("owls", filters=filters)) == []
    (warning,) = warnings(caplog)
    assert "no passage has metadata 'Jahr'" in warning


@pytest.mark.parametrize("is_async", [False, True])
def test_the_stores_own_query(
    store: FingerprintedStore, caplog: pytest.LogCaptureFixture, is_async: bool
) -> None:
    inner = MetadataFilters(filters=[equals("yaer", 2020), equals("autor", "Ann")])
    filters = MetadataFilters(filters=[inner, equals("year", 2020)], condition=FilterCondition.AND)
    vector = EMBEDDER.encode_query("owls").dense
    assert vector is not None
    query = VectorStoreQuery(
        query_str="owls",
        query_embedding=vector[0].tolist(),
        similarity_top_k=2,
        filters=filters,
    )
    found = asyncio.run(store.aquery(query)) if is_async else store.query(query)
    assert not found.nodes
    told = warnings(caplog)
    assert len(told) == 2
    assert "'yaer'; nearest are 'year'" in told[0]
    assert "'autor'; nearest are 'author'" in told[1]


def test_a_known_key_whose_value_nothing_has_is_no_mistake(
    store: FingerprintedStore, caplog: pytest.LogCaptureFixture
) -> None:
    filters = MetadataFilters(filters=[equals("year", 1999)])
    assert UnifiedHybridRetriever(store, EMBEDDER, filters=filters).retrieve("owls") == []
    assert warnings(caplog) == []


def test_nothing_is_asked_where_something_is_found(
    store: FingerprintedStore, caplog: pytest.LogCaptureFixture
) -> None:
    different = MetadataFilter(key="autor", value="Bob", operator=FilterOperator.NE)
    filters = MetadataFilters(filters=[different])
    found = UnifiedHybridRetriever(store, EMBEDDER, filters=filters).retrieve("owls")
    assert len(found) == 2
    assert warnings(caplog) == []


def test_keys_of_anybodys_requests_are_told_a_thousand_times_at_most(
    store: FingerprintedStore, caplog: pytest.LogCaptureFixture
) -> None:
    known_keys._told.update(("birds", str(number)) for number in range(1000))
    filters = MetadataFilters(filters=[equals("autor", "Ann")])
    assert UnifiedHybridRetriever(store, EMBEDDER, filters=filters).retrieve("owls") == []
    assert warnings(caplog) == []


def test_a_condition_that_passages_without_the_key_meet_is_not_blamed(
    store: FingerprintedStore, caplog: pytest.LogCaptureFixture
) -> None:
    absent = MetadataFilter(key="editor", value=None, operator=FilterOperator.IS_EMPTY)
    different = MetadataFilter(key="publisher", value="Bob", operator=FilterOperator.NE)
    neither = MetadataFilters(filters=[equals("owner", "Bob")], condition=FilterCondition.NOT)
    filters = MetadataFilters(filters=[equals("year", 1999), absent, different, neither])
    assert UnifiedHybridRetriever(store, EMBEDDER, filters=filters).retrieve("owls") == []
    assert warnings(caplog) == []
