"""Stores as they are opened, shared, copied and cleared, and the arguments that people paste."""

from __future__ import annotations

import asyncio
import copy
import inspect
import io
import pickle
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_index.core import VectorStoreIndex
from llama_index.core.llms import MockLLM
from llama_index.core.retrievers import QueryFusionRetriever
from llama_index.core.schema import TextNode
from llama_index.core.vector_stores.types import (
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
)
from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import AsyncQdrantClient, QdrantClient
from qdrant_client import models as qm

from qdrant_server import running_server
from unified_embeddings import UnifiedEmbeddingConfig, UnifiedTextEmbedding
from unified_embeddings.embedders.fake import FakeEmbedder
from unified_embeddings.errors import FingerprintMismatchError, InputError, StoreError
from unified_embeddings.llama.fingerprinted_store import FingerprintedStore
from unified_embeddings.llama.vector_store import build_vector_store
from unified_embeddings.retrievers.hybrid import UnifiedHybridRetriever
from unified_embeddings.retrievers.multimodal import UnifiedMultiModalRetriever
from unified_embeddings.stores import opening
from unified_embeddings.stores.edge.client import EdgeQdrantClient
from unified_embeddings.stores.schema import recorded_model
from unified_embeddings.types import Embeddings

pytestmark = pytest.mark.filterwarnings("ignore:Failed to obtain server version")

EMBEDDER = FakeEmbedder(dimension=16)
MODEL = UnifiedTextEmbedding(EMBEDDER)


@pytest.fixture(autouse=True)
def _close_folders(tmp_path: Path) -> Iterator[None]:
    """Close the folders that a test opened before `tmp_path` goes."""
    yield
    for client in list(opening._open_clients.values()):
        client.close()


@pytest.fixture
def store(tmp_path: Path) -> FingerprintedStore:
    return build_vector_store(EMBEDDER, "docs", path=tmp_path / "q")


def in_memory() -> FingerprintedStore:
    return build_vector_store(EMBEDDER, "docs", client=QdrantClient(":memory:"))


def nodes_of(*texts: str, **metadata: Any) -> list[TextNode]:
    return [TextNode(text=text, metadata=metadata) for text in texts]


def insert(store: FingerprintedStore, *texts: str, **metadata: Any) -> None:
    VectorStoreIndex.from_vector_store(store, embed_model=MODEL).insert_nodes(
        nodes_of(*texts, **metadata)
    )


def texts_of(store: FingerprintedStore) -> list[str]:
    return sorted(node.get_content() for node in store.get_nodes())


def is_on(key: str, value: Any) -> MetadataFilters:
    return MetadataFilters(
        filters=[MetadataFilter(key=key, value=value, operator=FilterOperator.EQ)]
    )


# --- one client, many event loops ---------------------------------------------------------------


@pytest.fixture
def remote() -> Iterator[FingerprintedStore]:
    with running_server() as (url, _):
        yield build_vector_store(EMBEDDER, "docs", url=url)


async def use_everything(store: FingerprintedStore, retriever: UnifiedHybridRetriever) -> None:
    """Call every coroutine of a store, an index and a retriever."""
    index = VectorStoreIndex.from_vector_store(store, embed_model=MODEL)
    nodes = nodes_of("a red fox", "an owl", used=True)
    await index.ainsert_nodes(nodes)
    found = await retriever.aretrieve("fox")
    assert found[0].text == "a red fox"
    assert (await index.as_retriever(similarity_top_k=1).aretrieve("an owl"))[0].text == "an owl"
    query = VectorStoreQuery(
        query_str="fox",
        query_embedding=MODEL.get_query_embedding("fox"),
        mode=VectorStoreQueryMode.HYBRID,
    )
    assert (await store.aquery(query)).ids
    assert len(await store.aget_nodes(filters=is_on("used", 1))) == 0
    assert await store.aget_nodes([nodes[0].node_id])
    await store.adelete_nodes([node.node_id for node in nodes])
    await store.adelete("no such document")


def test_a_server_can_be_asked_from_any_number_of_event_loops(remote: FingerprintedStore) -> None:
    retriever = UnifiedHybridRetriever(remote, EMBEDDER)
    for _ in range(4):
        asyncio.run(use_everything(remote, retriever))
    assert texts_of(remote) == []
    insert(remote, "a red fox")
    assert retriever.retrieve("fox")[0].text == "a red fox"


def test_a_server_can_be_asked_from_event_loops_in_several_threads(
    remote: FingerprintedStore,
) -> None:
    retriever = UnifiedHybridRetriever(remote, EMBEDDER)
    insert(remote, "a red fox")

    async def ask_often() -> None:
        answers = await asyncio.gather(*(retriever.aretrieve("fox") for _ in range(5)))
        assert all(nodes[0].text == "a red fox" for nodes in answers)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: asyncio.run(ask_often()), range(8)))


def test_sync_calls_that_run_event_loops_of_their_own_work_over_a_server(
    remote: FingerprintedStore,
) -> None:
    insert(remote, "a red fox")
    fused = QueryFusionRetriever(
        [UnifiedHybridRetriever(remote, EMBEDDER), UnifiedHybridRetriever(remote, EMBEDDER)],
        llm=MockLLM(),
        num_queries=1,
        use_async=True,
    )
    for _ in range(3):
        assert fused.retrieve("fox")[0].text == "a red fox"


def test_a_loop_that_is_closed_midway_leaves_the_store_usable(remote: FingerprintedStore) -> None:
    insert(remote, "a red fox")
    retriever = UnifiedHybridRetriever(remote, EMBEDDER)

    async def give_up() -> None:
        asking = asyncio.create_task(retriever.aretrieve("fox"))
        await asyncio.sleep(0)
        asking.cancel()

    for _ in range(3):
        asyncio.run(give_up())
    assert asyncio.run(retriever.aretrieve("fox"))[0].text == "a red fox"


def test_requests_to_a_server_do_not_block_the_event_loop() -> None:
    started, may_end = threading.Event(), threading.Event()
    with running_server() as (url, behind):
        store = build_vector_store(EMBEDDER, "docs", url=url)
        scroll = behind.scroll

        def slow_scroll(*args: Any, **options: Any) -> Any:
            started.set()
            assert may_end.wait(30)
            return scroll(*args, **options)

        behind.scroll = slow_scroll  # type: ignore[method-assign]

        async def ask() -> None:
            asking = asyncio.create_task(store.aget_nodes())
            await asyncio.to_thread(started.wait, 30)
            assert not asking.done()
            may_end.set()
            assert await asking == []

        asyncio.run(ask())


# --- clearing -----------------------------------------------------------------------------------


async def clear(store: FingerprintedStore) -> None:
    store.clear()


@pytest.mark.parametrize("way", [clear, FingerprintedStore.aclear])
@pytest.mark.parametrize("place", ["folder", "memory", "server"])
def test_a_cleared_collection_is_empty_and_still_of_its_model(
    tmp_path: Path, place: str, way: Callable[[FingerprintedStore], Awaitable[None]]
) -> None:
    with running_server() as (url, _):
        where: dict[str, Any] = {
            "folder": {"path": tmp_path / "q"},
            "memory": {"client": QdrantClient(":memory:")},
            "server": {"url": url},
        }[place]
        store = build_vector_store(EMBEDDER, "docs", **where)
        retriever = UnifiedHybridRetriever(store, EMBEDDER)
        insert(store, "a red fox")
        before = store.client.get_collection("docs")
        asyncio.run(way(store))
        after = store.client.get_collection("docs")
        assert recorded_model(after) == recorded_model(before)
        assert recorded_model(after) is not None
        assert after.config.params == before.config.params
        assert after.payload_schema.keys() == before.payload_schema.keys()
        assert store.get_nodes() == []
        assert retriever.retrieve("fox") == []
        insert(store, "an owl")
        assert retriever.retrieve("owl")[0].text == "an owl"
        other = FakeEmbedder(dimension=16, model_name="other")
        with pytest.raises(FingerprintMismatchError):
            build_vector_store(other, "docs", client=store.client)


@pytest.mark.parametrize("place", ["folder", "memory"])
def test_clearing_under_an_alias_empties_the_collection_behind_it(
    tmp_path: Path, place: str
) -> None:
    client = EdgeQdrantClient(tmp_path) if place == "folder" else QdrantClient(":memory:")
    insert(build_vector_store(EMBEDDER, "docs-1", client=client), "a red fox")
    alias = qm.CreateAlias(collection_name="docs-1", alias_name="docs")
    client.update_collection_aliases([qm.CreateAliasOperation(create_alias=alias)])
    store = build_vector_store(EMBEDDER, "docs", client=client)
    for clear_store in (clear, FingerprintedStore.aclear):
        insert(store, "an owl")
        asyncio.run(clear_store(store))
        assert store.get_nodes() == []
        assert client.count("docs-1").count == 0
        assert [a.alias_name for a in client.get_aliases().aliases] == ["docs"]


def test_clearing_a_collection_that_is_gone_makes_it(store: FingerprintedStore) -> None:
    store.client.delete_collection("docs")
    store.clear()
    insert(store, "a red fox")
    assert texts_of(store) == ["a red fox"]


def test_a_cleared_collection_has_the_settings_it_was_made_with(tmp_path: Path) -> None:
    store = build_vector_store(
        EMBEDDER,
        "docs",
        path=tmp_path / "q",
        on_disk_payload=True,
        hnsw_config={"m": 5},  # type: ignore[typeddict-item]  # as a server's client takes it
        payload_indexes=[{"field_name": "year", "field_schema": "integer"}],
    )
    alias = qm.CreateAlias(collection_name="docs", alias_name="current")
    store.client.update_collection_aliases([qm.CreateAliasOperation(create_alias=alias)])
    before = store.client.get_collection("docs")
    again = build_vector_store(EMBEDDER, "docs", path=tmp_path / "q")  # names no settings
    again.clear()
    after = store.client.get_collection("current")
    assert after.config == before.config
    assert after.config.params.on_disk_payload is True
    assert after.config.hnsw_config.m == 5
    assert set(after.payload_schema) == {"doc_id", "year"}


# --- arguments that people paste ----------------------------------------------------------------


STOCK_STORE_OPTIONS = inspect.signature(QdrantVectorStore.__init__).parameters.keys() - {
    "self",
    "kwargs",
    "collection_name",
}


@pytest.mark.parametrize("option", sorted(STOCK_STORE_OPTIONS))
def test_every_option_of_the_stock_store_is_taken_or_replaced_by_advice(option: str) -> None:
    parameters = inspect.signature(UnifiedEmbeddingConfig.vector_store).parameters
    if option in parameters:
        return
    with pytest.raises(InputError, match=f"^{option}= is not taken here: .{{10}}"):
        build_vector_store(EMBEDDER, "docs", path="nowhere", **{option: None})  # type: ignore[misc]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"enable_hybrid": True, "fastembed_sparse_model": "Qdrant/bm25"}, "sparse_model="),
        ({"sparse_doc_fn": print}, "sparse vectors are the model's own"),
        ({"enable_hybrid": False}, r"retriever\(mode='dense'\)"),
        ({"index_doc_id": False}, "documents are deleted"),
        ({"on_disk_payloads": True}, "did you mean on_disk_payload="),
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": 2.5}, "batch_size"),
        ({"max_retries": True}, "max_retries"),
        ({"hnsw_config": "fast"}, "hnsw_config= cannot be 'fast'"),
        ({"hnsw_config": {"mm": 16}}, "hnsw_config= cannot be"),
        ({"on_disk_payload": "sometimes"}, "on_disk_payload="),
        ({"payload_indexes": 5}, "payload_indexes="),
        ({"payload_indexes": [{"name": "year"}]}, "field_name"),
        ({"text_key": 5}, "text_key="),
        ({"hybrid_fusion_fn": 5}, "hybrid_fusion_fn="),
        ({"client_kwargs": {"timeout": 3}}, "client_kwargs="),
        ({"aclient": QdrantClient(":memory:")}, "AsyncQdrantClient"),
        (
            {"aclient": AsyncQdrantClient(url="http://127.0.0.1:1", check_compatibility=False)},
            "leave aclient= out",
        ),
        ({"api_key": 5}, "api_key="),
        ({"adopt": "yes"}, "adopt must be 'trust'"),
    ],
)
def test_what_cannot_be_meant_is_refused_and_leaves_nothing_behind(
    tmp_path: Path, options: dict[str, Any], problem: str
) -> None:
    with pytest.raises(InputError, match=problem):
        build_vector_store(EMBEDDER, "docs", path=tmp_path / "a" / "q", **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "options"), [("new", {"shard_number": 2}), ("a/b", {}), ("x" * 300, {})]
)
def test_what_the_core_refuses_leaves_nothing_behind(
    tmp_path: Path, name: str, options: dict[str, Any]
) -> None:
    folder = tmp_path / "a" / "q"
    with pytest.raises(StoreError):
        build_vector_store(EMBEDDER, name, path=folder, **options)
    assert list(tmp_path.iterdir()) == []
    store = build_vector_store(EMBEDDER, "docs", path=folder)
    with pytest.raises(StoreError):
        build_vector_store(EMBEDDER, name, path=folder, **{"shard_number": 2, **options})
    insert(store, "a red fox")
    assert texts_of(store) == ["a red fox"]


@pytest.mark.parametrize(
    "place",
    [
        {"path": 5},
        {"path": ""},
        {"path": "a\0b"},
        {"path": "~nosuchuser/store"},
        {"path": ":memory:"},
        {"url": 5},
        {"url": " "},
        {"client": "http://localhost:6333"},
        {"client": 5},
    ],
)
def test_a_place_that_is_none_is_an_input_error(place: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        build_vector_store(EMBEDDER, "docs", **place)


def test_an_async_client_of_another_place_is_refused() -> None:
    client, aclient = QdrantClient(":memory:"), AsyncQdrantClient(":memory:")
    with pytest.raises(InputError, match="leave aclient= out"):
        build_vector_store(EMBEDDER, "docs", client=client, aclient=aclient)
    assert client.get_collections().collections == []


def test_numpys_numbers_are_options(tmp_path: Path) -> None:
    store = build_vector_store(
        EMBEDDER,
        "docs",
        path=tmp_path / "q",
        enable_hybrid=np.bool_(True),  # type: ignore[arg-type]
        batch_size=np.int64(2),  # type: ignore[arg-type]
        shard_number=np.int32(1),  # type: ignore[arg-type]
    )
    insert(store, "a red fox", "an owl", "the sea")
    assert len(texts_of(store)) == 3
    assert len(store.get_nodes(limit=np.int64(2))) == 2  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "nodes",
    [{"a": "b"}, "text", 5, None, io.StringIO("text"), TextNode(text="x"), ["text"]],
    ids=lambda nodes: type(nodes).__name__,
)
def test_what_is_no_list_of_nodes_is_refused(store: FingerprintedStore, nodes: Any) -> None:
    with pytest.raises(InputError, match="node"):
        store.add(nodes)
    with pytest.raises(InputError, match="node"):
        asyncio.run(store.async_add(nodes))


@pytest.mark.parametrize("node_ids", [{"a": "b"}, "17", 5, [None], [1.5], ["my node"], [True]])
def test_what_is_no_list_of_ids_is_refused(store: FingerprintedStore, node_ids: Any) -> None:
    for call in (store.get_nodes, store.delete_nodes):
        with pytest.raises(InputError, match="id"):
            call(node_ids)
    with pytest.raises(InputError):
        store.query(VectorStoreQuery(query_embedding=[1.0] * 16, node_ids=node_ids))


@pytest.mark.parametrize("node_ids", [("17",), {"17"}, np.array(["17"]), [17], [np.int64(17)]])
def test_ids_come_in_any_collection_and_may_be_numbers(
    store: FingerprintedStore, node_ids: Any
) -> None:
    store.add([TextNode(id_="17", text="a", embedding=[1.0] * 16)])
    insert(store, "b")
    assert [node.node_id for node in store.get_nodes(node_ids)] == ["17"]
    store.delete_nodes(node_ids)
    assert texts_of(store) == ["b"]
    for none in ((), set(), np.array([])):
        store.delete_nodes(none)  # type: ignore[arg-type]
        assert store.get_nodes(none) == []  # type: ignore[arg-type]
    assert texts_of(store) == ["b"]


@pytest.mark.parametrize(
    "query",
    [
        None,
        "fox",
        VectorStoreQuery(query_embedding=[1.0] * 3),
        VectorStoreQuery(query_embedding=[float("nan")] * 16),
        VectorStoreQuery(query_embedding="fox"),  # type: ignore[arg-type]
        VectorStoreQuery(),
        VectorStoreQuery(query_str="fox"),
        VectorStoreQuery(query_str="fox", mode=VectorStoreQueryMode.HYBRID),
        VectorStoreQuery(query_embedding=[1.0] * 16, mode=VectorStoreQueryMode.HYBRID),
        VectorStoreQuery(query_embedding=[1.0] * 16, mode=VectorStoreQueryMode.SPARSE),
        VectorStoreQuery(query_embedding=[1.0] * 16, similarity_top_k=0),
        VectorStoreQuery(query_embedding=[1.0] * 16, similarity_top_k=10**30),
        VectorStoreQuery(query_embedding=[1.0] * 16, doc_ids="abc"),  # type: ignore[arg-type]
    ],
)
def test_what_is_no_query_is_refused(store: FingerprintedStore, query: Any) -> None:
    with pytest.raises(InputError):
        store.query(query)
    with pytest.raises(InputError):
        asyncio.run(store.aquery(query))


@pytest.mark.parametrize("mode", [VectorStoreQueryMode.HYBRID, VectorStoreQueryMode.SPARSE])
def test_a_mode_that_the_model_cannot_serve_is_refused(mode: VectorStoreQueryMode) -> None:
    dense_only = FakeEmbedder(dimension=16, heads=("dense",))
    store = build_vector_store(dense_only, "docs", client=QdrantClient(":memory:"))
    query = VectorStoreQuery(query_str="fox", query_embedding=[1.0] * 16, mode=mode)
    with pytest.raises(InputError, match="no sparse ones, which this mode needs"):
        store.query(query)


def test_the_model_never_runs_in_the_event_loop(
    store: FingerprintedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    insert(store, "a red fox", "an owl")
    threads: list[threading.Thread] = []
    encode_query = EMBEDDER.encode_query
    embedding = MODEL.get_query_embedding("fox")

    def watched(text: str, **options: Any) -> Embeddings:
        threads.append(threading.current_thread())
        return encode_query(text, **options)

    monkeypatch.setattr(EMBEDDER, "encode_query", watched)
    for mode in (VectorStoreQueryMode.HYBRID, VectorStoreQueryMode.SPARSE):
        query = VectorStoreQuery(
            query_str="fox",
            query_embedding=embedding,
            mode=mode,
            alpha=0.0,
            similarity_top_k=1,
        )
        assert asyncio.run(store.aquery(query)).ids == store.query(query).ids
    ours = threading.current_thread()
    assert [thread is ours for thread in threads] == [False, True, False, True]


@pytest.mark.parametrize("embedding", [[1.0] * 3, [float("inf")] * 16, [1e39] * 16, []])
def test_an_embedding_of_another_model_is_refused_and_nothing_stored(
    store: FingerprintedStore, embedding: Any
) -> None:
    nodes = [TextNode(text="a", embedding=[1.0] * 16), TextNode(text="b", embedding=[1.0] * 16)]
    nodes[1].embedding = embedding
    with pytest.raises(InputError, match=f"item 1: the embedding of node {nodes[1].node_id}"):
        store.add(nodes)
    assert store.get_nodes() == []


# --- metadata -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        (np.int64(5), 5),
        (np.uint8(5), 5),
        (np.float32(1.5), 1.5),
        (np.bool_(True), True),
        (np.str_("x"), "x"),
        (np.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
        (np.datetime64("2020-01-02"), "2020-01-02"),
        ({"a": {"b": np.int64(1)}}, {"a": {"b": 1}}),
        ((1, "a", None), [1, "a", None]),
        (date(2020, 1, 2), "2020-01-02"),
        (Path("a/b"), "a/b"),
        (2**64 - 1, 2**64 - 1),
    ],
)
def test_metadata_becomes_json(store: FingerprintedStore, value: Any, stored: Any) -> None:
    insert(store, "a red fox", key=value)
    (node,) = store.get_nodes()
    assert node.metadata == {"key": stored}


async def test_a_point_without_a_text_is_an_error_of_the_store(store: FingerprintedStore) -> None:
    point = qm.PointStruct(id=1, vector={}, payload={"page_content": "Foxes jump."})
    store.client.upsert(store.collection_name, [point])
    with pytest.raises(StoreError, match="reading nodes"):
        store.get_nodes()
    with pytest.raises(StoreError, match="reading nodes"):
        await store.aget_nodes()


@pytest.mark.parametrize(
    "value",
    [float("nan"), np.inf, 2**64, 10**5000, -(2**63) - 1, print, {1: 2}, "\ud800"],
    ids=lambda value: type(value).__name__,  # Python does not write out thousands of digits
)
def test_metadata_that_is_not_json_is_refused_by_node_and_key(
    store: FingerprintedStore, value: Any
) -> None:
    good = TextNode(text="a", embedding=[1.0] * 16)
    bad = TextNode(text="b", embedding=[1.0] * 16, metadata={"key": {"nested": [value]}})
    with pytest.raises(InputError, match=f"item 1: metadata 'key' of node {bad.node_id}"):
        store.add([good, bad])
    assert store.get_nodes() == []


# --- copies -------------------------------------------------------------------------------------


WAYS: dict[str, Callable[[Any], Any]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda it: pickle.loads(pickle.dumps(it)),
}


@pytest.mark.parametrize("way", WAYS)
def test_copies_of_a_store_read_and_write_the_same_collection(
    store: FingerprintedStore, way: str
) -> None:
    insert(store, "a red fox")
    twin = WAYS[way](store)
    insert(twin, "an owl")
    assert texts_of(store) == texts_of(twin) == ["a red fox", "an owl"]
    assert len(asyncio.run(twin.aget_nodes())) == 2
    asyncio.run(twin.aclear())
    assert texts_of(store) == []


@pytest.mark.parametrize("way", WAYS)
def test_copies_of_a_retriever_find_the_same(store: FingerprintedStore, way: str) -> None:
    insert(store, "a red fox", "an owl", kind="animal")
    retriever = UnifiedHybridRetriever(
        store, EMBEDDER, similarity_top_k=1, filters=is_on("kind", "animal")
    )
    twin = WAYS[way](retriever)
    assert [node.text for node in twin.retrieve("fox")] == ["a red fox"]
    assert asyncio.run(twin.aretrieve("owl"))[0].text == "an owl"


def test_over_a_server_too() -> None:
    with running_server() as (url, _):
        store = build_vector_store(EMBEDDER, "docs", url=url)
        insert(store, "a red fox")
        twin = pickle.loads(pickle.dumps(UnifiedHybridRetriever(store, EMBEDDER)))
        assert twin.retrieve("fox")[0].text == "a red fox"


def test_what_is_over_a_client_of_the_callers_cannot_be_pickled_and_says_so() -> None:
    store = in_memory()
    insert(store, "a red fox")
    stock = QdrantVectorStore("docs", client=store.client)
    for it in (store, UnifiedHybridRetriever(store, EMBEDDER)):
        with pytest.raises(InputError, match="cannot be pickled"):
            pickle.dumps(it)
        assert copy.deepcopy(it) is not None
    with pytest.raises(InputError, match="cannot be pickled"):
        pickle.dumps(UnifiedHybridRetriever(stock, EMBEDDER, mode="dense"))


def test_a_client_of_a_folder_can_be_neither_copied_nor_pickled_and_says_so(tmp_path: Path) -> None:
    with EdgeQdrantClient(tmp_path / "q") as client:
        for way in WAYS.values():
            with pytest.raises(InputError, match="neither copied nor pickled"):
                way(client)


# --- signatures ---------------------------------------------------------------------------------


def shown(function: Callable[..., Any]) -> dict[str, object]:
    """Return the keyword arguments that an editor shows, with their defaults."""
    return {
        name: parameter.default
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }


def test_the_configs_methods_show_the_options_that_there_are() -> None:
    of_retriever = shown(UnifiedHybridRetriever)
    assert shown(UnifiedEmbeddingConfig.retriever) == {**of_retriever, "mode": None}
    assert shown(UnifiedEmbeddingConfig.multimodal_retriever) == shown(UnifiedMultiModalRetriever)
    of_store = shown(UnifiedEmbeddingConfig.vector_store)
    assert of_store == shown(UnifiedEmbeddingConfig.image_store)
    assert shown(build_vector_store).items() <= of_store.items()
    create = inspect.signature(QdrantClient.create_collection).parameters
    for name, default in of_store.items():
        known = name in shown(build_vector_store) or name in STOCK_STORE_OPTIONS or name in create
        assert known, name
        if name in STOCK_STORE_OPTIONS and name not in ("enable_hybrid", "client_kwargs"):
            stock = inspect.signature(QdrantVectorStore.__init__).parameters[name].default
            assert default == stock, name


def test_arguments_in_the_wrong_place_are_input_errors(store: FingerprintedStore) -> None:
    with pytest.raises(InputError, match=r"UnifiedHybridRetriever\.__init__\(vector_store, embed"):
        UnifiedHybridRetriever(store)  # type: ignore[call-arg]
    with pytest.raises(InputError, match="too many positional arguments"):
        UnifiedHybridRetriever(store, EMBEDDER, 5)  # type: ignore[misc]


def test_a_setting_of_qdrants_own_type_reaches_it(tmp_path: Path) -> None:
    store = build_vector_store(
        EMBEDDER, "docs", path=tmp_path / "q", hnsw_config=qm.HnswConfigDiff(m=7)
    )
    assert store.client.get_collection("docs").config.hnsw_config.m == 7
