"""Routers, tools, agents and workflows over a store of ours."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import VectorStoreIndex
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.base.llms.types import ChatMessage, MessageRole, ToolCallBlock
from llama_index.core.llms import MockLLM
from llama_index.core.llms.mock import MockFunctionCallingLLM
from llama_index.core.query_engine import RouterQueryEngine
from llama_index.core.retrievers import RouterRetriever
from llama_index.core.schema import NodeWithScore
from llama_index.core.selectors import LLMMultiSelector, LLMSingleSelector
from llama_index.core.tools import BaseTool, QueryEngineTool, RetrieverTool
from llama_index.core.vector_stores.types import FilterOperator
from llama_index.core.workflow import Context, Event, StartEvent, StopEvent, Workflow, step

from farm import COW, FOX, HEN, OWL, TAME, WHALE, answers_of, farm_store, index_over, only, texts_of
from scripted import ScriptedLLM
from unified_embeddings.llama.payloads import RETRIEVAL_KEY
from unified_embeddings.stores.edge.client import EdgeQdrantClient

sync_and_async = pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
HYBRID: dict[str, Any] = {"vector_store_query_mode": "hybrid"}


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder: Path = tmp_path_factory.mktemp("farm")
    with EdgeQdrantClient(folder / "store") as client:
        yield index_over(farm_store(client))


def choices(*numbers: int) -> str:
    """Return what a model answers that was asked to choose."""
    return json.dumps([{"choice": number, "reason": "scripted"} for number in numbers])


# --- routers ------------------------------------------------------------------------------------


def engine_tools(index: VectorStoreIndex) -> list[QueryEngineTool]:
    """Return an engine that answers from tame animals, and one that answers from all."""
    tame = index.as_query_engine(llm=MockLLM(), filters=TAME, similarity_top_k=6, **HYBRID)
    every = index.as_query_engine(llm=MockLLM(), similarity_top_k=6, **HYBRID)
    return [
        QueryEngineTool.from_defaults(tame, name="tame", description="about tame animals"),
        QueryEngineTool.from_defaults(every, name="every", description="about all animals"),
    ]


@sync_and_async
@pytest.mark.parametrize(("choice", "expected"), [(1, HEN), (2, OWL)])
async def test_a_router_asks_the_engine_that_was_chosen(
    index: VectorStoreIndex, choice: int, expected: str, is_async: bool
) -> None:
    llm = ScriptedLLM([choices(choice)])
    router = RouterQueryEngine(
        selector=LLMSingleSelector.from_defaults(llm=llm),
        query_engine_tools=engine_tools(index),
        llm=MockLLM(),
    )
    question = "Who hunts in the barn at night?"
    answer = await router.aquery(question) if is_async else router.query(question)
    found = texts_of(answer.source_nodes)
    assert found[0] == expected
    assert (set(found) == {COW, HEN}) is (choice == 1)
    assert (answer.metadata or {})["selector_result"].ind == choice - 1
    assert all("fused" in n.node.metadata[RETRIEVAL_KEY] for n in answer.source_nodes)


@sync_and_async
async def test_a_router_of_retrievers_joins_what_those_chosen_find(
    index: VectorStoreIndex, is_async: bool
) -> None:
    late = only("year", 2024, FilterOperator.EQ)
    tools = [
        RetrieverTool.from_defaults(
            index.as_retriever(filters=filters, similarity_top_k=6, **HYBRID), description="some"
        )
        for filters in (TAME, late, None)
    ]
    router = RouterRetriever(
        selector=LLMMultiSelector.from_defaults(llm=ScriptedLLM([choices(1, 2)])),
        retriever_tools=tools,
        llm=MockLLM(),
    )
    question = "the barn"
    found = await router.aretrieve(question) if is_async else router.retrieve(question)
    assert sorted(texts_of(found)) == sorted([COW, HEN, WHALE])


# --- tools --------------------------------------------------------------------------------------


@sync_and_async
async def test_a_retriever_as_a_tool_gives_passages_and_not_our_notes(
    index: VectorStoreIndex, is_async: bool
) -> None:
    retriever = index.as_retriever(similarity_top_k=2, **HYBRID)
    tool = RetrieverTool.from_defaults(retriever, name="farm", description="about animals")
    question = "Owls hunt mice at night"
    output = await tool.acall(question) if is_async else tool.call(question)
    assert answers_of(output.raw_output) == answers_of(retriever.retrieve(question))
    assert output.content.index(OWL) < output.content.index(FOX)
    assert "kind" in output.content
    assert RETRIEVAL_KEY not in output.content


class Script:
    """Answers of a model that calls tools: one call, then an answer from what the tool said."""

    def __init__(self, tool_name: str, question: str) -> None:
        self._call = ToolCallBlock(
            tool_call_id="1", tool_name=tool_name, tool_kwargs={"input": question}
        )
        self.seen: list[str] = []

    def __call__(self, messages: Sequence[ChatMessage], **_: Any) -> ChatMessage:
        """Call the tool, or repeat what it answered."""
        said = [message.content or "" for message in messages if message.role == MessageRole.TOOL]
        if not said:
            return ChatMessage(role=MessageRole.ASSISTANT, blocks=[self._call])
        self.seen.append(said[-1])
        return ChatMessage(role=MessageRole.ASSISTANT, content=f"I read: {said[-1]}")


@pytest.mark.parametrize("kind", ["engine", "retriever"])
async def test_an_agent_answers_from_the_passages_of_its_tool(
    index: VectorStoreIndex, kind: str
) -> None:
    tool: BaseTool = RetrieverTool.from_defaults(
        index.as_retriever(similarity_top_k=1, **HYBRID), name="farm", description="about animals"
    )
    if kind == "engine":
        engine = index.as_query_engine(llm=MockLLM(), similarity_top_k=1, **HYBRID)
        tool = QueryEngineTool.from_defaults(engine, name="farm", description="about animals")
    script = Script("farm", "Who eats krill in the cold sea?")
    llm = MockFunctionCallingLLM(response_generator=script, is_chat_model=True)
    agent = FunctionAgent(tools=[tool], llm=llm, streaming=False)
    answer: Any = await agent.run("What do whales eat?")
    assert len(script.seen) == 1
    assert WHALE in str(answer)
    assert HEN not in str(answer)
    assert RETRIEVAL_KEY not in str(answer)
    (call,) = answer.tool_calls
    raw = call.tool_output.raw_output
    sources: list[NodeWithScore] = raw.source_nodes if kind == "engine" else raw
    assert sources[0].node.metadata[RETRIEVAL_KEY]["fused"]["rank"] == 1


async def test_an_agent_calls_a_tool_many_times_at_once(index: VectorStoreIndex) -> None:
    tool = RetrieverTool.from_defaults(
        index.as_retriever(similarity_top_k=1, **HYBRID), name="farm", description="about animals"
    )
    questions = {"grass": COW, "krill": WHALE, "eggs": HEN, "foxes": FOX}

    def script(messages: Sequence[ChatMessage], **_: Any) -> ChatMessage:
        said = [message.content or "" for message in messages if message.role == MessageRole.TOOL]
        if said:
            return ChatMessage(role=MessageRole.ASSISTANT, content="\n".join(said))
        calls = [
            ToolCallBlock(tool_call_id=word, tool_name="farm", tool_kwargs={"input": word})
            for word in questions
        ]
        return ChatMessage(role=MessageRole.ASSISTANT, blocks=calls)

    llm = MockFunctionCallingLLM(response_generator=script, is_chat_model=True)
    agent = FunctionAgent(tools=[tool], llm=llm, streaming=False)
    answer: Any = await agent.run("What is eaten?")
    assert all(text in str(answer) for text in questions.values())
    for call in answer.tool_calls:
        assert questions[call.tool_kwargs["input"]] in call.tool_output.content


# --- workflows ----------------------------------------------------------------------------------


class Asked(Event):
    """One of the questions that a user's question was split into."""

    question: str


class Found(Event):
    """What was found for one of them."""

    question: str
    nodes: list[NodeWithScore]


class Research(Workflow):
    """Search for every part of a question at once, and join what was found."""

    def __init__(self, index: VectorStoreIndex) -> None:
        super().__init__(timeout=60)
        self._retriever = index.as_retriever(similarity_top_k=1, **HYBRID)

    @step
    async def split(self, ctx: Context, event: StartEvent) -> Asked | None:
        """Split at commas."""
        parts = [part.strip() for part in event.question.split(",")]
        await ctx.store.set("parts", len(parts))
        for part in parts:
            ctx.send_event(Asked(question=part))
        return None

    @step(num_workers=4)
    async def search(self, event: Asked) -> Found:
        """Search without blocking the other parts."""
        return Found(question=event.question, nodes=await self._retriever.aretrieve(event.question))

    @step
    async def join(self, ctx: Context, event: Found) -> StopEvent | None:
        """Wait for all parts."""
        found = ctx.collect_events(event, [Found] * await ctx.store.get("parts"))
        if found is None:
            return None
        return StopEvent(result={part.question: part.nodes for part in found})


async def test_a_workflow_searches_in_parallel(index: VectorStoreIndex) -> None:
    runs = [Research(index).run(question="grass, krill, eggs, foxes, owls") for _ in range(4)]
    results: list[Any] = await asyncio.gather(*runs)
    for result in results:
        assert {question: texts_of(nodes) for question, nodes in result.items()} == {
            "grass": [COW],
            "krill": [WHALE],
            "eggs": [HEN],
            "foxes": [FOX],
            "owls": [OWL],
        }
