"""LlamaIndex's QdrantVectorStore over the embedded store. Neither was written for the other."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.schema import NodeRelationship, RelatedNodeInfo, TextNode
from llama_index.core.vector_stores.types import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
)
from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import QdrantClient, models

from unified_embeddings import EdgeQdrantClient

WORDS = ("fox", "dog", "cat", "sea", "sun", "ice")


def dense(text: str) -> list[float]:
    return [1.0 + text.split().count(word) for word in WORDS]


def sparse(texts: list[str]) -> tuple[list[list[int]], list[list[float]]]:
    """Return each known word's number, weighted by its count."""
    rows = [
        {number: text.split().count(word) for number, word in enumerate(WORDS)} for text in texts
    ]
    kept = [{number: count for number, count in row.items() if count} for row in rows]
    return [list(row) for row in kept], [[float(c) for c in row.values()] for row in kept]


def node(number: int) -> TextNode:
    text = " ".join(WORDS[(number + step) % 6] for step in range(1 + number % 3))
    return TextNode(
        id_=str(uuid.UUID(int=number)),
        text=text,
        embedding=dense(text),
        metadata={
            "number": number,
            "share": number / 4,
            "kind": ["odd", "even"][number % 2 == 0],
            "tags": [f"t{number % 3}", f"t{number % 5}"],
            "note": f"page {number} of the sea book",
            **({"draft": True} if number % 4 == 0 else {}),
        },
        relationships={NodeRelationship.SOURCE: RelatedNodeInfo(node_id=f"doc {number % 4}")},
    )


NODES = [node(number) for number in range(24)]

FILTERS: dict[str, tuple[Any, Callable[[dict[str, Any]], bool]]] = {
    "==": ("even", lambda m: m["kind"] == "even"),
    "!=": ("even", lambda m: m["kind"] != "even"),
    "in": (["even", "x"], lambda m: m["kind"] == "even"),
    "nin": (["even", "x"], lambda m: m["kind"] != "even"),
    ">": (10, lambda m: m["number"] > 10),
    ">=": (10, lambda m: m["number"] >= 10),
    "<": (10, lambda m: m["number"] < 10),
    "<=": (10, lambda m: m["number"] <= 10),
    "text_match": ("sea", lambda m: True),
    "text_match_insensitive": ("Sea", lambda m: True),
    "is_empty": (None, lambda m: "draft" not in m),
}
KEYS = {">": "number", ">=": "number", "<": "number", "<=": "number", "is_empty": "draft"}
KEYS |= {"text_match": "note", "text_match_insensitive": "note"}


class Caller:
    """The store's methods, sync or async, under the same names."""

    def __init__(self, client: EdgeQdrantClient, *, asynchronous: bool) -> None:
        self.asynchronous = asynchronous
        self.store = QdrantVectorStore(
            "docs",
            client=client,  # type: ignore[arg-type]
            aclient=client.aclient,  # type: ignore[arg-type]
            enable_hybrid=True,
            sparse_doc_fn=sparse,
            sparse_query_fn=sparse,
        )

    def __getattr__(self, name: str) -> Any:
        if not self.asynchronous:
            return getattr(self.store, name)
        twin = {"add": "async_add", "query": "aquery", "delete": "adelete", "clear": "aclear"}
        method = getattr(self.store, twin.get(name, f"a{name}"))
        return lambda *args, **kwargs: asyncio.run(method(*args, **kwargs))


@pytest.fixture
def client(tmp_path: Path) -> Iterator[EdgeQdrantClient]:
    with EdgeQdrantClient(tmp_path / "store") as client:
        yield client


@pytest.fixture(params=["sync", "async"])
def store(client: EdgeQdrantClient, request: pytest.FixtureRequest) -> Caller:
    caller = Caller(client, asynchronous=request.param == "async")
    caller.add(NODES)
    return caller


def numbers(result: Any) -> list[int]:
    return [found.metadata["number"] for found in result.nodes]


def test_nodes_are_added_and_come_back_whole(store: Caller, client: EdgeQdrantClient) -> None:
    assert client.count("docs").count == 24
    found = store.get_nodes(node_ids=[NODES[3].node_id])
    assert found[0].text == NODES[3].text
    assert found[0].metadata == NODES[3].metadata
    assert found[0].ref_doc_id == "doc 3"
    assert "doc_id" in client.get_collection("docs").payload_schema


@pytest.mark.parametrize("mode", [*VectorStoreQueryMode][:3])
def test_a_query_answers_as_over_local_mode(store: Caller, mode: VectorStoreQueryMode) -> None:
    oracle = QdrantVectorStore(
        "docs",
        client=QdrantClient(":memory:"),
        enable_hybrid=True,
        sparse_doc_fn=sparse,
        sparse_query_fn=sparse,
    )
    oracle.add(NODES)
    query = VectorStoreQuery(
        query_embedding=dense("fox sun"),
        query_str="fox sun",
        similarity_top_k=24,
        sparse_top_k=24,
        hybrid_top_k=24,
        mode=mode,
        alpha=0.4,
    )
    given, wanted = store.query(query), oracle.query(query)
    assert given.similarities == pytest.approx(wanted.similarities, abs=1e-5)
    assert sorted(numbers(given)) == sorted(numbers(wanted))


@pytest.mark.parametrize("operator", FILTERS)
def test_each_operator_of_a_filter_selects_what_it_says(store: Caller, operator: str) -> None:
    value, holds = FILTERS[operator]
    filters = MetadataFilters(
        filters=[
            MetadataFilter(
                key=KEYS.get(operator, "kind"), value=value, operator=FilterOperator(operator)
            )
        ]
    )
    query = VectorStoreQuery(query_embedding=dense("sea"), similarity_top_k=24, filters=filters)
    wanted = [n.metadata["number"] for n in NODES if holds(n.metadata)]
    assert sorted(numbers(store.query(query))) == wanted


def test_filters_nest(store: Caller) -> None:
    def one(key: str, value: Any, operator: str = "==") -> MetadataFilter:
        return MetadataFilter(key=key, value=value, operator=FilterOperator(operator))

    filters = MetadataFilters(
        condition=FilterCondition.OR,
        filters=[
            MetadataFilters(
                condition=FilterCondition.AND,
                filters=[one("kind", "odd"), one("share", 1.25)],
            ),
            MetadataFilters(condition=FilterCondition.NOT, filters=[one("number", 2, ">")]),
            one("tags", "t4"),
        ],
    )  # fmt: skip
    query = VectorStoreQuery(query_embedding=dense("sea"), similarity_top_k=24, filters=filters)
    wanted = [number for number in range(24) if number == 5 or number <= 2 or number % 5 == 4]
    assert sorted(numbers(store.query(query))) == wanted


def test_ids_and_documents_select_too(store: Caller) -> None:
    query = VectorStoreQuery(
        query_embedding=dense("sea"),
        similarity_top_k=24,
        doc_ids=["doc 1"],
        node_ids=[str(uuid.UUID(int=number)) for number in range(6)],
    )
    assert sorted(numbers(store.query(query))) == [1, 5]


def test_deleting_by_document_by_node_and_all(store: Caller, client: EdgeQdrantClient) -> None:
    store.delete("doc 2")
    store.delete("no such document")
    assert client.count("docs").count == 18
    store.delete_nodes(node_ids=[NODES[0].node_id])
    assert client.count("docs").count == 17
    store.clear()
    assert not client.collection_exists("docs")


@pytest.mark.parametrize("asynchronous", [False, True])
def test_it_persists_and_reopens(tmp_path: Path, asynchronous: bool) -> None:
    folder = tmp_path / "kept"
    with EdgeQdrantClient(folder) as client:
        Caller(client, asynchronous=asynchronous).add(NODES[:12])
    with EdgeQdrantClient(folder) as client:
        again = Caller(client, asynchronous=asynchronous)
        again.add(NODES[12:])
        query = VectorStoreQuery(
            query_embedding=dense("ice"), query_str="ice", similarity_top_k=3, sparse_top_k=3,
            mode=VectorStoreQueryMode.HYBRID,
        )  # fmt: skip
        assert all("ice" in found.text for found in again.query(query).nodes)
        assert client.count("docs").count == 24


def test_a_collection_is_made_with_what_the_store_asks_for(client: EdgeQdrantClient) -> None:
    store = QdrantVectorStore(
        "docs",
        client=client,  # type: ignore[arg-type]
        dense_config=models.VectorParams(size=6, distance=models.Distance.DOT, on_disk=True),
        quantization_config=models.ScalarQuantization(
            scalar=models.ScalarQuantizationConfig(type=models.ScalarType.INT8)
        ),
        payload_indexes=[{"field_name": "kind", "field_schema": "keyword"}],  # type: ignore[dict-item]
    )
    store.add(NODES[:3])
    info = client.get_collection("docs")
    assert info.config.quantization_config is not None
    assert {"kind", "doc_id"} <= set(info.payload_schema)
