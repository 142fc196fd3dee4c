"""Collections that other software made, opened as they are: read, searched, filtered, written.

The payloads, ids and names of vectors are those that langchain-qdrant 1.1.0, qdrant-haystack 13.1.0
and LlamaIndex's own store wrote; `test_other_software_packages` runs the packages themselves.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import pickle
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import VectorStoreIndex
from llama_index.core.schema import (
    BaseNode,
    Document,
    ImageNode,
    IndexNode,
    MetadataMode,
    NodeRelationship,
    NodeWithScore,
    RelatedNodeInfo,
    TextNode,
)
from llama_index.core.vector_stores.types import (
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
)
from llama_index.core.vector_stores.utils import node_to_metadata_dict
from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import QdrantClient
from qdrant_client import models as qm

from foreign import haystack_payload, haystack_point_id, langchain_payload
from qdrant_server import running_server
from unified_embeddings import UnifiedTextEmbedding
from unified_embeddings.embedders.fake import FakeEmbedder
from unified_embeddings.errors import FingerprintMismatchError, InputError, StoreError
from unified_embeddings.llama.fingerprinted_store import FingerprintedStore
from unified_embeddings.llama.indexing import index_paths
from unified_embeddings.llama.payloads import own_metadata
from unified_embeddings.llama.vector_store import build_vector_store
from unified_embeddings.retrievers.hybrid import UnifiedHybridRetriever
from unified_embeddings.stores.creating import ensure_collection
from unified_embeddings.stores.edge.client import EdgeQdrantClient
from unified_embeddings.stores.opening import Client
from unified_embeddings.stores.schema import recorded_model

pytestmark = pytest.mark.filterwarnings("ignore:Failed to obtain server version")

EMBEDDER = FakeEmbedder(16)
MODEL = UnifiedTextEmbedding(EMBEDDER)
ARTICLES: list[tuple[str, dict[str, Any]]] = [
    ("A red fox jumps over the river.", {"author": "Lowe", "page": 3, "tags": ["fox", "river"]}),
    ("An owl sleeps in the old tower.", {"author": "Marsh", "page": 4, "dc.title": "Owls"}),
    ("The market opens in winter.", {"author": "Lowe", "place": {"town": "Bath"}}),
    ("Copper and silver from the island.", {}),
]
TEXTS = [text for text, _ in ARTICLES]


@dataclass(frozen=True)
class Software:
    """How a software stores a document.

    Attributes:
        payload: A document's payload, of its text, its metadata and its place in ARTICLES.
        point_id: A document's point, of its place.
        node_id: What LlamaIndex is to know it by.
        dense_name: Name of the dense vectors, "" for unnamed ones.
        sparse_name: Name of the sparse vectors; None without.
        text_of: Text and metadata as that software reads them from a payload.
        options: What has to be given to open the collection.
    """

    payload: Callable[[str, dict[str, Any], int], dict[str, Any]]
    point_id: Callable[[int], int | str]
    text_of: Callable[[dict[str, Any]], tuple[str, dict[str, Any]]]
    node_id: Callable[[int], str] | None = None
    dense_name: str = ""
    sparse_name: str | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def id_of(self, place: int) -> str:
        return str(self.point_id(place)) if self.node_id is None else self.node_id(place)


def uuid_of(place: int) -> str:
    return str(uuid.UUID(int=place + 1, version=4))


def document_id(place: int) -> str:
    return hashlib.sha256(TEXTS[place].encode()).hexdigest()


def read_langchain(payload: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    return payload["page_content"], payload["metadata"] or {}


def read_haystack(payload: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    return payload["content"], payload["meta"]


def langchain(**changes: Any) -> Software:
    fields: dict[str, Any] = {
        "payload": lambda text, metadata, _: langchain_payload(text, metadata or None),
        "point_id": uuid_of,
        "text_of": read_langchain,
    }
    return Software(**(fields | changes))


def haystack(**changes: Any) -> Software:
    fields: dict[str, Any] = {
        "payload": lambda text, meta, place: haystack_payload(document_id(place), text, meta),
        "point_id": lambda place: haystack_point_id(document_id(place)),
        "node_id": document_id,
        "text_of": read_haystack,
    }
    return Software(**(fields | changes))


SOFTWARE = {
    "langchain": langchain(),
    "langchain, named": langchain(dense_name="meaning"),
    "langchain, hybrid": langchain(sparse_name="langchain-sparse"),
    "langchain, other keys": langchain(
        payload=lambda text, metadata, _: {"body": text, "facts": metadata or None},
        text_of=lambda payload: (payload["body"], payload["facts"] or {}),
        options={"text_key": "body", "metadata_key": "facts"},
    ),
    "haystack": haystack(),
    "haystack, sparse": haystack(dense_name="text-dense", sparse_name="text-sparse"),
    "haystack, other ids": haystack(point_id=lambda place: place + 7, node_id=None),
    "plain": Software(
        payload=lambda text, metadata, _: {"body": text, **metadata},
        point_id=lambda place: place,
        text_of=lambda payload: (
            payload["body"],
            {key: value for key, value in payload.items() if key != "body"},
        ),
        dense_name="v",
        options={"text_key": "body"},
    ),
    "plain, in the stock key": Software(
        payload=lambda text, metadata, _: {"text": text, **metadata},
        point_id=lambda place: place,
        text_of=lambda payload: (
            payload["text"],
            {key: value for key, value in payload.items() if key != "text"},
        ),
    ),
}
"""All but LlamaIndex."""
SPLADE = qm.SparseVector(indices=[5, 80_000, 2**30], values=[0.5, 1.5, 0.2])


@pytest.fixture(params=["memory", "embedded", "server"])
def client(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Client]:
    if request.param == "memory":
        yield QdrantClient(":memory:")
    elif request.param == "embedded":
        with EdgeQdrantClient(tmp_path / "store") as embedded:
            yield embedded
    else:
        with running_server() as (url, _):
            yield QdrantClient(url=url, check_compatibility=False)


@pytest.fixture(params=SOFTWARE)
def software(request: pytest.FixtureRequest) -> Software:
    return SOFTWARE[request.param]


def fill(
    client: Client,
    software: Software,
    *,
    sparse: Sequence[qm.SparseVector] = (SPLADE,) * len(ARTICLES),
    distance: qm.Distance = qm.Distance.COSINE,
) -> None:
    """Make a collection `theirs` with the articles, as that software does."""
    params = qm.VectorParams(size=16, distance=distance)
    sparse_params = None
    if software.sparse_name is not None:
        sparse_params = {software.sparse_name: qm.SparseVectorParams()}
    client.create_collection(
        "theirs",
        vectors_config={software.dense_name: params} if software.dense_name else params,
        sparse_vectors_config=sparse_params,
    )
    dense = EMBEDDER.encode_documents(TEXTS).dense
    assert dense is not None
    points = []
    for place, (text, metadata) in enumerate(ARTICLES):
        vectors: dict[str, Any] = {software.dense_name: dense[place].tolist()}
        if software.sparse_name is not None:
            vectors[software.sparse_name] = sparse[place]
        payload = software.payload(text, metadata, place)
        points.append(qm.PointStruct(id=software.point_id(place), vector=vectors, payload=payload))
    client.upsert("theirs", points)


def open_theirs(client: Client, software: Software, **options: Any) -> FingerprintedStore:
    fill(client, software)
    given: dict[str, Any] = {"adopt": "trust", **software.options, **options}
    return build_vector_store(EMBEDDER, "theirs", client=client, **given)


def on(key: str, operator: FilterOperator, value: Any) -> MetadataFilters:
    return MetadataFilters(filters=[MetadataFilter(key=key, value=value, operator=operator)])


def texts_of(nodes: Sequence[BaseNode | NodeWithScore]) -> set[str]:
    return {node.get_content() for node in nodes}


# --- reading --------------------------------------------------------------------------------------


def test_every_point_is_read_as_a_node(client: Client, software: Software) -> None:
    store = open_theirs(client, software)
    nodes = {node.get_content(): node for node in store.get_nodes()}
    assert nodes.keys() == set(TEXTS)
    dense = EMBEDDER.encode_documents(TEXTS).dense
    assert dense is not None
    for place, (text, metadata) in enumerate(ARTICLES):
        node = nodes[text]
        assert node.node_id == software.id_of(place)
        expected = dict(metadata)
        if software is SOFTWARE["haystack, other ids"]:
            expected["id"] = document_id(place)
        assert node.metadata == expected
        assert node.embedding == pytest.approx(dense[place].tolist(), abs=1e-6)
        assert store.get_nodes([software.id_of(place)])[0].get_content() == text
    assert asyncio.run(store.aget_nodes([software.id_of(2)]))[0].get_content() == TEXTS[2]


def test_an_index_and_a_retriever_over_it_find_them(client: Client, software: Software) -> None:
    store = open_theirs(client, software)
    index = VectorStoreIndex.from_vector_store(store, embed_model=MODEL)
    retriever = UnifiedHybridRetriever(store, EMBEDDER, mode="dense", similarity_top_k=1)
    for place, (text, metadata) in enumerate(ARTICLES):
        (by_index,) = index.as_retriever(similarity_top_k=1).retrieve(text)
        (by_retriever,) = retriever.retrieve(text)
        (waited_for,) = asyncio.run(retriever.aretrieve(text))
        assert by_index.text == by_retriever.text == waited_for.text == text
        assert by_index.node.node_id == by_retriever.node.node_id == software.id_of(place)
        assert metadata.items() <= own_metadata(by_retriever.node).items()


FILTERS = [
    (on("author", FilterOperator.EQ, "Lowe"), {0, 2}),
    (on("author", FilterOperator.NE, "Lowe"), {1, 3}),
    (on("author", FilterOperator.IN, ["Marsh", "Nobody"]), {1}),
    (on("author", FilterOperator.IS_EMPTY, None), {3}),
    (on("page", FilterOperator.GT, 3), {1}),
    (on("tags", FilterOperator.CONTAINS, "river"), {0}),
    (on("dc.title", FilterOperator.EQ, "Owls"), {1}),
    (on("place.town", FilterOperator.EQ, "Bath"), {2}),
    (on("place.town", FilterOperator.IS_EMPTY, None), {0, 1, 3}),
]


@pytest.mark.parametrize(("filters", "places"), FILTERS, ids=lambda value: str(value)[:40])
def test_filters_find_the_metadata_where_they_are(
    software: Software, filters: MetadataFilters, places: set[int]
) -> None:
    store = open_theirs(QdrantClient(":memory:"), software)
    expected = {TEXTS[place] for place in places}
    assert texts_of(store.get_nodes(filters=filters)) == expected
    query = VectorStoreQuery(
        query_embedding=MODEL.get_query_embedding("fox"), similarity_top_k=9, filters=filters
    )
    assert texts_of(store.query(query).nodes or []) == expected
    retriever = UnifiedHybridRetriever(store, EMBEDDER, mode="dense", filters=filters)
    assert texts_of(retriever.retrieve("fox")) == expected
    if places != {0, 1, 2, 3}:
        store.delete_nodes(filters=filters)
        assert texts_of(store.get_nodes()) == set(TEXTS) - expected


def test_fields_beside_the_metadata_are_metadata_too() -> None:
    client = QdrantClient(":memory:")
    store = open_theirs(client, SOFTWARE["langchain"])
    client.set_payload("theirs", {"tenant": "north"}, points=[uuid_of(1)])
    (node,) = store.get_nodes(filters=on("tenant", FilterOperator.EQ, "north"))
    assert node.metadata == {**ARTICLES[1][1], "tenant": "north"}
    # One of the same name among the metadata comes first.
    client.set_payload("theirs", {"author": "Lowe"}, points=[uuid_of(1)])
    found = store.get_nodes(filters=on("author", FilterOperator.EQ, "Lowe"))
    assert texts_of(found) == {TEXTS[0], TEXTS[2]}


def test_a_haystack_document_without_a_text_is_a_node_without_one() -> None:
    client = QdrantClient(":memory:")
    store = open_theirs(client, SOFTWARE["haystack"])
    payload = haystack_payload("scan", None, {"author": "Reed"}) | {"blob": {"data": [1, 2]}}
    client.upsert(
        "theirs", [qm.PointStruct(id=haystack_point_id("scan"), vector={}, payload=payload)]
    )
    (node,) = store.get_nodes(["scan"])
    assert (node.get_content(), node.metadata["author"]) == ("", "Reed")


def test_a_point_without_a_text_is_named() -> None:
    client = QdrantClient(":memory:")
    store = open_theirs(client, SOFTWARE["langchain"])
    client.upsert("theirs", [qm.PointStruct(id=5, vector={}, payload={"title": "Fox"})])
    with pytest.raises(StoreError, match=r"point 5.*no 'page_content', but the keys 'title'"):
        store.get_nodes()


def test_a_hit_is_explained(software: Software) -> None:
    store = open_theirs(QdrantClient(":memory:"), software)
    retriever = UnifiedHybridRetriever(store, EMBEDDER, mode="dense", similarity_top_k=4)
    (first, *_) = retriever.retrieve("fox river")
    by_node = retriever.explain("fox river", first)
    by_id = retriever.explain("fox river", software.id_of(0))
    assert by_node == by_id
    assert (by_node.node_id, by_node.text) == (software.id_of(0), TEXTS[0])
    assert by_node.dense is not None
    assert by_node.dense.score == pytest.approx(first.score, abs=1e-5)


def test_files_are_not_indexed_among_them(tmp_path: Path) -> None:
    store = open_theirs(QdrantClient(":memory:"), SOFTWARE["langchain"])
    (tmp_path / "fox.txt").write_text("A fox.")
    with pytest.raises(InputError, match="other software's"):
        index_paths([tmp_path], store, EMBEDDER)
    assert texts_of(store.get_nodes()) == set(TEXTS)


# --- writing --------------------------------------------------------------------------------------


def new_node(text: str = "A new fox.", **fields: Any) -> TextNode:
    source = RelatedNodeInfo(node_id="report-1")
    given: dict[str, Any] = {
        "id_": uuid_of(90),
        "metadata": {"author": "Reed", "doc_id": "own"},
        "excluded_embed_metadata_keys": ["doc_id"],
        "relationships": {NodeRelationship.SOURCE: source},
        **fields,
    }
    return TextNode(text=text, **given)


def test_what_is_added_is_read_by_both(client: Client, software: Software) -> None:
    store = open_theirs(client, software)
    node = new_node()
    VectorStoreIndex.from_vector_store(store, embed_model=MODEL).insert_nodes([node])
    (stored,) = store.get_nodes([node.node_id])
    assert stored.to_dict() | {"embedding": None} == node.to_dict() | {"embedding": None}
    (found,) = UnifiedHybridRetriever(store, EMBEDDER, mode="dense", similarity_top_k=1).retrieve(
        "A new fox."
    )
    assert found.node.node_id == node.node_id

    # The other software reads its text and metadata, and no point of its own has changed.
    records, _ = client.scroll("theirs", limit=20, with_payload=True)
    payloads = {str(record.id): record.payload or {} for record in records}
    own_id = haystack_point_id(node.node_id) if software.node_id else node.node_id
    text, metadata = software.text_of(payloads.pop(own_id))
    assert text == node.text
    metadata.pop("_llama_index", None)
    assert metadata == node.metadata
    for place, (text, metadata) in enumerate(ARTICLES):
        assert payloads[str(software.point_id(place))] == software.payload(text, metadata, place)


@pytest.mark.parametrize("name", ["langchain", "haystack", "plain"])
def test_every_kind_of_node_is_stored_whole(name: str) -> None:
    store = open_theirs(QdrantClient(":memory:"), SOFTWARE[name])
    fields: dict[str, Any] = {"metadata": {"n": 1}, "embedding": [0.25] * 16}
    nodes: list[BaseNode] = [
        IndexNode(id_=uuid_of(50), text="Points on.", index_id="other", **fields),
        ImageNode(id_=uuid_of(51), text="A caption.", image_url="http://x/y.png", **fields),
        Document(id_=uuid_of(52), text="A whole one.", **fields),
        TextNode(id_=uuid_of(53), text="", **fields),
    ]
    store.add(nodes)
    for node in nodes:
        (stored,) = store.get_nodes([node.node_id])
        assert (stored.node_id, stored.get_content()) == (node.node_id, node.get_content())
        assert stored.metadata == {"n": 1}
    assert store.get_nodes([uuid_of(50)])[0].to_dict()["index_id"] == "other"
    assert store.get_nodes([uuid_of(51)])[0].to_dict()["image_url"] == "http://x/y.png"


def test_what_the_other_software_changes_is_what_is_read() -> None:
    client = QdrantClient(":memory:")
    store = open_theirs(client, SOFTWARE["langchain"])
    VectorStoreIndex.from_vector_store(store, embed_model=MODEL).insert_nodes([new_node()])
    changed = {"page_content": "An older fox.", "metadata": {"author": "Ash"}}
    client.set_payload("theirs", changed, points=[uuid_of(90)])
    (stored,) = store.get_nodes([uuid_of(90)])
    assert (stored.get_content(), stored.metadata) == ("An older fox.", {"author": "Ash"})
    assert stored.ref_doc_id == "report-1"


def test_a_document_is_deleted_by_its_id(client: Client, software: Software) -> None:
    store = open_theirs(client, software)
    index = VectorStoreIndex.from_vector_store(store, embed_model=MODEL)
    other = RelatedNodeInfo(node_id="report-2")
    index.insert_nodes(
        [
            new_node(),
            new_node(
                "Of another one.", id_=uuid_of(91), relationships={NodeRelationship.SOURCE: other}
            ),
        ]
    )
    of_first = on("ref_doc_id", FilterOperator.EQ, "report-1")
    assert texts_of(store.get_nodes(filters=of_first)) == {"A new fox."}
    store.delete("report-1")
    assert texts_of(store.get_nodes()) == {*TEXTS, "Of another one."}
    asyncio.run(store.adelete("report-2"))
    assert texts_of(store.get_nodes()) == set(TEXTS)


def test_haystacks_pieces_are_deleted_with_their_document() -> None:
    client = QdrantClient(":memory:")
    store = open_theirs(client, SOFTWARE["haystack"])
    client.set_payload(
        "theirs", {"source_id": "book"}, points=[haystack_point_id(document_id(1))], key="meta"
    )
    (piece,) = store.get_nodes([document_id(1)])
    assert piece.ref_doc_id == "book"
    query = VectorStoreQuery(
        query_embedding=MODEL.get_query_embedding("fox"), similarity_top_k=9, doc_ids=["book"]
    )
    assert texts_of(store.query(query).nodes or []) == {TEXTS[1]}
    store.delete("book")
    assert texts_of(store.get_nodes()) == {TEXTS[0], TEXTS[2], TEXTS[3]}


def test_deleting_a_document_that_nothing_records_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = open_theirs(QdrantClient(":memory:"), SOFTWARE["langchain"])
    with caplog.at_level(logging.WARNING):
        store.delete("a.md")
    assert "'a.md'" in caplog.text
    assert "delete_nodes" in caplog.text
    assert texts_of(store.get_nodes()) == set(TEXTS)


def test_metadata_in_the_place_of_the_text_are_refused() -> None:
    store = open_theirs(QdrantClient(":memory:"), SOFTWARE["plain"])
    node = new_node(metadata={"body": "of evidence"}, embedding=[0.25] * 16)
    with pytest.raises(InputError, match=r"metadata 'body' of node .*rename it") as raised:
        store.add([node])
    assert raised.value.index == 0


def test_a_text_is_put_beside_metadata_in_one_field() -> None:
    client = QdrantClient(":memory:")
    software = Software(
        payload=lambda text, metadata, _: {"doc": {"body": text, **metadata}},
        point_id=uuid_of,
        text_of=lambda payload: (payload["doc"]["body"], payload["doc"]),
        options={"text_key": "doc.body", "metadata_key": "doc"},
    )
    store = open_theirs(client, software)
    store.add([new_node(metadata={"author": "Ash"}, embedding=[0.25] * 16)])
    (record,) = client.retrieve("theirs", [uuid_of(90)])
    assert (record.payload or {})["doc"] == {"body": "A new fox.", "author": "Ash"}
    (stored,) = store.get_nodes([uuid_of(90)])
    assert (stored.get_content(), stored.metadata) == ("A new fox.", {"author": "Ash"})
    with pytest.raises(InputError, match=r"metadata 'doc.body' of node"):
        store.add([new_node(metadata={"body": "of evidence"}, embedding=[0.25] * 16)])


@pytest.mark.parametrize("metadata", [{"doc.body": "x"}, {"doc": "x"}])
def test_metadata_that_would_be_read_as_the_text_are_refused(metadata: dict[str, Any]) -> None:
    store = open_theirs(
        QdrantClient(":memory:"),
        Software(
            payload=lambda text, metadata, _: {"doc": {"body": text}, **metadata},
            point_id=uuid_of,
            text_of=lambda payload: (payload["doc"]["body"], payload),
            options={"text_key": "doc.body"},
        ),
    )
    with pytest.raises(InputError, match=r"has its texts under that key; rename it"):
        store.add([new_node(metadata=metadata, embedding=[0.25] * 16)])


def test_a_haystack_documents_own_metadata_id_is_not_its_id() -> None:
    store = open_theirs(QdrantClient(":memory:"), SOFTWARE["haystack"])
    node = new_node(metadata={"id": "ISBN 0-19-853453-1", "n": 1}, embedding=[0.25] * 16)
    store.add([node])
    (stored,) = store.get_nodes([node.node_id])
    assert (stored.node_id, stored.metadata) == (node.node_id, node.metadata)
    assert stored.hash == node.hash


@pytest.mark.parametrize("name", ["langchain", "haystack", "plain"])
@pytest.mark.parametrize("value", [{"x": 1}, "mine"])
def test_metadata_of_the_notes_name_are_kept_or_refused(name: str, value: object) -> None:
    store = open_theirs(QdrantClient(":memory:"), SOFTWARE[name])
    node = new_node(metadata={"_llama_index": value}, embedding=[0.25] * 16)
    if name != "langchain":  # the note would be in the same place
        with pytest.raises(InputError, match=r"metadata '_llama_index' of node .*rename it"):
            store.add([node])
        assert texts_of(store.get_nodes()) == set(TEXTS)
        return
    store.add([node])
    (stored,) = store.get_nodes([node.node_id])
    assert (stored.metadata, stored.ref_doc_id) == (node.metadata, "report-1")


def test_metadata_that_would_be_read_as_a_node_are_refused() -> None:
    store = open_theirs(QdrantClient(":memory:"), SOFTWARE["plain"])
    node = new_node(metadata={"_node_content": "{}"}, embedding=[0.25] * 16)
    with pytest.raises(InputError, match="metadata '_node_content' of node"):
        store.add([node])
    assert texts_of(store.get_nodes()) == set(TEXTS)


def test_an_open_store_is_cleared_and_pickled(tmp_path: Path) -> None:
    software = SOFTWARE["langchain, other keys"]
    with EdgeQdrantClient(tmp_path / "store") as client:
        fill(client, software)
    store = build_vector_store(
        EMBEDDER, "theirs", path=tmp_path / "store", adopt="trust", **software.options
    )
    again = pickle.loads(pickle.dumps(store))
    assert texts_of(again.get_nodes()) == set(TEXTS)
    store.clear()
    assert store.get_nodes() == []
    VectorStoreIndex.from_vector_store(store, embed_model=MODEL).insert_nodes([new_node()])
    (record,), _ = store.client.scroll("theirs")
    assert (record.payload["body"], record.payload["facts"]["author"]) == ("A new fox.", "Reed")
    store.client.close()


# --- LlamaIndex's own -----------------------------------------------------------------------------


def llama_index(sparse_name: str | None, dense_name: str = "text-dense") -> Software:
    def payload(text: str, metadata: dict[str, Any], place: int) -> dict[str, Any]:
        return node_to_metadata_dict(TextNode(id_=uuid_of(place), text=text, metadata=metadata))

    return Software(
        payload=payload,
        point_id=uuid_of,
        text_of=lambda payload: ("", {}),
        dense_name=dense_name,
        sparse_name=sparse_name,
    )


def own_sparse(*, with_metadata: bool) -> list[qm.SparseVector]:
    """The articles' sparse vectors by the model, of the texts that LlamaIndex embeds."""
    texts = TEXTS
    if with_metadata:
        nodes = [TextNode(text=text, metadata=metadata) for text, metadata in ARTICLES]
        texts = [node.get_content(metadata_mode=MetadataMode.EMBED) for node in nodes]
    vectors = EMBEDDER.encode_documents(texts, sparse=True).sparse or []
    return [qm.SparseVector.model_validate(vector.to_qdrant()) for vector in vectors]


@pytest.mark.parametrize("sparse_name", [None, "text-sparse-new", "text-sparse"])
@pytest.mark.parametrize("dense_name", ["text-dense", ""])
def test_a_stock_collection_keeps_its_names(
    client: Client, dense_name: str, sparse_name: str | None
) -> None:
    fill(client, llama_index(sparse_name, dense_name), sparse=own_sparse(with_metadata=True))
    store = build_vector_store(EMBEDDER, "theirs", client=client, adopt="trust")
    assert (store.dense_vector_name, store.vector_names.sparse) == (dense_name, sparse_name)
    VectorStoreIndex.from_vector_store(store, embed_model=MODEL).insert_nodes([new_node()])
    mode: Any = "hybrid" if sparse_name else "dense"
    for text in (*TEXTS, "A new fox."):
        retriever = UnifiedHybridRetriever(store, EMBEDDER, mode=mode, similarity_top_k=1)
        assert retriever.retrieve(text)[0].text == text
    if sparse_name:
        (found, *_) = UnifiedHybridRetriever(store, EMBEDDER, mode="sparse").retrieve("new fox")
        assert found.text == "A new fox."
    # Payloads stay LlamaIndex's: metadata at the top, a document's id beside them.
    (record,) = client.retrieve("theirs", [uuid_of(90)])
    assert record.payload is not None
    assert (record.payload["author"], record.payload["doc_id"]) == ("Reed", "report-1")


# --- whose sparse vectors they are ----------------------------------------------------------------


@pytest.mark.parametrize(
    "software",
    [
        llama_index("text-sparse-new"),
        llama_index("text-sparse"),
        SOFTWARE["langchain, hybrid"],
        SOFTWARE["haystack, sparse"],
    ],
    ids=["llama_index", "llama_index, old", "langchain", "haystack"],
)
def test_another_models_sparse_vectors_are_not_searched(
    client: Client, software: Software, caplog: pytest.LogCaptureFixture
) -> None:
    fill(client, software)
    with caplog.at_level(logging.WARNING):
        store = build_vector_store(EMBEDDER, "theirs", client=client, adopt="trust")
    assert "opened for its dense vectors alone" in caplog.text
    assert f"sparse_vector_name='{software.sparse_name}'" in caplog.text
    assert (store.vector_names.sparse, store.enable_hybrid) == (None, False)
    for mode in ("hybrid", "sparse"):
        with pytest.raises(StoreError, match=r"mode='dense'.*add-vectors theirs --sparse"):
            UnifiedHybridRetriever(store, EMBEDDER, mode=mode)
    index = VectorStoreIndex.from_vector_store(store, embed_model=MODEL)
    with pytest.raises(StoreError, match="mode='dense'"):
        index.as_retriever(vector_store_query_mode="hybrid").retrieve("fox")
    retriever = UnifiedHybridRetriever(store, EMBEDDER, mode="dense", similarity_top_k=1)
    assert retriever.retrieve(TEXTS[1])[0].text == TEXTS[1]
    with pytest.raises(InputError, match="enable_hybrid=True is not possible"):
        build_vector_store(EMBEDDER, "theirs", client=client, adopt="trust", enable_hybrid=True)
    # Nothing is written among the other model's vectors.
    index.insert_nodes([new_node()])
    new_id = haystack_point_id(uuid_of(90)) if software.node_id else uuid_of(90)
    (record,) = client.retrieve("theirs", [new_id], with_vectors=True)
    assert not isinstance(record.vector, dict) or software.sparse_name not in record.vector


@pytest.mark.parametrize("is_own", [True, False])
def test_a_retriever_over_a_stock_store_looks_at_its_sparse_vectors(is_own: bool) -> None:
    client = QdrantClient(":memory:")
    sparse = own_sparse(with_metadata=True) if is_own else (SPLADE,) * len(ARTICLES)
    fill(client, llama_index("text-sparse-new"), sparse=sparse)
    stock = QdrantVectorStore("theirs", client=client)
    options: dict[str, Any] = {"adopt": "trust", "similarity_top_k": 1}
    dense = UnifiedHybridRetriever(stock, EMBEDDER, mode="dense", **options)
    assert dense.retrieve(TEXTS[1])[0].text == TEXTS[1]
    if is_own:
        for mode in ("hybrid", "sparse"):
            retriever = UnifiedHybridRetriever(stock, EMBEDDER, mode=mode, **options)
            assert retriever.retrieve(TEXTS[1])[0].text == TEXTS[1]
        return
    refused = r"mode='dense'.*'text-sparse-new'.*not those of 'fake'"
    with pytest.raises(StoreError, match=refused):
        UnifiedHybridRetriever(stock, EMBEDDER, **options)
    late = QdrantVectorStore("later", client=client)
    retriever = UnifiedHybridRetriever(late, EMBEDDER, **options)
    alias = qm.CreateAlias(collection_name="theirs", alias_name="later")
    client.update_collection_aliases([qm.CreateAliasOperation(create_alias=alias)])
    for _ in range(2):
        with pytest.raises(StoreError, match=refused):
            asyncio.run(retriever.aretrieve("fox"))


@pytest.mark.parametrize("software", [SOFTWARE["langchain, hybrid"], SOFTWARE["haystack, sparse"]])
def test_sparse_vectors_that_the_caller_names_are_searched(
    client: Client, software: Software
) -> None:
    fill(client, software, sparse=own_sparse(with_metadata=False))
    store = build_vector_store(
        EMBEDDER,
        "theirs",
        client=client,
        adopt="trust",
        sparse_vector_name=software.sparse_name,
    )
    assert store.vector_names.sparse == software.sparse_name
    VectorStoreIndex.from_vector_store(store, embed_model=MODEL).insert_nodes([new_node()])
    for text in (*TEXTS, "A new fox."):
        for mode in ("hybrid", "sparse", "dense"):
            retriever = UnifiedHybridRetriever(store, EMBEDDER, mode=mode)
            assert retriever.retrieve(text)[0].text == text


def test_sparse_vectors_of_the_model_itself_are_recognised_under_haystacks_name() -> None:
    client, software = QdrantClient(":memory:"), SOFTWARE["haystack, sparse"]
    fill(client, software, sparse=own_sparse(with_metadata=False))
    store = build_vector_store(EMBEDDER, "theirs", client=client, adopt="trust")
    assert store.vector_names.sparse == "text-sparse"


def test_a_dense_model_leaves_sparse_vectors_alone() -> None:
    dense_only = FakeEmbedder(16, heads=("dense",))
    client = QdrantClient(":memory:")
    fill(client, SOFTWARE["langchain, hybrid"])
    store = build_vector_store(dense_only, "theirs", client=client, adopt="trust")
    assert store.vector_names.why_no_sparse == ""
    with pytest.raises(InputError, match=r"sparse_vector_name= needs sparse vectors"):
        build_vector_store(
            dense_only, "theirs", client=client, adopt="trust", sparse_vector_name="x"
        )


# --- what is not clear, and what does not fit -----------------------------------------------------


def test_a_collection_that_records_no_model_needs_adopt(software: Software) -> None:
    client = QdrantClient(":memory:")
    fill(client, software)
    with pytest.raises(StoreError, match=r"does not record which model.*adopt theirs --model"):
        build_vector_store(EMBEDDER, "theirs", client=client, **software.options)
    with pytest.raises(StoreError, match=r"16 dimensions.*gives 8"):
        build_vector_store(
            FakeEmbedder(8), "theirs", client=client, adopt="trust", **software.options
        )


def test_another_models_collection_is_refused_first() -> None:
    client = QdrantClient(":memory:")
    ensure_collection(client, "theirs", FakeEmbedder(16, model_name="other"))
    client.upsert("theirs", [qm.PointStruct(id=1, vector={}, payload={"strange": 1})])
    with pytest.raises(FingerprintMismatchError):
        build_vector_store(EMBEDDER, "theirs", client=client, adopt="trust")


def test_several_dense_vectors_are_listed() -> None:
    client = QdrantClient(":memory:")
    params = {
        name: qm.VectorParams(size=size, distance=qm.Distance.COSINE)
        for name, size in (("title", 16), ("body", 16), ("picture", 8))
    }
    client.create_collection("theirs", params)
    with pytest.raises(
        StoreError,
        match=r"several dense vectors \('title' of 16 dimensions, .*name one \(dense_vector_name=",
    ):
        build_vector_store(EMBEDDER, "theirs", client=client, adopt="trust")
    named = build_vector_store(
        EMBEDDER, "theirs", client=client, adopt="trust", dense_vector_name="body"
    )
    assert named.dense_vector_name == "body"
    with pytest.raises(StoreError, match=r"no dense vector named 'bodies'; it has 'title'"):
        build_vector_store(
            EMBEDDER, "theirs", client=client, adopt="trust", dense_vector_name="bodies"
        )
    # Only one is of this model's width.
    small = build_vector_store(FakeEmbedder(8), "theirs", client=client, adopt="trust")
    assert small.dense_vector_name == "picture"


def test_unknown_and_mixed_payloads_are_listed() -> None:
    client = QdrantClient(":memory:")
    fill(client, SOFTWARE["plain"])
    openings: dict[str, Any] = {"client": client, "adopt": "trust"}
    with pytest.raises(InputError, match=r"keys 'body', 'author'.*\(text_key=\)"):
        build_vector_store(EMBEDDER, "theirs", **openings)
    with pytest.raises(StoreError, match=r"none of 4 has a text under text_key='bodies'.*'body'"):
        build_vector_store(EMBEDDER, "theirs", text_key="bodies", **openings)
    with pytest.raises(InputError, match="metadata_key= needs text_key="):
        build_vector_store(EMBEDDER, "theirs", metadata_key="facts", **openings)
    mixed = [langchain_payload("One.", {}), node_to_metadata_dict(TextNode(text="Two."))]
    client.upsert(
        "theirs",
        [
            qm.PointStruct(id=place, vector={}, payload=payload)
            for place, payload in enumerate(mixed)
        ],
    )
    client.delete("theirs", points_selector=qm.Filter(must=[qm.HasIdCondition(has_id=[2, 3])]))
    with pytest.raises(InputError, match=r"several layouts \(1 of langchain, 1 of llama_index\)"):
        build_vector_store(EMBEDDER, "theirs", **openings)
    client.upsert(
        "theirs",
        [qm.PointStruct(id=9, vector={}, payload=haystack_payload("third", "Three.", {}))],
    )
    for text_key, metadata_key in (("page_content", "metadata"), ("content", "meta")):
        store = build_vector_store(
            EMBEDDER, "theirs", text_key=text_key, metadata_key=metadata_key, **openings
        )
        assert texts_of(store.get_nodes()) == {"One.", "Two.", "Three."}


def test_the_stock_text_key_reads_the_payloads_that_hold_no_node() -> None:
    client = QdrantClient(":memory:")
    fill(client, llama_index(None))
    store = build_vector_store(EMBEDDER, "theirs", client=client, adopt="trust", text_key="text")
    VectorStoreIndex.from_vector_store(store, embed_model=MODEL).insert_nodes([new_node()])
    (record,) = client.retrieve("theirs", [uuid_of(90)])
    assert record.payload is not None
    assert "_node_content" in record.payload


def test_a_new_collection_gets_the_names_given(client: Client) -> None:
    store = build_vector_store(
        EMBEDDER, "ours", client=client, dense_vector_name="meaning", sparse_vector_name="words"
    )
    info = client.get_collection("ours")
    assert set(info.config.params.vectors or {}) == {"meaning"}
    assert set(info.config.params.sparse_vectors or {}) == {"words"}
    assert recorded_model(info) is not None
    VectorStoreIndex.from_vector_store(store, embed_model=MODEL).insert_nodes([new_node()])
    reopened = build_vector_store(EMBEDDER, "ours", client=client, sparse_vector_name="words")
    (found,) = UnifiedHybridRetriever(reopened, EMBEDDER).retrieve("new fox")
    assert found.text == "A new fox."


def test_one_name_for_two_kinds_of_vectors_is_refused() -> None:
    client = QdrantClient(":memory:")
    with pytest.raises(InputError, match="both 'same'; give two names"):
        build_vector_store(
            EMBEDDER, "ours", client=client, dense_vector_name="same", sparse_vector_name="same"
        )
    with pytest.raises(InputError, match="'text-colbert' is the name of ColBERT vectors"):
        build_vector_store(
            EMBEDDER, "ours", client=client, dense_vector_name="text-colbert", colbert="full"
        )
    assert not client.collection_exists("ours")


def test_an_empty_collection_is_filled_in_the_layout_given(client: Client) -> None:
    client.create_collection("theirs", qm.VectorParams(size=16, distance=qm.Distance.COSINE))
    store = build_vector_store(
        EMBEDDER,
        "theirs",
        client=client,
        adopt="trust",
        text_key="page_content",
        metadata_key="metadata",
    )
    VectorStoreIndex.from_vector_store(store, embed_model=MODEL).insert_nodes([new_node()])
    (record,), _ = client.scroll("theirs")
    assert record.payload is not None
    assert read_langchain(record.payload)[0] == "A new fox."
