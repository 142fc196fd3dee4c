"""The texts of a collection: of ours, of LlamaIndex's and of other software's points."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.schema import NodeRelationship, RelatedNodeInfo, TextNode
from qdrant_client import QdrantClient
from qdrant_client import models as qm

from qdrant_server import running_server
from unified_embeddings.embedders.fake import FakeEmbedder
from unified_embeddings.errors import StoreError
from unified_embeddings.evaluation.generated_queries import Passage
from unified_embeddings.llama.passages import count_points, read_passages
from unified_embeddings.llama.vector_store import build_vector_store
from unified_embeddings.stores.edge.client import EdgeQdrantClient

EMBEDDER = FakeEmbedder(dimension=4)


def node_id(number: int) -> str:
    return str(uuid.UUID(int=number + 1))


@pytest.fixture(params=["memory", "embedded", "server"])
def client(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    """Holds 1,203 nodes, two of each document: more than a page."""
    if request.param == "server":
        with running_server() as (url, _):
            remote = QdrantClient(url=url, check_compatibility=False)
            fill(remote)
            yield remote
            remote.close()
        return
    client: Any = QdrantClient(":memory:")
    if request.param == "embedded":
        client = EdgeQdrantClient(tmp_path / "store")
    fill(client)
    yield client
    client.close()


def fill(client: Any) -> None:
    store = build_vector_store(EMBEDDER, "docs", client=client, batch_size=500)
    nodes = []
    for number in range(1203):
        node = TextNode(
            id_=node_id(number),
            text=f"Text {number}.",
            metadata={"title": f"Title {number // 2}", "page": number},
            embedding=[1.0, 0.0, 0.0, 0.0],
        )
        source = RelatedNodeInfo(node_id=f"paper {number // 2}")
        node.relationships[NodeRelationship.SOURCE] = source
        nodes.append(node)
    store.add(nodes)


def test_every_text_is_read_once_with_its_document_and_title(client: Any) -> None:
    steps: list[int] = []
    passages = read_passages(client, "docs", document_field="doc_id", on_points=steps.append)
    assert sorted(passages, key=lambda passage: passage.passage_id) == [
        Passage(
            passage_id=node_id(number),
            text=f"Text {number}.",
            document=f"paper {number // 2}",
            titles=(f"Title {number // 2}",),
        )
        for number in range(1203)
    ]
    assert sum(steps) == count_points(client, "docs") == 1203


def test_each_point_is_a_document_unless_a_field_is_named(client: Any) -> None:
    for passage in read_passages(client, "docs"):
        assert passage.document == passage.passage_id


def plain_collection(*payloads: dict[str, Any] | None) -> QdrantClient:
    client = QdrantClient(":memory:")
    client.create_collection("docs", qm.VectorParams(size=2, distance=qm.Distance.COSINE))
    client.upsert(
        "docs",
        [
            qm.PointStruct(id=number, vector=[1.0, 0.0], payload=payload)
            for number, payload in enumerate(payloads)
        ],
    )
    return client


def test_other_softwares_points() -> None:
    """LangChain's and Haystack's payloads, and a plain one. Those without a text are left out."""
    client = plain_collection(
        {"page_content": "By LangChain.", "metadata": {"source": "a.pdf", "title": "A"}},
        {"content": "By Haystack.", "meta": {"title": "B"}, "id": "x"},
        {"text": "Plain.", "section": "C"},
        {"text": "  "},
        {"text": 7},
        {"_node_content": "not JSON"},
        None,
    )
    assert [(p.document, p.text, p.titles) for p in read_passages(client, "docs")] == [
        ("0", "By LangChain.", ("A",)),
        ("1", "By Haystack.", ("B",)),
        ("2", "Plain.", ("C",)),
    ]
    (passage,) = read_passages(client, "docs", document_field="metadata.source")
    assert passage.document == "a.pdf"


def test_nothing_to_read_is_an_error_that_names_the_field() -> None:
    client = plain_collection({"text": "Plain."}, None)
    with pytest.raises(StoreError, match=r"no point has a text.*'paper'"):
        read_passages(client, "docs", document_field="paper")
    with pytest.raises(StoreError, match="papers"):
        read_passages(client, "papers")
