"""The keyword arguments of a stock application's `as_query_engine` and `as_retriever`."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import VectorStoreIndex
from llama_index.core.llms import MockLLM
from llama_index.core.retrievers import VectorIndexRetriever
from llama_index.core.schema import NodeRelationship, RelatedNodeInfo, TextNode
from llama_index.core.vector_stores.types import VectorStoreQueryMode
from qdrant_client import models as qm

from farm import index_over, texts_of
from unified_embeddings import UnifiedTextEmbedding
from unified_embeddings.embedders.fake import FakeEmbedder
from unified_embeddings.fusion import rrf
from unified_embeddings.llama.payloads import RETRIEVAL_KEY
from unified_embeddings.llama.vector_store import build_vector_store
from unified_embeddings.stores.edge.client import EdgeQdrantClient

EMBEDDER = FakeEmbedder(64)
_draw = random.Random(5)
_WORDS = [f"word{number}" for number in range(30)]
TEXTS = [" ".join(_draw.sample(_WORDS, k=3 + row % 6)) for row in range(80)]
QUESTION = "word1 word2 word3 word4"
EVEN = qm.Filter(must=[qm.FieldCondition(key="parity", match=qm.MatchValue(value=0))])


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VectorStoreIndex]:
    folder: Path = tmp_path_factory.mktemp("pasted")
    nodes = [
        TextNode(
            text=text,
            metadata={"parity": row % 2},
            excluded_embed_metadata_keys=["parity"],
            relationships={NodeRelationship.SOURCE: RelatedNodeInfo(node_id=f"file-{row % 4}")},
        )
        for row, text in enumerate(TEXTS)
    ]
    with EdgeQdrantClient(folder / "store") as client:
        store = build_vector_store(EMBEDDER, "docs", client=client)
        store.add(UnifiedTextEmbedding(EMBEDDER)(nodes))
        yield index_over(store, EMBEDDER)


def found(index: VectorStoreIndex, **options: Any) -> list[Any]:
    """Return what the query engine of a stock application answers from."""
    engine = index.as_query_engine(
        llm=MockLLM(), **{"vector_store_query_mode": "hybrid", "similarity_top_k": 5, **options}
    )
    return [scored.node for scored in engine.query(QUESTION).source_nodes]


def ranks(index: VectorStoreIndex, list_name: str, **options: Any) -> list[int]:
    """Return the ranks in a list of all the nodes that came of it."""
    nodes = found(index, hybrid_top_k=1000, **options)
    notes = [node.metadata[RETRIEVAL_KEY][list_name] for node in nodes]
    return sorted(note["rank"] for note in notes if note is not None)


def test_the_usual_application_gets_five_nodes_of_lists_of_which_one_is_twelve_deep(
    index: VectorStoreIndex,
) -> None:
    assert len(found(index, sparse_top_k=12)) == 5
    assert ranks(index, "sparse", sparse_top_k=12) == list(range(1, 13))


def test_an_engine_of_two_nodes_gets_the_first_two_of_deep_lists(index: VectorStoreIndex) -> None:
    ten = [node.node_id for node in found(index, similarity_top_k=10)]
    for top_k in (1, 2, 5):
        few = [node.node_id for node in found(index, similarity_top_k=top_k)]
        assert few == ten[:top_k]


def test_hybrid_top_k_is_how_many_return_and_similarity_top_k_how_deep_the_dense_list_is(
    index: VectorStoreIndex,
) -> None:
    assert len(found(index, hybrid_top_k=9)) == 9
    assert ranks(index, "dense", similarity_top_k=7) == list(range(1, 8))
    assert len(found(index, hybrid_top_k=3, similarity_top_k=7, sparse_top_k=7)) == 3


@pytest.mark.parametrize("alpha", [0.2, 0.5, 0.9])
def test_alpha_is_the_weight_of_the_dense_list_in_plain_rrf(
    index: VectorStoreIndex, alpha: float
) -> None:
    single = {
        mode: index.as_retriever(vector_store_query_mode=mode, similarity_top_k=80)
        for mode in ("default", "sparse")
    }
    lists = [texts_of(retriever.retrieve(QUESTION))[:20] for retriever in single.values()]
    expected = [score for _, score in rrf(lists, 60, (alpha, 1 - alpha))][:5]
    retriever = index.as_retriever(
        vector_store_query_mode="hybrid", similarity_top_k=5, alpha=alpha
    )
    scores = [scored.score for scored in retriever.retrieve(QUESTION)]
    assert scores == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("alpha", "mode"), [(0.0, "sparse"), (1.0, "default")])
async def test_an_alpha_of_0_or_1_is_one_list_sync_and_async(
    index: VectorStoreIndex, alpha: float, mode: str
) -> None:
    hybrid = index.as_retriever(vector_store_query_mode="hybrid", similarity_top_k=5, alpha=alpha)
    alone = index.as_retriever(vector_store_query_mode=mode, similarity_top_k=5)
    expected = texts_of(alone.retrieve(QUESTION))
    assert texts_of(hybrid.retrieve(QUESTION)) == expected
    assert texts_of(await hybrid.aretrieve(QUESTION)) == expected


def test_doc_ids_and_node_ids_restrict_and_combine(index: VectorStoreIndex) -> None:
    def ids(**options: Any) -> set[tuple[str, str | None]]:
        # `as_retriever` takes no node_ids: LlamaIndex fills them in itself there.
        retriever = VectorIndexRetriever(
            index, vector_store_query_mode=VectorStoreQueryMode.HYBRID, **options
        )
        return {(n.node.node_id, n.node.ref_doc_id) for n in retriever.retrieve(QUESTION)}

    of_files = ids(doc_ids=["file-1", "file-2"], similarity_top_k=80)
    assert {document for _, document in of_files} == {"file-1", "file-2"}
    best = ids(similarity_top_k=12)
    wanted = [node_id for node_id, _ in best]
    assert ids(node_ids=wanted, similarity_top_k=80) == best
    both = ids(node_ids=wanted, doc_ids=["file-1"], similarity_top_k=80)
    assert both == {(node_id, document) for node_id, document in best if document == "file-1"}
    assert both


@pytest.mark.parametrize("mode", ["hybrid", "sparse", "default"])
def test_qdrants_own_filter_and_parameters_go_through_vector_store_kwargs(
    index: VectorStoreIndex, mode: str
) -> None:
    kwargs = {"qdrant_filters": EVEN, "search_params": {"exact": True}, "shard_identifier": "a"}
    options = {"vector_store_query_mode": mode, "similarity_top_k": 80}
    restricted = found(index, vector_store_kwargs=kwargs, **options)
    everything = found(index, **options)
    even = [node.node_id for node in everything if node.metadata["parity"] == 0]
    assert {node.node_id for node in restricted} == {*even}
    assert 0 < len(even) < len(everything)


def test_a_shard_identifier_without_custom_sharding_means_all_shards(
    index: VectorStoreIndex,
) -> None:
    named = found(index, vector_store_kwargs={"shard_identifier": "a"})
    assert [node.node_id for node in named] == [node.node_id for node in found(index)]
