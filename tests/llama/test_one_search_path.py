"""A query engine finds what our retriever finds, in its order, with one request per question."""

from __future__ import annotations

import asyncio
import inspect
import random
import threading
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_index.core import VectorStoreIndex
from llama_index.core.base.response.schema import Response
from llama_index.core.llms import MockLLM
from llama_index.core.query_engine import BaseQueryEngine
from llama_index.core.response_synthesizers.no_text import NoText
from llama_index.core.schema import TextNode

from farm import answers_of, farm_store, index_over
from unified_embeddings import UnifiedHybridRetriever, UnifiedTextEmbedding
from unified_embeddings.embedders.cached import Vectors
from unified_embeddings.embedders.fake import FakeEmbedder
from unified_embeddings.llama.fingerprinted_store import FingerprintedStore
from unified_embeddings.llama.vector_store import build_vector_store
from unified_embeddings.stores.edge.client import EdgeQdrantClient
from unified_embeddings.stores.opening import Client
from unified_embeddings.types import HeadName, SparseVector

QUESTIONS = 1000
_TEXTS = 400
_WORDS = [f"word{number}" for number in range(60)]


class ShadedEmbedder(FakeEmbedder):
    """A FakeEmbedder whose words weigh a little differently in every text.

    With equal weights many texts would have the same score, and to see where a tie ends, a search
    may ask twice.
    """

    def _embed(self, words: list[str], heads: frozenset[HeadName]) -> Vectors:
        vectors = super()._embed(words, heads)
        shades = np.random.default_rng(zlib.crc32(" ".join(words).encode()))
        sparse = vectors.get("sparse")
        if isinstance(sparse, SparseVector):
            factors = shades.uniform(0.5, 1.5, len(sparse)).astype(np.float32)
            vectors["sparse"] = SparseVector(sparse.indices, sparse.values * factors)
        return vectors


@dataclass
class Searched:
    """A store with what is over it, and the calls that its client got."""

    store: FingerprintedStore
    index: VectorStoreIndex
    embedder: FakeEmbedder
    calls: Counter[str]


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Searched]:
    draw = random.Random(17)
    embedder = ShadedEmbedder(32)
    folder: Path = tmp_path_factory.mktemp("agreeing")
    with EdgeQdrantClient(folder / "store") as client:
        store = build_vector_store(embedder, "docs", client=client)
        nodes = [
            TextNode(
                text=" ".join(draw.choices(_WORDS, k=draw.randint(3, 12))), metadata={"row": row}
            )
            for row in range(_TEXTS)
        ]
        store.add(UnifiedTextEmbedding(embedder)(nodes))
        calls: Counter[str] = Counter()
        with pytest.MonkeyPatch.context() as patch:
            count_calls(client, calls, patch)
            yield Searched(store, index_over(store, embedder), embedder, calls)


def count_calls(client: Any, calls: Counter[str], patch: pytest.MonkeyPatch) -> None:
    """Count each call of a client's public methods by name."""

    def counted(name: str, method: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            calls[name] += 1
            return method(*args, **options)

        return call

    for name, method in inspect.getmembers(client, callable):
        if not name.startswith("_"):
            patch.setattr(client, name, counted(name, method))


def questions() -> list[str]:
    draw = random.Random(18)
    return [" ".join(draw.sample(_WORDS, k=draw.randint(1, 5))) for _ in range(QUESTIONS)]


def engines(searched: Searched) -> dict[int, BaseQueryEngine]:
    """Return engines by how many nodes they retrieve; they write no answers."""
    silent = NoText(llm=MockLLM())
    return {
        top_k: searched.index.as_query_engine(
            llm=MockLLM(),
            vector_store_query_mode="hybrid",
            similarity_top_k=top_k,
            response_synthesizer=silent,
        )
        for top_k in (1, 3, 10, 25)
    }


def found(answer: Any) -> list[tuple[str, float | None, object]]:
    assert isinstance(answer, Response)
    return answers_of(answer.source_nodes)


async def test_an_engines_nodes_scores_and_ranks_are_the_retrievers(searched: Searched) -> None:
    by_top_k = engines(searched)
    retrievers = {
        top_k: UnifiedHybridRetriever(searched.store, searched.embedder, similarity_top_k=top_k)
        for top_k in by_top_k
    }
    asked = [(question, [1, 3, 10, 25][row % 4]) for row, question in enumerate(questions())]
    expected = [answers_of(retrievers[top_k].retrieve(question)) for question, top_k in asked]
    assert {len(nodes) for nodes in expected} == {1, 3, 10, 25}
    by_top_k[1].query("to look the collection up")

    searched.calls.clear()
    assert [found(by_top_k[top_k].query(question)) for question, top_k in asked] == expected
    assert searched.calls == {"query_batch_points": QUESTIONS}

    searched.calls.clear()
    answers = await asyncio.gather(*[by_top_k[top_k].aquery(text) for text, top_k in asked])
    assert [found(answer) for answer in answers] == expected
    assert searched.calls == {"query_batch_points": QUESTIONS}


def test_one_request_holds_both_lists(searched: Searched, monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[list[str | None]] = []
    search = searched.store.client.query_batch_points

    def noted(collection_name: str, requests: Any, **options: Any) -> Any:
        batches.append([request.using for request in requests])
        return search(collection_name, requests, **options)

    monkeypatch.setattr(searched.store.client, "query_batch_points", noted)
    engines(searched)[3].query("word1 word2")
    assert batches == [[searched.store.dense_vector_name, searched.store.sparse_vector_name]]


async def test_a_search_in_this_process_has_threads_of_its_own(
    searched: Searched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind calls of a model it would wait in a queue, and then run at once with all others."""
    threads: dict[str, set[str]] = {"model": set(), "search": set(), "nodes": set()}
    encode, search = searched.embedder.encode_query, searched.store.client.query_batch_points
    parse = type(searched.store).parse_to_query_result

    def noted(step: str, method: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            threads[step].add(threading.current_thread().name)
            return method(*args, **options)

        return call

    monkeypatch.setattr(searched.embedder, "encode_query", noted("model", encode))
    monkeypatch.setattr(searched.store.client, "query_batch_points", noted("search", search))
    monkeypatch.setattr(type(searched.store), "parse_to_query_result", noted("nodes", parse))
    retriever = UnifiedHybridRetriever(searched.store, searched.embedder, similarity_top_k=3)
    await asyncio.gather(*[retriever.aretrieve(text) for text in questions()[:20]])
    assert all(name.startswith("asyncio") for name in threads["model"])
    await asyncio.gather(*[engines(searched)[3].aquery(text) for text in questions()[:20]])
    for step in ("search", "nodes"):
        assert threads[step]
        assert all(name.startswith("store-search") for name in threads[step])
    assert threading.current_thread().name not in threads["model"]


@pytest.mark.parametrize("mode", ["hybrid", "sparse", "default"])
async def test_over_every_kind_of_client_sync_and_async_agree(
    any_client: Client, mode: str
) -> None:
    store = farm_store(any_client)
    retriever = index_over(store).as_retriever(vector_store_query_mode=mode, similarity_top_k=4)
    own_mode: Any = {"default": "dense"}.get(mode, mode)
    ours = UnifiedHybridRetriever(store, FakeEmbedder(), similarity_top_k=4, mode=own_mode)
    for question in ("owls in the barn", "cold sea", "night"):
        expected = answers_of(ours.retrieve(question))
        assert expected
        assert answers_of(retriever.retrieve(question)) == expected
        assert answers_of(await retriever.aretrieve(question)) == expected
        assert answers_of(await ours.aretrieve(question)) == expected
