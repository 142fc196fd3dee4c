"""A query never meets vectors of another model, whatever happens to the alias meanwhile."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from llama_index.core.schema import NodeWithScore
from llama_index.core.vector_stores.types import MetadataFilter, MetadataFilters
from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import QdrantClient
from qdrant_client import models as qm
from two_models import NEW, OLD, QUESTIONS, TEXTS, fill, point

from unified_embeddings.embedders.fake import FakeEmbedder
from unified_embeddings.errors import FingerprintMismatchError, InputError, StoreError
from unified_embeddings.llama.layouts import PayloadReader
from unified_embeddings.llama.payloads import own_metadata
from unified_embeddings.llama.vector_store import build_vector_store
from unified_embeddings.migration.versioned_retriever import VersionedRetriever
from unified_embeddings.migration.versions import read_version
from unified_embeddings.retrievers.hybrid import UnifiedHybridRetriever
from unified_embeddings.stores.opening import Client, async_view
from unified_embeddings.types import Options

OWNER = {"docs-1": "old", "docs-2": "new"}


def seen(nodes: Sequence[NodeWithScore]) -> list[tuple[str, float]]:
    return [(scored.node.node_id, round(scored.score or 0, 5)) for scored in nodes]


def answers_of(client: Client, name: str, embedder: FakeEmbedder) -> dict[str, Any]:
    """What a retriever that knows nothing of versions answers from one collection."""
    store = build_vector_store(embedder, name, client=client)
    mode: Options = {"mode": "hybrid" if "sparse" in embedder.heads else "dense"}
    retriever = UnifiedHybridRetriever(store, embedder, **mode)
    return {question: seen(retriever.retrieve(question)) for question in QUESTIONS}


@pytest.fixture
def client(any_client: Client) -> Client:
    """A store with a collection of each model, and an alias of the old one."""
    fill(any_client, "docs-1", OLD)
    fill(any_client, "docs-2", NEW)
    point(any_client, "docs", "docs-1")
    return any_client


def test_a_version_is_a_collection_and_its_model(client: Client) -> None:
    version = read_version(client, "docs")
    assert (version.collection, version.model_name) == ("docs-1", "old")
    assert version.fingerprint == OLD.fingerprint
    assert read_version(client, "docs-2").fingerprint == NEW.fingerprint
    with pytest.raises(StoreError, match="nothing"):
        read_version(client, "nothing")


def test_each_version_is_asked_with_its_own_model(client: Client) -> None:
    expected = {name: answers_of(client, name, model) for name, model in
                (("docs-1", OLD), ("docs-2", NEW))}  # fmt: skip
    retriever = VersionedRetriever(client, "docs", [OLD, NEW])
    for collection in ("docs-1", "docs-2", "docs-1"):
        point(client, "docs", collection)
        assert retriever.version().collection == collection
        for question in QUESTIONS[:5]:
            assert seen(retriever.retrieve(question)) == expected[collection][question]
            answer = asyncio.run(retriever.aretrieve(question))
            assert seen(answer) == expected[collection][question]


def test_a_collection_deleted_in_flight_is_asked_for_again(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = answers_of(client, "docs-2", NEW)
    retriever = VersionedRetriever(client, "docs", [OLD, NEW])
    retriever.retrieve(QUESTIONS[0])
    search = client.query_batch_points
    searched: list[str] = []

    def retire_first(collection_name: str, *args: Any, **options: Any) -> Any:
        searched.append(collection_name)
        if len(searched) == 1:
            point(client, "docs", "docs-2")
            client.delete_collection("docs-1")
        return search(collection_name, *args, **options)

    monkeypatch.setattr(client, "query_batch_points", retire_first)
    assert seen(retriever.retrieve(QUESTIONS[1])) == expected[QUESTIONS[1]]
    assert searched == ["docs-1", "docs-2"]


def test_another_failure_is_raised(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    retriever = VersionedRetriever(client, "docs", [OLD, NEW])
    retriever.retrieve(QUESTIONS[0])

    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("the disk is gone")

    monkeypatch.setattr(client, "query_batch_points", fail)
    with pytest.raises(StoreError, match="the disk is gone"):
        retriever.retrieve(QUESTIONS[0])
    with pytest.raises(StoreError, match="the disk is gone"):
        asyncio.run(retriever.aretrieve(QUESTIONS[0]))


def test_a_name_used_again_for_another_model_is_noticed(client: Client) -> None:
    retriever = VersionedRetriever(client, "docs", [OLD, NEW], check_seconds=0)
    retriever.retrieve(QUESTIONS[0])
    client.delete_collection("docs-1")
    fill(client, "docs-1", NEW)
    point(client, "docs", "docs-1")
    assert seen(retriever.retrieve(QUESTIONS[3])) == answers_of(client, "docs-1", NEW)[QUESTIONS[3]]


def test_a_model_that_is_not_given_is_refused(client: Client) -> None:
    retriever = VersionedRetriever(client, "docs", [NEW])
    with pytest.raises(StoreError, match=r"made with 'old'.*embedders given are 'new'"):
        retriever.retrieve("foxes")
    missing = VersionedRetriever(client, "nothing", [NEW])
    with pytest.raises(StoreError, match="nothing"):
        missing.retrieve("foxes")
    with pytest.raises(InputError, match="write \\[embedder\\]"):
        VersionedRetriever(client, "docs", NEW)  # type: ignore[arg-type]


def test_a_collection_of_other_software_needs_its_model_named(any_client: Client) -> None:
    any_client.create_collection(
        "chain", vectors_config=qm.VectorParams(size=64, distance=qm.Distance.COSINE)
    )
    vectors = OLD.encode_documents(TEXTS).dense
    assert vectors is not None
    points = [
        qm.PointStruct(
            id=number, vector=vector.tolist(), payload={"page_content": text, "metadata": {"n": 1}}
        )
        for number, (text, vector) in enumerate(zip(TEXTS, vectors, strict=True))
    ]
    any_client.upsert("chain", points)
    point(any_client, "docs", "chain")
    with pytest.raises(StoreError, match=r"does not record which model.*adopt"):
        VersionedRetriever(any_client, "docs", [OLD, NEW]).retrieve("foxes")
    retriever = VersionedRetriever(
        any_client,
        "docs",
        [NEW],
        known={"chain": OLD},
        readers={"chain": PayloadReader("langchain")},
        similarity_top_k=2,
    )
    best, _ = retriever.retrieve("Which foxes jump over dogs?")
    assert (best.text, best.node.node_id) == (TEXTS[0], "0")
    assert own_metadata(best.node) == {"n": 1}
    for number, count in ((1, 2), (2, 0)):
        filters = MetadataFilters(filters=[MetadataFilter(key="n", value=number)])
        filtered = VersionedRetriever(
            any_client,
            "docs",
            [NEW],
            known={"chain": OLD},
            readers={"chain": PayloadReader("langchain")},
            similarity_top_k=2,
            filters=filters,
        )
        assert len(filtered.retrieve("foxes")) == count
    # What the collection itself records wins over what it is said to be.
    fill(any_client, "docs-2", NEW)
    point(any_client, "docs", "docs-2")
    wrong = VersionedRetriever(any_client, "docs", [], known={"docs-2": OLD})
    with pytest.raises(StoreError, match="made with 'new'"):
        wrong.retrieve("foxes")


# --- the switch under load --------------------------------------------------------------------


class Watched:
    """Records with which model's vector each collection is searched."""

    def __init__(self, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
        self._model_of: dict[tuple[float, ...], str] = {}
        for embedder in (OLD, NEW):
            for question in QUESTIONS:
                vectors = embedder.encode_query(question).dense
                assert vectors is not None
                self._model_of[tuple(vectors[0].tolist())] = embedder.model_name
        self.searches: list[tuple[str, str]] = []
        self._search = client.query_batch_points
        monkeypatch.setattr(client, "query_batch_points", self._watch)

    def _watch(self, collection_name: str, requests: Any, **options: Any) -> Any:
        vector = requests[0].query
        numbers = getattr(vector, "nearest", vector)
        self.searches.append((collection_name, self._model_of[tuple(numbers)]))
        return self._search(collection_name, requests, **options)


@pytest.mark.parametrize(
    ("is_async", "check_seconds"), [(False, 1.0), (True, 0.0)], ids=["sync", "async"]
)
def test_a_switch_under_load_mixes_no_two_models(
    client: Client, monkeypatch: pytest.MonkeyPatch, is_async: bool, check_seconds: float
) -> None:
    expected = {name: answers_of(client, name, model) for name, model in
                (("docs-1", OLD), ("docs-2", NEW))}  # fmt: skip
    retriever = VersionedRetriever(client, "docs", [OLD, NEW], check_seconds=check_seconds)
    watched = Watched(client, monkeypatch)
    done = threading.Event()
    answers: list[tuple[str, list[tuple[str, float]]]] = []

    def ask(start: int) -> None:
        for number in itertools.count(start):
            if done.is_set():
                return
            question = QUESTIONS[number % len(QUESTIONS)]
            if is_async:
                nodes = asyncio.run(retriever.aretrieve(question))
            else:
                nodes = retriever.retrieve(question)
            answers.append((question, seen(nodes)))

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask, start) for start in range(4)]
        try:
            for number in range(100):
                point(client, "docs", ("docs-2", "docs-1")[number % 2])
                before = len(answers)
                # An answer comes between two switches, so that both versions are asked.
                while len(answers) < before + 1 and not any(f.done() for f in asking):
                    done.wait(0.0005)
        finally:
            done.set()
        for future in asking:
            future.result()
    assert {OWNER[name] == model for name, model in watched.searches} == {True}
    assert {name for name, _ in watched.searches} == {"docs-1", "docs-2"}
    for question, answer in answers:
        assert answer in (expected["docs-1"][question], expected["docs-2"][question])


# --- stores and retrievers that were opened over an alias ---------------------------------------


def test_a_retriever_opened_by_an_alias_keeps_to_the_collection_it_checked(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before, the alias was searched: after the switch, old questions met new vectors."""
    expected = answers_of(client, "docs-1", OLD)
    ours = UnifiedHybridRetriever(build_vector_store(OLD, "docs", client=client), OLD, mode="dense")
    stock_store = QdrantVectorStore("docs", client=client, aclient=async_view(client))  # type: ignore[arg-type]
    stock = UnifiedHybridRetriever(stock_store, OLD, mode="dense")
    only_async = UnifiedHybridRetriever(
        QdrantVectorStore("docs", aclient=async_view(client)), OLD, mode="dense"
    )
    asyncio.run(only_async.aretrieve(QUESTIONS[0]))
    watched = Watched(client, monkeypatch)
    point(client, "docs", "docs-2")
    for question in QUESTIONS[:5]:
        assert seen(ours.retrieve(question)) == expected[question]
        assert seen(stock.retrieve(question)) == expected[question]
        assert seen(asyncio.run(only_async.aretrieve(question))) == expected[question]
    assert {OWNER[name] == model for name, model in watched.searches} == {True}
    with pytest.raises(FingerprintMismatchError):
        UnifiedHybridRetriever(stock_store, OLD, mode="dense")


def test_a_store_opened_by_an_alias_writes_into_the_collection_it_checked(client: Client) -> None:
    from llama_index.core.schema import TextNode

    from unified_embeddings.llama.text import UnifiedTextEmbedding

    store = build_vector_store(OLD, "docs", client=client)
    assert store.collection_name == "docs-1"
    point(client, "docs", "docs-2")
    store.add(UnifiedTextEmbedding(OLD)([TextNode(text="Written with the old model.")]))
    assert client.count("docs-1").count == len(TEXTS) + 1
    assert client.count("docs-2").count == len(TEXTS)


def test_a_new_name_is_still_created() -> None:
    client = QdrantClient(":memory:")
    assert build_vector_store(OLD, "fresh", client=client).collection_name == "fresh"
    assert client.collection_exists("fresh")
