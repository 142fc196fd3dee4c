"""Found nodes carry their ranks and scores; the note reaches no vector, no prompt and no store."""

from __future__ import annotations

import copy
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import VectorStoreIndex
from llama_index.core.schema import MetadataMode, TextNode
from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import QdrantClient

from unified_embeddings import UnifiedTextEmbedding
from unified_embeddings.embedders.fake import FakeEmbedder
from unified_embeddings.errors import InputError
from unified_embeddings.llama.payloads import RETRIEVAL_KEY, own_metadata
from unified_embeddings.llama.vector_store import build_vector_store
from unified_embeddings.models.fusion import Fusion
from unified_embeddings.retrievers.hybrid import UnifiedHybridRetriever
from unified_embeddings.stores.edge.client import EdgeQdrantClient

EMBEDDER = FakeEmbedder(16)
TEXTS = ["quick brown fox", "lazy dog", "two rankings", "the quick dog", "a fox and a dog"]
QUERY = "quick fox"


@pytest.fixture(params=["memory", "embedded"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[QdrantVectorStore]:
    client: Any = QdrantClient(":memory:")
    if request.param == "embedded":
        client = EdgeQdrantClient(tmp_path / "store")
    store = build_vector_store(EMBEDDER, "docs", client=client)
    nodes = [
        TextNode(id_=str(uuid.UUID(int=i + 1)), text=text, metadata={"page": i})
        for i, text in enumerate(TEXTS)
    ]
    store.add(UnifiedTextEmbedding(EMBEDDER)(nodes))
    yield store
    client.close()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"fusion": Fusion((0.6, 0.4), method="dbsf")},
        {"fusion": Fusion((3.0, 1.0), method="min_max")},
        {"fusion": Fusion((0.6, 0.4), method="z")},
        {"candidates": 2, "similarity_top_k": 2},
        {"weights": (1, 0)},
        {"rerank": "colbert"},
    ],
    ids=["rrf", "dbsf", "min-max", "z", "shallow", "one list", "reranked"],
)
async def test_the_note_says_what_the_explanation_says(
    store: QdrantVectorStore, options: dict[str, Any]
) -> None:
    retriever = UnifiedHybridRetriever(store, EMBEDDER, **options)
    nodes = retriever.retrieve(QUERY)
    assert nodes
    for scored in nodes:
        note = scored.node.metadata[RETRIEVAL_KEY]
        explanation = retriever.explain(QUERY, scored)
        for name in ("dense", "sparse"):
            rank = getattr(explanation.ranks, name)
            if rank is None:
                assert note.get(name) is None
            else:
                score = getattr(explanation, name).score
                assert note[name] == {"rank": rank, "score": pytest.approx(score, abs=1e-6)}
        assert explanation.fused is not None
        assert note["fused"]["rank"] == explanation.ranks.fused
        assert note["fused"]["score"] == pytest.approx(explanation.fused.score, abs=1e-6)
    again = await retriever.aretrieve(QUERY)
    assert [n.node.metadata[RETRIEVAL_KEY].keys() for n in again] == [
        n.node.metadata[RETRIEVAL_KEY].keys() for n in nodes
    ]


@pytest.mark.parametrize("mode", ["dense", "sparse"])
def test_a_single_list_is_noted_alone(store: QdrantVectorStore, mode: Any) -> None:
    nodes = UnifiedHybridRetriever(store, EMBEDDER, mode=mode).retrieve(QUERY)
    for rank, scored in enumerate(nodes, 1):
        score = pytest.approx(scored.score, abs=1e-6)
        assert scored.node.metadata[RETRIEVAL_KEY] == {mode: {"rank": rank, "score": score}}


def test_the_note_is_neither_embedded_nor_shown_to_a_model(store: QdrantVectorStore) -> None:
    node = UnifiedHybridRetriever(store, EMBEDDER).retrieve(QUERY)[0].node
    assert own_metadata(node) == {"page": 0}
    for mode in (MetadataMode.EMBED, MetadataMode.LLM):
        assert node.get_content(metadata_mode=mode) == "page: 0\n\nquick brown fox"


def test_a_note_is_a_nodes_own(store: QdrantVectorStore) -> None:
    retriever = UnifiedHybridRetriever(store, EMBEDDER)
    first = retriever.retrieve(QUERY)[0].node
    note = dict(first.metadata[RETRIEVAL_KEY])
    other = {n.node.node_id: n.node for n in retriever.retrieve("lazy dog")}[first.node_id]
    assert first.metadata[RETRIEVAL_KEY] == note
    assert other.metadata[RETRIEVAL_KEY] != note
    assert other.excluded_embed_metadata_keys.count(RETRIEVAL_KEY) == 1


async def test_a_found_node_that_is_added_again_is_stored_without_the_note(
    store: QdrantVectorStore,
) -> None:
    found = UnifiedHybridRetriever(store, EMBEDDER).retrieve(QUERY)[0].node
    before = store.client.retrieve("docs", [found.node_id], with_vectors=True)
    copies = [found, found.model_copy(), TextNode.from_dict(found.to_dict())]
    for node in copies:
        VectorStoreIndex.from_vector_store(
            store, embed_model=UnifiedTextEmbedding(EMBEDDER)
        ).insert_nodes([node])
        after = store.client.retrieve("docs", [found.node_id], with_vectors=True)
        assert RETRIEVAL_KEY not in str(after[0].payload)
        for name, vector in before[0].vector.items():
            if isinstance(vector, list):
                vector = pytest.approx(vector, abs=1e-6)
            assert after[0].vector[name] == vector
        (stored,) = store.get_nodes([found.node_id])
        assert stored.metadata == {"page": 0}
        assert RETRIEVAL_KEY not in stored.excluded_embed_metadata_keys
    assert RETRIEVAL_KEY in found.metadata  # the caller's node stays as it is
    await store.async_add(list(UnifiedTextEmbedding(EMBEDDER)(copies[:1])))
    after = store.client.retrieve("docs", [found.node_id])
    assert RETRIEVAL_KEY not in str(after[0].payload)


def test_a_found_node_has_the_hash_that_it_has_in_the_store(store: QdrantVectorStore) -> None:
    """LlamaIndex tells by the hash whether two retrievers found the same node."""
    stored = {node.node_id: node.hash for node in store.get_nodes()}
    for question in (QUERY, "lazy dog"):
        for scored in UnifiedHybridRetriever(store, EMBEDDER).retrieve(question):
            for node in (scored.node, copy.deepcopy(scored.node), scored.node.model_copy()):
                assert node.hash == stored[node.node_id]
                assert RETRIEVAL_KEY in node.metadata
            assert RETRIEVAL_KEY in repr(scored.node.metadata)
            assert scored.node.to_dict()["metadata"] == dict(scored.node.metadata)


def test_metadata_of_the_notes_name_are_refused(store: QdrantVectorStore) -> None:
    node = TextNode(text="a dog", metadata={RETRIEVAL_KEY: "by hand"})
    with pytest.raises(InputError, match=r"metadata '_retrieval' of node .* rename it") as raised:
        store.add(list(UnifiedTextEmbedding(EMBEDDER)([node])))
    assert raised.value.index == 0
