"""Runs: every question asked of a retriever, chunks scored for the documents they belong to."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.schema import (
    NodeRelationship,
    NodeWithScore,
    QueryBundle,
    RelatedNodeInfo,
    TextNode,
)
from qdrant_client import QdrantClient

from unified_embeddings.embedders.fake import FakeEmbedder
from unified_embeddings.errors import InputError
from unified_embeddings.evaluation.documents import POINT_ID
from unified_embeddings.evaluation.rankings import sort_by_score
from unified_embeddings.llama.vector_store import build_vector_store
from unified_embeddings.retrievers.hybrid import UnifiedHybridRetriever
from unified_embeddings.retrievers.runs import collect_run, find_document_field


class Scripted(BaseRetriever):
    """Answers every question with the same nodes."""

    def __init__(self, found: Sequence[tuple[Mapping[str, object], float]]) -> None:
        self.found = found
        super().__init__()

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return [
            NodeWithScore(
                node=TextNode(id_=f"n{place}", text="x", metadata=dict(payload)), score=score
            )
            for place, (payload, score) in enumerate(self.found)
        ]


def test_a_document_scores_as_its_best_chunk() -> None:
    found = [({"doc": "a"}, 0.5), ({"doc": "b"}, 0.25), ({"doc": "a"}, 0.125), ({}, 0.1)]
    run = collect_run(Scripted(found), {"q1": "x", "q2": "y"}, document_field="doc")
    assert run == {"q1": {"a": 0.5, "b": 0.25}, "q2": {"a": 0.5, "b": 0.25}}


def test_ties_keep_the_retrievers_order_whatever_a_scorer_does_with_them() -> None:
    names = ["b", "c", "a", "e", "d"]
    scores = [0.5, 0.5, 0.5 - 1e-12, 0.5 - 1e-9, 0.25]
    found = [({"doc": name}, score) for name, score in zip(names, scores, strict=True)]
    run = collect_run(Scripted(found), {"q": "x"}, document_field="doc")
    assert sort_by_score(run["q"]) == names
    assert list(run["q"].values()) == pytest.approx(scores, abs=1e-6)
    assert len({np.float32(score) for score in run["q"].values()}) == 5


def test_the_smallest_distance_is_the_best() -> None:
    found = [({"doc": "a"}, 0.5), ({"doc": "b"}, 1.5)]
    run = collect_run(Scripted(found), {"q": "x"}, document_field="doc")
    assert run == {"q": {"a": -0.5, "b": -1.5}}


def test_depth_counts_documents() -> None:
    found = [({"doc": "a"}, 3.0), ({"doc": "a"}, 2.0), ({"doc": "b"}, 1.0), ({"doc": "c"}, 0.5)]
    run = collect_run(Scripted(found), {"q": "x"}, document_field="doc", depth=2)
    assert run == {"q": {"a": 3.0, "b": 1.0}}
    with pytest.raises(InputError, match="depth"):
        collect_run(Scripted(found), {"q": "x"}, document_field="doc", depth=0)


def test_a_question_without_an_answer_is_in_the_run_and_a_blank_one_is_named() -> None:
    seen: list[int] = []
    run = collect_run(Scripted([]), {"q": "x"}, document_field="doc", on_query=seen.append)
    assert run == {"q": {}}
    assert seen == [1]
    with pytest.raises(InputError, match="'q7' is blank"):
        collect_run(Scripted([]), {"q7": " "}, document_field="doc")


@pytest.fixture
def retriever() -> UnifiedHybridRetriever:
    """Two chunks of each of two documents, as LlamaIndex stores them."""
    embedder = FakeEmbedder(32)
    store = build_vector_store(embedder, "docs", client=QdrantClient(":memory:"))
    texts = ["quick fox", "lazy dog", "blue sea", "calm sea at noon"]
    dense = embedder.encode_documents(texts).dense
    store.add(
        [
            TextNode(
                id_=str(uuid.UUID(int=place + 1)),
                text=text,
                metadata={"page": place},
                embedding=dense[place].tolist(),
                relationships={NodeRelationship.SOURCE: RelatedNodeInfo(node_id=f"d{place // 2}")},
            )
            for place, text in enumerate(texts)
        ]
    )
    return UnifiedHybridRetriever(store, embedder)


def test_what_is_measured_is_what_the_retriever_returns(retriever: UnifiedHybridRetriever) -> None:
    queries = {"q1": "a fox", "q2": "the sea at noon"}
    field = find_document_field(retriever, queries, {"d0", "d1"})
    assert field == "doc_id"
    run = collect_run(retriever, queries, document_field=field)
    for query_id, text in queries.items():
        nodes = retriever.retrieve(text)
        expected: dict[str, float] = {}
        for scored in nodes:
            expected.setdefault(str(scored.node.ref_doc_id), float(scored.score or 0))
        assert sort_by_score(run[query_id]) == list(expected)
        assert run[query_id] == pytest.approx(expected, abs=1e-6)
    points = collect_run(retriever, queries, document_field=POINT_ID)
    assert set(points["q1"]) == {str(uuid.UUID(int=number)) for number in range(1, 5)}


def test_a_collection_without_judged_documents_is_refused(
    retriever: UnifiedHybridRetriever,
) -> None:
    with pytest.raises(InputError, match="no field"):
        find_document_field(retriever, {"q": "the sea"}, {"other"})


def test_documents_of_other_softwares_payloads_are_found() -> None:
    """LangChain puts the metadata into a field of its own."""
    found = [({"metadata": {"source": "d1"}}, 1.0), ({"metadata": {"source": "d2"}}, 0.5)]
    retriever = Scripted(found)
    field = find_document_field(retriever, {"q": "x"}, {"d1", "d2"})
    assert field == "metadata.source"
    assert collect_run(retriever, {"q": "x"}, document_field=field) == {"q": {"d1": 1.0, "d2": 0.5}}
