"""The hybrid retriever in DSPy's programs, run with the real DSPy where it is installed."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.schema import TextNode
from llama_index.core.vector_stores.types import MetadataFilter, MetadataFilters
from qdrant_client import QdrantClient

from unified_embeddings import UnifiedTextEmbedding
from unified_embeddings.embedders.fake import FakeEmbedder
from unified_embeddings.errors import InputError, StoreError
from unified_embeddings.llama.vector_store import build_vector_store
from unified_embeddings.retrievers.hybrid import UnifiedHybridRetriever
from unified_embeddings.stores import opening
from unified_embeddings.stores.opening import Client

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("dspy") is None, reason="DSPy comes with the extra 'dspy' (100 MB)"
)

PASSAGES = {
    "fox": ("Foxes jump over dogs.", "land"),
    "dog": ("Dogs sleep at noon.", "land"),
    "sea": ("The sea is blue.", "water"),
    "whale": ("Whales sleep in the sea.", "water"),
}
QUESTION = "What do foxes jump over?"
IDS = {name: str(uuid.uuid5(uuid.NAMESPACE_OID, name)) for name in PASSAGES}
FOX, DOG, SEA, WHALE = IDS.values()


def make_retriever(
    client: Client | None = None, path: Path | None = None, **options: Any
) -> UnifiedHybridRetriever:
    embedder = FakeEmbedder(32)
    store = build_vector_store(embedder, "animals", client=client, path=path)
    nodes = [
        TextNode(text=text, id_=IDS[name], metadata={"place": place})
        for name, (text, place) in PASSAGES.items()
    ]
    store.add(
        [
            node.model_copy(update={"embedding": vector})
            for node, vector in zip(nodes, embed(nodes), strict=True)
        ]
    )
    return UnifiedHybridRetriever(store, embedder, **options)


def embed(nodes: list[TextNode]) -> list[list[float]]:
    model = UnifiedTextEmbedding(FakeEmbedder(32))
    return model.get_text_embedding_batch([node.get_content("embed") for node in nodes])  # type: ignore[arg-type]


def in_water() -> MetadataFilters:
    return MetadataFilters(filters=[MetadataFilter(key="place", value="water")])


@pytest.fixture
def dspy() -> Any:
    return importlib.import_module("dspy")


@pytest.fixture(autouse=True)
def _close_folders(tmp_path: Path) -> Iterator[None]:
    """Close the folders that a test opened before `tmp_path` goes."""
    yield
    for client in list(opening._open_clients.values()):
        client.close()


@pytest.fixture
def retriever() -> UnifiedHybridRetriever:
    return make_retriever(QdrantClient(":memory:"), similarity_top_k=3)


def make_retrieve(retriever: Any, **options: Any) -> Any:
    from unified_embeddings.dspy.search import DspyRetrieve

    return DspyRetrieve(retriever, **options)


def make_rm(retriever: Any) -> Any:
    from unified_embeddings.dspy.search import DspyRM

    return DspyRM(retriever)


def test_the_prediction_holds_what_the_retriever_finds(dspy: Any, any_client: Client) -> None:
    retriever = make_retriever(any_client, similarity_top_k=3)
    nodes = retriever.retrieve(QUESTION)
    found = make_retrieve(retriever)(QUESTION)
    assert isinstance(found, dspy.Prediction)
    assert found.passages == [node.text for node in nodes]
    assert found.ids == [node.node_id for node in nodes]
    assert found.scores == [node.score for node in nodes]
    assert found.metadata == [node.metadata for node in nodes]
    assert len(found.passages) == 3
    assert (found.passages[0], found.ids[0]) == ("Foxes jump over dogs.", FOX)
    assert found.metadata[0]["place"] == "land"
    assert found.metadata[0]["_retrieval"]["dense"]["rank"] == 1
    assert asyncio.run(make_retrieve(retriever).acall(QUESTION)) == found


def test_k_can_be_given_once_or_for_each_call(retriever: UnifiedHybridRetriever) -> None:
    two = make_retrieve(retriever, k=2)
    assert len(two(QUESTION).passages) == 2
    assert two(QUESTION, k=1).ids == [FOX]
    assert sorted(two(query=QUESTION, k=4).ids) == sorted(IDS.values())
    assert len(two(QUESTION).passages) == 2
    assert asyncio.run(two.acall(QUESTION, k=1)).ids == [FOX]
    assert len(retriever.retrieve(QUESTION)) == 3


def test_filters_can_be_given_for_each_call(retriever: UnifiedHybridRetriever) -> None:
    retrieve = make_retrieve(retriever, k=4)
    assert sorted(retrieve("Who sleeps?", filters=in_water()).ids) == sorted([SEA, WHALE])
    awaited = asyncio.run(retrieve.acall("Who sleeps?", filters=in_water()))
    assert sorted(awaited.ids) == sorted([SEA, WHALE])
    assert len(retrieve("Who sleeps?").ids) == 4


def test_nothing_found_gives_empty_lists(dspy: Any, retriever: UnifiedHybridRetriever) -> None:
    nowhere = MetadataFilters(filters=[MetadataFilter(key="place", value="nowhere")])
    for found in (
        make_retrieve(retriever)(QUESTION, filters=nowhere),
        asyncio.run(make_retrieve(retriever).acall(QUESTION, filters=nowhere)),
    ):
        assert (found.passages, found.ids, found.scores, found.metadata) == ([], [], [], [])
    with dspy.context(rm=make_rm(retriever)):
        assert dspy.Retrieve(k=2)(QUESTION, filters=nowhere).passages == []


def test_dspys_own_module_asks_it_as_the_retrieval_model(
    dspy: Any, retriever: UnifiedHybridRetriever
) -> None:
    with dspy.context(rm=make_rm(retriever)):
        assert dspy.Retrieve(k=1)(QUESTION).passages == ["Foxes jump over dogs."]
        assert len(dspy.Retrieve(k=4)(QUESTION).passages) == 4
    best, *_ = make_rm(retriever)(QUESTION)
    node = retriever.retrieve(QUESTION)[0]
    assert (best.long_text, best.id, best.score) == (node.text, node.node_id, node.score)
    assert best.metadata == node.metadata
    assert len(make_rm(retriever)(QUESTION)) == 3


def make_program(dspy: Any, retriever: UnifiedHybridRetriever) -> Any:
    class Answer(dspy.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.retrieve = make_retrieve(retriever, k=1)
            self.respond = dspy.Predict("context, question -> answer")

        def forward(self, question: str) -> Any:
            context = self.retrieve(question).passages
            return self.respond(context=context, question=question)

    return Answer()


def test_a_program_puts_the_passages_before_its_language_model(
    dspy: Any, retriever: UnifiedHybridRetriever
) -> None:
    language_model = dspy.utils.DummyLM([{"answer": "dogs"}])
    with dspy.context(lm=language_model):
        assert make_program(dspy, retriever)(question=QUESTION).answer == "dogs"
    prompt = language_model.history[-1]["messages"][-1]["content"]
    assert "Foxes jump over dogs." in prompt
    assert "Dogs sleep" not in prompt


def test_many_threads_ask_at_once(dspy: Any, retriever: UnifiedHybridRetriever) -> None:
    retrieve = make_retrieve(retriever, k=1)
    questions = [text for text, _ in PASSAGES.values()] * 8
    examples = [dspy.Example(query=text).with_inputs("query") for text in questions]
    answers = retrieve.batch(examples, num_threads=8, disable_progress_bar=True)
    assert [answer.passages for answer in answers] == [[text] for text in questions]


async def test_many_coroutines_ask_at_once(retriever: UnifiedHybridRetriever) -> None:
    retrieve = make_retrieve(retriever, k=1)
    questions = [text for text, _ in PASSAGES.values()] * 8
    answers = await asyncio.gather(*(retrieve.acall(text) for text in questions))
    assert [answer.passages for answer in answers] == [[text] for text in questions]


def test_a_program_is_copied_and_saved(
    dspy: Any, retriever: UnifiedHybridRetriever, tmp_path: Path
) -> None:
    program = make_program(dspy, retriever)
    copied = program.deepcopy()
    assert copied.retrieve.retriever._store is retriever._store
    assert copied.retrieve(QUESTION).ids == [FOX]
    program.save(tmp_path / "program.json")
    fresh = make_program(dspy, retriever)
    fresh.load(tmp_path / "program.json")
    assert fresh.retrieve(QUESTION).ids == [FOX]
    assert [name for name, _ in program.named_predictors()] == ["respond"]


def test_a_whole_module_is_saved_with_its_place(dspy: Any, tmp_path: Path) -> None:
    retriever = make_retriever(path=tmp_path / "qdrant", similarity_top_k=1)
    make_retrieve(retriever).save(tmp_path / "module", save_program=True)
    loaded = dspy.load(tmp_path / "module", allow_pickle=True)
    assert loaded(QUESTION).ids == [FOX]


def test_an_agent_can_call_it_through_a_function(
    dspy: Any, retriever: UnifiedHybridRetriever
) -> None:
    retrieve = make_retrieve(retriever, k=1)

    def search(query: str) -> list[str]:
        """Find passages about animals."""
        found: list[str] = retrieve(query).passages
        return found

    steps = [
        {"next_thought": "", "next_tool_name": "search", "next_tool_args": {"query": QUESTION}},
        {"next_thought": "", "next_tool_name": "finish", "next_tool_args": {}},
        {"reasoning": "", "answer": "dogs"},
    ]
    with dspy.context(lm=dspy.utils.DummyLM(steps)):
        found = dspy.ReAct("question -> answer", tools=[search])(question=QUESTION)
    assert found.answer == "dogs"
    assert "Foxes jump over dogs." in str(found.trajectory)


def test_the_event_loop_is_free_while_it_searches() -> None:
    loop_ran = threading.Event()
    retriever = make_retriever(QdrantClient(":memory:"))
    waiting = retriever._embedder._encode

    def encode(*args: Any, **options: Any) -> Any:
        assert loop_ran.wait(30), "the event loop was blocked"
        return waiting(*args, **options)

    retriever._embedder._encode = encode  # type: ignore[method-assign]

    async def ask_and_go_on() -> list[str]:
        task = asyncio.ensure_future(make_retrieve(retriever, k=1).acall(QUESTION))
        await asyncio.sleep(0)
        loop_ran.set()
        ids: list[str] = (await task).ids
        return ids

    assert asyncio.run(ask_and_go_on()) == [FOX]


def test_what_does_not_fit_is_refused(retriever: UnifiedHybridRetriever) -> None:
    with pytest.raises(InputError, match="k must be"):
        make_retrieve(retriever, k=0)
    retrieve = make_retrieve(retriever)
    for k in (0, -1, 1.5, True):
        with pytest.raises(InputError, match="k must be"):
            retrieve(QUESTION, k=k)
        with pytest.raises(InputError, match="k must be"):
            make_rm(retriever)(QUESTION, k=k)
    with pytest.raises(InputError):
        retrieve("  ")
    with pytest.raises(InputError, match="one str or QueryBundle, got list"):
        retrieve([QUESTION])
    for make in (make_retrieve, make_rm):
        with pytest.raises(InputError, match="expected a UnifiedHybridRetriever, got FakeEmb"):
            make(FakeEmbedder())


def test_a_collection_that_is_gone_is_a_store_error(retriever: UnifiedHybridRetriever) -> None:
    retriever._store.client.delete_collection("animals")
    with pytest.raises(StoreError, match="animals"):
        make_retrieve(retriever)(QUESTION)
