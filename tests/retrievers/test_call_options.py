"""Options for one question: they hold for it alone, in every way of asking."""

from __future__ import annotations

import asyncio
import contextlib
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.core.vector_stores.types import MetadataFilter, MetadataFilters

from unified_embeddings import UnifiedHybridRetriever, UnifiedTextEmbedding
from unified_embeddings.embedders.fake import FakeEmbedder
from unified_embeddings.errors import InputError
from unified_embeddings.llama.vector_store import build_vector_store
from unified_embeddings.retrievers.timing import Search
from unified_embeddings.stores.edge.client import EdgeQdrantClient

EMBEDDER = FakeEmbedder(dimension=16)
QUESTION = "a red fox"


@pytest.fixture(scope="module")
def retriever(tmp_path_factory: pytest.TempPathFactory) -> Iterator[UnifiedHybridRetriever]:
    with EdgeQdrantClient(tmp_path_factory.mktemp("calls")) as client:
        store = build_vector_store(EMBEDDER, "docs", client=client)
        nodes = [
            TextNode(text=f"fox number {number}", metadata={"parity": number % 2})
            for number in range(12)
        ]
        store.add(UnifiedTextEmbedding(EMBEDDER)(nodes))
        yield UnifiedHybridRetriever(store, EMBEDDER, similarity_top_k=4, filters=only(parity=0))


def only(**values: int) -> MetadataFilters:
    return MetadataFilters(
        filters=[MetadataFilter(key=key, value=value) for key, value in values.items()]
    )


def ask(retriever: UnifiedHybridRetriever, way: str, **options: Any) -> list[NodeWithScore]:
    if way == "async":
        return asyncio.run(retriever.aretrieve(QUESTION, **options))
    return retriever.retrieve(QUESTION, **options)


def parities(nodes: list[NodeWithScore]) -> set[int]:
    return {scored.node.metadata["parity"] for scored in nodes}


@pytest.mark.parametrize("way", ["sync", "async"])
def test_options_of_one_question_hold_for_it_alone(
    retriever: UnifiedHybridRetriever, way: str
) -> None:
    before = ask(retriever, way)
    assert len(before) == 4
    assert parities(before) == {0}

    odd = ask(retriever, way, filters=only(parity=1), similarity_top_k=5)
    assert len(odd) == 5
    assert parities(odd) == {1}

    assert ask(retriever, way) == before


def test_a_longer_answer_begins_with_the_shorter_one(retriever: UnifiedHybridRetriever) -> None:
    ids = [scored.node_id for scored in ask(retriever, "sync", similarity_top_k=6)]
    assert [scored.node_id for scored in ask(retriever, "sync", similarity_top_k=2)] == ids[:2]


def test_each_question_counts_once(retriever: UnifiedHybridRetriever) -> None:
    (before,) = retriever.stats()
    ask(retriever, "sync", similarity_top_k=2)
    ask(retriever, "async", filters=only(parity=1))
    (after,) = retriever.stats()
    assert after.durations.count == before.durations.count + 2


def test_who_watches_sees_the_number_of_the_question(retriever: UnifiedHybridRetriever) -> None:
    seen: list[int] = []

    @contextlib.contextmanager
    def watch(search: Search) -> Iterator[None]:
        seen.append(search.top_k)
        yield

    stop = retriever.searches.watch(watch)
    ask(retriever, "sync", similarity_top_k=2)
    ask(retriever, "async", similarity_top_k=3)
    ask(retriever, "sync")
    stop()
    assert seen == [2, 3, 4]


@pytest.mark.parametrize("options", [{"similarity_top_k": 0}, {"filters": "parity = 1"}])
def test_options_out_of_range_are_refused(
    retriever: UnifiedHybridRetriever, options: dict[str, Any]
) -> None:
    with pytest.raises(InputError):
        ask(retriever, "sync", **options)


def test_a_pickled_copy_over_a_folder_finds_the_same(tmp_path: Path) -> None:
    store = build_vector_store(EMBEDDER, "docs", path=tmp_path / "store")
    store.add(UnifiedTextEmbedding(EMBEDDER)([TextNode(text="a red fox"), TextNode(text="an owl")]))
    original = UnifiedHybridRetriever(store, EMBEDDER, similarity_top_k=1)
    expected = original.retrieve(QUESTION)
    state = pickle.dumps(original)
    found = pickle.loads(state).retrieve(QUESTION)
    assert [scored.node_id for scored in found] == [scored.node_id for scored in expected]
    store.client.close()
