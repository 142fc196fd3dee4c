"""LangChain's and Haystack's own stores beside ours, over one collection: each reads the other.

They are no dependencies of this package, and a test is skipped without them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import VectorStoreIndex
from llama_index.core.schema import NodeRelationship, RelatedNodeInfo, TextNode
from llama_index.core.vector_stores.types import MetadataFilter, MetadataFilters
from qdrant_client import QdrantClient
from qdrant_client import models as qm

from unified_embeddings import EdgeQdrantClient, UnifiedTextEmbedding
from unified_embeddings.embedders.fake import FakeEmbedder
from unified_embeddings.llama.fingerprinted_store import FingerprintedStore
from unified_embeddings.llama.payloads import own_metadata
from unified_embeddings.llama.vector_store import build_vector_store
from unified_embeddings.retrievers.hybrid import UnifiedHybridRetriever
from unified_embeddings.stores.opening import Client
from unified_embeddings.types import SparseVector

EMBEDDER = FakeEmbedder(16)
FOX = ("A red fox jumps over the river.", {"author": "Lowe", "page": 3})
OWL = ("An owl sleeps in the old tower.", {"author": "Marsh", "page": 4})


@pytest.fixture(params=["memory", "embedded"])
def client(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Client]:
    if request.param == "memory":
        yield QdrantClient(":memory:")
    else:
        with EdgeQdrantClient(tmp_path / "store") as embedded:
            yield embedded


def dense(text: str) -> list[float]:
    vectors = EMBEDDER.encode_query(text).dense
    assert vectors is not None
    return [float(value) for value in vectors[0]]


def sparse(text: str) -> SparseVector:
    (vector,) = EMBEDDER.encode_documents([text], dense=False, sparse=True).sparse or []
    return vector


def open_store(client: Client, **options: Any) -> FingerprintedStore:
    return build_vector_store(EMBEDDER, "theirs", client=client, adopt="trust", **options)


def add(store: FingerprintedStore, text: str, **metadata: Any) -> TextNode:
    source = RelatedNodeInfo(node_id="report")
    node = TextNode(text=text, metadata=metadata, relationships={NodeRelationship.SOURCE: source})
    model = UnifiedTextEmbedding(EMBEDDER)
    VectorStoreIndex.from_vector_store(store, embed_model=model).insert_nodes([node])
    return node


def by(author: str) -> MetadataFilters:
    return MetadataFilters(filters=[MetadataFilter(key="author", value=author)])


def find(store: FingerprintedStore, text: str, **options: Any) -> Any:
    retriever = UnifiedHybridRetriever(store, EMBEDDER, similarity_top_k=1, **options)
    (found,) = retriever.retrieve(text)
    return found.node


# --- LangChain ------------------------------------------------------------------------------------


def open_langchain(client: Client, mode: str, **options: Any) -> Any:
    reason = "langchain-qdrant is not installed"
    embeddings = pytest.importorskip("langchain_core.embeddings", reason=reason)
    langchain = pytest.importorskip("langchain_qdrant", reason=reason)

    class Dense(embeddings.Embeddings):  # type: ignore[misc,name-defined]
        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            return [dense(text) for text in texts]

        def embed_query(self, text: str) -> list[float]:
            return dense(text)

    class Sparse(langchain.SparseEmbeddings):  # type: ignore[misc,name-defined]
        def embed_documents(self, texts: list[str]) -> list[Any]:
            return [self.embed_query(text) for text in texts]

        def embed_query(self, text: str) -> Any:
            vector = sparse(text)
            return langchain.SparseVector(
                indices=vector.indices.tolist(), values=vector.values.tolist()
            )

    return langchain.QdrantVectorStore(
        client,
        "theirs",
        Dense(),
        retrieval_mode=langchain.RetrievalMode(mode),
        sparse_embedding=Sparse(),
        **options,
    )


@pytest.mark.parametrize(
    ("vector_name", "keys"),
    [("", {}), ("meaning", {}), ("", {"content_payload_key": "c", "metadata_payload_key": "m"})],
    ids=["unnamed", "named", "other keys"],
)
def test_langchain_and_we_read_each_other(
    client: Client, vector_name: str, keys: dict[str, str]
) -> None:
    params = qm.VectorParams(size=16, distance=qm.Distance.COSINE)
    client.create_collection("theirs", {vector_name: params} if vector_name else params)
    theirs = open_langchain(client, "dense", vector_name=vector_name, **keys)
    fox_id, owl_id = theirs.add_texts([FOX[0], OWL[0]], [FOX[1], OWL[1]])
    given = {"text_key": "c", "metadata_key": "m"} if keys else {}
    store = open_store(client, **given)

    node = find(store, "fox", mode="dense")
    assert (node.get_content(), own_metadata(node)) == FOX
    assert node.node_id.replace("-", "") == fox_id.replace("-", "")
    assert find(store, "fox", mode="dense", filters=by("Marsh")).get_content() == OWL[0]

    added = add(store, "A new fox arrives.", author="Reed")
    (document,) = theirs.similarity_search("A new fox arrives.", k=1)
    (by_id,) = theirs.get_by_ids([added.node_id])
    for read in (document, by_id):
        assert read.page_content == "A new fox arrives."
        assert read.metadata == {
            "author": "Reed",
            "_id": added.node_id,
            "_collection_name": "theirs",
        }
    field = f"{keys.get('metadata_payload_key', 'metadata')}.author"
    condition = qm.FieldCondition(key=field, match=qm.MatchValue(value="Reed"))
    (filtered,) = theirs.similarity_search("owl", k=3, filter=qm.Filter(must=[condition]))
    assert filtered.page_content == "A new fox arrives."

    theirs.delete([added.node_id])
    assert store.get_nodes([added.node_id]) == []
    add(store, "Another fox.")
    store.delete("report")
    store.delete_nodes([owl_id])
    assert [found.page_content for found in theirs.similarity_search("owl", k=9)] == [FOX[0]]


def test_langchains_hybrid_search_finds_what_was_added(client: Client) -> None:
    client.create_collection(
        "theirs",
        {"": qm.VectorParams(size=16, distance=qm.Distance.COSINE)},
        sparse_vectors_config={"langchain-sparse": qm.SparseVectorParams()},
    )
    theirs = open_langchain(client, "hybrid")
    theirs.add_texts([FOX[0], OWL[0]], [FOX[1], OWL[1]])
    assert open_store(client).vector_names.sparse is None
    store = open_store(client, sparse_vector_name="langchain-sparse")
    for mode in ("hybrid", "sparse", "dense"):
        assert find(store, "red fox", mode=mode).get_content() == FOX[0]
    add(store, "A new badger arrives.")
    for mode in ("hybrid", "sparse", "dense"):
        reopened = open_langchain(client, mode)
        (document,) = reopened.similarity_search("A new badger arrives.", k=1)
        assert document.page_content == "A new badger arrives."


# --- Haystack -------------------------------------------------------------------------------------


@pytest.fixture(params=[False, True], ids=["dense", "sparse"])
def haystack(request: pytest.FixtureRequest, client: Client) -> Any:
    reason = "qdrant-haystack is not installed"
    stores = pytest.importorskip("haystack_integrations.document_stores.qdrant", reason=reason)
    store = stores.QdrantDocumentStore(
        ":memory:",
        index="theirs",
        embedding_dim=16,
        use_sparse_embeddings=request.param,
        progress_bar=False,
    )
    store._client = client
    store._set_up_collection("theirs", 16, True, "cosine", request.param, False)
    return store


@pytest.fixture
def document() -> Callable[..., Any]:
    dataclasses = pytest.importorskip("haystack.dataclasses", reason="Haystack is not installed")

    def make(text: str, meta: dict[str, Any], *, splade: bool) -> Any:
        embedding = dataclasses.SparseEmbedding(indices=[3, 2**20], values=[0.5, 1.0])
        return dataclasses.Document(
            content=text,
            meta=meta,
            embedding=dense(text),
            sparse_embedding=embedding if splade else None,
        )

    return make


def test_haystack_and_we_read_each_other(
    client: Client, haystack: Any, document: Callable[..., Any]
) -> None:
    splade = haystack.use_sparse_embeddings
    fox, owl = document(*FOX, splade=splade), document(*OWL, splade=splade)
    haystack.write_documents([fox, owl])
    store = open_store(client)
    assert store.vector_names.sparse is None  # Haystack's are another model's

    node = find(store, "fox", mode="dense")
    assert (node.get_content(), own_metadata(node), node.node_id) == (*FOX, fox.id)
    assert find(store, "fox", mode="dense", filters=by("Marsh")).node_id == owl.id

    added = add(store, "A new fox arrives.", author="Reed")
    condition = {"field": "meta.author", "operator": "==", "value": "Reed"}
    (filtered,) = haystack.filter_documents(condition)
    (by_id,) = haystack.get_documents_by_id([added.node_id])
    (found,) = haystack._query_by_embedding(dense("A new fox arrives."), top_k=1)
    for read in (filtered, by_id, found):
        assert (read.id, read.content) == (added.node_id, "A new fox arrives.")
        assert read.meta.pop("_llama_index")["doc_id"] == "report"
        assert read.meta == {"author": "Reed"}

    # Written back by Haystack, it stays one document, and keeps what only LlamaIndex knows.
    (again,) = haystack.get_documents_by_id([added.node_id])
    changed = replace(
        again, meta={**again.meta, "author": "Ash"}, embedding=dense("A new fox arrives.")
    )
    policy = pytest.importorskip("haystack.document_stores.types").DuplicatePolicy.OVERWRITE
    haystack.write_documents([changed], policy=policy)
    assert haystack.count_documents() == 3
    (stored,) = store.get_nodes([added.node_id])
    assert (stored.metadata, stored.ref_doc_id) == ({"author": "Ash"}, "report")

    haystack.delete_documents([owl.id])
    assert store.get_nodes([owl.id]) == []
    store.delete("report")
    store.delete_nodes([owl.id])
    assert [left.content for left in haystack.filter_documents()] == [FOX[0]]


def test_pieces_that_haystacks_splitter_made_go_with_their_document(
    client: Client, haystack: Any, document: Callable[..., Any]
) -> None:
    splitters = pytest.importorskip(
        "haystack.components.preprocessors", reason="Haystack is not installed"
    )
    splitter = splitters.DocumentSplitter(split_by="period", split_length=1)
    whole = document(f"{FOX[0]} {OWL[0]}", {}, splade=False)
    whole = replace(whole, embedding=None)
    pieces = splitter.run([whole])["documents"]
    assert len(pieces) == 2
    embedded = [replace(piece, embedding=dense(piece.content)) for piece in pieces]
    haystack.write_documents([*embedded, document("Another one.", {}, splade=False)])
    store = open_store(client)
    assert {node.ref_doc_id for node in store.get_nodes()} == {whole.id, None}
    store.delete(whole.id)
    assert [left.content for left in haystack.filter_documents()] == ["Another one."]
