"""Ingestion pipelines, refreshed documents and persisted indexes over a store of ours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from llama_index.core import (
    Document,
    StorageContext,
    VectorStoreIndex,
    load_index_from_storage,
)
from llama_index.core.ingestion import DocstoreStrategy, IngestionPipeline
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.storage.docstore import SimpleDocumentStore
from qdrant_client import QdrantClient

from farm import texts_of
from unified_embeddings import UnifiedTextEmbedding
from unified_embeddings.embedders.fake import FakeEmbedder
from unified_embeddings.llama.fingerprinted_store import FingerprintedStore
from unified_embeddings.llama.payloads import RETRIEVAL_KEY
from unified_embeddings.llama.vector_store import build_vector_store
from unified_embeddings.stores.edge.client import EdgeQdrantClient
from unified_embeddings.stores.opening import Client

EMBEDDER = FakeEmbedder()
MODEL = UnifiedTextEmbedding(EMBEDDER)
sync_and_async = pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])


@pytest.fixture(params=["memory", "embedded"])
def client(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Client]:
    if request.param == "memory":
        yield QdrantClient(":memory:")
    else:
        with EdgeQdrantClient(tmp_path / "store") as client:
            yield client


@pytest.fixture
def store(client: Client) -> FingerprintedStore:
    return build_vector_store(EMBEDDER, "docs", client=client)


def stored(store: FingerprintedStore) -> list[str]:
    return sorted(node.get_content() for node in store.get_nodes())


def found(store: FingerprintedStore, question: str) -> list[str]:
    """Return what LlamaIndex's retriever finds, best first."""
    index = VectorStoreIndex.from_vector_store(store, embed_model=MODEL)
    retriever = index.as_retriever(vector_store_query_mode="hybrid", similarity_top_k=20)
    return texts_of(retriever.retrieve(question))


def documents(**texts: str) -> list[Document]:
    """Return documents by id."""
    return [Document(text=text, id_=name) for name, text in texts.items()]


LONG = "Red foxes dig dens. They sleep by day. " * 3
"""A document of more than one chunk."""


class Ingestion:
    """A pipeline that is run again and again, as a nightly job does."""

    def __init__(self, store: FingerprintedStore, strategy: DocstoreStrategy) -> None:
        self._pipeline = IngestionPipeline(
            transformations=[SentenceSplitter(chunk_size=16, chunk_overlap=0), MODEL],
            vector_store=store,
            docstore=SimpleDocumentStore(),
            docstore_strategy=strategy,
        )

    async def run(self, given: Sequence[Document], *, is_async: bool) -> int:
        """Return how many nodes were written."""
        if is_async:
            return len(await self._pipeline.arun(documents=list(given)))
        return len(self._pipeline.run(documents=list(given)))

    def persist_and_load(self, folder: Path) -> None:
        """Go on as another process would."""
        self._pipeline.persist(str(folder))
        self._pipeline.load(str(folder))


# --- ingestion pipelines ------------------------------------------------------------------------


@sync_and_async
async def test_upserts_replace_changed_documents_and_leave_the_others(
    store: FingerprintedStore, tmp_path: Path, is_async: bool
) -> None:
    ingestion = Ingestion(store, DocstoreStrategy.UPSERTS)
    first = documents(long=LONG, owl="an old owl")
    assert await ingestion.run(first, is_async=is_async) > 2
    before = stored(store)
    assert await ingestion.run(first, is_async=is_async) == 0
    assert stored(store) == before
    ingestion.persist_and_load(tmp_path / "pipeline")
    changed = documents(long="grey wolves howl", owl="an old owl")
    assert await ingestion.run(changed, is_async=is_async) == 1
    assert stored(store) == ["an old owl", "grey wolves howl"]
    assert set(found(store, "red foxes dig dens")) == {"an old owl", "grey wolves howl"}
    assert found(store, "wolves")[0] == "grey wolves howl"
    # A document that is not given again stays with this strategy.
    assert await ingestion.run(documents(hen="a hen"), is_async=is_async) == 1
    assert stored(store) == ["a hen", "an old owl", "grey wolves howl"]


@sync_and_async
async def test_upserts_and_delete_leave_exactly_what_was_given_last(
    store: FingerprintedStore, is_async: bool
) -> None:
    ingestion = Ingestion(store, DocstoreStrategy.UPSERTS_AND_DELETE)
    await ingestion.run(documents(long=LONG, owl="an old owl", hen="a hen"), is_async=is_async)
    assert await ingestion.run(documents(owl="a young owl", hen="a hen"), is_async=is_async) == 1
    assert stored(store) == ["a hen", "a young owl"]
    assert set(found(store, "red foxes old owl dens")) == {"a hen", "a young owl"}
    assert await ingestion.run(documents(hen="a hen"), is_async=is_async) == 0
    assert stored(store) == ["a hen"]


@sync_and_async
async def test_duplicates_only_skips_texts_that_are_there(
    store: FingerprintedStore, is_async: bool
) -> None:
    ingestion = Ingestion(store, DocstoreStrategy.DUPLICATES_ONLY)
    assert await ingestion.run(documents(a="an owl", b="a hen", c="an owl"), is_async=is_async) == 2
    assert await ingestion.run(documents(d="a hen", e="a fox"), is_async=is_async) == 1
    assert stored(store) == ["a fox", "a hen", "an owl"]
    assert found(store, "fox")[0] == "a fox"


@sync_and_async
async def test_a_pipeline_without_a_docstore_replaces_nodes_by_id(
    store: FingerprintedStore, is_async: bool
) -> None:
    pipeline = IngestionPipeline(transformations=[MODEL], vector_store=store)
    for text in ("a fox", "an owl"):
        node = Document(text=text, id_="7f4ff4c6-9f3c-4b4a-9c8c-0d8f4c7a5a11")
        if is_async:
            await pipeline.arun(documents=[node])
        else:
            pipeline.run(documents=[node])
    assert stored(store) == ["an owl"]


# --- refreshed documents ------------------------------------------------------------------------


def new_index(store: FingerprintedStore) -> VectorStoreIndex:
    """Return an empty index that notes its documents, too."""
    return VectorStoreIndex(
        [],
        storage_context=StorageContext.from_defaults(vector_store=store),
        embed_model=MODEL,
        transformations=[SentenceSplitter(chunk_size=16, chunk_overlap=0)],
        store_nodes_override=True,
    )


@sync_and_async
async def test_refreshing_writes_what_is_new_or_changed_and_nothing_else(
    store: FingerprintedStore, is_async: bool
) -> None:
    index = new_index(store)

    async def refresh(given: list[Document]) -> list[bool]:
        if is_async:
            return await index.arefresh_ref_docs(given)
        return index.refresh_ref_docs(given)

    assert await refresh(documents(long=LONG, owl="an old owl")) == [True, True]
    assert len(stored(store)) > 2
    assert await refresh(documents(long=LONG, owl="an old owl")) == [False, False]
    changed = documents(long="grey wolves howl", owl="an old owl", hen="a hen")
    assert await refresh(changed) == [True, False, True]
    assert stored(store) == ["a hen", "an old owl", "grey wolves howl"]
    ids = {n.node.ref_doc_id for n in index.as_retriever(similarity_top_k=9).retrieve("owl")}
    assert ids == {"long", "owl", "hen"}


def test_a_document_of_the_same_text_with_other_metadata_is_written_again(
    store: FingerprintedStore,
) -> None:
    index = new_index(store)
    index.refresh_ref_docs([Document(text="an owl", id_="owl", metadata={"year": 2023})])
    assert index.refresh_ref_docs(
        [Document(text="an owl", id_="owl", metadata={"year": 2024})]
    ) == [True]
    assert [node.metadata for node in store.get_nodes()] == [{"year": 2024}]


@sync_and_async
async def test_a_deleted_document_is_found_no_more(
    store: FingerprintedStore, is_async: bool
) -> None:
    index = new_index(store)
    index.refresh_ref_docs(documents(long=LONG, owl="an old owl"))
    if is_async:
        await index.adelete_ref_doc("long", delete_from_docstore=True)
    else:
        index.delete_ref_doc("long", delete_from_docstore=True)
    assert found(store, "red foxes dig dens") == ["an old owl"]
    assert index.refresh_ref_docs(documents(long=LONG)) == [True]
    assert "foxes" in found(store, "red foxes dig dens")[0]


def test_found_nodes_put_back_into_an_index_change_nothing(store: FingerprintedStore) -> None:
    index = new_index(store)
    index.refresh_ref_docs(documents(owl="an old owl", hen="a hen"))
    retriever = index.as_retriever(vector_store_query_mode="hybrid")
    nodes = [scored.node for scored in retriever.retrieve("owl")]
    before = {node.node_id: (node.hash, node.metadata) for node in store.get_nodes()}
    index.insert_nodes(nodes)
    assert {n.node_id: (n.hash, n.metadata) for n in store.get_nodes()} == before
    assert all(RETRIEVAL_KEY not in node.metadata for node in store.get_nodes())


# --- persisting and loading ---------------------------------------------------------------------


@pytest.mark.parametrize("keeps_nodes", [False, True])
def test_an_index_that_was_persisted_is_loaded_over_the_reopened_store(
    tmp_path: Path, keeps_nodes: bool
) -> None:
    folder, kept = tmp_path / "store", tmp_path / "storage"
    with EdgeQdrantClient(folder) as client:
        store = build_vector_store(EMBEDDER, "docs", client=client)
        index = VectorStoreIndex.from_documents(
            documents(owl="an old owl", hen="a hen"),
            storage_context=StorageContext.from_defaults(vector_store=store),
            embed_model=MODEL,
            store_nodes_override=keeps_nodes,
        )
        before = texts_of(index.as_retriever(vector_store_query_mode="hybrid").retrieve("owl"))
        index.set_index_id("animals")
        index.storage_context.persist(str(kept))
    with EdgeQdrantClient(folder) as client:
        store = build_vector_store(EMBEDDER, "docs", client=client)
        context = StorageContext.from_defaults(persist_dir=str(kept), vector_store=store)
        loaded = load_index_from_storage(context, index_id="animals", embed_model=MODEL)
        retriever = loaded.as_retriever(vector_store_query_mode="hybrid")
        assert texts_of(retriever.retrieve("owl")) == before == ["an old owl", "a hen"]
        changed = loaded.refresh_ref_docs(documents(owl="a young owl", hen="a hen", fox="a fox"))
        assert changed == [True, False, True]
        assert stored(store) == ["a fox", "a hen", "a young owl"]
