"""Retrievers of LlamaIndex that put something on top of a retriever, over a store of ours."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.indices.vector_store import VectorIndexAutoRetriever
from llama_index.core.node_parser import HierarchicalNodeParser, get_leaf_nodes
from llama_index.core.retrievers import (
    AutoMergingRetriever,
    QueryFusionRetriever,
    VectorIndexRetriever,
)
from llama_index.core.retrievers.fusion_retriever import FUSION_MODES
from llama_index.core.schema import Document, NodeWithScore
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.core.vector_stores.types import (
    FilterOperator,
    MetadataInfo,
    VectorStoreInfo,
    VectorStoreQueryMode,
)

from farm import COW, FOX, HEN, OWL, TAME, WHALE, answers_of, farm_store, index_over, only, texts_of
from scripted import ScriptedLLM
from unified_embeddings import UnifiedHybridRetriever
from unified_embeddings.embedders.fake import FakeEmbedder
from unified_embeddings.llama.fingerprinted_store import FingerprintedStore
from unified_embeddings.llama.payloads import RETRIEVAL_KEY
from unified_embeddings.llama.vector_store import build_vector_store
from unified_embeddings.stores.edge.client import EdgeQdrantClient

EMBEDDER = FakeEmbedder()
sync_and_async = pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FingerprintedStore]:
    folder: Path = tmp_path_factory.mktemp("farm")
    with EdgeQdrantClient(folder / "store") as client:
        yield farm_store(client)


@pytest.fixture(scope="module")
def index(store: FingerprintedStore) -> VectorStoreIndex:
    return index_over(store)


async def retrieved(
    retriever: BaseRetriever, question: str, *, is_async: bool
) -> list[NodeWithScore]:
    return await retriever.aretrieve(question) if is_async else retriever.retrieve(question)


# --- merged into parents ------------------------------------------------------------------------


CHAPTERS = (
    "Foxes dig dens. Foxes hunt mice. Foxes raise cubs. Foxes sleep by day. Foxes eat berries. "
    "Owls build nests. Owls see well. Owls fly silently. Owls turn heads. Owls eat voles. "
)


def parent_of(scored: NodeWithScore) -> str | None:
    parent = scored.node.parent_node
    return parent.node_id if parent is not None else None


@sync_and_async
async def test_leaves_that_are_found_together_are_merged_into_their_parent(
    tmp_path: Path, is_async: bool
) -> None:
    parser = HierarchicalNodeParser.from_defaults(chunk_sizes=[40, 12], chunk_overlap=0)
    nodes = parser.get_nodes_from_documents([Document(text=CHAPTERS, metadata={})])
    leaves = get_leaf_nodes(nodes)
    docstore = SimpleDocumentStore()
    docstore.add_documents(nodes)
    with EdgeQdrantClient(tmp_path / "store") as client:
        store = build_vector_store(EMBEDDER, "chapters", client=client)
        context = StorageContext.from_defaults(docstore=docstore, vector_store=store)
        index = index_over(store)
        index.insert_nodes(leaves)
        base = index.as_retriever(vector_store_query_mode="hybrid", similarity_top_k=4)
        assert isinstance(base, VectorIndexRetriever)
        retriever = AutoMergingRetriever(base, context, simple_ratio_thresh=0.4)
        found = await retrieved(retriever, "foxes", is_async=is_async)
        unmerged = await retrieved(base, "foxes", is_async=is_async)
    leaf_ids = {leaf.node_id for leaf in leaves}
    assert {scored.node.node_id for scored in unmerged} <= leaf_ids
    merged = [scored for scored in found if scored.node.node_id not in leaf_ids]
    assert merged
    for parent in merged:
        children = [n for n in unmerged if parent_of(n) == parent.node.node_id]
        assert len(children) > 0.4 * len(parent.node.child_nodes or [])
        assert all(child.node.get_content() in parent.node.get_content() for child in children)
        assert parent.score == pytest.approx(
            sum(child.score or 0.0 for child in children) / len(children)
        )
    assert "Foxes" in found[0].node.get_content()


# --- filters that a language model wrote --------------------------------------------------------


def spec(query: str, *conditions: tuple[str, str, object], top_k: int | None = None) -> str:
    """Return what a model answers that was asked for a query and filters."""
    filters = [{"key": key, "operator": sign, "value": value} for key, sign, value in conditions]
    return json.dumps({"query": query, "filters": filters, "top_k": top_k})


ABOUT = VectorStoreInfo(
    content_info="what animals do",
    metadata_info=[
        MetadataInfo(name="kind", type="str", description="wild, tame or sea"),
        MetadataInfo(name="year", type="int", description="the year of the observation"),
    ],
)


@sync_and_async
@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (spec("night in the barn", ("kind", "==", "wild")), {FOX, OWL}),
        (spec("night in the barn", ("kind", "==", "wild"), ("year", ">", 2021)), {OWL}),
        (spec("the barn", ("kind", "in", ["tame", "sea"]), ("year", ">=", 2024)), {HEN, WHALE}),
        (spec("the barn", ("kind", "!=", "sea"), ("year", "<", 2023)), {FOX, COW}),
        (spec("the fields all day", top_k=1), {COW}),
    ],
    ids=["equal", "and above", "among", "other than", "top_k"],
)
async def test_what_a_model_asks_for_is_searched_with_its_filters(
    index: VectorStoreIndex, answer: str, expected: set[str], is_async: bool
) -> None:
    retriever = VectorIndexAutoRetriever(
        index,
        vector_store_info=ABOUT,
        llm=ScriptedLLM([answer]),
        vector_store_query_mode=VectorStoreQueryMode.HYBRID,
        similarity_top_k=10,
        max_top_k=10,
    )
    found = await retrieved(retriever, "as the model puts it", is_async=is_async)
    assert set(texts_of(found)) == expected
    assert all("fused" in scored.node.metadata[RETRIEVAL_KEY] for scored in found)


def test_filters_of_the_caller_hold_besides_those_of_the_model(index: VectorStoreIndex) -> None:
    retriever = VectorIndexAutoRetriever(
        index,
        vector_store_info=ABOUT,
        llm=ScriptedLLM([spec("the barn", ("year", ">=", 2023))]),
        vector_store_query_mode=VectorStoreQueryMode.HYBRID,
        extra_filters=TAME,
        similarity_top_k=10,
    )
    assert texts_of(retriever.retrieve("anything")) == [HEN]


# --- several questions, several retrievers ------------------------------------------------------


@sync_and_async
async def test_fusing_one_retriever_with_nothing_keeps_its_order(
    index: VectorStoreIndex, is_async: bool
) -> None:
    ours = index.as_retriever(vector_store_query_mode="hybrid", similarity_top_k=4)
    fused = QueryFusionRetriever(
        [ours], llm=ScriptedLLM([""]), num_queries=1, use_async=False, similarity_top_k=4
    )
    question = "Who hunts mice in the barn?"
    found = await retrieved(fused, question, is_async=is_async)
    assert answers_of(found) == answers_of(ours.retrieve(question))
    assert found[0].text == OWL


@sync_and_async
@pytest.mark.parametrize("mode", list(FUSION_MODES))
async def test_each_node_comes_once_however_many_questions_find_it(
    index: VectorStoreIndex, store: FingerprintedStore, mode: FUSION_MODES, is_async: bool
) -> None:
    """Ranks differ from question to question, and the node is the same all the same."""
    llm = ScriptedLLM(["mice at night\nwhales in the cold sea"])
    retrievers = [
        index.as_retriever(vector_store_query_mode="hybrid", similarity_top_k=4),
        UnifiedHybridRetriever(store, EMBEDDER, similarity_top_k=4),
        index.as_retriever(similarity_top_k=4),
    ]
    fused = QueryFusionRetriever(
        retrievers, llm=llm, mode=mode, num_queries=3, use_async=False, similarity_top_k=6
    )
    found = await retrieved(fused, "owls in the barn", is_async=is_async)
    assert len(set(texts_of(found))) == len(found) == 6


def test_ranks_of_several_questions_are_fused_as_llama_index_says(index: VectorStoreIndex) -> None:
    llm = ScriptedLLM(["mice at night"])
    ours = index.as_retriever(vector_store_query_mode="hybrid", similarity_top_k=6)
    fused = QueryFusionRetriever(
        [ours], llm=llm, mode=FUSION_MODES.RECIPROCAL_RANK, num_queries=2, similarity_top_k=6
    )
    question = "owls in the barn"
    expected: dict[str, float] = {}
    for asked in (question, "mice at night"):
        for rank, text in enumerate(texts_of(ours.retrieve(asked))):
            expected[text] = expected.get(text, 0.0) + 1 / (60 + rank)
    assert {n.text: n.score for n in fused.retrieve(question)} == pytest.approx(expected)


def test_a_node_found_by_us_and_by_another_retriever_is_the_same_node(
    index: VectorStoreIndex, store: FingerprintedStore
) -> None:
    ours = index.as_retriever(vector_store_query_mode="hybrid", similarity_top_k=6)
    stored = {node.node_id: node.hash for node in store.get_nodes()}
    found = ours.retrieve("owls in the barn")
    assert {scored.node.node_id: scored.node.hash for scored in found} == stored


def test_a_retriever_with_filters_is_fused_with_its_filters(index: VectorStoreIndex) -> None:
    tame = index.as_retriever(vector_store_query_mode="hybrid", filters=TAME)
    late = index.as_retriever(
        vector_store_query_mode="hybrid", filters=only("year", 2024, FilterOperator.EQ)
    )
    fused = QueryFusionRetriever(
        [tame, late], llm=ScriptedLLM([""]), num_queries=1, similarity_top_k=6
    )
    assert set(texts_of(fused.retrieve("the barn and the sea"))) == {COW, HEN, WHALE}
